"""All measures of one model, with each batch going through the model once a pass."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from genmeasures.data import DataSource
from genmeasures.engine.prepared import PreparedData
from genmeasures.engine.seeds import generator_for
from genmeasures.errors import GenmeasuresError, ModelError, OptionError, Undefined, nearest
from genmeasures.interfaces import (
    FeatureBatch,
    FeatureLabeler,
    FeatureMeasure,
    Field,
    Labeler,
    Layer,
    Measure,
    ModelData,
    ModelMeasure,
    Pass,
    Sample,
    Split,
    TargetLabeler,
    Value,
    Values,
)
from genmeasures.statistics.pca import PCA, fit_pca
from genmeasures.tracing import LayerReader, TracedLayer, tapped, trace
from genmeasures.tracing.guard import undisturbed

log = logging.getLogger(__name__)

_EXAMPLES = 3
"""Inputs of the traced forward pass: more than one shows which dimension is the batch."""
_REPLAY_ROWS = 16_384

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, how many inputs of how many are through."""


@dataclass(frozen=True)
class Outcome:
    """A value with its status: "ok", "note: …" (valid, with a remark), or NaN with "undefined: …" or "failed: …"."""

    value: float
    status: str


@dataclass(frozen=True)
class ModelResult:
    """What was measured of one model."""

    layers: tuple[Layer, ...]
    skipped: tuple[tuple[str, str], ...]
    outcomes: Mapping[str, Sequence[Outcome]]
    """By variable: one a layer, or a single one for a variable without the layer dimension."""
    vectors: Mapping[Split, Sequence[int]]
    """Number of vectors sampled in each layer."""


@dataclass
class _Record:
    """The training sample of a layer, kept so that later passes over it need no forward pass."""

    vectors: Tensor | None
    projected: Tensor | None = None
    labels: dict[str, Tensor] = field(default_factory=dict)


class _Running:
    """One measure on one layer."""

    def __init__(self, measure: FeatureMeasure, layer: Layer, seed: int) -> None:
        self.measure = measure
        self.remaining = list(measure.passes)
        self.failure: str | None = None
        with self.guarded():
            measure.start(layer, generator_for(seed, "measure", measure, layer.index))

    def guarded(self) -> _Guard:
        return _Guard(self)

    def outcomes(self) -> dict[str, Outcome]:
        values: Values | None = None
        with self.guarded():
            if self.failure is None:
                values = self.measure.compute()
        names = [variable.name for variable in self.measure.variables]
        if self.failure is None and values is not None:
            with self.guarded():
                by_name = values if isinstance(values, Mapping) else {names[0]: values}
                return {name: outcome(by_name[name]) for name in names}
        assert self.failure is not None
        return {name: Outcome(float("nan"), self.failure) for name in names}


class _Guard:
    """Turns an exception of a measure into its status: the other measures go on."""

    def __init__(self, running: _Running) -> None:
        self._running = running

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._running.failure = status_of(error)
        if not isinstance(error, GenmeasuresError):
            log.debug("%s failed", self._running.measure, exc_info=error)
        return True


def outcome(value: float | Value) -> Outcome:
    """The outcome of a value as a measure returned it: a number that is not finite is none."""
    note = value.note if isinstance(value, Value) else ""
    number = float(value.value if isinstance(value, Value) else value)
    if not np.isfinite(number):
        return Outcome(float("nan"), f"undefined: the measure gave {number}")
    return Outcome(number, f"note: {note}" if note else "ok")


def status_of(error: Exception) -> str:
    """The status that an exception leaves behind."""
    if isinstance(error, Undefined):
        return f"undefined: {error}"
    return f"failed: {error}" if isinstance(error, GenmeasuresError) else f"failed: {type(error).__name__}: {error}"


class _LayerRun:
    """Everything that a run keeps of one layer."""

    def __init__(self, traced: TracedLayer, measures: Sequence[FeatureMeasure], data: PreparedData) -> None:
        self.traced = traced
        self.layer = traced.layer
        self.samples: dict[Split, Sample] = {split: data.sample(split, self.layer.positions) for split in data.sources}
        self.running = [_Running(copy.deepcopy(measure), self.layer, data.seed) for measure in measures]
        self.pca: PCA | None = None
        self.labelers: dict[str, FeatureLabeler | Undefined] = {}
        self.record: _Record | None = None

    def fail(self, status: str) -> None:
        """The layer has no features: none of its measures has a value."""
        for running in self.running:
            running.failure = running.failure or status

    def waiting(self, split: Split) -> list[_Running]:
        """The measures whose next pass is over that split."""
        return [r for r in self.running if r.failure is None and r.remaining and r.remaining[0].split == split]

    def rows(self, split: Split, start: int, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Row in the batch, position and rank of the sampled vectors of inputs start … start + count."""
        sample = self.samples[split]
        low, high = np.searchsorted(sample.inputs, [start, start + count])
        rows, positions, rank = (
            torch.from_numpy(array[low:high]).to(device) for array in (sample.inputs, sample.positions, sample.rank)
        )
        return rows - start, positions, rank


def _needs_fit(measure: FeatureMeasure, one: Pass) -> bool:
    """Whether a pass can only be made once the projection and labelers of its layer are fitted."""
    return "projected" in one.fields or ("labels" in one.fields and isinstance(measure.labeler, FeatureLabeler))


class _ModelRun:
    def __init__(
        self,
        model: nn.Module,
        traced: Sequence[TracedLayer],
        data: PreparedData,
        measures: Sequence[FeatureMeasure],
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self._model = model
        self._data = data
        self._extractor = data.extractor
        self._device = device
        self._progress = progress
        self._target_labels: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self.layers = [_LayerRun(layer, measures, data) for layer in traced]
        passes = [(measure, one) for measure in measures for one in measure.passes]
        self._fitted = not any(_needs_fit(measure, one) for measure, one in passes)
        training = [(measure, one) for measure, one in passes if one.split == "train"]
        self._keep_vectors = any("vectors" in one.fields for _, one in training)
        self._train_labelers = {
            repr(measure.labeler): measure.labeler
            for measure, one in training
            if "labels" in one.fields and isinstance(measure.labeler, TargetLabeler)
        }
        self._feature_labelers = {
            repr(measure.labeler): measure.labeler
            for measure in measures
            if isinstance(measure.labeler, FeatureLabeler)
        }

    def run(self) -> None:
        """Make all passes: over the kept training sample where that will do, through the model where not."""
        while True:
            if not self._fitted:
                self._forward("train", record=True)
                self._fitted = True
                self._each_layer(self._settle)
            split = next((s for s in self._data.sources if any(run.waiting(s) for run in self.layers)), None)
            if split is None:
                return
            self._forward(split, record=False)

    def _each_layer(self, work: Callable[[_LayerRun], None]) -> None:
        """Do the layers' own work side by side: small operations gain more from this than from threads inside each."""
        threads = torch.get_num_threads()
        if self._device.type != "cpu" or threads == 1:
            for run in self.layers:
                work(run)
            return

        @torch.inference_mode()  # holds in the thread that enters it
        def alone(run: _LayerRun) -> None:
            work(run)

        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                # The widest first, so that none is left to run alone at the end.
                list(pool.map(alone, sorted(self.layers, key=_size, reverse=True)))
        finally:
            torch.set_num_threads(threads)

    def _settle(self, run: _LayerRun) -> None:
        """Fit a layer, and make all passes that its kept training sample can feed."""
        self._fit(run)
        self._replay(run)

    def _ready(self, run: _LayerRun, split: Split) -> list[_Running]:
        return [r for r in run.waiting(split) if self._fitted or not _needs_fit(r.measure, r.remaining[0])]

    def _forward(self, split: Split, record: bool) -> None:
        """One pass of the split through the model, for every measure that is ready for it."""
        source = self._data.sources[split]
        active = {run.layer.index: self._ready(run, split) for run in self.layers}
        runs = {run.layer.index: run for run in self.layers if record or active[run.layer.index]}
        start, targets = 0, None

        def receive(traced: TracedLayer, given: Tensor, output: Tensor) -> None:
            run = runs[traced.layer.index]
            batch = self._live_batch(run, split, start, given, output, targets)
            if not len(batch):
                return
            if record:
                self._record(run, batch)
            for running in active[traced.layer.index]:
                self._update(running, batch)

        total = len(source.scan())
        with tapped(self._model, [run.traced for run in runs.values()], receive) as tap:
            for start, inputs, targets in source.checked():  # noqa: B007 -- receive reads them
                self._target_labels.clear()
                tap.run(inputs.to(self._device))
                if self._progress is not None:
                    self._progress(split, start + len(inputs), total)
        for ready in active.values():
            for running in ready:
                self._end_pass(running)

    @staticmethod
    def _update(running: _Running, batch: FeatureBatch) -> None:
        if running.failure is None:
            with running.guarded():
                running.measure.update(batch)

    @staticmethod
    def _end_pass(running: _Running) -> None:
        running.remaining.pop(0)
        if running.failure is None:
            with running.guarded():
                running.measure.end_pass()

    def _live_batch(
        self, run: _LayerRun, split: Split, start: int, given: Tensor, output: Tensor, targets: Tensor | None
    ) -> FeatureBatch:
        rows, positions, rank = run.rows(split, start, len(output), self._device)
        reader = LayerReader(run.traced.geometry, given, run.traced.channels_last)
        by_channel = (
            output.reshape(len(output), run.layer.positions, -1).transpose(1, 2)
            if run.traced.channels_last
            else output.flatten(2)
        )

        def vectors() -> Tensor:
            made = self._extractor.vectors(by_channel, rows, positions)
            if not bool(torch.isfinite(made).all()):
                raise Undefined("NaN or infinite activations")
            return made

        def projected() -> Tensor:
            assert run.pca is not None
            return run.pca.project(batch.vectors)

        def labels(labeler: Labeler) -> Tensor:
            if isinstance(labeler, FeatureLabeler):
                return _feature_labels(run, labeler, batch.projected)
            size = self._extractor.label_size(run.layer.spatial)
            key = (repr(labeler), size)
            if key not in self._target_labels:
                assert targets is not None
                self._target_labels[key] = self._data.labelers[repr(labeler)].label(targets.to(self._device), size)
            made = self._target_labels[key]
            return made[rows, positions if made.shape[1] > 1 else 0]

        fields: dict[Field, Callable[[], Tensor]] = {
            "vectors": vectors,
            "patches": lambda: self._extractor.patches(reader, rows, positions),
            "projected": projected,
        }
        batch = FeatureBatch(run.layer, split, rank, fields, labels)
        return batch

    def _record(self, run: _LayerRun, batch: FeatureBatch) -> None:
        """Keep the training vectors, each at its rank: fits see them in one order, whatever that of the data."""
        if any(running.failure is None for running in run.running):
            try:
                if run.record is None:
                    run.record = _Record(batch.vectors.new_empty(len(run.samples["train"]), batch.vectors.shape[1]))
                assert run.record.vectors is not None
                run.record.vectors[batch.rank] = batch.vectors
                for key, labeler in self._train_labelers.items():
                    if key not in run.record.labels:
                        run.record.labels[key] = batch.rank.new_zeros(len(run.samples["train"]))
                    run.record.labels[key][batch.rank] = batch.labels(labeler)
            except Exception as error:  # a labeler may be a plugin's: its layer has no value, the others go on
                run.fail(status_of(error))

    def _fit(self, run: _LayerRun) -> None:
        """Fit a layer's projection and labelers on its training sample."""
        if run.record is None or run.record.vectors is None:
            return
        try:
            run.pca = fit_pca(run.record.vectors, self._extractor.components)
            run.record.projected = run.pca.project(run.record.vectors)
        except Undefined as error:
            for running in run.running:
                if any(_needs_fit(running.measure, one) for one in running.remaining):
                    running.failure = running.failure or status_of(error)
            return
        for key, labeler in self._feature_labelers.items():
            fresh = copy.deepcopy(labeler)
            try:
                fresh.fit(run.record.projected, generator_for(self._data.seed, "labeler", key, run.layer.index))
                run.labelers[key] = fresh
            except Undefined as error:
                run.labelers[key] = error
        if not self._keep_vectors:
            run.record.vectors = None

    def _replay(self, run: _LayerRun) -> None:
        """Make all passes that the kept training sample can feed."""
        record = run.record
        if record is None or record.projected is None:
            return
        kept: set[Field] = {"projected", "labels"}
        if record.vectors is not None:
            kept.add("vectors")
        for running in run.running:
            while running.failure is None and running.remaining:
                if running.remaining[0].split != "train" or not running.remaining[0].fields <= kept:
                    break
                for batch in self._kept_batches(run, record):
                    self._update(running, batch)
                self._end_pass(running)

    def _kept_batches(self, run: _LayerRun, record: _Record) -> Iterator[FeatureBatch]:
        assert record.projected is not None
        for start in range(0, len(record.projected), _REPLAY_ROWS):
            rows = slice(start, min(start + _REPLAY_ROWS, len(record.projected)))
            rank = torch.arange(rows.start, rows.stop, device=record.projected.device)
            fields: dict[Field, Callable[[], Tensor]] = {"projected": partial(_rows, record.projected, rows)}
            if record.vectors is not None:
                fields["vectors"] = partial(_rows, record.vectors, rows)
            yield FeatureBatch(run.layer, "train", rank, fields, partial(self._kept_labels, run, record, rows))

    def _kept_labels(self, run: _LayerRun, record: _Record, rows: slice, labeler: Labeler) -> Tensor:
        if isinstance(labeler, FeatureLabeler):
            assert record.projected is not None
            return _feature_labels(run, labeler, record.projected[rows])
        return record.labels[repr(labeler)][rows]


def _rows(kept: Tensor, rows: slice) -> Tensor:
    return kept[rows]


def _feature_labels(run: _LayerRun, labeler: Labeler, projected: Tensor) -> Tensor:
    fitted = run.labelers[repr(labeler)]
    if isinstance(fitted, Undefined):
        raise fitted
    return fitted.label(projected)


def _size(run: _LayerRun) -> int:
    return len(run.samples["train"]) * run.layer.channels


def measure_model(
    model: nn.Module,
    data: PreparedData,
    measures: Sequence[Measure],
    device: torch.device,
    layers: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> ModelResult:
    """Measure one model; it is left as it was found.

    layers: names of the layers to measure, None for all. Raises ModelError if the model cannot be
    run or has no measurable layer, OptionError for a layer that it does not have.
    """
    first = next(iter(data.sources.values()))
    with undisturbed(model, device):
        traced = trace(model, first.example(_EXAMPLES).to(device), data.extractor.tap)
        chosen = _choose(traced.layers, layers)
        features = [measure for measure in measures if isinstance(measure, FeatureMeasure)]
        run = _ModelRun(model, chosen, data, features, device, progress)
        with torch.inference_mode():
            run.run()
        outcomes: dict[str, Sequence[Outcome]] = {}
        for place, feature in enumerate(features):
            by_layer = [layer.running[place].outcomes() for layer in run.layers]
            for variable in feature.variables:
                outcomes[variable.name] = [values[variable.name] for values in by_layer]
        described = tuple(layer.layer for layer in chosen)
        for measure in measures:
            if isinstance(measure, ModelMeasure):
                outcomes.update(_model_measure(measure, model, described, data, device))
    left_out = tuple(
        (layer.layer.name, "not among the chosen layers") for layer in traced.layers if layer not in chosen
    )
    vectors = {split: [len(layer.samples[split]) for layer in run.layers] for split in data.sources}
    return ModelResult(described, traced.skipped + left_out, outcomes, vectors)


def _choose(traced: Sequence[TracedLayer], names: Sequence[str] | None) -> list[TracedLayer]:
    if names is None:
        return list(traced)
    known = [layer.layer.name for layer in traced]
    for name in names:
        if name not in known:
            raise OptionError(f"there is no layer {name!r} to measure{nearest(name, known)}")
    return [layer for layer in traced if layer.layer.name in names]


def _model_measure(
    measure: ModelMeasure, model: nn.Module, layers: Sequence[Layer], data: PreparedData, device: torch.device
) -> dict[str, Sequence[Outcome]]:
    def batches(split: Split) -> Iterator[tuple[Tensor, Tensor | None]]:
        for _, inputs, targets in _source(data, split, measure).checked():
            yield inputs.to(device), None if targets is None else targets.to(device)

    def count(variable_dims: tuple[str, ...]) -> int:
        return len(layers) if variable_dims else 1

    given = ModelData(batches, device, generator_for(data.seed, "measure", measure))
    try:
        values = measure.measure(model, layers, given)
        made: dict[str, Sequence[Outcome]] = {}
        for variable in measure.variables:
            value = values[variable.name]
            made[variable.name] = [outcome(v) for v in value] if isinstance(value, Sequence) else [outcome(value)]
            if len(made[variable.name]) != count(variable.dims):
                raise ModelError(
                    f"{variable.name} has {len(made[variable.name])} values, {count(variable.dims)} were due"
                )
        return made
    except Exception as error:  # the other measures go on
        log.debug("%s failed", measure, exc_info=error)
        failed = Outcome(float("nan"), status_of(error))
        return {variable.name: [failed] * count(variable.dims) for variable in measure.variables}


def _source(data: PreparedData, split: Split, measure: Measure) -> DataSource:
    if split not in data.sources:
        raise ModelError(f"{measure.name} needs {split} data, and none are given")
    return data.sources[split]
