"""Intrinsic dimension from the distances to nearest neighbors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmeasures.plugin import Undefined

_ROWS = 256
"""Vectors whose distances to all others are in memory at a time."""
_SPARE = 8
"""Neighbors that are looked at beyond those needed: products order nearly equal distances at random."""
_NEAR = 1e-6
"""A squared distance below this fraction of the squared norms is computed from the difference."""


def neighbor_distances(vectors: Tensor, neighbors: int) -> Tensor:
    """Distances to the nearest neighbors, after duplicates of vectors are removed.

    Distances are computed from products of centered vectors, and where these would lose digits, from differences.

    Args:
        vectors: float32 or float64 (n, k).
        neighbors: number m of neighbors.

    Returns:
        float64 (n′, m), ascending in each row, for the n′ distinct vectors in their order.

    Raises:
        Undefined: There are no more than m distinct vectors, or vectors are not finite.

    Example:
        >>> neighbor_distances(torch.tensor([[0.0], [1.0], [1.0], [4.0]]), 2).round(decimals=6).tolist()
        [[1.0, 4.0], [1.0, 3.0], [3.0, 4.0]]
    """
    if not bool(vectors.isfinite().all()):
        raise Undefined("the features are not finite")
    points = vectors[_distinct(vectors)].double()
    if len(points) <= neighbors:
        raise Undefined(f"expected more than {neighbors} distinct vectors in the sample, got {len(points)}")
    centered = points - points.mean(0)
    squares = centered.square().sum(1)
    most = min(neighbors + _SPARE, len(points) - 1)
    found = []
    for start in range(0, len(points), _ROWS):
        rows = centered[start : start + _ROWS]
        scale = squares[start : start + _ROWS, None] + squares
        distances = torch.addmm(scale, rows, centered.T, alpha=-2)
        own = torch.arange(len(rows), device=rows.device)
        distances[own, start + own] = math.inf
        near, others = distances.topk(most, largest=False)
        for row, column in (near < _NEAR * scale.gather(1, others)).nonzero().tolist():
            difference = points[start + row] - points[others[row, column]]
            near[row, column] = difference.square().sum()
        found.append(near.sort(1).values[:, :neighbors].sqrt())
    return torch.cat(found)


def _distinct(vectors: Tensor) -> Tensor:
    """int64 (n′,): the first one of equal vectors each, in their order."""
    first: dict[bytes, int] = {}
    # Adding 0 makes −0 equal to 0.
    for index, row in enumerate((vectors + 0.0).cpu().numpy()):
        first.setdefault(row.tobytes(), index)
    return torch.tensor([*first.values()], dtype=torch.int64, device=vectors.device)


def two_nn(distances: Tensor, discard: float = 0.1) -> float:
    """TwoNN: slope through the origin of −log(1 − F(μ)) against log μ, μ the ratio of the two nearest distances.

    Source: Facco et al. 2017.

    Args:
        distances: float64 (n, ≥ 2), as of :func:`neighbor_distances`: duplicates must be removed.
        discard: fraction of the largest ratios that is left out.

    Raises:
        Undefined: Fewer than two ratios are left, or all of them are 1.

    Example:
        >>> square = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0))
        >>> round(two_nn(neighbor_distances(square, 2)))
        2
    """
    logs = (distances[:, 1] / distances[:, 0]).log().sort().values
    kept = min(int(len(logs) * (1 - discard)), len(logs) - 1)  # F = 1 has no logarithm
    if kept < 2:
        raise Undefined(f"{len(logs)} distinct vectors are too few for a fit")
    x = logs[:kept]
    ranks = torch.arange(1, kept + 1, dtype=torch.float64, device=x.device)
    y = -torch.log1p(-ranks / len(logs))
    square = float(x @ x)
    if not square > 0:
        raise Undefined("the two nearest neighbors of all vectors are equally far away")
    return float(x @ y) / square


def local_dimensions(distances: Tensor) -> Tensor:
    """Maximum likelihood estimates at each vector, [Σ_{j<m} log(T_m/T_j)/(m − 1)]⁻¹ with the distances T.

    Source: Levina & Bickel 2004.

    Args:
        distances: float64 (n, m), as of :func:`neighbor_distances`, m ≥ 2.

    Returns:
        float64 (n,), infinite where all m neighbors are equally far away.

    Example:
        >>> local_dimensions(torch.tensor([[1.0, 1.0, torch.e]]).double()).round(decimals=6)
        tensor([1.], dtype=torch.float64)
    """
    m = distances.shape[1]
    return (m - 1) / (distances[:, -1:] / distances[:, :-1]).log().sum(1)


def levina_bickel(distances: Tensor) -> float:
    """Mean of the local estimates (Levina & Bickel 2004).

    Args:
        distances: float64 (n, m), as of :func:`neighbor_distances`, m ≥ 2.

    Raises:
        Undefined: All neighbors of a vector are equally far away, which makes the mean infinite.

    Example:
        >>> distances = torch.tensor([[1.0, 2.0], [1.0, 8.0]]).double()
        >>> round(levina_bickel(distances) * torch.tensor(2.0).log().item(), 6)
        0.666667
    """
    value = float(local_dimensions(distances).mean())
    if math.isinf(value):
        raise Undefined("all neighbors of a vector are equally far away, which makes the mean infinite")
    return value


def mackay_ghahramani(distances: Tensor) -> float:
    """Harmonic mean of the local estimates: the maximum likelihood for all vectors together.

    Source: MacKay & Ghahramani 2005, comments on Levina & Bickel 2004.

    Args:
        distances: float64 (n, m), as of :func:`neighbor_distances`, m ≥ 2.

    Raises:
        Undefined: All neighbors of all vectors are equally far away.

    Example:
        >>> distances = torch.tensor([[1.0, 2.0], [1.0, 8.0]]).double()
        >>> round(mackay_ghahramani(distances) * torch.tensor(2.0).log().item(), 6)
        0.5
    """
    inverse = float((1 / local_dimensions(distances)).mean())
    if not inverse > 0:
        raise Undefined("all neighbors of all vectors are equally far away")
    return 1 / inverse
