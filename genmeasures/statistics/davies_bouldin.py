"""Davies–Bouldin index in two passes over a stream of vectors: sums first, distances to the centroids second."""

from __future__ import annotations

import torch
from torch import Tensor

from genmeasures.errors import Undefined

_COINCIDE = 1e-6
"""Centroids nearer than this share of their clusters' spreads differ by the rounding of float32 alone."""
_ELEMENTS = 1 << 20
"""Elements of one block of differences: a block stays in cache between its few operations."""


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
    if bool((distance <= _COINCIDE * reach)[apart].any()):
        raise Undefined("constant features: clusters with the same centroid")
    ratio = torch.where(apart, reach / distance, 0.0)
    return float(ratio.max(1).values.mean())


class ClusterSums:
    """First pass: sums of the vectors of each cluster. Labels may be any integers."""

    def __init__(self) -> None:
        self._origin: Tensor | None = None
        self._sums: dict[int, Tensor] = {}

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors (n, D), float32 or float64, with labels int64 (n,)."""
        if not len(vectors):
            return
        if self._origin is None:
            # Sums are taken from a point amid the data: float32 products far from the origin cancel.
            self._origin = vectors.mean(0, dtype=torch.float64).to(vectors.dtype)
        known = labels.unique()
        sums = vectors.new_zeros((len(known), vectors.shape[1] + 1), dtype=torch.float64)
        for block, label in _blocks(vectors, labels):
            member = (label == known[:, None]).to(block.dtype)
            sums[:, :-1] += member @ (block - self._origin)
            sums[:, -1] += member.sum(1, dtype=torch.float64)
        for number, total in zip(known.tolist(), sums, strict=True):
            self._sums[number] = self._sums[number] + total if number in self._sums else total

    def result(self) -> ClusterSpreads:
        """The second pass, about the centroids found in the first."""
        if self._origin is None:
            raise Undefined("no vectors in the sample")
        numbers = sorted(self._sums)
        sums = torch.stack([self._sums[number] for number in numbers])
        counts = sums[:, -1]
        centroids = self._origin + sums[:, :-1] / counts[:, None]
        return ClusterSpreads(torch.tensor(numbers, device=sums.device), centroids, counts)


class ClusterSpreads:
    """Second pass: mean, or root mean square, distance of the vectors of each cluster to its centroid."""

    def __init__(self, numbers: Tensor, centroids: Tensor, counts: Tensor) -> None:
        self._numbers = numbers
        self._centroids = centroids
        self._counts = counts
        self._distance = torch.zeros_like(counts)
        self._square = torch.zeros_like(counts)

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add the same vectors as in the first pass, in any order and any batches."""
        # Rounding a centroid to the vectors' type shifts it by a fraction of what the vectors resolve, and
        # a shift about the mean moves mean distances in second order only.
        centroids = self._centroids.to(vectors.dtype)
        for block, label in _blocks(vectors, torch.searchsorted(self._numbers, labels)):
            square = centroids[label].sub_(block).square_().sum(1, dtype=torch.float64)
            self._distance.index_add_(0, label, square.sqrt())
            self._square.index_add_(0, label, square)

    def index(self, spread: str) -> float:
        """The Davies–Bouldin index with ``spread`` "mean" or "rms", of the clusters that have vectors."""
        mean = (self._distance if spread == "mean" else self._square) / self._counts
        return davies_bouldin(self._centroids, mean if spread == "mean" else mean.sqrt())


def _blocks(vectors: Tensor, labels: Tensor) -> zip[tuple[Tensor, Tensor]]:
    rows = max(1, _ELEMENTS // max(1, vectors.shape[1]))
    return zip(vectors.split(rows), labels.split(rows), strict=True)
