"""All measures of one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genmeasures.contexts import settled
from genmeasures.data import DataSource, mix
from genmeasures.engine.passes import ModelRun, Progress, rows_for
from genmeasures.engine.prepared import PreparedData
from genmeasures.engine.running import Outcome, noted, outcome
from genmeasures.engine.seeds import ModelSeeds, generator_for
from genmeasures.engine.survey import Survey, sketched_trace, survey
from genmeasures.engine.tiling import Tiling
from genmeasures.errors import ModelError, OptionError, Undefined, nearest
from genmeasures.failures import status_of
from genmeasures.interfaces import FeatureMeasure, Layer, Measure, ModelData, ModelMeasure, Split, Variable
from genmeasures.tracing import Sketch, Trace, TracedLayer, fastest_layout, trace
from genmeasures.tracing.dtypes import input_dtype, inputs_as
from genmeasures.tracing.guard import undisturbed
from genmeasures.tracing.kinds import check_model
from genmeasures.tracing.randomness import Generators
from genmeasures.tracing.repeat import UNSEEDED

_EXAMPLES = 3
"""Inputs of the traced forward pass: more than one shows which dimension is the batch."""

_LARGE = 1 << 18
"""Elements of an input from which it may be that few fit into memory at once."""

_STRIDES = 64
"""A multiple of the strides of usual models."""


@dataclass(frozen=True)
class ModelResult:
    """What was measured of one model."""

    layers: tuple[Layer, ...]
    skipped: tuple[tuple[str, str], ...]
    outcomes: Mapping[str, Sequence[Outcome]]
    """By variable: one a layer, or a single one for a variable without the layer dimension."""
    vectors: Mapping[Split, Sequence[int]]
    """Number of vectors sampled in each layer."""
    by_batch: bool = False
    """Whether values depend on which inputs run together."""
    reproducible: bool = True
    """Whether the same run gives the same values again."""


def measure_model(
    model: nn.Module,
    data: PreparedData,
    measures: Sequence[Measure],
    device: torch.device,
    layers: Sequence[str] | None = None,
    progress: Progress | None = None,
    tile: Sequence[int] | None = None,
) -> ModelResult:
    """Measure one model; it is left as it was found.

    layers: names of the layers to measure, None for all. tile: size of the tiles' cores by which
    inputs are run, an entry a spatial axis; None runs them whole. Raises ModelError if the model cannot be
    run or has no measurable layer, OptionError for a layer that it does not have.
    """
    check_model(model)
    first = next(iter(data.sources.values()))
    with settled(), undisturbed(model, device), ExitStack() as stack:
        generators = Generators(model, device)
        dtype = input_dtype(model, lambda: first.example(1).to(device))
        stack.enter_context(inputs_as(model, dtype))
        features = [measure for measure in measures if isinstance(measure, FeatureMeasure)]
        with generators.kept():
            tiled = None if tile is None else _tiled(model, data, layers, device, tile, generators)
            if tiled is not None:
                traced, chosen, layout, tiling = tiled
            else:
                count = _example_count(model, first.example(1).to(device), data.extractor.tap)
                example = first.example(count).to(device)
                layout = fastest_layout(model, example)
                traced = trace(model, example.contiguous(memory_format=layout), data.extractor.tap)
                chosen, tiling = _choose(traced.layers, layers), None
        if traced.note:
            stack.enter_context(generators.kept())
        seeds = ModelSeeds(generators, data.seed, bool(traced.note))
        rows = 1 if tiling is not None else rows_for(traced.layers)
        run = ModelRun(model, chosen, data, features, device, layout, rows, seeds, progress, tiling)
        with torch.no_grad():  # in inference mode models could not take gradients within, nor be trained after it
            _run(run, traced)
        outcomes: dict[str, Sequence[Outcome]] = {}
        for place, feature in enumerate(features):
            by_layer = [layer.running[place].outcomes() for layer in run.layers]
            for variable in feature.variables:
                outcomes[variable.name] = [
                    noted(values[variable.name], layer.note) for values, layer in zip(by_layer, chosen, strict=True)
                ]
        described = tuple(layer.layer for layer in chosen)
        for measure in measures:
            if isinstance(measure, ModelMeasure):
                seeds.set(measure)
                made = _model_measure(measure, model, described, data, device, tiling is not None)
                outcomes.update(_with_notes(measure, made, traced.note, chosen))
    left_out = tuple(
        (layer.layer.name, "not among the chosen layers") for layer in traced.layers if layer not in chosen
    )
    vectors = {split: [len(layer.samples[split]) for layer in run.layers] for split in data.sources}
    by_batch, reproducible = bool(traced.note), UNSEEDED not in traced.note
    return ModelResult(described, traced.skipped + left_out, outcomes, vectors, by_batch, reproducible)


def _example_count(model: nn.Module, one: Tensor, tap: str) -> int:
    """How many inputs are traced: no more than are run at once, where a single one (1, …) is large."""
    if one.numel() < _LARGE:
        return _EXAMPLES
    try:
        return min(_EXAMPLES, rows_for(trace(model, one, tap).layers))
    except ModelError:  # whatever it is, three of them say it better
        return _EXAMPLES


def _tiled(
    model: nn.Module,
    data: PreparedData,
    layers: Sequence[str] | None,
    device: torch.device,
    tile: Sequence[int],
    generators: Generators,
) -> tuple[Trace, list[TracedLayer], torch.memory_format, Tiling] | None:
    """The trace, the chosen layers, the layout and the tiles, found without running a whole input.

    None where a tile would be the whole input.
    """
    source = next(iter(data.sources.values()))
    example = source.example(1)
    if not example.is_floating_point():
        raise OptionError("tile: inputs of whole numbers cannot be cut into tiles; leave tile out")
    size = tuple(example.shape[2:])
    if all(core >= side for core, side in zip(tile, size, strict=True)):
        return None
    # As many elements over a multiple of the usual strides as the whole has: some models take no others.
    lengths = [side - max(0, side - core) // _STRIDES * _STRIDES for core, side in zip(tile, size, strict=True)]
    part = example[(slice(None), slice(None), *(slice(0, length) for length in lengths))].to(device)
    try:
        layout = fastest_layout(model, part)
    except ModelError:  # a model of which some layers take whole inputs only
        layout = torch.contiguous_format
    sketch = Sketch(model, device)
    shape = (min(_EXAMPLES, len(source.scan())), *example.shape[1:])
    traced = sketched_trace(model, sketch, shape, data.extractor.tap)
    chosen = _choose(traced.layers, layers)
    before = generators.state()
    found: Survey | None = None
    failed: ModelError | None = None
    try:
        found = survey(model, sketch, chosen, example, tile, device, layout)
    except ModelError as error:
        failed = error
    if generators.state() != before:
        raise ModelError(
            "the model is random in evaluation mode, so that its tiles do not fit together: it cannot be measured by "
            "tiles; leave tile out"
        ) from failed
    if failed is not None:
        raise failed
    return None if found is None else (traced, chosen, layout, Tiling(model, found, chosen, size, device, layout))


def _run(run: ModelRun, traced: Trace) -> None:
    """Make all passes; an error of a model that is random says so."""
    try:
        run.run()
    except ModelError as error:
        if not traced.note:
            raise
        raise ModelError(f"{error}; {traced.note}") from error


def _with_notes(
    measure: Measure, made: Mapping[str, Sequence[Outcome]], note: str, layers: Sequence[TracedLayer]
) -> dict[str, Sequence[Outcome]]:
    """The outcomes of a model measure with the notes of the layers, or of the model where a value is the model's."""
    by_layer = [layer.note for layer in layers]
    return {
        variable.name: [
            noted(one, text)
            for one, text in zip(made[variable.name], by_layer if "layer" in variable.dims else [note], strict=True)
        ]
        for variable in measure.variables
    }


def _choose(traced: Sequence[TracedLayer], names: Sequence[str] | None) -> list[TracedLayer]:
    if names is None:
        return list(traced)
    known = [layer.layer.name for layer in traced]
    for name in names:
        if name not in known:
            raise OptionError(f"there is no layer {name!r} to measure{nearest(name, known)}")
    return [layer for layer in traced if layer.layer.name in names]


def _model_measure(
    measure: ModelMeasure,
    model: nn.Module,
    layers: Sequence[Layer],
    data: PreparedData,
    device: torch.device,
    by_tiles: bool,
) -> dict[str, Sequence[Outcome]]:
    read: set[Split] = set()

    def batches(split: Split) -> Iterator[tuple[Tensor, Tensor | None]]:
        read.add(split)
        for _, inputs, targets in _source(data, split, measure).checked():
            yield inputs.to(device), None if targets is None else targets.to(device)

    def order(split: Split) -> NDArray[np.int64]:
        keys = _source(data, split, measure).scan().keys
        salt = np.array([generator_for(data.seed, "inputs", split).initial_seed()], dtype=np.uint64)
        return np.argsort(mix(keys ^ mix(salt)))

    def sample(split: Split, count: int | None) -> tuple[Tensor, Tensor | None]:
        read.add(split)
        places = {int(place): rank for rank, place in enumerate(order(split)[:count])}
        found: dict[int, tuple[Tensor, Tensor | None]] = {}
        for start, inputs, targets in _source(data, split, measure).checked():
            for row in range(len(inputs)):
                if start + row in places:
                    target = None if targets is None else targets[row].clone()
                    found[places[start + row]] = (inputs[row].clone(), target)
        chosen = [found[rank] for rank in range(len(found))]
        labels = [target for _, target in chosen if target is not None]
        return torch.stack([x for x, _ in chosen]).to(device), torch.stack(labels).to(device) if labels else None

    given = ModelData(batches, sample, order, device, generator_for(data.seed, "measure", measure))
    made: dict[str, Sequence[Outcome]] = {}
    try:
        if by_tiles:
            raise OptionError(f"{measure.name} runs the model on whole inputs, which tile rules out")
        values = measure.measure(model, layers, given)
        for variable in measure.variables:
            found = _outcomes(variable, values[variable.name], len(layers))
            note = data.target_note(read) if variable.name in measure.from_targets() else ""
            made[variable.name] = [noted(one, note) for one in found]
        return made
    except Exception as error:  # the other measures go on
        failed = Outcome(float("nan"), status_of(error, str(measure)))
        return {v.name: [failed] * (len(layers) if "layer" in v.dims else 1) for v in measure.variables}


def _outcomes(variable: Variable, value: Any, layers: int) -> list[Outcome]:
    """The outcomes of a variable as a measure returned it: one a layer, or a single one."""
    if "layer" not in variable.dims:
        return [outcome(value)]
    if isinstance(value, Undefined):
        return [outcome(value)] * layers
    found = [outcome(one) for one in value]
    if len(found) != layers:
        raise ModelError(f"{variable.name} has {len(found)} values, {layers} were due")
    return found


def _source(data: PreparedData, split: Split, measure: Measure) -> DataSource:
    if split not in data.sources:
        raise ModelError(f"{measure.name} needs {split} data, and none are given")
    return data.sources[split]
