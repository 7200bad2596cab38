"""Result files: netCDF, written beside their place and moved into it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from genmeasures.errors import ResultError

SCHEMA_VERSION = 1


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

    Raises ResultError naming a folder that cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        try:
            _storable(ds).to_netcdf(temporary, engine="h5netcdf")
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ResultError(
            f"cannot write the result {path}: {error.strerror or error}; choose another output folder"
        ) from error
    return path


def load(path: str | Path) -> xr.Dataset:
    """Read a result file. Raises ResultError naming a file that is no whole result."""
    if not Path(path).is_file():
        raise ResultError(f"there is no result file {path}")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            ds = opened.load()
    except (OSError, ValueError, KeyError) as error:
        raise ResultError(f"cannot read the result {path}: {error}") from error
    version = ds.attrs.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ResultError(
            f"{path} is no result of this version of genmeasures (schema {version}, expected {SCHEMA_VERSION})"
        )
    for name in ds.variables:
        if ds[name].dtype.kind in "UST":
            ds[name] = ds[name].astype(object)
    return ds


def _storable(ds: xr.Dataset) -> xr.Dataset:
    """netCDF knows no booleans: they are stored as 0 and 1."""
    ds = ds.copy()
    for name in ds.variables:
        if ds[name].dtype == np.bool_:
            ds[name] = ds[name].astype(np.int8)
    return ds
