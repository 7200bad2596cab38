"""Ranks of values and of resampled values."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

_BLOCK = 1 << 23
"""Number of elements of a block of pairs × resamples."""


class Order(NamedTuple):
    """Ascending order of n values, with the extent of each group of ties."""

    indices: NDArray[np.int64]
    """(n,): indices of the models in ascending order of their values."""
    begin: NDArray[np.int64]
    """(n,): for each position in that order, the first position of its group of ties."""
    end: NDArray[np.int64]
    """(n,): for each position in that order, the position after the last of its group of ties."""

    def ranks(self, counts: Floats) -> Floats:
        """Mean ranks within each resample, minus their mean, from counts (n, R): (n, R), exact multiples of ½."""
        below = np.zeros((len(counts) + 1, counts.shape[1]))
        np.cumsum(counts[self.indices], axis=0, out=below[1:])
        # Ties from rank a + 1 to b have the mean rank (a + b + 1)/2, and the mean of all ranks is (total + 1)/2.
        ascending = (below[self.begin] + below[self.end] - below[-1]) / 2
        ranks = np.empty_like(ascending)
        ranks[self.indices] = ascending
        return np.asarray(ranks)

    def tie_sizes(self, counts: Floats) -> Floats:
        """Size of each group of ties in each resample, from counts (n, R): (groups, R)."""
        starts = np.flatnonzero(self.begin == np.arange(len(self.begin)))
        if len(starts) == len(counts):
            return counts
        return np.asarray(np.add.reduceat(counts[self.indices], starts, axis=0))


def order_of(values: Floats) -> Order:
    """Ascending order of values (n,).

    Example:
        >>> order_of(np.array([3.0, 1.0, 3.0])).ranks(np.ones((3, 1)))[:, 0]
        array([ 0.5, -1. ,  0.5])
    """
    indices = np.argsort(values, kind="stable")
    ascending = values[indices]
    return Order(indices, np.searchsorted(ascending, ascending), np.searchsorted(ascending, ascending, side="right"))


def centered_ranks(values: Floats) -> Floats:
    """Mean ranks of each row of values (m, n), minus the mean of the ranks: (m, n), exact multiples of ½.

    Example:
        >>> centered_ranks(np.array([[10.0, 30.0, 20.0]]))
        array([[-1.,  1.,  0.]])
    """
    ones = np.ones((values.shape[1], 1))
    return np.stack([order_of(row).ranks(ones)[:, 0] for row in values]) if len(values) else values


def dense_ranks(values: Floats) -> NDArray[np.float32]:
    """Ranks without gaps, equal for ties, of each row of values (m, n): the signs of their differences are exact.

    Example:
        >>> dense_ranks(np.array([[0.5, 2.0, 0.5]]))
        array([[0., 1., 0.]], dtype=float32)
    """
    return np.stack([np.unique(row, return_inverse=True)[1] for row in values]).astype(np.float32)


def pair_blocks(n: int, width: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs i < j of n models, in blocks small enough for arrays of shape (pairs, width).

    Args:
        n: Number of models.
        width: Number of elements per pair.

    Example:
        >>> [(first, second)] = pair_blocks(3, 1)
        >>> first.tolist(), second.tolist()
        ([0, 0, 1], [1, 2, 2])
    """
    first, second = np.triu_indices(n, 1)
    step = max(_BLOCK // max(width, 1), 1)
    return [(first[s : s + step], second[s : s + step]) for s in range(0, len(first), step)]
