"""A model run for the shapes of its tensors alone, without memory for their elements."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from genmeasures.errors import ModelError
from genmeasures.tracing.trace import tensors_in


class Sketch:
    """A copy of a model that shares its weights, for tensors that have a shape and no elements.

    Inputs of any size cost nothing. The model itself does not run: what it may keep of a forward
    pass stays in the copy. Raises ModelError for a model that cannot be copied.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        # Some weights are plain attributes, made of others by a hook.
        tensors += [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
        try:
            self.model: nn.Module = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
        except Exception as error:  # whatever a user's model holds
            raise ModelError(f"the model cannot be copied: {type(error).__name__}: {error}") from error
        self.last = ""
        """Name of the module that was called last."""
        self._device = device
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        for name, module in self.model.named_modules():
            module.register_forward_pre_hook(self._note(name))
        forward = self.model.forward

        def sketched(*args: Any, **kwargs: Any) -> Any:
            with self._mode, _quiet():
                return forward(*args, **kwargs)

        self.model.forward = sketched

    def input(self, shape: Sequence[int]) -> Tensor:
        """An input float32 of that shape for :attr:`model`."""
        with self._mode:
            return torch.empty(tuple(shape), dtype=torch.float32, device=self._device)

    def original(self, module: nn.Module, model: nn.Module) -> nn.Module:
        """The module of the model of which this one is the copy."""
        names = {id(one): name for name, one in self.model.named_modules()}
        return model.get_submodule(names[id(module)])

    def _note(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self.last = name or "(model)"

        return hook


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's log of an operation that takes no such shape: the error itself says so, and may be expected."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class Shapes(TorchFunctionMode):
    """Keeps the shapes of all tensors that functions make, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, ...]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.made += [tuple(tensor.shape) for tensor in tensors_in([result])]
        return result
