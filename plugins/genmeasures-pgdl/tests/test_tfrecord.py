"""TFRecord shards: official ones, written ones, records built by hand, and damaged files."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import pickle
import re
import struct
import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch
from genmeasures_pgdl.tfrecord import RecordDataset, Shard, shards_of, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader

from genmeasures.plugin import DataError

DATA = Path(__file__).parents[4] / "shared" / "data"
HERE = Path(__file__).parent / "data" / "keras_golden"
GOLDEN, TOY = DATA / "keras_golden", DATA / "pgdl_toy_sample"


# Written apart from the code under test, field by field, as the formats have them.
def varint(value: int) -> bytes:
    value &= 2**64 - 1
    made = b""
    while value > 127:
        made += bytes([value % 128 + 128])
        value //= 128
    return made + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field * 8) + varint(value)


def string(field: int, value: bytes) -> bytes:
    return varint(field * 8 + 2) + varint(len(value)) + value


def shape_of(*sizes: int) -> bytes:
    return string(2, b"".join(string(2, number(1, size)) for size in sizes))


def feature(name: bytes, *tensors: bytes) -> bytes:
    return string(1, string(1, name) + string(2, string(1, b"".join(string(1, tensor) for tensor in tensors))))


def example(*features: bytes) -> bytes:
    return string(1, b"".join(features))


def masked(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    rotated = (crc >> 15) + (crc % 2**15) * 2**17
    return (rotated + 0xA282EAD8) % 2**32


def framed(*records: bytes) -> bytes:
    made = b""
    for data in records:
        length = struct.pack("<Q", len(data))
        made += length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))
    return made


FOUR = np.array([[1.5, -2], [0, 7]], np.float32)
INPUTS = number(1, 1) + shape_of(2, 2) + string(4, FOUR.tobytes())
OUTPUT = number(1, 3) + string(2, b"") + string(4, struct.pack("<i", 5))
GOOD = example(feature(b"inputs", INPUTS), feature(b"output", OUTPUT))


def everything(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    shard = Shard(path)
    return shard.read(range(len(shard)))


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    numbers = itertools.count()

    def put(content: bytes) -> Path:
        path = tmp_path / f"shard_{next(numbers)}.tfrecord"
        path.write_bytes(content)
        return path

    return put


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven shards of unequal lengths, 41 records (5, 4, 3), so that the order by name is not that by number."""
    rng, at = np.random.default_rng(0), 0
    for n in range(11):
        count = 1 + n % 5 + n % 3
        inputs = rng.normal(size=(count, 5, 4, 3)).astype(np.float32)
        write_shard(tmp_path / f"shard_{n}.tfrecord", inputs, np.arange(at, at + count))
        at += count
    return tmp_path


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_records_are_read_as_tensorflow_wrote_them(split: str) -> None:
    """The digits of scikit-learn in the order that they were written in: 800 for training, then 400 for testing."""
    digits = load_digits()
    first = 0 if split == "train" else 800
    order = np.random.RandomState(0).permutation(len(digits.images))[first:]
    data = RecordDataset(shards_of(HERE / "dataset_1" / split))
    assert len(data) == (16 if split == "train" else 64)
    pairs = data.__getitems__(range(len(data)))
    expected = (digits.images[order[: len(data)]] / 16).astype(np.float32)
    assert np.array_equal(torch.stack([x for x, _ in pairs])[:, 0].numpy(), expected)
    assert [int(y) for _, y in pairs] == digits.target[order[: len(data)]].tolist()
    assert pairs[0][0].shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("folder", "shape"),
    [
        (HERE, (1, 8, 8)),
        pytest.param(GOLDEN, (1, 8, 8), marks=pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"{GOLDEN} is absent")),
        pytest.param(TOY, (3,), marks=pytest.mark.skipif(not TOY.is_dir(), reason=f"{TOY} is absent")),
    ],
    ids=["here", "golden", "toy"],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_real_shards_are_read_whole_and_written_again_as_they_were(
    folder: Path, shape: tuple[int, ...], split: str, tmp_path: Path
) -> None:
    paths = shards_of(folder / "dataset_1" / split)
    data = RecordDataset(paths)
    x, y = data[len(data) - 1]
    assert (x.shape, x.dtype, y.shape, y.dtype) == (shape, torch.float32, (), torch.int64)
    same = records = 0
    for path in paths:
        inputs, outputs = everything(path)
        assert np.isfinite(inputs).all()
        assert outputs.min() >= 0
        assert outputs.max() < 10
        write_shard(tmp_path / path.name, inputs, outputs)
        theirs, ours = path.read_bytes(), (tmp_path / path.name).read_bytes()
        assert len(ours) == len(theirs)
        size = len(ours) // len(inputs)
        same += sum(ours[at : at + size] == theirs[at : at + size] for at in range(0, len(ours), size))
        records += len(inputs)
    assert records == len(data)
    assert same > 0  # the other records have `output` first


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_what_is_written_is_read(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    count = data.draw(st.integers(1, 5))
    whole = st.integers(-(2**31), 2**31 - 1)
    outputs = np.array(data.draw(st.lists(whole, min_size=count, max_size=count)))
    bits = np.random.default_rng(data.draw(st.integers(0, 1000))).integers(0, 2**32, (count, *shape), np.uint32)
    inputs = bits.view(np.float32)  # infinities, NaN and all
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard_0.tfrecord"
        write_shard(path, inputs, outputs)
        assert os.listdir(folder) == [path.name]
        order = data.draw(st.lists(st.integers(0, count - 1), max_size=6))
        x, y = Shard(path).read(order)
        dataset = RecordDataset([path])
    assert x.dtype == np.float32
    assert y.dtype == np.int64
    assert x.shape == (len(order), *shape)
    assert x.tobytes() == inputs[order].tobytes()
    assert y.tolist() == outputs[order].tolist()
    # The file is gone: it is opened at the first record that is asked for, and must then be there.
    with pytest.raises(DataError, match="No such file"):
        dataset[0]


@pytest.mark.parametrize("shape", [(6,), (4, 3), (5, 4, 3), (5, 4, 1), (1, 1, 3), (4, 5, 2, 3)])
def test_channels_come_first(shape: tuple[int, ...], tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    write_shard(tmp_path / "s", inputs, np.array([3, 1, 2]))
    data = RecordDataset([tmp_path / "s"])
    for i, (x, y) in enumerate([data[i] for i in range(3)] + data.__getitems__([0, 1, 2])):
        expected = torch.from_numpy(inputs[i % 3])
        assert torch.equal(x, expected if len(shape) == 1 else expected.movedim(-1, 0))
        assert x.stride() == torch.empty(x.shape).stride()
        assert (y.item(), y.dtype, y.shape) == ([3, 1, 2][i % 3], torch.int64, ())


def test_crc32c_and_its_mask() -> None:
    assert google_crc32c.value(b"123456789") == 0xE3069283
    assert google_crc32c.value(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    # 0xE3069283 >> 15 = 0x1C60D; its lower 15 bits 0x1283 << 17 = 0x25060000; 0x2507C60D + 0xA282EAD8.
    assert masked(b"123456789") == 0xC78AB0E5


FLOAT_LIST = number(1, 1) + shape_of(2, 2)
SEVEN = number(1, 3)
ENCODINGS: dict[str, tuple[bytes, Any, int]] = {
    "as TensorFlow": (GOOD, FOUR, 5),
    "output first": (example(feature(b"output", OUTPUT), feature(b"inputs", INPUTS)), FOUR, 5),
    "features in two messages": (
        example(feature(b"output", OUTPUT)) + example(feature(b"inputs", INPUTS)),
        FOUR,
        5,
    ),
    "fields the other way round": (
        example(
            feature(b"inputs", string(4, FOUR.tobytes()) + shape_of(2, 2) + number(1, 1)),
            string(1, string(2, string(1, string(1, OUTPUT))) + string(1, b"output")),
        ),
        FOUR,
        5,
    ),
    "unknown fields and features": (
        number(9, 1)
        + example(feature(b"id", b"\xff\xff", b"x"), feature(b"inputs", INPUTS + number(3, 1) + b"\x79" + bytes(8)))
        + example(string(7, b"?"), feature(b"output", b"\x7d" + bytes(4) + OUTPUT)),
        FOUR,
        5,
    ),
    "named axes": (
        example(
            feature(
                b"inputs",
                number(1, 1)
                + string(2, string(2, string(2, b"height") + number(1, 2)) + string(2, number(1, 2)))
                + string(4, FOUR.tobytes()),
            ),
            feature(b"output", OUTPUT),
        ),
        FOUR,
        5,
    ),
    "float_val packed": (
        example(feature(b"inputs", FLOAT_LIST + string(5, FOUR.tobytes())), feature(b"output", OUTPUT)),
        FOUR,
        5,
    ),
    "float_val one by one": (
        example(
            feature(b"inputs", FLOAT_LIST + b"".join(b"\x2d" + value.tobytes() for value in FOUR.ravel())),
            feature(b"output", OUTPUT),
        ),
        FOUR,
        5,
    ),
    "float_val in pieces": (
        example(
            feature(
                b"inputs", FLOAT_LIST + string(5, FOUR[0].tobytes()) + string(5, b"") + string(5, FOUR[1].tobytes())
            ),
            feature(b"output", OUTPUT),
        ),
        FOUR,
        5,
    ),
    "a lone float_val": (
        example(feature(b"inputs", FLOAT_LIST + string(5, struct.pack("<f", 2.5))), feature(b"output", OUTPUT)),
        np.full((2, 2), 2.5),
        5,
    ),
    "int_val packed": (
        example(feature(b"inputs", INPUTS), feature(b"output", SEVEN + string(2, b"") + string(7, varint(7)))),
        FOUR,
        7,
    ),
    "int_val": (example(feature(b"inputs", INPUTS), feature(b"output", SEVEN + number(7, 300))), FOUR, 300),
    "int_val of zero": (example(feature(b"inputs", INPUTS), feature(b"output", SEVEN + number(7, 0))), FOUR, 0),
    "int_val below zero": (example(feature(b"inputs", INPUTS), feature(b"output", SEVEN + number(7, -3))), FOUR, -3),
    "int64": (
        example(feature(b"inputs", INPUTS), feature(b"output", number(1, 9) + string(4, struct.pack("<q", -(2**40))))),
        FOUR,
        -(2**40),
    ),
    "int64_val": (
        example(feature(b"inputs", INPUTS), feature(b"output", number(1, 9) + number(10, -(2**63)))),
        FOUR,
        -(2**63),
    ),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_is_read(name: str, put: Callable[[bytes], Path]) -> None:
    record, inputs, output = ENCODINGS[name]
    x, y = everything(put(framed(record)))
    assert np.array_equal(x, np.asarray(inputs, np.float32)[None])
    assert y.tolist() == [output]


def test_encodings_may_be_mixed_in_one_shard(put: Callable[[bytes], Path]) -> None:
    cases = [*ENCODINGS.values()] * 2
    x, y = everything(put(framed(*(record for record, _, _ in cases))))
    assert np.array_equal(x, np.stack([np.asarray(inputs, np.float32) for _, inputs, _ in cases]))
    assert y.tolist() == [output for _, _, output in cases]


def test_records_alike_but_for_their_values_keep_their_own(put: Callable[[bytes], Path]) -> None:
    """Parsing is spared for these: a value that looks like a field must not matter."""
    tricky = [np.frombuffer(feature(b"inputs", b"")[:4] * 4, np.float32).reshape(2, 2), FOUR, FOUR.T, -FOUR]
    records = [
        example(
            feature(b"inputs", number(1, 1) + shape_of(2, 2) + string(4, values.tobytes())), feature(b"output", OUTPUT)
        )
        for values in tricky
    ]
    flat = example(feature(b"inputs", number(1, 1) + shape_of(4, 1) + string(4, bytes(16))), feature(b"output", OUTPUT))
    x, _ = everything(put(framed(*records)))
    assert x.tobytes() == np.stack(tricky).tobytes()
    path = put(framed(*records, flat))
    with pytest.raises(
        DataError, match=re.escape(f"{path}: record 4: inputs must have the shape (2, 2) of record 0, got (4, 1)")
    ):
        everything(path)


# --- damage ---------------------------------------------------------------------------------------


def with_inputs(tensor: bytes) -> bytes:
    return example(feature(b"inputs", tensor), feature(b"output", OUTPUT))


def with_output(tensor: bytes) -> bytes:
    return example(feature(b"inputs", INPUTS), feature(b"output", tensor))


CONTENT = string(4, FOUR.tobytes())
BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no feature inputs"),
    "no inputs": (example(feature(b"output", OUTPUT)), "no feature inputs"),
    "no output": (example(feature(b"inputs", INPUTS)), "no feature output"),
    "inputs twice": (GOOD + example(feature(b"inputs", INPUTS)), "duplicate feature inputs"),
    "no value": (example(feature(b"inputs"), feature(b"output", OUTPUT)), "must occur once, got 0 times"),
    "two values": (
        example(feature(b"inputs", INPUTS, INPUTS), feature(b"output", OUTPUT)),
        "must occur once, got 2 times",
    ),
    "integers": (example(string(1, string(1, b"inputs") + string(2, string(3, b"")))), "must occur once, got 0 times"),
    "no name": (example(string(1, string(2, b""))), "name of a feature must occur once, got 0 times"),
    "no type": (with_inputs(shape_of(2, 2) + CONTENT), "data type 1, got 0"),
    "type as bytes": (with_inputs(string(1, b"1") + shape_of(2, 2) + CONTENT), "inputs must have the data type"),
    "float64": (with_inputs(number(1, 2) + shape_of(2) + CONTENT), "data type 1, got 2"),
    "float output": (with_output(number(1, 1) + string(4, bytes(4))), "data type 3 or 9, got 1"),
    "output of one axis": (with_output(number(1, 3) + shape_of(1) + string(4, bytes(4))), "must be a scalar"),
    "scalar inputs": (with_inputs(number(1, 1) + string(4, bytes(4))), "at least one axis"),
    "five axes": (with_inputs(number(1, 1) + shape_of(1, 1, 1, 2, 2) + CONTENT), "at most 4 axes, got 5"),
    "very many axes": (with_inputs(number(1, 1) + shape_of(*[2**62] * 5000) + CONTENT), "at most 4 axes, got 5000"),
    "axis of no size": (with_inputs(number(1, 1) + shape_of(2, 0) + string(4, b"")), "at least one element"),
    "axis without a size": (with_inputs(number(1, 1) + string(2, string(2, b"")) + CONTENT), "at least one element"),
    "negative axis": (with_inputs(number(1, 1) + shape_of(-1, -4) + CONTENT), "negative"),
    "unknown rank": (with_inputs(number(1, 1) + string(2, number(3, 1)) + CONTENT), "the shape of inputs is unknown"),
    "content too short": (with_inputs(number(1, 1) + shape_of(2, 3) + CONTENT), "bytes, got 16"),
    "content too long": (with_inputs(number(1, 1) + shape_of(3) + CONTENT), "bytes, got 16"),
    "product that overflows": (with_inputs(number(1, 1) + shape_of(2**32, 2**32, 4) + CONTENT), "bytes, got 16"),
    "no content": (with_inputs(FLOAT_LIST), "4 values, got 0"),
    "two of four values": (with_inputs(FLOAT_LIST + string(5, bytes(8))), "4 values, got 2"),
    "float_val cut": (with_inputs(FLOAT_LIST + string(5, bytes(7))), "malformed"),
    "float_val as varint": (with_inputs(FLOAT_LIST + number(5, 1)), "malformed"),
    "int_val as float": (with_output(SEVEN + b"\x3d" + bytes(4)), "malformed"),
    "int_val too large": (with_output(SEVEN + number(7, 2**31)), "fit into int32"),
    "int_val cut": (with_output(SEVEN + string(7, b"\x80")), "varint"),
    "value for terabytes": (with_inputs(number(1, 1) + shape_of(2**40) + string(5, bytes(4))), "values, got 1"),
    "long varint": (with_inputs(b"\x08" + b"\x80" * 10 + b"\x01"), "varint"),
    "varint of 70 bits": (with_inputs(b"\x08" + b"\xff" * 9 + b"\x7f"), "varint"),
    "huge length": (b"\x0a" + varint(2**63), "longer than the message that contains it"),
    "content cut": (GOOD[:-2], "longer than the message that contains it"),
    "content and more": (GOOD + b"\x08", "varint"),
    "length one too many": (string(1, b"\x0a\x02\x0a"), "longer than the message that contains it"),
    "fixed64 cut": (GOOD + b"\x79" + bytes(7), "longer than the message that contains it"),
    "group": (GOOD + b"\x0b\x0c", "wire type 3"),
    "field 0": (GOOD + b"\x00\x00", "number 0"),
    "features as number": (number(1, 4), "wire type 2, got 0"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_bad_record_with_a_good_checksum_is_an_error(name: str, at: int, put: Callable[[bytes], Path]) -> None:
    record, message = BAD[name]
    path = put(framed(*[GOOD] * at, record, GOOD))
    with pytest.raises(DataError, match=re.escape(f"{path}: record {at}: ") + ".*" + re.escape(message)):
        everything(path)


def test_a_record_of_another_shape_is_an_error(put: Callable[[bytes], Path]) -> None:
    path = put(framed(GOOD, GOOD, with_inputs(number(1, 1) + shape_of(4) + CONTENT)))
    with pytest.raises(
        DataError, match=re.escape(f"{path}: record 2: inputs must have the shape (2, 2) of record 0, got (4,)")
    ):
        RecordDataset([path]).__getitems__([0, 1, 2])
    other = put(framed(with_inputs(number(1, 1) + shape_of(4) + CONTENT)))
    with pytest.raises(DataError, match=re.escape(str(other))):
        RecordDataset([put(framed(GOOD)), other])


def test_a_good_record_is_read_beside_a_damaged_one(put: Callable[[bytes], Path]) -> None:
    path = put(framed(GOOD, example(), GOOD))
    assert Shard(path).read([2, 0])[1].tolist() == [5, 5]


def test_every_flipped_byte_is_found(put: Callable[[bytes], Path]) -> None:
    whole = framed(GOOD, example(feature(b"output", OUTPUT), feature(b"inputs", INPUTS)), GOOD)
    path, size = put(whole), len(whole) // 3
    assert len(everything(path)[1]) == 3
    for at, mask in itertools.product(range(len(whole)), (0x01, 0x80, 0xFF)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
        with pytest.raises(DataError, match=re.escape(f"{path}: record {at // size}: ")):
            everything(path)


def test_every_truncation_is_found_but_at_the_ends_of_records(put: Callable[[bytes], Path]) -> None:
    """A shard that ends with a whole record is a sound, shorter one: the format does not tell how many there are."""
    whole = framed(GOOD, GOOD, GOOD)
    path, size = put(b""), len(whole) // 3
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length in (size, 2 * size):
            assert len(everything(path)[1]) == length // size
        else:
            with pytest.raises(DataError, match=re.escape(f"{path}: record {length // size}")):
                everything(path)


def test_a_declared_length_is_never_allocated(put: Callable[[bytes], Path]) -> None:
    length = struct.pack("<Q", 2**63)
    lone = number(1, 1) + shape_of(2**22 + 1) + string(5, bytes(4))
    contents = [length + struct.pack("<I", masked(length)) + bytes(40), framed(with_inputs(lone))]
    contents += [framed(BAD[name][0]) for name in ("huge length", "value for terabytes", "very many axes")]
    for path in [put(content) for content in contents]:
        tracemalloc.start()
        with pytest.raises(DataError, match=re.escape(f"{path}: record 0")):
            everything(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8e6


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda tail: framed(GOOD) + tail)))
def test_random_files_are_data_errors(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard_0.tfrecord"
        path.write_bytes(content)
        if content == framed(GOOD):
            return
        with pytest.raises(DataError, match=re.escape(str(path))):
            everything(path)


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A sound record of some encoding, with some bytes put in the place of others."""
    record = bytearray(draw(st.sampled_from([record for record, _, _ in ENCODINGS.values()])))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(record)))
        record[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(record)


@settings(deadline=None, max_examples=1000)
@given(st.lists(st.one_of(st.binary(max_size=80), mutants()), min_size=1, max_size=3))
def test_random_records_with_good_checksums_are_read_or_data_errors(records: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard_0.tfrecord"
        path.write_bytes(framed(*records))
        said = ""
        try:
            x, y = everything(path)
        except DataError as error:
            said = str(error)
        assert len(x) == len(y) == len(records) if not said else said.startswith(f"{path}: record ")


def test_a_file_that_changes_after_it_was_opened_is_an_error(put: Callable[[bytes], Path]) -> None:
    path = put(framed(*[GOOD] * 2000))
    data = RecordDataset([path])
    assert data[1999][1] == 5
    os.truncate(path, 5000)  # to read on from the mapping would be a bus error
    with pytest.raises(DataError, match=re.escape(str(path))):
        data[1999]
    with pytest.raises(DataError, match=re.escape(str(path))):
        pickle.loads(pickle.dumps(data))[0]


def test_files_that_cannot_be_opened_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    for name, message in [("none", "No such file"), ("empty", "empty"), ("folder", "directory"), ("a\0b", "null")]:
        with pytest.raises(DataError, match=message) as caught:
            Shard(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_arrays_that_cannot_be_written_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "shard_0.tfrecord"
    x, y = np.zeros((2, 3), np.float32), np.zeros(2, np.int64)
    cases: list[tuple[Any, Any]] = [
        (x.astype(np.float64), y),
        (x[:, :0], y),
        (x[:0], y[:0]),
        (x[0], y),
        (x.reshape(2, 1, 1, 1, 1, 3), y),
        (x, y[:1]),
        (x, y.astype(np.float32)),
        (x, y + 2**31),
        (x, y - 2**31 - 1),
    ]
    for inputs, outputs in cases:
        with pytest.raises(DataError, match=re.escape(str(path))):
            write_shard(path, inputs, outputs)
        assert not list(tmp_path.iterdir())


def test_a_shard_is_replaced_only_once_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shard_0.tfrecord"
    write_shard(path, np.ones((1, 3), np.float32), np.array([1]))
    calls = itertools.count()

    def failing(data: bytes) -> int:
        if next(calls) == 6:
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(google_crc32c, "value", failing)
    with pytest.raises(KeyboardInterrupt):
        write_shard(path, np.zeros((9, 3), np.float32), np.arange(9))
    monkeypatch.undo()
    assert everything(path)[1].tolist() == [1]
    assert list(tmp_path.iterdir()) == [path]


# --- folders and data sets ------------------------------------------------------------------------


def test_shards_come_by_number(folder: Path) -> None:
    (folder / "shard_3.tfrecord.part").touch()
    (folder / "notes.txt").touch()
    assert [path.name for path in shards_of(folder)] == [f"shard_{n}.tfrecord" for n in range(11)]
    data = RecordDataset(shards_of(folder))
    assert [int(y) for _, y in data.__getitems__(range(len(data)))] == list(range(len(data)))


def test_gaps_and_folders_without_shards_are_errors(tmp_path: Path) -> None:
    def check(message: str) -> None:
        with pytest.raises(DataError, match=re.escape(str(tmp_path)) + ".*" + message):
            shards_of(tmp_path)

    check("no shards")
    (tmp_path / "shard_2.tfrecord").touch()
    check("shard_0 is missing")
    (tmp_path / "shard_0.tfrecord").touch()
    check("shard_1 is missing")
    (tmp_path / "shard_1.tfrecord").touch()
    assert len(shards_of(tmp_path)) == 3
    (tmp_path / "shard_01.tfrecord").touch()
    check("duplicate shard_1")
    with pytest.raises(DataError, match="nowhere"):
        shards_of(tmp_path / "nowhere")
    with pytest.raises(DataError, match="at least one"):
        RecordDataset([])


def test_any_order_of_records_across_shards(folder: Path) -> None:
    data = RecordDataset(shards_of(folder))
    order = [*torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist(), 0, 0, -1]
    for (x, y), index in zip(data.__getitems__(order), order, strict=True):
        alone = data[index]
        assert int(y) == index % len(data)
        assert torch.equal(x, alone[0])
        assert torch.equal(y, alone[1])
    assert data.__getitems__([]) == []
    assert sum(1 for _ in iter(data)) == len(data)  # ends with IndexError
    for index in (len(data), -len(data) - 1):
        with pytest.raises(IndexError, match=str(index)):
            data[index]
    shard = Shard(folder / "shard_0.tfrecord")
    assert [array.shape for array in shard.read([])] == [(0, 5, 4, 3), (0,)]
    for index in (len(shard), -1):
        with pytest.raises(IndexError, match="shard_0"):
            shard.read([index])


def same(first: Sequence[Sequence[Tensor]], second: Sequence[Sequence[Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize(("method", "used"), [("fork", False), ("fork", True), ("spawn", True)])
def test_workers_give_the_same(folder: Path, method: str, used: bool) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"processes are not started by {method} here")
    data = RecordDataset(shards_of(folder))
    alone = list(DataLoader(data, batch_size=6)) if used else list(DataLoader(RecordDataset(shards_of(folder)), 6))
    loader = DataLoader(data, batch_size=6, num_workers=2, multiprocessing_context=method)
    assert same(list(loader), alone)
    assert alone[0][0].shape == (6, 3, 5, 4)


def test_pickled_data_are_the_same(folder: Path) -> None:
    data = RecordDataset(shards_of(folder))
    indices = range(len(data))
    unused = pickle.loads(pickle.dumps(data))
    pairs = data.__getitems__(indices)
    used = pickle.loads(pickle.dumps(data))
    assert same(unused.__getitems__(indices), pairs)
    assert same(used.__getitems__(indices), pairs)
    assert len(pickle.dumps(data)) < 20_000


def handles() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files cannot be counted here")
def test_files_are_closed(folder: Path, put: Callable[[bytes], Path]) -> None:
    before = handles()
    data = RecordDataset(shards_of(folder))
    assert handles() == before  # none until a record is asked for
    for _ in range(5):
        data.__getitems__(range(len(data)))
    assert handles() == before + 11
    del data
    assert handles() == before
    damaged = framed(GOOD)[:-1]
    for _ in range(20):
        with pytest.raises(DataError, match="record 0"):
            Shard(put(damaged))
    assert handles() == before


def test_only_what_is_asked_for_is_in_memory(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).normal(size=(400, 64, 64, 3)).astype(np.float32)  # 20 MB
    write_shard(tmp_path / "s", inputs, np.arange(400))
    tracemalloc.start()
    data = RecordDataset([tmp_path / "s"])
    for start in range(0, 400, 8):
        data.__getitems__(range(start, start + 8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6
