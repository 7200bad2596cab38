"""Confidence: density of the training features at new features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.interfaces import (
    SPLITS,
    FeatureBatch,
    FeatureMeasure,
    Labeler,
    Layer,
    Pass,
    Split,
    Value,
    Variable,
    is_count,
    one_of,
    require,
)
from genmeasures.labelers import KMeans
from genmeasures.statistics.clusters import row_norms
from genmeasures.statistics.mixture import Mixtures, fit_mixtures

_REFERENCES = "Rajagopal et al. 2021, section 2.3.2"


class Confidence(FeatureMeasure):
    """Largest density of a vector under the Gaussian mixtures of the training clusters.

    A mixture of full-covariance Gaussians is fitted to each cluster of the projected training vectors. The confidence
    of a new vector x, projected to w, is c = max_{i,j} N(w; μ_ij, Σ_ij) over clusters i and components j.
    ``confidence`` is the mean of c·‖x‖₂, ``confidence_unweighted`` the mean of c. Covariances are regularized relative
    to the variance of the training sample, and small clusters get fewer components: see
    :func:`genmeasures.statistics.mixture.fit_mixtures`.

    Source: Rajagopal et al. 2021, section 2.3.2.

    Args:
        labeler: Labeler of the training vectors, one mixture per label. None is ``KMeans()``.
        components: Number of components of the mixture of each cluster.
        density: ``"log"`` averages log c, ``"linear"`` c itself.
        over: What the maximum is taken over, ``"component"`` (as in the paper) or ``"mixture"``.
        split: Split whose vectors are scored, ``"train"`` or ``"test"``.

    Raises:
        OptionError: If an option is not one of these values, or the labeler makes several clusterings.

    Example:
        >>> import genmeasures
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
        >>> ds = genmeasures.measure({"net": net}, x[:100], x[100:], measures=[Confidence(KMeans(k=2), components=1)])
        >>> list(ds.confidence.dims)
        ['model', 'layer']
    """

    name = "confidence"
    variables = (
        Variable(
            "confidence",
            "weighted confidence",
            expected_accuracy=-1,
            expected_accuracy_source="Rajagopal et al. 2021, table 1: −0.65 and −0.88 over 128 UNets",
            expected_gap=-1,
            expected_gap_source="64 networks on digits (README): features spread with training, and the gap grows",
            references=_REFERENCES,
        ),
        Variable(
            "confidence_unweighted",
            "unweighted confidence",
            expected_gap=-1,
            expected_gap_source="64 networks on digits (README): features spread with training, and the gap grows",
            references=_REFERENCES,
        ),
    )

    def __init__(
        self,
        labeler: Labeler | None = None,
        components: int = 3,
        density: str = "log",
        over: str = "component",
        split: Split = "test",
    ) -> None:
        valid = labeler is None or isinstance(labeler, Labeler)
        require(valid, self, f"labeler must be a labeler, such as genmeasures.labelers.KMeans(), got {labeler!r}")
        require(is_count(components), self, f"components must be an integer ≥ 1, got {components!r}")
        one_of(self, "density", density, ("log", "linear"))
        one_of(self, "over", over, ("component", "mixture"))
        one_of(self, "split", split, SPLITS)
        several = isinstance(labeler, KMeans) and labeler.repeats > 1
        require(not several, self, "the labeler must make one clustering: set repeats=1")
        self.labeler = KMeans() if labeler is None else labeler
        self.components = components
        self.density = density
        self.over = over
        self.split = split

    @property
    def passes(self) -> tuple[Pass, ...]:
        return (Pass("fit", "projected", "labels"), Pass(self.split, "projected", "vectors"))

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._generator = generator
        self._training: list[tuple[Tensor, Tensor, Tensor]] = []
        self._mixtures: Mixtures | None = None
        self._count = 0
        self._sum = self._weighted = 0.0

    def update(self, batch: FeatureBatch) -> None:
        if self._mixtures is None:
            assert self.labeler is not None
            self._training.append((batch.rank, batch.projected, batch.labels(self.labeler)))
            return
        if self.over == "component":
            densities = self._mixtures.component_log_densities(batch.projected)
        else:
            densities = self._mixtures.mixture_log_densities(batch.projected)
        confidence = densities.amax(1)
        if self.density == "linear":
            confidence = confidence.exp()
        norms = row_norms(batch.vectors)
        self._count += len(batch)
        self._sum += float(confidence.sum())
        self._weighted += float(confidence @ norms)

    def end_pass(self) -> None:
        if self._mixtures is not None:
            return
        if not self._training:
            raise Undefined("no vectors in the training sample")
        rank, points, labels = (torch.cat(parts) for parts in zip(*self._training, strict=True))
        order = rank.argsort()
        self._training = []
        self._mixtures = fit_mixtures(points[order], labels[order], self.components, self._generator)

    def compute(self) -> dict[str, float | Value]:
        if self._mixtures is None or not self._count:
            raise Undefined("no vectors in the sample")
        values = {"confidence": self._weighted / self._count, "confidence_unweighted": self._sum / self._count}
        if not all(math.isfinite(value) for value in values.values()):
            raise Undefined("linear densities exceed the range of float64: use density=log")
        return {name: Value(value, self._mixtures.note) for name, value in values.items()}
