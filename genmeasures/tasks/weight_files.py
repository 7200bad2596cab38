"""Safe reading of files of trained weights: no code in them is executed."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import pickle
import re
import threading
import types
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from genmeasures.errors import ModelError
from genmeasures.tasks.archives import check_sizes

_ADVICE = "load it where you trust it and keep its weights alone, with torch.save(model.state_dict(), file)"

# How torch reports objects other than weights; its messages for damaged files differ.
_OTHER_OBJECT = re.compile(r"(?:GLOBAL|Unsupported class|but got <class|<function <function) '?([\w.]+)")
_PLAIN_DTYPE = re.compile(r"[biufcUS][0-9]{1,9}")

_lock = threading.Lock()
"""Guards torch's list of safe names, which all threads share."""


def read_weight_file(path: Path) -> Any:
    """Read a file of ``torch.save`` or safetensors.

    Besides tensors, a file may contain plain data: numbers, strings, lists and dictionaries, NumPy scalars and arrays
    of numbers or strings, paths, dates and ``argparse.Namespace``. These are reconstructed from a fixed list of types.

    Args:
        path: the file. It is read as safetensors if its suffix is ``.safetensors`` or it starts with such a header,
            else as a file of ``torch.save``.

    Returns:
        The content, with tensors on the CPU.

    Raises:
        ModelError: the file is missing, damaged, of another format, or needs code to be loaded; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"bias": torch.zeros(2), "epoch": 3}, f"{folder}/net.pt")
        ...     read_weight_file(Path(folder) / "net.pt")
        {'bias': tensor([0., 0.]), 'epoch': 3}
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    return _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)


def _is_safetensors(path: Path) -> bool:
    """Whether the suffix, or a JSON header at the start, is that of safetensors."""
    if path.suffix.lower() == ".safetensors":
        return True
    try:
        with path.open("rb") as file:
            start = file.read(9)
        return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    except OSError:  # reported by its reader
        return False


def _read_safetensors(path: Path) -> Any:
    """Read a safetensors file."""
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # safetensors' own error type, and the system's
        raise ModelError(f"{path} is damaged or incomplete: {_reason(error)}") from error


def _read_torch(path: Path) -> Any:
    """Read a file of torch.save."""
    check_sizes(path, ModelError)
    try:
        with _lock, torch.serialization.safe_globals(_SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True)
        return _with_arrays(content)
    except pickle.UnpicklingError as error:
        needed = _OTHER_OBJECT.search(str(error))
        if needed is not None:
            raise ModelError(
                f"{path} holds objects other than weights ({needed[1]}), which are never loaded: {_ADVICE}"
            ) from error
        raise ModelError(
            f"{path} cannot be read as PyTorch weights ({_reason(error)}); it may be damaged or of another format, "
            f"or hold objects other than weights; if so, {_ADVICE}"
        ) from error
    except Exception as error:  # torch raises a dozen types, depending on where a file is damaged
        if "TorchScript" in str(error):
            raise ModelError(f"{path} is a TorchScript archive, which is code and never loaded: {_ADVICE}") from error
        if "magic number" in str(error):
            raise ModelError(f"{path} was not written by torch.save, or is damaged; if sound, {_ADVICE}") from error
        if "legacy .tar format" in str(error):
            raise ModelError(f"{path} is in a format from before PyTorch 0.1.10, never loaded: {_ADVICE}") from error
        raise ModelError(f"{path} is damaged or incomplete: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The cause alone, from a message in which torch also explains how to load code."""
    lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# NumPy's functions for unpickling trust their input: a crafted dtype makes them read bytes of the file as addresses of
# objects. The following ones replace them, and construct only numbers and strings.


class _Dtype:
    """Replacement for ``numpy.dtype``."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
            raise pickle.UnpicklingError(f"a NumPy dtype {str(code)[:20]!r}; expected numbers or text")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, order, *structure = state[:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in structure):
            raise pickle.UnpicklingError("a NumPy dtype with fields; expected numbers or text")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Replacement for ``numpy.ndarray`` until the file is read."""

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, content = state
        if not all(type(size) is int and size >= 0 for size in shape):
            raise pickle.UnpicklingError("a NumPy array without a shape")
        flat = _values(dtype, content, prod(shape))
        self.value = flat.reshape(shape, order="F" if columns_first else "C")


def _values(dtype: Any, content: Any, count: int) -> NDArray[Any]:
    """Flat array of ``count`` values from their bytes."""
    kind = dtype.dtype if isinstance(dtype, _Dtype) else dtype
    # A real dtype occurs if the calling program permits it for all files.
    if not isinstance(kind, np.dtype) or kind.kind not in "biufcUS":
        raise pickle.UnpicklingError("NumPy values of an unknown dtype; expected numbers or text")
    if not isinstance(content, bytes) or len(content) != count * kind.itemsize:
        raise pickle.UnpicklingError(f"NumPy values of {kind} that are not {count} numbers or texts")
    if kind.itemsize == 0:
        return np.zeros(count, kind)
    return np.frombuffer(content, kind).astype(kind.newbyteorder("="))


def _scalar(dtype: Any, content: Any) -> Any:
    """Replacement for the function that unpickles NumPy scalars."""
    return _values(dtype, content, 1)[0]


def _new_array(*_: Any) -> _Array:
    return _Array()


# Containers that torch cannot fill are replaced by those that it can.


def _new_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _new_list(*_: Any) -> list[Any]:
    return []


_NUMPY_TYPES = [
    *("bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "str_"),
]

_SAFE: list[Any] = [
    (_Dtype, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((function, f"numpy.{core}.multiarray.{name}")
      for core in ("core", "_core")
      for name, function in (("scalar", _scalar), ("_reconstruct", _new_array))),
    *((getattr(np, name), f"numpy.{name}") for name in _NUMPY_TYPES),
    (np.bool_, "numpy.bool"),
    # Pure paths, which work on all systems and cannot access files.
    *((pure, f"pathlib{place}.{name}")
      for place in ("", "._local")
      for pure, name in ((pathlib.PurePosixPath, "PosixPath"), (pathlib.PurePosixPath, "PurePosixPath"),
                         (pathlib.PureWindowsPath, "WindowsPath"), (pathlib.PureWindowsPath, "PureWindowsPath"))),
    *((kind, f"datetime.{kind.__name__}")
      for kind in (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone)),
    argparse.Namespace,
    (types.SimpleNamespace, "types.SimpleNamespace"),
    (_new_dict, "collections.defaultdict"),
    (_new_list, "collections.deque"),
    (str, "torch.torch_version.TorchVersion"),
    *((kind, f"builtins.{kind.__name__}") for kind in (bool, int, float, str, bytes, list, tuple, dict, frozenset)),
]  # fmt: skip
"""Types that a file may contain besides weights, with their names in it. None can run code or open a file."""


def _with_arrays(content: Any) -> Any:
    """The content, with NumPy arrays instead of their replacements."""
    done: dict[int, Any] = {}

    def real(value: Any) -> Any:
        if isinstance(value, _Array):
            return value.value
        if id(value) in done:  # a list can contain itself
            return done[id(value)]
        if isinstance(value, dict):
            done[id(value)] = value
            for name in list(value):
                value[name] = real(value[name])
        elif type(value) is list:
            done[id(value)] = value
            value[:] = [real(item) for item in value]
        elif type(value) is tuple:
            return tuple(real(item) for item in value)
        elif isinstance(value, argparse.Namespace | types.SimpleNamespace):
            real(vars(value))
        return value

    return real(content)


__all__ = ["read_weight_file"]
