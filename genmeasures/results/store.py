"""Result files: netCDF 4 in front of a checksum, written beside their place and moved into it.

HDF5 has no checksum of its own for what we store, and a damaged file can crash it. So the bytes of the
netCDF file are followed by one line with their digest, which HDF5 does not read, and they are checked
before HDF5 sees them. HDF5 also ends the process when a disk is full while it writes: it writes to
memory here.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from genmeasures.errors import ResultError
from genmeasures.files import write_atomically
from genmeasures.results.escape import decoded, encoded
from genmeasures.results.schema import check

SCHEMA_VERSION = 2

_CHECKSUM = b"\ngenmeasures result, blake2b of all before this line: %s\n"
_CHECKSUM_LINE = re.compile(re.escape(_CHECKSUM).replace(b"%s", rb"([0-9a-f]{64})"))
_CHECKSUM_LENGTH = len(_CHECKSUM) - len(b"%s") + 64


def writable(folder: Path) -> Path:
    """The folder, made if it is not there. Raises ResultError if nothing can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ResultError(f"cannot write in {folder}: {error.strerror or error}; choose another folder") from error


def save(ds: xr.Dataset, path: str | Path) -> Path:
    """Write a result as netCDF 4, so that the file is either whole or not there.

    Names and texts may hold any character. Any netCDF reader opens the file, but :func:`load` takes it only
    as it was written here: a checksum follows the data.

    Args:
        ds: a result; text, numbers or booleans.
        path: the file; folders that are missing are made.

    Returns:
        The path.

    Raises:
        ResultError: it cannot be written, for want of space for one, or holds a value that netCDF cannot hold.

    Example:
        >>> import tempfile
        >>> ds = xr.Dataset(coords={"model": ["net"], "optim/lr": ("model", [0.1])})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(ds.assign_attrs(schema_version=SCHEMA_VERSION), Path(folder) / "result.nc")
        ...     load(path)["optim/lr"].item()
        0.1
    """
    path = Path(path)
    try:
        content = bytes(encoded(ds).to_netcdf(engine="h5netcdf"))
    except Exception as error:  # whatever xarray, h5netcdf and h5py say of a value that has no place in a file
        raise ResultError(f"cannot write the result {path}: {type(error).__name__}: {error}") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content + _CHECKSUM % _digest(content))
    except OSError as error:
        raise ResultError(
            f"cannot write the result {path}: {error.strerror or error}; make room, or choose another output folder"
        ) from error
    return path


def load(path: str | Path) -> xr.Dataset:
    """Read a result file.

    Args:
        path: a file that :func:`save` wrote.

    Returns:
        The dataset that was saved; texts are of dtype object.

    Raises:
        ResultError: the file, which is named, is not there, cannot be read, is damaged, was changed or
            written by another program, or is of another schema.
    """
    path = Path(path)
    content = _verified(path)
    try:
        # Units such as "seconds" are those of measures: nothing is a time.
        with xr.open_dataset(io.BytesIO(content), engine="h5netcdf", decode_times=False) as opened:
            ds = decoded(opened.load())
    except Exception as error:  # a file with a right checksum that is no result can fail in any way
        raise ResultError(f"cannot read the result {path}: {type(error).__name__}: {error}") from error
    version = ds.attrs.get("schema_version")
    if not np.isscalar(version) or version != SCHEMA_VERSION:
        raise ResultError(
            f"{path} is no result of this version of genmeasures (schema {version}, expected {SCHEMA_VERSION}): "
            "measure again"
        )
    try:
        check(ds)
    except ResultError as error:
        raise ResultError(f"{path} is no result: {error}") from error
    for name in ds.variables:
        if ds[name].dtype.kind in "UST":
            ds[name] = ds[name].astype(object)
    return ds


def _verified(path: Path) -> bytes:
    """The bytes of the netCDF file, once its checksum is found to be right."""
    if not path.is_file():
        raise ResultError(f"there is no result file {path}")
    try:
        with path.open("rb") as file:
            # A file of another program may be far too large to be read: its end tells.
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _CHECKSUM_LENGTH))
            line = _CHECKSUM_LINE.fullmatch(file.read())
            if line is None:
                raise ResultError(
                    f"cannot read the result {path}: it has no checksum, so it is not whole, or was written by "
                    "another program or by a version of genmeasures before results had one (schema 1): measure again"
                )
            file.seek(0)
            content = file.read()
    except OSError as error:
        raise ResultError(f"cannot read the result {path}: {error.strerror or error}") from error
    content, end = content[:-_CHECKSUM_LENGTH], content[-_CHECKSUM_LENGTH:]
    if end != _CHECKSUM % _digest(content):
        raise ResultError(
            f"cannot read the result {path}: its checksum is wrong, so it is damaged or was changed by another "
            "program: measure again"
        )
    return content


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=32).hexdigest().encode()
