"""Result files: netCDF 4 followed by a checksum, written atomically.

HDF5 has no checksum for the data stored here, and a damaged file can crash it. Therefore one line with the digest of
the netCDF bytes follows them, which HDF5 ignores, and the digest is verified before HDF5 reads the file. HDF5 also
aborts the process when the disk becomes full during a write: here it writes to memory.
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
    """Create a folder if necessary, and check that files can be written in it.

    Args:
        folder: Path of the folder.

    Returns:
        The path.

    Raises:
        ResultError: The folder cannot be created or written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writable(Path(folder, "results")).is_dir()
        True
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ResultError(f"cannot write in {folder}: {error.strerror or error}; choose another folder") from error


def save(ds: xr.Dataset, path: str | Path) -> Path:
    """Write a result as netCDF 4, atomically: the file is either complete or absent.

    Names and texts may contain any character. Any netCDF reader can open the file, but :func:`load` requires the
    checksum that follows the data.

    Args:
        ds: A result, with variables of texts, numbers or bools.
        path: Path of the file; missing folders are created.

    Returns:
        The path.

    Raises:
        ResultError: The file cannot be written, for example on a full disk, or netCDF cannot store a value.

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
    except Exception as error:  # xarray, h5netcdf and h5py raise errors of many types for values that they cannot store
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
        path: A file that :func:`save` wrote.

    Returns:
        The saved dataset; texts have dtype object.

    Raises:
        ResultError: The file, which is named, does not exist, cannot be read, is damaged, was changed or written by
            another program, or has another schema version.

    Example:
        >>> import tempfile
        >>> ds = xr.Dataset(coords={"model": ["net"]}, attrs={"schema_version": SCHEMA_VERSION})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load(save(ds, Path(folder, "result.nc"))).model.item()
        'net'
    """
    path = Path(path)
    content = _verified(path)
    try:
        # Units such as "seconds" are units of measures, not times to decode.
        with xr.open_dataset(io.BytesIO(content), engine="h5netcdf", decode_times=False) as opened:
            ds = decoded(opened.load())
    except Exception as error:  # a file with a valid checksum that is not a result can raise errors of any type
        raise ResultError(f"cannot read the result {path}: {type(error).__name__}: {error}") from error
    version = ds.attrs.get("schema_version")
    if not np.isscalar(version) or version != SCHEMA_VERSION:
        shown_version = repr(version) if isinstance(version, str) else version
        raise ResultError(
            f"{path} must be a result with schema version {SCHEMA_VERSION}, got {shown_version}: measure again with "
            "this version of genmeasures"
        )
    try:
        check(ds)
    except ResultError as error:
        raise ResultError(f"{path} is not a result: {error}") from error
    for name in ds.variables:
        if ds[name].dtype.kind in "UST":
            ds[name] = ds[name].astype(object)
    return ds


def _verified(path: Path) -> bytes:
    """The bytes of the netCDF file, after its checksum is verified."""
    if not path.is_file():
        raise ResultError(f"there is no result file {path}")
    try:
        with path.open("rb") as file:
            # A file of another program may be too large to read: check the last line first.
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _CHECKSUM_LENGTH))
            line = _CHECKSUM_LINE.fullmatch(file.read())
            if line is None:
                raise ResultError(
                    f"cannot read the result {path}: it has no checksum, so it is incomplete, or was written by "
                    "another program or an old version of genmeasures (schema version 1): measure again"
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
