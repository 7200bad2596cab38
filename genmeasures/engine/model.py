"""All measures of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from genmeasures.contexts import settled
from genmeasures.engine.accuracy import Correct
from genmeasures.engine.feed import Feed, WholeFeed
from genmeasures.engine.forward import Progress
from genmeasures.engine.memory import Memory
from genmeasures.engine.model_measures import model_measure_outcomes
from genmeasures.engine.outcome import Outcome, noted
from genmeasures.engine.passes import Passes, inputs_at_a_time
from genmeasures.engine.prepare import PreparedData
from genmeasures.engine.seeds import ModelSeeds
from genmeasures.engine.selection import LayerChoice, selected
from genmeasures.engine.tiling.feed import TileFeed
from genmeasures.engine.tiling.survey import sketched_trace, survey
from genmeasures.engine.tiling.tiling import Tiling
from genmeasures.errors import ModelError, OptionError
from genmeasures.interfaces import FeatureMeasure, Layer, Measure, ModelFacts, ModelMeasure, OutputMeasure, Split
from genmeasures.tracing import Sketch, Trace, TracedLayer, fastest_layout, trace
from genmeasures.tracing.dtypes import input_dtype, inputs_as
from genmeasures.tracing.guard import State, undisturbed
from genmeasures.tracing.kinds import check_model
from genmeasures.tracing.listing import listed
from genmeasures.tracing.randomness import Generators
from genmeasures.tracing.repeat import UNSEEDED

_EXAMPLES = 3
"""Inputs of the traced forward pass: more than one shows which dimension is the batch."""

_STRIDES = 64
"""A multiple of the strides of usual models."""

_NOT_CHOSEN = "not among the chosen layers"


@dataclass(frozen=True)
class ModelResult:
    """Result of measuring one model."""

    layers: tuple[Layer, ...]
    skipped: tuple[tuple[str, str], ...]
    """Names of layers that were not measured, each with the reason."""
    outcomes: Mapping[str, Sequence[Outcome]]
    """By variable: one per layer, or a single one for a variable without the dimension ``layer``."""
    vectors: Mapping[Split, Sequence[int]]
    """Number of sampled vectors, per layer."""
    by_batch: bool = False
    """Whether values depend on which inputs run together."""
    reproducible: bool = True
    """Whether the same run gives the same values again."""
    correct: Mapping[Split, Correct] = field(default_factory=dict)
    """By split: the correct predictions, where they can be counted and a whole pass was made."""
    ran: bool = True
    """Whether the model was run: else the spatial sizes of its layers and what they read are not known."""


def measure_model(
    model: nn.Module,
    data: PreparedData,
    measures: Sequence[Measure],
    device: torch.device,
    layers: LayerChoice | None = None,
    progress: Progress | None = None,
    tile: Sequence[int] | None = None,
    facts: ModelFacts | None = None,
    memory: Memory | None = None,
) -> ModelResult:
    """Measure one model, which is left as it was.

    Without data the model is not run: its layers are those that it registers, for measures that read weights alone.

    Args:
        model: the model.
        data: the prepared data of the run.
        measures: the prepared measures of the run.
        device: where the model runs.
        layers: the layers to measure, by name, glob, index or range; None for all.
        progress: see :data:`~genmeasures.engine.forward.Progress`.
        tile: sizes of the tiles in which inputs run, one per spatial axis; None runs whole inputs.
        facts: what is known of the model, for measures that read it; None for an empty name.
        memory: the memory budget, None for the default.

    Raises:
        ModelError: the model cannot be run or has no measurable layer.
        OptionError: the model has no layer that one of ``layers`` names.

    Returns:
        Values with their statuses, and what is known of the layers.

    Example:
        >>> from genmeasures.engine import prepare_data, prepare_measures
        >>> from genmeasures.extractors import WholeTensor
        >>> from genmeasures.data import DataSource
        >>> from genmeasures.labelers import ClassLabel
        >>> from genmeasures.measures import DaviesBouldin
        >>> x, extractor = torch.tensor([[0.0, 0.1], [0.2, 0.0], [1.0, 1.1], [1.0, 0.9]]), WholeTensor()
        >>> sources = {"train": DataSource((x, torch.tensor([0, 0, 1, 1])), "train", 4)}
        >>> measures, lacking = prepare_measures([DaviesBouldin(ClassLabel())], extractor, sources)
        >>> data = prepare_data(sources, measures, extractor, seed=0, lacking=lacking)
        >>> result = measure_model(nn.Sequential(nn.Linear(2, 2)), data, measures, torch.device("cpu"))
        >>> [outcome.status for outcome in result.outcomes["davies_bouldin"]]
        ['ok']
    """
    check_model(model)
    if not data.sources:
        return _measure_without_data(model, data, measures, device, layers, facts)
    memory = memory or Memory()
    with settled(), undisturbed(model, device), ExitStack() as stack:
        generators = Generators(model, device)
        first = next(iter(data.sources.values()))
        dtype = input_dtype(model, lambda: first.example(1).to(device))
        stack.enter_context(inputs_as(model, dtype))
        feature_measures = [
            measure for measure in measures if isinstance(measure, FeatureMeasure) and repr(measure) not in data.lacking
        ]
        output_measures = [
            measure for measure in measures if isinstance(measure, OutputMeasure) and repr(measure) not in data.lacking
        ]
        model_measures = [measure for measure in measures if isinstance(measure, ModelMeasure)]
        fresh = State(model) if model_measures else None
        with generators.kept():
            tiled = None if tile is None else _by_tiles(model, data, layers, device, tile, generators)
            traced, chosen, feed = tiled or _whole(model, data, layers, device, memory)
        if traced.note:
            stack.enter_context(generators.kept())
        seeds = ModelSeeds(generators, data.seed, bool(traced.note))
        passes = Passes(model, chosen, data, feature_measures, output_measures, device, feed, memory, seeds, progress)
        with torch.no_grad():  # inference mode would rule out gradients, now and later
            _run(passes, traced)
        outcomes = _feature_outcomes(feature_measures, passes, chosen)
        outcomes.update(_output_outcomes(passes, data, traced.note))
        described = tuple(layer.layer for layer in chosen)
        outcomes.update(_lacking(measures, data, len(described)))
        # Changes so far were made by the model itself, not by a measure.
        own_changes = fresh.changes(model) if fresh is not None else []
        modules = {layer.layer.name: layer.module for layer in chosen}
        for measure in model_measures:
            seeds.set(measure)
            of_measure = model_measure_outcomes(
                measure, model, modules, described, data, device, own_changes, tiled is not None, facts
            )
            outcomes.update(_with_notes(measure, of_measure, traced.note, chosen))
    left_out = tuple((layer.layer.name, _NOT_CHOSEN) for layer in traced.layers if layer not in chosen)
    vectors = {split: [len(state.samples[split]) for state in passes.layers] for split in data.sources}
    by_batch, reproducible = bool(traced.note), UNSEEDED not in traced.note
    correct = {split: counts for split, counts in passes.correct.items() if counts is not None}
    return ModelResult(described, traced.skipped + left_out, outcomes, vectors, by_batch, reproducible, correct)


def _measure_without_data(
    model: nn.Module,
    data: PreparedData,
    measures: Sequence[Measure],
    device: torch.device,
    layers: LayerChoice | None,
    facts: ModelFacts | None,
) -> ModelResult:
    with settled(), undisturbed(model, device):
        generators = Generators(model, device)
        seeds = ModelSeeds(generators, data.seed, False)
        every, skipped = listed(model)
        chosen = [every[index] for index in selected([layer.name for layer in every], layers)]
        skipped += tuple((layer.name, _NOT_CHOSEN) for layer in every if layer not in chosen)
        outcomes = _lacking(measures, data, len(chosen))
        registered = dict(model.named_modules())
        modules = {layer.name: registered.get(layer.name, model) for layer in chosen}
        for measure in measures:
            if isinstance(measure, ModelMeasure):
                seeds.set(measure)
                of_measure = model_measure_outcomes(measure, model, modules, chosen, data, device, (), False, facts)
                for variable, written in zip(measure.variables, measure.written(), strict=True):
                    outcomes[written.name] = of_measure[variable.name]
    return ModelResult(tuple(chosen), skipped, outcomes, {}, ran=False)


# What runs ------------------------------------------------------------------------------------------------------


def _whole(
    model: nn.Module, data: PreparedData, layers: LayerChoice | None, device: torch.device, memory: Memory
) -> tuple[Trace, list[TracedLayer], Feed]:
    """The trace, the chosen layers, and the feed of whole inputs."""
    first, tap = next(iter(data.sources.values())), data.extractor.tap
    count = _example_count(model, first.example(1).to(device), tap, memory)
    example = first.example(count).to(device)
    layout = fastest_layout(model, example)
    traced = trace(model, example.contiguous(memory_format=layout), tap)
    chosen = _choose(traced.layers, layers)
    return traced, chosen, WholeFeed(data, device, layout, inputs_at_a_time(traced.layers, memory))


def _example_count(model: nn.Module, example: Tensor, tap: str, memory: Memory) -> int:
    """How many inputs are traced: no more than run at a time, where a single one (1, …) is large."""
    if example.numel() < memory.large_input:
        return _EXAMPLES
    try:
        return min(_EXAMPLES, inputs_at_a_time(trace(model, example, tap).layers, memory))
    except ModelError:  # the trace of three inputs has the better message
        return _EXAMPLES


def _by_tiles(
    model: nn.Module,
    data: PreparedData,
    layers: LayerChoice | None,
    device: torch.device,
    tile: Sequence[int],
    generators: Generators,
) -> tuple[Trace, list[TracedLayer], Feed] | None:
    """The trace, the chosen layers, and the feed of tiles, without a run of a whole input.

    None if a tile would be the whole input.
    """
    source = next(iter(data.sources.values()))
    example = source.example(1)
    if not example.is_floating_point():
        raise OptionError("tile: integer inputs cannot be cut into tiles; leave tile out")
    size = tuple(example.shape[2:])
    if all(core >= side for core, side in zip(tile, size, strict=True)):
        return None
    # The size of the whole modulo the usual strides: some models accept no other size.
    lengths = [side - max(0, side - core) // _STRIDES * _STRIDES for core, side in zip(tile, size, strict=True)]
    part = example[(slice(None), slice(None), *(slice(0, length) for length in lengths))].to(device)
    try:
        layout = fastest_layout(model, part)
    except ModelError:  # some layers of the model take whole inputs only
        layout = torch.contiguous_format
    sketch = Sketch(model, device)
    shape = (min(_EXAMPLES, len(source.scan())), *example.shape[1:])
    traced = sketched_trace(model, sketch, shape, data.extractor.tap)
    chosen = _choose(traced.layers, layers)
    before = generators.state()
    failure: ModelError | None = None
    try:
        surveyed = survey(model, sketch, chosen, example, tile, device, layout)
    except ModelError as error:
        failure, surveyed = error, None
    if generators.state() != before:
        raise ModelError(
            "the model is random in evaluation mode, so that its tiles do not fit together: it cannot be measured by "
            "tiles; leave tile out"
        ) from failure
    if failure is not None:
        raise failure
    if surveyed is None:
        return None
    return traced, chosen, TileFeed(data, device, Tiling(model, surveyed, chosen, size, device, layout))


def _run(passes: Passes, traced: Trace) -> None:
    """Run all passes; the error of a random model says that it is random."""
    try:
        passes.run()
    except ModelError as error:
        if not traced.note:
            raise
        raise ModelError(f"{error}; {traced.note}") from error


# Layers ---------------------------------------------------------------------------------------------------------


def _choose(traced: Sequence[TracedLayer], layers: LayerChoice | None) -> list[TracedLayer]:
    return [traced[index] for index in selected([layer.layer.name for layer in traced], layers)]


# Outcomes -------------------------------------------------------------------------------------------------------


def _feature_outcomes(
    measures: Sequence[FeatureMeasure], passes: Passes, layers: Sequence[TracedLayer]
) -> dict[str, Sequence[Outcome]]:
    """The outcomes of feature measures, with the notes of the layers."""
    outcomes: dict[str, Sequence[Outcome]] = {}
    for index, measure in enumerate(measures):
        by_layer = [state.consumers[index].outcomes() for state in passes.layers]
        for variable, written in zip(measure.variables, measure.written(), strict=True):
            outcomes[written.name] = [
                noted(noted(of_layer[variable.name], layer.note), layer.read_before)
                for of_layer, layer in zip(by_layer, layers, strict=True)
            ]
    return outcomes


def _output_outcomes(passes: Passes, data: PreparedData, note: str) -> dict[str, Sequence[Outcome]]:
    """The outcomes of measures of outputs, with the notes of the targets that they read and of the model."""
    outcomes: dict[str, Sequence[Outcome]] = {}
    for consumer in passes.outputs:
        measure, of_model = consumer.measure, consumer.outcomes()
        for variable, written in zip(measure.variables, measure.written(), strict=True):
            outcomes[written.name] = [noted(noted(of_model[variable.name], data.target_note(consumer.labeled)), note)]
    return outcomes


def _lacking(measures: Sequence[Measure], data: PreparedData, layers: int) -> dict[str, Sequence[Outcome]]:
    """The outcomes of measures that lack data or labels."""
    return {
        variable.name: [Outcome(float("nan"), f"undefined: {measure.name} {data.lacking[repr(measure)]}")]
        * (layers if "layer" in variable.dims else 1)
        for measure in measures
        if repr(measure) in data.lacking
        for variable in measure.written()
    }


def _with_notes(
    measure: Measure, outcomes: Mapping[str, Sequence[Outcome]], note: str, layers: Sequence[TracedLayer]
) -> dict[str, Sequence[Outcome]]:
    """The outcomes of a model measure by the names in the result, with the notes of the layers or of the model."""
    by_layer = [layer.note for layer in layers]
    return {
        written.name: [
            noted(outcome, text)
            for outcome, text in zip(
                outcomes[variable.name], by_layer if "layer" in variable.dims else [note], strict=True
            )
        ]
        for variable, written in zip(measure.variables, measure.written(), strict=True)
    }
