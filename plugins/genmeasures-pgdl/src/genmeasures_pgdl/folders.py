"""Where the files of tasks lie: in a task's folder, a folder above it, or an archive as it is downloaded."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from genmeasures.plugin import DataError, OptionError, check_sizes, nearest, remove_stale_temporaries, temporary_path

_CONFIGS = "model_configs.json"
_MODEL = re.compile(r"model_(\d+)")


@dataclass(frozen=True)
class TaskFolder:
    """One task on disk."""

    name: str
    folder: Path
    configs: Path

    def model_ids(self) -> list[str]:
        """Ids of the folders model_<id>, by number."""
        found = (_MODEL.fullmatch(one.name) for one in self.folder.iterdir() if one.is_dir())
        return sorted((match[1] for match in found if match), key=int)


def find_tasks(path: Path, cache: Path) -> dict[str, TaskFolder]:
    """The tasks below a path by name, sorted: a task's folder, one above it, one with input_data, or a zip of these.

    Archives are unpacked once, below ``cache``. Raises DataError naming the path.
    """
    # A relative path has neither name nor parents to look in.
    path = path.expanduser().resolve()
    if path.is_file():
        path = unpack(path, cache)
    if not path.is_dir():
        raise DataError(f"there is no folder or zip archive {path}")
    if _is_task(path):
        return {path.name: _task(path)}
    for folder in (path / "input_data", path, *sorted(one for one in path.iterdir() if one.is_dir())):
        # An archive may have one more folder around everything.
        inner = folder / "input_data" if (folder / "input_data").is_dir() else folder
        tasks = sorted(one for one in inner.iterdir() if _is_task(one)) if inner.is_dir() else []
        if tasks:
            return {one.name: _task(one) for one in tasks}
    raise DataError(f"{path} holds no PGDL task: no folder with model_<id>/config.json")


def choose_task(path: Path, which: str | None, cache: Path) -> TaskFolder:
    """The task of that name below a path; without a name, the only one. Raises OptionError listing them."""
    tasks = find_tasks(path, cache)
    if which is None:
        if len(tasks) > 1:
            raise OptionError(f"{path} holds the tasks {', '.join(tasks)}: choose one with which=")
        return next(iter(tasks.values()))
    if which not in tasks:
        raise OptionError(f"{path} holds no task {which!r}{nearest(which, tasks)}")
    return tasks[which]


def unpack(archive: Path, cache: Path) -> Path:
    """The folder below ``cache`` with what is in a zip archive, unpacked if it is not there yet.

    Raises DataError naming the archive: damaged, with an entry that would lie outside of the folder or is no file,
    or so much compressed that it must have been made to fill the disk.
    """
    about = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()}|{about.st_size}|{about.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache / f"{archive.stem}-{key}"
    remove_stale_temporaries(cache)
    if folder.is_dir():
        return folder
    check_sizes(archive, DataError)
    beside = temporary_path(folder)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
    except OSError as error:
        raise DataError(f"{archive} cannot be unpacked into {cache}: {error.strerror or error}") from error
    try:
        with zipfile.ZipFile(archive) as content:
            _check_entries(content.infolist(), archive)
            needed = sum(entry.file_size for entry in content.infolist())
            if needed > shutil.disk_usage(cache).free:
                raise DataError(f"{archive} needs {needed / 1e9:.1f} GB unpacked, more than is free in {cache}")
            content.extractall(beside)
        os.replace(beside, folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{archive} is not a zip archive, or damaged: {error}") from error
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise DataError(f"{archive} cannot be unpacked into {cache}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _check_entries(entries: Sequence[zipfile.ZipInfo], archive: Path) -> None:
    """Refuse names that leave the folder, that are there twice, and whatever is neither a file nor a folder."""
    seen: set[str] = set()
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        outside = "\\" in name or ":" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
        if outside or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{archive}: the entry {name!r} leaves the archive's folder, nothing was unpacked")
        # Where case does not matter, the second of two names would take the place of the first.
        folded = str(PurePosixPath(name)).casefold()
        if folded in seen and not entry.is_dir():
            raise DataError(f"{archive}: the entry {name!r} is there twice, nothing was unpacked")
        seen.add(folded)


def _is_task(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("model_*/config.json"))


def _task(folder: Path) -> TaskFolder:
    places = [
        folder / _CONFIGS,
        folder.parent / "reference_data" / folder.name / _CONFIGS,
        folder.parent.parent / "reference_data" / folder.name / _CONFIGS,
    ]
    return TaskFolder(folder.name, folder, next((place for place in places if place.is_file()), places[0]))
