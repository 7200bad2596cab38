"""Conversion of arrays of any kind to plain tensors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from torch.utils.dlpack import from_dlpack


def plain(value: Any) -> Tensor:
    """Convert an array to a strided tensor of class Tensor, without a copy if possible.

    Args:
        value: a tensor of any class or layout, a NumPy array of any class, a number, a list of numbers, arrays or
            tensors of one shape, or an object with ``__array__`` or ``__dlpack__``, as of pandas and JAX.

    Raises:
        TypeError, ValueError, RuntimeError: the elements are not numbers, or some are missing.

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
        except TypeError:  # an array on a GPU is not converted to NumPy implicitly
            if not hasattr(value, "__dlpack__"):
                raise
    if hasattr(value, "__dlpack__"):
        tensor: Tensor = from_dlpack(value)
        return tensor
    return torch.as_tensor(value, device="cpu")


def _plain_tensor(tensor: Tensor) -> Tensor:
    kind = type(tensor).__name__
    if tensor.is_nested:
        raise TypeError("nested tensors are not supported: pass tensors of one shape")
    if type(tensor) is not Tensor:
        # Functions of a subclass would return the subclass again.
        with torch._C.DisableTorchFunctionSubclass():
            tensor = tensor.as_subclass(Tensor)
        if type(tensor) is not Tensor or (tensor.numel() and not _has_storage(tensor)):
            raise TypeError(f"a {kind} does not hold its own numbers: pass a plain tensor")
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
        raise TypeError("a masked array has missing elements: fill them, and pass the fill value as ignore_index")
    array = np.asarray(array)
    if array.dtype == object:  # such as a column of pandas that could have missing values
        array = np.array(array.tolist())
        if array.dtype.kind not in "biufc":
            raise TypeError("it has elements that are not numbers")
    if min(array.strides, default=0) < 0 or not array.dtype.isnative:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is not written to
        return torch.as_tensor(array, device="cpu")


def _from_list(values: list[Any] | tuple[Any, ...]) -> Tensor:
    if values and all(isinstance(value, Tensor) for value in values):
        return torch.stack([_plain_tensor(value) for value in values])
    if values and all(isinstance(value, np.ndarray) for value in values):
        return torch.stack([_from_numpy(value) for value in values])
    return torch.as_tensor(values, device="cpu")


def collate(items: list[Any]) -> Any:
    """Collate samples by torch's ``default_collate``, after converting inputs and targets to plain tensors.

    Example:
        >>> collate([(np.zeros(2), 0), (np.ones(2), 1)])[1]
        tensor([0, 1])
    """
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
