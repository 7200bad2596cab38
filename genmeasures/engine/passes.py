"""The passes of one model: as few runs of the model as the measures of all layers together allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeAlias

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from genmeasures.engine.layer import PATCH_FIELDS, LayerRun
from genmeasures.engine.prepared import PreparedData
from genmeasures.engine.running import Running
from genmeasures.errors import Undefined
from genmeasures.interfaces import (
    FeatureBatch,
    FeatureLabeler,
    FeatureMeasure,
    Field,
    Labeler,
    Over,
    PatchSet,
    split_of,
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

_OVERS: tuple[Over, ...] = ("fit", "train", "test")

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, how many inputs of how many are through."""


def rows_for(traced: Sequence[TracedLayer]) -> int:
    """How many inputs are run at once, by the largest of *all* layers of a model: those not measured run too."""
    largest = max(layer.layer.input_size + layer.layer.channels * layer.layer.positions for layer in traced)
    return max(1, _BATCH_BYTES // (4 * _ALIVE * largest))


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
        progress: Progress | None,
    ) -> None:
        self._model = model
        self._layout = layout
        self._rows = rows
        self._data = data
        self._extractor = data.extractor
        self._device = device
        self._progress = progress
        self._target_labels: dict[tuple[str, tuple[int, ...]], Tensor] = {}
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

    def _score(self, over: Over) -> None:
        """One pass over a sample for every measure that waits for it."""
        active = {run.layer.index: run.waiting(over) for run in self.layers}
        waiting = [run for run in self.layers if active[run.layer.index]]
        keep = self._keepers(over, waiting)

        def receive(run: LayerRun, batch: FeatureBatch) -> None:
            for running in active[run.layer.index]:
                running.update(batch)

        self._forward(over, waiting, active, receive, keep)
        self._each([run for run in waiting if run.layer.index in keep], LayerRun.replay)

    def _keepers(self, over: Over, waiting: Sequence[LayerRun]) -> frozenset[int]:
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
        over: Over,
        runs: Sequence[LayerRun],
        active: Mapping[int, Sequence[Running]],
        receive: Callable[[LayerRun, FeatureBatch], None],
        keep: frozenset[int],
    ) -> None:
        """Run a split through the model as far as the last of the layers, and end the pass of the active measures."""
        source = self._data.sources[split_of(over)]
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
        start, targets = 0, None

        def tap(traced: TracedLayer, given: Tensor, output: Tensor) -> None:
            index = traced.layer.index
            run = by_index[index]
            # A kept input is copied: the model may overwrite it, or it may be part of something larger.
            given = run.keep_inputs(over, given, start, total) if index in patched - stored else given
            reader = LayerReader(traced.geometry, given, traced.channels_last)
            stores = index in stored
            for batch in self._live(run, over, start, reader, output, targets, stores or index in unfolded, stores):
                receive(run, batch)
                if index in keep and run.waiting(over):
                    run.keep(batch, over, start, len(output), index in stored)

        total = len(source.scan())
        with tapped(self._model, [run.traced for run in runs], tap, stop=len(runs) < len(self.layers)) as taps:
            for first, inputs, all_targets in source.checked():
                for rows in (slice(row, row + self._rows) for row in range(0, len(inputs), self._rows)):
                    start, targets = first + rows.start, None if all_targets is None else all_targets[rows]
                    self._target_labels.clear()
                    taps.run(inputs[rows].to(self._device).contiguous(memory_format=self._layout))
                    if self._progress is not None:
                        self._progress(split_of(over), min(first + rows.stop, first + len(inputs)), total)
        for these in active.values():
            for running in these:
                running.end_pass()

    def _live(
        self,
        run: LayerRun,
        over: Over,
        start: int,
        reader: LayerReader,
        output: Tensor,
        targets: Tensor | None,
        unfolds: bool,
        stores: bool,
    ) -> Iterator[FeatureBatch]:
        """The sampled vectors of a batch of inputs, few at a time where patches are unfolded."""
        sampled = run.rows(over, start, len(output))
        by_channel = (
            output.reshape(len(output), run.layer.positions, -1).transpose(1, 2)
            if run.traced.channels_last
            else output.flatten(2)
        )
        size = 4 * self._extractor.patch_size(run.layer)
        chunk = max(1, _CHUNK_BYTES // size if unfolds else len(sampled[0]))
        for rows, positions, rank in zip(*(torch.split(part.to(self._device), chunk) for part in sampled), strict=True):
            if len(rows):
                patches = self._extractor.patches(reader, rows, positions)
                if stores:  # they are needed twice
                    patches = StoredPatches(patches.unfold())
                vectors = partial(self._vectors, by_channel, rows, positions)
                labels = partial(self._labels, run, targets, rows, positions)
                yield _batch(run, over, rank, vectors, patches, labels)

    def _vectors(self, by_channel: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        made = self._extractor.vectors(by_channel, rows, positions)
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
            self._target_labels[key] = self._data.labelers[repr(labeler)].label(targets.to(self._device), size)
        made = self._target_labels[key]
        return made[rows, positions if made.shape[1] > 1 else 0]

    def _stores_patches(self, run: LayerRun, over: Over) -> bool:
        """Whether the sampled patches take less memory than the inputs they are read from."""
        return len(run.samples[over]) * self._extractor.patch_size(run.layer) < self._inputs(run, over)

    def _kept_bytes(self, run: LayerRun, over: Over) -> int:
        vectors, fields = len(run.samples[over]), run.second_pass(over)
        projected = 8 * vectors * self._extractor.components if "projected" in fields else 0
        projected += 8 * vectors * run.patch_components if "projected_patches" in fields else 0
        inputs = 4 * min(self._inputs(run, over), vectors * self._extractor.patch_size(run.layer))
        return projected + (inputs if fields & PATCH_FIELDS else 0)

    def _width(self, run: LayerRun) -> int:
        return self._extractor.vector_size(run.layer) + self._extractor.patch_size(run.layer)

    def _inputs(self, run: LayerRun, over: Over) -> int:
        return len(self._data.sources[split_of(over)].scan()) * run.layer.input_size

    def _each(self, runs: Sequence[LayerRun], work: Callable[[LayerRun], None]) -> None:
        """Do the layers' own work side by side: small operations gain more from this than from threads inside each."""
        threads = torch.get_num_threads()
        if self._device.type != "cpu" or threads == 1 or len(runs) < 2:
            for run in runs:
                work(run)
            return

        @torch.inference_mode()  # holds in the thread that enters it
        def alone(run: LayerRun) -> None:
            work(run)

        try:
            with (
                threadpool_limits(1, "blas"),
                ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            ):
                # The widest first, so that none is left to run alone at the end.
                list(pool.map(alone, sorted(runs, key=self._width, reverse=True)))
        finally:
            torch.set_num_threads(threads)


def _batch(
    run: LayerRun,
    over: Over,
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
    return FeatureBatch(run.layer, split_of(over), rank, fields, labels)
