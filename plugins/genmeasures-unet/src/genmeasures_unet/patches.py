"""Patches cut from volumes, drawn evenly from places without, with little and with much foreground.

After the sampled batching of Rajagopal et al. (2021), Unet generalization, appendix A.2.4: batches are spread
evenly over the cases, and over three groups of patches by the share of their volume that is prostate gland.
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
"""Names of the groups 0, 1 and 2: no foreground, up to BORDER_PERCENT of the patch, and more."""
BORDER_PERCENT = 15
"""The paper writes both at most and at least 15 % for the same tie; here it belongs to the border."""


def patch_groups(mask: NDArray[np.int64], size: Sequence[int]) -> NDArray[np.int8]:
    """Group of the patch at every place where it fits.

    ``mask`` is (``*S``) with labels above 0 as foreground, ``size`` the patch's, one number an axis. Returns
    an array (S - size + 1 along each axis), indexed by the patch's first voxel, with indices of GROUPS.
    Raises DataError where the patch is larger than the mask.
    """
    size = _checked_size(size)
    if mask.ndim != len(size) or any(n < k for n, k in zip(mask.shape, size, strict=True)):
        raise DataError(f"patches of size {size} do not fit into a mask of shape {mask.shape}: pad it first")
    share = (mask > 0).astype(np.int32)
    for axis, width in enumerate(size):
        # Sums over windows are differences of running sums, one axis after the other.
        before = [(0, 0)] * mask.ndim
        before[axis] = (1, 0)
        sums = np.pad(np.cumsum(share, axis=axis, dtype=np.int32), before)
        last = np.arange(width, sums.shape[axis])
        share = sums.take(last, axis) - sums.take(last - width, axis)
    # Integers, because 15 % of a volume is not exact as a float and ties would go either way.
    inside = share * np.int64(100) > BORDER_PERCENT * math.prod(size)
    groups: NDArray[np.int8] = (share > 0).astype(np.int8) + inside
    return groups


class PatchSampler:
    """Draws patches from cases with masks, evenly over the groups of patches and over the cases.

    ``cases`` have images (C, ``*S``) with the same channels and axes; those smaller than a patch are padded
    with zeros. ``targets``, one array (K, ``*S``) a case, are what is predicted in place of the mask, as in
    regression; the mask still decides the groups. Keeps one byte for every place of a patch.

    Raises DataError naming the case that has no mask or whose axes, channels or target do not fit.
    """

    groups: tuple[int, ...]
    """Indices of those GROUPS that any case has."""

    def __init__(
        self, cases: Sequence[Case], size: Sequence[int], targets: Sequence[NDArray[Any]] | None = None
    ) -> None:
        self.size = _checked_size(size)
        if not cases:
            raise DataError("there are no cases to cut patches from")
        if targets is not None and len(targets) != len(cases):
            raise DataError(f"there are {len(targets)} targets for {len(cases)} cases")
        self._images: list[NDArray[np.float32]] = []
        self._targets: list[NDArray[Any]] = []
        self._places: list[_Places] = []
        for i, case in enumerate(cases):
            target = None if targets is None else targets[i]
            mask = _checked_mask(case, cases[0], len(self.size), target)
            if target is not None and (target.dtype, target.shape[0]) != (targets[0].dtype, targets[0].shape[0]):  # type: ignore[index]
                raise DataError(f"case {case.name}: its target has other channels or another type than the first")
            mask = _pad(mask, self.size)
            self._images.append(_pad(case.image, self.size))
            self._targets.append(mask if target is None else _pad(target, self.size))
            self._places.append(_Places(patch_groups(mask, self.size)))
        self._holders = {
            group: [i for i, places in enumerate(self._places) if places.count(group)] for group in range(len(GROUPS))
        }
        self.groups = tuple(group for group, holders in self._holders.items() if holders)

    def draw(self, count: int, generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Draw ``count`` patches in random order, possibly the same one twice.

        The groups that exist come equally often, and within a group the cases that have such patches, each up to
        a difference of one; which have one more is random, and so is the place among those of the case and group.
        Returns x float32 (count, C, ``*size``) and the masks int64 (count, ``*size``), or in their place the
        targets (count, K, ``*size``).
        """
        if count < 1:
            raise OptionError(f"count must be 1 or more, but is {count}")
        picks: list[tuple[int, tuple[int, ...]]] = []
        for group, share in _shares(count, self.groups, generator):
            for case, times in _shares(share, self._holders[group], generator):
                places = self._places[case]
                ranks = generator.integers(places.count(group), size=times)
                picks += [(case, places.corner(group, int(rank))) for rank in ranks]
        return self._cut([picks[i] for i in generator.permutation(count)])

    def _cut(self, picks: Sequence[tuple[int, tuple[int, ...]]]) -> tuple[NDArray[np.float32], NDArray[Any]]:
        # Arrays made here, as stacked ones take over odd strides by which torch may take channels to come last.
        dims = len(self.size)
        x = np.empty((len(picks), *self._images[0].shape[:-dims], *self.size), np.float32)
        y = np.empty((len(picks), *self._targets[0].shape[:-dims], *self.size), self._targets[0].dtype)
        for i, (case, corner) in enumerate(picks):
            window: Any = (..., *(slice(at, at + width) for at, width in zip(corner, self.size, strict=True)))
            x[i] = self._images[case][window]
            y[i] = self._targets[case][window]
        return x, y


class _Places:
    """The places of one case by group: drawn by rank, so that a byte a place and a count a row are enough."""

    def __init__(self, groups: NDArray[np.int8]) -> None:
        self._shape = groups.shape
        self._rows = groups.reshape(-1, groups.shape[-1])
        self._ends = [np.cumsum(np.count_nonzero(self._rows == group, axis=1)) for group in range(len(GROUPS))]

    def count(self, group: int) -> int:
        return int(self._ends[group][-1])

    def corner(self, group: int, rank: int) -> tuple[int, ...]:
        """First voxel of the patch of the group that comes ``rank``-th in the array's order, from 0."""
        row = int(np.searchsorted(self._ends[group], rank, side="right"))
        before = int(self._ends[group][row - 1]) if row else 0
        column = np.flatnonzero(self._rows[row] == group)[rank - before]
        return tuple(map(int, np.unravel_index(row * self._rows.shape[1] + int(column), self._shape)))


def _shares(count: int, among: Sequence[int], generator: np.random.Generator) -> Iterable[tuple[int, int]]:
    """How many of ``count`` each gets: as many, up to a difference of one in favor of randomly chosen ones."""
    least, rest = divmod(count, len(among))
    return [(int(one), least + (i < rest)) for i, one in enumerate(generator.permutation(among))]


def _checked_mask(case: Case, first: Case, dims: int, target: NDArray[Any] | None) -> NDArray[np.int64]:
    if case.mask is None:
        raise DataError(f"case {case.name} has no mask: patches are chosen by the share of foreground in it")
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
        raise OptionError(f"the patch size must be 2 or 3 numbers above 0, but is {tuple(size)}")
    return tuple(int(n) for n in size)


def _pad(array: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """Zeros around the last axes, where they are shorter than ``size``."""
    missing = [max(0, k - n) for n, k in zip(array.shape[-len(size) :], size, strict=True)]
    widths = [(0, 0)] * (array.ndim - len(size)) + [(m // 2, m - m // 2) for m in missing]
    return np.pad(array, widths) if any(missing) else array
