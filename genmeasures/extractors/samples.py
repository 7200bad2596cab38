"""Samples: drawn ones, which list their vectors, and that of every vector, which needs no list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genmeasures.interfaces import Sample

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Drawn(Sample):
    """Vectors chosen one by one, sorted by input."""

    inputs: _Ints
    """(n,): index of the input in its data set, ascending."""
    positions: _Ints
    rank: _Ints

    def __len__(self) -> int:
        return len(self.inputs)

    def part(self, start: int, stop: int) -> tuple[_Ints, _Ints, _Ints]:
        low, high = np.searchsorted(self.inputs, [start, stop])
        return self.inputs[low:high], self.positions[low:high], self.rank[low:high]


@dataclass(frozen=True)
class Every(Sample):
    """All positions of all inputs: memory for each input, none for each vector."""

    places: _Ints
    """(N,): place of each input in the order of their contents."""
    per_input: int

    def __len__(self) -> int:
        return len(self.places) * self.per_input

    def part(self, start: int, stop: int) -> tuple[_Ints, _Ints, _Ints]:
        inputs = np.arange(start, min(stop, len(self.places)))
        positions = np.tile(np.arange(self.per_input), len(inputs))
        first = np.repeat(self.places[inputs] * self.per_input, self.per_input)
        return np.repeat(inputs, self.per_input), positions, first + positions

    def rank(self, index: int, positions: _Ints) -> _Ints:
        """Ranks of some positions of one input, without a list of all."""
        first: np.int64 = self.places[index] * self.per_input
        return first + positions


def places(keys: NDArray[np.uint64]) -> _Ints:
    """(N,): the place of each input in the order of the keys."""
    order = np.argsort(keys)
    made = np.empty(len(keys), dtype=np.int64)
    made[order] = np.arange(len(keys))
    return made
