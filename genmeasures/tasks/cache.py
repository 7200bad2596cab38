"""The cache folder of all tasks, and the trainings that are kept in it."""

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


def cache_folder(cache: str | None, name: str) -> Path:
    """Where a task of that name keeps its files, in the folder given or the default.

    The default is the environment variable ``GENMEASURES_CACHE``, or ``~/.cache/genmeasures``.
    """
    root = cache or os.environ.get("GENMEASURES_CACHE") or Path.home() / ".cache" / "genmeasures"
    return Path(root).expanduser() / name


def check_writable(folder: Path) -> None:
    """Make the folder; raise OptionError where that fails or no file can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OptionError(_cannot_write(folder, error)) from error


def _cannot_write(path: Path, error: OSError) -> str:
    return (
        f"cannot write {path}: {error.strerror or error}; "
        "give another folder as cache, or in the environment variable GENMEASURES_CACHE"
    )


def read_kept(path: Path) -> dict[str, Any]:
    """What ``keep`` wrote, on the CPU; raises ValueError naming a damaged file, and FileNotFoundError."""
    try:
        kept = torch.load(_checked(path), map_location="cpu", weights_only=True)
        if not isinstance(kept, dict):
            raise ValueError(f"it holds {type(kept).__name__}")
        return kept
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:  # a file stands where its folder should be
        raise FileNotFoundError(path) from error
    except Exception as error:  # torch raises a dozen types, depending on where a file is damaged
        raise ValueError(f"{path} is damaged: {error}") from error


def _checked(path: Path) -> io.BytesIO:
    """The archive with all entries as their checksums say, under headers made anew.

    torch looks at no checksum; and an entry whose header a flipped bit has made a folder, it takes for memory that
    nobody has written to.
    """
    sound = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(sound, "w") as made:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise ValueError("it has two entries of one name")
        for name in names:
            made.writestr(name, archive.read(name))
    sound.seek(0)
    return sound


def keep(path: Path, content: Mapping[str, Any]) -> None:
    """Write the file so that it is there whole or not at all.

    Raises OptionError where that fails.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise OptionError(_cannot_write(path, error)) from error


__all__ = ["cache_folder", "check_writable", "keep", "read_kept"]
