"""What a run keeps of one layer: its samples, its fitted projection and labelers, its measures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from genmeasures.engine.prepared import PreparedData
from genmeasures.engine.running import Running, status_of
from genmeasures.engine.seeds import generator_for
from genmeasures.interfaces import (
    Extractor,
    FeatureBatch,
    FeatureLabeler,
    FeatureMeasure,
    Field,
    Labeler,
    Over,
    PatchSet,
    Sample,
    TargetLabeler,
    split_of,
)
from genmeasures.statistics.pca import PCA, fit_pca
from genmeasures.tracing import TracedLayer

PATCH_FIELDS: frozenset[Field] = frozenset({"patches", "patch_set"})
_KEPT_FIELDS: frozenset[Field] = PATCH_FIELDS | {"projected", "labels"}
_Kept = TypeVar("_Kept", Tensor, PatchSet)
_REPLAY_ROWS = 16_384


@dataclass
class _Record:
    """The training sample, kept so that later passes over it need no forward pass."""

    vectors: Tensor | None
    patches: Tensor | None = None
    projected: Tensor | None = None
    labels: dict[str, Tensor | Exception] = field(default_factory=dict)
    """By labeler: the labels, or what the labeler raised."""


@dataclass(frozen=True)
class Kept:
    """Some vectors of a split, kept for the next pass with the fields that it reads."""

    rank: Tensor
    labels: Mapping[str, Tensor]
    fields: Mapping[Field, Callable[[FeatureBatch], Tensor | PatchSet]]

    def label(self, labeler: Labeler, batch: FeatureBatch) -> Tensor:
        """The labels that were kept."""
        return self.labels[repr(labeler)]


class LayerRun:
    """One layer in the course of a run."""

    def __init__(self, traced: TracedLayer, measures: Sequence[FeatureMeasure], data: PreparedData) -> None:
        self.traced = traced
        self.layer = traced.layer
        overs: list[Over] = ["fit", "train"] if "train" in data.sources else []
        if "test" in data.sources:
            overs.append("test")
        self.samples: dict[Over, Sample] = {over: data.sample(over, self.layer.positions) for over in overs}
        one_sample = "train" in self.samples and self.samples["fit"] is self.samples["train"]
        self._recorded_overs: frozenset[Over] = frozenset({"fit", "train"} if one_sample else {"fit"})
        self.running = [Running(copy.deepcopy(measure), self.layer, data.seed) for measure in measures]
        self.pca: PCA | None = None
        self.kept: list[Kept] = []
        self._memory: Tensor | None = None
        self._filled = 0
        self.kept_over: Over = "test"
        self._components = data.extractor.components
        self._seed = data.seed
        self._record: _Record | None = None
        self._fitted: dict[str, FeatureLabeler | Exception] = {}
        self._feature_labelers: dict[str, FeatureLabeler] = {}
        self._recorded_labelers: dict[str, TargetLabeler] = {}
        self._keep_vectors = False
        self._record_patches = False
        for measure in measures:
            if isinstance(measure.labeler, FeatureLabeler):
                self._feature_labelers[repr(measure.labeler)] = measure.labeler
            for one in measure.passes:
                if one.split in self._recorded_overs:
                    self._keep_vectors |= "vectors" in one.fields
                    # Whoever fits on patches needs them all at once.
                    self._record_patches |= one.split == "fit" and "patches" in one.fields
                    if "labels" in one.fields and isinstance(measure.labeler, TargetLabeler):
                        self._recorded_labelers[repr(measure.labeler)] = measure.labeler

    def fail(self, status: str) -> None:
        """The layer has no features: none of its measures has a value."""
        for running in self.running:
            running.failure = running.failure or status

    def waiting(self, *overs: Over) -> list[Running]:
        """The measures whose next pass is over one of these samples."""
        return [r for r in self.running if r.failure is None and r.remaining and r.remaining[0].split in overs]

    def ready_to_record(self) -> list[Running]:
        """The measures that can be fed while the training sample is recorded."""
        waiting = [r for r in self.waiting(*self._recorded_overs) if not r.needs_fit_next()]
        return [r for r in waiting if not (self._record_patches and r.remaining[0].split == "fit")]

    def recorded_bytes(self, extractor: Extractor) -> int:
        """Memory that the training sample takes while it is recorded."""
        patch = extractor.patch_size(self.layer) if self._record_patches else 0
        return 4 * len(self.samples["fit"]) * (extractor.vector_size(self.layer) + patch)

    def rows(self, over: Over, start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Row in the batch, position and rank of the sampled vectors of inputs start … start + count."""
        rows, positions, rank = map(torch.from_numpy, self.samples[over].part(start, start + count))
        return rows - start, positions, rank

    def record(self, batch: FeatureBatch) -> None:
        """Keep training vectors, each at its rank: fits see them in one order, whatever that of the data."""
        if all(running.failure is not None for running in self.running):
            return
        try:
            vectors, size = batch.vectors, len(self.samples["fit"])
            if self._record is None:
                self._record = _Record(vectors.new_empty(size, vectors.shape[1]))
                self._record.labels.update((key, batch.rank.new_zeros(size)) for key in self._recorded_labelers)
            assert self._record.vectors is not None
            self._record.vectors.index_copy_(0, batch.rank, vectors)
            if self._record_patches:
                patches = batch.patches
                if self._record.patches is None:
                    self._record.patches = patches.new_empty(size, patches.shape[1])
                self._record.patches.index_copy_(0, batch.rank, patches)
        except Exception as error:  # whatever it is, this layer has no value and the others go on
            self.fail(status_of(error))
            return
        for key, labeler in self._recorded_labelers.items():
            labels = self._record.labels[key]
            if isinstance(labels, Tensor):
                try:
                    labels[batch.rank] = batch.labels(labeler)
                except Exception as error:
                    self._record.labels[key] = error

    def fit(self) -> None:
        """Fit the projection and the labelers on the kept training sample."""
        if self._record is None or self._record.vectors is None:
            return
        try:
            self.pca, self._record.projected = fit_pca(self._record.vectors, self._components)
        except Exception as error:  # whatever it is, this layer has no value and the others go on
            for running in self.running:
                if running.needs_fit():
                    running.failure = running.failure or status_of(error)
            return
        for key, labeler in self._feature_labelers.items():
            fresh = copy.deepcopy(labeler)
            try:
                fresh.fit(self._record.projected, generator_for(self._seed, "labeler", key, self.layer.index))
                self._fitted[key] = fresh
            except Exception as error:
                self._fitted[key] = error
        if not self._keep_vectors:
            self._record.vectors = None

    def feature_labels(self, labeler: Labeler, projected: Tensor) -> Tensor:
        """Labels by a labeler fitted on this layer; raises what its fit raised."""
        fitted = self._fitted[repr(labeler)]
        if isinstance(fitted, Exception):
            raise fitted
        return fitted.label(projected)

    def replay(self) -> None:
        """Make all passes that need no forward pass."""
        if self._record is not None and self._record.projected is not None:
            readable: frozenset[Field] = frozenset({"projected", "labels"})
            if self._record.vectors is not None:
                readable |= {"vectors"}
            if self._record.patches is not None:
                readable |= {"patches"}
            self._replay(self._recorded_overs, readable, partial(self._recorded, self._record))
            self._record.patches = None
        if self.kept:
            self._replay(frozenset({self.kept_over}), _KEPT_FIELDS, self._kept)
            self.kept = []
        self._memory = None

    def _replay(
        self, overs: frozenset[Over], readable: frozenset[Field], batches: Callable[[], Iterator[FeatureBatch]]
    ) -> None:
        while True:
            able = [r for r in self.waiting(*overs) if r.remaining[0].fields <= readable]
            if not able:
                return
            for batch in batches():
                for running in able:
                    running.update(batch)
            for running in able:
                running.end_pass()

    def _recorded(self, record: _Record) -> Iterator[FeatureBatch]:
        assert record.projected is not None
        for start in range(0, len(record.projected), _REPLAY_ROWS):
            rows = slice(start, min(start + _REPLAY_ROWS, len(record.projected)))
            rank = torch.arange(rows.start, rows.stop, device=record.projected.device)
            fields: dict[Field, Callable[[FeatureBatch], Tensor | PatchSet]] = {
                "projected": partial(_part, record.projected, rows)
            }
            if record.vectors is not None:
                fields["vectors"] = partial(_part, record.vectors, rows)
            if record.patches is not None:
                fields["patches"] = partial(_part, record.patches, rows)
            labels = partial(self._recorded_labels, record.labels, rows)
            yield FeatureBatch(self.layer, "train", rank, fields, labels)

    def _recorded_labels(
        self, recorded: Mapping[str, Tensor | Exception], rows: slice, labeler: Labeler, batch: FeatureBatch
    ) -> Tensor:
        if isinstance(labeler, FeatureLabeler):
            return self.feature_labels(labeler, batch.projected)
        labels = recorded[repr(labeler)]
        if isinstance(labels, Exception):
            raise labels
        return labels[rows]

    def _kept(self) -> Iterator[FeatureBatch]:
        for kept in self.kept:
            yield FeatureBatch(self.layer, split_of(self.kept_over), kept.rank, kept.fields, kept.label)

    def keep(self, over: Over, batch: FeatureBatch) -> None:
        """Keep a batch for the next pass of the measures that it was just given to."""
        self.kept_over = over
        labels = {}
        for running in self.waiting(over):
            labeler = running.measure.labeler
            if labeler is not None and "labels" in running.remaining[0].fields:
                labels[repr(labeler)] = batch.labels(labeler)
        wanted = self.second_pass(over)
        fields: dict[Field, Callable[[FeatureBatch], Tensor | PatchSet]] = {}
        if wanted & PATCH_FIELDS:
            fields["patch_set"] = partial(_same, batch.patch_set)
            fields["patches"] = _unfolded
        if "projected" in wanted:
            fields["projected"] = partial(_same, batch.projected)
        self.kept.append(Kept(batch.rank, labels, fields))

    def keep_tensor(self, part: Tensor, total: int) -> Tensor:
        """A copy of a part (n, …), channels innermost, that is kept: the next n of ``total`` rows.

        All parts of a layer lie in one piece of memory: many small ones would leave holes between them.
        """
        inner = part.movedim(1, -1)
        if self._memory is None:
            self._memory = inner.new_empty((total, *inner.shape[1:]))
            self._filled = 0
        start = self._filled
        self._filled += len(part)
        return self._memory[start : self._filled].copy_(inner).movedim(-1, 1)

    def second_pass(self, over: Over) -> frozenset[Field]:
        """The fields of the pass after the next, if all of them can be kept for it; else none."""
        second = [r.remaining[1] for r in self.waiting(over) if len(r.remaining) > 1 and r.remaining[1].split == over]
        fields: frozenset[Field] = frozenset().union(*(one.fields for one in second))
        return fields if fields <= _KEPT_FIELDS else frozenset()


def _part(kept: Tensor, rows: slice, batch: FeatureBatch) -> Tensor:
    return kept[rows]


def _same(kept: _Kept, batch: FeatureBatch) -> _Kept:
    return kept


def _unfolded(batch: FeatureBatch) -> Tensor:
    return batch.patch_set.unfold()
