"""Activation codes, the linear piece of each unit of a network (Novak et al. 2018).

The code of a unit is the number of thresholds that its pre-activation exceeds: {0, 1} for ReLU, its leaky variants, the
absolute value and the larger of two numbers, {0, 1, 2} for ReLU6, Hardtanh, Hardsigmoid, shrinkage and clamps with two
bounds. Therefore the ‖·‖₁ distance of two codes is the number of pairs of a unit
and a threshold for which this differs, and only booleans are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
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


def _clamp(input: Tensor, min: Any = None, max: Any = None, **kwargs: Any) -> tuple[float, ...] | None:
    """None where a bound is a tensor of several elements."""
    bounds = [bound for bound in (min, max) if bound is not None]
    if any(isinstance(bound, Tensor) and bound.numel() != 1 for bound in bounds):
        return None
    return tuple(value for value in map(float, bounds) if math.isfinite(value))


def _clamp_min(input: Tensor, min: Any, **kwargs: Any) -> tuple[float, ...] | None:
    return _clamp(input, min)


def _clamp_max(input: Tensor, max: Any, **kwargs: Any) -> tuple[float, ...] | None:
    return _clamp(input, max)


def _threshold(input: Tensor, threshold: float, *args: Any, **kwargs: Any) -> tuple[float, ...]:
    return (float(threshold),)


def _shrink(input: Tensor, lambd: float = 0.5, **kwargs: Any) -> tuple[float, ...]:
    return (-float(lambd), float(lambd))


def _larger(input: Tensor, other: Any = None, *args: Any, **kwargs: Any) -> tuple[float, ...] | None:
    """None for the largest or smallest element of one tensor."""
    return (0.0,) if isinstance(other, Tensor) else None


_OF_TWO: frozenset[Function] = frozenset(
    {
        torch.maximum, Tensor.maximum, torch.minimum, Tensor.minimum,
        torch.fmax, Tensor.fmax, torch.fmin, Tensor.fmin, torch.max, Tensor.max, torch.min, Tensor.min,
    }
)  # fmt: skip
"""The code of the larger or smaller of two tensors is the sign of their difference."""

_CODED: Mapping[Function, Callable[..., tuple[float, ...] | None]] = {
    **dict.fromkeys(
        (
            F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_,
            F.leaky_relu, F.leaky_relu_, F.prelu, torch.prelu, Tensor.prelu,
            torch.abs, torch.abs_, Tensor.abs, Tensor.abs_, Tensor.__abs__,
            torch.absolute, Tensor.absolute, Tensor.absolute_,
        ),
        _one_kink,
    ),
    F.relu6: _relu6,
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _hardtanh),
    F.hardsigmoid: _hardsigmoid,
    **dict.fromkeys(
        (
            torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_,
            torch.clip, torch.clip_, Tensor.clip, Tensor.clip_,
        ),
        _clamp,
    ),
    **dict.fromkeys((torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_), _clamp_min),
    **dict.fromkeys((torch.clamp_max, torch.clamp_max_, Tensor.clamp_max, Tensor.clamp_max_), _clamp_max),
    **dict.fromkeys((F.threshold, torch.threshold, torch.threshold_), _threshold),
    **dict.fromkeys((F.hardshrink, torch.hardshrink, Tensor.hardshrink, F.softshrink), _shrink),
    **dict.fromkeys(_OF_TWO, _larger),
}  # fmt: skip
"""Thresholds of an activation as a function of the arguments of its call; None for a call without a code."""

_SMOOTH: frozenset[Function] = frozenset(
    {
        F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, torch.special.expit,
        F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_,
        F.elu, F.elu_, F.selu, F.selu_, torch.selu, torch.selu_, F.celu, F.celu_, torch.celu, torch.celu_,
        F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.tanhshrink, F.logsigmoid, F.hardswish, F.glu,
        F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_,
        torch._VF.lstm, torch._VF.gru, torch._VF.rnn_tanh, torch._VF.rnn_relu,
    }
)  # fmt: skip
"""Activations that are not piecewise linear, and have no code. A count that left them out would be too low."""

_KINKS: frozenset[Function] = frozenset(
    {
        F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
        F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices,
        F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
        F.adaptive_max_pool1d_with_indices, F.adaptive_max_pool2d_with_indices, F.adaptive_max_pool3d_with_indices,
        F.fractional_max_pool2d, F.fractional_max_pool3d,
        torch.amax, Tensor.amax, torch.amin, Tensor.amin, torch.aminmax, Tensor.aminmax,
        torch.argmax, Tensor.argmax, torch.argmin, Tensor.argmin,
        torch.cummax, Tensor.cummax, torch.cummin, Tensor.cummin,
        torch.sort, Tensor.sort, torch.argsort, Tensor.argsort, torch.topk, Tensor.topk,
        torch.kthvalue, Tensor.kthvalue, torch.median, Tensor.median, torch.quantile, Tensor.quantile,
        torch.nanmedian, Tensor.nanmedian, torch.nanquantile, Tensor.nanquantile, torch.msort, Tensor.msort,
        torch.mode, Tensor.mode, F.lp_pool1d, F.lp_pool2d, F.lp_pool3d, torch.renorm, Tensor.renorm, Tensor.renorm_,
        torch.signbit, Tensor.signbit, torch.copysign, Tensor.copysign, Tensor.copysign_,
        torch.sign, Tensor.sign, Tensor.sign_, torch.sgn, Tensor.sgn, torch.heaviside, Tensor.heaviside,
        torch.round, Tensor.round, Tensor.round_, torch.floor, Tensor.floor, Tensor.floor_,
        torch.ceil, Tensor.ceil, Tensor.ceil_, torch.trunc, Tensor.trunc, Tensor.trunc_, torch.fix, Tensor.fix,
        torch.frac, Tensor.frac, torch.remainder, Tensor.remainder, torch.fmod, Tensor.fmod,
        torch.floor_divide, Tensor.floor_divide, Tensor.__floordiv__,
        torch.gt, Tensor.gt, Tensor.__gt__, torch.ge, Tensor.ge, Tensor.__ge__,
        torch.lt, Tensor.lt, Tensor.__lt__, torch.le, Tensor.le, Tensor.__le__,
        torch.where, Tensor.where, torch.masked_fill, Tensor.masked_fill, Tensor.masked_fill_,
        torch.bucketize, torch.searchsorted,
    }
)  # fmt: skip
"""Other functions with kinks or steps, which a count leaves out and its status names."""

_NORMS: Mapping[Function, tuple[int, str]] = {
    **dict.fromkeys((torch.norm, Tensor.norm, F.normalize), (1, "p")),
    **dict.fromkeys((torch.linalg.norm, torch.linalg.vector_norm, torch.linalg.matrix_norm), (1, "ord")),
    **dict.fromkeys((torch.dist, Tensor.dist, torch.cdist, F.pairwise_distance), (2, "p")),
}
"""Position and name of the order of a norm. Norms have kinks, such as those of a 1-norm, unless their order is 2."""

_DECIDED_BY_SECOND: frozenset[Function] = frozenset(
    {
        Tensor.where, torch.masked_fill, Tensor.masked_fill, Tensor.masked_fill_,
        torch.copysign, Tensor.copysign, Tensor.copysign_,
    }
)  # fmt: skip
"""Functions whose second argument, such as a condition, decides where their kinks are."""

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
    """The code of a unit is the number of them that its pre-activation exceeds; none for an activation whose values do
    not depend on the input."""
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


def _plain(func: Function) -> Function:
    """The usual function of an operator such as ``torch.ops.aten.relu``."""
    if not isinstance(func, OpOverload | OpOverloadPacket):
        return func
    packet = func.overloadpacket if isinstance(func, OpOverload) else func
    places = (place for place in (torch, F, Tensor) if hasattr(place, packet.__name__))
    plain: Function = getattr(next(places, None), packet.__name__, func)
    return plain


def _has_kinks(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function call that has no code has kinks or steps."""
    if func in _NORMS:
        place, name = _NORMS[func]
        return (args[place] if len(args) > place else kwargs.get(name)) not in (None, 2, "fro")
    return func in _KINKS or func in _CODED


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The input of a function call, if it is a tensor."""
    value = args[0] if args else kwargs.get("input")
    return value if isinstance(value, Tensor) else None


def _pre_activation(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What the thresholds of a function call with a code are compared with."""
    first = _first(args, kwargs)
    if func in _OF_TWO and first is not None:
        other: Tensor = args[1] if len(args) > 1 else kwargs["other"]
        return first - other
    return first


def _decisive(func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that decides where the kinks of a function call without a code are."""
    if func in _DECIDED_BY_SECOND:
        named = [kwargs[name] for name in ("mask", "condition", "other") if name in kwargs]
        value = [*args[1:2], *named, None][0]
        return value if isinstance(value, Tensor) else None
    if func in _NORMS and _NORMS[func][0] == 2:  # a distance, which either argument decides
        return None
    if func is torch.where:
        value = args[0] if args else kwargs.get("condition")
        return value if isinstance(value, Tensor) else None
    return _first(args, kwargs)


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
        plain = _plain(func)
        if plain in _CODED and _CODED[plain](*args, **(kwargs or {})) is not None:
            index, self._index = self._index, self._index + 1
            if index >= len(self._activations):
                self._fits = False
            elif self._activations[index].thresholds:
                pre = _pre_activation(plain, args, kwargs or {})
                if pre is not None and pre.shape == (self._rows, *self._activations[index].shape):
                    self._receive(index, pre)  # before the call, which may overwrite it
                else:
                    self._fits = False
        return func(*args, **(kwargs or {}))


class _Finder(TorchFunctionMode):
    """Lists the activations, the layers that they directly follow, and other functions with kinks."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Activation] = []
        self.values: list[Tensor | None] = []
        """Pre-activations of the activations."""
        self.smooth: list[str] = []
        self.kinks: list[tuple[str, Tensor | None]] = []
        """Names of functions, and what decides where their kinks are."""
        self._follows: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no other tensor reuses an id

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named, plain = kwargs or {}, _plain(func)
        value = _first(args, named)
        layer = self._follows.get(id(value))
        if layer is None and plain in _OF_TWO:
            layer = self._follows.get(id(args[1] if len(args) > 1 else named.get("other")))
        thresholds = _CODED[plain](*args, **named) if plain in _CODED else None
        name = getattr(plain, "__name__", str(plain)).strip("_").removeprefix("linalg_")
        if thresholds is not None:
            pre = _pre_activation(plain, args, named)
            self.values.append(None if pre is None else pre.clone())
            self.found.append(Activation(name, thresholds, () if pre is None else tuple(pre.shape[1:]), layer))
        elif plain in _SMOOTH:
            self.smooth.append(name)
        elif _has_kinks(plain, args, named):
            decisive = _decisive(plain, args, named)
            self.kinks.append((name, None if decisive is None else decisive.clone()))
        result = func(*args, **named)
        if isinstance(result, Tensor):
            if plain in _KEPT and layer is not None:
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


@dataclass(frozen=True)
class Survey:
    """What a forward pass runs that makes a function piecewise linear, or keeps it from being so.

    Example:
        >>> Survey((), smooth=("gelu",), kinks=("max_pool2d",)).note
        'kinks of max_pool2d are not counted'
    """

    activations: tuple[Activation, ...]
    """Those with a code, in the order of the forward pass."""
    smooth: tuple[str, ...]
    """Names of the activations that are not piecewise linear."""
    kinks: tuple[str, ...]
    """Names of other functions of the input with kinks or steps, such as max pooling, which have no code."""

    @property
    def note(self) -> str:
        """A note on the kinks without a code, "" if there are none."""
        return f"kinks of {', '.join(self.kinks)} are not counted" if self.kinks else ""

    @property
    def coded(self) -> tuple[Activation, ...]:
        """The activations, if every activation has a code.

        Raises:
            Undefined: If an activation has no code, or there is no activation.
        """
        if self.smooth:
            raise Undefined(
                f"{', '.join(self.smooth)} has no activation code; ReLU, LeakyReLU, PReLU, ReLU6, Hardtanh, "
                "Hardsigmoid, Threshold, Hardshrink, Softshrink, clamp, abs and maximum have one"
            )
        if not any(activation.thresholds for activation in self.activations):
            raise Undefined("the model has no activation with a code")
        return self.activations


def survey(model: nn.Module, example: Tensor, layers: Sequence[Layer] = ()) -> Survey:
    """Find the activations of a model, and its other functions with kinks.

    Args:
        model: Model in evaluation mode.
        example: Different inputs (B, …), B ≥ 2. A mask that is equal for all of them counts as constant.
        layers: Layers that activations are attributed to, if they follow directly or after a normalization.

    Raises:
        Undefined: If the first dimension of an activation is not the batch.
        ModelError: If the activations depend on the number of inputs.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2))
        >>> survey(net, torch.rand(3, 1, 8, 8)).kinks
        ('max_pool2d',)
    """
    finders = []
    with torch.no_grad():
        # Another dimension may have the length of the batch, but only the batch is shorter for fewer inputs.
        for inputs in (example, example.flip(0)[:-1]):
            finder = _Finder()
            with finder.watching(model, layers), finder:
                run(model, inputs.clone())
            finders.append(finder)
    finder, fewer = finders
    names = [[activation.name for activation in one.found] + [name for name, _ in one.kinks] for one in finders]
    if names[0] != names[1]:
        raise ModelError("the model runs other activations for fewer inputs")
    activations = []
    for activation, value, other in zip(finder.found, finder.values, fewer.values, strict=True):
        if value is not None and other is not None and torch.equal(value, other):
            activations.append(replace(activation, thresholds=()))
        elif value is None or other is None or (len(value), len(other)) != (len(example), len(example) - 1):
            raise Undefined(f"the first dimension of {activation.name} on {activation.shape} is not the batch")
        else:
            activations.append(activation)
    kinks = [
        name
        for (name, value), (_, other) in zip(finder.kinks, fewer.kinks, strict=True)
        if not _is_constant(value, other)
    ]
    return Survey(tuple(activations), tuple(dict.fromkeys(finder.smooth)), tuple(dict.fromkeys(kinks)))


def _is_constant(value: Tensor | None, other: Tensor | None) -> bool:
    """Whether a value is equal for all inputs, given it for inputs and for fewer of them in reverse order."""
    if value is None or other is None or value.dim() != other.dim() or value.shape[1:] != other.shape[1:]:
        return False
    if value.dim() == 0:
        return torch.equal(value, other)
    rows = min(len(value), len(other))
    alike = torch.equal(value[:rows], other[:rows])
    # Rows of a batch that are equal for all inputs are equal to each other.
    return alike and (len(value) == len(other) or bool((value == value[:1]).all()))


def find_activations(model: nn.Module, example: Tensor, layers: Sequence[Layer] = ()) -> tuple[Activation, ...]:
    """Find the activations of a model, all of which must have a code.

    Args:
        model: Model in evaluation mode.
        example: Inputs (B, …), B ≥ 2.
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
    return survey(model, example, layers).coded
