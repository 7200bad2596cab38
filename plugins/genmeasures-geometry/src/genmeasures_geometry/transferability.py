"""How well a linear model predicts labels from features: scores of transferability."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmeasures.plugin import Undefined
from genmeasures_geometry.labeled_moments import LabeledMoments
from genmeasures_geometry.moments import Moments

_GRID = 400
"""Ratios of precisions at which the evidence is computed, before the best one is refined."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 60
"""Steps of golden-section search: each leaves 0.62 of the interval."""
_EXACT = 1e-12
"""A residual smaller than this fraction of the targets is zero up to rounding."""
_PROBABILITIES = 1e-4
"""Largest deviation of the sum of probabilities from 1: softmax in float16 or float32."""


def log_me(moments: LabeledMoments) -> float:
    """LogME of class labels: the maximum evidence of Bayesian linear regression on each class indicator, over n.

    The evidence is maximized over the precisions of weights and noise, on a grid and then by golden-section search: the
    fixed-point iteration of the source can end in another local maximum, or before it has converged. The features are
    not centered, and there is no intercept.

    Source: You et al. 2021.

    Args:
        moments: moments of the features with their labels.

    Returns:
        The mean over classes.

    Raises:
        Undefined: There is a single class, or the features fit the labels exactly.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = map(torch.tensor, load_iris(return_X_y=True))
        >>> round(log_me(LabeledMoments.of(x, y)), 6)
        -0.16006
    """
    moments.check()
    counts, means = moments.classes.counts(), moments.classes.means()
    return _evidence(moments.total, counts[:, None] * means, counts)


def log_me_regression(vectors: Tensor, targets: Tensor) -> float:
    """LogME of continuous targets, see :func:`log_me`.

    Args:
        vectors: float32 or float64 (n, k).
        targets: float32 or float64 (n,) or (n, outputs).

    Returns:
        The mean over outputs.

    Raises:
        Undefined: The vectors are equal, targets are zero, or the features fit the targets exactly.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> noisy = torch.tensor([0.1, 0.9, 2.1, 2.9])
        >>> log_me_regression(x, noisy) > log_me_regression(x, noisy.flip(0))
        True
    """
    moments = Moments.of(vectors)
    moments.check_spread()
    y = targets.double().reshape(len(vectors), -1)
    if not bool(y.isfinite().all()) or not bool(y.any(0).all()):
        raise Undefined("the targets are zero or not finite")
    centered = vectors.double() - moments.mean
    products = y.T @ centered + y.sum(0)[:, None] * moments.mean
    return _evidence(moments, products, y.square().sum(0))


def _evidence(moments: Moments, products: Tensor, squares: Tensor) -> float:
    """Mean over targets of the maximum evidence divided by n.

    Args:
        moments: moments of the features F.
        products: float64 (c, k), yᵀF of each target.
        squares: float64 (c,), yᵀy.
    """
    n = moments.count
    _, singular, right = torch.linalg.svd(moments.raw_root(), full_matrices=False)
    kept = singular > len(singular) * torch.finfo(torch.float64).eps * singular[0]
    singular, right = singular[kept], right[kept]
    # The targets on the left singular vectors, as parts of their squared norm.
    inside = (products @ right.T / singular).square()
    outside = (squares - inside.sum(1)).clamp(min=0)
    outside = torch.where(outside <= _EXACT * squares, 0.0, outside)
    eigen = singular.square()

    def evidence(log_ratio: Tensor) -> Tensor:
        """(c, points): the evidence per sample, maximal over the noise, at a ratio of the precisions (c, points)."""
        ratio = log_ratio.exp()[..., None]
        residual = (inside[:, None] * (ratio / (ratio + eigen))).sum(-1) + outside[:, None]
        volume = torch.log1p(eigen / ratio).sum(-1)
        return -0.5 * (torch.log(2 * math.pi * residual / n) + 1 + volume / n)

    low, high = float(eigen.min().log()) - 14, float(eigen.max().log()) + 28
    grid = torch.linspace(low, high, _GRID, dtype=torch.float64, device=eigen.device)
    values = torch.cat([evidence(part.expand(len(squares), -1)) for part in grid.split(16)], 1)
    best = values.argmax(1)
    if bool(((best == 0) & (outside == 0)).any()) and len(eigen) < n:
        raise Undefined("the features fit the labels exactly, which makes the evidence infinite")
    left, right_end = grid[(best - 1).clamp(min=0)], grid[(best + 1).clamp(max=_GRID - 1)]
    for _ in range(_STEPS):
        inner = torch.stack([right_end - _GOLDEN * (right_end - left), left + _GOLDEN * (right_end - left)], 1)
        rising = torch.diff(evidence(inner), dim=1)[:, 0] > 0
        left, right_end = torch.where(rising, inner[:, 0], left), torch.where(rising, right_end, inner[:, 1])
    found = torch.maximum(evidence(((left + right_end) / 2)[:, None])[:, 0], values.amax(1))
    return float(found.mean())


def h_score(moments: LabeledMoments) -> float:
    """H-score Tr(cov(f)⁺ cov(E[f|y])).

    Source: Bao et al. 2019.

    Args:
        moments: moments of the features with their labels.

    Returns:
        From 0, if the class means are equal, to K − 1, if the features of each class are.

    Raises:
        Undefined: There is a single class, or there are too few vectors: linearly independent ones have a score of
            K − 1 whatever their labels.

    Example:
        >>> moments = LabeledMoments.of(torch.tensor([[0.0], [1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1]))
        >>> round(h_score(moments), 6)
        0.5
    """
    moments.check()
    values, axes = moments.total.axes()
    if len(values) >= moments.total.count - 1:
        raise Undefined(
            f"{moments.total.count} vectors that span {len(values)} dimensions are too few: any labels have the score "
            "of perfect ones"
        )
    return float(((moments.between_root() @ axes).square() / values).sum())


def shrunk_h_score(moments: LabeledMoments) -> float:
    """Regularized H-score Tr(cov_α(f)⁻¹ (1 − α) cov(E[f|y])), cov_α shrunk by α as of Ledoit & Wolf 2004.

    As in the code of the source, cov_α has the divisor n, and the covariance of the class means n − 1.

    Source: Ibrahim, Ponomareva & Mazumder 2021.

    Args:
        moments: moments of the features with their labels.

    Raises:
        Undefined: There is a single class.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = map(torch.tensor, load_iris(return_X_y=True))
        >>> round(shrunk_h_score(LabeledMoments.of(x, y)), 6)
        1.177842
    """
    moments.check()
    n, p = moments.total.count, moments.total.dimension
    values, axes = moments.total.axes()
    alpha = shrinkage(moments.total)
    shrunk = (1 - alpha) * values / n + alpha * values.sum() / n / p
    between = (moments.between_root() @ axes).square().sum(0) / (n - 1)
    return float(((1 - alpha) * between / shrunk).sum())


def shrinkage(moments: Moments) -> float:
    """Shrinkage α of a covariance toward a multiple of the identity (Ledoit & Wolf 2004).

    Args:
        moments: moments of the vectors.

    Returns:
        From 0 to 1.

    Raises:
        Undefined: The vectors are equal.

    Example:
        >>> shrinkage(Moments.of(torch.eye(3)))
        1.0
    """
    moments.check_spread()
    n, p = moments.count, moments.dimension
    square = float(moments.scatter.square().sum()) / n**2
    trace = float(moments.scatter.trace()) / n
    spread = (square - trace**2 / p) / p
    noise = (float(moments.quartic) / n - square) / (n * p)
    if spread <= _EXACT * (trace / p) ** 2 or noise <= 0:  # already a multiple of the identity, or known exactly
        return 0.0
    return min(1.0, noise / spread)


def leep(probabilities: Tensor, labels: Tensor) -> float:
    """LEEP: mean over inputs of log Σ_z p̂(y|z) θ(x)_z, θ the outputs of a source model.

    Source: Nguyen et al. 2020.

    Args:
        probabilities: (n, Z), θ(x): probabilities of the classes z of the source.
        labels: int64 (n,), labels y of the target task.

    Returns:
        0 if the outputs determine the labels, −H(Y) if they are independent; never above.

    Raises:
        Undefined: There are no inputs, or a row is not a distribution.

    Example:
        >>> leep(torch.eye(2), torch.tensor([0, 1])), round(leep(torch.full((2, 2), 0.5), torch.tensor([0, 1])), 6)
        (0.0, -0.693147)
    """
    theta = probabilities.double()
    sums = theta.sum(1)
    if not len(theta) or not bool(((sums - 1).abs() < _PROBABILITIES).all() & (theta >= 0).all()):
        raise Undefined("expected probabilities ≥ 0 that sum to 1 for each input: apply a softmax to logits")
    theta = theta / sums[:, None]
    _, index = labels.unique(return_inverse=True)
    joint = theta.new_zeros(int(index.max()) + 1, theta.shape[1]).index_add_(0, index, theta)
    marginal = joint.sum(0)
    conditional = joint / torch.where(marginal > 0, marginal, 1.0)  # a class that never occurs predicts nothing
    return float((conditional[index] * theta).sum(1).clamp(max=1).log().mean())


def nce(source: Tensor, labels: Tensor) -> float:
    """NCE: −H(Y|Z), the negative conditional entropy of the labels given those of a source model, in nats.

    Source: Tran, Nguyen & Hassner 2019.

    Args:
        source: int64 (n,), labels z that a source model gives.
        labels: int64 (n,), labels y of the target task.

    Returns:
        0 if z determines y, −H(Y) if they are independent.

    Raises:
        Undefined: There are no inputs.

    Example:
        >>> nce(torch.tensor([0, 0, 1]), torch.tensor([5, 5, 3]))
        0.0
        >>> round(nce(torch.tensor([0, 0]), torch.tensor([0, 1])), 6)
        -0.693147
    """
    if not len(labels):
        raise Undefined("no inputs in the sample")
    pairs, counts = torch.stack([source, labels]).unique(dim=1, return_counts=True)
    joint = counts.double() / len(labels)
    _, index = pairs[0].unique(return_inverse=True)
    marginal = joint.new_zeros(int(index.max()) + 1).index_add_(0, index, joint)
    return float((joint * (joint / marginal[index]).log()).sum())
