"""Atomic writes: files and folders that are complete or absent.

Everything is written under a temporary name and then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.(?P<host>[0-9A-Za-z_-]+)\.(?P<pid>[1-9][0-9]{0,9})\.[0-9a-f]{16}\.tmp", re.DOTALL)
_DAY = 24 * 60 * 60
_LONGEST_NAME = 255
"""Maximum length of a file name in bytes, on all common file systems."""
_NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers, a crash or a full disk never leave half of it.

    The bytes are written to a temporary file in the same folder, which is then renamed to ``path``. The temporary
    name is unique to the machine, process and call. If anything fails, the temporary file is removed and an existing
    file at ``path`` is unchanged.

    Args:
        path: the file to write, in a folder that exists.
        content: all of its bytes.

    Raises:
        OSError: the file cannot be written; callers name the option to change.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "numbers.txt", b"1 2 3")
        ...     (Path(folder) / "numbers.txt").read_bytes()
        b'1 2 3'
    """
    temporary = temporary_path(path)
    # Not tempfile: only their owner can read its files, while results are shared.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            _synchronize(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _synchronize_folder(path.parent)


@contextlib.contextmanager
def write_folder_atomically(path: Path) -> Iterator[Path]:
    """Context that fills a temporary folder and renames it when the context is left.

    If anything fails, the temporary folder is removed.

    Args:
        path: the folder to create, in a folder that exists. It must be absent or empty when the context is left.

    Yields:
        The temporary folder, which exists and is empty.

    Raises:
        OSError: the folder cannot be created or renamed, for example because another process was faster.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     with write_folder_atomically(Path(root) / "model") as folder:
        ...         _ = (folder / "weights.txt").write_text("1 2 3")
        ...     sorted(file.name for file in (Path(root) / "model").iterdir())
        ['weights.txt']
    """
    temporary = temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_path(path: Path) -> Path:
    """A unique temporary name beside ``path``, for a file or a folder; nothing is created.

    The name holds the machine and the process, by which :func:`remove_stale_temporaries` recognizes what a killed
    process has left.

    Args:
        path: the file or folder that is to be written.

    Returns:
        A path in the same folder, whose name starts with a dot and ends with ``.tmp``.

    Example:
        >>> temporary_path(Path("results/run.nc")).match("results/.run.nc.*.tmp")
        True
    """
    ending = f".{_host()}.{os.getpid()}.{secrets.token_hex(8)}.tmp"
    shortened = os.fsencode(path.name)[: _LONGEST_NAME - 1 - len(ending)].decode("utf-8", "ignore")
    return path.with_name(f".{shortened}{ending}")


def remove_stale_temporaries(folder: Path) -> list[Path]:
    """Remove temporary files and folders whose process no longer runs.

    This is known for processes of the same machine and process namespace. Temporaries of other machines, which can
    share the folder over a network or from a container, are removed if they have not been modified for a day.

    Args:
        folder: the folder to clean, without its subfolders; it may be absent.

    Returns:
        The paths that were removed. Those that cannot be removed are skipped.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     own = temporary_path(Path(folder) / "run.nc")
        ...     own.touch()
        ...     remove_stale_temporaries(Path(folder))  # this process is running
        []
    """
    try:
        stale = [path for path in folder.iterdir() if _is_stale(path)]
    except OSError:
        return []
    for path in stale:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return [path for path in stale if not os.path.lexists(path)]


def _is_stale(path: Path) -> bool:
    """Whether the path is a temporary of a process that no longer runs."""
    match = _TEMPORARY.fullmatch(path.name)
    if match is None:
        return False
    try:
        if time.time() - path.lstat().st_mtime > _DAY:
            return True
    except OSError:  # another process has removed it
        return False
    return match["host"] == _host() and not _is_running(int(match["pid"]))


def _is_running(pid: int) -> bool:
    """Whether a process of this machine runs; True where that is unknown."""
    if os.name != "posix":
        return True  # signal 0 would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to another user
        return True
    return True


@functools.cache
def _host() -> str:
    """The machine, and on Linux the process namespace: containers of one machine can have equal process ids."""
    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        namespace = ""
    name = re.sub(r"[^0-9A-Za-z-]", "-", socket.gethostname())[:64] or "unknown"
    return f"{name}_{namespace}" if namespace else name


def _synchronize(handle: int) -> None:
    """Flush a file to disk, where the file system supports it."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise


def _synchronize_folder(folder: Path) -> None:
    """Make the renaming durable. Where that is not supported, the file is complete nevertheless."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


__all__ = ["remove_stale_temporaries", "temporary_path", "write_atomically", "write_folder_atomically"]
