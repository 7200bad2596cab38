"""Shape inference: runs of a model on tensors without elements."""

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
    """A copy of a model that shares its weights and runs on fake tensors, which have a shape but no elements.

    Inputs of any size need no memory and no time. The model itself does not run: state that it keeps of
    a forward pass stays in the copy.

    Args:
        model: The model.
        device: Device of the fake tensors.

    Raises:
        ModelError: The model cannot be copied.

    Example:
        >>> sketch = Sketch(nn.Conv2d(3, 8, 3), torch.device("cpu"))
        >>> tuple(sketch.model(sketch.input((1, 3, 100_000, 100_000))).shape)
        (1, 8, 99998, 99998)
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        # Some weights are plain attributes that a hook computes from others.
        tensors += [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
        try:
            self.model: nn.Module = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
        except Exception as error:  # a user's model may raise anything
            raise ModelError(f"the model cannot be copied: {type(error).__name__}: {error}") from error
        self.last = ""
        """Name of the module called last."""
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
        """Return a float32 input of a given shape for :attr:`model`."""
        with self._mode:
            return torch.empty(tuple(shape), dtype=torch.float32, device=self._device)

    def original(self, module: nn.Module, model: nn.Module) -> nn.Module:
        """Return the module of the original model that corresponds to a module of the copy."""
        names = {id(copied): name for name, copied in self.model.named_modules()}
        return model.get_submodule(names[id(module)])

    def _note(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self.last = name or "(model)"

        return hook


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's log of operations that reject a shape: the error is raised anyway, and may be expected."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class Shapes(TorchFunctionMode):
    """Records the shapes of all tensors that torch functions return, in order.

    Example:
        >>> with Shapes() as shapes:
        ...     _ = torch.ones(2, 3).flatten()
        >>> shapes.made
        [(2, 3), (6,)]
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, ...]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.made += [tuple(tensor.shape) for tensor in tensors_in([result])]
        return result
