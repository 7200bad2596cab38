"""Davies–Bouldin index in two passes over a stream of vectors: sums first, distances to the centroids second."""

from __future__ import annotations

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.interfaces import PatchSet
from genmeasures.statistics.clusters import cluster_sums, square_distances

_COINCIDE = 1e-6
"""Centroids nearer than this share of their clusters' spreads differ by the rounding of float32 alone."""
_ROUNDING = 1e-13
"""Share of their length by which equal centroids may differ: they are sums divided by counts."""


def davies_bouldin(centroids: Tensor, spreads: Tensor) -> float:
    """DB = (1/k) Σ_i max_{j≠i} (s_i + s_j) / d_ij (Davies & Bouldin 1979).

    centroids: float64 (k, D); spreads: float64 (k,). Raises Undefined for fewer than two clusters
    and for clusters whose centroids coincide, where the index is infinite.
    """
    if len(centroids) < 2:
        raise Undefined(f"{len(centroids)} cluster in the sample: two are needed")
    # Differences, not the expansion into products: centroids may lie far from the origin.
    distance = torch.cdist(centroids, centroids, compute_mode="donot_use_mm_for_euclid_dist")
    apart = ~torch.eye(len(centroids), dtype=torch.bool, device=centroids.device)
    reach = spreads[:, None] + spreads
    least = torch.maximum(_COINCIDE * reach, _ROUNDING * centroids.norm(dim=1).max())
    if bool((distance <= least)[apart].any()):
        raise Undefined("constant features: clusters with the same centroid")
    ratio = torch.where(apart, reach / distance, 0.0)
    return float(ratio.max(1).values.mean())


class ClusterSums:
    """First pass: sums of the vectors of each cluster. Labels may be any integers."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}

    def add(self, vectors: Tensor | PatchSet, labels: Tensor) -> None:
        """Add n vectors of length D, float32 or float64, with labels int64 (n,)."""
        if not len(labels):
            return
        known, index, counts = labels.unique(return_inverse=True, return_counts=True)
        if isinstance(vectors, PatchSet):
            sums = vectors.cluster_sums(index, len(known))
        else:
            sums = cluster_sums(vectors, index, len(known))
        for number, total, count in zip(known.tolist(), sums, counts.tolist(), strict=True):
            self._sums[number] = self._sums[number] + total if number in self._sums else total
            self._counts[number] = self._counts.get(number, 0) + count

    def result(self) -> ClusterSpreads:
        """The second pass, about the centroids found in the first."""
        if not self._sums:
            raise Undefined("no vectors in the sample")
        numbers = sorted(self._sums)
        sums = torch.stack([self._sums[number] for number in numbers])
        counts = sums.new_tensor([self._counts[number] for number in numbers])
        return ClusterSpreads(torch.tensor(numbers, device=sums.device), sums / counts[:, None], counts)


class ClusterSpreads:
    """Second pass: mean, or root mean square, distance of the vectors of each cluster to its centroid."""

    def __init__(self, numbers: Tensor, centroids: Tensor, counts: Tensor) -> None:
        self._numbers = numbers
        self._centroids = centroids
        self._counts = counts
        self._distance = torch.zeros_like(counts)
        self._square = torch.zeros_like(counts)

    def add(self, vectors: Tensor | PatchSet, labels: Tensor) -> None:
        """Add the same vectors as in the first pass, in any order and any batches."""
        if not len(labels):
            return
        index = torch.searchsorted(self._numbers, labels)
        if isinstance(vectors, PatchSet):
            square = vectors.square_distances(self._centroids, index)
        else:
            square = square_distances(vectors, self._centroids, index)
        self._distance.index_add_(0, index, square.sqrt())
        self._square.index_add_(0, index, square)

    def index(self, spread: str) -> float:
        """The Davies–Bouldin index with ``spread`` "mean" or "rms", of the clusters that have vectors."""
        mean = (self._distance if spread == "mean" else self._square) / self._counts
        return davies_bouldin(self._centroids, mean if spread == "mean" else mean.sqrt())
