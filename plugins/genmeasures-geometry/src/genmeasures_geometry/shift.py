"""Distances between the distributions of two sets of vectors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genmeasures.plugin import Undefined
from genmeasures_geometry.moments import Moments

_ROUNDING = 1e-14
"""Products of centered vectors round a squared distance by less than this fraction of the squared norms."""


def frechet_distance(first: Moments, second: Moments) -> float:
    """Fréchet distance of Gaussians ‖μ − μ′‖² + Tr(Σ + Σ′ − 2(ΣΣ′)^½), the square of the Wasserstein-2 distance.

    Tr (ΣΣ′)^½ is the sum of the singular values of Σ^½Σ′^½: no square root of a matrix that is not symmetric.

    Source: Dowson & Landau 1982; Heusel et al. 2017.

    Args:
        first: moments of at least two vectors.
        second: moments of at least two others of the same length.

    Returns:
        At least 0, which it is for equal means and covariances.

    Raises:
        Undefined: A set has fewer than two vectors, or they are not finite.

    Example:
        >>> a, b = torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [5.0]])
        >>> round(frechet_distance(Moments.of(a), Moments.of(b)), 6)  # means 0 and 3, deviations √2 and √8
        11.0
    """
    for moments in (first, second):
        moments.check()
    means = float((first.mean - second.mean).square().sum())
    roots = [_root(moments) for moments in (first, second)]
    shared = float(torch.linalg.svdvals(roots[0] @ roots[1].T).sum())
    traces = sum(float(root.square().sum()) for root in roots)
    return means + max(0.0, traces - 2 * shared)


def _root(moments: Moments) -> Tensor:
    """(k, k): a matrix R with RᵀR the covariance."""
    values, vectors = torch.linalg.eigh(moments.covariance())
    root: Tensor = values.clamp(min=0).sqrt()[:, None] * vectors.T
    return root


def coral(first: Moments, second: Moments) -> float:
    """CORAL ‖Σ − Σ′‖_F²/(4d²).

    Source: Sun & Saenko 2016.

    Args:
        first: moments of at least two vectors of length d.
        second: moments of at least two others of the same length.

    Raises:
        Undefined: A set has fewer than two vectors, or they are not finite.

    Example:
        >>> a, b = torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [5.0]])
        >>> coral(Moments.of(a), Moments.of(b))  # variances 2 and 8
        9.0
    """
    difference = first.covariance() - second.covariance()
    return float(difference.square().sum()) / (4 * len(difference) ** 2)


def mmd(first: Tensor, second: Tensor, bandwidth: float | None = None) -> float:
    """Squared maximum mean discrepancy, unbiased, with the kernel exp(−‖x − y‖²/(2σ²)).

    Source: Gretton et al. 2012.

    Args:
        first: (n, k), n ≥ 2.
        second: (m, k), m ≥ 2.
        bandwidth: σ; None takes the median of the distances between all pairs of different rows of both sets together.

    Returns:
        From −2 to 2; 0 on average for sets from one distribution.

    Raises:
        Undefined: A set has fewer than two vectors, vectors are not finite, or half of all distances are 0.

    Example:
        >>> a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[9.0], [10.0]])
        >>> round(mmd(a, b, bandwidth=1.0), 6)  # 2 exp(−1/2), and nothing between the sets
        1.213061
    """
    if min(len(first), len(second)) < 2:
        raise Undefined(f"expected at least 2 vectors of each split, got {len(first)} and {len(second)}")
    points = torch.cat([first, second]).double()
    if not bool(points.isfinite().all()):
        raise Undefined("the features are not finite")
    points = points - points.mean(0)
    norms = points.square().sum(1)
    scale = norms[:, None] + norms
    squares = torch.addmm(scale, points, points.T, alpha=-2)
    # What products leave of the distance between equal vectors is rounding.
    squares.masked_fill_(squares <= _ROUNDING * scale, 0.0)
    if bandwidth is None:
        bandwidth = _median(squares) ** 0.5
        if not bandwidth > 0:
            raise Undefined("constant features: half of the distances between vectors are 0, which leaves no bandwidth")
    n, m = len(first), len(second)
    factor = -1 / (2 * bandwidth**2)
    # The kernel of a vector with itself is 1.
    own = float((squares[:n, :n] * factor).exp_().sum()) - n
    others = float((squares[n:, n:] * factor).exp_().sum()) - m
    return own / (n * (n - 1)) + others / (m * (m - 1)) - 2 * float((squares[:n, n:] * factor).exp_().mean())


def _median(squares: Tensor) -> float:
    """Median of the distances between different vectors, the lower one of two, from the matrix of all of them."""
    n = len(squares)
    # Every pair counts twice, after the n zeros of the diagonal.
    return float(np.partition(squares.cpu().numpy().ravel(), n + (n * (n - 1) - 1) // 2)[n + (n * (n - 1) - 1) // 2])
