"""Neural collapse and the geometry of classes (Papyan, Han & Donoho 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmeasures.plugin import Undefined
from genmeasures_geometry.class_means import ClassMeans

_ROUNDING = 1e-12
"""Means are equal if they differ by less of their norm: they are quotients of sums in float64."""
_BLOCK = 1 << 18
"""Elements that are converted to float64 at a time: they stay in cache."""


class Collapse:
    """Second pass over labeled vectors, about the class means of the first: neural collapse and class separation.

    All covariances are needed in the span of the class means alone, so that no k × k matrix is formed. μ is the mean of
    the K class means: the mean of all vectors if classes are equally large, as in the source.

    Source: Papyan, Han & Donoho 2020 for NC1 and NC2; Galanti, György & Hutter 2022 for the CDNV.

    Args:
        classes: means of at least two classes, of the same vectors.

    Raises:
        Undefined: There are fewer than two classes, vectors are not finite, or all class means are equal.

    Example:
        >>> vectors, labels = torch.tensor([[-1.0], [1.0], [9.0], [11.0]]), torch.tensor([3, 3, 7, 7])
        >>> collapse = Collapse.of(vectors, labels)
        >>> round(collapse.within_between(), 6)  # within 1, between 25, two classes
        0.02
        >>> round(collapse.distance_variance(), 6), collapse.nearest_center_accuracy()
        (0.01, 1.0)
    """

    def __init__(self, classes: ClassMeans) -> None:
        classes.check()
        self._labels, self._counts, self._means = classes.labels(), classes.counts(), classes.means()
        if not bool(self._means.isfinite().all()):
            raise Undefined("the features are not finite")
        self._center = self._means.mean(0)
        self._offsets = self._means - self._center
        # Gram matrix of the class means: its eigenvalues are those of K · Σ_B.
        values, turn = torch.linalg.eigh(self._offsets @ self._offsets.T)
        size = max(float(self._means.square().sum()), float(values[-1]))
        kept = values > max(len(values) * 1e-15 * float(values[-1]), _ROUNDING**2 * size)
        if not bool(kept.any()):
            raise Undefined("constant features: the means of all classes are equal")
        between, turn = values[kept], turn[:, kept]
        self._axes = self._offsets.T @ turn / between.sqrt()
        """float64 (k, r): orthonormal eigenvectors of Σ_B."""
        self._between = between / len(values)
        """float64 (r,): eigenvalues of Σ_B."""
        self._along = torch.zeros_like(self._between)
        """Σ over vectors of the squared deviation from the class mean along each axis."""
        self._squares = torch.zeros_like(self._counts)
        """Σ over the vectors of each class of the squared distance to the class mean."""
        self._nearest = 0

    @staticmethod
    def of(vectors: Tensor, labels: Tensor) -> Collapse:
        """Both passes.

        Args:
            vectors: (n, k).
            labels: int64 (n,).

        Raises:
            Undefined: As of the class.

        Example:
            >>> Collapse.of(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])).within_between()
            0.0
        """
        classes = ClassMeans()
        classes.add(vectors, labels)
        collapse = Collapse(classes)
        collapse.add(vectors, labels)
        return collapse

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors of the first pass; order and batch size may differ.

        Args:
            vectors: float32 or float64 (n, k).
            labels: int64 (n,).
        """
        norms = self._offsets.square().sum(1)
        rows = max(1, _BLOCK // max(1, vectors.shape[1]))
        for some, own in zip(vectors.split(rows), labels.split(rows), strict=True):
            index = torch.searchsorted(self._labels, own)
            centered = some.double() - self._center
            # ‖x − μ_c‖² − ‖x‖²: its order is that of the distances.
            scores = norms - 2 * centered @ self._offsets.T
            self._nearest += int((scores.argmin(1) == index).sum())
            deviations = centered.sub_(self._offsets[index])
            self._squares.index_add_(0, index, deviations.square().sum(1))
            self._along += (deviations @ self._axes).square_().sum(0)

    def within_between(self) -> float:
        """NC1: Tr(Σ_W Σ_B⁺)/K, with Σ_W the mean over vectors and Σ_B that over classes; 0 for collapsed classes."""
        return float((self._along / self._counts.sum() / self._between).sum()) / len(self._labels)

    def norm_variation(self) -> float:
        """NC2: standard deviation over mean of ‖μ_c − μ‖; 0 for equal norms."""
        norms = self._offsets.norm(dim=1)
        return float(norms.std(correction=0) / norms.mean())

    def angle_variation(self) -> float:
        """NC2: mean over pairs of classes of ``|cos(μ_c − μ, μ_c′ − μ) + 1/(K − 1)|``; 0 for a simplex.

        Raises:
            Undefined: A class mean is equal to μ.
        """
        norms, k = self._offsets.norm(dim=1), len(self._labels)
        if float(norms.min()) <= _ROUNDING * float(self._means.norm(dim=1).max()):
            raise Undefined("the mean of a class is the mean of all classes, which has no angle")
        unit = self._offsets / norms[:, None]
        deviation = (unit @ unit.T + 1 / (k - 1)).abs().fill_diagonal_(0.0)
        return float(deviation.sum()) / (k * (k - 1))

    def distance_variance(self) -> float:
        """CDNV: mean over pairs of classes of (Var_i + Var_j)/(2‖μ_i − μ_j‖²), Var the mean squared distance to μ_i.

        Raises:
            Undefined: Two classes have the same mean.
        """
        k = len(self._labels)
        distances = torch.cdist(self._offsets, self._offsets, compute_mode="donot_use_mm_for_euclid_dist")
        distances.fill_diagonal_(math.inf)
        if float(distances.min()) <= _ROUNDING * float(self._means.norm(dim=1).max()):
            raise Undefined("constant features: two classes have the same mean")
        variance = self._squares / self._counts
        ratio = (variance[:, None] + variance) / (2 * distances.square())
        return float(ratio.sum()) / (k * (k - 1))

    def nearest_center_accuracy(self) -> float:
        """Fraction of the vectors that are nearest to the mean of their own class; ties go to the smallest label."""
        return self._nearest / float(self._counts.sum())

    def calinski_harabasz(self) -> float:
        """Caliński–Harabasz index (Σ_c n_c‖μ_c − m‖²/(K − 1)) / (Σ_x ‖x − μ_c(x)‖²/(n − K)), m the mean of all vectors.

        Raises:
            Undefined: The vectors of each class are equal.
        """
        k, n, within = len(self._labels), float(self._counts.sum()), float(self._squares.sum())
        scale = _ROUNDING**2 * float(self._counts @ self._means.square().sum(1))
        if n <= k or within <= scale:
            raise Undefined("the vectors of each class are equal, which makes the index infinite")
        offsets = self._offsets - self._counts @ self._offsets / n
        between = float(self._counts @ offsets.square().sum(1))
        return between / (k - 1) / (within / (n - k))


def self_duality(weight: Tensor, means: Tensor) -> float:
    """NC3: ‖W/‖W‖_F − M/‖M‖_F‖_F², the distance of the last layer's weights from the centered class means.

    Source: Papyan, Han & Donoho 2020.

    Args:
        weight: (K, k), weights of the last layer.
        means: (K, k), class means in the order of the outputs.

    Returns:
        From 0, if the weights are the class means, to 4.

    Raises:
        Undefined: The weights are zero, or all class means are equal.

    Example:
        >>> means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> round(self_duality(3 * means, means + 5), 6), round(self_duality(-means, means), 6)
        (0.0, 4.0)
    """
    weight, means = weight.double(), means.double()
    centered = means - means.mean(0)
    if not float(weight.norm()) > 0 or float(centered.norm()) <= _ROUNDING * float(means.norm()):
        raise Undefined("the weights are zero, or the means of all classes are equal")
    return float((weight / weight.norm() - centered / centered.norm()).square().sum())


def center_disagreement(logits: Tensor, vectors: Tensor, means: Tensor) -> float:
    """NC4: fraction of inputs whose predicted class is not that of the nearest class mean.

    Source: Papyan, Han & Donoho 2020.

    Args:
        logits: (n, K).
        vectors: (n, k), features of the last hidden layer.
        means: (K, k), class means in the order of the outputs.

    Example:
        >>> means = torch.tensor([[0.0], [4.0]])
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> center_disagreement(logits, torch.tensor([[1.0], [3.0]]), means)
        0.5
    """
    center = means.double().mean(0)
    offsets = means.double() - center
    scores = offsets.square().sum(1) - 2 * (vectors.double() - center) @ offsets.T
    return float((scores.argmin(1) != logits.argmax(1)).double().mean())
