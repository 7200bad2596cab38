"""Images to train on: scikit-learn's digits, Fashion-MNIST in IDX files, CIFAR-10 in its Python files.

Nothing is downloaded. Files are taken for what others made: no size that a file declares is believed before as many
bytes are there, and a pickle can make no object but numbers, strings, lists and dictionaries.
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
"""Training images float32 (N, C, H, W) from 0 to 1, classes int64 (N,) from 0 to 9; those for testing."""

CLASSES = 10

_Bytes: TypeAlias = NDArray[np.uint8]

_LARGEST = 2**28
"""Bytes of one file, unpacked: several times those of any file of these data sets."""
_PART = 2**20


def images(data: str, folder: Path | None) -> Images:
    """Training images and classes, test images and classes.

    data: "digits" (the fixed split of ``digits_cnn``: 1197 and 600 images of 8 × 8; needs no folder),
    "fashion_mnist" (four IDX files, packed with gzip or not) or "cifar10" (``data_batch_1`` to
    ``data_batch_5`` and ``test_batch``, in the folder or in ``cifar-10-batches-py`` in it).
    Images come as float32 (N, C, H, W) from 0 to 1, contiguous, classes as int64 (N,) from 0 to 9.

    Raises OptionError for data that there are not, or where they need a folder and none is given;
    DataError naming the file that is missing, cut off, damaged, or says other than it holds.
    """
    if data not in SOURCES:
        raise OptionError(f"data={data!r} is unknown{nearest(data, SOURCES)}")
    if data != "digits" and folder is None:
        raise OptionError(f"data={data!r} needs a folder with its files: give folder=")
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
    made: list[Tensor] = []
    for part in ("train", "t10k"):
        images, labels = _idx_file(folder, f"{part}-images-idx3-ubyte"), _idx_file(folder, f"{part}-labels-idx1-ubyte")
        x, y = _read_idx(images, 3), _read_idx(labels, 1)
        if made and x.shape[1:] != tuple(made[0].shape[2:]):
            raise DataError(f"{images}: images are {x.shape[1:]}, those for training {tuple(made[0].shape[2:])}")
        made += [_scaled(x[:, np.newaxis]), _classes(y, len(x), labels)]
    return made[0], made[1], made[2], made[3]


def _idx_file(folder: Path, name: str) -> Path:
    places = folder / name, folder / f"{name}.gz"
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(f"there is no file {places[0]}, nor {places[1].name}")
    return found


def _read_idx(path: Path, axes: int) -> _Bytes:
    """The bytes in an IDX file, in the shape of that many axes that it declares."""
    head = 4 + 4 * axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(head)
            if len(start) < head or start[:4] != bytes((0, 0, 8, axes)):
                raise DataError(f"{path} is not an IDX file of bytes with {axes} axes")
            shape = struct.unpack(f">{axes}I", start[4:])
            if not 0 < prod(shape) <= _LARGEST:
                raise DataError(f"{path} declares the shape {shape}: not a file of this data set")
            # One byte more than declared, to see what is too long; in parts, to allocate what is there.
            content = _read_up_to(file, prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(content) != prod(shape):
        found = "more" if len(content) > prod(shape) else str(len(content))
        raise DataError(f"{path} declares the shape {shape}, {prod(shape)} bytes, and holds {found}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_up_to(file: Any, size: int) -> bytes:
    made = bytearray()
    while len(made) < size and (part := file.read(min(_PART, size - len(made)))):
        made += part
    return bytes(made)


def _cifar10(folder: Path) -> Images:
    inner = folder / "cifar-10-batches-py"
    folder = inner if inner.is_dir() else folder
    train = [_read_batch(folder / f"data_batch_{number}") for number in range(1, 6)]
    test = _read_batch(folder / "test_batch")
    return torch.cat([x for x, _ in train]), torch.cat([y for _, y in train]), *test


def _read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) and classes (N,) of one of CIFAR-10's files."""
    try:
        content = _Unpickler.read(_whole(path))
        array, labels = ({_text(key): value for key, value in content.items()}[name] for name in ("data", "labels"))
        if not isinstance(labels, list) or not all(type(one) is int and 0 <= one < CLASSES for one in labels):
            raise ValueError("its labels are not a list of numbers from 0 to 9")
        x = _array(array)
        if x.ndim != 2 or x.shape[1] != 3 * 32 * 32:
            raise ValueError(f"its data have the shape {x.shape}, not (N, 3072)")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # a pickle may fail in any way
        raise DataError(f"{path} is damaged, or not a batch of CIFAR-10: {error!r}") from error
    return _scaled(x.reshape(-1, 3, 32, 32)), _classes(np.array(labels, np.uint8), len(x), path)


def _whole(path: Path) -> bytes:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST} bytes")
    return path.read_bytes()


class _Note:
    """What a pickle says of a function of numpy or its result, noted in place of being done."""

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None

    def __call__(self, *arguments: Any) -> _Note:
        return _Note(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Takes numbers, strings, lists, tuples, dictionaries; of an array, notes alone."""

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
        """What is pickled. Raises UnpicklingError or any other exception where it cannot be, or may not."""
        # The unpickler allocates what strings and numbers of the memo declare; this parser tells first if they lie.
        for code, argument, _ in pickletools.genops(data):
            if code.name in cls._BUFFERS or ("PUT" in code.name and int(argument or 0) > len(data)):
                raise pickle.UnpicklingError(f"{code.name} is not allowed")
        return cls(io.BytesIO(data), encoding="bytes").load()

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in self._NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return _Note(name)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _array(note: Any) -> _Bytes:
    """The array that notes tell of. Raises ValueError or TypeError where they tell of something else."""
    if not isinstance(note, _Note) or note.name != "_reconstruct" or not isinstance(note.state, tuple):
        raise ValueError("its data are not an array")
    _, shape, kind, columns, content = note.state
    if not isinstance(kind, _Note) or kind.name != "dtype" or _text(kind.arguments[0]) != "u1":
        raise ValueError("its data are not bytes")
    if not isinstance(content, bytes) or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError("its data are not an array")
    if prod(shape) != len(content):
        raise ValueError(f"its data have the shape {shape} and {len(content)} bytes")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if columns else "C")


def _scaled(values: _Bytes) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values).astype(np.float32) / np.float32(255))


def _classes(labels: _Bytes, number: int, path: Path) -> Tensor:
    if len(labels) != number:
        raise DataError(f"{path} holds {len(labels)} classes for {number} images")
    if labels.max() >= CLASSES:
        raise DataError(f"{path} holds the class {labels.max()}, above {CLASSES - 1}")
    return torch.from_numpy(labels.astype(np.int64))


SOURCES: dict[str, Callable[[Path], Images]] = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
}

__all__ = ["CLASSES", "SOURCES", "Images", "images"]
