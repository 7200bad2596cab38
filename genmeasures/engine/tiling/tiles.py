"""Geometry of tiles: the part of an input that a tile reads, and the positions of a layer in its core."""

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
    """A tile along one axis, in elements of the input: it reads ``start`` … ``stop`` − 1, and its core is
    ``low`` … ``high`` − 1.
    """

    start: int
    stop: int
    low: int
    high: int
    size: int
    """Size of the whole axis."""


Tile: TypeAlias = tuple[Span, ...]
"""One span per axis."""


def round_up(value: int, step: int) -> int:
    """The smallest multiple of ``step`` that is not less than ``value``.

    Args:
        value: an integer.
        step: a positive integer.

    Example:
        >>> round_up(13, 4)
        16
    """
    return -(-value // step) * step


def spans(size: int, core: int, step: int, before: int, after: int, least: int = 1) -> tuple[Span, ...]:
    """The tiles of an axis, whose cores cover it once.

    Tiles begin and end at multiples of ``step`` or at the ends of the axis. If a tile in the middle would be as long as
    the axis, there is one tile.

    Args:
        size: size of the axis.
        core: size of a core.
        step: common multiple of the strides of the layers.
        before: halo before the core, at least.
        after: halo after the core, at least.
        least: size of the smallest tile that the model accepts.

    Example:
        >>> [(span.start, span.stop) for span in spans(20, core=8, step=2, before=2, after=2)]
        [(0, 10), (6, 18), (14, 20)]
    """
    core, before, after, least = (round_up(length, step) for length in (core, before, after, least))
    if max(core + before + after, least) >= size:
        return (Span(0, size, 0, size, size),)
    axis = []
    for low in range(0, size, core):
        high = min(low + core, size)
        start, stop = max(0, low - before), size if high == size else min(size, high + after)
        if stop - start < least:
            start = max(0, (stop - least) // step * step)
            stop = min(size, max(stop, start + least))
        axis.append(Span(start, stop, low, high, size))
    return tuple(axis)


def tiles(axes: Sequence[Sequence[Span]]) -> Iterator[Tile]:
    """All tiles, the last axis varying fastest.

    Args:
        axes: the spans of each axis, from :func:`spans`.

    Example:
        >>> len(list(tiles([spans(20, 8, 2, 2, 2), spans(20, 8, 2, 2, 2)])))
        9
    """
    return itertools.product(*axes)


@dataclass(frozen=True)
class Site:
    """A tensor of the forward pass, and how its positions lie on the input; one entry per axis."""

    name: str
    spatial: tuple[int, ...]
    """Size for the whole input."""
    stride: tuple[Fraction, ...]
    """Elements of the input from one position to the next."""
    before: tuple[int, ...]
    """Elements that a tile must read before its core for the core's positions to be right."""
    after: tuple[int, ...]

    def core(self, tile: Tile) -> tuple[tuple[int, int], ...]:
        """Per axis, the first position in the core and its end; the cores of all tiles cover each position once."""
        return tuple(
            (
                min(int(span.low / stride), size),
                size if span.high == span.size else min(int(span.high / stride), size),
            )
            for span, stride, size in zip(tile, self.stride, self.spatial, strict=True)
        )

    def origin(self, tile: Tile) -> tuple[int, ...]:
        """The first position of the tile."""
        return tuple(int(span.start / stride) for span, stride in zip(tile, self.stride, strict=True))

    def is_in(self, tile: Tile) -> bool:
        """Whether any position lies in the tile's core."""
        return all(low < high for low, high in self.core(tile))

    def local(self, tile: Tile, there: Sequence[int]) -> tuple[slice, ...]:
        """The core as slices of the tensor of the tile, which is of spatial size ``there``."""
        slices = []
        for (low, high), origin, size in zip(self.core(tile), self.origin(tile), there, strict=True):
            if low < high and (low < origin or high - origin > size):
                raise ModelError(f"{self.name} has {size} positions in a tile, expected at least {high - origin}")
            slices.append(slice(low - origin, high - origin))
        return tuple(slices)

    def local_positions(self, tile: Tile, there: Sequence[int], positions: _Ints) -> _Ints:
        """Flattened positions (n,) in the whole tensor as flattened positions in the tensor of the tile."""
        self.local(tile, there)
        coordinates = np.unravel_index(positions, self.spatial)
        moved = [index - origin for index, origin in zip(coordinates, self.origin(tile), strict=True)]
        return np.ravel_multi_index(moved, tuple(there)).astype(np.int64)


def sampled(sample: Sample, index: int, site: Site, tile: Tile) -> tuple[_Ints, _Ints]:
    """Flattened positions, ascending, and ranks of the vectors of one input that lie in the tile's core.

    Args:
        sample: sampled vectors of the layer.
        index: index of the input.
        site: output of the layer.
        tile: the tile.

    Example:
        >>> from genmeasures.extractors.samples import Drawn
        >>> sample = Drawn(np.array([0, 0]), np.array([1, 6]), np.array([1, 0]))
        >>> site = Site("conv", (8,), (Fraction(1),), (1,), (1,))
        >>> sampled(sample, 0, site, (Span(0, 5, 0, 4, 8),))
        (array([1]), array([1]))
    """
    core = site.core(tile)
    if isinstance(sample, Every):  # without a list of all positions of the input
        grid = np.ix_(*(np.arange(low, high) for low, high in core))
        positions = np.ravel_multi_index(grid, site.spatial).astype(np.int64).ravel()
        return positions, sample.rank(index, positions)
    _, positions, rank = sample.part(index, index + 1)
    coordinates = np.unravel_index(positions, site.spatial)
    inside = np.ones(len(positions), dtype=bool)
    for at, (low, high) in zip(coordinates, core, strict=True):
        inside &= (at >= low) & (at < high)
    return positions[inside], rank[inside]
