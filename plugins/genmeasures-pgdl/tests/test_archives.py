"""Archives of tasks, including malicious ones, which must not fill the disk or write outside of their folder."""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from genmeasures_pgdl import PGDL
from genmeasures_pgdl.folders import unpack

from genmeasures.plugin import DataError, temporary_path

CONFIG = "task/model_1/config.json"
LARGE = 2**28
"""Bytes from which on it matters how much an entry is compressed."""
TRUST_VARIABLE = "GENMEASURES_TRUST_ARCHIVES"


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of 2 MB with an entry of 256 MiB of zeros."""
    path = tmp_path_factory.mktemp("bombs") / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(CONFIG, "{}")
        with archive.open("task/model_1/weights.hdf5", "w", force_zip64=True) as entry:
            for _ in range(LARGE // 2**24):
                entry.write(bytes(2**24))
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
    refused(archive, tmp_path, "lies outside the archive's folder or is not a file; nothing is unpacked")
    assert not Path("/tmp/genmeasures-evil").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_entries_that_are_not_files(kind: int, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        entry = zipfile.ZipInfo("task/model_1")
        entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
        made.writestr(entry, "/etc")
        made.writestr(CONFIG, "{}")
    refused(archive, tmp_path, "lies outside the archive's folder or is not a file; nothing is unpacked")


@pytest.mark.parametrize("second", [CONFIG, "./" + CONFIG, "task//model_1/config.json", "task/Model_1/CONFIG.json"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_names(second: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr(CONFIG, "{}")
        made.writestr(second, "[]")
    refused(archive, tmp_path, "duplicate entry .*; nothing is unpacked")


def test_a_file_where_a_folder_is_expected(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("task/model_1", "x")
        made.writestr(CONFIG, "{}")
    refused(archive, tmp_path, r"cannot unpack .*a\.zip into .*cache")


def test_other_archives_are_named(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as made:
        device = tarfile.TarInfo("task/model_1/config.json")
        device.type = tarfile.CHRTYPE
        made.addfile(device)
    refused(archive, tmp_path, r"a\.tar is damaged or not a zip archive")


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


def test_concurrent_unpacking_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
