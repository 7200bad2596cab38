"""Traces of a model: the layers that can be measured, in running order, and where their outputs are read."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from genmeasures.errors import ModelError
from genmeasures.interfaces import Layer
from genmeasures.tracing.dtypes import given_as, is_readable, plain
from genmeasures.tracing.functions import ACTIVATIONS, DROPOUTS, FOLLOWED, JOINS, NORMALIZATIONS, join_of
from genmeasures.tracing.geometry import MEASURED, Geometry, MeasuredModule, follows_geometry, geometry_of
from genmeasures.tracing.randomness import Generators
from genmeasures.tracing.repeat import RANDOM, Observed, Sample, alone, notes, sample
from genmeasures.tracing.skipped import attribute_tensors, not_measured

OTHER_LAYERS = (
    "the model ran other layers for this batch than for the first one: "
    "forward passes that depend on the data cannot be measured"
)

_NORM_ELEMENTS = 1 << 18
"""Elements of a weight that are converted to float64 at a time."""
_SEEDS = (0, 1)
"""Seeds of the first and the second pass, between which random features differ."""


def tensors_in(values: Iterable[object]) -> Iterator[Tensor]:
    """Iterate over all tensors in nested lists, tuples and dicts.

    Example:
        >>> [len(tensor) for tensor in tensors_in([torch.zeros(2), {"mask": [torch.zeros(3)]}, 4])]
        [2, 3]
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())


@dataclass(frozen=True)
class TracedLayer:
    """A layer that can be measured, and how its tensors are found in a forward pass."""

    layer: Layer
    module: nn.Module
    call: int
    """Index of the call of the module, from 0."""
    calls: int
    """Number of calls of the module in one forward pass."""
    geometry: Geometry
    channels_last: bool
    follow: tuple[Callable[..., Any], ...]
    """Functions after which the output is read, in running order."""
    copy_input: bool
    """Whether the model overwrites the layer's input before the output can be read."""
    reads: int | None
    """Index of the layer whose tapped output is this layer's input, None if there is no such layer."""
    note: str = ""
    """Caveat for the layer's values, for example that its features are random."""
    read_before: str = ""
    """Caveat for its features where the output is read before a sum or a concatenation, else ""."""

    def output_shape(self, batch: int) -> tuple[int, ...]:
        """Return the shape of the layer's output for a number of inputs."""
        channels, spatial = self.layer.channels, self.layer.spatial
        return (batch, *spatial, channels) if self.channels_last else (batch, channels, *spatial)


@dataclass(frozen=True)
class Trace:
    """Result of :func:`trace`."""

    layers: tuple[TracedLayer, ...]
    """Layers that can be measured, in running order."""
    skipped: tuple[tuple[str, str], ...]
    """(name, reason) of each other module with weights."""
    note: str = ""
    """Caveat for values of the whole model."""


@dataclass(frozen=True)
class _Seen:
    """Record of a tensor without the tensor itself, so that a trace needs no more memory than a pass."""

    number: int
    """Identifies the tensor in the pass, also after its memory or its id is reused."""
    shape: tuple[int, ...]
    version: int
    """Number of times it had been written to."""


@dataclass
class _Use:
    """Use of a tensor by a function."""

    function: Callable[..., Any]
    order: int
    """Place among all uses and calls of the pass."""
    first: bool
    """Whether the tensor was the first argument."""
    join: str
    """"sum" or "concatenation" where the function joins the tensor with others, else ""."""
    alone: bool
    """Whether it is a sum or a concatenation of this tensor alone, such as the first step of Python's ``sum``."""
    result: _Seen
    input_versions: dict[int, int]
    """Number of writes so far to the inputs of the layers that had run, by the number of the tensor."""
    sample: Sample | None


@dataclass
class _Call:
    """Call of a module that can be measured."""

    name: str
    module: nn.Module
    count: int
    """Index of the call of the module, from 0."""
    order: int
    """Place among all uses and calls of the pass."""
    input: _Seen | None
    writes: Tensor | None
    """Tensor that counts the writes to the input."""
    output: _Seen | None
    """None if the output is not a floating-point tensor."""
    output_kind: str
    readable: bool
    """Whether input and output can be converted to plain tensors."""
    sample: Sample | None


@dataclass(frozen=True)
class _Path:
    """Where the output of a layer is read, and how it gets there."""

    functions: tuple[Callable[..., Any], ...]
    """Functions between the layer and the tap."""
    names: tuple[str, ...]
    """What they are called in ``Layer.tap``, "" for those that change nothing."""
    changed: bool
    """Whether the layer's input is overwritten by then."""
    source: _Use | _Call
    """The use of the last function; the call of the layer if there is none."""
    joins: str
    """"sum" or "concatenation" where the output first goes into one, else ""."""
    joined: bool
    """Whether it is read after that."""

    @property
    def output(self) -> _Seen:
        """The tensor that is read."""
        seen = self.source.output if isinstance(self.source, _Call) else self.source.result
        assert seen is not None
        return seen


class _Observer(TorchFunctionMode):
    """Records the calls of measurable modules, and which functions use which tensors, in one forward pass.

    Args:
        batch: Number of inputs in the batch.
        generators: Generators that the pass may draw from.
        seed: Seed of the pass.
        watch: Whether to check after each function whether the pass has drawn random numbers by then.
        tap: Where outputs are read, see :func:`trace`.
    """

    def __init__(self, batch: int, generators: Generators, seed: int, watch: bool, tap: str) -> None:
        super().__init__()
        self._tap = tap
        self._followed = FOLLOWED | JOINS if tap == "block" else FOLLOWED
        self._order = 0
        self.calls: list[_Call] = []
        self.uses: dict[int, list[_Use]] = {}
        self.outputs: list[Sample | None] = []
        """Samples of the outputs of the model."""
        self.drew = False
        """Whether the pass had drawn random numbers at the last check."""
        self._numbers = WeakTensorKeyDictionary()
        self._count = 0
        self._batch = batch
        self._generators = generators
        self._watch = watch
        self._looking = False
        generators.seed(seed)
        self._before = generators.state()

    def run(self, model: nn.Module, inputs: Tensor) -> None:
        """Run the pass."""
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
        """Return the calls of measurable modules, in running order."""
        return [(call.module, call.count) for call in self.calls]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        output = None if self._looking else next(tensors_in([result]), None)
        if output is not None:
            followed = func in self._followed
            versions = (
                {call.input.number: _version(call.writes) for call in self.calls if call.input} if followed else {}
            )
            sample = self._sample(output) if followed else None
            record = self._seen(output)
            self._order += 1
            operands = list(tensors_in([*args, *(kwargs or {}).values()]))
            joining = func in JOINS
            join = join_of(func, [self._seen(tensor).shape for tensor in operands], record.shape) if joining else ""
            single = joining and len(operands) == 1
            for index, tensor in enumerate(operands):
                use = _Use(func, self._order, index == 0, join, single, record, versions, sample)
                self.uses.setdefault(self._number(tensor), []).append(use)
        return result

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            count = sum(call.module is module for call in self.calls)
            layer_input = next(tensors_in([*args, *kwargs.values()]), None)
            read = None if layer_input is None else self._seen(layer_input)
            seen_output = self._seen(output) if isinstance(output, Tensor) and output.is_floating_point() else None
            readable = all(is_readable(tensor) for tensor in (layer_input, output) if isinstance(tensor, Tensor))
            sample, kind, counter = self._sample(output), type(output).__name__, self._counter(layer_input)
            self._order += 1
            self.calls.append(
                _Call(name, module, count, self._order, read, counter, seen_output, kind, readable, sample)
            )

        return hook

    def _number(self, tensor: Tensor) -> int:
        """Number that identifies a tensor in the pass."""
        if tensor not in self._numbers:
            self._count += 1
            self._numbers[tensor] = self._count
        number: int = self._numbers[tensor]
        return number

    def _seen(self, tensor: Tensor) -> _Seen:
        ragged = tensor.is_nested and tensor.layout == torch.strided  # such a tensor has no shape
        return _Seen(self._number(tensor), () if ragged else tuple(tensor.shape), _version(tensor))

    def _counter(self, tensor: Tensor | None) -> Tensor | None:
        """A tensor without elements that counts the writes to another one, including those through views."""
        if tensor is None or tensor.is_inference():
            return None
        wrapped = type(tensor) not in (Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        if wrapped or tensor.layout != torch.strided:
            return tensor
        self._looking = True  # not a use of the tensor by the model
        try:
            counter = tensor.detach()
            counter.data = counter.new_empty(0)  # it still shares the version counter
        finally:
            self._looking = False
        return counter

    def _look(self) -> None:
        """Check whether random numbers have been drawn."""
        self.drew = self.drew or self._generators.state() != self._before

    def _sample(self, tensor: object) -> Sample | None:
        if self._watch:
            self._look()
        if isinstance(tensor, FakeTensor):  # it has no values
            return None
        self._looking = True  # not a use of the tensor by the model
        try:
            return sample(tensor, self._batch, self.drew)
        finally:
            self._looking = False

    def follow(self, call: _Call) -> _Path:
        """Find where the output of a layer is read."""
        assert call.input is not None
        assert call.output is not None
        functions: list[Callable[..., Any]] = []
        names: list[str] = []
        steps = 0
        normalized = activated = changed = joined = single = False
        joins = ""
        axis = -1 if isinstance(call.module, nn.Linear) else 1
        current, uses = call.output, self._uses_after(call.output, call.order)
        source: _Use | _Call = call
        while uses:
            use = uses[0]
            in_place = use.result.number == current.number
            if use.join:
                joins = joins or use.join
                if self._tap != "block" or not _same_positions(current.shape, use.result.shape, axis):
                    break
                joined, normalized, activated = True, False, False
            elif use.alone:
                if use.result.shape != current.shape:
                    break
                single = True
            else:
                if not use.first or use.function not in FOLLOWED or use.result.shape != current.shape:
                    break
                if not in_place and len(uses) > 1:
                    break  # the tensor has several uses: it is not clear which one the next layer receives
                if single and not joined:
                    break  # what a layer receives is not what follows a sum with a number
                if use.function in NORMALIZATIONS:
                    if normalized:
                        break
                    normalized = True
                elif use.function in ACTIVATIONS:
                    if activated:
                        break
                    activated = True
            functions.append(use.function)
            names.append(use.join or ("" if use.function in DROPOUTS else use.function.__name__.strip("_")))
            if self._tap != "linear" and use.function not in DROPOUTS and not (single and not joined):
                steps = len(functions)
                source = use
                version = use.input_versions[call.input.number]
                changed = version < 0 or version != call.input.version
            uses, current = self._uses_after(use.result, use.order), use.result
        return _Path(tuple(functions[:steps]), tuple(names[:steps]), changed, source, joins, joined)

    def _uses_after(self, tensor: _Seen, order: int) -> list[_Use]:
        return [use for use in self.uses.get(tensor.number, []) if use.order > order]


def _same_positions(shape: tuple[int, ...], joined: tuple[int, ...], axis: int) -> bool:
    """Whether two shapes differ in the number of channels, along ``axis``, at most."""
    if len(shape) != len(joined):
        return False
    channels = axis % len(shape)
    return shape[:channels] + shape[channels + 1 :] == joined[:channels] + joined[channels + 1 :]


def _version(tensor: Tensor | None) -> int:
    """Number of writes to a tensor; −1 if writes are not counted, as under inference_mode."""
    return -1 if tensor is None or tensor.is_inference() else int(tensor._version)


def trace(model: nn.Module, example: Tensor, tap: str) -> Trace:
    """Run a model on example inputs and list its layers in running order.

    The model runs twice, the second time on copies of the last input and with one input less. If its features
    differ by more than rounding, or if it draws random numbers, the notes of the layers and of the trace say
    so. The states of random generators are restored.

    Args:
        model: The model, in evaluation mode on the device of the example.
        example: Inputs (B, …).
        tap: "activation" to read the output of a layer after the normalization and activation that directly follow
            it, "linear" to read the output of the layer itself, "block" to read it after the sums and concatenations
            that it then goes into, and the normalization and activation that directly follow those.

    Returns:
        The layers that can be measured, and the reasons why others cannot.

    Raises:
        ModelError: The forward pass fails, or no layer can be measured.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> for traced in trace(net, torch.rand(2, 1, 8, 8), "activation").layers:
        ...     print(traced.layer.name, traced.layer.tap, traced.layer.spatial, traced.geometry.patch_size)
        0 Conv2d > relu (6, 6) 9
        3 Linear () 144
    """
    generators = Generators(model, example.device)
    with generators.kept():
        return _trace(model, example, tap, generators)


def _trace(model: nn.Module, example: Tensor, tap: str, generators: Generators) -> Trace:
    def observe(inputs: Tensor, seed: int, watch: bool = False) -> _Observer:
        while True:
            modules = set(model.modules())
            observer = _Observer(len(inputs), generators, seed, watch, tap)
            observer.run(model, inputs)
            if set(model.modules()) == modules:  # else the call created modules, which were not observed
                return observer

    observer = observe(example, _SEEDS[0])
    attributes = attribute_tensors(model)
    # One input less, because another dimension may happen to have the size of the batch.
    again = observe(alone(example, max(1, len(example) - 1)), _SEEDS[1])
    _check_order(observer, again)
    layers: list[TracedLayer] = []
    skipped: list[tuple[str, str]] = []
    calls = Counter(id(call.module) for call in observer.calls)
    makers: dict[tuple[int, int], int] = {}
    indices: list[int] = []
    orders: list[int] = []
    for index, (call, fewer) in enumerate(zip(observer.calls, again.calls, strict=True)):
        name = call.name or "(model)"
        name = name if call.count == 0 else f"{name}#{call.count + 1}"
        reason = _unmeasurable(call, len(example), fewer if len(example) > 1 else None)
        if reason:
            skipped.append((name, reason))
            continue
        path = observer.follow(call)
        assert call.input is not None
        reads = makers.get((call.input.number, call.input.version))
        makers[path.output.number, path.output.version] = len(layers)
        layers.append(_describe(call, name, len(layers), calls[id(call.module)], path, reads, tap))
        indices.append(index)
        orders.append(path.source.order)
    skipped += not_measured(model, set(calls), attributes)
    if not layers:
        kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
        raise ModelError(
            "no layer can be measured: expected convolutions or linear layers, the model has "
            f"{', '.join(kinds) or 'no modules'}" + "".join(f"; {name}: {reason}" for name, reason in skipped)
        )

    # Outputs in the order in which they are read: that of the layers, but for layers whose outputs are joined later.
    places = sorted(range(len(layers)), key=lambda place: orders[place])

    def observed(observer: _Observer) -> Observed:
        tapped = [observer.follow(observer.calls[indices[place]]).source.sample for place in places]
        return Observed([*tapped, *observer.outputs], observer.drew)

    def repeat(inputs: Tensor) -> Observed:
        repeated = observe(inputs, _SEEDS[0], watch=True)
        _check_order(observer, repeated)
        return observed(repeated)

    by_site = notes(example, observed(observer), observed(again), repeat)
    for place, note in zip(places, by_site, strict=False):
        layers[place] = replace(layers[place], note=note)
    whole = "; ".join(dict.fromkeys(text for note in by_site for text in note.split("; ") if text))
    return Trace(tuple(layers), tuple(skipped), whole)


def _check_order(first: _Observer, second: _Observer) -> None:
    """Raise ModelError unless two passes ran the same layers."""
    if first.order() != second.order():
        random = first.drew and second.drew
        raise ModelError(f"{OTHER_LAYERS}; {RANDOM}" if random else OTHER_LAYERS)


def forward(model: nn.Module, inputs: Tensor) -> Any:
    """Run a model, without torch.compile, and describe its inputs in errors.

    Args:
        model: The model.
        inputs: Batch (B, …).

    Returns:
        Output of the model.

    Raises:
        ModelError: The forward pass fails.

    Example:
        >>> forward(nn.Linear(3, 1), torch.zeros(2, 4))
        Traceback (most recent call last):
            ...
        genmeasures.errors.ModelError: the model rejects a batch of shape (2, 4), float32: ...
    """
    # Calls within a compiled model cannot be observed. There is none if the compiler was never imported.
    compiler = "torch._dynamo" in sys.modules
    try:
        with torch.compiler.set_stance("force_eager") if compiler else nullcontext():
            return model(inputs)
    except Exception as error:  # a user's model may raise anything
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        message = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        dtype = given_as(model, inputs.dtype)
        name = str(dtype).removeprefix("torch.")
        if dtype in (torch.float16, torch.bfloat16) and inputs.device.type == "cpu":
            message += f" (not all operations support {name} on a CPU: run it on a GPU, or pass model.float())"
        raise ModelError(
            f"the model rejects a batch of shape {tuple(inputs.shape)}, {name}: {kind}{message}"
        ) from error


def _unmeasurable(call: _Call, batch: int, fewer: _Call | None) -> str:
    """Reason why a layer cannot be measured, or ""; ``fewer`` is its call for one input less, None if there is none."""
    module: MeasuredModule = call.module  # type: ignore[assignment]
    if call.input is None:
        return "it was called without a tensor"
    if call.output is None:
        return "its output is not a floating-point tensor"
    input_shape, output_shape = call.input.shape, call.output.shape
    if not isinstance(module, nn.Linear) and len(output_shape) == len(module.kernel_size) + 1:
        return f"it was called without a batch dimension (output of shape {output_shape})"
    short = batch - 1 if fewer is None else fewer.output.shape[0] if fewer.output and fewer.output.shape else 0
    if len(output_shape) < 2 or input_shape[:1] != (batch,) or output_shape[0] != batch or short != batch - 1:
        return f"the first dimension of its output of shape {output_shape} is not the batch of {batch} inputs"
    if not follows_geometry(module, input_shape, output_shape):
        return (
            f"its output of shape {output_shape} does not follow from its input of shape {input_shape}, its kernel and "
            "its padding"
        )
    if not call.readable:
        return f"its tensors are of type {call.output_kind}, which cannot be converted to plain tensors"
    weight: Any = module.weight
    if not isinstance(weight, Tensor) or not is_readable(weight) or not plain(weight.detach()).is_floating_point():
        kind = f"as {weight.dtype}".replace("torch.", "") if isinstance(weight, Tensor) else "packed"
        return f"its weight is stored {kind}: pass the model before quantization"
    return ""


def _describe(
    call: _Call,
    name: str,
    index: int,
    calls: int,
    path: _Path,
    reads: int | None,
    tap: str,
) -> TracedLayer:
    """The traced layer of a call; ``reads`` is the index of the layer whose output it reads."""
    assert call.input is not None
    assert call.output is not None
    module: MeasuredModule = call.module  # type: ignore[assignment]
    linear = isinstance(module, nn.Linear)
    input_shape, output_shape = call.input.shape, call.output.shape
    geometry = geometry_of(module, input_shape, output_shape)
    kind = parametrize.type_before_parametrizations(module).__name__
    read_shape = path.output.shape
    layer = Layer(
        index=index,
        name=name,
        kind=kind,
        channels=read_shape[-1] if linear else read_shape[1],
        spatial=read_shape[1:-1] if linear else read_shape[2:],
        patch_size=geometry.patch_size,
        input_size=math.prod(input_shape[1:]),
        weight_norm=_norm(plain(module.weight.detach())),
        tap=" > ".join([kind, *filter(None, path.names)]),
        joins=path.joins,
    )
    before = _read_before(path, tap)
    return TracedLayer(
        layer, call.module, call.count, calls, geometry, linear, path.functions, path.changed, reads, read_before=before
    )


def _read_before(path: _Path, tap: str) -> str:
    """The caveat on an output that is read before it is joined; none where the tap asks for the bare output."""
    if not path.joins or path.joined or tap == "linear":
        return ""
    if tap == "block":
        return f"the output is read before its {path.joins}, which is not along the channels"
    return f"the output is read before its {path.joins} with others (tap: block reads it after that)"


def _norm(weight: Tensor) -> float:
    """Frobenius norm, computed in float64 without a float64 copy of the whole weight."""
    parts = weight.flatten().split(_NORM_ELEMENTS)
    return math.sqrt(sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in parts))
