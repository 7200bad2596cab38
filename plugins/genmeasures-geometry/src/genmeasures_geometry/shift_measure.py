"""Shift of the features of a layer from the training to the test split, as a measure of genmeasures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from genmeasures.plugin import FeatureBatch, FeatureMeasure, Layer, Pass, Undefined, Value, Variable
from genmeasures_geometry.moments import Moments
from genmeasures_geometry.reading import (
    WIDEST,
    Subsample,
    check_size,
    check_space,
    defined,
    moments_of,
    pass_over,
    read,
    salt_of,
)
from genmeasures_geometry.shift import coral, frechet_distance, mmd


class SplitShift(FeatureMeasure):
    """Distances between the distributions of the training and of the test features of a layer. No labels.

    - ``frechet_distance``: ‖μ − μ′‖² + Tr(Σ + Σ′ − 2(ΣΣ′)^½), with streamed moments. It multiplies by s² if the
      features are multiplied by s.
    - ``coral``: ‖Σ − Σ′‖_F²/(4d²), which multiplies by s⁴.
    - ``mmd``: the squared maximum mean discrepancy, unbiased, with the kernel exp(−‖x − y‖²/(2σ²)) and σ the median of
      all distances, of a subsample of each split. It can be negative.

    The projections of ``space="pca"`` are fitted on the training features: components that test features alone have are
    not seen.

    Source: Heusel et al. 2017; Gretton et al. 2012; Sun & Saenko 2016.

    Args:
        space: ``"pca"``, projections on principal components, or ``"pixel"``, the whole vectors, for which all but
            ``mmd`` are undefined beyond 2,048 dimensions.
        size: Number of vectors of the subsample of each split. There are fewer if they have more than 16,777
            dimensions, which the status says.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> import genmeasures
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> net.weight.data = torch.ones(1, 1)
        >>> train, test = torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [5.0]])
        >>> ds = genmeasures.measure([net], train, test, measures=[SplitShift()])
        >>> round(ds.frechet_distance.item(), 6), round(ds.coral.item(), 6)
        (11.0, 9.0)
    """

    name = "split_shift"
    variables = (
        Variable(
            "frechet_distance",
            "Fréchet distance between the training and the test features",
            references="Heusel et al. 2017, GANs trained by a two time-scale update rule converge to a local Nash "
            "equilibrium",
            bounds=(0, math.inf),
        ),
        Variable(
            "coral",
            "distance between the covariances of the training and the test features (CORAL)",
            references="Sun & Saenko 2016, Deep CORAL: correlation alignment for deep domain adaptation",
            bounds=(0, math.inf),
        ),
        Variable(
            "mmd",
            "squared maximum mean discrepancy between the training and the test features",
            references="Gretton et al. 2012, A kernel two-sample test",
            bounds=(-2, 2),
            scale_invariant=True,
        ),
    )

    def __init__(self, space: str = "pca", size: int = 500) -> None:
        check_space(self, space, "test")
        check_size(self, size)
        self.space = space
        self.size = size

    @property
    def passes(self) -> tuple[Pass, ...]:
        """A pass over each split."""
        return (pass_over("train", self.space), pass_over("test", self.space))

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        """See :meth:`FeatureMeasure.start`."""
        salt = salt_of(generator)
        self._moments = {"train": Moments(), "test": Moments()}
        self._samples = {split: Subsample(self.size, salt) for split in self._moments}
        self._length = 0

    def update(self, batch: FeatureBatch) -> None:
        """See :meth:`FeatureMeasure.update`."""
        vectors = read(batch, self.space)
        self._length = vectors.shape[1]
        self._samples[batch.split].add(vectors, batch.rank)
        if self._length <= WIDEST:
            self._moments[batch.split].merge(moments_of(batch, self.space))

    def compute(self) -> Mapping[str, float | Value | Undefined]:
        """See :meth:`FeatureMeasure.compute`."""
        train, test = self._samples["train"], self._samples["test"]
        (first,), (second,) = train.result(), test.result()
        values = {"mmd": defined(lambda: mmd(first, second), train.note or test.note)}
        if self._length > WIDEST:
            why = Undefined(f"a covariance of {self._length} dimensions is too large: use space=pca")
            return values | {"frechet_distance": why, "coral": why}
        pair = self._moments["train"], self._moments["test"]
        return values | {
            "frechet_distance": defined(lambda: frechet_distance(*pair)),
            "coral": defined(lambda: coral(*pair)),
        }
