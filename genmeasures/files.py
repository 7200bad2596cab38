"""Files that are there whole or not at all: written under a temporary name, then moved into place."""

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
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.(?P<host>[0-9A-Za-z_-]+)\.(?P<pid>[1-9][0-9]{0,9})\.[0-9a-f]{16}\.tmp", re.DOTALL)
_DAY = 24 * 60 * 60
_LONGEST_NAME = 255
"""Bytes of a file name, on all common file systems."""
_NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, a crash or a full disk never meets half of it.

    The bytes go into a temporary file in the same folder, which then takes the place of ``path``. Its name is
    unique for each machine, process and call. On any failure it is removed, and a file that was at ``path``
    stays as it was.

    Args:
        path: the file to write, in a folder that exists.
        content: all of its bytes.

    Raises:
        OSError: the file cannot be written; callers say which option to change.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "numbers.txt", b"1 2 3")
        ...     (Path(folder) / "numbers.txt").read_bytes()
        b'1 2 3'
    """
    beside = temporary_path(path)
    # Not tempfile: its files can be read by their owner alone, while results are shared.
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            _synchronize(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    _synchronize_folder(path.parent)


def temporary_path(path: Path) -> Path:
    """A name beside ``path`` that nothing else has and that says who its owner is; nothing is made.

    For files and folders alike. What a killed process leaves under such a name is removed by
    :func:`remove_stale_temporaries`.
    """
    ending = f".{_host()}.{os.getpid()}.{secrets.token_hex(8)}.tmp"
    kept = os.fsencode(path.name)[: _LONGEST_NAME - 1 - len(ending)].decode("utf-8", "ignore")
    return path.with_name(f".{kept}{ending}")


def remove_stale_temporaries(folder: Path) -> list[Path]:
    """Remove temporary files and folders in ``folder`` whose process is gone.

    That is known of processes of the same machine and process namespace. Those of others, which may share the
    folder over a network or from a container, are removed when nothing was written to them for a day.

    Args:
        folder: where to look, not below it; it need not exist.

    Returns:
        What was removed. What cannot be removed is left without an error.
    """
    try:
        found = [path for path in folder.iterdir() if _is_stale(path)]
    except OSError:
        return []
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return [path for path in found if not os.path.lexists(path)]


def _is_stale(path: Path) -> bool:
    match = _TEMPORARY.fullmatch(path.name)
    if match is None:
        return False
    try:
        if time.time() - path.lstat().st_mtime > _DAY:
            return True
    except OSError:  # another process was faster
        return False
    return match["host"] == _host() and not _is_running(int(match["pid"]))


def _is_running(pid: int) -> bool:
    if os.name != "posix":
        return True  # signal 0 ends the process there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else
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
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:  # else the file system has no such call, and the bytes are written
            raise


def _synchronize_folder(folder: Path) -> None:
    """Make the new name last. Where that is not possible, the file is whole all the same."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


__all__ = ["remove_stale_temporaries", "temporary_path", "write_atomically"]
