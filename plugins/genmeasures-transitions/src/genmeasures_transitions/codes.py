"""Activation codes: which linear piece each unit of a network is on (Novak et al. 2018).

A unit's code is the number of thresholds that its pre-activation exceeds: {0, 1} for ReLU and its
leaky kin, {0, 1, 2} for ReLU6, Hardtanh and Hardsigmoid. So the ‖·‖₁ distance of two codes is the
number of (unit, threshold) pairs on which "exceeds" differs, and booleans are all that is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genmeasures.plugin import Layer, ModelError, Undefined, eager

Function: TypeAlias = Callable[..., Any]
Receiver: TypeAlias = Callable[[int, Tensor], None]
"""Called with the place of an activation among all and its pre-activation (B, …), before the activation runs."""


def _one_kink(*args: Any, **kwargs: Any) -> tuple[float, ...]:
    return (0.0,)


def _relu6(*args: Any, **kwargs: Any) -> tuple[float, ...]:
    return (0.0, 6.0)


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> tuple[float, ...]:
    return (float(min_val), float(max_val))


def _hardsigmoid(*args: Any, **kwargs: Any) -> tuple[float, ...]:
    return (-3.0, 3.0)


_CODED: Mapping[Function, Callable[..., tuple[float, ...]]] = {
    **dict.fromkeys(
        (
            F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_,
            F.leaky_relu, F.leaky_relu_, F.prelu, torch.prelu, Tensor.prelu,
        ),
        _one_kink,
    ),
    F.relu6: _relu6,
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _hardtanh),
    F.hardsigmoid: _hardsigmoid,
}  # fmt: skip
"""The thresholds of an activation, of the arguments it is called with."""

_UNCODED: frozenset[Function] = frozenset(
    {
        F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, torch.special.expit,
        F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_,
        F.elu, F.elu_, F.selu, F.selu_, torch.selu, torch.selu_, F.celu, F.celu_, torch.celu, torch.celu_,
        F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.tanhshrink, F.logsigmoid, F.hardswish, F.glu,
        F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_, F.softshrink, F.hardshrink, Tensor.hardshrink,
        F.threshold, torch.threshold, torch.threshold_,
        torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_, torch.clip, torch.clip_, Tensor.clip, Tensor.clip_,
        torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_,
        torch.clamp_max, torch.clamp_max_, Tensor.clamp_max, Tensor.clamp_max_,
        torch._VF.lstm, torch._VF.gru, torch._VF.rnn_tanh, torch._VF.rnn_relu,
    }
)  # fmt: skip
"""Activations without a code here, smooth or not: to leave them out in silence would give a count of less than all."""

_KEPT: frozenset[Function] = frozenset(
    {
        F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm, F.local_response_norm, F.rms_norm,
        torch.batch_norm, torch.instance_norm, torch.group_norm, torch.layer_norm, torch.rms_norm,
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
    }
)  # fmt: skip
"""What may stand between a layer and its activation."""


@dataclass(frozen=True)
class Activation:
    """One call of an activation with a code in the forward pass."""

    name: str
    """``relu``, ``hardtanh``, …"""
    thresholds: tuple[float, ...]
    """A unit's code is how many of them its pre-activation exceeds."""
    shape: tuple[int, ...]
    """Shape of the pre-activation, without the batch."""
    layer: int | None
    """Place, among the layers asked for, of the one that it directly follows; None if it follows none."""


def run(model: nn.Module, inputs: Tensor) -> Any:
    """The model's output. A compiled model is run uncompiled: otherwise it calls no functions that could be seen."""
    with eager():
        return model(inputs)


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    given = args[0] if args else kwargs.get("input")
    return given if isinstance(given, Tensor) else None


class Coder(TorchFunctionMode):
    """Hands over the pre-activation of each activation with a code, in the midst of a forward pass."""

    def __init__(self, model: nn.Module, activations: Sequence[Activation], receive: Receiver) -> None:
        super().__init__()
        self._model = model
        self._activations = activations
        self._receive = receive
        self._place = 0
        self._rows = 0
        self._fits = True

    def run(self, inputs: Tensor) -> Any:
        """The output for a batch (B, …).

        Raises ModelError if other activations run than were found, Undefined for a NaN or infinite output.
        """
        self._place, self._rows, self._fits = 0, len(inputs), True
        with self:
            output = run(self._model, inputs)
        if not self._fits or self._place != len(self._activations):
            raise ModelError(
                "the model ran other activations for this batch than for the first one: "
                "forward passes that depend on the data cannot be measured"
            )
        if isinstance(output, Tensor) and not bool(torch.isfinite(output.sum())):
            raise Undefined("NaN or infinite activations")
        return output

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CODED:
            given = _first(args, kwargs or {})
            place, self._place = self._place, self._place + 1
            fits = place < len(self._activations) and given is not None
            if fits and given is not None and given.shape == (self._rows, *self._activations[place].shape):
                self._receive(place, given)  # before the call, which may write over it
            else:
                self._fits = False
        return func(*args, **(kwargs or {}))


class _Finder(TorchFunctionMode):
    """Lists the activations, and which of them directly follow an output of the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Activation] = []
        self.rows: list[int] = []
        self.uncoded: list[str] = []
        self._follows: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no later tensor can take over an id

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = _first(args, kwargs or {})
        shape = tuple(given.shape) if given is not None else ()
        layer = self._follows.get(id(given))
        result = func(*args, **(kwargs or {}))
        if func in _CODED:
            thresholds = _CODED[func](*args, **(kwargs or {}))
            self.found.append(Activation(func.__name__.strip("_"), thresholds, shape[1:], layer))
            self.rows.append(shape[0] if shape else 0)
        elif func in _UNCODED:
            self.uncoded.append(func.__name__.strip("_"))
        if isinstance(result, Tensor):
            if func in _KEPT and layer is not None:
                self._follow(result, layer)
            else:
                self._follows.pop(id(result), None)  # written over in place: no longer what the layer made
        return result

    def _follow(self, output: Tensor, layer: int) -> None:
        self._alive.append(output)
        self._follows[id(output)] = layer

    @contextmanager
    def watching(self, model: nn.Module, layers: Sequence[Layer]) -> Iterator[None]:
        """Hooks on the layers, removed at the end."""
        calls: dict[str, dict[int, int]] = {}
        for place, layer in enumerate(layers):
            name, mark, call = layer.name.rpartition("#")  # "name#2" is the second call of a shared module
            if not mark or not call.isdigit():
                name, call = layer.name, "1"
            calls.setdefault("" if name == "(model)" else name, {})[int(call)] = place
        handles = [
            module.register_forward_hook(self._hook(calls[name]))
            for name, module in model.named_modules()
            if name in calls
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, places: Mapping[int, int]) -> Callable[[nn.Module, Any, Any], None]:
        calls = count(1)

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            place = places.get(next(calls))
            if place is not None and isinstance(output, Tensor):
                self._follow(output, place)

        return hook


def find_activations(model: nn.Module, example: Tensor, layers: Sequence[Layer] = ()) -> tuple[Activation, ...]:
    """The activations with a code, in running order, of a model in evaluation mode.

    example: float32 (B, …), B ≥ 2. layers: those that activations are attributed to, where they
    follow directly or after a normalization. Raises Undefined if an activation has no code, if
    there is none, or if one does not have the batch as its first dimension.
    """
    finders = []
    with torch.no_grad():
        # Only the batch dimension is shorter for fewer inputs: another may happen to be as long.
        for inputs in (example, example[:-1]):
            finder = _Finder()
            with finder.watching(model, layers), finder:
                run(model, inputs.clone())
            finders.append(finder)
    finder, fewer = finders
    if finder.uncoded:
        names = ", ".join(dict.fromkeys(finder.uncoded))
        raise Undefined(
            f"{names} has no activation code: ReLU, LeakyReLU, PReLU, ReLU6, Hardtanh and Hardsigmoid have one"
        )
    if not finder.found:
        raise Undefined("the model calls no activation that has a code")
    for activation, rows, less in zip(finder.found, finder.rows, fewer.rows, strict=False):
        if (rows, less) != (len(example), len(example) - 1):
            raise Undefined(f"{activation.name} on {activation.shape} does not have the inputs as its first dimension")
    if fewer.found != finder.found:
        raise ModelError("the model runs other activations for fewer inputs")
    return tuple(finder.found)
