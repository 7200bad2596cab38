"""The passes of one model: as few runs of the model as the measures of all layers together allow."""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from genmeasures.engine.accuracy import Accuracy, Correct
from genmeasures.engine.layer import PATCH_FIELDS, LayerRun
from genmeasures.engine.norms import Moments, Norms
from genmeasures.engine.prepared import PreparedData
from genmeasures.engine.returned import checked_labels, checked_patches, checked_vectors
from genmeasures.engine.running import Running
from genmeasures.engine.seeds import ModelSeeds
from genmeasures.engine.tiles import Site, Tile, sampled
from genmeasures.engine.tiling import Tiling
from genmeasures.errors import Undefined
from genmeasures.interfaces import (
    FeatureBatch,
    FeatureLabeler,
    FeatureMeasure,
    Field,
    Labeler,
    Layer,
    PatchSet,
    SampleName,
    Split,
)
from genmeasures.tracing import LayerReader, StoredPatches, TracedLayer, tapped

_RECORDED_BYTES = 9 << 27
"""Memory for training samples at a time."""
_KEPT_BYTES = 3 << 28
"""Memory for what is kept of a pass for the next one."""
_CHUNK_BYTES = 1 << 23
"""Patches gathered at a time: they stay in cache between gathering and use."""

_UNFOLDED: frozenset[Field] = frozenset({"patches", "projected_patches"})
_BATCH_BYTES = 1 << 28
"""Activations of a batch, by a rough estimate: larger batches are split."""
_ALIVE = 4
"""How many tensors of the largest layer's size are alive at a time, its own included: skip connections, workspaces."""

_OVERS: tuple[SampleName, ...] = ("fit", "train", "test")

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, how many inputs of how many are through."""


def rows_for(traced: Sequence[TracedLayer]) -> int:
    """How many inputs are run at once, by the largest of *all* layers of a model: those not measured run too."""
    largest = max(layer.layer.input_size + layer.layer.channels * layer.layer.positions for layer in traced)
    return max(1, _BATCH_BYTES // (4 * _ALIVE * largest))


@dataclass(frozen=True)
class _Part:
    """What goes through the model at a time: some inputs, or a tile of one."""

    start: int
    """The first of the inputs."""
    inputs: Tensor
    targets: Tensor | None
    """Of the whole inputs."""
    tile: Tile | None = None
    norms: Sequence[Moments] = ()
    """Statistics of the normalizations, of the whole input."""
    sites: Mapping[int, Site] = field(default_factory=dict)
    """By layer."""
    places: Mapping[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict)
    """By layer: positions in the whole output, and ranks, of the vectors in the tile's core."""


class ModelRun:
    """All passes of all feature measures over one model."""

    def __init__(
        self,
        model: nn.Module,
        traced: Sequence[TracedLayer],
        data: PreparedData,
        measures: Sequence[FeatureMeasure],
        device: torch.device,
        layout: torch.memory_format,
        rows: int,
        seeds: ModelSeeds,
        progress: Progress | None,
        tiling: Tiling | None = None,
    ) -> None:
        self._model = model
        self._seeds = seeds
        self._layout = layout
        self._rows = rows
        self._data = data
        self._extractor = data.extractor
        self._device = device
        self._progress = progress
        self._tiling = tiling
        self._target_labels: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self.correct: dict[Split, Correct | None] = {}
        """By split: what the model predicts, None where its outputs do not tell."""
        self.layers = [LayerRun(layer, measures, data) for layer in traced]

    def run(self) -> None:
        """Make all passes."""
        if any(running.needs_fit() for run in self.layers for running in run.running):
            for group in self._groups():
                self._fit(group)
        while True:
            over = next((o for o in _OVERS if any(run.waiting(o) for run in self.layers)), None)
            if over is None:
                return
            self._score(over)

    def _groups(self) -> Iterator[list[LayerRun]]:
        """Consecutive layers whose training samples fit into memory together."""
        group: list[LayerRun] = []
        used = 0
        for run in self.layers:
            run.patches_of = next((other for other in group if run.shares_patches(other)), None)
            size = run.recorded_bytes(self._extractor)
            if group and used + size > _RECORDED_BYTES:
                yield group
                group, used, run.patches_of = [], 0, None
                size = run.recorded_bytes(self._extractor)
            group.append(run)
            used += size
        yield group

    def _fit(self, group: Sequence[LayerRun]) -> None:
        """One pass over the training data: sample the layers, fit them, and feed the measures that need no fit."""
        active = {run.layer.index: run.ready_to_record() for run in group}

        def receive(run: LayerRun, batch: FeatureBatch) -> None:
            run.record(batch)
            for running in active[run.layer.index]:
                running.update(batch)

        self._forward("fit", group, active, receive, keep=frozenset())
        self._each(group, LayerRun.fit)
        self._each([run for run in group if run.patch_components], LayerRun.fit_patches)
        self._each(group, LayerRun.replay)

    def _score(self, over: SampleName) -> None:
        """One pass over a sample for every measure that waits for it."""
        active = {run.layer.index: run.waiting(over) for run in self.layers}
        waiting = [run for run in self.layers if active[run.layer.index]]
        keep = self._keepers(over, waiting)

        def receive(run: LayerRun, batch: FeatureBatch) -> None:
            for running in active[run.layer.index]:
                running.update(batch)

        self._forward(over, waiting, active, receive, keep)
        self._each([run for run in waiting if run.layer.index in keep], LayerRun.replay)

    def _keepers(self, over: SampleName, waiting: Sequence[LayerRun]) -> frozenset[int]:
        """The layers, from the last one backwards, that are kept for the pass after this one.

        Then that pass needs the model only as far as the last layer that is not kept.
        """
        keep = set()
        free = _KEPT_BYTES
        for run in reversed(waiting):
            if run.second_pass(over):
                free -= self._kept_bytes(run, over)
                if free < 0:
                    break
                keep.add(run.layer.index)
        return frozenset(keep)

    def _forward(
        self,
        over: SampleName,
        runs: Sequence[LayerRun],
        active: Mapping[int, Sequence[Running]],
        receive: Callable[[LayerRun, FeatureBatch], None],
        keep: frozenset[int],
    ) -> None:
        """Run a split through the model as far as the last of the layers, and end the pass of the active measures."""
        source = self._data.sources[self._data.split_of(over)]
        by_index = {run.layer.index: run for run in runs}
        fields = {index: frozenset().union(*(r.remaining[0].fields for r in these)) for index, these in active.items()}
        unfolded = {
            index
            for index, these in fields.items()
            if these & _UNFOLDED or (over == "fit" and by_index[index].records_patches)
        }
        # Settled before the pass: a measure that fails in the midst of it changes what the others need.
        patched = {run.layer.index for run in runs if run.layer.index in keep and run.second_pass(over) & PATCH_FIELDS}
        stored = {run.layer.index for run in runs if run.layer.index in patched and self._stores_patches(run, over)}
        total = len(source.scan())
        part: _Part

        def tap(traced: TracedLayer, given: Tensor, output: Tensor) -> None:
            given, output = given.float(), output.float()  # models of other types give features of their own
            index = traced.layer.index
            run = by_index[index]
            given, output = given.detach(), output.detach()  # a model may take gradients within
            # A kept input is copied: the model may overwrite it, or it may be part of something larger.
            given = run.keep_inputs(over, given, part.start, total) if index in patched - stored else given
            stores = index in stored
            for batch in self._live(run, over, part, given, output, stores or index in unfolded, stores):
                receive(run, batch)
                if index in keep and run.waiting(over):
                    run.keep(batch, over, part.start, len(output), stores, ranked=part.tile is not None)

        layers, whole = [run.traced for run in runs], self._tiling is None
        split = self._data.split_of(over)
        # Behind the last layer there is next to nothing to save.
        counted = None
        if whole and split not in self.correct and runs[-1] is self.layers[-1]:
            counted = Accuracy(source, self._data.classes)
        stop = not whole or (len(runs) < len(self.layers) and counted is None)
        with tapped(self._model, layers, tap, stop, whole) as taps:
            for part in self._parts(over, runs):
                self._seeds.set(split, part.start)
                with nullcontext() if part.tile is None else Norms(part.norms):
                    output = taps.run(part.inputs)
                if counted is not None:
                    counted.add(output, part.targets)
                if self._progress is not None:
                    self._progress(split, part.start + len(part.inputs), total)
        if counted is not None:
            self.correct[split] = counted.result()
        for these in active.values():
            for running in these:
                running.end_pass()

    def _parts(self, over: SampleName, runs: Sequence[LayerRun]) -> Iterator[_Part]:
        """All inputs of a split: some at a time, or the tiles of each in which any of the layers' vectors lie."""
        for first, inputs, all_targets in self._data.sources[self._data.split_of(over)].checked():
            for rows in (slice(row, row + self._rows) for row in range(0, len(inputs), self._rows)):
                start, targets = first + rows.start, None if all_targets is None else all_targets[rows]
                self._target_labels.clear()
                if self._tiling is None:
                    given = inputs[rows].to(self._device).contiguous(memory_format=self._layout)
                    yield _Part(start, given, targets)
                    continue
                layers = [run.traced for run in runs]
                norms = self._tiling.norms(self._data.split_of(over), start, inputs[rows], layers)
                for tile in self._tiling.tiles(layers):
                    sites = {run.layer.index: self._tiling.site(run.traced) for run in runs}
                    places = {
                        run.layer.index: sampled(run.samples[over], start, sites[run.layer.index], tile) for run in runs
                    }
                    if any(len(positions) for positions, _ in places.values()):
                        yield _Part(start, self._tiling.cut(inputs[rows], tile), targets, tile, norms, sites, places)

    def _live(
        self,
        run: LayerRun,
        over: SampleName,
        part: _Part,
        given: Tensor,
        output: Tensor,
        unfolds: bool,
        stores: bool,
    ) -> Iterator[FeatureBatch]:
        """The sampled vectors of what went through the model, few at a time where patches are unfolded."""
        traced, index = run.traced, run.layer.index
        if part.tile is None:
            rows, positions, rank = run.rows(over, part.start, len(output))
            geometry, labeled = traced.geometry, positions
        else:
            spatial = [tuple(x.shape[1:-1] if traced.channels_last else x.shape[2:]) for x in (given, output)]
            geometry = replace(traced.geometry, input_spatial=spatial[0], output_spatial=spatial[1])
            labeled, rank = map(torch.from_numpy, part.places[index])
            local = part.sites[index].local_positions(part.tile, spatial[1], part.places[index][0])
            rows, positions = torch.zeros_like(rank), torch.from_numpy(local)
        reader = LayerReader(geometry, given, traced.channels_last)
        by_channel = (
            output.reshape(len(output), -1, run.layer.channels).transpose(1, 2)
            if traced.channels_last
            else output.flatten(2)
        )
        size = 4 * self._extractor.patch_size(run.layer)
        chunk = max(1, _CHUNK_BYTES // size if unfolds else len(rows))
        every = (torch.split(place.to(self._device), chunk) for place in (rows, positions, rank, labeled))
        for rows, positions, rank, labeled in zip(*every, strict=True):
            if len(rows):
                patches = checked_patches(self._extractor, self._extractor.patches(reader, rows, positions))
                if stores:  # they are needed twice
                    patches = StoredPatches(patches.unfold())
                vectors = partial(self._vectors, run.layer, by_channel, rows, positions)
                labels = partial(self._labels, run, part.targets, rows, labeled)
                yield _batch(run, over, rank, vectors, patches, labels)

    def _vectors(self, layer: Layer, by_channel: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        made = self._extractor.vectors(by_channel, rows, positions)
        made = checked_vectors(self._extractor, made, len(rows), layer)
        # The sum shows any NaN or infinity; only then is it worth looking whether finite numbers overflowed it.
        if not bool(torch.isfinite(made.sum())) and not bool(torch.isfinite(made).all()):
            raise Undefined("NaN or infinite activations")
        return made

    def _labels(
        self,
        run: LayerRun,
        targets: Tensor | None,
        rows: Tensor,
        positions: Tensor,
        labeler: Labeler,
        batch: FeatureBatch,
    ) -> Tensor:
        if isinstance(labeler, FeatureLabeler):
            return run.feature_labels(labeler, batch.projected)
        size = self._extractor.label_size(run.layer.spatial)
        key = (repr(labeler), size)
        if key not in self._target_labels:
            assert targets is not None
            fitted, count = self._data.labelers[repr(labeler)], len(targets)
            labels = fitted.label(targets.to(self._device), size)
            self._target_labels[key] = checked_labels(fitted, labels, (count, 1), (count, math.prod(size)))
        made = self._target_labels[key]
        return made[rows, positions if made.shape[1] > 1 else 0]

    def _stores_patches(self, run: LayerRun, over: SampleName) -> bool:
        """Whether the sampled patches take less memory than the inputs they are read from, which tiles never have."""
        patches = len(run.samples[over]) * self._extractor.patch_size(run.layer)
        return self._tiling is not None or patches < self._inputs(run, over)

    def _kept_bytes(self, run: LayerRun, over: SampleName) -> int:
        vectors, fields = len(run.samples[over]), run.second_pass(over)
        projected = 8 * vectors * self._extractor.components if "projected" in fields else 0
        projected += 8 * vectors * run.patch_components if "projected_patches" in fields else 0
        patches = vectors * self._extractor.patch_size(run.layer)
        inputs = 4 * (patches if self._stores_patches(run, over) else self._inputs(run, over))
        return projected + (inputs if fields & PATCH_FIELDS else 0)

    def _width(self, run: LayerRun) -> int:
        return self._extractor.vector_size(run.layer) + self._extractor.patch_size(run.layer)

    def _inputs(self, run: LayerRun, over: SampleName) -> int:
        return len(self._data.sources[self._data.split_of(over)].scan()) * run.layer.input_size

    def _each(self, runs: Sequence[LayerRun], work: Callable[[LayerRun], None]) -> None:
        """Do the layers' own work side by side: small operations gain more from this than from threads inside each."""
        threads = torch.get_num_threads()
        if self._device.type != "cpu" or threads == 1 or len(runs) < 2:
            for run in runs:
                work(run)
            return

        @torch.no_grad()  # holds in the thread that enters it
        def alone(run: LayerRun) -> None:
            work(run)

        try:
            with (
                threadpool_limits(1, "blas"),
                ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            ):
                # The widest first, so that none is left to run alone at the end.
                ordered = sorted(runs, key=self._width, reverse=True)
                contexts = [contextvars.copy_context() for _ in ordered]  # a thread starts with an empty one
                list(pool.map(lambda run, context: context.run(alone, run), ordered, contexts))
        finally:
            torch.set_num_threads(threads)


def _batch(
    run: LayerRun,
    over: SampleName,
    rank: Tensor,
    vectors: Callable[[], Tensor],
    patches: PatchSet,
    labels: Callable[[Labeler, FeatureBatch], Tensor],
) -> FeatureBatch:
    def projected(batch: FeatureBatch) -> Tensor:
        assert run.pca is not None
        return run.pca.project(batch.vectors)

    fields: dict[Field, Callable[[FeatureBatch], Tensor | PatchSet]] = {
        "vectors": lambda _: vectors(),
        "projected": projected,
        "patches": lambda _: patches.unfold(),
        "patch_set": lambda _: patches,
        "projected_patches": lambda batch: run.project_patches(batch.patches),
    }
    return FeatureBatch(run.layer, run.split_of(over), rank, fields, labels)
