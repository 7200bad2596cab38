"""Tasks on disk: a task's folder, a folder above it, or an archive as downloaded."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from genmeasures.plugin import (
    DataError,
    OptionError,
    check_sizes,
    nearest,
    remove_stale_temporaries,
    write_folder_atomically,
)

_CONFIGS = "model_configs.json"
_MODEL = re.compile(r"model_(\d+)")


@dataclass(frozen=True)
class TaskFolder:
    """One task on disk.

    Attributes:
        name: name of the task, which is the name of its folder.
        folder: folder with ``model_<id>`` and ``dataset_1``.
        configs: the file ``model_configs.json``, in the folder or in ``reference_data``; it may be absent.
    """

    name: str
    folder: Path
    configs: Path

    def model_ids(self) -> list[str]:
        """Ids of the folders ``model_<id>``, sorted by number."""
        matches = (_MODEL.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir())
        return sorted((match[1] for match in matches if match), key=int)


def find_tasks(path: Path, cache: Path) -> dict[str, TaskFolder]:
    """Find the tasks at a path.

    Args:
        path: a task's folder, a folder above it, one with ``input_data``, or a zip archive of any of these.
        cache: folder that archives are unpacked into, once each.

    Returns:
        The tasks by name, sorted.

    Raises:
        DataError: there is no task; the message names the path.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = Path(folder) / "task1_v4" / "model_0"
        ...     model.mkdir(parents=True)
        ...     _ = (model / "config.json").write_text("{}")
        ...     list(find_tasks(Path(folder), cache=Path(folder)))
        ['task1_v4']
    """
    # A relative path has neither a name nor parents to search.
    path = path.expanduser().resolve()
    if path.is_file():
        path = unpack(path, cache)
    if not path.is_dir():
        raise DataError(f"there is no folder or zip archive {path}")
    if _is_task(path):
        return {path.name: _task(path)}
    for folder in (path / "input_data", path, *sorted(entry for entry in path.iterdir() if entry.is_dir())):
        # An archive may have one more folder around everything.
        inner = folder / "input_data" if (folder / "input_data").is_dir() else folder
        tasks = sorted(entry for entry in inner.iterdir() if _is_task(entry)) if inner.is_dir() else []
        if tasks:
            return {task.name: _task(task) for task in tasks}
    raise DataError(f"{path} holds no PGDL task: expected a folder with model_<id>/config.json")


def choose_task(path: Path, which: str | None, cache: Path) -> TaskFolder:
    """Find the task of a name at a path.

    Args:
        path: as in :func:`find_tasks`.
        which: name of the task; None if there is only one.
        cache: as in :func:`find_tasks`.

    Raises:
        OptionError: there is no task of that name, or there are several and no name is given.
        DataError: there is no task.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = Path(folder) / "task1_v4" / "model_0"
        ...     model.mkdir(parents=True)
        ...     _ = (model / "config.json").write_text("{}")
        ...     choose_task(Path(folder), None, cache=Path(folder)).model_ids()
        ['0']
    """
    tasks = find_tasks(path, cache)
    if which is None:
        if len(tasks) > 1:
            raise OptionError(f"{path} holds the tasks {', '.join(tasks)}: choose one with which=")
        return next(iter(tasks.values()))
    if which not in tasks:
        raise OptionError(f"{path} holds no task {which!r}{nearest(which, tasks)}")
    return tasks[which]


def unpack(archive: Path, cache: Path) -> Path:
    """Unpack a zip archive into a folder below ``cache``, unless that was done before.

    Args:
        archive: the zip file.
        cache: folder that is created if needed.

    Returns:
        The folder with the contents. Its name depends on the path, size and modification time of the archive.

    Raises:
        DataError: the archive is damaged, an entry leaves the folder or is neither a file nor a folder, the contents
            do not fit on the disk, or the compression ratio is that of a zip bomb.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     archive = Path(folder) / "task1.zip"
        ...     with zipfile.ZipFile(archive, "w") as content:
        ...         content.writestr("model_0/config.json", "{}")
        ...     (unpack(archive, Path(folder) / "cache") / "model_0" / "config.json").read_text()
        '{}'
    """
    about = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()}|{about.st_size}|{about.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache / f"{archive.stem}-{key}"
    remove_stale_temporaries(cache)
    if folder.is_dir():
        return folder
    check_sizes(archive, DataError)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with write_folder_atomically(folder) as temporary, zipfile.ZipFile(archive) as content:
            _check_entries(content.infolist(), archive)
            size = sum(entry.file_size for entry in content.infolist())
            free = shutil.disk_usage(cache).free
            if size > free:
                raise DataError(
                    f"{archive} needs {size / 1e9:.1f} GB unpacked, {cache} has {free / 1e9:.1f} GB left: "
                    "give another folder as cache"
                )
            content.extractall(temporary)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{archive} is damaged or not a zip archive: {error}") from error
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was faster
            reason = error.strerror or error
            message = f"cannot unpack {archive} into {cache}: {reason}; give another folder as cache"
            raise DataError(message) from error
    return folder


def _check_entries(entries: Sequence[zipfile.ZipInfo], archive: Path) -> None:
    """Refuse names outside the folder, duplicate names, and whatever is neither a file nor a folder."""
    seen: set[str] = set()
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        outside = "\\" in name or ":" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
        if outside or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(
                f"{archive}: the entry {name!r} lies outside the archive's folder or is not a file; nothing is unpacked"
            )
        # On a file system that ignores case, the second of two such names would overwrite the first.
        folded = str(PurePosixPath(name)).casefold()
        if folded in seen and not entry.is_dir():
            raise DataError(f"{archive}: duplicate entry {name!r}; nothing is unpacked")
        seen.add(folded)


def _is_task(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("model_*/config.json"))


def _task(folder: Path) -> TaskFolder:
    candidates = [
        folder / _CONFIGS,
        folder.parent / "reference_data" / folder.name / _CONFIGS,
        folder.parent.parent / "reference_data" / folder.name / _CONFIGS,
    ]
    return TaskFolder(folder.name, folder, next((path for path in candidates if path.is_file()), candidates[0]))


__all__ = ["TaskFolder", "choose_task", "find_tasks", "unpack"]
