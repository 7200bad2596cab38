"""Davies–Bouldin index in two passes over a stream of vectors: sums first, distances to the centroids second."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.interfaces import PatchSet
from genmeasures.statistics.clusters import MANY, cluster_sums, square_distances

_COINCIDE = 1e-6
"""Centroids nearer than this share of their clusters' spreads differ by the rounding of float32 alone."""
_ROUNDING = 1e-13
"""Share of their length by which equal centroids may differ: they are sums divided by counts."""
_PAIRS = 1 << 21
"""Pairs of centroids, or numbers of theirs, compared at a time."""
_NEAR = 1e-4
"""A squared distance below this share of the squared lengths is taken from differences: expanded, it loses digits."""


def davies_bouldin(centroids: Tensor, spreads: Tensor) -> float:
    """DB = (1/k) Σ_i max_{j≠i} (s_i + s_j) / d_ij (Davies & Bouldin 1979).

    centroids: float64 (k, D); spreads: float64 (k,). Raises Undefined for fewer than two clusters
    and for clusters whose centroids coincide, where the index is infinite. Takes memory for some rows
    of the k × k distances at a time. Of more than 1,024 clusters distances come from products of
    centered centroids, which are many times faster and good to about eleven digits.
    """
    if len(centroids) < 2:
        raise Undefined(f"{len(centroids)} cluster in the sample: two are needed")
    rounding = _ROUNDING * centroids.norm(dim=1).max()
    worst = torch.zeros_like(spreads)
    rows = len(centroids) if len(centroids) <= MANY else max(1, _PAIRS // len(centroids))
    for start, distance in _distances(centroids, rows):
        part, rest = slice(start, start + len(distance)), slice(start, None)
        distance.fill_diagonal_(math.inf)  # none is its own neighbor
        reach = spreads[part, None] + spreads[rest]
        if bool((distance <= torch.maximum(_COINCIDE * reach, rounding)).any()):
            raise Undefined("constant features: clusters with the same centroid")
        ratio = reach.div_(distance)
        worst[part] = torch.maximum(worst[part], ratio.amax(1))
        worst[rest] = torch.maximum(worst[rest], ratio.amax(0))
    return float(worst.mean())


def _distances(centroids: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Distances of some centroids to themselves and all after them, with the number of the first of them."""
    if len(centroids) <= MANY:
        # Differences, not the expansion into products: centroids may lie far from the origin.
        yield 0, torch.cdist(centroids, centroids, compute_mode="donot_use_mm_for_euclid_dist")
        return
    centered = centroids - centroids.mean(0)
    squares = centered.square().sum(1)
    for start in range(0, len(centroids), rows):
        part, rest = centered[start : start + rows], centered[start:]
        scale = squares[start : start + rows, None] + squares[start:]
        distance = torch.addmm(scale, part, rest.T, alpha=-2).clamp_(min=0)
        # What is a small difference of large numbers is taken from differences of the vectors.
        for pairs in (distance < _NEAR * scale).nonzero().split(max(1, _PAIRS // centered.shape[1])):
            one, other = pairs.T
            distance[one, other] = (part[one] - rest[other]).square_().sum(1)
        yield start, distance.sqrt_()


class ClusterSums:
    """First pass: sums of the vectors of each cluster. Labels may be any integers."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        """By label: the row of what follows."""
        self._sums: Tensor | None = None
        """(rows, D), of which there are more than labels, so that new ones find room."""
        self._counts = torch.zeros(0)

    def add(self, vectors: Tensor | PatchSet, labels: Tensor) -> None:
        """Add n vectors of length D, float32 or float64, with labels int64 (n,)."""
        if not len(labels):
            return
        known, index, counts = labels.unique(return_inverse=True, return_counts=True)
        if isinstance(vectors, PatchSet):
            sums = vectors.cluster_sums(index, len(known))
        else:
            sums = cluster_sums(vectors, index, len(known))
        rows = [self._rows.setdefault(number, len(self._rows)) for number in known.tolist()]
        if self._sums is None:
            self._sums, self._counts = sums.new_zeros(sums.shape), sums.new_zeros(len(sums))
        if len(self._rows) > len(self._sums):
            more = max(len(self._rows) - len(self._sums), len(self._sums))
            self._sums = torch.cat([self._sums, self._sums.new_zeros(more, sums.shape[1])])
            self._counts = torch.cat([self._counts, self._counts.new_zeros(more)])
        place = torch.tensor(rows, device=sums.device)
        self._sums.index_add_(0, place, sums)
        self._counts.index_add_(0, place, counts.double())

    def result(self) -> ClusterSpreads:
        """The second pass, about the centroids found in the first."""
        if self._sums is None:
            raise Undefined("no vectors in the sample")
        numbers = sorted(self._rows)
        place = torch.tensor([self._rows[number] for number in numbers], device=self._sums.device)
        counts = self._counts[place]
        centroids = self._sums[place].div_(counts[:, None])
        return ClusterSpreads(torch.tensor(numbers, device=centroids.device), centroids, counts)


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
