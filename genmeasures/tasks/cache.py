"""Cache folder of the tasks, and the files of trained networks in it."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from genmeasures.errors import OptionError
from genmeasures.files import write_atomically

CACHE_VARIABLE = "GENMEASURES_CACHE"
"""Environment variable with the default cache folder."""


def cache_folder(cache: str | None, name: str) -> Path:
    """Folder in which a task caches its files; it is not created.

    Args:
        cache: the folder that the user chose; None for the environment variable ``GENMEASURES_CACHE``, or
            ``~/.cache/genmeasures`` where it is not set.
        name: name of the task.

    Returns:
        The subfolder ``name`` of the cache folder.

    Example:
        >>> cache_folder("/data/cache", "unet").as_posix()
        '/data/cache/unet'
    """
    root = cache or os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "genmeasures"
    return Path(root).expanduser() / name


def check_writable(folder: Path) -> None:
    """Create a cache folder, and check that files can be created in it.

    Args:
        folder: a folder below that of :func:`cache_folder`.

    Raises:
        OptionError: the folder cannot be written; the message names it and the options that change it.

    Example:
        >>> with tempfile.TemporaryDirectory() as root:
        ...     check_writable(Path(root) / "unet" / "run1")
        ...     (Path(root) / "unet" / "run1").is_dir()
        True
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OptionError(_cannot_write(folder, error)) from error


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically, in the format of :func:`torch.save`.

    Args:
        path: the file, in a folder that exists.
        content: tensors, numbers, strings, lists and dicts of these.

    Raises:
        OptionError: the file cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(Path(folder) / "net.pt", {"epoch": 3, "state_dict": {"bias": torch.zeros(2)}})
        ...     load_checkpoint(Path(folder) / "net.pt")
        {'epoch': 3, 'state_dict': {'bias': tensor([0., 0.])}}
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise OptionError(_cannot_write(path, error)) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that :func:`save_checkpoint` wrote.

    All checksums are verified, and nothing but tensors and plain data is unpickled.

    Args:
        path: the file.

    Returns:
        The content, with all tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged; the message names it.

    Example:
        >>> load_checkpoint(Path("missing.pt"))
        Traceback (most recent call last):
        ...
        FileNotFoundError: [Errno 2] No such file or directory: 'missing.pt'
    """
    try:
        content = torch.load(_verified(path), map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"expected a dict, got {type(content).__name__}")
        return content
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:  # its parent is a file
        raise FileNotFoundError(path) from error
    except Exception as error:  # torch raises a dozen types, depending on where a file is damaged
        raise ValueError(f"{path} is damaged: {error}") from error


def _verified(path: Path) -> io.BytesIO:
    """The archive with the checksums of all entries verified and its headers rewritten.

    torch verifies no checksum; and if a flipped bit marks an entry as a folder, torch returns uninitialized memory.
    """
    rewritten = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(rewritten, "w") as copy:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise ValueError("duplicate entry names")
        for name in names:
            copy.writestr(name, archive.read(name))
    rewritten.seek(0)
    return rewritten


def _cannot_write(path: Path, error: OSError) -> str:
    """Message for a cache that cannot be written."""
    return (
        f"cannot write {path}: {error.strerror or error}; set cache, or the environment variable {CACHE_VARIABLE}, "
        "to a folder that can be written"
    )


__all__ = ["CACHE_VARIABLE", "cache_folder", "check_writable", "load_checkpoint", "save_checkpoint"]
