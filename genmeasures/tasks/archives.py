"""Size check of downloaded archives before they are unpacked."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

from genmeasures.errors import GenmeasuresError

TRUST_VARIABLE = "GENMEASURES_TRUST_ARCHIVES"
"""Environment variable; "1" disables :func:`check_sizes`."""

_SMALL = 2**28
"""Unpacked bytes that are permitted for any archive."""
_MOST_COMPRESSED = 200
"""Largest permitted compression ratio; images and weights stay below 10."""


def check_sizes(path: Path, error: type[GenmeasuresError], members: Iterable[str] | None = None) -> None:
    """Refuse a zip archive, such as an ``.npz`` or ``.pt`` file, with an implausible compression ratio (zip bomb).

    Only the headers are read, since no entry unpacks to more bytes than its header declares. Files of other formats
    pass, and are checked by their readers.

    Args:
        path: the file.
        error: type of the exception to raise.
        members: names of the entries that will be read. None for all.

    Raises:
        GenmeasuresError: of the type ``error``; names the file and the environment variable that disables the check.

    Example:
        >>> import tempfile
        >>> from genmeasures.errors import DataError
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "small.zip"
        ...     with zipfile.ZipFile(path, "w") as archive:
        ...         archive.writestr("a.txt", "text")
        ...     check_sizes(path, DataError)
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # not a zip archive, or a damaged one, which its reader reports
        return
    names = None if members is None else set(members)
    read = [entry for entry in entries if names is None or entry.filename in names]
    everything = sum(entry.file_size for entry in read), min(sum(entry.compress_size for entry in read), size)
    # The archive size counts because entries can share bytes; each entry counts because others can dilute the ratio.
    for unpacked, packed in (everything, *((entry.file_size, entry.compress_size) for entry in read)):
        if unpacked >= _SMALL and unpacked > _MOST_COMPRESSED * packed and os.environ.get(TRUST_VARIABLE) != "1":
            raise error(
                f"{path} has {packed / 1e6:.1f} MB that unpack to {unpacked / 1e9:.1f} GB, more than "
                f"{_MOST_COMPRESSED} times as much, like a zip bomb; if you trust the file, set the environment "
                f"variable {TRUST_VARIABLE}=1"
            )


__all__ = ["TRUST_VARIABLE", "check_sizes"]
