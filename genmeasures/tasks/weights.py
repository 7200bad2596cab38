"""Loading trained weights into a model, from files that are treated as data and never as code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from genmeasures.errors import ModelError, nearest

StateDict: TypeAlias = Mapping[str, Tensor]

SUFFIXES = (".pt", ".pth", ".th", ".safetensors")
"""What a weights file may end in, in the order in which they are looked for."""

_ENTRIES = ("state_dict", "model", "model_state_dict", "net", "weights", "params")
_PREFIXES = ("module.", "model.", "_orig_mod.", "net.")
_SHOWN = 8

# How torch names what a file holds besides weights; of a damaged file it says other things.
_OTHER_OBJECT = re.compile(r"(?:GLOBAL|Unsupported class|but got <class|function <function) '?([\w.]+)")


def read_state_dict(path: Path, key: str | None = None) -> StateDict:
    """The state dict in a file of ``torch.save`` or safetensors, on the CPU.

    One that lies in a dictionary is found under the usual names, or under ``key``. Raises
    ModelError naming the file: absent, damaged, in need of code, or without a state dict.
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if key is not None:
        entries = content if isinstance(content, Mapping) else {}
        if key not in entries:
            raise ModelError(f"{path} has no entry {key!r}{nearest(key, map(str, entries))}")
        content = entries[key]
        if not _is_state_dict(content):
            raise ModelError(f"{path}: the entry {key!r} is not a state dict but of type {_describe(content)}")
    return _unwrap(content, path)


def load_weights(model: nn.Module, state: StateDict, path: Path) -> None:
    """Copy a state dict into a model, as float32, less the prefixes that wrappers put before every key.

    Raises ModelError listing the keys that are missing, unexpected or of another shape.
    """
    model.float()
    expected: dict[str, Any] = model.state_dict()
    state = _strip_prefixes(state, expected)
    # Files of old PyTorch lack these counters, which evaluation does not use.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {_shape(state[key])} instead of {_shape(expected[key])}"
        for key in expected
        if key in state
        and isinstance(expected[key], Tensor)
        and not is_lazy(expected[key])
        and state[key].shape != expected[key].shape
    ]
    if missing or unexpected or misshapen:
        faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        told = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in faults if keys)
        raise ModelError(f"{path} does not fit the architecture ({type(model).__name__}): keys {told}")
    try:
        model.load_state_dict(dict(state), strict=False)
    except Exception as error:  # hooks of the architecture's own run here
        raise ModelError(f"{path} cannot be loaded into {type(model).__name__}: {error}") from error


def _read_safetensors(path: Path) -> StateDict:
    try:
        tensors: StateDict = load_file(path, device="cpu")
    except Exception as error:  # safetensors' own error type, and the system's
        raise ModelError(f"{path} is damaged or incomplete: {_reason(error)}") from error
    return tensors


def _read_torch(path: Path) -> Any:
    advice = "load it where you trust it and keep its weights alone, with torch.save(model.state_dict(), file)"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needed = _OTHER_OBJECT.search(str(error))
        if needed is not None:
            raise ModelError(
                f"{path} holds other objects than weights ({needed[1]}), which are never loaded: {advice}"
            ) from error
        raise ModelError(
            f"{path} cannot be read as PyTorch weights ({_reason(error)}); it may be damaged or of another format, "
            f"or hold other objects than weights; if so, {advice}"
        ) from error
    except Exception as error:  # torch raises a dozen types, depending on where a file is damaged
        if "TorchScript" in str(error):
            raise ModelError(f"{path} is a TorchScript archive, which is code and never loaded: {advice}") from error
        raise ModelError(f"{path} is damaged or incomplete: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The fault alone, of a message in which torch advises at length how to load code."""
    lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _unwrap(content: Any, path: Path) -> StateDict:
    if _is_state_dict(content):
        state: StateDict = content
        return state
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} has no state dict: its content is of type {_describe(content)}")
    found = [name for name in _ENTRIES if _is_state_dict(content.get(name))]
    if len(found) == 1:
        state = content[found[0]]
        return state
    entries = [f"{name} ({_describe(value)})" for name, value in content.items()]
    fault = "more than one state dict" if found else "no state dict under a usual name"
    raise ModelError(f"{path} has {fault}: name the entry to take with key; entries: {_some(entries)}")


def _describe(value: object) -> str:
    return "state dict" if _is_state_dict(value) else type(value).__name__


def _strip_prefixes(state: StateDict, expected: Mapping[str, Any]) -> StateDict:
    while True:
        for prefix in _PREFIXES:
            everywhere = bool(state) and all(key.startswith(prefix) for key in state)
            if everywhere and not any(key.startswith(prefix) for key in expected):
                state = {key.removeprefix(prefix): value for key, value in state.items()}
                break
        else:
            return state


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
