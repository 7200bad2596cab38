"""What netCDF cannot hold, written so that it can: any name, and any text.

Names of variables and dimensions keep letters, digits, "_", "." and "-"; everything else is
percent-encoded, so that any netCDF reader opens the file and coordinates stay coordinates. The
attribute ``original_names`` (JSON) maps the names in the file to the true ones.

Texts keep everything but NUL and lone surrogates, which HDF5 cannot store: these are written as
U+FDD0, a noncharacter that Unicode leaves to programs, followed by four hexadecimal digits.
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
"""Bytes of a name; netCDF-C reads no more than 256."""
_RESERVED = "_nc4_non_coord_"
"""What netCDF 4 marks variables with that share their name with a dimension."""
_UNSTORABLE = re.compile("[\x00\ufdd0\ud800-\udfff]")
_STORED = re.compile("\ufdd0([0-9a-f]{4})")


def encoded(ds: xr.Dataset) -> xr.Dataset:
    """The same dataset with names and texts that netCDF can hold.

    Args:
        ds: any dataset whose names are texts.

    Returns:
        A new dataset; :func:`decoded` makes ``ds`` of it.

    Raises:
        TypeError: a name is not a text.

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
            raise TypeError(f"names must be texts, not {name!r}")
        safe = _safe(name)
        while safe in stored:
            safe += "_"
        stored[safe] = name
    changed = {safe: name for safe, name in stored.items() if safe != name}
    made = _with_texts(ds.rename({name: safe for safe, name in changed.items()}), _hide)
    return made.assign_attrs({_ORIGINAL_NAMES: json.dumps(changed)}) if changed else made


def decoded(ds: xr.Dataset) -> xr.Dataset:
    """The dataset that :func:`encoded` was given.

    Raises:
        ValueError: the names that the file tells are not those of its variables.
    """
    ds = _with_texts(ds, _show)
    names = json.loads(ds.attrs.pop(_ORIGINAL_NAMES, "{}"))
    return ds.rename(names)


def _safe(name: str) -> str:
    # netCDF-C composes characters, after which two names could be one.
    unsafe = r"[^\w.-]" if unicodedata.is_normalized("NFC", name) else r"[^A-Za-z0-9_.-]"
    safe = re.sub(f"{unsafe}|{_RESERVED}", lambda found: _percent(found[0]), name)
    if not re.match(r"[^\W\d_]", safe):  # netCDF names do not begin with a digit, nor every reader's with "_"
        safe = f"_{safe}"
    if len(safe.encode()) > _LONGEST:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        safe = f"{safe.encode()[: _LONGEST - 17].decode('utf-8', 'ignore')}-{digest}"
    return safe


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def _with_texts(ds: xr.Dataset, change: Callable[[str], str]) -> xr.Dataset:
    """A dataset in which every text among the values and attributes went through ``change``."""
    made = {}
    for name, variable in ds.variables.items():
        values = variable.values
        if values.dtype.kind in "OUT":
            texts = (change(value) if isinstance(value, str) else value for value in values.flat)
            values = np.fromiter(texts, dtype=object, count=values.size).reshape(values.shape)
        made[name] = xr.Variable(variable.dims, values, _attrs(variable.attrs, change))
    coords = {name: made.pop(name) for name in ds.coords}
    return xr.Dataset(made, coords, _attrs(ds.attrs, change))


def _attrs(attrs: Mapping[Any, Any], change: Callable[[str], str]) -> dict[Any, Any]:
    return {name: change(value) if isinstance(value, str) else value for name, value in attrs.items()}


def _hide(text: str) -> str:
    return _UNSTORABLE.sub(lambda found: f"\ufdd0{ord(found[0]):04x}", text)


def _show(text: str) -> str:
    return _STORED.sub(lambda found: chr(int(found[1], 16)), text)
