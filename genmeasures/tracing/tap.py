"""Hands over the input and output of chosen layers while a model runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.overrides import TorchFunctionMode

from genmeasures.contexts import casting, uncast
from genmeasures.errors import ModelError
from genmeasures.tracing.dtypes import plain
from genmeasures.tracing.trace import OTHER_LAYERS, TracedLayer, forward, is_followed, tensors_in

Receiver: TypeAlias = Callable[[TracedLayer, Tensor, Tensor], None]
"""Called with a layer, its input (B, …) and its output (B, …) as soon as the output is there."""


class _AllDelivered(BaseException):
    """Ends a forward pass of which no more is needed; no model's own handling of errors catches it."""


class Tap(TorchFunctionMode):
    """Follows each layer's output through the functions that the trace found behind it.

    The receiver is called in the midst of the forward pass, so that a layer's tensors need not
    outlive their use.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[TracedLayer], receive: Receiver, stop: bool, whole: bool
    ) -> None:
        super().__init__()
        self._stop = stop
        self._whole = whole
        self._model = model
        self._layers = {(id(traced.module), traced.call): traced for traced in layers}
        self._receive = receive
        self._pending: dict[int, list[tuple[TracedLayer, Tensor, Tensor, int]]] = {}
        """By the id of an output so far: the layers that made it, their inputs, that output, functions followed."""
        self._calls: Counter[int] = Counter()
        self._running = False
        self._batch = 0
        self._delivered = 0
        self._failure: Exception | None = None
        self._gradients = False

    def run(self, inputs: Tensor) -> Any:
        """One forward pass of a batch (B, …); returns the model's output, None where the pass ended before it.

        The receiver runs with gradients on or off as they are here, and without autocast and transforms
        of torch.func, whatever the model enters within its forward pass.

        An error of the receiver is raised as itself, one of the model as ModelError.
        """
        self._pending.clear()
        self._calls.clear()
        self._batch, self._delivered, self._failure = len(inputs), 0, None
        output, ended, self._running = None, False, True
        self._gradients = torch.is_grad_enabled()
        try:
            with self:
                output = forward(self._model, inputs)
        except _AllDelivered:
            ended = True
        except ModelError:
            if self._failure is None:
                raise
        finally:
            self._running = False
            self._pending.clear()
        if self._failure is not None:  # raised in the model's forward pass, which may even have caught it
            raise self._failure from None
        if ended:
            return None
        ran = all(self._calls[id(traced.module)] == traced.calls for traced in self._layers.values())
        if not ran or self._delivered != len(self._layers):
            raise ModelError(OTHER_LAYERS)
        return output

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the tapped modules."""
        if not self._running:  # the model runs for another purpose
            return
        traced = self._layers.get((id(module), self._calls[id(module)]))
        self._calls[id(module)] += 1
        if traced is None:
            return
        given = next(tensors_in([*args, *kwargs.values()]))
        if traced.follow:
            waiting = self._pending.setdefault(id(output), [])  # several where a layer calls another
            waiting.append((traced, given.clone() if traced.copy_input else given, output, 0))
        else:
            self._deliver(traced, given, output)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._pending or not is_followed(func):
            return result
        used = next(tensors_in([*args, *(kwargs or {}).values()]), None)
        for traced, given, _, step in self._pending.pop(id(used), ()):
            if func is not traced.follow[step]:
                self._failure = ModelError(OTHER_LAYERS)
                raise self._failure
            if step + 1 == len(traced.follow):
                self._deliver(traced, given, result)
            else:
                self._pending.setdefault(id(result), []).append((traced, given, result, step + 1))
        return result

    def _deliver(self, traced: TracedLayer, given: Tensor, output: Tensor) -> None:
        try:
            due = traced.output_shape(self._batch)
            if not self._whole:
                due = _resized(due, output, traced.channels_last)
            if output.shape != due or len(given) != self._batch:
                raise ModelError(
                    f"the output of {traced.layer.name} for this batch is of shape {tuple(output.shape)}, {due} was due"
                )
            self._delivered += 1
            self._hand_over(traced, given, output)
            if self._stop and self._delivered == len(self._layers):
                raise _AllDelivered
        except Exception as error:
            self._failure = self._failure or error  # what follows an error that the model caught is its consequence
            raise

    def _hand_over(self, traced: TracedLayer, given: Tensor, output: Tensor) -> None:
        """Call the receiver in the contexts in which the model was run."""
        transformed = torch._C._functorch.peek_interpreter_stack() is not None
        if torch.is_grad_enabled() == self._gradients and not transformed and not casting():
            # As for most models: entering contexts takes as long as a small layer.
            self._receive(traced, plain(given), plain(output))
            return
        with torch.set_grad_enabled(self._gradients), uncast(), temporarily_clear_interpreter_stack():
            self._receive(traced, plain(_untransformed(given)), plain(_untransformed(output)))


def _untransformed(tensor: Tensor) -> Tensor:
    """The tensor behind those of a model that calls torch.func, which end with its transform."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _resized(due: tuple[int, ...], output: Tensor, channels_last: bool) -> tuple[int, ...]:
    """The shape that was due, at the spatial size of the output."""
    if output.dim() != len(due):
        return due
    spatial = tuple(output.shape[1:-1] if channels_last else output.shape[2:])
    return (due[0], *spatial, due[-1]) if channels_last else (*due[:2], *spatial)


@contextmanager
def tapped(
    model: nn.Module, layers: Sequence[TracedLayer], receive: Receiver, stop: bool = False, whole: bool = True
) -> Iterator[Tap]:
    """A :class:`Tap` on the layers, its hooks removed at the end; ``stop`` ends each pass after the last of them.

    whole: inputs are of the spatial size that was traced; else they may be of any.
    """
    tap = Tap(model, layers, receive, stop, whole)
    modules = {id(traced.module): traced.module for traced in layers}
    handles = [module.register_forward_hook(tap.hook, with_kwargs=True) for module in modules.values()]
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()
