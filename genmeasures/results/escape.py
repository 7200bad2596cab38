"""Encoding of names and texts that netCDF cannot store.

Names of variables and dimensions keep letters, digits, "_", "." and "-". All other characters are percent-encoded, so
that every netCDF reader can open the file. The attribute ``original_names`` (JSON) maps the names in the file to the
original ones.

Texts keep all characters except NUL and lone surrogates, which HDF5 cannot store: these are written as U+FDD0, a
Unicode noncharacter for internal use, followed by four hexadecimal digits.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

_ORIGINAL_NAMES = "original_names"
_LONGEST = 200
"""Maximum length of a name in bytes; netCDF-C reads at most 256."""
_RESERVED = "_nc4_non_coord_"
"""Prefix of netCDF 4 for variables that share their name with a dimension."""
_UNSTORABLE = re.compile("[\x00\ufdd0\ud800-\udfff]")
_STORED = re.compile("\ufdd0([0-9a-f]{4})")


def encoded(ds: xr.Dataset) -> xr.Dataset:
    """Encode the names and texts of a dataset for netCDF.

    Args:
        ds: Any dataset whose names are strings.

    Returns:
        A new dataset; :func:`decoded` restores ``ds``.

    Raises:
        TypeError: A name is not a string.

    Example:
        >>> stored = encoded(xr.Dataset(coords={"optim/lr": 0.1}))
        >>> list(stored.coords)
        ['optim%2Flr']
        >>> list(decoded(stored).coords)
        ['optim/lr']
    """
    stored: dict[str, str] = {}
    for name in dict.fromkeys([*ds.variables, *ds.dims]):
        if not isinstance(name, str):
            raise TypeError(f"names must be strings, got {name!r}")
        safe = _safe(name)
        while safe in stored:
            safe += "_"
        stored[safe] = name
    changed = {safe: name for safe, name in stored.items() if safe != name}
    result = _with_texts(ds.rename({name: safe for safe, name in changed.items()}), _hide)
    return result.assign_attrs({_ORIGINAL_NAMES: json.dumps(changed)}) if changed else result


def decoded(ds: xr.Dataset) -> xr.Dataset:
    """Restore the dataset that :func:`encoded` encoded.

    Args:
        ds: The encoded dataset; its attribute ``original_names`` is removed.

    Returns:
        The original dataset.

    Raises:
        ValueError: The attribute ``original_names`` does not match the variables.

    Example:
        >>> decoded(encoded(xr.Dataset(attrs={"task": "a\\x00b"}))).attrs["task"]
        'a\\x00b'
    """
    ds = _with_texts(ds, _show)
    names = json.loads(ds.attrs.pop(_ORIGINAL_NAMES, "{}"))
    return ds.rename(names)


def _safe(name: str) -> str:
    # netCDF-C normalizes characters, after which two names could be equal.
    unsafe = r"[^\w.-]" if unicodedata.is_normalized("NFC", name) else r"[^A-Za-z0-9_.-]"
    safe = re.sub(f"{unsafe}|{_RESERVED}", lambda match: _percent(match[0]), name)
    if not re.match(r"[^\W\d_]", safe):  # names in netCDF must not start with a digit, and in some readers not with "_"
        safe = f"_{safe}"
    if len(safe.encode()) > _LONGEST:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        safe = f"{safe.encode()[: _LONGEST - 17].decode('utf-8', 'ignore')}-{digest}"
    return safe


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def _with_texts(ds: xr.Dataset, change: Callable[[str], str]) -> xr.Dataset:
    """A dataset with ``change`` applied to every text among its values and attributes."""
    variables = {}
    for name, variable in ds.variables.items():
        values = variable.values
        if values.dtype.kind in "OUT":
            texts = (change(value) if isinstance(value, str) else value for value in values.flat)
            values = np.fromiter(texts, dtype=object, count=values.size).reshape(values.shape)
        variables[name] = xr.Variable(variable.dims, values, _attrs(variable.attrs, change))
    coords = {name: variables.pop(name) for name in ds.coords}
    return xr.Dataset(variables, coords, _attrs(ds.attrs, change))


def _attrs(attrs: Mapping[Any, Any], change: Callable[[str], str]) -> dict[Any, Any]:
    return {name: change(value) if isinstance(value, str) else value for name, value in attrs.items()}


def _hide(text: str) -> str:
    return _UNSTORABLE.sub(lambda match: f"\ufdd0{ord(match[0]):04x}", text)


def _show(text: str) -> str:
    return _STORED.sub(lambda match: chr(int(match[1], 16)), text)
