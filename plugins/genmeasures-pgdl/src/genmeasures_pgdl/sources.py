"""Image data sets: the digits of scikit-learn, Fashion-MNIST (IDX files), CIFAR-10 (Python files).

Nothing is downloaded, and files are not trusted: no more bytes are allocated than a file contains, whatever size it
declares, and a pickle can only create numbers, strings, lists and dictionaries.
"""

from __future__ import annotations

import gzip
import io
import pickle
import pickletools
import struct
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmeasures.plugin import DataError, OptionError, nearest, split_digits

Images: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""Training images float32 (N, C, H, W) in [0, 1], training classes int64 (N,) in 0…9, test images, test classes."""

CLASSES = 10

_Bytes: TypeAlias = NDArray[np.uint8]

_LARGEST = 2**28
"""Largest size of an unpacked file in bytes, several times that of any file of these data sets."""
_CHUNK = 2**20


def images(data: str, folder: Path | None) -> Images:
    """Load a data set.

    Args:
        data: ``"digits"`` (the fixed split of ``digits_cnn``, 1197 and 600 images of 8 × 8, which needs no folder),
            ``"fashion_mnist"`` (four IDX files, compressed with gzip or not) or ``"cifar10"`` (``data_batch_1`` to
            ``data_batch_5`` and ``test_batch``).
        folder: folder with the files; those of CIFAR-10 may be in its subfolder ``cifar-10-batches-py``.

    Returns:
        Training images, training classes, test images, test classes: images float32 (N, C, H, W) from 0 to 1,
        contiguous, classes int64 (N,) from 0 to 9.

    Raises:
        OptionError: the data set is unknown, or needs a folder and none is given.
        DataError: a file is missing, truncated, damaged or inconsistent; the message names it.

    Example:
        >>> x, y, test_x, test_y = images("digits", None)
        >>> x.shape, test_x.shape
        (torch.Size([1197, 1, 8, 8]), torch.Size([600, 1, 8, 8]))
    """
    if data not in SOURCES:
        raise OptionError(f"data={data!r} is unknown{nearest(data, SOURCES)}")
    if data != "digits" and folder is None:
        raise OptionError(f"data={data!r} needs a folder with its files: give it as folder=")
    return SOURCES[data](folder or Path())


def _digits(folder: Path) -> Images:
    (train_x, train_y), (test_x, test_y) = split_digits()
    return (
        torch.from_numpy(train_x),
        torch.from_numpy(train_y),
        torch.from_numpy(test_x),
        torch.from_numpy(test_y),
    )


def _fashion_mnist(folder: Path) -> Images:
    tensors: list[Tensor] = []
    for part in ("train", "t10k"):
        images, labels = _idx_file(folder, f"{part}-images-idx3-ubyte"), _idx_file(folder, f"{part}-labels-idx1-ubyte")
        x, y = _read_idx(images, 3), _read_idx(labels, 1)
        if tensors and x.shape[1:] != tuple(tensors[0].shape[2:]):
            size = tuple(tensors[0].shape[2:])
            raise DataError(f"{images}: images must be {size} as the training images, got {x.shape[1:]}")
        tensors += [_scaled(x[:, np.newaxis]), _classes(y, len(x), labels)]
    return tensors[0], tensors[1], tensors[2], tensors[3]


def _idx_file(folder: Path, name: str) -> Path:
    candidates = folder / name, folder / f"{name}.gz"
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise DataError(f"there is no file {candidates[0]} or {candidates[1].name}")
    return path


def _read_idx(path: Path, axes: int) -> _Bytes:
    """The values of an IDX file of bytes with that many axes."""
    header_size = 4 + 4 * axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(header_size)
            if len(header) < header_size or header[:4] != bytes((0, 0, 8, axes)):
                raise DataError(f"{path} is not an IDX file of bytes with {axes} axes")
            shape = struct.unpack(f">{axes}I", header[4:])
            if not 0 < prod(shape) <= _LARGEST:
                raise DataError(f"{path} declares the shape {shape}, expected 1 to {_LARGEST} bytes")
            # One byte more than declared detects a file that is too long; chunks avoid allocating a false size.
            content = _read_up_to(file, prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(content) != prod(shape):
        size = "more" if len(content) > prod(shape) else str(len(content))
        raise DataError(f"{path}: expected {prod(shape)} bytes for the shape {shape}, got {size}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_up_to(file: Any, size: int) -> bytes:
    content = bytearray()
    while len(content) < size and (chunk := file.read(min(_CHUNK, size - len(content)))):
        content += chunk
    return bytes(content)


def _cifar10(folder: Path) -> Images:
    inner = folder / "cifar-10-batches-py"
    folder = inner if inner.is_dir() else folder
    train = [_read_batch(folder / f"data_batch_{number}") for number in range(1, 6)]
    test = _read_batch(folder / "test_batch")
    return torch.cat([x for x, _ in train]), torch.cat([y for _, y in train]), *test


def _read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) and classes (N,) of one file of CIFAR-10."""
    try:
        content = _Unpickler.read(_read_bytes(path))
        array, labels = ({_text(key): value for key, value in content.items()}[name] for name in ("data", "labels"))
        if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < CLASSES for label in labels):
            raise ValueError("labels must be a list of integers from 0 to 9")
        x = _array(array)
        if x.ndim != 2 or x.shape[1] != 3 * 32 * 32:
            raise ValueError(f"data must have the shape (N, 3072), got {x.shape}")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle can raise any exception
        raise DataError(f"{path} is damaged or not a file of CIFAR-10: {error!r}") from error
    return _scaled(x.reshape(-1, 3, 32, 32)), _classes(np.array(labels, np.uint8), len(x), path)


def _read_bytes(path: Path) -> bytes:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"it must have at most {_LARGEST} bytes")
    return path.read_bytes()


class _Call:
    """A call of a NumPy function in a pickle, recorded instead of executed."""

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None

    def __call__(self, *arguments: Any) -> _Call:
        return _Call(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Loads numbers, strings, lists, tuples and dictionaries; an array becomes a record of its calls."""

    _NAMES = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )
    _BUFFERS = frozenset({"BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"})

    @classmethod
    def read(cls, data: bytes) -> Any:
        """The pickled object. A damaged or forbidden pickle raises UnpicklingError or any other exception."""
        # The unpickler allocates the sizes that strings and memo entries declare; this parser checks them first.
        for code, argument, _ in pickletools.genops(data):
            if code.name in cls._BUFFERS or ("PUT" in code.name and int(argument or 0) > len(data)):
                raise pickle.UnpicklingError(f"{code.name} is not allowed")
        return cls(io.BytesIO(data), encoding="bytes").load()

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in self._NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return _Call(name)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _array(call: Any) -> _Bytes:
    """The array that the recorded calls create; ValueError or TypeError if they create something else."""
    if not isinstance(call, _Call) or call.name != "_reconstruct" or not isinstance(call.state, tuple):
        raise ValueError("data must be an array")
    _, shape, kind, columns, content = call.state
    if not isinstance(kind, _Call) or kind.name != "dtype" or _text(kind.arguments[0]) != "u1":
        raise ValueError("data must be bytes")
    if not isinstance(content, bytes) or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError("data must be an array")
    if prod(shape) != len(content):
        raise ValueError(f"data must have {prod(shape)} bytes for the shape {shape}, got {len(content)}")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if columns else "C")


def _scaled(values: _Bytes) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values).astype(np.float32) / np.float32(255))


def _classes(labels: _Bytes, number: int, path: Path) -> Tensor:
    if len(labels) != number:
        raise DataError(f"{path}: expected {number} classes, one per image, got {len(labels)}")
    if labels.max() >= CLASSES:
        raise DataError(f"{path}: classes must be from 0 to {CLASSES - 1}, got {labels.max()}")
    return torch.from_numpy(labels.astype(np.int64))


SOURCES: dict[str, Callable[[Path], Images]] = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
}

__all__ = ["CLASSES", "SOURCES", "Images", "images"]
