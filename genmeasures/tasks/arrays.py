"""Data from the arrays of an ``.npz`` file."""

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
    """What is wrong with a layout such as ``NHWC``, or None."""
    axes = set(layout)
    if layout[:1] != "N" or len(axes) != len(layout) or axes - {"N", "C"} not in _LAYOUTS:
        return (
            f"{layout!r} is not a layout: N (inputs) first, then in the order of the array's axes C (channels) "
            "and L, or H and W, or D, H and W (space), such as NHWC, NCHW, NDHWC, NCL, or NHW without channels"
        )
    return None


@dataclass(frozen=True)
class ArraySpec:
    """Which arrays of an ``.npz`` file are the inputs and targets, and how the inputs are prepared."""

    npz: Path
    x: str
    y: str | None = None
    """None for data without targets."""
    layout: str | None = None
    """Meaning of the axes of ``x``; needed from three axes on."""
    scale: float | None = None
    """What ``x`` is divided by; needed for integers."""
    mean: tuple[float, ...] | None = None
    """Subtracted after scaling: a value, or one a channel."""
    std: tuple[float, ...] | None = None
    """Divided by after that: a value, or one a channel."""


def load(spec: ArraySpec) -> Arrays:
    """The inputs, float32 (N, C, *space) or (N, features), and the targets where the specification names any.

    Targets keep their shape: integers become int64, others float32. Raises DataError naming the file.

    A file that is compressed more than 200 times, and that much larger than a machine may bear, is refused
    unless ``GENMEASURES_TRUST_ARCHIVES=1`` stands in the environment.
    """
    named = [spec.x] if spec.y is None else [spec.x, spec.y]
    arrays = _read(spec.npz, named)
    for name, array in zip(named, arrays, strict=True):
        if array.dtype.kind not in "biuf":
            raise DataError(f"{spec.npz}: array {name!r} has type {array.dtype}, not numbers")
        if array.ndim == 0 or len(array) != len(arrays[0]) or len(array) == 0:
            shapes = ", ".join(f"{n!r} {a.shape}" for n, a in zip(named, arrays, strict=True))
            raise DataError(f"{spec.npz}: arrays must have one entry an input, and as many each; shapes are {shapes}")
    if arrays[0].ndim < 2:
        raise DataError(f"{spec.npz}: array {spec.x!r} has shape {arrays[0].shape}: inputs need axes besides the first")
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
        raise DataError(f"{path} is a single array: save it under a name with numpy.savez")
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
        raise DataError(f"{spec.npz}: array {spec.x!r} has shape {x.shape}: say what its axes are with layout, as NHWC")
    if spec.scale is None and x.dtype.kind in "iu":
        raise DataError(
            f"{spec.npz}: array {spec.x!r} has integers ({x.dtype}): say what to divide them by with scale, as 255"
        )
    if spec.layout is not None:
        x = _channels_first(x, spec, spec.layout)
    # The array is ours alone, so after one pass for type and order everything works in place.
    if spec.scale is None:
        # Flattened in between, as a single channel can have a stride by which torch takes it to come last.
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
        raise DataError(f"{spec.npz}: layout {layout} names {len(layout)} axes, but {spec.x!r} has shape {x.shape}")
    if "C" not in layout:
        x, layout = x[..., np.newaxis], layout + "C"
    return x.transpose([layout.index(axis) for axis in f"NC{_SPATIAL}" if axis in layout])


def _per_channel(values: Sequence[float], option: str, x: NDArray[Any], spec: ArraySpec) -> NDArray[np.float32]:
    if len(values) not in (1, x.shape[1]):
        raise DataError(f"{spec.npz}: {option} has {len(values)} values, but {spec.x!r} has {x.shape[1]} channels")
    return np.array(values, np.float32).reshape(-1, *[1] * (x.ndim - 2))
