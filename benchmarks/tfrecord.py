"""Speed of reading TFRecord shards, compared with a plain Python loop: ``python -m benchmarks.run tfrecord``."""

from __future__ import annotations

import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from genmeasures_pgdl.tfrecord import RecordDataset, write_shard
from torch import Tensor

_BATCH = 128
_IMAGE = (32, 32, 3)
_ALONE = 0.1
"""Fraction of the images that the plain loop reads; its time is proportional to their number."""


def _table() -> list[int]:
    """crc32c of each byte; the reflected polynomial is 0x82F63B78."""
    table = list(range(256))
    for _ in range(8):
        table = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in table]
    return table


_TABLE = _table()


def _masked(data: bytes) -> int:
    table, crc = _TABLE, 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF


def _records(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while head := file.read(12):
            length, crc = struct.unpack("<QI", head)
            assert _masked(head[:8]) == crc
            data = file.read(length)
            assert _masked(data) == struct.unpack("<I", file.read(4))[0]
            yield data


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        value: int | bytes = varint()
        if tag & 7 == 2:
            value, at = data[at : at + int(value)], at + int(value)
        yield tag >> 3, value


def _inside(data: bytes | int, *path: int) -> list[bytes | int]:
    """All values at a path of nested fields."""
    if not path:
        return [data]
    assert isinstance(data, bytes)
    return [inner for number, value in _fields(data) if number == path[0] for inner in _inside(value, *path[1:])]


def plain(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and classes (N,), read by a short plain reader."""
    images, classes = [], []
    for data in _records(path):
        tensors = {}
        for entry in _inside(data, 1, 1):
            tensors[_inside(entry, 1)[0]] = _inside(entry, 2, 1, 1)[0]
        shape = [int(size) for size in _inside(tensors[b"inputs"], 2, 2, 1)]
        content, label = (_inside(tensors[name], 4)[0] for name in (b"inputs", b"output"))
        assert isinstance(content, bytes)
        assert isinstance(label, bytes)
        image = torch.from_numpy(np.frombuffer(content, "<f4").reshape(shape).copy())
        images.append(image.movedim(-1, 0).contiguous())
        classes.append(struct.unpack("<i", label)[0])
    return torch.stack(images), torch.tensor(classes)


def tfrecord(fraction: float) -> dict[str, float]:
    """Images of 32 × 32 in batches of 128 with all checksums verified and a new index, compared with the plain loop."""
    count = max(20, int(10_000 * fraction))
    rng = np.random.default_rng(0)
    images = rng.standard_normal((count, *_IMAGE), np.float32)
    classes = rng.integers(0, 10, count)
    few = max(2, int(count * _ALONE))
    with tempfile.TemporaryDirectory() as folder:
        path, short = Path(folder) / "shard_0.tfrecord", Path(folder) / "shard_1.tfrecord"
        write_shard(path, images, classes)
        write_shard(short, images[:few], classes[:few])
        RecordDataset([short]).__getitems__(range(few))
        seconds = []
        for _ in range(3):
            begin = time.perf_counter()
            data = RecordDataset([path])
            for start in range(0, count, _BATCH):
                pairs = data.__getitems__(range(start, min(count, start + _BATCH)))
            seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        x, y = plain(short)
        theirs = (time.perf_counter() - begin) * count / few
        ours = data.__getitems__(range(few))
    assert len(pairs) == (count - 1) % _BATCH + 1
    assert torch.equal(x, torch.stack([image for image, _ in ours]))
    assert torch.equal(y, torch.stack([label for _, label in ours]))
    middle = float(np.median(seconds))
    return {"seconds": middle, "plain": theirs, "megabytes": images.nbytes / 1e6 / middle, "faster": theirs / middle}
