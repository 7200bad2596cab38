"""Archives as they are downloaded: what they would unpack to is checked before anything is unpacked."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

from genmeasures.errors import GenmeasuresError

TRUST_VARIABLE = "GENMEASURES_TRUST_ARCHIVES"
"""Environment variable; "1" unpacks what :func:`check_sizes` would refuse."""

_SMALL = 2**28
"""Bytes that may be unpacked from however few."""
_MOST_COMPRESSED = 200
"""How many times larger the content of an archive may be than the archive: images and weights stay below 10."""


def check_sizes(path: Path, error: type[GenmeasuresError], members: Iterable[str] | None = None) -> None:
    """Refuse a zip archive, such as an ``.npz`` or a ``.pt`` file, that is tiny and would fill memory or disk.

    No entry gives more bytes than its header says, so the headers are enough. Other files are left to
    their readers.

    Args:
        path: the file.
        error: what to raise.
        members: names of the entries that will be read; all by default.

    Raises:
        GenmeasuresError: of the type ``error``; it names the file and the environment variable that allows it.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # not a zip archive, or a damaged one: its reader says so
        return
    names = None if members is None else set(members)
    read = [entry for entry in entries if names is None or entry.filename in names]
    everything = sum(entry.file_size for entry in read), min(sum(entry.compress_size for entry in read), size)
    # The second, since entries can share their bytes; each by itself, since honest ones can hide it.
    for unpacked, packed in (everything, *((entry.file_size, entry.compress_size) for entry in read)):
        if unpacked >= _SMALL and unpacked > _MOST_COMPRESSED * packed and os.environ.get(TRUST_VARIABLE) != "1":
            raise error(
                f"{path} has {packed / 1e6:.1f} MB that unpack to {unpacked / 1e9:.1f} GB, more than "
                f"{_MOST_COMPRESSED} times as much, as in files made to fill memory or disk; if it is sound, set "
                f"{TRUST_VARIABLE}=1 in the environment"
            )


__all__ = ["TRUST_VARIABLE", "check_sizes"]
