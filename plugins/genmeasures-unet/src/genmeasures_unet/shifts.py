"""Shifts of images: noise, another contrast, or a lower resolution, as of other scanners and protocols."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from genmeasures.plugin import OptionError, nearest
from genmeasures_unet.volumes import Case, reduced, standardized


@dataclass(frozen=True)
class Shift:
    """A change of the images of cases; their masks stay as they are.

    The changed image is standardized again, as any image that a network is given.

    Args:
        kind: One of :data:`SHIFTS`: "noise" adds Gaussian noise with a standard deviation of ``strength`` times that
            of the image, seeded by the name of the case. "contrast" scales each channel to 0 … 1 and raises it to the
            power ``strength`` (gamma correction). "resolution" replaces each voxel by the mean of a block of
            ``strength`` voxels along every axis.
        strength: Positive number; an integer for "resolution".

    Raises:
        OptionError: The kind is unknown, or the strength out of range.

    Example:
        >>> case = Case("one", np.array([[[0.0, 2.0, 5.0, 5.0], [1.0, 1.0, 5.0, 5.0]]], np.float32), None)
        >>> Shift("resolution", 2).apply(case).image.tolist()
        [[[-1.0, -1.0, 1.0, 1.0], [-1.0, -1.0, 1.0, 1.0]]]
    """

    kind: str
    strength: float

    def __post_init__(self) -> None:
        """Check the options."""
        if self.kind not in SHIFTS:
            raise OptionError(f"shift={self.kind!r} is unknown{nearest(str(self.kind), list(SHIFTS))}")
        number = isinstance(self.strength, float | int) and not isinstance(self.strength, bool)
        if not (number and 0 < self.strength < float("inf")):
            raise OptionError(f"strength={self.strength!r} must be a positive number")
        if self.kind == "resolution" and self.strength != int(self.strength):
            raise OptionError(f"strength={self.strength!r} must be an integer (voxels) with shift='resolution'")

    def apply(self, case: Case) -> Case:
        """Return the case with its image changed, float32 (C, ``*S``), and the same mask."""
        return standardized(replace(case, image=SHIFTS[self.kind](case, self.strength).astype(np.float32)))


def _noise(case: Case, strength: float) -> NDArray[np.float64]:
    generator = np.random.default_rng([zlib.crc32(case.name.encode()), 1])
    space = tuple(range(1, case.image.ndim))
    image = case.image.astype(np.float64)
    noise = generator.standard_normal(image.shape)
    noisy: NDArray[np.float64] = image + strength * image.std(axis=space, keepdims=True) * noise
    return noisy


def _contrast(case: Case, strength: float) -> NDArray[np.float64]:
    space = tuple(range(1, case.image.ndim))
    image = case.image.astype(np.float64)
    lowest = image.min(axis=space, keepdims=True)
    reach = image.max(axis=space, keepdims=True) - lowest
    scaled: NDArray[np.float64] = ((image - lowest) / np.where(reach > 0, reach, 1)) ** strength
    return scaled


def _resolution(case: Case, strength: float) -> NDArray[np.float64]:
    factor, space = int(strength), case.image.shape[1:]
    coarse = reduced(replace(case, mask=None), factor).image.astype(np.float64)
    for axis in range(1, coarse.ndim):
        coarse = coarse.repeat(factor, axis)
    same: NDArray[np.float64] = coarse[(slice(None), *map(slice, space))]
    return same


SHIFTS: Mapping[str, Callable[[Case, float], NDArray[np.float64]]] = {
    "noise": _noise,
    "contrast": _contrast,
    "resolution": _resolution,
}
"""Functions that change the image of a case, float64 (C, ``*S``), by name."""

__all__ = ["SHIFTS", "Shift"]
