"""Access to the input and output of layers while a model runs."""

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
from genmeasures.tracing.functions import FOLLOWED, JOINS
from genmeasures.tracing.trace import OTHER_LAYERS, TracedLayer, forward, tensors_in

Receiver: TypeAlias = Callable[[TracedLayer, Tensor, Tensor], None]
"""Called with a layer, its input (B, …) and its output (B, …) as soon as the output is computed."""


class _AllDelivered(BaseException):
    """Ends a forward pass early; not an Exception, so that error handling in the model does not catch it."""


class Tap(TorchFunctionMode):
    """Follows each layer's output through the functions after which it is read, and passes it to a receiver.

    The receiver is called during the forward pass, so that the tensors of a layer need not be kept until its end.
    Use :func:`tapped`, which adds and removes the hooks.

    Args:
        model: The model.
        layers: Traced layers of the model.
        receive: Called once per layer and batch.
        stop: Whether to end each pass after the last of the layers.
        whole: Whether all inputs have the spatial size that was traced.
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
        joined = any(function in JOINS for traced in layers for function in traced.follow)
        self._followed = FOLLOWED | JOINS if joined else FOLLOWED
        self._pending: dict[int, list[tuple[TracedLayer, Tensor, Tensor, int]]] = {}
        """By the id of an intermediate output: its layers, their inputs, the output, and the number of functions
        followed."""
        self._calls: Counter[int] = Counter()
        self._running = False
        self._batch = 0
        self._delivered = 0
        self._failure: Exception | None = None
        self._gradients = False

    def run(self, inputs: Tensor) -> Any:
        """Run one forward pass.

        The receiver runs in the gradient mode of the caller, without autocast and transforms of torch.func,
        whichever contexts the model enters in its forward pass.

        Args:
            inputs: Batch (B, …).

        Returns:
            Output of the model, None if the pass ended early.

        Raises:
            ModelError: The model raised an error, or ran other layers than in the trace.
            Exception: Errors of the receiver are raised unchanged.
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
        if self._failure is not None:  # it was raised in the model's forward pass, which may have caught it
            raise self._failure from None
        if ended:
            return None
        ran = all(self._calls[id(traced.module)] == traced.calls for traced in self._layers.values())
        if not ran or self._delivered != len(self._layers):
            raise ModelError(OTHER_LAYERS)
        return output

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the modules of the layers."""
        if not self._running:  # the model was called by others
            return
        traced = self._layers.get((id(module), self._calls[id(module)]))
        self._calls[id(module)] += 1
        if traced is None:
            return
        layer_input = next(tensors_in([*args, *kwargs.values()]))
        if traced.follow:
            waiting = self._pending.setdefault(id(output), [])  # several if a layer calls another
            waiting.append((traced, layer_input.clone() if traced.copy_input else layer_input, output, 0))
        else:
            self._deliver(traced, layer_input, output)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._pending or func not in self._followed:
            return result
        tensors = tensors_in([*args, *(kwargs or {}).values()])
        # A sum may join the outputs of several layers; other functions read their first argument.
        used = [id(tensor) for tensor in tensors] if func in JOINS else [id(next(tensors, None))]
        waiting = [entry for key in used for entry in self._pending.pop(key, ())]
        for traced, layer_input, _, step in waiting:
            if func is not traced.follow[step]:
                self._failure = ModelError(OTHER_LAYERS)
                raise self._failure
            if step + 1 == len(traced.follow):
                self._deliver(traced, layer_input, result)
            else:
                self._pending.setdefault(id(result), []).append((traced, layer_input, result, step + 1))
        return result

    def _deliver(self, traced: TracedLayer, layer_input: Tensor, output: Tensor) -> None:
        """Check the shape of an output, pass it on, and end the pass after the last one."""
        try:
            expected = traced.output_shape(self._batch)
            if not self._whole:
                expected = _resized(expected, output, traced.channels_last)
            if output.shape != expected or len(layer_input) != self._batch:
                raise ModelError(
                    f"expected an output of shape {expected} from layer {traced.layer.name} for this batch, got "
                    f"{tuple(output.shape)}"
                )
            self._delivered += 1
            self._hand_over(traced, layer_input, output)
            if self._stop and self._delivered == len(self._layers):
                raise _AllDelivered
        except Exception as error:
            self._failure = self._failure or error  # if the model caught an error, later ones are its consequences
            raise

    def _hand_over(self, traced: TracedLayer, layer_input: Tensor, output: Tensor) -> None:
        """Call the receiver in the contexts of the caller of :meth:`run`."""
        transformed = torch._C._functorch.peek_interpreter_stack() is not None
        if torch.is_grad_enabled() == self._gradients and not transformed and not casting():
            # The usual case: entering contexts would take as long as a small layer.
            self._receive(traced, plain(layer_input), plain(output))
            return
        with torch.set_grad_enabled(self._gradients), uncast(), temporarily_clear_interpreter_stack():
            self._receive(traced, plain(_untransformed(layer_input)), plain(_untransformed(output)))


def _untransformed(tensor: Tensor) -> Tensor:
    """The tensor inside the wrappers of torch.func, which are invalid after its transform."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _resized(expected: tuple[int, ...], output: Tensor, channels_last: bool) -> tuple[int, ...]:
    """The expected shape with the spatial size of the output."""
    if output.dim() != len(expected):
        return expected
    spatial = tuple(output.shape[1:-1] if channels_last else output.shape[2:])
    return (expected[0], *spatial, expected[-1]) if channels_last else (*expected[:2], *spatial)


@contextmanager
def tapped(
    model: nn.Module, layers: Sequence[TracedLayer], receive: Receiver, stop: bool = False, whole: bool = True
) -> Iterator[Tap]:
    """Attach a :class:`Tap` to layers, and remove its hooks at the end.

    Args:
        model: The model.
        layers: Traced layers of the model.
        receive: Called with each layer, its input and its output, once per layer and batch.
        stop: Whether to end each pass after the last of the layers.
        whole: Whether all inputs have the spatial size that was traced; else they may have any.

    Yields:
        The tap, whose :meth:`Tap.run` runs the model.

    Example:
        >>> from genmeasures.tracing.trace import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> images = torch.zeros(2, 1, 8, 8)
        >>> layers = trace(net, images, "activation").layers
        >>> def receive(traced, layer_input, output):
        ...     print(traced.layer.tap, tuple(layer_input.shape), tuple(output.shape))
        >>> with tapped(net, layers, receive) as tap:
        ...     output = tap.run(images)
        Conv2d > relu (2, 1, 8, 8) (2, 4, 6, 6)
        Linear (2, 144) (2, 2)
    """
    tap = Tap(model, layers, receive, stop, whole)
    modules = {id(traced.module): traced.module for traced in layers}
    handles = [module.register_forward_hook(tap.hook, with_kwargs=True) for module in modules.values()]
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()
