"""All measures of one model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genmeasures.contexts import settled
from genmeasures.data import DataSource, mix
from genmeasures.engine.accuracy import Correct
from genmeasures.engine.passes import ModelRun, Progress, rows_for
from genmeasures.engine.prepared import PreparedData
from genmeasures.engine.running import Outcome, by_variable, noted, outcome
from genmeasures.engine.seeds import ModelSeeds, generator_for
from genmeasures.engine.survey import Survey, sketched_trace, survey
from genmeasures.engine.tiling import Tiling
from genmeasures.errors import ComponentError, ModelError, OptionError, Undefined, nearest
from genmeasures.failures import status_of
from genmeasures.interfaces import (
    SPLITS,
    FeatureMeasure,
    Layer,
    Measure,
    ModelData,
    ModelFacts,
    ModelMeasure,
    Split,
    Value,
    Variable,
)
from genmeasures.tracing import Sketch, Trace, TracedLayer, fastest_layout, trace
from genmeasures.tracing.dtypes import input_dtype, inputs_as
from genmeasures.tracing.guard import State, lent, undisturbed
from genmeasures.tracing.kinds import check_model
from genmeasures.tracing.listing import listed
from genmeasures.tracing.randomness import Generators
from genmeasures.tracing.repeat import UNSEEDED

_EXAMPLES = 3
"""Inputs of the traced forward pass: more than one shows which dimension is the batch."""

_LARGE = 1 << 18
"""Elements of an input from which it may be that few fit into memory at once."""

_STRIDES = 64
"""A multiple of the strides of usual models."""

_NOT_CHOSEN = "not among the chosen layers"
_L = TypeVar("_L")


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
    correct: Mapping[Split, Correct] = field(default_factory=dict)
    """By split: what the model predicts, where its outputs tell and a whole pass was made."""
    ran: bool = True
    """Whether the model was run: else the spatial sizes of its layers and what they read are not known."""


def measure_model(
    model: nn.Module,
    data: PreparedData,
    measures: Sequence[Measure],
    device: torch.device,
    layers: Sequence[str | int] | None = None,
    progress: Progress | None = None,
    tile: Sequence[int] | None = None,
    facts: ModelFacts | None = None,
) -> ModelResult:
    """Measure one model; it is left as it was found.

    layers: names or places of the layers to measure, None for all. tile: size of the tiles' cores by which
    inputs are run, an entry a spatial axis; None runs them whole. facts: what measures are told of the
    model that declare it; None: nothing but an empty name. Raises ModelError if the model cannot be
    run or has no measurable layer, OptionError for a layer that it does not have.

    Without data, the model is not run: its layers are those that it registers, for measures that read weights alone.
    """
    check_model(model)
    if not data.sources:
        return _not_run(model, data, measures, device, layers, facts)
    first = next(iter(data.sources.values()))
    with settled(), undisturbed(model, device), ExitStack() as stack:
        generators = Generators(model, device)
        dtype = input_dtype(model, lambda: first.example(1).to(device))
        stack.enter_context(inputs_as(model, dtype))
        features = [
            measure for measure in measures if isinstance(measure, FeatureMeasure) and repr(measure) not in data.lacking
        ]
        borrowers = [measure for measure in measures if isinstance(measure, ModelMeasure)]
        fresh = State(model) if borrowers else None
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
            for variable, written in zip(feature.variables, feature.written(), strict=True):
                outcomes[written.name] = [
                    noted(values[variable.name], layer.note) for values, layer in zip(by_layer, chosen, strict=True)
                ]
        described = tuple(layer.layer for layer in chosen)
        outcomes.update(_lacking(measures, data, len(described)))
        # What running the model has changed by now is its own doing, no measure's.
        own = fresh.changes(model) if fresh is not None else []
        modules = {layer.layer.name: layer.module for layer in chosen}
        for measure in borrowers:
            seeds.set(measure)
            made = _model_measure(measure, model, modules, described, data, device, own, tiling is not None, facts)
            outcomes.update(_with_notes(measure, made, traced.note, chosen))
    left_out = tuple((layer.layer.name, _NOT_CHOSEN) for layer in traced.layers if layer not in chosen)
    vectors = {split: [len(layer.samples[split]) for layer in run.layers] for split in data.sources}
    by_batch, reproducible = bool(traced.note), UNSEEDED not in traced.note
    correct = {split: found for split, found in run.correct.items() if found is not None}
    return ModelResult(described, traced.skipped + left_out, outcomes, vectors, by_batch, reproducible, correct)


def _not_run(
    model: nn.Module,
    data: PreparedData,
    measures: Sequence[Measure],
    device: torch.device,
    layers: Sequence[str | int] | None,
    facts: ModelFacts | None,
) -> ModelResult:
    """Measure a model without data."""
    with settled(), undisturbed(model, device):
        generators = Generators(model, device)
        seeds = ModelSeeds(generators, data.seed, False)
        every, skipped = listed(model)
        chosen = _chosen(every, [layer.name for layer in every], layers)
        skipped += tuple((layer.name, _NOT_CHOSEN) for layer in every if layer not in chosen)
        outcomes = _lacking(measures, data, len(chosen))
        registered = dict(model.named_modules())
        modules = {layer.name: registered.get(layer.name, model) for layer in chosen}
        for measure in measures:
            if isinstance(measure, ModelMeasure):
                seeds.set(measure)
                made = _model_measure(measure, model, modules, chosen, data, device, (), False, facts)
                for variable, written in zip(measure.variables, measure.written(), strict=True):
                    outcomes[written.name] = made[variable.name]
    return ModelResult(tuple(chosen), skipped, outcomes, {}, ran=False)


def _lacking(measures: Sequence[Measure], data: PreparedData, layers: int) -> dict[str, Sequence[Outcome]]:
    """The outcomes of measures that lack data or labels."""
    return {
        variable.name: [Outcome(float("nan"), f"undefined: {measure.name} {data.lacking[repr(measure)]}")]
        * (layers if "layer" in variable.dims else 1)
        for measure in measures
        if repr(measure) in data.lacking
        for variable in measure.written()
    }


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
    layers: Sequence[str | int] | None,
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
        raise OptionError("tile: inputs of integers cannot be cut into tiles; leave tile out")
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
    """The outcomes of a model measure with the notes of the layers, or of the model where a value is the model's.

    They come by the measure's own names, and go by those of the result.
    """
    by_layer = [layer.note for layer in layers]
    return {
        written.name: [
            noted(one, text)
            for one, text in zip(made[variable.name], by_layer if "layer" in variable.dims else [note], strict=True)
        ]
        for variable, written in zip(measure.variables, measure.written(), strict=True)
    }


def _choose(traced: Sequence[TracedLayer], layers: Sequence[str | int] | None) -> list[TracedLayer]:
    return _chosen(traced, [layer.layer.name for layer in traced], layers)


def _chosen(layers: Sequence[_L], known: Sequence[str], wanted: Sequence[str | int] | None) -> list[_L]:
    """The layers with these names or places, in running order; all for None. ``known`` are the names of all."""
    if wanted is None:
        return list(layers)
    chosen = set()
    for one in wanted:
        if isinstance(one, str):
            if one not in known:
                raise OptionError(f"there is no layer {one!r} to measure{nearest(one, known)}")
            chosen.add(one)
        elif not -len(known) <= one < len(known):
            raise OptionError(
                f"there is no layer {one} to measure: the model has {len(known)}, and places go from "
                f"{-len(known)} to {len(known) - 1} (0 is {known[0]!r}, -1 is {known[-1]!r})"
            )
        else:
            chosen.add(known[one])
    return [layer for layer, name in zip(layers, known, strict=True) if name in chosen]


def _model_measure(
    measure: ModelMeasure,
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    layers: Sequence[Layer],
    data: PreparedData,
    device: torch.device,
    own: Collection[str],
    by_tiles: bool,
    facts: ModelFacts | None,
) -> Mapping[str, Sequence[Outcome]]:
    """The outcomes of a measure that has the model to itself, by the measure's own names; the model is put back.

    own: what the model changes by itself when it runs.
    """
    read: set[Split] = set()

    def batches(split: Split) -> Iterator[tuple[Tensor, Tensor | None]]:
        read.add(split)
        for _, inputs, targets in _source(data, split, measure).checked():
            yield inputs.to(device), None if targets is None else targets.to(device)

    def order(split: Split) -> NDArray[np.int64]:
        keys = _source(data, split, measure).scan().keys
        salt = np.array([generator_for(data.seed, "inputs", split).initial_seed()], dtype=np.uint64)
        return np.argsort(mix(keys ^ mix(salt)))

    def sample(split: Split, count: int | None = None) -> tuple[Tensor, Tensor | None]:
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

    def computed() -> Mapping[str, Sequence[Outcome]]:
        generator = generator_for(data.seed, "measure", measure)
        told = (facts or ModelFacts("")) if measure.reads_facts else None
        given = ModelData(batches, sample, order, device, generator, modules, told)
        made: dict[str, Sequence[Outcome]] = {}
        try:
            if by_tiles:
                raise OptionError(f"{measure.name} runs the model on whole inputs, which tile rules out")
            values = by_variable("measure", measure.measure(model, layers, given), measure.variables)
            for variable in measure.variables:
                found = _outcomes(variable, values[variable.name], len(layers))
                note = data.target_note(read) if variable.name in measure.from_targets() else ""
                made[variable.name] = [noted(one, note) for one in found]
            return made
        except Exception as error:  # the other measures go on
            return _failed(measure, status_of(error, str(measure)), len(layers))

    try:
        with lent(model, device, own) as changes:
            made = computed()
            changed = changes()
            return _changed(measure, changed, made) if changed else made
    except Exception as error:  # there may be no memory for another copy of the parameters
        return _failed(measure, status_of(error, str(measure)), len(layers))


def _failed(measure: ModelMeasure, status: str, layers: int) -> dict[str, Sequence[Outcome]]:
    """No value of any variable, for one reason."""
    failed = Outcome(float("nan"), status)
    return {v.name: [failed] * (layers if "layer" in v.dims else 1) for v in measure.variables}


def _changed(
    measure: ModelMeasure, changed: Sequence[str], made: Mapping[str, Sequence[Outcome]]
) -> dict[str, Sequence[Outcome]]:
    """The outcomes of a measure that left another model than it was given: what it computed cannot be trusted."""
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    error = ComponentError(
        f"{measure.name} did not leave the model as it was: {changed[0]}{more}; it must put back what it changes"
    )
    status = status_of(error, str(measure))
    return {
        # Of one that failed, its own error says more: that is why it put nothing back.
        name: outcomes
        if any(one.status.startswith("failed") for one in outcomes)
        else [Outcome(float("nan"), status)] * len(outcomes)
        for name, outcomes in made.items()
    }


def _outcomes(variable: Variable, value: Any, layers: int) -> list[Outcome]:
    """The outcomes of a variable as a measure returned it: one a layer, or a single one."""
    own = next((dim for dim in variable.dims if dim != "layer"), "")
    if "layer" not in variable.dims:
        return [outcome(value, own)]
    if isinstance(value, Undefined):
        return [outcome(value)] * layers
    if isinstance(value, str | Mapping | Value) or not hasattr(value, "__len__"):
        raise ComponentError(
            f"{variable.name} is of type {type(value).__name__}, a sequence of {layers} values is expected, one per "
            "layer; for one value per model, declare dims=()"
        )
    found = [outcome(one, own) for one in value]
    if len(found) != layers:
        raise ComponentError(f"{variable.name} has {len(found)} values, {layers} were expected, one per layer")
    return found


def _source(data: PreparedData, split: Split, measure: Measure) -> DataSource:
    if split not in SPLITS:
        raise ComponentError(f"{measure.name}: there is no split {split!r}{nearest(str(split), SPLITS)}")
    if split not in data.sources:
        raise Undefined(f"{measure.name} needs {split} data, and none are given")
    return data.sources[split]
