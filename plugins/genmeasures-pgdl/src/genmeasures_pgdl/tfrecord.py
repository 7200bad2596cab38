"""Data in TFRecord shards, read and written without TensorFlow, with every checksum verified.

A shard is a run of records, each framed as its length (uint64), the masked crc32c of the length (uint32), the data,
and the masked crc32c of the data, all little-endian. The data are a serialized ``tf.train.Example`` with two features
of bytes, each a serialized ``TensorProto``: ``inputs``, float32 with channels last, and ``output``, an integer.
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
"""Wire types of protocol buffers; the others (groups) are not used by any message here."""
_FLOAT, _INT32, _INT64 = 1, 3, 9
"""Types of a TensorProto."""
_TYPES: dict[int, tuple[np.dtype[Any], int]] = {
    _FLOAT: (np.dtype("<f4"), 5),
    _INT32: (np.dtype("<i4"), 7),
    _INT64: (np.dtype("<i8"), 10),
}
"""Of each type, that of its values in ``tensor_content``, and the field that holds them otherwise."""
_MOST_AXES = 4
"""Of one input: three of space, and the channels."""
_MOST_REPEATED = 2**22
"""How many elements one value may stand for: a few bytes must not ask for any amount of memory."""


_MOST_LAYOUTS = 4
"""That a shard keeps: records come in two, with either feature first, where labels have one size."""


class _Fault(Exception):
    """What is wrong with a record; who knows the shard and the number makes a DataError of it."""


@dataclass(frozen=True)
class _Values:
    """Where the values of a tensor lie in a record."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    at: int
    end: int
    listed: NDArray[Any] | None = None
    """The values themselves where they are not in one piece."""

    def of(self, data: bytes) -> NDArray[Any]:
        """The values (*shape), if they can be, as a view of the data."""
        if self.listed is not None:
            return self.listed
        return np.frombuffer(data[self.at : self.end], self.dtype).reshape(self.shape)


class _Layout:
    """What a parsed record is made of besides its values.

    The parser never looks at the values, so a record that is the same in every other byte need not be parsed.
    """

    def __init__(self, data: bytes, inputs: _Values, output: _Values) -> None:
        self.inputs, self.output = inputs, output
        self._first, self._second = sorted(((inputs.at, inputs.end), (output.at, output.end)))
        self._length, self._between = len(data), self._parts(data)

    def fits(self, data: bytes) -> bool:
        return len(data) == self._length and self._parts(data) == self._between

    def _parts(self, data: bytes) -> tuple[bytes, bytes, bytes]:
        return data[: self._first[0]], data[self._first[1] : self._second[0]], data[self._second[1] :]


class Shard:
    """The records of one file, found by a pass over the framing and read when they are asked for.

    Raises DataError, naming the file and the record counted from 0, where the file is empty or cut off, where the
    checksum of a length is wrong, or where the first record, which tells the shape of all, is damaged.
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
        """Of one input, channels last."""

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def read(self, indices: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Inputs (n, *S), channels last, and outputs (n,) of the records of these numbers, in this order.

        Raises DataError naming the file and the record where one is damaged or has another shape than the first,
        IndexError for a number that is not from 0 to the length of the shard.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"{self.path} has no record {index}: it has {len(self)}")
        file = self._mapped()
        inputs = np.empty((len(indices), *self.shape), np.float32)
        outputs = np.empty(len(indices), np.int64)
        for row, index in enumerate(indices):
            values, outputs[row] = self._record(file, index)
            if values.shape != self.shape:
                raise self._error(index, f"inputs have the shape {values.shape}, those of record 0 {self.shape}")
            inputs[row] = values
        return inputs, outputs

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def _error(self, number: int, what: str) -> DataError:
        return DataError(f"{self.path}: record {number}: {what}")

    def _open(self) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    raise DataError(f"{self.path}: record 0 is missing: the file is empty")
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except DataError:
            raise
        except (OSError, ValueError) as error:  # the latter of names that no file can have
            raise DataError(f"{self.path}: {getattr(error, 'strerror', None) or error}") from error

    def _mapped(self) -> mmap.mmap:
        """The file, opened in each process by itself, and only once it is read from."""
        if self._map is None:
            self._map = self._open()
        # To touch what has been cut off would end the process with a bus error.
        if len(self._map) != self._size or self._map.size() != self._size:
            raise DataError(f"{self.path} is no longer the file of {self._size} bytes that it was when it was opened")
        return self._map

    def _index(self, file: mmap.mmap) -> array[int]:
        """Where each record starts, and where the last one ends."""
        bounds, at = array("q", [0]), 0
        while at < len(file):
            number = len(bounds) - 1
            if len(file) - at < _FRAME:
                raise self._error(number, "the file is cut off within it")
            length, crc = _HEAD.unpack_from(file, at)
            if _masked(file[at : at + 8]) != crc:
                raise self._error(number, "the checksum of its length is wrong")
            if length > len(file) - at - _FRAME:
                raise self._error(number, "the file is cut off within it")
            at += length + _FRAME
            bounds.append(at)
        return bounds

    def _record(self, file: mmap.mmap, number: int) -> tuple[NDArray[np.float32], int]:
        """The input and the output of one record, verified."""
        stop = self._bounds[number + 1] - _SUM.size
        data = file[self._bounds[number] + _HEAD.size : stop]
        if (_masked(data),) != _SUM.unpack_from(file, stop):
            raise self._error(number, "the checksum of its data is wrong")
        try:
            inputs, output = self._values(data)
        except _Fault as fault:
            raise self._error(number, str(fault)) from None
        return inputs.of(data), int(output.of(data))

    def _values(self, data: bytes) -> tuple[_Values, _Values]:
        for layout in self._layouts:
            if layout.fits(data):
                return layout.inputs, layout.output
        inputs, output = _example(data)
        if inputs.listed is None and output.listed is None and len(self._layouts) < _MOST_LAYOUTS:
            self._layouts.append(_Layout(data, inputs, output))
        return inputs, output


class RecordDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """The records of several shards, in their order: input float32, channels first, and output, an int64 scalar.

    Inputs (H, W, C) come as (C, H, W), (L, C) as (C, L), (D, H, W, C) as (C, D, H, W), features (F,) as they are.
    Files are opened in each process when they are first read from. Raises DataError as :class:`Shard` does, and where
    there is no shard or their shapes differ.
    """

    def __init__(self, shards: Sequence[str | os.PathLike[str]]) -> None:
        self.shards = [Shard(path) for path in shards]
        if not self.shards:
            raise DataError("data of TFRecord files need at least one shard")
        first = self.shards[0]
        for shard in self.shards:
            if shard.shape != first.shape:
                raise DataError(
                    f"{shard.path}: record 0: inputs have the shape {shard.shape}, those of {first.path} {first.shape}"
                )
        self._ends = list(itertools.accumulate(len(shard) for shard in self.shards))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Input (C, *S) or (F,), output (). Raises DataError naming shard and record, IndexError out of range."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """The same of several, all of them views of one tensor."""
        wanted = np.array([self._position(index) for index in indices], np.int64)
        numbers = np.searchsorted(self._ends, wanted, side="right")
        inputs = np.empty((len(wanted), *self.shards[0].shape), np.float32)
        outputs = np.empty(len(wanted), np.int64)
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            shard = self.shards[number]
            start = self._ends[number] - len(shard)
            inputs[rows], outputs[rows] = shard.read((wanted[rows] - start).tolist())
        return list(zip(_channels_first(torch.from_numpy(inputs)), torch.from_numpy(outputs).unbind(), strict=True))

    def _position(self, index: int) -> int:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"there is no record {position}: there are {len(self)}")
        return position % len(self)


def shards_of(folder: str | os.PathLike[str]) -> list[Path]:
    """The files ``shard_0.tfrecord``, ``shard_1.tfrecord``, … of a folder by number; others are passed over.

    Raises DataError naming the folder where there are none, or a number is missing or there twice.
    """
    try:
        matches = [(_NAME.fullmatch(path.name), path) for path in Path(folder).iterdir()]
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}") from error
    numbered = sorted((int(match[1]), path) for match, path in matches if match)
    if not numbered:
        raise DataError(f"{folder} has no shards: shard_0.tfrecord is missing")
    for expected, (number, _) in enumerate(numbered):
        if number != expected:
            what = f"shard_{expected} is missing" if number > expected else f"shard_{number} is there twice"
            raise DataError(f"{folder}: {what}")
    return [path for _, path in numbered]


def write_shard(path: str | os.PathLike[str], inputs: NDArray[np.float32], outputs: NDArray[Any]) -> None:
    """Write inputs float32 (n, *S), channels last, and integers (n,) as one shard with checksums.

    The file is there only once it is complete. Raises DataError naming it where the arrays are not as said, are
    empty, or a number does not fit into an int32.
    """
    path = Path(path)
    if inputs.dtype != np.float32 or not 2 <= inputs.ndim <= _MOST_AXES + 1 or inputs.size == 0:
        raise DataError(f"{path}: inputs are {inputs.dtype} {inputs.shape}, not float32 (n, *S) of at least one record")
    if outputs.dtype.kind not in "iu" or outputs.shape != (len(inputs),):
        raise DataError(f"{path}: outputs are {outputs.dtype} {outputs.shape}, not integers ({len(inputs)},)")
    limits = np.iinfo(np.int32)
    if outputs.min() < limits.min or outputs.max() > limits.max:
        raise DataError(f"{path}: outputs do not fit into an int32")
    records = []
    for values, output in zip(inputs, outputs.astype(np.int32), strict=True):
        data = _field(1, _feature(b"inputs", values, _FLOAT) + _feature(b"output", output, _INT32))
        length = struct.pack("<Q", len(data))
        records += [length, _SUM.pack(_masked(length)), data, _SUM.pack(_masked(data))]
    write_atomically(path, b"".join(records))


def _masked(data: bytes) -> int:
    """The crc32c, rotated by 15 and shifted by a constant: a checksum of data that hold checksums is weak."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _channels_first(inputs: Tensor) -> tuple[Tensor, ...]:
    """(n, *space, C) as n tensors (C, *space); (n, F) as n tensors (F,)."""
    if inputs.dim() == 2:
        return inputs.unbind()
    moved = inputs.movedim(-1, 1)
    # Copied into a new tensor, as a single channel would keep a stride by which torch takes it to come last.
    return torch.empty(moved.shape).copy_(moved).unbind()


def _example(data: bytes) -> tuple[_Values, _Values]:
    """The tensors of a serialized tf.train.Example: inputs, float32 (*S), and output, an integer ()."""
    found: dict[bytes, tuple[int, int]] = {}
    for features in _parts(data, 0, len(data), 1):
        for entry in _parts(data, *features, 1):
            name = data[slice(*_one(_parts(data, *entry, 1), "the name of a feature"))]
            if name in (b"inputs", b"output"):
                if name in found:
                    raise _Fault(f"the feature {name.decode()} is there twice")
                found[name] = _bytes_value(data, *_one(_parts(data, *entry, 2), f"the feature {name.decode()}"))
    for name in (b"inputs", b"output"):
        if name not in found:
            raise _Fault(f"there is no feature {name.decode()}")
    inputs = _tensor(data, *found[b"inputs"], "inputs", (_FLOAT,))
    if not inputs.shape:
        raise _Fault("inputs have no axes")
    output = _tensor(data, *found[b"output"], "output", (_INT32, _INT64))
    if output.shape:
        raise _Fault(f"output has the shape {output.shape}: it must be one number")
    return inputs, output


def _bytes_value(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Where the only value of a Feature of bytes lies."""
    values = _one(_parts(data, at, end, 1), "the list of bytes of a feature")
    return _one(_parts(data, *values, 1), "the value of a feature")


def _tensor(data: bytes, at: int, end: int, name: str, types: tuple[int, ...]) -> _Values:
    """The values of a serialized TensorProto of one of these types."""
    fields: dict[int, list[tuple[int, int, int]]] = {}
    for number, wire, begin, stop in _fields(data, at, end):
        fields.setdefault(number, []).append((wire, begin, stop))
    wire, kind, _ = fields.get(1, [(_VARINT, 0, 0)])[-1]
    if wire != _VARINT or kind not in types:
        raise _Fault(f"{name} has the type {kind}, not {' or '.join(map(str, types))}")
    dtype, number = _TYPES[kind]
    shape = _shape(data, fields.get(2, []), name)
    count = math.prod(shape)
    if count == 0:
        raise _Fault(f"{name} has the shape {shape}, without any elements")
    content = _spans(fields.get(4, []))
    if not content or content[-1][0] == content[-1][1]:
        return _Values(dtype, shape, 0, 0, _listed(data, fields.get(number, []), dtype, name, shape))
    begin, stop = content[-1]
    if stop - begin != count * dtype.itemsize:
        raise _Fault(f"{name} has the shape {shape}, but {stop - begin} bytes")
    return _Values(dtype, shape, begin, stop)


def _listed(
    data: bytes, fields: list[tuple[int, int, int]], dtype: np.dtype[Any], name: str, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Values that are listed in a repeated field, packed or not; a lone one stands for all."""
    count = math.prod(shape)
    chunks = [_numbers(data, field, dtype) for field in fields]
    values = np.concatenate(chunks) if chunks else np.empty(0, dtype)
    if len(values) == 1 < count <= _MOST_REPEATED:
        return np.broadcast_to(values[0], shape)
    if len(values) != count:
        raise _Fault(f"{name} has the shape {shape}, but {len(values)} values")
    return values.reshape(shape)


def _numbers(data: bytes, field: tuple[int, int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The values in one occurrence of a repeated field of numbers."""
    wire, at, end = field
    if dtype.kind == "f":
        if wire not in (_FIXED32, _BYTES) or (end - at) % 4:
            raise _Fault("a list of float32 is malformed")
        return np.frombuffer(data, dtype, (end - at) // 4, at) if end > at else np.empty(0, dtype)
    if wire == _VARINT:
        found = [at]
    elif wire == _BYTES:
        found = []
        while at < end:
            value, at = _varint(data, at, end)
            found.append(value)
    else:
        raise _Fault("a list of integers is malformed")
    limits = np.iinfo(dtype)
    signed = [value - (value >> 63 << 64) for value in found]
    if any(not limits.min <= value <= limits.max for value in signed):
        raise _Fault(f"an integer does not fit into {dtype}")
    return np.array(signed, dtype)


def _shape(data: bytes, fields: list[tuple[int, int, int]], name: str) -> tuple[int, ...]:
    """The sizes in a TensorShapeProto; without any, that of a scalar."""
    shape = []
    for at, end in _spans(fields):
        for number, wire, value, stop in _fields(data, at, end):
            if number == 2 and wire == _BYTES:
                sizes = [size for field, kind, size, _ in _fields(data, value, stop) if (field, kind) == (1, _VARINT)]
                shape.append(sizes[-1] if sizes else 0)
            elif number in (2, 3):
                raise _Fault(f"{name} has no known shape")
    if len(shape) > _MOST_AXES:
        raise _Fault(f"{name} has {len(shape)} axes, more than {_MOST_AXES}")
    if any(size >> 63 for size in shape):
        raise _Fault(f"{name} has an axis of negative size")
    return tuple(shape)


def _one(spans: list[tuple[int, int]], what: str) -> tuple[int, int]:
    if len(spans) != 1:
        raise _Fault(f"{what} is there {len(spans)} times")
    return spans[0]


def _parts(data: bytes, at: int, end: int, number: int) -> list[tuple[int, int]]:
    """Where the strings or messages of one field of a message lie."""
    return _spans([(wire, begin, stop) for field, wire, begin, stop in _fields(data, at, end) if field == number])


def _spans(fields: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    for wire, _, _ in fields:
        if wire != _BYTES:
            raise _Fault(f"a field has the wire type {wire} in place of bytes")
    return [(at, end) for _, at, end in fields]


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: number, wire type, then the value of a varint, or where the contents start; their end.

    Raises _Fault where the message is malformed; nothing is copied.
    """
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise _Fault(f"a field has the number {number}")
        if wire == _VARINT:
            value, at = _varint(data, at, end)
            yield number, wire, value, at
            continue
        if wire == _BYTES:
            length, at = _varint(data, at, end)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise _Fault(f"a field has the wire type {wire}")
        if length > end - at:
            raise _Fault("a field is longer than what holds it")
        yield number, wire, at, at + length
        at += length


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A varint of up to 64 bits, and where it ends."""
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
    raise _Fault("a varint is cut off or has more than 64 bits")


def _field(number: int, contents: bytes) -> bytes:
    return _written(number << 3 | _BYTES) + _written(len(contents)) + contents


def _written(value: int) -> bytes:
    """A varint."""
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes((*made, value))


def _feature(name: bytes, values: NDArray[Any], kind: int) -> bytes:
    """An entry of the map of features: a tensor, serialized, in a list of bytes."""
    axes = b"".join(_field(2, _written(1 << 3 | _VARINT) + _written(size)) for size in values.shape)
    content = values.astype(_TYPES[kind][0], copy=False).tobytes()
    tensor = _written(1 << 3 | _VARINT) + _written(kind) + _field(2, axes) + _field(4, content)
    return _field(1, _field(1, name) + _field(2, _field(1, _field(1, tensor))))
