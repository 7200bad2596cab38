"""Neural collapse of a layer, as a measure of genmeasures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from genmeasures.plugin import FeatureBatch, FeatureMeasure, Labeler, Layer, Pass, Split, Undefined, Value, Variable
from genmeasures_geometry.class_means import ClassMeans
from genmeasures_geometry.collapse import Collapse
from genmeasures_geometry.reading import check_labeler, check_space, defined, pass_over, read

_PAPYAN = "Papyan, Han & Donoho 2020, Prevalence of neural collapse during the terminal phase of deep learning training"
_GALANTI = "Galanti, György & Hutter 2022, On the role of neural collapse in transfer learning"
_CALINSKI = "Caliński & Harabasz 1974, A dendrite method for cluster analysis"


class NeuralCollapse(FeatureMeasure):
    """Neural collapse and the geometry of classes: how small classes are, and how evenly their means are spread.

    With the means μ_c of K classes, μ the mean of these, and the covariances Σ_W within and Σ_B between classes:

    - ``neural_collapse`` is NC1, Tr(Σ_W Σ_B⁺)/K. It is 0 if the vectors of each class are equal.
    - ``neural_collapse_norms`` and ``neural_collapse_angles`` are NC2: the standard deviation of ‖μ_c − μ‖ over its
      mean, and the mean of ``|cos(μ_c − μ, μ_c′ − μ) + 1/(K − 1)|``. Both are 0 if the class means are a simplex.
    - ``neural_collapse_cdnv`` is the class-distance normalized variance, the mean over pairs of classes of
      (Var_i + Var_j)/(2‖μ_i − μ_j‖²).
    - ``nearest_center_accuracy`` is the fraction of the vectors that are nearest to the mean of their own class.
    - ``calinski_harabasz`` is the Caliński–Harabasz index.

    All are computed in two passes, without a covariance matrix. With the default sample the second pass takes no
    forward pass if another measure of the run is fitted on training features, as ``confidence`` is.

    NC3 and NC4 read the weights and the outputs of the last layer: see
    :func:`~genmeasures_geometry.collapse.self_duality` and
    :func:`~genmeasures_geometry.collapse.center_disagreement`.

    Source: Papyan, Han & Donoho 2020; Galanti, György & Hutter 2022 for the CDNV.

    Args:
        labeler: Labeler of the vectors; None takes the one that fits the targets.
        space: ``"pixel"``, the whole vectors, or ``"pca"``, their projections on principal components.
        split: Split whose vectors are read, ``"train"`` or ``"test"``.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> import genmeasures
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> net.weight.data = torch.ones(1, 1)
        >>> x = torch.tensor([[-1.0], [1.0], [9.0], [11.0]])
        >>> ds = genmeasures.measure([net], (x, torch.tensor([0, 0, 1, 1])), measures=[NeuralCollapse()])
        >>> round(ds.neural_collapse.item(), 6), ds.nearest_center_accuracy.item()
        (0.02, 1.0)
    """

    name = "neural_collapse"
    variables = (
        Variable(
            "neural_collapse",
            "within-class over between-class covariance (NC1)",
            references=_PAPYAN,
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
        Variable(
            "neural_collapse_norms",
            "variation of the norms of class means (NC2)",
            references=_PAPYAN,
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
        Variable(
            "neural_collapse_angles",
            "deviation of the angles between class means from a simplex (NC2)",
            references=_PAPYAN,
            bounds=(0, 2),
            scale_invariant=True,
        ),
        Variable(
            "neural_collapse_cdnv",
            "class-distance normalized variance",
            references=_GALANTI,
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
        Variable(
            "nearest_center_accuracy",
            "accuracy of the nearest class mean",
            references=_PAPYAN,
            bounds=(0, 1),
            scale_invariant=True,
        ),
        Variable(
            "calinski_harabasz",
            "Caliński–Harabasz index",
            references=_CALINSKI,
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
    )

    def __init__(self, labeler: Labeler | None = None, space: str = "pixel", split: Split = "train") -> None:
        check_labeler(self, labeler)
        check_space(self, space, split)
        self.labeler = labeler
        self.space = space
        self.split = split

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The same pass twice: for the class means, and about them."""
        read_twice = pass_over(self.split, self.space, labels=True)
        return (read_twice, read_twice)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        """See :meth:`FeatureMeasure.start`."""
        self._means = ClassMeans()
        self._collapse: Collapse | None = None

    def update(self, batch: FeatureBatch) -> None:
        """See :meth:`FeatureMeasure.update`."""
        assert self.labeler is not None
        (self._collapse or self._means).add(read(batch, self.space), batch.labels(self.labeler))

    def end_pass(self) -> None:
        """See :meth:`FeatureMeasure.end_pass`."""
        if self._collapse is None:
            self._collapse = Collapse(self._means)

    def compute(self) -> Mapping[str, float | Value | Undefined]:
        """See :meth:`FeatureMeasure.compute`."""
        assert self._collapse is not None
        return {
            "neural_collapse": self._collapse.within_between(),
            "neural_collapse_norms": self._collapse.norm_variation(),
            "neural_collapse_angles": defined(self._collapse.angle_variation),
            "neural_collapse_cdnv": defined(self._collapse.distance_variance),
            "nearest_center_accuracy": self._collapse.nearest_center_accuracy(),
            "calinski_harabasz": defined(self._collapse.calinski_harabasz),
        }
