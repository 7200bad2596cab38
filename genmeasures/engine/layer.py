"""What a run keeps of one layer: its samples, its fitted projection and labelers, its measures."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from genmeasures.engine.prepared import PreparedData
from genmeasures.engine.returned import checked_labels
from genmeasures.engine.running import Running
from genmeasures.engine.seeds import generator_for
from genmeasures.errors import Undefined
from genmeasures.failures import status_of, to_raise_later
from genmeasures.interfaces import (
    Extractor,
    FeatureBatch,
    FeatureLabeler,
    FeatureMeasure,
    Field,
    Labeler,
    PatchSet,
    Sample,
    SampleName,
    TargetLabeler,
)
from genmeasures.statistics.pca import PCA, fit_pca
from genmeasures.tracing import LayerReader, StoredPatches, TracedLayer

PATCH_FIELDS: frozenset[Field] = frozenset({"patches", "patch_set"})
_KEPT_FIELDS: frozenset[Field] = PATCH_FIELDS | {"projected", "projected_patches", "labels"}
_REPLAY_ROWS = 16_384


@dataclass
class _Record:
    """The training sample, kept so that later passes over it need no forward pass."""

    vectors: Tensor | None
    patches: Tensor | None = None
    projected: Tensor | None = None
    labels: dict[str, Tensor | Exception] = field(default_factory=dict)
    """By labeler: the labels, or what the labeler raised."""


@dataclass
class _Kept:
    """What the next pass over a sample reads, kept from this one.

    One piece of memory for each kind of thing: a small one for each batch would leave holes
    between them that nothing large fits into.
    """

    over: SampleName
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """By field or labeler, (vectors, …) in the order of the batches."""
    inputs: Tensor | None = None
    """(inputs, …): the layer's inputs with channels innermost, if patches are read from them."""
    batches: list[tuple[int, int, slice, slice]] = field(default_factory=list)
    """First input and number of inputs, the place among their vectors, and the place among all vectors."""


class LayerRun:
    """One layer in the course of a run."""

    def __init__(self, traced: TracedLayer, measures: Sequence[FeatureMeasure], data: PreparedData) -> None:
        self.traced = traced
        self.layer = traced.layer
        overs: list[SampleName] = ["fit", *data.sources]
        self.samples: dict[SampleName, Sample] = {over: data.sample(over, self.layer.positions) for over in overs}
        self.split_of = data.split_of
        recorded = data.split_of("fit")
        one_sample = recorded in self.samples and self.samples["fit"] is self.samples[recorded]
        self._recorded_overs: frozenset[SampleName] = frozenset({"fit", recorded} if one_sample else {"fit"})
        self.running = [Running(copy.deepcopy(one), self.layer, data.seed, data.note(one)) for one in measures]
        self.pca: PCA | None = None
        self._kept: _Kept | None = None
        self._extractor = data.extractor
        self._components = data.extractor.components
        self._seed = data.seed
        self._record: _Record | None = None
        self._fitted: dict[str, FeatureLabeler | Exception] = {}
        self._feature_labelers: dict[str, FeatureLabeler] = {}
        self._recorded_labelers: dict[str, TargetLabeler] = {}
        self._keep_vectors = False
        self.patch_pca: PCA | None = None
        self._fit_failure: Exception = Undefined("no vectors in the training sample")
        self._patch_failure: Exception = self._fit_failure
        self.patch_components = max((measure.patch_components for measure in measures), default=0)
        self.patches_of: LayerRun | None = None
        """The layer whose vectors are this layer's patches, where their projection serves for both."""
        for measure in measures:
            if isinstance(measure.labeler, FeatureLabeler):
                self._feature_labelers[repr(measure.labeler)] = measure.labeler
            for one in measure.passes:
                if one.sample in self._recorded_overs:
                    self._keep_vectors |= "vectors" in one.fields
                    if "labels" in one.fields and isinstance(measure.labeler, TargetLabeler):
                        self._recorded_labelers[repr(measure.labeler)] = measure.labeler

    def fail(self, status: str) -> None:
        """The layer has no features: none of its measures has a value."""
        for running in self.running:
            running.failure = running.failure or status

    def waiting(self, *overs: SampleName) -> list[Running]:
        """The measures whose next pass is over one of these samples."""
        return [r for r in self.running if r.failure is None and r.remaining and r.remaining[0].sample in overs]

    def ready_to_record(self) -> list[Running]:
        """The measures that can be fed while the training sample is recorded."""
        return [r for r in self.waiting(*self._recorded_overs) if not r.needs_fit_next()]

    def shares_patches(self, other: LayerRun) -> bool:
        """Whether the vectors of the other layer are this layer's patches, projected alike, of the same sample."""
        # Of receptive fields a patch is many pixels; only whole inputs are what the other layer gave as a vector.
        if not self._extractor.projects_patches or self.patch_components != self._components:
            return False
        if self.traced.reads != other.traced.layer.index:
            return False
        mine, others = (run.samples["fit"].part(0, sys.maxsize) for run in (self, other))
        return all(np.array_equal(one, two) for one, two in zip(mine, others, strict=True))

    @property
    def records_patches(self) -> bool:
        """Whether the training patches are kept to be fitted."""
        return bool(self.patch_components) and self.patches_of is None

    def recorded_bytes(self, extractor: Extractor) -> int:
        """Memory that the training sample takes while it is recorded."""
        patch = extractor.patch_size(self.layer) if self.records_patches else 0
        return 4 * len(self.samples["fit"]) * (extractor.vector_size(self.layer) + patch)

    def rows(self, over: SampleName, start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
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
            if self.records_patches:
                patches = batch.patches
                if self._record.patches is None:
                    self._record.patches = patches.new_empty(size, patches.shape[1])
                self._record.patches.index_copy_(0, batch.rank, patches)
        except Exception as error:  # whatever it is, this layer has no value and the others go on
            self.fail(status_of(error, f"recording layer {self.layer.name}"))
            return
        for key, labeler in self._recorded_labelers.items():
            labels = self._record.labels[key]
            if isinstance(labels, Tensor):
                try:
                    labels[batch.rank] = batch.labels(labeler)
                except Exception as error:
                    self._record.labels[key] = to_raise_later(error)

    def fit(self) -> None:
        """Fit the projection and the labelers on the kept training sample."""
        if self._record is None or self._record.vectors is None:
            return
        try:
            self.pca, self._record.projected = fit_pca(self._record.vectors, self._components)
        except Exception as error:  # whatever it is, this layer has no value and the others go on
            self._fit_failure = error
            status = status_of(error, f"the projection of layer {self.layer.name}")
            for running in self.running:
                if running.needs_fit():
                    running.failure = running.failure or status
            return
        for key, labeler in self._feature_labelers.items():
            fresh = copy.deepcopy(labeler)
            try:
                fresh.fit(self._record.projected, generator_for(self._seed, "labeler", key, self.layer.index))
                self._fitted[key] = fresh
            except Exception as error:
                self._fitted[key] = to_raise_later(error)
        if not self._keep_vectors:
            self._record.vectors = None

    def fit_patches(self) -> None:
        """Fit the projection of the training patches, where a measure reads it."""
        if not self.patch_components or self._record is None:
            return
        if self.patches_of is not None:
            self.patch_pca, self._patch_failure = self.patches_of.pca, self.patches_of._fit_failure
        elif self._record.patches is not None:
            try:
                self.patch_pca, _ = fit_pca(self._record.patches, self.patch_components)
            except Exception as error:  # whatever it is, only measures that read it have no value
                self._patch_failure = to_raise_later(error)
            self._record.patches = None

    def project_patches(self, patches: Tensor) -> Tensor:
        """Patches under their projection; raises what its fit raised."""
        if self.patch_pca is None:
            raise self._patch_failure
        return self.patch_pca.project(patches)

    def feature_labels(self, labeler: Labeler, projected: Tensor) -> Tensor:
        """Labels by a labeler fitted on this layer; raises what its fit raised."""
        fitted = self._fitted[repr(labeler)]
        if isinstance(fitted, Exception):
            raise fitted
        return checked_labels(fitted, fitted.label(projected), (len(projected),))

    def replay(self) -> None:
        """Make all passes that need no forward pass."""
        if self._record is not None and self._record.projected is not None:
            readable: frozenset[Field] = frozenset({"projected", "labels"})
            if self._record.vectors is not None:
                readable |= {"vectors"}
            self._replay(self._recorded_overs, readable, partial(self._recorded, self._record))
        if self._kept is not None:
            self._replay(frozenset({self._kept.over}), _KEPT_FIELDS, partial(self._again, self._kept))
        self._kept = None

    def _replay(
        self, overs: frozenset[SampleName], readable: frozenset[Field], batches: Callable[[], Iterator[FeatureBatch]]
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
            labels = partial(self._recorded_labels, record.labels, rows)
            yield FeatureBatch(self.layer, self.split_of("fit"), rank, fields, labels)

    def _recorded_labels(
        self, recorded: Mapping[str, Tensor | Exception], rows: slice, labeler: Labeler, batch: FeatureBatch
    ) -> Tensor:
        if isinstance(labeler, FeatureLabeler):
            return self.feature_labels(labeler, batch.projected)
        labels = recorded[repr(labeler)]
        if isinstance(labels, Exception):
            raise labels
        return labels[rows]

    def keep_inputs(self, over: SampleName, inputs: Tensor, start: int, total: int) -> Tensor:
        """Keep a batch of the layer's inputs, of ``total`` in all; returns the copy."""
        kept = self._keeping(over)
        inner = inputs.movedim(1, -1)
        if kept.inputs is None:
            kept.inputs = inner.new_empty((total, *inner.shape[1:]))
        return kept.inputs[start : start + len(inputs)].copy_(inner).movedim(-1, 1)

    def keep(
        self, batch: FeatureBatch, over: SampleName, start: int, count: int, stores_patches: bool, ranked: bool
    ) -> None:
        """Keep some vectors of inputs start … start + count − 1 for the next pass of the measures that saw them.

        ranked: their ranks too; else they come in the order of the sample.
        """
        kept = self._keeping(over)
        last = kept.batches[-1] if kept.batches else (start, count, slice(0, 0), slice(0, 0))
        before = last[2].stop if last[0] == start else 0
        place = slice(last[3].stop, last[3].stop + len(batch))
        kept.batches.append((start, count, slice(before, before + len(batch)), place))
        wanted = self.second_pass(over)
        made: dict[str, Tensor] = {}
        for running in self.waiting(over):
            labeler = running.measure.labeler
            if labeler is not None and "labels" in running.remaining[0].fields:
                made[repr(labeler)] = batch.labels(labeler)
        if "projected" in wanted:
            made["projected"] = batch.projected
        if "projected_patches" in wanted:
            made["projected_patches"] = batch.projected_patches
        if stores_patches:
            made["patches"] = batch.patches
        if ranked:
            made["rank"] = batch.rank
        for key, tensor in made.items():
            if key not in kept.tensors:
                kept.tensors[key] = tensor.new_empty((len(self.samples[over]), *tensor.shape[1:]))
            kept.tensors[key][place] = tensor

    def _keeping(self, over: SampleName) -> _Kept:
        if self._kept is None:
            self._kept = _Kept(over)
        return self._kept

    def _again(self, kept: _Kept) -> Iterator[FeatureBatch]:
        for start, count, part, place in kept.batches:
            rows, positions, rank = (index[part] for index in self.rows(kept.over, start, count))
            rank = kept.tensors["rank"][place] if "rank" in kept.tensors else rank
            fields: dict[Field, Callable[[FeatureBatch], Tensor | PatchSet]] = {}
            for name in ("projected", "projected_patches"):
                if name in kept.tensors:
                    fields[name] = partial(_part, kept.tensors[name], place)
            patches: PatchSet | None = None
            if "patches" in kept.tensors:
                patches = StoredPatches(kept.tensors["patches"][place])
            elif kept.inputs is not None:
                given = kept.inputs[start : start + count].movedim(-1, 1)
                reader = LayerReader(self.traced.geometry, given, self.traced.channels_last)
                patches = self._extractor.patches(reader, rows.to(given.device), positions.to(given.device))
            if patches is not None:
                fields["patch_set"] = partial(_same, patches)
                fields["patches"] = _unfolded
            labels = partial(self._kept_labels, kept.tensors, place)
            yield FeatureBatch(self.layer, self.split_of(kept.over), rank, fields, labels)

    def _kept_labels(self, kept: Mapping[str, Tensor], place: slice, labeler: Labeler, batch: FeatureBatch) -> Tensor:
        return kept[repr(labeler)][place]

    def second_pass(self, over: SampleName) -> frozenset[Field]:
        """The fields of the pass after the next, if all of them can be kept for it; else none."""
        second = [r.remaining[1] for r in self.waiting(over) if len(r.remaining) > 1 and r.remaining[1].sample == over]
        fields: frozenset[Field] = frozenset().union(*(one.fields for one in second))
        return fields if fields <= _KEPT_FIELDS else frozenset()


def _part(kept: Tensor, rows: slice, batch: FeatureBatch) -> Tensor:
    return kept[rows]


def _same(patches: PatchSet, batch: FeatureBatch) -> PatchSet:
    return patches


def _unfolded(batch: FeatureBatch) -> Tensor:
    return batch.patch_set.unfold()
