"""Patches of volumes, sampled evenly from positions without, with little and with much foreground.

This is the sampled batching of Rajagopal et al. (2021), appendix A.2.4: batches are balanced over the cases, and over
three groups of patches by the fraction of their volume that is foreground.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmeasures.plugin import DataError, OptionError
from genmeasures_unet.volumes import Case

GROUPS = ("outside", "border", "inside")
"""Names of groups 0, 1 and 2: no foreground, up to BORDER_PERCENT of the patch, and more."""
BORDER_PERCENT = 15
"""The paper assigns exactly 15 % to both groups; here it belongs to the border."""


def patch_groups(mask: NDArray[np.int64], size: Sequence[int]) -> NDArray[np.int8]:
    """Group of the patch at each position.

    Args:
        mask: class labels, int64 (``*S``); labels above 0 are foreground.
        size: size of the patch in voxels, per axis.

    Returns:
        Indices of GROUPS, int8, of length S − size + 1 along each axis, indexed by the first voxel of the patch.

    Raises:
        DataError: the patch is larger than the mask.

    Example:
        >>> patch_groups(np.eye(4, dtype=np.int64), (2, 2))
        array([[2, 2, 0],
               [2, 2, 2],
               [0, 2, 2]], dtype=int8)
    """
    size = _checked_size(size)
    if mask.ndim != len(size) or any(n < k for n, k in zip(mask.shape, size, strict=True)):
        raise DataError(f"patches of size {size} do not fit into a mask of shape {mask.shape}: pad it first")
    counts = (mask > 0).astype(np.int32)
    for axis, width in enumerate(size):
        # Sums over windows are differences of cumulative sums, one axis after the other.
        before = [(0, 0)] * mask.ndim
        before[axis] = (1, 0)
        sums = np.pad(np.cumsum(counts, axis=axis, dtype=np.int32), before)
        last = np.arange(width, sums.shape[axis])
        counts = sums.take(last, axis) - sums.take(last - width, axis)
    # Integers, because 15 % of a volume is not exact in floating point.
    inside = counts * np.int64(100) > BORDER_PERCENT * math.prod(size)
    groups: NDArray[np.int8] = (counts > 0).astype(np.int8) + inside
    return groups


class PatchSampler:
    """Sampler of patches from cases with masks, balanced over the groups of patches and over the cases.

    It stores one byte per position of a patch.

    Args:
        cases: cases with masks, whose images (C, ``*S``) have the same channels and number of axes. Images smaller
            than a patch are padded with zeros.
        size: size of the patches in voxels, per axis.
        targets: one array (K, ``*S``) per case, which replaces the mask as the target, as in a regression; the mask
            still determines the groups. None for the masks.

    Raises:
        DataError: a case has no mask, or its axes, channels or target do not fit; the message names it.

    Example:
        >>> mask = np.zeros((8, 8), np.int64)
        >>> mask[:3] = 1
        >>> sampler = PatchSampler([Case("one", np.ones((1, 8, 8), np.float32), mask)], (4, 4))
        >>> x, y = sampler.draw(6, np.random.default_rng(0))
        >>> x.shape, y.shape, sampler.groups
        ((6, 1, 4, 4), (6, 4, 4), (0, 2))
    """

    groups: tuple[int, ...]
    """Indices of the GROUPS that occur in any case."""

    def __init__(
        self, cases: Sequence[Case], size: Sequence[int], targets: Sequence[NDArray[Any]] | None = None
    ) -> None:
        self.size = _checked_size(size)
        if not cases:
            raise DataError("there are no cases to sample patches from")
        if targets is not None and len(targets) != len(cases):
            raise DataError(f"expected {len(cases)} targets, one per case, got {len(targets)}")
        self._images: list[NDArray[np.float32]] = []
        self._targets: list[NDArray[Any]] = []
        self._positions: list[_Positions] = []
        for i, case in enumerate(cases):
            target = None if targets is None else targets[i]
            mask = _checked_mask(case, cases[0], len(self.size), target)
            if target is not None and (target.dtype, target.shape[0]) != (targets[0].dtype, targets[0].shape[0]):  # type: ignore[index]
                raise DataError(
                    f"case {case.name}: the channels or dtype of its target differ from those of the first target"
                )
            mask = _pad(mask, self.size)
            self._images.append(_pad(case.image, self.size))
            self._targets.append(mask if target is None else _pad(target, self.size))
            self._positions.append(_Positions(patch_groups(mask, self.size)))
        self._holders = {
            group: [i for i, positions in enumerate(self._positions) if positions.count(group)]
            for group in range(len(GROUPS))
        }
        self.groups = tuple(group for group, holders in self._holders.items() if holders)

    def draw(self, count: int, generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Draw patches with replacement, in random order.

        All groups that occur are equally frequent, and within a group all cases that have such patches, up to a
        difference of one, which is assigned at random. The position is uniform among those of the case and group.

        Args:
            count: number of patches, at least 1.
            generator: source of randomness.

        Returns:
            The patches, float32 (count, C, ``*size``), and their masks, int64 (count, ``*size``), or their targets
            (count, K, ``*size``).

        Raises:
            OptionError: ``count`` is below 1.
        """
        if count < 1:
            raise OptionError(f"count must be 1 or more, got {count}")
        picks: list[tuple[int, tuple[int, ...]]] = []
        for group, part in _shares(count, self.groups, generator):
            for case, times in _shares(part, self._holders[group], generator):
                positions = self._positions[case]
                ranks = generator.integers(positions.count(group), size=times)
                picks += [(case, positions.corner(group, int(rank))) for rank in ranks]
        return self._cut([picks[i] for i in generator.permutation(count)])

    def _cut(self, picks: Sequence[tuple[int, tuple[int, ...]]]) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """The images and targets of the patches at these cases and corners."""
        # New arrays: stacked ones inherit strides that torch may take for channels_last.
        dims = len(self.size)
        x = np.empty((len(picks), *self._images[0].shape[:-dims], *self.size), np.float32)
        y = np.empty((len(picks), *self._targets[0].shape[:-dims], *self.size), self._targets[0].dtype)
        for i, (case, corner) in enumerate(picks):
            window: Any = (..., *(slice(at, at + width) for at, width in zip(corner, self.size, strict=True)))
            x[i] = self._images[case][window]
            y[i] = self._targets[case][window]
        return x, y


class _Positions:
    """Positions of one case by group, drawn by rank: one byte per position and one count per row are enough."""

    def __init__(self, groups: NDArray[np.int8]) -> None:
        self._shape = groups.shape
        self._rows = groups.reshape(-1, groups.shape[-1])
        self._ends = [np.cumsum(np.count_nonzero(self._rows == group, axis=1)) for group in range(len(GROUPS))]

    def count(self, group: int) -> int:
        """Number of positions of the group."""
        return int(self._ends[group][-1])

    def corner(self, group: int, rank: int) -> tuple[int, ...]:
        """First voxel of the group's patch with this rank, from 0, in the order of the array."""
        row = int(np.searchsorted(self._ends[group], rank, side="right"))
        before = int(self._ends[group][row - 1]) if row else 0
        column = np.flatnonzero(self._rows[row] == group)[rank - before]
        return tuple(map(int, np.unravel_index(row * self._rows.shape[1] + int(column), self._shape)))


def _shares(count: int, among: Sequence[int], generator: np.random.Generator) -> Iterable[tuple[int, int]]:
    """Split ``count`` evenly, up to a difference of one; which members get one more is random."""
    least, rest = divmod(count, len(among))
    return [(int(member), least + (i < rest)) for i, member in enumerate(generator.permutation(among))]


def _checked_mask(case: Case, first: Case, dims: int, target: NDArray[Any] | None) -> NDArray[np.int64]:
    if case.mask is None:
        raise DataError(f"case {case.name} has no mask: patches are sampled by their fraction of foreground")
    if case.mask.ndim != dims:
        raise DataError(f"case {case.name} has {case.mask.ndim} spatial axes, but the patch size has {dims}")
    if case.image.shape[1:] != case.mask.shape:
        raise DataError(f"case {case.name}: image {case.image.shape} and mask {case.mask.shape} differ in size")
    if len(case.image) != len(first.image):
        raise DataError(
            f"case {case.name} has {len(case.image)} channels, but case {first.name} has {len(first.image)}"
        )
    if target is not None and (target.ndim != dims + 1 or target.shape[1:] != case.mask.shape):
        raise DataError(f"case {case.name}: target {target.shape} must be channels and then space {case.mask.shape}")
    return case.mask


def _checked_size(size: Sequence[int]) -> tuple[int, ...]:
    if len(size) not in (2, 3) or min(size) < 1:
        raise OptionError(f"the patch size must be 2 or 3 positive integers, got {tuple(size)}")
    return tuple(int(n) for n in size)


def _pad(array: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """Pad the last axes with zeros where they are shorter than ``size``."""
    missing = [max(0, k - n) for n, k in zip(array.shape[-len(size) :], size, strict=True)]
    widths = [(0, 0)] * (array.ndim - len(size)) + [(m // 2, m - m // 2) for m in missing]
    return np.pad(array, widths) if any(missing) else array
