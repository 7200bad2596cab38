"""Activation codes, the linear piece of each unit of a network (Novak et al. 2018).

The code of a unit is the number of thresholds that its pre-activation exceeds: {0, 1} for ReLU and its leaky variants,
{0, 1, 2} for ReLU6, Hardtanh and Hardsigmoid. Therefore the ‖·‖₁ distance of two codes is the number of pairs of a unit
and a threshold for which this differs, and only booleans are compared.
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
"""Called with the index of an activation and its pre-activation (B, …), before the activation runs."""


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
"""Thresholds of an activation as a function of the arguments of its call."""

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
"""Activations without a code, smooth or not. A count that left them out would be too low."""

_KEPT: frozenset[Function] = frozenset(
    {
        F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm, F.local_response_norm, F.rms_norm,
        torch.batch_norm, torch.instance_norm, torch.group_norm, torch.layer_norm, torch.rms_norm,
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
    }
)  # fmt: skip
"""Functions that may lie between a layer and its activation."""


@dataclass(frozen=True)
class Activation:
    """One call of an activation with a code in the forward pass.

    Example:
        >>> Activation("relu6", (0.0, 6.0), shape=(8, 4, 4), layer=0).thresholds
        (0.0, 6.0)
    """

    name: str
    """``relu``, ``hardtanh``, …"""
    thresholds: tuple[float, ...]
    """The code of a unit is the number of them that its pre-activation exceeds."""
    shape: tuple[int, ...]
    """Shape of the pre-activation, without the batch."""
    layer: int | None
    """Index of the layer that it directly follows, or None."""


def run(model: nn.Module, inputs: Tensor) -> Any:
    """Run a model, without compilation, because the function calls of a compiled model cannot be intercepted.

    Args:
        model: Model in evaluation mode.
        inputs: (B, …).

    Returns:
        The output of the model.

    Example:
        >>> run(nn.ReLU(), torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    with eager():
        return model(inputs)


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The input of a function call, if it is a tensor."""
    value = args[0] if args else kwargs.get("input")
    return value if isinstance(value, Tensor) else None


class Coder(TorchFunctionMode):
    """Passes the pre-activation of each activation with a code to a function, during a forward pass.

    Args:
        model: Model in evaluation mode.
        activations: Activations from :func:`find_activations`.
        receive: Called with the index of the activation and its pre-activation (B, …).

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> shapes = []
        >>> coder = Coder(net, find_activations(net, torch.zeros(2, 2)), lambda index, pre: shapes.append(pre.shape))
        >>> _ = coder.run(torch.zeros(5, 2))
        >>> shapes
        [torch.Size([5, 3])]
    """

    def __init__(self, model: nn.Module, activations: Sequence[Activation], receive: Receiver) -> None:
        super().__init__()
        self._model = model
        self._activations = activations
        self._receive = receive
        self._index = 0
        self._rows = 0
        self._fits = True

    def run(self, inputs: Tensor) -> Any:
        """Return the output for a batch (B, …).

        Raises:
            ModelError: If the model runs other activations than those found.
            Undefined: If the output has NaN or infinite values.
        """
        self._index, self._rows, self._fits = 0, len(inputs), True
        with self:
            output = run(self._model, inputs)
        if not self._fits or self._index != len(self._activations):
            raise ModelError(
                "the model ran other activations for this batch than for the first one: models whose forward pass "
                "depends on the data cannot be measured"
            )
        if isinstance(output, Tensor) and not bool(torch.isfinite(output.sum())):
            raise Undefined("NaN or infinite activations")
        return output

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CODED:
            pre = _first(args, kwargs or {})
            index, self._index = self._index, self._index + 1
            fits = index < len(self._activations) and pre is not None
            if fits and pre is not None and pre.shape == (self._rows, *self._activations[index].shape):
                self._receive(index, pre)  # before the call, which may overwrite it
            else:
                self._fits = False
        return func(*args, **(kwargs or {}))


class _Finder(TorchFunctionMode):
    """Lists the activations, and the layers that they directly follow."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Activation] = []
        self.rows: list[int] = []
        self.uncoded: list[str] = []
        self._follows: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no other tensor reuses an id

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        value = _first(args, kwargs or {})
        shape = tuple(value.shape) if value is not None else ()
        layer = self._follows.get(id(value))
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
                self._follows.pop(id(result), None)  # overwritten in place: no longer the output of the layer
        return result

    def _follow(self, output: Tensor, layer: int) -> None:
        self._alive.append(output)
        self._follows[id(output)] = layer

    @contextmanager
    def watching(self, model: nn.Module, layers: Sequence[Layer]) -> Iterator[None]:
        """Context with hooks on the layers."""
        calls: dict[str, dict[int, int]] = {}
        for index, layer in enumerate(layers):
            name, mark, call = layer.name.rpartition("#")  # "name#2" is the second call of a shared module
            if not mark or not call.isdigit():
                name, call = layer.name, "1"
            calls.setdefault("" if name == "(model)" else name, {})[int(call)] = index
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

    def _hook(self, indices: Mapping[int, int]) -> Callable[[nn.Module, Any, Any], None]:
        calls = count(1)

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            index = indices.get(next(calls))
            if index is not None and isinstance(output, Tensor):
                self._follow(output, index)

        return hook


def find_activations(model: nn.Module, example: Tensor, layers: Sequence[Layer] = ()) -> tuple[Activation, ...]:
    """Find the activations of a model.

    Args:
        model: Model in evaluation mode.
        example: Inputs float32 (B, …), B ≥ 2.
        layers: Layers that activations are attributed to, if they follow directly or after a normalization.

    Returns:
        The activations in the order of the forward pass.

    Raises:
        Undefined: If an activation has no code, there is no activation, or the first dimension of one is not the batch.
        ModelError: If the activations depend on the number of inputs.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.Hardtanh())
        >>> for activation in find_activations(net, torch.zeros(2, 2)):
        ...     print(activation.name, activation.thresholds, activation.shape)
        relu (0.0,) (3,)
        hardtanh (-1.0, 1.0) (4,)
    """
    finders = []
    with torch.no_grad():
        # Another dimension may have the length of the batch, but only the batch is shorter for fewer inputs.
        for inputs in (example, example[:-1]):
            finder = _Finder()
            with finder.watching(model, layers), finder:
                run(model, inputs.clone())
            finders.append(finder)
    finder, fewer = finders
    if finder.uncoded:
        names = ", ".join(dict.fromkeys(finder.uncoded))
        raise Undefined(
            f"{names} has no activation code; ReLU, LeakyReLU, PReLU, ReLU6, Hardtanh and Hardsigmoid have one"
        )
    if not finder.found:
        raise Undefined("the model has no activation with a code")
    for activation, rows, less in zip(finder.found, finder.rows, fewer.rows, strict=False):
        if (rows, less) != (len(example), len(example) - 1):
            raise Undefined(f"the first dimension of {activation.name} on {activation.shape} is not the batch")
    if fewer.found != finder.found:
        raise ModelError("the model runs other activations for fewer inputs")
    return tuple(finder.found)
