"""One forward pass under observation: the measured layers in running order, and what follows each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genmeasures.errors import ModelError
from genmeasures.interfaces import Layer
from genmeasures.tracing.geometry import MEASURED, Geometry, MeasuredModule, geometry_of

_NORMALISATIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm, F.local_response_norm, F.rms_norm,
        torch.batch_norm, torch.instance_norm, torch.group_norm, torch.layer_norm, torch.rms_norm,
    }
)  # fmt: skip
_ACTIVATIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6,
        F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.selu, F.selu_, torch.selu, torch.selu_,
        F.celu, F.celu_, torch.celu, torch.celu_, F.prelu, torch.prelu, Tensor.prelu, F.rrelu, F.rrelu_,
        F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.tanhshrink, F.softshrink, F.hardshrink, F.threshold,
        F.threshold_, F.logsigmoid, F.hardtanh, F.hardtanh_, F.hardsigmoid, F.hardswish,
        F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_,
        F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_,
        torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_, Tensor.clamp_min, Tensor.clamp_min_,
        torch.clamp_min, torch.clamp_min_, torch.clip, Tensor.clip,
        F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax, Tensor.log_softmax,
    }
)  # fmt: skip
_DROPOUTS: frozenset[Callable[..., Any]] = frozenset(
    {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}
)
"""The identity on a model in evaluation mode."""
_FOLLOWED = _NORMALISATIONS | _ACTIVATIONS | _DROPOUTS

_NORMALISATION_MODULES = (
    nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU,
)  # fmt: skip


def is_followed(function: Callable[..., Any]) -> bool:
    """Whether a function is a normalisation, activation or dropout that a tap may follow."""
    return function in _FOLLOWED


def tensors_in(values: Iterable[object]) -> Iterator[Tensor]:
    """All tensors in (nested) arguments."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())


@dataclass(frozen=True)
class TracedLayer:
    """A layer that can be measured, and how to find its tensors in a forward pass."""

    layer: Layer
    module: nn.Module
    call: int
    """Which call of the module this is, from 0."""
    geometry: Geometry
    channels_last: bool
    steps: int
    """Number of followed functions (:func:`is_followed`) after which the output is read."""
    copy_input: bool
    """Whether the model overwrites the layer's input before the output can be read."""


@dataclass(frozen=True)
class Trace:
    """The layers that can be measured, in running order, and (name, reason) of every other."""

    layers: tuple[TracedLayer, ...]
    skipped: tuple[tuple[str, str], ...]


@dataclass
class _Use:
    function: Callable[..., Any]
    first: bool
    result: Tensor
    input_versions: dict[int, int]


@dataclass
class _Call:
    name: str
    module: nn.Module
    count: int
    input: Tensor
    input_version: int
    output: Tensor


class _Observer(TorchFunctionMode):
    """Keeps every call of a measured module, and which functions use which tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.uses: dict[int, list[_Use]] = {}
        self._kept: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = next(tensors_in([result]), None)
        if made is not None:
            versions = {id(call.input): call.input._version for call in self.calls}
            for place, used in enumerate(tensors_in([*args, *(kwargs or {}).values()])):
                # Kept alive, so that no later tensor can take over the id.
                self._kept += [used, made]
                self.uses.setdefault(id(used), []).append(_Use(func, place == 0, made, versions))
        return result

    def watch(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            count = sum(call.module is module for call in self.calls)
            given = next(tensors_in([*args, *kwargs.values()]))
            version = given._version
            self.calls.append(_Call(name, module, count, given, version, output))

        return hook

    def follow(self, call: _Call) -> tuple[list[str], int, bool]:
        """Names and number of the functions between a layer and its tap, and whether its input is lost by then."""
        names: list[str] = []
        normalised = activated = False
        current, uses = call.output, self.uses.get(id(call.output), [])
        steps = taken = 0
        changed = False
        while uses:
            use = uses[0]
            in_place = use.result is current
            if not use.first or use.function not in _FOLLOWED or use.result.shape != current.shape:
                break
            if not in_place and len(uses) > 1:
                break  # the tensor goes elsewhere too: what the next layer receives is not known
            if use.function in _NORMALISATIONS:
                if normalised:
                    break
                normalised = True
            elif use.function in _ACTIVATIONS:
                if activated:
                    break
                activated = True
            taken += 1
            if use.function not in _DROPOUTS:
                names.append(use.function.__name__.rstrip("_"))
                steps = taken
                changed = use.input_versions.get(id(call.input), call.input_version) != call.input_version
            uses = uses[1:] if in_place else self.uses.get(id(use.result), [])
            current = use.result
        return names, steps, changed


def trace(model: nn.Module, example: Tensor, tap: str) -> Trace:
    """Run the example (B, …) once and list the model's layers in the order in which they ran.

    The model must be in evaluation mode on the example's device. ``tap``: "activation" reads a
    layer's output after the normalisation and activation that directly follow it, "linear" the
    bare output. Raises ModelError if the forward pass fails or no layer can be measured.
    """
    observer = _Observer()
    handles = [
        module.register_forward_hook(observer.watch(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, MEASURED)
    ]
    try:
        with torch.no_grad(), observer:
            forward(model, example)
    finally:
        for handle in handles:
            handle.remove()
    layers: list[TracedLayer] = []
    skipped: list[tuple[str, str]] = []
    for call in observer.calls:
        name = call.name if call.count == 0 else f"{call.name}#{call.count + 1}"
        reason = _unmeasurable(call, len(example))
        if reason:
            skipped.append((name, reason))
            continue
        follow, steps, changed = observer.follow(call) if tap == "activation" else ([], 0, False)
        layers.append(_describe(call, name, len(layers), follow, steps, changed))
    called = {id(call.module) for call in observer.calls}
    skipped += _not_measured(model, called)
    if not layers:
        kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
        raise ModelError(
            "no layer can be measured: convolutions and linear layers are, the model has "
            f"{', '.join(kinds) or 'no modules'}" + "".join(f"; {name}: {reason}" for name, reason in skipped)
        )
    return Trace(tuple(layers), tuple(skipped))


def forward(model: nn.Module, inputs: Tensor) -> None:
    """Run the model for its side effects, with errors that say what went in."""
    try:
        model(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError, KeyError) as error:
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the model refuses a batch of shape {tuple(inputs.shape)}, {str(inputs.dtype).removeprefix('torch.')}: {what}"
        ) from error


def _unmeasurable(call: _Call, batch: int) -> str:
    if not isinstance(call.output, Tensor) or not call.output.is_floating_point():
        return "its output is not a floating-point tensor"
    channels_last = isinstance(call.module, nn.Linear)
    if call.output.dim() < 2 or call.input.shape[0] != batch or call.output.shape[0] != batch:
        return f"its output of shape {tuple(call.output.shape)} does not have the batch of {batch} inputs first"
    if not channels_last and call.output.dim() != len(call.module.kernel_size) + 2:  # type: ignore[arg-type]
        return f"it was called without a batch dimension (output of shape {tuple(call.output.shape)})"
    return ""


def _describe(call: _Call, name: str, index: int, follow: list[str], steps: int, copy_input: bool) -> TracedLayer:
    module: MeasuredModule = call.module  # type: ignore[assignment]
    linear = isinstance(module, nn.Linear)
    input_shape, output_shape = tuple(call.input.shape), tuple(call.output.shape)
    geometry = geometry_of(module, input_shape, output_shape)
    layer = Layer(
        index=index,
        name=name or "(model)",
        kind=type(module).__name__,
        channels=output_shape[-1] if linear else output_shape[1],
        spatial=output_shape[1:-1] if linear else output_shape[2:],
        patch_size=geometry.patch_size,
        input_size=call.input[0].numel(),
        weight_norm=float(torch.linalg.vector_norm(module.weight.detach(), dtype=torch.float64)),
        tap=" > ".join([type(module).__name__, *follow]),
    )
    return TracedLayer(layer, call.module, call.count, geometry, linear, steps, copy_input)


def _not_measured(model: nn.Module, called: set[int]) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        own = [parameter for parameter, _ in module.named_parameters(recurse=False)]
        if isinstance(module, MEASURED):
            if id(module) not in called:
                yield name or "(model)", "it was never called in the forward pass"
        elif own and not isinstance(module, _NORMALISATION_MODULES):
            what = f"parameters {', '.join(own[:3])}{', …' if len(own) > 3 else ''}"
            yield name or "(model)", f"layers of type {type(module).__name__} are not measured ({what})"
