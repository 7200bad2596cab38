"""One forward pass under observation: the measured layers in running order, and what follows each."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from genmeasures.errors import ModelError
from genmeasures.interfaces import Layer
from genmeasures.tracing.dtypes import given_as, is_readable, plain
from genmeasures.tracing.geometry import MEASURED, Geometry, MeasuredModule, follows_geometry, geometry_of
from genmeasures.tracing.randomness import Generators
from genmeasures.tracing.repeat import RANDOM, Observed, Sample, alone, notes, sample
from genmeasures.tracing.skipped import attribute_tensors, not_measured

OTHER_LAYERS = (
    "the model ran other layers for this batch than for the first one: "
    "forward passes that depend on the data cannot be measured"
)

_NORMALIZATIONS: frozenset[Callable[..., Any]] = frozenset(
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
        torch.rrelu, torch.rrelu_, F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.tanhshrink, F.softshrink,
        F.hardshrink, Tensor.hardshrink, F.threshold, torch.threshold, torch.threshold_, F.logsigmoid,
        F.hardtanh, F.hardtanh_, F.hardsigmoid, F.hardswish,
        F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_,
        F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_,
        torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_, Tensor.clamp_min, Tensor.clamp_min_,
        torch.clamp_min, torch.clamp_min_, torch.clip, torch.clip_, Tensor.clip, Tensor.clip_,
        F.softmax, F.softmin, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax, Tensor.log_softmax,
    }
)  # fmt: skip
_DROPOUTS: frozenset[Callable[..., Any]] = frozenset(
    {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}
)
"""The identity on a model in evaluation mode."""
_FOLLOWED = _NORMALIZATIONS | _ACTIVATIONS | _DROPOUTS


_NORM_ELEMENTS = 1 << 18
"""Of a weight, converted to float64 at a time."""
_SEEDS = (0, 1)
"""Of the first pass and of the second: what is random shows."""


def is_followed(function: Callable[..., Any]) -> bool:
    """Whether a function is a normalization, activation or dropout that a tap may follow."""
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
    calls: int
    """How often the module is called in one forward pass."""
    geometry: Geometry
    channels_last: bool
    follow: tuple[Callable[..., Any], ...]
    """The functions (:func:`is_followed`) after which the output is read, in running order."""
    copy_input: bool
    """Whether the model overwrites the layer's input before the output can be read."""
    reads: int | None
    """The index of the layer whose output, where it is tapped, is this layer's input; None if it is none's."""
    note: str = ""
    """What a reader of the layer's values must know: that its features are random, for example."""

    def output_shape(self, batch: int) -> tuple[int, ...]:
        """The shape of the layer's output for that many inputs."""
        channels, spatial = self.layer.channels, self.layer.spatial
        return (batch, *spatial, channels) if self.channels_last else (batch, channels, *spatial)


@dataclass(frozen=True)
class Trace:
    """The layers that can be measured, in running order, and (name, reason) of every other."""

    layers: tuple[TracedLayer, ...]
    skipped: tuple[tuple[str, str], ...]
    note: str = ""
    """What a reader of values of the whole model must know."""


@dataclass(frozen=True)
class _Seen:
    """What is kept of a tensor, which itself is left to the model: a trace must not need more memory than a pass."""

    number: int
    """Tells the tensor from all others of the pass, also from those that later take over its memory or its id."""
    shape: tuple[int, ...]
    version: int
    """How often it had been written to."""


@dataclass
class _Use:
    function: Callable[..., Any]
    first: bool
    result: _Seen
    input_versions: dict[int, int]
    """By number, how often the inputs of the layers that had run had been written to."""
    sample: Sample | None


@dataclass
class _Call:
    name: str
    module: nn.Module
    count: int
    input: _Seen | None
    writes: Tensor | None
    """What counts the writes to the input."""
    output: _Seen | None
    """None for what is no floating-point tensor."""
    output_kind: str
    readable: bool
    """Whether input and output can be read."""
    sample: Sample | None


class _Observer(TorchFunctionMode):
    """Notes every call of a measured module, and which functions use which tensors, in one forward pass.

    watch: looks for every layer whether the pass has drawn random numbers by then.
    """

    def __init__(self, batch: int, generators: Generators, seed: int, watch: bool) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.uses: dict[int, list[_Use]] = {}
        self.outputs: list[Sample | None] = []
        """Of the model."""
        self.drew = False
        """Whether the pass has drawn random numbers, when last looked at."""
        self._numbers = WeakTensorKeyDictionary()
        self._count = 0
        self._batch = batch
        self._generators = generators
        self._watch = watch
        self._looking = False
        generators.seed(seed)
        self._before = generators.state()

    def run(self, model: nn.Module, inputs: Tensor) -> None:
        """Make the pass."""
        handles = [
            module.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, module in model.named_modules()
            if isinstance(module, MEASURED)
        ]
        try:
            with torch.no_grad(), self:
                output = forward(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        self._look()
        self.outputs = [self._sample(tensor) for tensor in tensors_in([output])]

    def order(self) -> list[tuple[nn.Module, int]]:
        """The calls of measured modules, in running order."""
        return [(call.module, call.count) for call in self.calls]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = None if self._looking else next(tensors_in([result]), None)
        if made is not None:
            followed = func in _FOLLOWED
            versions = (
                {call.input.number: _version(call.writes) for call in self.calls if call.input} if followed else {}
            )
            kept = self._sample(made) if followed else None
            seen = self._seen(made)
            for place, used in enumerate(tensors_in([*args, *(kwargs or {}).values()])):
                self.uses.setdefault(self._number(used), []).append(_Use(func, place == 0, seen, versions, kept))
        return result

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            count = sum(call.module is module for call in self.calls)
            given = next(tensors_in([*args, *kwargs.values()]), None)
            read = None if given is None else self._seen(given)
            made = self._seen(output) if isinstance(output, Tensor) and output.is_floating_point() else None
            readable = all(is_readable(tensor) for tensor in (given, output) if isinstance(tensor, Tensor))
            kept, kind, counter = self._sample(output), type(output).__name__, self._counter(given)
            self.calls.append(_Call(name, module, count, read, counter, made, kind, readable, kept))

        return hook

    def _number(self, tensor: Tensor) -> int:
        if tensor not in self._numbers:
            self._count += 1
            self._numbers[tensor] = self._count
        number: int = self._numbers[tensor]
        return number

    def _seen(self, tensor: Tensor) -> _Seen:
        ragged = tensor.is_nested and tensor.layout == torch.strided  # it has no shape
        return _Seen(self._number(tensor), () if ragged else tuple(tensor.shape), _version(tensor))

    def _counter(self, tensor: Tensor | None) -> Tensor | None:
        """What counts the writes to a tensor, those through its views too, and has no memory of its elements."""
        if tensor is None or tensor.is_inference():
            return None
        wrapped = type(tensor) not in (Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        if wrapped or tensor.layout != torch.strided:
            return tensor
        self._looking = True  # this is no use of the tensor
        try:
            made = tensor.detach()
            made.data = made.new_empty(0)  # the counter stays that of the tensor
        finally:
            self._looking = False
        return made

    def _look(self) -> None:
        self.drew = self.drew or self._generators.state() != self._before

    def _sample(self, tensor: object) -> Sample | None:
        if self._watch:
            self._look()
        if isinstance(tensor, FakeTensor):  # it has no values
            return None
        self._looking = True  # what a sample is made by is no use of the tensor
        try:
            return sample(tensor, self._batch, self.drew)
        finally:
            self._looking = False

    def follow(self, call: _Call, tap: str) -> tuple[tuple[Callable[..., Any], ...], bool, _Use | _Call]:
        """The functions between a layer and its tap, whether its input is overwritten by then, and where it is tapped.

        That is the last of these functions, or the call itself where there is none.
        """
        if tap != "activation":
            return (), False, call
        assert call.input is not None
        assert call.output is not None
        taken: list[Callable[..., Any]] = []
        steps = 0
        normalized = activated = changed = False
        current, uses = call.output, self.uses.get(call.output.number, [])
        tapped: _Use | _Call = call
        while uses:
            use = uses[0]
            in_place = use.result.number == current.number
            if not use.first or use.function not in _FOLLOWED or use.result.shape != current.shape:
                break
            if not in_place and len(uses) > 1:
                break  # the tensor goes elsewhere too: what the next layer receives is not known
            if use.function in _NORMALIZATIONS:
                if normalized:
                    break
                normalized = True
            elif use.function in _ACTIVATIONS:
                if activated:
                    break
                activated = True
            taken.append(use.function)
            if use.function not in _DROPOUTS:
                steps = len(taken)
                tapped = use
                version = use.input_versions[call.input.number]
                changed = version < 0 or version != call.input.version
            uses = uses[1:] if in_place else self.uses.get(use.result.number, [])
            current = use.result
        return tuple(taken[:steps]), changed, tapped


def _version(tensor: Tensor | None) -> int:
    """How often a tensor was written to; −1 where that is not counted: a forward pass under inference_mode."""
    return -1 if tensor is None or tensor.is_inference() else int(tensor._version)


def trace(model: nn.Module, example: Tensor, tap: str) -> Trace:
    """Run the example (B, …) and list the model's layers in the order in which they ran.

    It runs twice, the second time with the last input in the place of all and one input less: where its
    features differ by more than rounding, or random numbers are drawn, the notes of the layers and of the
    trace say so. No generator of random numbers is moved.

    The model must be in evaluation mode on the example's device. ``tap``: "activation" reads a
    layer's output after the normalization and activation that directly follow it, "linear" the
    bare output. Raises ModelError if the forward pass fails or no layer can be measured.
    """
    generators = Generators(model, example.device)
    with generators.kept():
        return _trace(model, example, tap, generators)


def _trace(model: nn.Module, example: Tensor, tap: str, generators: Generators) -> Trace:
    def observe(inputs: Tensor, seed: int, watch: bool = False) -> _Observer:
        while True:
            modules = set(model.modules())
            observer = _Observer(len(inputs), generators, seed, watch)
            observer.run(model, inputs)
            if set(model.modules()) == modules:  # else it made some at this call, which were not seen
                return observer

    observer = observe(example, _SEEDS[0])
    attributes = attribute_tensors(model)
    # Only the batch dimension is shorter for fewer inputs: another may happen to be as long.
    again = observe(alone(example, max(1, len(example) - 1)), _SEEDS[1])
    _check_order(observer, again)
    layers: list[TracedLayer] = []
    skipped: list[tuple[str, str]] = []
    calls = Counter(id(call.module) for call in observer.calls)
    makers: dict[tuple[int, int], int] = {}
    places: list[int] = []
    for place, (call, fewer) in enumerate(zip(observer.calls, again.calls, strict=True)):
        name = call.name or "(model)"
        name = name if call.count == 0 else f"{name}#{call.count + 1}"
        reason = _unmeasurable(call, len(example), fewer if len(example) > 1 else None)
        if reason:
            skipped.append((name, reason))
            continue
        follow, changed, made = observer.follow(call, tap)
        assert call.input is not None
        reads = makers.get((call.input.number, call.input.version))
        result = made.output if isinstance(made, _Call) else made.result
        assert result is not None
        makers[result.number, result.version] = len(layers)
        layers.append(_describe(call, name, len(layers), calls[id(call.module)], follow, changed, reads))
        places.append(place)
    skipped += not_measured(model, set(calls), attributes)
    if not layers:
        kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
        raise ModelError(
            "no layer can be measured: convolutions and linear layers are, the model has "
            f"{', '.join(kinds) or 'no modules'}" + "".join(f"; {name}: {reason}" for name, reason in skipped)
        )

    def observed(one: _Observer) -> Observed:
        tapped = [one.follow(one.calls[place], tap)[2].sample for place in places]
        return Observed([*tapped, *one.outputs], one.drew)

    def repeat(inputs: Tensor) -> Observed:
        made = observe(inputs, _SEEDS[0], watch=True)
        _check_order(observer, made)
        return observed(made)

    by_site = notes(example, observed(observer), observed(again), repeat)
    described = tuple(replace(layer, note=note) for layer, note in zip(layers, by_site, strict=False))
    whole = "; ".join(dict.fromkeys(text for note in by_site for text in note.split("; ") if text))
    return Trace(described, tuple(skipped), whole)


def _check_order(one: _Observer, other: _Observer) -> None:
    if one.order() != other.order():
        random = one.drew and other.drew
        raise ModelError(f"{OTHER_LAYERS}; {RANDOM}" if random else OTHER_LAYERS)


def forward(model: nn.Module, inputs: Tensor) -> Any:
    """Run the model, with errors that say what went in."""
    # A compiled model has no calls to see. It cannot exist where the compiler was never imported.
    compiler = "torch._dynamo" in sys.modules
    try:
        with torch.compiler.set_stance("force_eager") if compiler else nullcontext():
            return model(inputs)
    except Exception as error:  # whatever a user's model raises
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        what = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        dtype = given_as(model, inputs.dtype)
        name = str(dtype).removeprefix("torch.")
        if dtype in (torch.float16, torch.bfloat16) and inputs.device.type == "cpu":
            what += f" (not all operations take {name} on a CPU: run it on a GPU, or give model.float())"
        raise ModelError(f"the model refuses a batch of shape {tuple(inputs.shape)}, {name}: {kind}{what}") from error


def _unmeasurable(call: _Call, batch: int, fewer: _Call | None) -> str:
    """Why a layer's tensors cannot be read, if so; ``fewer``: the call for one input less, None if there is none."""
    module: MeasuredModule = call.module  # type: ignore[assignment]
    if call.input is None:
        return "it was called without a tensor"
    if call.output is None:
        return "its output is not a floating-point tensor"
    given, made = call.input.shape, call.output.shape
    if not isinstance(module, nn.Linear) and len(made) == len(module.kernel_size) + 1:
        return f"it was called without a batch dimension (output of shape {made})"
    short = batch - 1 if fewer is None else fewer.output.shape[0] if fewer.output and fewer.output.shape else 0
    if len(made) < 2 or given[:1] != (batch,) or made[0] != batch or short != batch - 1:
        return f"its output of shape {made} does not have the batch of {batch} inputs first"
    if not follows_geometry(module, given, made):
        return (
            f"its output of shape {made} does not follow from its input of shape {given} by its own kernel and padding"
        )
    if not call.readable:
        return f"its tensors are of type {call.output_kind}, which cannot be read as plain tensors"
    weight: Any = module.weight
    if not isinstance(weight, Tensor) or not is_readable(weight) or not plain(weight.detach()).is_floating_point():
        kind = f"as {weight.dtype}".replace("torch.", "") if isinstance(weight, Tensor) else "packed"
        return f"its weight is stored {kind}: give the model as it was before quantization"
    return ""


def _describe(
    call: _Call,
    name: str,
    index: int,
    calls: int,
    follow: tuple[Callable[..., Any], ...],
    copy_input: bool,
    reads: int | None,
) -> TracedLayer:
    assert call.input is not None
    assert call.output is not None
    module: MeasuredModule = call.module  # type: ignore[assignment]
    linear = isinstance(module, nn.Linear)
    input_shape, output_shape = call.input.shape, call.output.shape
    geometry = geometry_of(module, input_shape, output_shape)
    kind = parametrize.type_before_parametrizations(module).__name__
    layer = Layer(
        index=index,
        name=name,
        kind=kind,
        channels=output_shape[-1] if linear else output_shape[1],
        spatial=output_shape[1:-1] if linear else output_shape[2:],
        patch_size=geometry.patch_size,
        input_size=math.prod(input_shape[1:]),
        weight_norm=_norm(plain(module.weight.detach())),
        tap=" > ".join([kind, *(step.__name__.strip("_") for step in follow if step not in _DROPOUTS)]),
    )
    return TracedLayer(layer, call.module, call.count, calls, geometry, linear, follow, copy_input, reads)


def _norm(weight: Tensor) -> float:
    """The Frobenius norm, summed in float64 without a copy of the whole in float64."""
    parts = weight.flatten().split(_NORM_ELEMENTS)
    return math.sqrt(sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in parts))
