"""Hands over the input and output of chosen layers while a model runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genmeasures.errors import ModelError
from genmeasures.tracing.trace import TracedLayer, forward, is_followed, tensors_in

Receiver: TypeAlias = Callable[[TracedLayer, Tensor, Tensor], None]
"""Called with a layer, its input (B, …) and its output (B, …) as soon as the output is there."""


class Tap(TorchFunctionMode):
    """Follows each layer's output through the functions that the trace found behind it.

    The receiver is called in the midst of the forward pass, so that a layer's tensors need not
    outlive their use.
    """

    def __init__(self, model: nn.Module, layers: Sequence[TracedLayer], receive: Receiver) -> None:
        super().__init__()
        self._model = model
        self._layers = {(id(traced.module), traced.call): traced for traced in layers}
        self._receive = receive
        self._pending: dict[int, tuple[TracedLayer, Tensor, Tensor, int]] = {}
        self._calls: Counter[int] = Counter()
        self._delivered = 0
        self._busy = False
        self._failure: Exception | None = None

    def run(self, inputs: Tensor) -> None:
        """One forward pass of a batch (B, …)."""
        self._pending.clear()
        self._calls.clear()
        self._delivered = 0
        try:
            with self:
                forward(self._model, inputs)
        except ModelError:
            if self._failure is not None:
                raise self._failure from None  # the receiver's error, not the model's
            raise
        if self._delivered != len(self._layers):
            raise ModelError(
                "the model ran other layers for this batch than for the first one: "
                "forward passes that depend on the data cannot be measured"
            )

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the tapped modules."""
        traced = self._layers.get((id(module), self._calls[id(module)]))
        self._calls[id(module)] += 1
        if traced is None:
            return
        given = next(tensors_in([*args, *kwargs.values()]))
        if traced.steps == 0:
            self._deliver(traced, given, output)
        else:
            self._pending[id(output)] = (traced, given.clone() if traced.copy_input else given, output, traced.steps)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._busy or not self._pending or not is_followed(func):
            return result
        used = next(tensors_in([*args, *(kwargs or {}).values()]), None)
        waiting = self._pending.pop(id(used), None)
        if waiting is not None:
            traced, given, _, steps = waiting
            if steps == 1:
                self._deliver(traced, given, result)
            else:
                self._pending[id(result)] = (traced, given, result, steps - 1)
        return result

    def _deliver(self, traced: TracedLayer, given: Tensor, output: Tensor) -> None:
        self._delivered += 1
        self._busy = True  # the receiver's own tensor functions are none of the model's
        try:
            self._receive(traced, given, output)
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._busy = False


@contextmanager
def tapped(model: nn.Module, layers: Sequence[TracedLayer], receive: Receiver) -> Iterator[Tap]:
    """A :class:`Tap` on the layers, its hooks removed at the end."""
    tap = Tap(model, layers, receive)
    modules = {id(traced.module): traced.module for traced in layers}
    handles = [module.register_forward_hook(tap.hook, with_kwargs=True) for module in modules.values()]
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()
