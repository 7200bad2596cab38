"""Samples: lists of drawn vectors, and all vectors without a list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genmeasures.interfaces import Sample

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Drawn(Sample):
    """A list of vectors, sorted by input, for :meth:`Extractor.sample` to return.

    Example:
        One random position of each input, whatever the order of the data:

        >>> import numpy as np
        >>> from genmeasures.plugin import Drawn, mix, places
        >>> keys = mix(np.arange(3, dtype=np.uint64))  # of three inputs
        >>> positions = (mix(keys) % np.uint64(16)).astype(np.int64)
        >>> sample = Drawn(np.arange(3), positions, places(keys))
        >>> len(sample)
        3
        >>> [part.tolist() for part in sample.part(1, 3)]  # input, position and rank of the vectors of inputs 1 and 2
        [[1, 2], [14, 4], [0, 1]]
    """

    inputs: _Ints
    """int64 (n,): index of the input in its data set, ascending."""
    positions: _Ints
    """int64 (n,): flattened position in the output of the layer, 0 for whole tensors."""
    rank: _Ints
    """int64 (n,): 0 … n − 1 in an order that depends on the keys alone."""

    def __len__(self) -> int:
        return len(self.inputs)

    def part(self, start: int, stop: int) -> tuple[_Ints, _Ints, _Ints]:
        low, high = np.searchsorted(self.inputs, [start, stop])
        return self.inputs[low:high], self.positions[low:high], self.rank[low:high]


@dataclass(frozen=True)
class Every(Sample):
    """All positions of all inputs, with memory per input and none per vector.

    Example:
        >>> import numpy as np
        >>> sample = Every(places(np.array([7, 3], dtype=np.uint64)), 2)
        >>> [part.tolist() for part in sample.part(0, 2)]  # input, position and rank
        [[0, 0, 1, 1], [0, 1, 0, 1], [2, 3, 0, 1]]
    """

    places: _Ints
    """int64 (N,): rank of each input by its contents."""
    per_input: int
    """Number of positions of one input."""

    def __len__(self) -> int:
        return len(self.places) * self.per_input

    def part(self, start: int, stop: int) -> tuple[_Ints, _Ints, _Ints]:
        inputs = np.arange(start, min(stop, len(self.places)))
        positions = np.tile(np.arange(self.per_input), len(inputs))
        first = np.repeat(self.places[inputs] * self.per_input, self.per_input)
        return np.repeat(inputs, self.per_input), positions, first + positions

    def rank(self, index: int, positions: _Ints) -> _Ints:
        """Ranks of some positions of the input ``index``, without a list of all."""
        first: np.int64 = self.places[index] * self.per_input
        return first + positions


def places(keys: NDArray[np.uint64]) -> _Ints:
    """Rank of each input in the order of the keys; that of its vector if it has one.

    Args:
        keys: uint64 (N,).

    Returns:
        int64 (N,).

    Example:
        >>> import numpy as np
        >>> places(np.array([30, 10, 20], dtype=np.uint64)).tolist()
        [2, 0, 1]
    """
    order = np.argsort(keys)
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[order] = np.arange(len(keys))
    return ranks
