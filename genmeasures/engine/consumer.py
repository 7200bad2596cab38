"""A measure on one layer in the course of a run."""

from __future__ import annotations

from genmeasures.engine.guarded import Guarded
from genmeasures.engine.outcome import Outcome, by_variable, noted, outcome_of
from genmeasures.engine.seeds import generator_for
from genmeasures.interfaces import (
    FeatureBatch,
    FeatureLabeler,
    FeatureMeasure,
    Field,
    Layer,
    Pass,
    SampleName,
    TargetLabeler,
)

FITTED_FIELDS: frozenset[Field] = frozenset({"projected", "projected_apart", "projected_patches", "patch_projection"})
"""Fields that can be read only after the fits on the training sample."""


class Consumer(Guarded):
    """A measure on a layer: fed batch by batch, pass by pass. If it fails, the others continue without it.

    Args:
        measure: a copy for this layer only.
        layer: the layer.
        seed: seed of the run.
        note: added to the status of the values.
    """

    def __init__(self, measure: FeatureMeasure, layer: Layer, seed: int, note: str = "") -> None:
        super().__init__(f"{measure} on layer {layer.name}")
        self.measure = measure
        self.layer = layer
        self._note = note
        self._seen = self._labeled = 0
        self._passes = list(measure.passes)
        with self.guard:
            measure.start(layer, generator_for(seed, "measure", measure, layer.index))

    @property
    def fields(self) -> frozenset[Field]:
        """The fields that the next pass reads; empty after the last pass."""
        return self._passes[0].fields if self._passes else frozenset()

    @property
    def reads_labels(self) -> bool:
        """Whether the next pass reads labels."""
        return "labels" in self.fields

    @property
    def needs_fit(self) -> bool:
        """Whether the next pass reads what is fitted on the training sample."""
        return bool(self._passes) and self._reads_fit(self._passes[0])

    @property
    def ever_needs_fit(self) -> bool:
        """Whether this or any later pass reads what is fitted."""
        return any(map(self._reads_fit, self._passes))

    def _reads_fit(self, one_pass: Pass) -> bool:
        by_features = isinstance(self.measure.labeler, FeatureLabeler)
        return bool(one_pass.fields & FITTED_FIELDS) or ("labels" in one_pass.fields and by_features)

    def waits_for(self, *samples: SampleName) -> bool:
        """Whether the measure has not failed, and its next pass is over one of these samples."""
        return self.failure is None and bool(self._passes) and self._passes[0].sample in samples

    def fields_after_next(self, sample: SampleName) -> frozenset[Field]:
        """The fields of the pass after the next if it is over this sample, else none."""
        if len(self._passes) < 2 or self._passes[1].sample != sample:
            return frozenset()
        return self._passes[1].fields

    def update(self, batch: FeatureBatch) -> None:
        """Feed a batch of the next pass, without unlabeled vectors if the pass reads labels of targets."""
        if self.failure is None:
            with self.guard:
                labeler = self.measure.labeler
                by_targets = isinstance(labeler, TargetLabeler) and self.reads_labels
                readable = batch.labeled(labeler) if labeler is not None and by_targets else batch
                self._seen += len(batch)
                self._labeled += len(readable)
                if len(readable) or not len(batch):
                    with readable.read_by(self.measure, self._passes[0]):
                        self.measure.update(readable)

    def end_pass(self) -> None:
        """End the next pass; the one after it becomes the next."""
        self._passes.pop(0)
        if self._seen and not self._labeled and self.failure is None:
            self.failure = "undefined: no vector of the sample has a label"
        self._seen = self._labeled = 0
        if self.failure is None:
            with self.guard:
                self.measure.end_pass()

    def outcomes(self) -> dict[str, Outcome]:
        """The outcome of each variable of the measure, by name."""
        names = [variable.name for variable in self.measure.variables]
        outcomes: dict[str, Outcome] = {}
        if self.failure is None:
            with self.guard:
                values = by_variable("compute", self.measure.compute(), self.measure.variables)
                outcomes = {name: noted(outcome_of(values[name]), self._note) for name in names}
        if self.failure is None:
            return outcomes
        return {name: Outcome(float("nan"), self.failure) for name in names}
