"""TFRecord shards, read and written without TensorFlow; all checksums are verified.

A shard is a sequence of records. Each consists of its length (uint64), the masked CRC32C of the length (uint32), the
data, and the masked CRC32C of the data, all little-endian. The data are a serialized ``tf.train.Example`` with two
features of bytes, each a serialized ``TensorProto``: ``inputs``, float32 with channels last, and ``output``, an
integer.
"""

from __future__ import annotations

import itertools
import math
import mmap
import operator
import os
import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmeasures.plugin import DataError, write_atomically

_NAME = re.compile(r"shard_([0-9]+)\.tfrecord")
_HEAD = struct.Struct("<QI")
_SUM = struct.Struct("<I")
_FRAME = _HEAD.size + _SUM.size

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types of protocol buffers; the others (groups) occur in none of these messages."""
_FLOAT, _INT32, _INT64 = 1, 3, 9
"""Data types of a TensorProto."""
_TYPES: dict[int, tuple[np.dtype[Any], int]] = {
    _FLOAT: (np.dtype("<f4"), 5),
    _INT32: (np.dtype("<i4"), 7),
    _INT64: (np.dtype("<i8"), 10),
}
"""For each data type, the NumPy type of ``tensor_content``, and the number of the field used in its place."""
_MOST_AXES = 4
"""Largest number of axes of one input: three spatial ones and the channels."""
_MOST_REPEATED = 2**22
"""Largest number of elements that one value may be broadcast to: a few bytes must not fill the memory."""


_MOST_LAYOUTS = 4
"""Largest number of layouts cached per shard; usually there are two, since either feature may come first."""


class _Fault(Exception):
    """A problem with a record; the shard adds its path and the index of the record and raises a DataError."""


@dataclass(frozen=True)
class _Values:
    """Type, shape and position of the values of a tensor in a record.

    Attributes:
        dtype: type of the values.
        shape: shape of the tensor.
        at: offset of the first byte.
        end: offset after the last byte.
        listed: the values themselves if they are not contiguous in the record.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    at: int
    end: int
    listed: NDArray[Any] | None = None

    def of(self, data: bytes) -> NDArray[Any]:
        """The values (*shape), as a view of the data if possible."""
        if self.listed is not None:
            return self.listed
        return np.frombuffer(data[self.at : self.end], self.dtype).reshape(self.shape)


class _Layout:
    """All bytes of a parsed record except the values.

    The parser does not depend on the values, so a record with the same other bytes need not be parsed again.
    """

    def __init__(self, data: bytes, inputs: _Values, output: _Values) -> None:
        self.inputs, self.output = inputs, output
        self._first, self._second = sorted(((inputs.at, inputs.end), (output.at, output.end)))
        self._length, self._between = len(data), self._parts(data)

    def matches(self, data: bytes) -> bool:
        return len(data) == self._length and self._parts(data) == self._between

    def _parts(self, data: bytes) -> tuple[bytes, bytes, bytes]:
        return data[: self._first[0]], data[self._first[1] : self._second[0]], data[self._second[1] :]


class Shard:
    """The records of one file. They are indexed when the shard is opened and read on demand.

    Args:
        path: the file.

    Attributes:
        path: the file.
        shape: shape of one input, channels last.

    Raises:
        DataError: the file is empty or truncated, the checksum of a length is wrong, or the first record, which
            determines the shape, is damaged. The message names the file and the record, counted from 0.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "shard_0.tfrecord"
        ...     write_shard(path, np.ones((2, 3), np.float32), np.array([7, 8]))
        ...     shard = Shard(path)
        ...     len(shard), shard.shape, shard.read([1])[1]
        (2, (3,), array([8]))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._map: mmap.mmap | None = None
        self._layouts: list[_Layout] = []
        with self._open() as file:
            self._size = len(file)
            self._bounds = self._index(file)
            inputs, _ = self._record(file, 0)
        self.shape: tuple[int, ...] = inputs.shape

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def read(self, indices: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Read records.

        Args:
            indices: indices of n records, in any order.

        Returns:
            Inputs float32 (n, *S), channels last, and outputs int64 (n,), in the order of the indices.

        Raises:
            DataError: a record is damaged or differs in shape from the first; the message names the file and record.
            IndexError: an index is negative, or not below the length of the shard.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"{self.path}: record index must be from 0 to {len(self) - 1}, got {index}")
        file = self._mapped()
        inputs = np.empty((len(indices), *self.shape), np.float32)
        outputs = np.empty(len(indices), np.int64)
        for row, index in enumerate(indices):
            values, outputs[row] = self._record(file, index)
            if values.shape != self.shape:
                raise self._error(index, f"inputs must have the shape {self.shape} of record 0, got {values.shape}")
            inputs[row] = values
        return inputs, outputs

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def _error(self, index: int, problem: str) -> DataError:
        return DataError(f"{self.path}: record {index}: {problem}")

    def _open(self) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    raise DataError(f"{self.path}: record 0 is missing: the file is empty")
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except DataError:
            raise
        except (OSError, ValueError) as error:  # ValueError for impossible file names
            raise DataError(f"{self.path}: {getattr(error, 'strerror', None) or error}") from error

    def _mapped(self) -> mmap.mmap:
        """The memory-mapped file, opened on the first read in each process."""
        if self._map is None:
            self._map = self._open()
        # Reading beyond the end of a truncated file would end the process with a bus error.
        if len(self._map) != self._size or self._map.size() != self._size:
            raise DataError(
                f"{self.path} has changed since it was opened: expected {self._size} bytes, got {self._map.size()}"
            )
        return self._map

    def _index(self, file: mmap.mmap) -> array[int]:
        """The offset of each record, and of the end of the last one."""
        bounds, at = array("q", [0]), 0
        while at < len(file):
            number = len(bounds) - 1
            if len(file) - at < _FRAME:
                raise self._error(number, "the file is truncated")
            length, crc = _HEAD.unpack_from(file, at)
            if _masked(file[at : at + 8]) != crc:
                raise self._error(number, "the checksum of the length is wrong")
            if length > len(file) - at - _FRAME:
                raise self._error(number, "the file is truncated")
            at += length + _FRAME
            bounds.append(at)
        return bounds

    def _record(self, file: mmap.mmap, number: int) -> tuple[NDArray[np.float32], int]:
        """The input and the output of one record, after its checksum is verified."""
        stop = self._bounds[number + 1] - _SUM.size
        data = file[self._bounds[number] + _HEAD.size : stop]
        if (_masked(data),) != _SUM.unpack_from(file, stop):
            raise self._error(number, "the checksum of the data is wrong")
        try:
            inputs, output = self._values(data)
        except _Fault as fault:
            raise self._error(number, str(fault)) from None
        return inputs.of(data), int(output.of(data))

    def _values(self, data: bytes) -> tuple[_Values, _Values]:
        for layout in self._layouts:
            if layout.matches(data):
                return layout.inputs, layout.output
        inputs, output = _example(data)
        if inputs.listed is None and output.listed is None and len(self._layouts) < _MOST_LAYOUTS:
            self._layouts.append(_Layout(data, inputs, output))
        return inputs, output


class RecordDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """The records of several shards in order, as pairs of an input float32, channels first, and an output int64 ().

    Inputs (H, W, C) become (C, H, W), (L, C) become (C, L), (D, H, W, C) become (C, D, H, W), and features (F,) stay
    as they are. Files are opened on the first read in each process.

    Args:
        shards: the files.

    Raises:
        DataError: as of :class:`Shard`; also if there are no shards, or their shapes differ.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_shard(Path(folder) / "shard_0.tfrecord", np.ones((2, 4, 5, 3), np.float32), np.array([7, 8]))
        ...     dataset = RecordDataset(shards_of(folder))
        ...     x, y = dataset[-1]
        >>> len(dataset), x.shape, y
        (2, torch.Size([3, 4, 5]), tensor(8))
    """

    def __init__(self, shards: Sequence[str | os.PathLike[str]]) -> None:
        self.shards = [Shard(path) for path in shards]
        if not self.shards:
            raise DataError("shards must have at least one file, got none")
        first = self.shards[0]
        for shard in self.shards:
            if shard.shape != first.shape:
                raise DataError(
                    f"{shard.path}: record 0: inputs must have the shape {first.shape} of {first.path}, "
                    f"got {shard.shape}"
                )
        self._ends = list(itertools.accumulate(len(shard) for shard in self.shards))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Input (C, *S) or (F,) and output () of a record.

        Raises:
            DataError: the record is damaged; the message names the shard and the record.
            IndexError: the index is out of range.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Several records, read at once; all inputs are views of one tensor, and all outputs of another."""
        positions = np.array([self._position(index) for index in indices], np.int64)
        numbers = np.searchsorted(self._ends, positions, side="right")
        inputs = np.empty((len(positions), *self.shards[0].shape), np.float32)
        outputs = np.empty(len(positions), np.int64)
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            shard = self.shards[number]
            start = self._ends[number] - len(shard)
            inputs[rows], outputs[rows] = shard.read((positions[rows] - start).tolist())
        return list(zip(_channels_first(torch.from_numpy(inputs)), torch.from_numpy(outputs).unbind(), strict=True))

    def _position(self, index: int) -> int:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"record index must be from {-len(self)} to {len(self) - 1}, got {position}")
        return position % len(self)


def shards_of(folder: str | os.PathLike[str]) -> list[Path]:
    """The files ``shard_0.tfrecord``, ``shard_1.tfrecord``, … of a folder.

    Args:
        folder: the folder; other files in it are ignored.

    Returns:
        The paths, sorted by number.

    Raises:
        DataError: there are no shards, or a number is missing or duplicate; the message names the folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number in (0, 1):
        ...         (Path(folder) / f"shard_{number}.tfrecord").touch()
        ...     [path.name for path in shards_of(folder)]
        ['shard_0.tfrecord', 'shard_1.tfrecord']
    """
    try:
        matches = [(_NAME.fullmatch(path.name), path) for path in Path(folder).iterdir()]
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}") from error
    numbered = sorted((int(match[1]), path) for match, path in matches if match)
    if not numbered:
        raise DataError(f"{folder} has no shards: expected shard_0.tfrecord")
    for expected, (number, _) in enumerate(numbered):
        if number != expected:
            problem = f"shard_{expected} is missing" if number > expected else f"duplicate shard_{number}"
            raise DataError(f"{folder}: {problem}")
    return [path for _, path in numbered]


def write_shard(path: str | os.PathLike[str], inputs: NDArray[np.float32], outputs: NDArray[Any]) -> None:
    """Write a shard atomically.

    Args:
        path: the file.
        inputs: float32 (n, *S), channels last, with 1 to 4 axes per input.
        outputs: integers (n,) that fit into int32.

    Raises:
        DataError: an array is empty or has another type or shape, or an output does not fit into int32; the message
            names the file.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "shard_0.tfrecord"
        ...     write_shard(path, np.ones((2, 3), np.float32), np.array([7, 8]))
        ...     path.stat().st_size
        164
    """
    path = Path(path)
    if inputs.dtype != np.float32 or not 2 <= inputs.ndim <= _MOST_AXES + 1 or inputs.size == 0:
        raise DataError(
            f"{path}: inputs must be float32 (n, *S) with 1 to {_MOST_AXES} axes per input and at least one element, "
            f"got {inputs.dtype} {inputs.shape}"
        )
    if outputs.dtype.kind not in "iu" or outputs.shape != (len(inputs),):
        raise DataError(f"{path}: outputs must be integers ({len(inputs)},), got {outputs.dtype} {outputs.shape}")
    limits = np.iinfo(np.int32)
    if outputs.min() < limits.min or outputs.max() > limits.max:
        raise DataError(f"{path}: outputs must fit into int32, got {outputs.min()} to {outputs.max()}")
    records = []
    for values, output in zip(inputs, outputs.astype(np.int32), strict=True):
        data = _field(1, _feature(b"inputs", values, _FLOAT) + _feature(b"output", output, _INT32))
        length = struct.pack("<Q", len(data))
        records += [length, _SUM.pack(_masked(length)), data, _SUM.pack(_masked(data))]
    write_atomically(path, b"".join(records))


def _masked(data: bytes) -> int:
    """The CRC32C, rotated by 15 bits plus a constant, because a CRC of data that contain CRCs is weak."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _channels_first(inputs: Tensor) -> tuple[Tensor, ...]:
    """(n, *space, C) as n tensors (C, *space); (n, F) as n tensors (F,)."""
    if inputs.dim() == 2:
        return inputs.unbind()
    moved = inputs.movedim(-1, 1)
    # Copied into a new tensor: a single channel would keep a stride that selects channels-last kernels.
    return torch.empty(moved.shape).copy_(moved).unbind()


def _example(data: bytes) -> tuple[_Values, _Values]:
    """The tensors of a serialized tf.train.Example: inputs float32 (*S), and output, an integer ()."""
    tensors: dict[bytes, tuple[int, int]] = {}
    for features in _parts(data, 0, len(data), 1):
        for entry in _parts(data, *features, 1):
            name = data[slice(*_one(_parts(data, *entry, 1), "the name of a feature"))]
            if name in (b"inputs", b"output"):
                if name in tensors:
                    raise _Fault(f"duplicate feature {name.decode()}")
                tensors[name] = _bytes_value(data, *_one(_parts(data, *entry, 2), f"the feature {name.decode()}"))
    for name in (b"inputs", b"output"):
        if name not in tensors:
            raise _Fault(f"there is no feature {name.decode()}")
    inputs = _tensor(data, *tensors[b"inputs"], "inputs", (_FLOAT,))
    if not inputs.shape:
        raise _Fault("inputs must have at least one axis")
    output = _tensor(data, *tensors[b"output"], "output", (_INT32, _INT64))
    if output.shape:
        raise _Fault(f"output must be a scalar, got the shape {output.shape}")
    return inputs, output


def _bytes_value(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The position of the only value of a Feature of bytes."""
    values = _one(_parts(data, at, end, 1), "the list of bytes of a feature")
    return _one(_parts(data, *values, 1), "the value of a feature")


def _tensor(data: bytes, at: int, end: int, name: str, types: tuple[int, ...]) -> _Values:
    """The values of a serialized TensorProto with one of the given data types."""
    fields: dict[int, list[tuple[int, int, int]]] = {}
    for number, wire, begin, stop in _fields(data, at, end):
        fields.setdefault(number, []).append((wire, begin, stop))
    wire, kind, _ = fields.get(1, [(_VARINT, 0, 0)])[-1]
    if wire != _VARINT or kind not in types:
        raise _Fault(f"{name} must have the data type {' or '.join(map(str, types))}, got {kind}")
    dtype, number = _TYPES[kind]
    shape = _shape(data, fields.get(2, []), name)
    count = math.prod(shape)
    if count == 0:
        raise _Fault(f"{name} must have at least one element, got the shape {shape}")
    content = _spans(fields.get(4, []))
    if not content or content[-1][0] == content[-1][1]:
        return _Values(dtype, shape, 0, 0, _listed(data, fields.get(number, []), dtype, name, shape))
    begin, stop = content[-1]
    if stop - begin != count * dtype.itemsize:
        raise _Fault(f"{name} of shape {shape} must have {count * dtype.itemsize} bytes, got {stop - begin}")
    return _Values(dtype, shape, begin, stop)


def _listed(
    data: bytes, fields: list[tuple[int, int, int]], dtype: np.dtype[Any], name: str, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Values of a repeated field, packed or not; a single one is broadcast."""
    count = math.prod(shape)
    chunks = [_numbers(data, field, dtype) for field in fields]
    values = np.concatenate(chunks) if chunks else np.empty(0, dtype)
    if len(values) == 1 < count <= _MOST_REPEATED:
        return np.broadcast_to(values[0], shape)
    if len(values) != count:
        raise _Fault(f"{name} of shape {shape} must have {count} values, got {len(values)}")
    return values.reshape(shape)


def _numbers(data: bytes, field: tuple[int, int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The values in one occurrence of a repeated field of numbers."""
    wire, at, end = field
    if dtype.kind == "f":
        if wire not in (_FIXED32, _BYTES) or (end - at) % 4:
            raise _Fault("a list of float32 is malformed")
        return np.frombuffer(data, dtype, (end - at) // 4, at) if end > at else np.empty(0, dtype)
    if wire == _VARINT:
        unsigned = [at]
    elif wire == _BYTES:
        unsigned = []
        while at < end:
            value, at = _varint(data, at, end)
            unsigned.append(value)
    else:
        raise _Fault("a list of integers is malformed")
    limits = np.iinfo(dtype)
    signed = [value - (value >> 63 << 64) for value in unsigned]
    if any(not limits.min <= value <= limits.max for value in signed):
        raise _Fault(f"an integer does not fit into {dtype}")
    return np.array(signed, dtype)


def _shape(data: bytes, fields: list[tuple[int, int, int]], name: str) -> tuple[int, ...]:
    """The sizes in a TensorShapeProto; empty for a scalar."""
    shape = []
    for at, end in _spans(fields):
        for number, wire, value, stop in _fields(data, at, end):
            if number == 2 and wire == _BYTES:
                sizes = [size for field, kind, size, _ in _fields(data, value, stop) if (field, kind) == (1, _VARINT)]
                shape.append(sizes[-1] if sizes else 0)
            elif number in (2, 3):
                raise _Fault(f"the shape of {name} is unknown")
    if len(shape) > _MOST_AXES:
        raise _Fault(f"{name} must have at most {_MOST_AXES} axes, got {len(shape)}")
    if any(size >> 63 for size in shape):
        raise _Fault(f"{name} must not have axes of negative size")
    return tuple(shape)


def _one(spans: list[tuple[int, int]], field: str) -> tuple[int, int]:
    """The only one of the spans of a field."""
    if len(spans) != 1:
        raise _Fault(f"{field} must occur once, got {len(spans)} times")
    return spans[0]


def _parts(data: bytes, at: int, end: int, number: int) -> list[tuple[int, int]]:
    """The positions of the strings or messages in one field of a message."""
    return _spans([(wire, begin, stop) for field, wire, begin, stop in _fields(data, at, end) if field == number])


def _spans(fields: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    for wire, _, _ in fields:
        if wire != _BYTES:
            raise _Fault(f"a field must have the wire type {_BYTES}, got {wire}")
    return [(at, end) for _, at, end in fields]


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: number, wire type, value of a varint or start of the contents, end of the contents."""
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise _Fault(f"a field has the invalid number {number}")
        if wire == _VARINT:
            value, at = _varint(data, at, end)
            yield number, wire, value, at
            continue
        if wire == _BYTES:
            length, at = _varint(data, at, end)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise _Fault(f"a field has the unsupported wire type {wire}")
        if length > end - at:
            raise _Fault("a field is longer than the message that contains it")
        yield number, wire, at, at + length
        at += length


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A varint of up to 64 bits, and the position after it."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                break
            return value, at
        shift += 7
    raise _Fault("a varint is truncated or has more than 64 bits")


def _field(number: int, contents: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(contents)) + contents


def _encoded(value: int) -> bytes:
    """An integer as a varint."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes((*encoded, value))


def _feature(name: bytes, values: NDArray[Any], kind: int) -> bytes:
    """An entry of the map of features: a serialized tensor in a list of bytes."""
    axes = b"".join(_field(2, _encoded(1 << 3 | _VARINT) + _encoded(size)) for size in values.shape)
    content = values.astype(_TYPES[kind][0], copy=False).tobytes()
    tensor = _encoded(1 << 3 | _VARINT) + _encoded(kind) + _field(2, axes) + _field(4, content)
    return _field(1, _field(1, name) + _field(2, _field(1, _field(1, tensor))))


__all__ = ["RecordDataset", "Shard", "shards_of", "write_shard"]
