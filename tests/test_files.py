"""Files written atomically, and what killed processes leave."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from genmeasures import files
from genmeasures.files import remove_stale_temporaries, temporary_path, write_atomically

DAYS = 24 * 60 * 60


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"one", bytes(range(256)) * 5000])
def test_content_is_written_and_replaced(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "result.nc"
    write_atomically(path, b"before")
    write_atomically(path, content)
    assert path.read_bytes() == content
    assert names(tmp_path) == ["result.nc"]


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "with space", "[bracket]", ".hidden", "a.1.tmp", "x=1,y=2"])
def test_any_name_that_the_file_system_takes(name: str, tmp_path: Path) -> None:
    write_atomically(tmp_path / name, b"content")
    assert (tmp_path / name).read_bytes() == b"content"
    assert names(tmp_path) == [name]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "shared", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no space"), OSError(errno.EIO, "broken"), KeyboardInterrupt()]
)
def test_failure_leaves_what_was_there(
    call: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        write_atomically(path, b"after")
    monkeypatch.undo()
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["file"]


def test_write_that_stops_midway_leaves_what_was_there(tmp_path: Path) -> None:
    # The limit of file sizes stands for a full disk: the kernel takes the first bytes and refuses the others.
    path = tmp_path / "file"
    path.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomically(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["file"]


def test_file_system_without_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EINVAL, "not supported")

    monkeypatch.setattr(os, "fsync", fail)
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_missing_folder_and_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"")
    assert names(tmp_path) == ["folder"]


def test_writers_of_one_file_with_equal_process_ids_do_not_collide(tmp_path: Path) -> None:
    # Threads stand for containers that share a folder, where process ids are equal.
    path = tmp_path / "shared.pt"
    contents = [letter * 10_000 for letter in (b"a", b"b", b"c")]

    def write_often(content: bytes) -> None:
        for _ in range(100):
            write_atomically(path, content)

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write_often, content) for content in contents]
        while not all(writer.done() for writer in writers):
            if path.exists():
                assert path.read_bytes() in contents  # never parts of two
        for writer in writers:
            writer.result()
    assert names(tmp_path) == ["shared.pt"]


def test_temporary_names_are_unique_and_lie_beside(tmp_path: Path) -> None:
    made = {temporary_path(tmp_path / "file") for _ in range(100)}
    assert len(made) == 100
    assert {path.parent for path in made} == {tmp_path}
    assert all(path.name.startswith(".file.") and f".{os.getpid()}." in path.name for path in made)


def dead_process() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def temporary_of(path: Path, pid: int, monkeypatch: pytest.MonkeyPatch, host: str | None = None) -> Path:
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid)
        if host is not None:
            patch.setattr(files, "_host", lambda: host)
        return temporary_path(path)


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from genmeasures.files import write_atomically\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), b'content')"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], check=False)
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    assert remove_stale_temporaries(tmp_path) == [left]
    assert names(tmp_path) == []


def test_what_has_a_living_owner_or_may_have_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = dead_process()
    path = tmp_path / "net.v1.pt"
    kept = [
        temporary_path(path),
        temporary_of(path, os.getppid(), monkeypatch),
        temporary_of(path, 1, monkeypatch),
        temporary_of(path, 9_999_999_999, monkeypatch),  # no id of this system
        temporary_of(path, dead, monkeypatch, "other-machine"),
        tmp_path / ".net.pt.tmp",
        tmp_path / f"net.{dead}.0123456789abcdef.tmp",
        tmp_path / f".net.pt.{dead}.part",
        path,
    ]
    for one in kept:
        one.write_bytes(b"content")
    stale = temporary_of(path, dead, monkeypatch)
    stale.write_bytes(b"half")
    folder = temporary_of(tmp_path / "unpacked", dead, monkeypatch)
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_bytes(b"half")
    assert sorted(remove_stale_temporaries(tmp_path)) == sorted([stale, folder])
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_day_old_is_stale_whoever_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    made = {"old": temporary_of(path, 5, monkeypatch, "other"), "new": temporary_of(path, 5, monkeypatch, "other")}
    made["mine"] = temporary_path(path)
    other = tmp_path / ".other.tmp"
    for one in (*made.values(), other):
        one.write_bytes(b"half")
    for one, age in ((made["old"], 1.01), (made["new"], 0.99), (made["mine"], 1.01), (other, 30)):
        os.utime(one, (time.time() - age * DAYS,) * 2)
    assert sorted(remove_stale_temporaries(tmp_path)) == sorted([made["old"], made["mine"]])
    assert sorted(tmp_path.iterdir()) == sorted([made["new"], other])


def test_link_in_the_place_of_a_temporary_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "precious").write_bytes(b"content")
    link = temporary_of(inside / "file", dead_process(), monkeypatch)
    link.symlink_to(outside, target_is_directory=True)
    assert remove_stale_temporaries(inside) == [link]
    assert names(outside) == ["precious"]


def test_missing_folder_has_no_temporaries(tmp_path: Path) -> None:
    assert remove_stale_temporaries(tmp_path / "missing") == []
