"""Models of any floating-point type: what they are given, how far they round, and plain tensors of what they make."""

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
    """Ends a forward pass of which no more is needed; no model's own handling of errors catches it."""


def rounding(dtype: torch.dtype) -> float:
    """Largest difference, as a share of the values, that rounding alone explains in a deep network.

    float32 is that of TF32. float64 allows for a few float32 operations within.
    """
    return _ROUNDING.get(dtype, 1e-3)


def input_dtype(model: nn.Module, example: Callable[[], Tensor]) -> torch.dtype:
    """The floating-point type in which a model takes its inputs.

    That of its parameters; of buffers where it has none; of the first layer that runs where these differ, or of the
    first parameter where no layer can be seen to run; float32 for a model without any.

    Args:
        model: on the device of the inputs.
        example: gives some inputs (B, …), to be run as far as the first layer where types differ.
    """
    dtypes = [dtype for parameter in model.parameters() if (dtype := _real(parameter)) is not None]
    if not dtypes:
        dtypes = [dtype for buffer in model.buffers() if (dtype := _real(buffer)) is not None]
    if len(set(dtypes)) < 2:
        return dtypes[0] if dtypes else torch.float32
    inputs = example()
    return _first_to_run(model, inputs.to(dtypes[0]) if inputs.is_floating_point() else inputs) or dtypes[0]


def _first_to_run(model: nn.Module, example: Tensor) -> torch.dtype | None:
    found: list[torch.dtype] = []

    def hook(module: nn.Module, args: Any) -> None:
        found.extend(dtype for p in module.parameters(recurse=False) if (dtype := _real(p)) is not None)
        if found:
            raise _Found

    handles = [module.register_forward_pre_hook(hook) for module in model.modules()]
    try:
        with torch.no_grad():
            model(example)
    except _Found:
        return found[0]
    except Exception:  # it fails before its first layer: what it says comes when it is run in earnest
        return None
    finally:
        for handle in handles:
            handle.remove()
    return None


def _real(tensor: Tensor) -> torch.dtype | None:
    """The input type that fits a parameter, None for integers and 8-bit floating-point numbers."""
    dtype = tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype
    return dtype if dtype in _INPUT_DTYPES else None


@dataclass(frozen=True)
class _Cast:
    """Forward pre-hook that turns floating-point inputs into another type."""

    dtype: torch.dtype

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self.cast(one) if isinstance(one, Tensor) else one for one in args)

    def cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def given_as(model: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The type in which inputs of that type reach the model."""
    hooks = [hook for hook in model._forward_pre_hooks.values() if isinstance(hook, _Cast)]
    return hooks[0].dtype if hooks and dtype.is_floating_point else dtype


@contextmanager
def inputs_as(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Floating-point inputs of the model come to it in that type, whatever they are given in.

    For all who run the model: float32 inputs stay differentiable, and integers stay as they are.
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
    """Whether :func:`plain` can read a tensor."""
    if tensor.is_nested or tensor.is_sparse or tensor.layout != torch.strided:
        return False
    return isinstance(tensor, FakeTensor) or not _wraps(tensor) or _unwrap(tensor) is not None


def plain(tensor: Tensor) -> Tensor:
    """The same values as a plain tensor, where it is of a subclass with behavior of its own."""
    if type(tensor) in (Tensor, nn.Parameter) or isinstance(tensor, FakeTensor):
        return tensor
    unwrap = _unwrap(tensor) if _wraps(tensor) else None
    return tensor.as_subclass(Tensor) if unwrap is None else plain(unwrap())


def _wraps(tensor: object) -> bool:
    return is_traceable_wrapper_subclass(tensor)


def _unwrap(tensor: Tensor) -> Any:
    """What makes a plain tensor of one that wraps others, of distributed and quantized tensors; None for others."""
    if hasattr(tensor, "full_tensor"):
        return tensor.full_tensor
    # Every tensor has this method; a subclass that means it defines its own.
    return tensor.dequantize if type(tensor).dequantize is not Tensor.dequantize else None
