"""Confidence: how densely the training features lie at new features."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.interfaces import (
    SPLITS,
    FeatureBatch,
    FeatureLabeler,
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
from genmeasures.statistics.input_mean import InputMean
from genmeasures.statistics.mixture import Mixtures, fit_mixtures, fit_mixtures_apart
from genmeasures.statistics.placement import Placement

_REFERENCES = "Rajagopal et al. 2021, section 2.3.2"
_TABLE = "Rajagopal et al. 2021, table 1: −0.65 and −0.88 over 128 UNets"
_DIGITS = "64 networks on digits (README): features spread with training, and the gap grows"

_SAME_VECTORS = "ranks are those of new vectors: these are the vectors that the mixtures are fitted on"
_FEW = 5000
"""Training vectors up to which clusters without those held back are found anew."""
_LOG_LEAST, _LOG_MOST = math.log(sys.float_info.min), math.log(sys.float_info.max)


class Confidence(FeatureMeasure):
    """How densely the training features lie at new features, under Gaussian mixtures of the training clusters.

    A mixture of full-covariance Gaussians is fitted to each cluster of the projected training vectors. For a new
    vector x, projected to w, c = max_{i,j} N(w; μ_ij, Σ_ij) over clusters i and components j. One pass over the
    vectors gives:

    - ``confidence``, Σ ‖x‖₂ log c / Σ ‖x‖₂. Multiplying the features by s adds exactly −d·log s.
    - ``confidence_unweighted``, the mean of log c.
    - ``confidence_published``, the mean of p·‖w‖₂ with p the largest posterior probability of a cluster, if all
      clusters are equally probable. Of all readings of the paper it is this one that has the values of its table 2.
    - ``confidence_rank``, the mean rank of c among the training vectors that are held back: a quarter of the inputs,
      chosen by content. For it, projection and mixtures are fitted on the other inputs alone. It is ½ if test and
      training features are exchangeable, whatever the scale, d or over-fitting; above, test features lie more
      centrally than training features, below, outside of them. Equal densities share their places.
    - ``confidence_shift``, the Kolmogorov–Smirnov distance of these ranks from uniform. It is not 0 for exchangeable
      features but of the order of 1/√n for n inputs, since the vectors of one input depend on each other.

    They differ: on the 64 networks of the demo (README), their rank correlations with the generalization gap are −0.51
    (``confidence``), 0.36 (``confidence_published``) and −0.21 (``confidence_rank``). Means over vectors have standard
    errors over inputs, ``…_error``; that of the rank counts the inputs held back, too.

    Covariances are regularized relative to the variance of the training sample, and small clusters get fewer
    components or a shrunk covariance: see :func:`genmeasures.statistics.mixture.fit_mixtures`.

    Source: Rajagopal et al. 2021, section 2.3.2.

    Args:
        labeler: Labeler of the training vectors, one mixture per label. None is ``KMeans()``.
        components: Number of components of the mixture of each cluster.
        density: ``"log"``, or ``"linear"`` for the formula as it is printed: ``confidence`` is then the mean of c·‖x‖₂
            and ``confidence_unweighted`` that of c, undefined where they leave the range of float64.
        over: What the maximum is taken over, ``"component"`` (as in the paper) or ``"mixture"``.
        split: Split whose vectors are scored, ``"train"``, ``"test"`` or ``"validation"``. Training vectors have no
            ranks.

    Raises:
        OptionError: If an option is not one of these values, or the labeler makes several clusterings.

    Example:
        >>> import genmeasures
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
        >>> ds = genmeasures.measure({"net": net}, x[:100], x[100:], measures=[Confidence(KMeans(k=2), components=1)])
        >>> list(ds.confidence.dims)
        ['model', 'layer']
        >>> bool((ds.confidence_rank > 0.3).all())
        True
    """

    name = "confidence"
    variables = (
        *Variable(
            "confidence",
            "log density, weighted by norms",
            expected_accuracy=-1,
            expected_accuracy_source=_TABLE,
            expected_gap=-1,
            expected_gap_source=_DIGITS,
            references=_REFERENCES,
        ).with_error(),
        *Variable(
            "confidence_unweighted",
            "log density",
            expected_gap=-1,
            expected_gap_source=_DIGITS,
            references=_REFERENCES,
        ).with_error(),
        *Variable(
            "confidence_published",
            "largest posterior, weighted by norms of projections",
            expected_accuracy=-1,
            expected_accuracy_source=_TABLE,
            references=_REFERENCES + " and table 2",
            bounds=(0, math.inf),
        ).with_error(),
        *Variable(
            "confidence_rank",
            "rank of densities among held-back training features",
            bounds=(0, 1),
            scale_invariant=True,
        ).with_error(),
        Variable(
            "confidence_shift",
            "distance of density ranks from uniform",
            expected_accuracy=-1,
            # Their distance of distributions is another one, that of the classifiers' disagreements.
            expected_accuracy_source="Ben-David et al. 2010, theorem 2: a bound on the error in another domain that "
            "grows with a distance of the two",
            bounds=(0, 1),
            scale_invariant=True,
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
        fit = Pass("fit", "projected", "projected_apart", "labels")
        return (fit, Pass(self.split, "projected", "projected_apart", "vectors"))

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._generator = generator
        self._training: list[dict[str, Tensor]] = []
        self._mixtures: Mixtures | None = None
        self._apart: Mixtures | None = None
        self._placement: Placement | Undefined = Undefined(_SAME_VECTORS)
        self._published = InputMean()
        kind = InputMean if self.density == "log" else _ExpMean
        self._weighted: InputMean | _ExpMean = kind()
        self._unweighted: InputMean | _ExpMean = kind()

    def update(self, batch: FeatureBatch) -> None:
        if self._mixtures is None:
            self._collect(batch)
        else:
            self._score(batch, self._mixtures)

    def _collect(self, batch: FeatureBatch) -> None:
        assert self.labeler is not None
        seen = {"rank": batch.rank, "projected": batch.projected, "labels": batch.labels(self.labeler)}
        seen |= {"inputs": batch.inputs, "held_back": batch.held_back}
        if batch.split != self.split:  # ranks of vectors that mixtures are fitted on would mean nothing
            try:
                seen["apart"] = batch.projected_apart
            except Undefined as reason:
                self._placement = reason
        self._training.append(seen)

    def end_pass(self) -> None:
        if self._mixtures is not None:
            return
        if not self._training:
            raise Undefined("no vectors in the training sample")
        order = torch.cat([part["rank"] for part in self._training]).argsort()
        training = {name: torch.cat([part[name] for part in self._training])[order] for name in self._training[0]}
        self._training = []
        points, labels = training["projected"], training["labels"]
        if "apart" in training:
            apart, held_back = training["apart"], training["held_back"]
            try:
                self._fit(points, labels, apart, held_back)
                assert self._apart is not None
                reference = self._densities(self._apart, apart[held_back])[1]
                self._placement = Placement(reference, training["inputs"][held_back])
            except Undefined as reason:
                self._placement = reason
        if self._mixtures is None:
            self._mixtures = fit_mixtures(points, labels, self.components, self._generator)

    def _fit(self, points: Tensor, labels: Tensor, apart: Tensor, held_back: Tensor) -> None:
        """Fit mixtures without the vectors held back, and where this saves time those of all vectors with them."""
        if isinstance(self.labeler, FeatureLabeler) and len(points) <= _FEW:
            # Few vectors shape clusters noticeably, held back or not: these clusters must not know them.
            rest = apart[~held_back]
            # One start of k-means and a coarser fit save time; ranks are as sound with any clusters.
            given = self.labeler
            labeler = KMeans(given.k, restarts=1) if isinstance(given, KMeans) else given.clone()
            labeler.fit(rest, self._generator)
            labels = labeler.label(rest)
            self._apart = fit_mixtures(rest, labels, self.components, self._generator, tolerance=1e-2)
        else:
            self._mixtures, self._apart = fit_mixtures_apart(
                points, labels, apart, held_back, self.components, self._generator
            )

    def _densities(self, mixtures: Mixtures, points: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities of the components (n, g), and log c (n,)."""
        components = mixtures.component_log_densities(points)
        return components, (components if self.over == "component" else mixtures.mix(components)).amax(1)

    def _score(self, batch: FeatureBatch, mixtures: Mixtures) -> None:
        points, norms = batch.projected, row_norms(batch.vectors)
        components, log_density = self._densities(mixtures, points)
        posterior = mixtures.largest_posterior(components)
        self._published.add(batch.inputs, posterior * torch.linalg.vector_norm(points, dim=1))
        if isinstance(self._weighted, InputMean):
            self._weighted.add(batch.inputs, log_density, norms)
        else:
            self._weighted.add(batch.inputs, log_density + norms.log())
        self._unweighted.add(batch.inputs, log_density)
        if isinstance(self._placement, Placement) and self._apart is not None:
            self._placement.add(self._densities(self._apart, batch.projected_apart)[1], batch.inputs)

    def compute(self) -> dict[str, float | Value | Undefined]:
        if self._mixtures is None:
            raise Undefined("no vectors in the sample")
        values: dict[str, float | Undefined] = {
            **self._weighted.values("confidence"),
            **self._unweighted.values("confidence_unweighted"),
            **self._published.values("confidence_published"),
        }
        placement = self._placement
        ranked: dict[str, float | Undefined]
        if isinstance(placement, Placement):
            ranked = {
                "confidence_rank": placement.rank(),
                "confidence_rank_error": _defined(placement.rank_error),
                "confidence_shift": placement.distance(),
            }
        else:
            names = ("confidence_rank", "confidence_rank_error", "confidence_shift")
            ranked = dict.fromkeys(names, placement)
        notes = dict.fromkeys(values | ranked, self._mixtures.note)
        if self._apart is not None:
            notes |= dict.fromkeys(ranked, self._apart.note)
        return {
            name: value if isinstance(value, Undefined) else Value(value, notes[name])
            for name, value in (values | ranked).items()
        }


class _ExpMean:
    """Mean of exp(y) over vectors, kept relative to the largest y."""

    def __init__(self) -> None:
        self._mean = InputMean()
        self._peak = -math.inf

    def add(self, inputs: Tensor, logs: Tensor) -> None:
        """Add vectors with the logs y (n,)."""
        before, self._peak = self._peak, max(self._peak, float(logs.max()))
        if self._peak > -math.inf:
            self._mean.rescale(math.exp(before - self._peak))
            logs = logs - self._peak
        self._mean.add(inputs, logs.exp())

    def values(self, name: str) -> dict[str, float | Undefined]:
        """The values of the variables ``name`` and ``<name>_error``."""
        values = self._mean.values(name)
        mean = values[name]
        if isinstance(mean, Undefined) or not mean > 0:
            return values
        log = self._peak + math.log(mean)
        if not _LOG_LEAST <= log < _LOG_MOST:
            reason = Undefined(f"the linear density is exp({log:.6g}), outside the range of float64: use density=log")
            return dict.fromkeys(values, reason)
        factor = math.exp(log) / mean
        return {key: value if isinstance(value, Undefined) else value * factor for key, value in values.items()}


def _defined(compute: Callable[[], float]) -> float | Undefined:
    """The value, or the reason why there is none."""
    try:
        return compute()
    except Undefined as reason:
        return reason
