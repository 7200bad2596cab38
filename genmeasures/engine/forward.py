"""One pass over a sample: every input runs once, and every layer's vectors go to its consumers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from genmeasures.engine.accuracy import Accuracy
from genmeasures.engine.cache import PATCH_FIELDS
from genmeasures.engine.consumer import Consumer
from genmeasures.engine.feed import Feed, Portion
from genmeasures.engine.layer import LayerState
from genmeasures.engine.outputs import OutputPass
from genmeasures.engine.prepare import PreparedData
from genmeasures.engine.returned import checked_patches, checked_vectors
from genmeasures.engine.seeds import ModelSeeds
from genmeasures.errors import Undefined
from genmeasures.interfaces import (
    Extractor,
    FeatureBatch,
    FeatureLabeler,
    Field,
    FieldValue,
    Labeler,
    Layer,
    PatchSet,
    SampleName,
)
from genmeasures.tracing import LayerReader, StoredPatches, TracedLayer, tapped

_UNFOLDED: frozenset[Field] = frozenset({"patches"})

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of the split, the number of inputs done, and the total."""


@dataclass(frozen=True)
class LayerPlan:
    """What one pass does with a layer, decided before the pass: consumers that fail change what others need."""

    state: LayerState
    consumers: Sequence[Consumer]
    """Consumers that are fed."""
    records: bool
    """Whether the training sample is recorded."""
    caches: bool
    """Whether the pass after this one is served from the cache."""
    caches_patches: bool
    """Whether patches are cached: unfolded, or as the inputs that they are read from."""
    unfolds_cached: bool
    """Whether they are cached unfolded, which takes less memory or is the only way."""
    chunk: int | None
    """Vectors at a time where patches are unfolded; None takes all."""

    @staticmethod
    def of(
        state: LayerState,
        sample: SampleName,
        consumers: Sequence[Consumer],
        records: bool,
        caches: bool,
        unfolds_cached: bool,
        chunk: int,
    ) -> LayerPlan:
        """The plan for a layer; ``chunk`` is the number of vectors at a time if patches are unfolded."""
        caches_patches = caches and bool(state.cacheable(sample) & PATCH_FIELDS)
        fields: frozenset[Field] = frozenset().union(*(consumer.fields for consumer in consumers))
        unfolds = bool(fields & _UNFOLDED) or (sample == "fit" and state.records_all_patches)
        unfolds_cached = caches_patches and unfolds_cached
        small = chunk if unfolds or unfolds_cached else None
        return LayerPlan(state, consumers, records, caches, caches_patches, unfolds_cached, small)


class ForwardPass:
    """One pass of a sample through the model.

    Args:
        model: the model.
        feed: feed of the model.
        data: data of the run.
        sample: name of the sample.
        plans: plans of the layers that are read, in the order of the forward pass.
        device: device of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        feed: Feed,
        data: PreparedData,
        sample: SampleName,
        plans: Sequence[LayerPlan],
        device: torch.device,
    ) -> None:
        self._model = model
        self._feed = feed
        self._data = data
        self._extractor: Extractor = data.extractor
        self._sample: SampleName = sample
        self._split = data.split_of(sample)
        self._plans: Mapping[int, LayerPlan] = {plan.state.layer.index: plan for plan in plans}
        self._device = device
        self._total = len(data.sources[self._split].scan())
        self._places, self._held_back = (of(self._split).to(device) for of in (data.places, data.held_back))
        self._portion: Portion | None = None
        """The portion that is running."""

    def run(
        self,
        seeds: ModelSeeds,
        accuracy: Accuracy | None,
        outputs: OutputPass | None,
        stop: bool,
        progress: Progress | None,
    ) -> None:
        """Run all inputs, and end the pass of the consumers.

        Args:
            seeds: seeds of a random model.
            accuracy: counts correct predictions, or None.
            outputs: feeds the measures of outputs, or None.
            stop: whether each forward call ends at the last of the layers.
            progress: see :data:`Progress`.
        """
        states = [plan.state for plan in self._plans.values()]
        layers = [state.traced for state in states]
        with tapped(self._model, layers, self._receive, stop, self._feed.whole) as tap:
            for portion in self._feed.portions(self._sample, states):
                self._portion = portion
                seeds.set(self._split, portion.start)
                output = portion.run(tap)
                if accuracy is not None:
                    accuracy.add(output, portion.labels.targets)
                if outputs is not None:
                    rows = slice(portion.start, portion.start + len(portion.inputs))
                    outputs.add(output, portion.labels.targets, self._places[rows])
                if progress is not None:
                    progress(self._split, portion.start + len(portion.inputs), self._total)
        for plan in self._plans.values():
            for consumer in plan.consumers:
                consumer.end_pass()
        if outputs is not None:
            outputs.end()

    def _receive(self, traced: TracedLayer, inputs: Tensor, output: Tensor) -> None:
        """Hand the vectors of a layer to its consumers, its record and its cache."""
        assert self._portion is not None
        portion, plan = self._portion, self._plans[traced.layer.index]
        inputs, output = inputs.float(), output.float()  # models of other dtypes have features of their own dtype
        inputs, output = inputs.detach(), output.detach()  # a model may compute gradients in its forward pass
        state = plan.state
        if plan.caches_patches and not plan.unfolds_cached:
            inputs = state.cache_of(self._sample).add_inputs(inputs, portion.start, self._total)
        for batch in self._batches(plan, portion, inputs, output):
            if plan.records:
                state.record(batch)
            for consumer in plan.consumers:
                consumer.update(batch)
            if plan.caches:
                with_rank = not self._feed.whole
                state.cache(batch, self._sample, portion.start, len(output), plan.unfolds_cached, with_rank)

    def _batches(self, plan: LayerPlan, portion: Portion, read: Tensor, output: Tensor) -> Iterator[FeatureBatch]:
        """The sampled vectors of a portion, few at a time where patches are unfolded."""
        state, channels_last = plan.state, plan.state.traced.channels_last
        vectors = portion.vectors(state, self._sample, read, output)
        reader = LayerReader(vectors.geometry, read, channels_last)
        by_channel = (
            output.reshape(len(output), -1, state.layer.channels).transpose(1, 2)
            if channels_last
            else output.flatten(2)
        )
        chunk = max(1, len(vectors.rows) if plan.chunk is None else plan.chunk)
        indices = (vectors.rows, vectors.positions, vectors.rank, vectors.labeled)
        for rows, positions, rank, labeled in zip(
            *(torch.split(index.to(self._device), chunk) for index in indices), strict=True
        ):
            if len(rows):
                patches = checked_patches(self._extractor, self._extractor.patches(reader, rows, positions))
                if plan.unfolds_cached:  # they are needed twice
                    patches = StoredPatches(patches.unfold(), patches.center)
                fields = _fields(state, partial(self._vectors, state.layer, by_channel, rows, positions), patches)
                labels = partial(self._labels, state, portion, rows, labeled)
                inputs, held_back = (of[rows + portion.start] for of in (self._places, self._held_back))
                yield FeatureBatch(state.layer, self._split, rank, inputs, fields, labels, held_back)

    def _vectors(self, layer: Layer, by_channel: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        vectors = self._extractor.vectors(by_channel, rows, positions)
        vectors = checked_vectors(self._extractor, vectors, len(rows), layer)
        # The sum shows any NaN or infinity; only then is it worth checking whether finite numbers overflowed it.
        if not bool(torch.isfinite(vectors.sum())) and not bool(torch.isfinite(vectors).all()):
            raise Undefined("NaN or infinite activations")
        return vectors

    def _labels(
        self,
        state: LayerState,
        portion: Portion,
        rows: Tensor,
        positions: Tensor,
        labeler: Labeler,
        batch: FeatureBatch,
    ) -> Tensor:
        if isinstance(labeler, FeatureLabeler):
            return state.fits.labels(labeler, batch.projected)
        labels = portion.labels.at(labeler, self._extractor.label_size(state.layer.spatial))
        return labels[rows, positions if labels.shape[1] > 1 else 0]


def _fields(
    state: LayerState, vectors: Callable[[], Tensor], patches: PatchSet
) -> dict[Field, Callable[[FeatureBatch], FieldValue]]:
    """How each field of a batch is computed."""
    return {
        "vectors": lambda _: vectors(),
        "projected": lambda batch: state.fits.project(batch.vectors),
        "projected_apart": lambda batch: state.fits.project_apart(batch.vectors),
        "patches": lambda _: patches.unfold(),
        "patch_set": lambda _: patches,
        "projected_patches": lambda batch: batch.patch_set.project(*batch.patch_projection),
        "patch_projection": lambda _: state.fits.patch_projection(),
    }
