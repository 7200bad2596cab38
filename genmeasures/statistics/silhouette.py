"""Silhouette coefficient of clusters."""

from __future__ import annotations

import torch
from torch import Tensor

from genmeasures.errors import Undefined

_ROWS = 256
"""Vectors whose distances to all others are in memory at a time."""


def silhouette(vectors: Tensor, labels: Tensor) -> float:
    """Compute the mean silhouette coefficient (b − a) / max(a, b) (Rousseeuw 1987).

    a is the mean distance of a vector to the others of its cluster, b that to the vectors of the nearest other cluster.
    The coefficient of the only vector of a cluster is 0. Higher means better separated clusters. Time is quadratic in
    n.

    Args:
        vectors: float32 or float64 (n, D).
        labels: int64 (n,), any integers.

    Returns:
        The mean over all vectors, from −1 to 1.

    Raises:
        Undefined: There are fewer than two clusters, or no cluster has two vectors.

    Example:
        >>> silhouette(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 0, 1, 1]))
        0.8997...
    """
    distinct, index, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(distinct) < 2:
        raise Undefined(f"expected at least 2 clusters in the sample, got {len(distinct)}")
    if len(distinct) == len(vectors):
        raise Undefined("every cluster of the sample is a single vector")
    points = vectors.double()
    points = points - points.mean(0)
    member = torch.nn.functional.one_hot(index, len(distinct)).double()
    total = 0.0
    for rows, own in zip(points.split(_ROWS), index.split(_ROWS), strict=True):
        sums = torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist") @ member
        here = own[:, None]
        within = sums.gather(1, here)[:, 0] / (counts[own] - 1).clamp(min=1)
        nearest = (sums / counts).scatter(1, here, torch.inf).amin(1)
        value = (nearest - within) / torch.maximum(nearest, within)
        total += float(torch.where((counts[own] > 1) & value.isfinite(), value, 0.0).sum())
    return total / len(points)
