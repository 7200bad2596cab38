"""Separation of the class distributions of a layer, as a measure of genmeasures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from genmeasures.plugin import (
    FeatureBatch,
    FeatureMeasure,
    Labeler,
    Layer,
    Pass,
    Split,
    Undefined,
    Value,
    Variable,
    one_of,
    require,
)
from genmeasures_geometry.labeled_moments import ClassMoments
from genmeasures_geometry.reading import check_labeler, check_space, defined, pass_over, read
from genmeasures_geometry.separation import COVARIANCES, bhattacharyya, trans_rate

_MOST = 1 << 23
"""Elements of the covariances of all classes, at most: 64 MiB."""
_FINE_TUNED = "over pretrained networks, with the accuracy after fine-tuning on the same data"


class ClassSeparation(FeatureMeasure):
    """How far apart the distributions of the classes are, from a covariance for each class.

    - ``trans_rate``: TransRate R(Z) − Σ_c (n_c/n) R(Z_c), with the coding rate R = ½ log det(I + D/(nε²) ZᵀZ). It
      depends on the scale of the features, as ε does not.
    - ``bhattacharyya``: GBC, −Σ_{i≠j} exp(−D_B(i, j)), with the Bhattacharyya distance D_B of Gaussians.

    Source: Huang et al. 2022; Pándy et al. 2022.

    Args:
        labeler: Labeler of the vectors; None takes the one that fits the targets.
        space: ``"pca"``, projections on principal components, or ``"pixel"``, the whole vectors, which is undefined
            where the covariances of all classes have more than 8,388,608 elements together.
        split: Split whose vectors are read, ``"train"`` or ``"test"``.
        distortion: ε of the coding rate.
        covariance: Of the Gaussians: ``"spherical"``, the choice of the source, ``"diagonal"`` or ``"full"``.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> import genmeasures
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> net.weight.data = torch.ones(1, 1)
        >>> x = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])
        >>> ds = genmeasures.measure([net], (x, torch.tensor([0, 0, 1, 1])), measures=[ClassSeparation()])
        >>> round(ds.trans_rate.item(), 6), round(ds.bhattacharyya.item(), 6)
        (0.0, -2.0)
    """

    name = "class_separation"
    variables = (
        Variable(
            "trans_rate",
            "coding rate of the features less that of the classes (TransRate)",
            expected_accuracy=1,
            expected_accuracy_source=f"Huang et al. 2022: {_FINE_TUNED}",
            references="Huang et al. 2022, Frustratingly easy transferability estimation",
            units="nats",
            bounds=(0, math.inf),
        ),
        Variable(
            "bhattacharyya",
            "overlap of Gaussian classes (GBC)",
            expected_accuracy=1,
            expected_accuracy_source=f"Pándy et al. 2022: {_FINE_TUNED}",
            references="Pándy et al. 2022, Transferability estimation using Bhattacharyya class separability",
            bounds=(-math.inf, 0),
            scale_invariant=True,
        ),
    )

    def __init__(
        self,
        labeler: Labeler | None = None,
        space: str = "pca",
        split: Split = "train",
        distortion: float = 0.01,
        covariance: str = "spherical",
    ) -> None:
        check_labeler(self, labeler)
        check_space(self, space, split)
        number = isinstance(distortion, int | float) and not isinstance(distortion, bool)
        require(number and 0 < distortion < math.inf, self, f"distortion must be a number > 0, got {distortion!r}")
        one_of(self, "covariance", covariance, COVARIANCES)
        self.labeler = labeler
        self.space = space
        self.split = split
        self.distortion = distortion
        self.covariance = covariance

    @property
    def passes(self) -> tuple[Pass, ...]:
        """One pass over the split."""
        return (pass_over(self.split, self.space, labels=True),)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        """See :meth:`FeatureMeasure.start`."""
        self._classes = ClassMoments()

    def update(self, batch: FeatureBatch) -> None:
        """See :meth:`FeatureMeasure.update`."""
        assert self.labeler is not None
        vectors, labels = read(batch, self.space), batch.labels(self.labeler)
        classes = self._classes.labels() | set(labels.tolist())
        if len(classes) * vectors.shape[1] ** 2 > _MOST:
            raise Undefined(f"a covariance of {vectors.shape[1]} dimensions for each class is too large: use space=pca")
        self._classes.add(vectors, labels)

    def compute(self) -> Mapping[str, float | Value | Undefined]:
        """See :meth:`FeatureMeasure.compute`."""
        return {
            "trans_rate": defined(lambda: trans_rate(self._classes, self.distortion)),
            "bhattacharyya": defined(lambda: bhattacharyya(self._classes, self.covariance)),
        }
