"""Trainings that are kept: read as they were written or not at all, whatever happened to the file."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genmeasures.errors import OptionError
from genmeasures.files import temporary_path
from genmeasures.tasks import DigitsCNN
from genmeasures.tasks.cache import load_checkpoint, save_checkpoint

CONTENT = {
    "epoch": 2,
    "state_dict": {f"layer{n}.weight": torch.arange(n, n + 6.0).reshape(2, 3) for n in range(3)},
    "metrics": {"train_accuracy": 0.75, "test_accuracy": 0.5},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def unchanged_or_refused(path: Path, content: bytes) -> bool:
    """Whether it was read. Another value fails the test, and any exception but ValueError."""
    path.write_bytes(content)
    try:
        read = load_checkpoint(path)
    except ValueError:
        return False
    assert same(read, CONTENT)
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "kept.pt", CONTENT)
    assert same(load_checkpoint(tmp_path / "kept.pt"), CONTENT)
    return tmp_path / "kept.pt"


def test_no_flipped_bit_changes_a_value(path: Path) -> None:
    sound = path.read_bytes()
    bits = np.random.default_rng(0).choice(8 * len(sound), 400, replace=False)
    read = 0
    for bit in bits:
        content = bytearray(sound)
        content[bit // 8] ^= 1 << (bit % 8)
        read += unchanged_or_refused(path, bytes(content))
    assert 0 < read < 300  # dates and padding tell nothing


def test_an_entry_that_a_flipped_bit_makes_a_folder(path: Path) -> None:
    # Torch leaves its tensor as the memory was. The attributes lie 8 bytes before the name in the directory.
    sound = path.read_bytes()
    start = sound.index(b"PK\x01\x02")
    place = sound.index(b"archive/data/1", start) - 8
    content = bytearray(sound)
    content[place] ^= 0x10
    assert unchanged_or_refused(path, bytes(content))


def test_cut_and_zeroed_files(path: Path) -> None:
    sound = path.read_bytes()
    for size in np.random.default_rng(0).integers(0, len(sound), 40):
        assert not unchanged_or_refused(path, sound[:size])
    for start in (0, len(sound) // 2, len(sound) - 30):
        assert not unchanged_or_refused(path, sound[:start] + bytes(len(sound) - start))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"kept\.pt is damaged"):
        load_checkpoint(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "missing.pt")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "file" / "kept.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(ValueError, match=r"folder\.pt is damaged"):
        load_checkpoint(tmp_path / "folder.pt")
    with pytest.raises(OptionError, match=r"cannot write .*folder\.pt: .*GENMEASURES_CACHE"):
        save_checkpoint(tmp_path / "folder.pt", CONTENT)


def test_many_writers_of_one_file(tmp_path: Path) -> None:
    # Threads have one process id, as containers that share a cache can have.
    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(save_checkpoint, tmp_path / "kept.pt", {"epoch": n, "again": n}) for n in range(60)]
        for writer in writers:
            writer.result()
    kept = load_checkpoint(tmp_path / "kept.pt")
    assert kept["epoch"] == kept["again"]
    assert [one.name for one in tmp_path.iterdir()] == ["kept.pt"]


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    task = DigitsCNN(cache=str(tmp_path), workers=1, limit=1)
    task.models()
    (checkpoint, *_) = sorted(tmp_path.rglob("digits_cnn/**/*.pt"))
    stale, current = temporary_path(checkpoint), temporary_path(checkpoint)
    for path in (stale, current):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    task.models()
    assert not stale.exists()
    assert current.exists()
