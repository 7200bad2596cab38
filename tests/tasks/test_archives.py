"""Archives that were made to do harm: they fill no memory or disk, and write nowhere but in their folder."""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from genmeasures.errors import DataError, ModelError
from genmeasures.files import temporary_path
from genmeasures.tasks import PGDL, arrays
from genmeasures.tasks.archives import TRUST_VARIABLE, check_sizes
from genmeasures.tasks.pgdl.folders import unpack
from genmeasures.tasks.weight_files import read_weight_file

CONFIG = "task/model_1/config.json"
LARGE = 2**28
"""Bytes from which on it matters how much an entry is compressed."""


def write_zeros(archive: zipfile.ZipFile, name: str, size: int = LARGE, head: bytes = b"") -> None:
    with archive.open(name, "w", force_zip64=True) as entry:
        entry.write(head)
        for _ in range(size // 2**24):
            entry.write(bytes(2**24))


def compressed(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of 2 MB with an entry of 256 MiB of zeros."""
    path = tmp_path_factory.mktemp("bombs") / "bomb.zip"
    with compressed(path) as made:
        made.writestr(CONFIG, "{}")
        write_zeros(made, "task/model_1/weights.hdf5")
    assert path.stat().st_size < 2**21
    return path


@pytest.fixture(autouse=True)
def no_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)


def test_bomb_is_refused_and_can_be_allowed(bomb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = PGDL(bomb, cache=str(tmp_path / "cache"))
    with pytest.raises(
        DataError, match=r"bomb\.zip .* unpack to 0\.3 GB, .* set the environment variable GENMEASURES_TRUST_ARCHIVES=1"
    ):
        task.models()
    assert not list(tmp_path.rglob("*"))
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    folder = unpack(bomb, tmp_path / "cache")
    assert (folder / "task/model_1/weights.hdf5").stat().st_size == LARGE


def test_bomb_among_honest_entries_and_entries_that_share_their_bytes(bomb: Path, tmp_path: Path) -> None:
    with compressed(tmp_path / "a.zip") as made:
        made.writestr("task/noise", np.random.default_rng(0).bytes(2**23))  # brings all down to 25 times
        write_zeros(made, "task/zeros")
    with pytest.raises(DataError, match=r"a\.zip .*GENMEASURES_TRUST_ARCHIVES"):
        check_sizes(tmp_path / "a.zip", DataError)
    # Many small entries, each compressed a thousand times, too.
    with compressed(tmp_path / "b.zip") as made:
        for number in range(17):
            write_zeros(made, f"task/{number}", 2**24)
    with pytest.raises(DataError, match=r"b\.zip .*GENMEASURES_TRUST_ARCHIVES"):
        check_sizes(tmp_path / "b.zip", DataError)
    # 64 names for the same bytes, compressed 8 times each.
    with compressed(tmp_path / "c.zip") as made:
        made.writestr("one", bytes(7 * 2**20) + np.random.default_rng(0).bytes(2**20))
        for number in range(63):
            other = zipfile.ZipInfo(f"other{number}")
            for name in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(other, name, getattr(made.filelist[0], name))
            made.filelist.append(other)
        made._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"c\.zip .*GENMEASURES_TRUST_ARCHIVES"):
        check_sizes(tmp_path / "c.zip", DataError)


def test_honest_archives_are_taken(tmp_path: Path) -> None:
    with compressed(tmp_path / "small.zip") as made:
        write_zeros(made, "zeros", LARGE - 2**24)  # any ratio, below the size that matters
    check_sizes(tmp_path / "small.zip", DataError)
    with zipfile.ZipFile(tmp_path / "stored.zip", "w") as made:
        write_zeros(made, "zeros")
    check_sizes(tmp_path / "stored.zip", DataError)
    (tmp_path / "text").write_text("no archive")  # its reader says what is wrong
    check_sizes(tmp_path / "text", DataError)
    check_sizes(tmp_path / "missing", DataError)


def test_arrays_that_unpack_to_much_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.npz"
    count = LARGE // 8
    with compressed(path) as made:
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({count}, 1), }}".ljust(117) + "\n"
        head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
        write_zeros(made, "zeros.npy", LARGE, head)
        with made.open("x.npy", "w") as entry:
            np.lib.format.write_array(entry, np.ones((3, 2)))
    with pytest.raises(DataError, match=r"data\.npz .*GENMEASURES_TRUST_ARCHIVES=1"):
        arrays.load(arrays.ArraySpec(path, "zeros"))
    x = arrays.load(arrays.ArraySpec(path, "x"))[0]  # what is not read does no harm
    assert x.shape == (3, 2)
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    zeros = arrays.load(arrays.ArraySpec(path, "zeros"))[0]
    assert zeros.shape == (count, 1)
    assert not zeros.any()


def test_weights_that_unpack_to_much_more(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "net.pt")
    with zipfile.ZipFile(tmp_path / "net.pt") as sound, compressed(tmp_path / "bomb.pt") as made:
        for entry in sound.infolist():
            made.writestr(entry.filename, sound.read(entry))
        write_zeros(made, "net/data/1")
    read_weight_file(tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"bomb\.pt .*GENMEASURES_TRUST_ARCHIVES=1"):
        read_weight_file(tmp_path / "bomb.pt")


def refused(archive: Path, folder: Path, match: str) -> None:
    with pytest.raises(DataError, match=match):
        PGDL(archive, cache=str(folder / "cache")).models()
    assert not [path for path in folder.rglob("*") if path.is_file() and path != archive]


@pytest.mark.parametrize("name", ["../evil", "task/../../../evil", "/tmp/genmeasures-evil", "..\\evil", "C:\\evil"])
def test_names_that_leave_the_folder(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr(CONFIG, "{}")
        made.writestr(zipfile.ZipInfo(name), "x")
    refused(archive, tmp_path, "leaves the archive's folder, nothing was unpacked")
    assert not Path("/tmp/genmeasures-evil").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_entries_that_are_no_files(kind: int, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        entry = zipfile.ZipInfo("task/model_1")
        entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
        made.writestr(entry, "/etc")
        made.writestr(CONFIG, "{}")
    refused(archive, tmp_path, "leaves the archive's folder, nothing was unpacked")


@pytest.mark.parametrize("second", [CONFIG, "./" + CONFIG, "task//model_1/config.json", "task/Model_1/CONFIG.json"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_are_there_twice(second: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr(CONFIG, "{}")
        made.writestr(second, "[]")
    refused(archive, tmp_path, "is there twice, nothing was unpacked")


def test_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("task/model_1", "x")
        made.writestr(CONFIG, "{}")
    refused(archive, tmp_path, r"a\.zip cannot be unpacked")


def test_other_archives_are_named(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as made:
        device = tarfile.TarInfo("task/model_1/config.json")
        device.type = tarfile.CHRTYPE
        made.addfile(device)
    refused(archive, tmp_path, r"a\.tar is not a zip archive, or damaged")


def test_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr(CONFIG, "{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable, given, root in (
        (None, None, tmp_path / "home/.cache/genmeasures"),
        (str(tmp_path / "shared"), None, tmp_path / "shared"),
        ("~/mine", None, tmp_path / "home/mine"),
        (str(tmp_path / "shared"), str(tmp_path / "given"), tmp_path / "given"),
    ):
        monkeypatch.delenv("GENMEASURES_CACHE", raising=False)
        if variable is not None:
            monkeypatch.setenv("GENMEASURES_CACHE", variable)
        before = set(tmp_path.rglob("config.json"))
        assert PGDL(tmp_path / "a.zip", cache=given).label == "task"
        (new,) = set(tmp_path.rglob("config.json")) - before
        assert new.is_relative_to(root / "pgdl")


def test_folders_of_killed_unpackings_are_removed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr(CONFIG, "{}")
    cache = tmp_path / "cache"
    left, going_on = (temporary_path(cache / "a-0123") for _ in range(2))
    for folder in (left, going_on):
        (folder / "task").mkdir(parents=True)
    os.utime(left, (0, 0))
    folder = unpack(tmp_path / "a.zip", cache)
    assert sorted(cache.iterdir()) == sorted([going_on, folder])


def test_unpacking_is_done_once_whoever_is_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr(CONFIG, "{}")
    cache = tmp_path / "cache"
    folder = unpack(tmp_path / "a.zip", cache)
    before = (folder / CONFIG).stat().st_mtime_ns
    # Another process finds nothing and has unpacked it all when the first one's folder is in place.
    is_dir = Path.is_dir
    asked: list[Path] = []

    def not_yet(path: Path) -> bool:
        asked.append(path)
        return is_dir(path) and not (path == folder and asked.count(folder) == 1)

    monkeypatch.setattr(Path, "is_dir", not_yet)
    assert unpack(tmp_path / "a.zip", cache) == folder
    assert asked.count(folder) == 2
    assert [one.name for one in cache.iterdir()] == [folder.name]
    assert (folder / CONFIG).stat().st_mtime_ns == before
