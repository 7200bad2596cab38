"""Dtypes of models: the dtype of their inputs, rounding tolerances, and conversion to plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_INPUT_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_ROUNDING = {torch.float64: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class _Found(BaseException):
    """Ends a forward pass early; not an Exception, so that error handling in the model does not catch it."""


def rounding(dtype: torch.dtype) -> float:
    """Return the largest relative difference that rounding alone explains in a deep network.

    The tolerance for float32 is that of TF32. The one for float64 allows for some float32 operations.

    Args:
        dtype: Floating-point dtype of the values.

    Example:
        >>> rounding(torch.float32), rounding(torch.float64)
        (0.001, 1e-05)
    """
    return _ROUNDING.get(dtype, 1e-3)


def input_dtype(model: nn.Module, example: Callable[[], Tensor]) -> torch.dtype:
    """Return the floating-point dtype that a model expects of its inputs.

    It is the dtype of the parameters, or of the buffers of a model without parameters. If these differ, it is
    that of the first layer that runs, or of the first parameter if no layer is seen to run. A model without
    parameters and buffers gets float32.

    Args:
        model: A model on the device of the inputs.
        example: Returns some inputs (B, …). It is only called if dtypes differ, to run the model up to its first
            layer.

    Example:
        >>> input_dtype(nn.Linear(2, 2).double(), lambda: torch.zeros(1, 2))
        torch.float64
    """
    dtypes = [dtype for parameter in model.parameters() if (dtype := _real(parameter)) is not None]
    if not dtypes:
        dtypes = [dtype for buffer in model.buffers() if (dtype := _real(buffer)) is not None]
    if len(set(dtypes)) < 2:
        return dtypes[0] if dtypes else torch.float32
    inputs = example()
    return _first_to_run(model, inputs.to(dtypes[0]) if inputs.is_floating_point() else inputs) or dtypes[0]


def _first_to_run(model: nn.Module, example: Tensor) -> torch.dtype | None:
    """Dtype of the first layer that runs; None if the model fails before."""
    dtypes: list[torch.dtype] = []

    def hook(module: nn.Module, args: Any) -> None:
        dtypes.extend(dtype for p in module.parameters(recurse=False) if (dtype := _real(p)) is not None)
        if dtypes:
            raise _Found

    handles = [module.register_forward_pre_hook(hook) for module in model.modules()]
    try:
        with torch.no_grad():
            model(example)
    except _Found:
        return dtypes[0]
    except Exception:  # it fails before its first layer: the error is reported when the model is measured
        return None
    finally:
        for handle in handles:
            handle.remove()
    return None


def _real(tensor: Tensor) -> torch.dtype | None:
    """The input dtype that fits a parameter, None for integers and 8-bit floating-point numbers."""
    dtype = tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype
    return dtype if dtype in _INPUT_DTYPES else None


@dataclass(frozen=True)
class _Cast:
    """Forward pre-hook that converts floating-point inputs to another dtype."""

    dtype: torch.dtype

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self.cast(arg) if isinstance(arg, Tensor) else arg for arg in args)

    def cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def given_as(model: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which inputs of a given dtype reach the model inside :func:`inputs_as`.

    Args:
        model: The model.
        dtype: Dtype of the inputs in the call.

    Example:
        >>> model = nn.Linear(2, 2).double()
        >>> with inputs_as(model, torch.float64):
        ...     given_as(model, torch.float32), given_as(model, torch.int64)
        (torch.float64, torch.int64)
    """
    hooks = [hook for hook in model._forward_pre_hooks.values() if isinstance(hook, _Cast)]
    return hooks[0].dtype if hooks and dtype.is_floating_point else dtype


@contextmanager
def inputs_as(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Convert floating-point inputs of a model to a dtype, for all code that runs the model inside the context.

    Gradients with respect to float32 inputs are still available. Integers are not converted.

    Args:
        model: The model, which gets a forward pre-hook for the duration of the context.
        dtype: Floating-point dtype that the model expects.

    Example:
        >>> model = nn.Linear(2, 2).double()
        >>> with inputs_as(model, torch.float64):
        ...     model(torch.zeros(1, 2)).dtype
        torch.float64
    """
    if dtype == torch.float32:
        yield
        return
    handle = model.register_forward_pre_hook(_Cast(dtype), prepend=True)
    try:
        yield
    finally:
        handle.remove()


def is_readable(tensor: Tensor) -> bool:
    """Whether :func:`plain` can convert a tensor.

    Example:
        >>> is_readable(torch.zeros(2)), is_readable(torch.zeros(2).to_sparse())
        (True, False)
    """
    if tensor.is_nested or tensor.is_sparse or tensor.layout != torch.strided:
        return False
    return isinstance(tensor, FakeTensor) or not _wraps(tensor) or _unwrap(tensor) is not None


def plain(tensor: Tensor) -> Tensor:
    """Convert a tensor of a subclass with custom behavior to a plain tensor of the same values.

    Example:
        >>> class Labeled(Tensor):
        ...     pass
        >>> type(plain(torch.ones(1).as_subclass(Labeled)))
        <class 'torch.Tensor'>
    """
    if type(tensor) in (Tensor, nn.Parameter) or isinstance(tensor, FakeTensor):
        return tensor
    unwrap = _unwrap(tensor) if _wraps(tensor) else None
    return tensor.as_subclass(Tensor) if unwrap is None else plain(unwrap())


def _wraps(tensor: object) -> bool:
    return is_traceable_wrapper_subclass(tensor)


def _unwrap(tensor: Tensor) -> Any:
    """The method that makes a plain tensor of a distributed or quantized one; None for other wrappers."""
    if hasattr(tensor, "full_tensor"):
        return tensor.full_tensor
    # Every tensor has this method; a quantized subclass overrides it.
    return tensor.dequantize if type(tensor).dequantize is not Tensor.dequantize else None
