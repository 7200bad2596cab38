"""The arithmetic of tiles: which part of a volume a tile reads, and which of a layer's positions it answers for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from genmeasures.errors import ModelError
from genmeasures.extractors.samples import Every
from genmeasures.interfaces import Sample

_Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in elements of the input.

    It reads ``start`` … ``stop`` − 1, and its core is ``low`` … ``high`` − 1.
    """

    start: int
    stop: int
    low: int
    high: int
    size: int
    """Of the whole axis."""


Tile: TypeAlias = tuple[Span, ...]
"""One span an axis."""


def round_up(value: int, step: int) -> int:
    """The next multiple of the step."""
    return -(-value // step) * step


def spans(size: int, core: int, step: int, before: int, after: int, least: int = 1) -> tuple[Span, ...]:
    """The tiles of an axis: their cores cover it once, and each reads at least ``before`` and ``after`` beside its own.

    Tiles begin and end at multiples of the step, or at the ends of the axis, and are no shorter than ``least``.
    Where a tile in the midst would be as long as the axis, there is one tile.
    """
    core, before, after, least = (round_up(length, step) for length in (core, before, after, least))
    if max(core + before + after, least) >= size:
        return (Span(0, size, 0, size, size),)
    made = []
    for low in range(0, size, core):
        high = min(low + core, size)
        start, stop = max(0, low - before), size if high == size else min(size, high + after)
        if stop - start < least:
            start = max(0, (stop - least) // step * step)
            stop = min(size, max(stop, start + least))
        made.append(Span(start, stop, low, high, size))
    return tuple(made)


def tiles(axes: Sequence[Sequence[Span]]) -> Iterator[Tile]:
    """All tiles, the last axis varying fastest."""
    return itertools.product(*axes)


@dataclass(frozen=True)
class Site:
    """Where in a forward pass a tensor arises, and how its positions lie on the input; one entry an axis."""

    name: str
    spatial: tuple[int, ...]
    """Size for the whole input."""
    stride: tuple[Fraction, ...]
    """Elements of the input from one position to the next."""
    before: tuple[int, ...]
    """Elements that a tile must read before its core for the core's positions to be right."""
    after: tuple[int, ...]

    def core(self, tile: Tile) -> tuple[tuple[int, int], ...]:
        """First position and end of those that lie in the tile's core, each axis: over all tiles, every one once."""
        return tuple(
            (
                min(int(span.low / stride), size),
                size if span.high == span.size else min(int(span.high / stride), size),
            )
            for span, stride, size in zip(tile, self.stride, self.spatial, strict=True)
        )

    def origin(self, tile: Tile) -> tuple[int, ...]:
        """The position that is the tile's first."""
        return tuple(int(span.start / stride) for span, stride in zip(tile, self.stride, strict=True))

    def is_in(self, tile: Tile) -> bool:
        """Whether any position lies in the tile's core."""
        return all(low < high for low, high in self.core(tile))

    def local(self, tile: Tile, there: Sequence[int]) -> tuple[slice, ...]:
        """The core's part of the tile's own tensor, of spatial size ``there``."""
        made = []
        for (low, high), origin, size in zip(self.core(tile), self.origin(tile), there, strict=True):
            if low < high and (low < origin or high - origin > size):
                raise ModelError(f"{self.name} has {size} positions in a tile where {high - origin} were due")
            made.append(slice(low - origin, high - origin))
        return tuple(made)

    def local_positions(self, tile: Tile, there: Sequence[int], positions: _Ints) -> _Ints:
        """Flattened positions of the core (n,) as positions of the tile's own tensor."""
        self.local(tile, there)
        place = np.unravel_index(positions, self.spatial)
        moved = [index - origin for index, origin in zip(place, self.origin(tile), strict=True)]
        return np.ravel_multi_index(moved, tuple(there)).astype(np.int64)


def sampled(sample: Sample, index: int, site: Site, tile: Tile) -> tuple[_Ints, _Ints]:
    """Flattened positions, ascending, and ranks of the vectors of one input that lie in the tile's core."""
    core = site.core(tile)
    if isinstance(sample, Every):  # without a list of all positions of the volume
        grid = np.ix_(*(np.arange(low, high) for low, high in core))
        positions = np.ravel_multi_index(grid, site.spatial).astype(np.int64).ravel()
        return positions, sample.rank(index, positions)
    _, positions, rank = sample.part(index, index + 1)
    place = np.unravel_index(positions, site.spatial)
    inside = np.ones(len(positions), dtype=bool)
    for at, (low, high) in zip(place, core, strict=True):
        inside &= (at >= low) & (at < high)
    return positions[inside], rank[inside]
