"""Whatever holds numbers, as a plain tensor of the same numbers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from torch.utils.dlpack import from_dlpack


def plain(value: Any) -> Tensor:
    """A tensor of class Tensor with the same numbers, without a copy where there need be none.

    value: a tensor of any class or layout, a NumPy array of any class, a number, a list of numbers, arrays
    or tensors of one shape, or what offers its numbers by ``__array__`` or ``__dlpack__``, as pandas and
    JAX do.

    Raises:
        TypeError, ValueError, RuntimeError: where there are no numbers, or not at every place.

    Example:
        >>> plain(np.matrix([[1, 2]])).tolist()
        [[1, 2]]
    """
    if isinstance(value, Tensor):
        return _plain_tensor(value)
    if isinstance(value, np.ndarray):
        return _from_numpy(value)
    if isinstance(value, list | tuple):
        return _from_list(value)
    if hasattr(value, "__array__"):
        try:
            return _from_numpy(np.asarray(value))
        except TypeError:  # an array on a GPU does not become NumPy's by itself
            if not hasattr(value, "__dlpack__"):
                raise
    if hasattr(value, "__dlpack__"):
        made: Tensor = from_dlpack(value)
        return made
    return torch.as_tensor(value, device="cpu")


def _plain_tensor(tensor: Tensor) -> Tensor:
    kind = type(tensor).__name__
    if tensor.is_nested:
        raise TypeError("nested tensors have no one shape: give tensors of one shape")
    if type(tensor) is not Tensor:
        # A subclass's own functions would give the subclass again.
        with torch._C.DisableTorchFunctionSubclass():
            tensor = tensor.as_subclass(Tensor)
        if type(tensor) is not Tensor or (tensor.numel() and not _has_storage(tensor)):
            raise TypeError(f"a {kind} holds no numbers of its own: give a plain tensor")
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.is_meta:
        raise TypeError("a tensor on the meta device has no values")
    return tensor.resolve_conj().resolve_neg()


def _has_storage(tensor: Tensor) -> bool:
    try:
        return tensor.layout != torch.strided or tensor.is_meta or tensor.untyped_storage().nbytes() > 0
    except (RuntimeError, NotImplementedError):
        return False


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    if np.ma.is_masked(array):
        raise TypeError("a masked array has places without a number: fill them, and name the value as ignore_index")
    array = np.asarray(array)
    if array.dtype == object:  # such as a column of pandas that may hold missing values, and holds none
        array = np.array(array.tolist())
        if array.dtype.kind not in "biufc":
            raise TypeError("there are objects in it that are no numbers")
    if min(array.strides, default=0) < 0 or not array.dtype.isnative:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written to
        return torch.as_tensor(array, device="cpu")


def _from_list(values: list[Any] | tuple[Any, ...]) -> Tensor:
    if values and all(isinstance(value, Tensor) for value in values):
        return torch.stack([_plain_tensor(value) for value in values])
    if values and all(isinstance(value, np.ndarray) for value in values):
        return torch.stack([_from_numpy(value) for value in values])
    return torch.as_tensor(values, device="cpu")


def collate(items: list[Any]) -> Any:
    """torch's ``default_collate`` of samples whose inputs and targets are plain tensors first."""
    return default_collate([_sample(item) for item in items])


def _sample(item: Any) -> Any:
    if isinstance(item, tuple | list) and len(item) in (1, 2):
        return tuple(_part(part) for part in item)
    return _part(item)


def _part(part: Any) -> Any:
    if type(part) in (Tensor, int, float, bool, str, bytes) or isinstance(part, dict):
        return part
    is_row = isinstance(part, list | tuple) and all(isinstance(number, int | float | np.number) for number in part)
    is_array = isinstance(part, Tensor | np.ndarray) or hasattr(part, "__array__") or hasattr(part, "__dlpack__")
    return plain(part) if is_array or (is_row and part) else part
