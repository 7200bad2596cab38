"""Data sets in ``.npz`` files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from genmeasures.errors import DataError, nearest
from genmeasures.tasks.archives import check_sizes

Arrays: TypeAlias = tuple[NDArray[np.float32]] | tuple[NDArray[np.float32], NDArray[Any]]

_SPATIAL = "DHWL"
_LAYOUTS = ({"H", "W"}, {"D", "H", "W"}, {"L"}, set[str]())


def layout_fault(layout: str) -> str | None:
    """Describe what is wrong with a layout.

    Args:
        layout: axes of an array, such as "NHWC".

    Returns:
        A message, or None for a valid layout.

    Example:
        >>> layout_fault("NCHW") is None
        True
    """
    axes = set(layout)
    if layout[:1] != "N" or len(axes) != len(layout) or axes - {"N", "C"} not in _LAYOUTS:
        return (
            f"{layout!r} is not a layout: expected N (inputs) first, then, in the order of the axes, C (channels) "
            "and L, or H and W, or D, H and W (space), such as NHWC, NCHW, NDHWC, NCL, or NHW without channels"
        )
    return None


@dataclass(frozen=True)
class ArraySpec:
    """Specification of a data set: the arrays of an ``.npz`` file and the preprocessing of the inputs."""

    npz: Path
    x: str
    """Name of the array with the inputs."""
    y: str | None = None
    """Name of the array with the targets; None for data without targets."""
    layout: str | None = None
    """Axes of ``x``; required for three or more axes."""
    scale: float | None = None
    """Divisor of ``x``; required for integers."""
    mean: tuple[float, ...] | None = None
    """Subtracted after scaling: one value, or one per channel."""
    std: tuple[float, ...] | None = None
    """Divisor after that: one value, or one per channel."""


def load(spec: ArraySpec) -> Arrays:
    """Read the arrays of a specification and preprocess the inputs.

    Files with an implausible compression ratio are refused, see :func:`genmeasures.tasks.archives.check_sizes`.

    Args:
        spec: the file, the names of its arrays and the preprocessing.

    Returns:
        The inputs, float32 (N, C, ``*space``) or (N, features), and the targets if the specification names them, in
        their shape: integers as int64, others as float32.

    Raises:
        DataError: the file or an array cannot be used; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "digits.npz"
        ...     np.savez(path, x=np.full((3, 4, 4), 8), y=np.arange(3))
        ...     x, y = load(ArraySpec(path, "x", "y", layout="NHW", scale=16))
        >>> x.shape, float(x.max()), y.dtype
        ((3, 1, 4, 4), 0.5, dtype('int64'))
    """
    named = [spec.x] if spec.y is None else [spec.x, spec.y]
    arrays = _read(spec.npz, named)
    for name, array in zip(named, arrays, strict=True):
        if array.dtype.kind not in "biuf":
            raise DataError(f"{spec.npz}: array {name!r} must have numbers, got type {array.dtype}")
        if array.ndim == 0 or len(array) != len(arrays[0]) or len(array) == 0:
            shapes = ", ".join(f"{n!r} {a.shape}" for n, a in zip(named, arrays, strict=True))
            raise DataError(f"{spec.npz}: arrays must have one entry per input, the same number each, got {shapes}")
    if arrays[0].ndim < 2:
        raise DataError(f"{spec.npz}: array {spec.x!r} must have at least two axes, got shape {arrays[0].shape}")
    x = _prepare(arrays[0], spec)
    if spec.y is None:
        return (x,)
    y = arrays[1]
    return x, y.astype(np.float32 if y.dtype.kind == "f" else np.int64, copy=False)


def _read(path: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    check_sizes(path, DataError, [f"{name}.npy" for name in names])
    try:
        file = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except Exception as error:  # NumPy and zipfile raise many types on damaged files
        raise DataError(f"{path} cannot be read as an .npz file: {error}") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise DataError(f"{path} is a single array; save it under a name with numpy.savez")
    arrays = []
    with file:
        for name in names:
            if name not in file.files:
                raise DataError(f"{path} has no array {name!r}{nearest(name, file.files)}")
            try:
                arrays.append(file[name])
            except Exception as error:  # as above, and ValueError for arrays of Python objects
                raise DataError(f"{path}: array {name!r} cannot be read: {error}") from error
    return arrays


def _prepare(x: NDArray[Any], spec: ArraySpec) -> NDArray[np.float32]:
    if spec.layout is None and x.ndim >= 3:
        raise DataError(f"{spec.npz}: array {spec.x!r} has shape {x.shape}: set layout to its axes, such as NHWC")
    if spec.scale is None and x.dtype.kind in "iu":
        raise DataError(
            f"{spec.npz}: array {spec.x!r} has integers ({x.dtype}): set scale to their divisor, such as 255"
        )
    if spec.layout is not None:
        x = _channels_first(x, spec, spec.layout)
    # The array is not shared, so after one pass for dtype and order everything is done in place.
    if spec.scale is None:
        # Flattened in between, because torch may take the stride of a single channel for channels_last.
        out = np.ascontiguousarray(x, np.float32).ravel().reshape(x.shape)
    else:
        out = np.empty(x.shape, np.float32)
        np.divide(x, np.float32(spec.scale), out=out, dtype=np.float32, casting="unsafe")
    if spec.mean is not None:
        out -= _per_channel(spec.mean, "mean", out, spec)
    if spec.std is not None:
        out /= _per_channel(spec.std, "std", out, spec)
    return out


def _channels_first(x: NDArray[Any], spec: ArraySpec, layout: str) -> NDArray[Any]:
    if x.ndim != len(layout):
        raise DataError(f"{spec.npz}: layout {layout} has {len(layout)} axes, but {spec.x!r} has shape {x.shape}")
    if "C" not in layout:
        x, layout = x[..., np.newaxis], layout + "C"
    return x.transpose([layout.index(axis) for axis in f"NC{_SPATIAL}" if axis in layout])


def _per_channel(values: Sequence[float], option: str, x: NDArray[Any], spec: ArraySpec) -> NDArray[np.float32]:
    if len(values) not in (1, x.shape[1]):
        raise DataError(f"{spec.npz}: {option} has {len(values)} values, but {spec.x!r} has {x.shape[1]} channels")
    return np.array(values, np.float32).reshape(-1, *[1] * (x.ndim - 2))
