"""The passes of one model: as few as the measures of all layers together allow."""

from __future__ import annotations

import contextvars
import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from genmeasures.engine.accuracy import Accuracy, Correct
from genmeasures.engine.consumer import Consumer
from genmeasures.engine.feed import Feed
from genmeasures.engine.forward import ForwardPass, LayerPlan, Progress
from genmeasures.engine.layer import LayerState
from genmeasures.engine.memory import Memory
from genmeasures.engine.outputs import OutputConsumer, OutputPass
from genmeasures.engine.prepare import PreparedData
from genmeasures.engine.seeds import ModelSeeds
from genmeasures.interfaces import SPLITS, FeatureMeasure, OutputMeasure, SampleName, Split
from genmeasures.tracing import TracedLayer

_SAMPLES: tuple[SampleName, ...] = ("fit", *SPLITS)
_ALIVE = 4
"""Tensors of the largest layer's size that are alive at a time, its own included: skip connections, workspaces."""


def inputs_at_a_time(traced: Sequence[TracedLayer], memory: Memory) -> int:
    """How many inputs run at a time, by the largest of *all* layers: those that are not measured run too.

    Args:
        traced: all layers of the model.
        memory: the budget.

    Example:
        >>> from torch import nn
        >>> from genmeasures.tracing import trace
        >>> inputs_at_a_time(trace(nn.Linear(500, 500), torch.zeros(2, 500), "linear").layers, Memory(17))
        131
    """
    largest = max(layer.layer.input_size + layer.layer.channels * layer.layer.positions for layer in traced)
    return max(1, memory.activations // (4 * _ALIVE * largest))


class Passes:
    """All passes of all measures of features and outputs over one model.

    Args:
        model: the model.
        traced: its layers that are measured, in the order of the forward pass.
        data: data of the run.
        measures: feature measures of the run.
        output_measures: measures of outputs of the run.
        device: device of the model.
        feed: feed of the model.
        memory: the budget.
        seeds: seeds of a random model.
        progress: see :data:`~genmeasures.engine.forward.Progress`.
    """

    def __init__(
        self,
        model: nn.Module,
        traced: Sequence[TracedLayer],
        data: PreparedData,
        measures: Sequence[FeatureMeasure],
        output_measures: Sequence[OutputMeasure],
        device: torch.device,
        feed: Feed,
        memory: Memory,
        seeds: ModelSeeds,
        progress: Progress | None,
    ) -> None:
        self._model = model
        self._data = data
        self._extractor = data.extractor
        self._device = device
        self._feed = feed
        self._memory = memory
        self._seeds = seeds
        self._progress = progress
        self.correct: dict[Split, Correct | None] = {}
        """By split: the correct predictions, None if they cannot be counted."""
        self.layers = [LayerState(layer, measures, data) for layer in traced]
        self.outputs = [OutputConsumer(copy.deepcopy(measure), data.seed) for measure in output_measures]
        if not feed.whole:
            for output in self.outputs:
                output.fail(f"undefined: {output.measure.name} reads outputs for whole inputs, which tile rules out")

    def run(self) -> None:
        """Run all passes."""
        if any(consumer.ever_needs_fit for state in self.layers for consumer in state.consumers):
            for group in self._groups():
                self._fit(group)
        while sample := self._next_sample():
            self._score(sample)
        for split in self._data.sources:
            if self._awaiting(split):
                self._forward(split, [])

    def _awaiting(self, split: Split) -> list[OutputConsumer]:
        """The measures of outputs that wait for a split."""
        return [output for output in self.outputs if output.waits_for(split)]

    def _next_sample(self) -> SampleName | None:
        return next((name for name in _SAMPLES if any(state.waiting(name) for state in self.layers)), None)

    def _groups(self) -> Iterator[list[LayerState]]:
        """Consecutive layers whose records fit into memory together."""
        group: list[LayerState] = []
        used = 0
        for state in self.layers:
            state.patches_of = next((other for other in group if state.shares_patches(other)), None)
            size = state.record_bytes
            if group and used + size > self._memory.record:
                yield group
                group, used, state.patches_of = [], 0, None
                size = state.record_bytes
            group.append(state)
            used += size
        yield group

    def _fit(self, group: Sequence[LayerState]) -> None:
        """One pass over the training data: record the layers, fit them, and feed the consumers that need no fit."""
        plans = [
            self._plan(state, "fit", state.waiting_while_recording(), records=True, caches=False) for state in group
        ]
        self._forward("fit", plans)
        self._side_by_side(group, LayerState.fit)
        self._side_by_side([state for state in group if state.fits.patch_components], LayerState.fit_patches)
        self._side_by_side(group, LayerState.replay)

    def _score(self, sample: SampleName) -> None:
        """One pass over a sample for every consumer that waits for it."""
        waiting = [state for state in self.layers if state.waiting(sample)]
        cached = self._cached(sample, waiting)
        plans = [
            self._plan(state, sample, state.waiting(sample), records=False, caches=state in cached) for state in waiting
        ]
        self._forward(sample, plans)
        self._side_by_side([state for state in waiting if state in cached], LayerState.replay)

    def _cached(self, sample: SampleName, waiting: Sequence[LayerState]) -> Collection[LayerState]:
        """The layers, from the last one backwards, whose pass after this one is served from the cache.

        That pass then needs the model only as far as the last layer that is not cached.
        """
        cached = []
        free = self._memory.cache
        for state in reversed(waiting):
            if state.cacheable(sample):
                elements = self._patch_elements if self._unfolds(state, sample) else self._input_elements
                free -= state.cache_bytes(sample, 4 * elements(state, sample))
                if free < 0:
                    break
                cached.append(state)
        return cached

    def _plan(
        self, state: LayerState, sample: SampleName, consumers: Sequence[Consumer], records: bool, caches: bool
    ) -> LayerPlan:
        chunk = self._memory.chunk // (4 * self._extractor.patch_size(state.layer))
        return LayerPlan.of(state, sample, consumers, records, caches, self._unfolds(state, sample), chunk)

    def _unfolds(self, state: LayerState, sample: SampleName) -> bool:
        """Whether patches are cached unfolded: they take less memory than whole inputs, which tiles never have."""
        return not self._feed.whole or self._patch_elements(state, sample) < self._input_elements(state, sample)

    def _patch_elements(self, state: LayerState, sample: SampleName) -> int:
        return len(state.samples[sample]) * self._extractor.patch_size(state.layer)

    def _input_elements(self, state: LayerState, sample: SampleName) -> int:
        return len(self._data.sources[self._data.split_of(sample)].scan()) * state.layer.input_size

    def _forward(self, sample: SampleName, plans: Sequence[LayerPlan]) -> None:
        """Run a sample through the model as far as the last of the layers, or to its outputs if measures read them."""
        split = self._data.split_of(sample)
        accuracy = outputs = None
        # Stopping after the last layer saves almost nothing.
        to_the_end = self._feed.whole and (not plans or plans[-1].state is self.layers[-1])
        # The first groups of layers that are recorded end early, and the last one does not.
        if (to_the_end or sample != "fit") and (awaiting := self._awaiting(split)):
            outputs = OutputPass(split, awaiting, self._data.kind, self._data.classes)
            to_the_end = True
        if to_the_end and split not in self.correct:
            accuracy = Accuracy(self._data.sources[split], self._data.classes)
        stop = not self._feed.whole or (len(plans) < len(self.layers) and accuracy is None and outputs is None)
        forward = ForwardPass(self._model, self._feed, self._data, sample, plans, self._device)
        forward.run(self._seeds, accuracy, outputs, stop, self._progress)
        if accuracy is not None:
            self.correct[split] = accuracy.result()

    def _width(self, state: LayerState) -> int:
        return self._extractor.vector_size(state.layer) + self._extractor.patch_size(state.layer)

    def _side_by_side(self, states: Sequence[LayerState], work: Callable[[LayerState], None]) -> None:
        """Process each layer in its own thread: for small operations, this is faster than threads within each."""
        threads = torch.get_num_threads()
        if self._device.type != "cpu" or threads == 1 or len(states) < 2:
            for state in states:
                work(state)
            return

        @torch.no_grad()  # applies only to the thread that enters it
        def alone(state: LayerState) -> None:
            work(state)

        try:
            with (
                threadpool_limits(1, "blas"),
                ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            ):
                # The widest layers first, so that none of them runs alone at the end.
                ordered = sorted(states, key=self._width, reverse=True)
                contexts = [contextvars.copy_context() for _ in ordered]  # a thread starts with an empty one
                list(pool.map(lambda state, context: context.run(alone, state), ordered, contexts))
        finally:
            torch.set_num_threads(threads)
