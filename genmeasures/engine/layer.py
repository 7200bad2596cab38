"""Per-layer state of a run."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from genmeasures.engine.cache import CACHED_FIELDS, PATCH_FIELDS, PassCache
from genmeasures.engine.consumer import Consumer
from genmeasures.engine.fits import Fits
from genmeasures.engine.prepare import PreparedData
from genmeasures.engine.record import TrainingRecord
from genmeasures.engine.seeds import generator_for
from genmeasures.failures import status_of
from genmeasures.interfaces import (
    FeatureBatch,
    FeatureMeasure,
    Field,
    Sample,
    SampleName,
    Split,
    TargetLabeler,
)
from genmeasures.tracing import TracedLayer

_PATCHES = 1000
"""Training patches that the projection of receptive fields is fitted on, drawn at random."""


class LayerState:
    """State of a layer during a run: its samples, its consumers, its record, its fits and its cache.

    Args:
        traced: the layer.
        measures: measures of the run, which are copied.
        data: data of the run.
    """

    def __init__(self, traced: TracedLayer, measures: Sequence[FeatureMeasure], data: PreparedData) -> None:
        self.traced = traced
        self.layer = traced.layer
        names: list[SampleName] = ["fit", *data.sources]
        self.samples: dict[SampleName, Sample] = {name: data.sample(name, self.layer.positions) for name in names}
        self.consumers = [
            Consumer(copy.deepcopy(measure), self.layer, data.seed, data.note(measure)) for measure in measures
        ]
        self.fits = Fits(self.layer, measures, data.extractor.components, data.seed)
        self.patches_of: LayerState | None = None
        """The layer whose vectors are this layer's patches, if one projection serves both."""
        self._extractor = data.extractor
        self._split_of = data.split_of
        self._patch_ranks = self._drawn_patches(data.seed)
        self._places = data.places
        self._held_back = data.held_back
        self._record = self._new_record(measures)
        self._cache: PassCache | None = None

    def _new_record(self, measures: Sequence[FeatureMeasure]) -> TrainingRecord:
        split = self._split_of("fit")
        whole = self.samples.get(split) is self.samples["fit"]
        samples: frozenset[SampleName] = frozenset({"fit", split} if whole else {"fit"})
        replayed = [
            (measure, reading) for measure in measures for reading in measure.passes if reading.sample in samples
        ]
        labelers = {
            repr(measure.labeler): measure.labeler
            for measure, reading in replayed
            if "labels" in reading.fields and isinstance(measure.labeler, TargetLabeler)
        }
        keeps_vectors = any("vectors" in reading.fields for _, reading in replayed)
        size = len(self.samples["fit"])
        return TrainingRecord(self.layer, split, samples, size, labelers, keeps_vectors, self._patch_ranks)

    def _drawn_patches(self, seed: int) -> Tensor | None:
        """The ranks of the training vectors whose patches are recorded, int64 (m,); None for all."""
        size = len(self.samples["fit"])
        if self._extractor.projects_patches or not self.fits.patch_components or size <= _PATCHES:
            return None
        generator = generator_for(seed, "patches", self.layer.index)
        return torch.randperm(size, generator=generator, device="cpu")[:_PATCHES].sort().values

    def split_of(self, sample: SampleName) -> Split:
        """The split of a sample."""
        return self._split_of(sample)

    def waiting(self, *samples: SampleName) -> list[Consumer]:
        """The consumers whose next pass is over one of these samples."""
        return [consumer for consumer in self.consumers if consumer.waits_for(*samples)]

    def waiting_while_recording(self) -> list[Consumer]:
        """The consumers that are fed while the training sample is recorded."""
        return [consumer for consumer in self.waiting(*self._record.samples) if not consumer.needs_fit]

    # The training sample --------------------------------------------------------------------------------------

    @property
    def records_patches(self) -> bool:
        """Whether training patches are recorded, to fit their projection."""
        return bool(self.fits.patch_components) and self.patches_of is None

    @property
    def records_all_patches(self) -> bool:
        """Whether they are those of all training vectors."""
        return self.records_patches and self._patch_ranks is None

    @property
    def record_bytes(self) -> int:
        """Memory that the record takes."""
        vectors = len(self.samples["fit"])
        patches = 0
        if self.records_patches:
            patches = vectors if self._patch_ranks is None else len(self._patch_ranks)
        return 4 * (
            vectors * self._extractor.vector_size(self.layer) + patches * self._extractor.patch_size(self.layer)
        )

    def shares_patches(self, other: LayerState) -> bool:
        """Whether the vectors of the other layer are this layer's patches, projected alike, of the same sample."""
        # A receptive field is more than one pixel: only whole inputs are what the other layer gives as a vector.
        if not self._extractor.projects_patches or self.fits.patch_components != self._extractor.components:
            return False
        if self.traced.reads != other.traced.layer.index:
            return False
        mine, others = (state.samples["fit"].part(0, sys.maxsize) for state in (self, other))
        return all(np.array_equal(left, right) for left, right in zip(mine, others, strict=True))

    def record(self, batch: FeatureBatch) -> None:
        """Record training vectors; if that fails, no consumer of the layer has a value."""
        if all(consumer.failure is not None for consumer in self.consumers):
            return
        try:
            self._record.add(batch, self.records_patches)
        except Exception as error:  # whatever it is, the other layers continue
            self._fail(self.consumers, status_of(error, f"recording layer {self.layer.name}"))
            return
        self._record.add_labels(batch)

    def fit(self) -> None:
        """Fit the projection and the feature labelers on the record; without it, what needs them has no value."""
        if self._record.vectors is None:
            return
        try:
            projected = self.fits.fit_projection(self._record.vectors)
        except Exception as error:  # whatever it is, the other layers continue
            status = status_of(error, f"the projection of layer {self.layer.name}")
            self._fail((consumer for consumer in self.consumers if consumer.ever_needs_fit), status)
            return
        self.fits.fit_labelers(projected)
        self._record.settle(projected, self._fit_apart())

    def _fit_apart(self) -> Tensor | Exception | None:
        """The recorded vectors projected apart, what that raised, or None if no measure reads them."""
        if not self.fits.apart:
            return None
        assert self._record.vectors is not None
        self.fits.fit_projection_apart(self._record.vectors, self._record.held_back)
        try:
            return self.fits.project_apart(self._record.vectors)
        except Exception as error:
            return error

    def fit_patches(self) -> None:
        """Fit the projection of the recorded patches, or take that of another layer."""
        if self.patches_of is not None:
            self.fits.share_projection(self.patches_of.fits)
        elif self._record.patches is not None:
            self.fits.fit_patch_projection(self._record.patches, exact=self._extractor.projects_patches)
            self._record.patches = None

    @staticmethod
    def _fail(consumers: Iterable[Consumer], status: str) -> None:
        for consumer in consumers:
            consumer.fail(status)

    # The cache ------------------------------------------------------------------------------------------------

    def cacheable(self, sample: SampleName) -> frozenset[Field]:
        """The fields of the pass after the next over a sample, if all of them can be cached; else none."""
        fields: frozenset[Field] = frozenset().union(
            *(consumer.fields_after_next(sample) for consumer in self.waiting(sample))
        )
        return fields if fields <= CACHED_FIELDS else frozenset()

    def cache_bytes(self, sample: SampleName, patch_bytes: int) -> int:
        """Memory that the cache of a pass takes, ``patch_bytes`` of it for patches or what they are read from."""
        vectors, fields = len(self.samples[sample]), self.cacheable(sample)
        components = self._extractor.components or self._extractor.vector_size(self.layer)
        projected = 8 * vectors * components if "projected" in fields else 0
        projected += 8 * vectors * self.fits.patch_components if "projected_patches" in fields else 0
        return projected + (patch_bytes if fields & PATCH_FIELDS else 0)

    def cache_of(self, sample: SampleName) -> PassCache:
        """The cache of the pass over a sample, made at the first call."""
        if self._cache is None:
            split = self._split_of(sample)
            inputs = self._places(split), self._held_back(split)
            self._cache = PassCache(sample, self.samples[sample], split, self.traced, self._extractor, *inputs)
        return self._cache

    def cache(
        self, batch: FeatureBatch, sample: SampleName, start: int, count: int, with_patches: bool, with_rank: bool
    ) -> None:
        """Cache vectors of the inputs ``start`` … ``start + count − 1`` for the pass after this one."""
        waiting, fields = self.waiting(sample), self.cacheable(sample)
        if not waiting:
            return
        tensors = {}
        for consumer in waiting:
            labeler = consumer.measure.labeler
            if labeler is not None and "labels" in consumer.fields_after_next(sample):
                tensors[repr(labeler)] = batch.labels(labeler)
        if "projected" in fields:
            tensors["projected"] = batch.projected
        if "projected_patches" in fields:
            tensors["projected_patches"] = batch.projected_patches
        if with_patches:
            tensors["patches"] = batch.patches
        if with_rank:
            tensors["rank"] = batch.rank
        self.cache_of(sample).add(start, count, tensors, len(batch))

    # Passes without a forward pass ------------------------------------------------------------------------------

    def replay(self) -> None:
        """Replay all passes that the record or the cache serves, then drop the cache."""
        record, cache = self._record, self._cache
        self._replay(record.serves, lambda: record.batches(self.fits.labels))
        if cache is not None:
            self._replay(cache.serves, lambda: cache.batches(self.fits.patch_projection))
        self._cache = None

    def _replay(self, serves: Callable[[Consumer], bool], batches: Callable[[], Iterator[FeatureBatch]]) -> None:
        while served := [consumer for consumer in self.consumers if serves(consumer)]:
            for batch in batches():
                for consumer in served:
                    consumer.update(batch)
            for consumer in served:
                consumer.end_pass()
