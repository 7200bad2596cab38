"""Streaming cluster indices: a pass for the centroids and a pass for the distances to them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.interfaces import PatchSet
from genmeasures.statistics.clusters import MANY, cluster_sums, square_distances

_COINCIDE = 1e-6
"""Centroids closer than this fraction of the spreads of their clusters differ by float32 rounding only."""
_ROUNDING = 1e-13
"""Fraction of their norm by which equal centroids may differ, as quotients of sums and counts."""
_PAIRS = 1 << 21
"""Pairs of centroids, or elements of their differences, per block."""
_NEAR = 1e-4
"""A squared distance below this fraction of the squared norms is computed from differences: the expansion into products
would lose digits."""


def davies_bouldin(centroids: Tensor, spreads: Tensor) -> float:
    """Compute the index DB = (1/k) Σ_i max_{j≠i} (s_i + s_j) / d_ij (Davies & Bouldin 1979).

    Only some rows of the k × k distances d_ij are in memory at a time. With more than 1,024 clusters,
    distances are computed from products of centered centroids, which is many times faster and accurate
    to about eleven digits.

    Args:
        centroids: float64 (k, D).
        spreads: float64 (k,), the spread s_i of each cluster about its centroid.

    Returns:
        The index; lower means better separated clusters.

    Raises:
        Undefined: There are fewer than two clusters, or two centroids coincide, which makes the index infinite.

    Example:
        >>> centroids = torch.tensor([[0.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
        >>> davies_bouldin(centroids, spreads=torch.tensor([1.0, 1.0], dtype=torch.float64))
        0.5
    """
    if len(centroids) < 2:
        raise Undefined(f"expected at least 2 clusters in the sample, got {len(centroids)}")
    rounding = _ROUNDING * centroids.norm(dim=1).max()
    worst = torch.zeros_like(spreads)
    rows = len(centroids) if len(centroids) <= MANY else max(1, _PAIRS // len(centroids))
    for start, distance in _distances(centroids, rows):
        part, rest = slice(start, start + len(distance)), slice(start, None)
        distance.fill_diagonal_(math.inf)  # a cluster is not its own neighbor
        reach = spreads[part, None] + spreads[rest]
        if bool((distance <= torch.maximum(_COINCIDE * reach, rounding)).any()):
            raise Undefined("constant features: clusters with the same centroid")
        ratio = reach.div_(distance)
        worst[part] = torch.maximum(worst[part], ratio.amax(1))
        worst[rest] = torch.maximum(worst[rest], ratio.amax(0))
    return float(worst.mean())


def _distances(centroids: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Blocks of distances: the index of the block's first centroid, and (rows, k − index) distances from there on."""
    if len(centroids) <= MANY:
        # From differences instead of the expansion into products: centroids may be far from the origin.
        yield 0, torch.cdist(centroids, centroids, compute_mode="donot_use_mm_for_euclid_dist")
        return
    centered = centroids - centroids.mean(0)
    squares = centered.square().sum(1)
    for start in range(0, len(centroids), rows):
        part, rest = centered[start : start + rows], centered[start:]
        scale = squares[start : start + rows, None] + squares[start:]
        distance = torch.addmm(scale, part, rest.T, alpha=-2).clamp_(min=0)
        # Where the expansion cancels, the distance is computed from the difference of the vectors.
        for pairs in (distance < _NEAR * scale).nonzero().split(max(1, _PAIRS // centered.shape[1])):
            row, column = pairs.T
            distance[row, column] = (part[row] - rest[column]).square_().sum(1)
        yield start, distance.sqrt_()


def _distinct(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels in ascending order, the index of each vector's label among them, and counts; few are not sorted."""
    low, high = labels.aminmax()
    width = int(high - low) + 1
    if width > MANY:
        distinct, index, counts = labels.unique(return_inverse=True, return_counts=True)
        return distinct, index, counts
    shifted = labels - low
    counts = torch.bincount(shifted, minlength=width)
    present = counts.nonzero()[:, 0]
    if len(present) == width:
        return present + low, shifted, counts
    index = counts.new_zeros(width)
    index[present] = torch.arange(len(present), device=labels.device)
    return present + low, index[shifted], counts[present]


class ClusterSums:
    """First pass of the Davies–Bouldin index: sums of the vectors of each cluster.

    Labels may be any integers.

    Example:
        >>> vectors = torch.tensor([[-1.0], [1.0], [9.0], [11.0]])
        >>> labels = torch.tensor([3, 3, 7, 7])
        >>> sums = ClusterSums()
        >>> sums.add(vectors, labels)
        >>> spreads = sums.result()
        >>> spreads.add(vectors, labels)
        >>> spreads.davies_bouldin("mean")
        0.2
    """

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        """Row of each label in the sums and counts."""
        self._sums: Tensor | None = None
        """(rows, D), with spare rows for new labels."""
        self._counts = torch.zeros(0)

    def add(self, vectors: Tensor | PatchSet, labels: Tensor) -> None:
        """Add a batch of vectors.

        Args:
            vectors: float32 or float64 (n, D), or n patches.
            labels: int64 (n,).
        """
        if not len(labels):
            return
        distinct, index, counts = _distinct(labels)
        if isinstance(vectors, PatchSet):
            sums = vectors.cluster_sums(index, len(distinct))
        else:
            sums = cluster_sums(vectors, index, len(distinct))
        rows = [self._rows.setdefault(label, len(self._rows)) for label in distinct.tolist()]
        if self._sums is None:
            self._sums, self._counts = sums.new_zeros(sums.shape), sums.new_zeros(len(sums))
        if len(self._rows) > len(self._sums):
            more = max(len(self._rows) - len(self._sums), len(self._sums))
            self._sums = torch.cat([self._sums, self._sums.new_zeros(more, sums.shape[1])])
            self._counts = torch.cat([self._counts, self._counts.new_zeros(more)])
        position = torch.tensor(rows, device=sums.device)
        self._sums.index_add_(0, position, sums)
        self._counts.index_add_(0, position, counts.double())

    def result(self) -> ClusterSpreads:
        """Return the second pass, about the centroids of the vectors added so far.

        Raises:
            Undefined: No vectors were added.
        """
        if self._sums is None:
            raise Undefined("no vectors in the sample")
        labels = sorted(self._rows)
        position = torch.tensor([self._rows[label] for label in labels], device=self._sums.device)
        counts = self._counts[position]
        centroids = self._sums[position].div_(counts[:, None])
        return ClusterSpreads(torch.tensor(labels, device=centroids.device), centroids, counts)


class ClusterSpreads:
    """Second pass of the Davies–Bouldin index: distances of the vectors of each cluster to its centroid.

    Made by :meth:`ClusterSums.result`.

    Args:
        labels: int64 (k,), ascending.
        centroids: float64 (k, D), in the order of the labels.
        counts: float64 (k,), number of vectors in each cluster.
    """

    def __init__(self, labels: Tensor, centroids: Tensor, counts: Tensor) -> None:
        self._labels = labels
        self._centroids = centroids
        self._counts = counts
        self._distance = torch.zeros_like(counts)
        self._square = torch.zeros_like(counts)

    def add(self, vectors: Tensor | PatchSet, labels: Tensor) -> None:
        """Add a batch of the vectors of the first pass; order and batch size may differ.

        Args:
            vectors: float32 or float64 (n, D), or n patches.
            labels: int64 (n,).
        """
        if not len(labels):
            return
        index = torch.searchsorted(self._labels, labels)
        if isinstance(vectors, PatchSet):
            square = vectors.square_distances(self._centroids, index)
        else:
            square = square_distances(vectors, self._centroids, index)
        self._add(index, square)

    def add_projecting(self, patches: PatchSet, labels: Tensor, mean: Tensor, components: Tensor) -> Tensor:
        """Add a batch of the patches of the first pass.

        Args:
            patches: n patches of length D.
            labels: int64 (n,).
            mean: float64 (D,).
            components: float64 (d, D).

        Returns:
            float64 (n, d): the patches minus the mean, projected on the components, for the spreads :meth:`projected`.
        """
        index = torch.searchsorted(self._labels, labels)
        square, projections = patches.distances_and_projections(self._centroids, index, mean, components)
        self._add(index, square)
        return projections

    def _add(self, index: Tensor, square: Tensor) -> None:
        self._distance.index_add_(0, index, square.sqrt())
        self._square.index_add_(0, index, square)

    def projected(self, mean: Tensor, components: Tensor) -> ClusterSpreads:
        """The second pass of the projected vectors, about the projected centroids.

        Args:
            mean: float64 (D,).
            components: float64 (d, D).
        """
        return ClusterSpreads(self._labels, (self._centroids - mean) @ components.T, self._counts)

    def davies_bouldin(self, spread: str) -> float:
        """Compute the Davies–Bouldin index of the vectors added.

        Args:
            spread: "mean" or "rms", for the mean or the root mean square of the distances to the centroid.

        Raises:
            Undefined: See :func:`davies_bouldin`.
        """
        mean = (self._distance if spread == "mean" else self._square) / self._counts
        return davies_bouldin(self._centroids, mean if spread == "mean" else mean.sqrt())

    def calinski_harabasz(self) -> float:
        """Compute the index of Caliński & Harabasz 1974 of the vectors added.

        This is (Σ_i n_i ‖c_i − c‖² / (k − 1)) / (Σ_x ‖x − c_i(x)‖² / (n − k)), c the mean of all n vectors. Higher
        means better separated clusters.

        Raises:
            Undefined: There are fewer than two clusters, or the vectors of each cluster are equal.
        """
        k, n = len(self._counts), float(self._counts.sum())
        if k < 2:
            raise Undefined(f"expected at least 2 clusters in the sample, got {k}")
        within = float(self._square.sum())
        if n <= k or not within > 0:
            raise Undefined("the vectors of each cluster are equal, which makes the index infinite")
        centered = self._centroids - self._counts @ self._centroids / n
        between = float(self._counts @ centered.square().sum(1))
        return between / (k - 1) / (within / (n - k))
