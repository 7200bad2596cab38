"""What is settled before the first model: checked data, fitted target labelers, complete measures."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from genmeasures.data import DataSource, TargetInfo
from genmeasures.engine.returned import checked_sample
from genmeasures.engine.running import FITTED_FIELDS
from genmeasures.engine.seeds import generator_for
from genmeasures.errors import DataError
from genmeasures.interfaces import (
    Extractor,
    FeatureLabeler,
    FeatureMeasure,
    Labeler,
    Measure,
    Over,
    Sample,
    Split,
    TargetLabeler,
    check_attributes,
    check_passes,
    split_of,
)
from genmeasures.labelers import Downsampled, Histogram, Image

log = logging.getLogger(__name__)


@dataclass
class PreparedData:
    """The splits of one run, scanned, and the target labelers fitted on their training targets."""

    sources: Mapping[Split, DataSource]
    labelers: Mapping[str, TargetLabeler]
    """By representation."""
    extractor: Extractor
    seed: int
    _samples: dict[tuple[Over, int], Sample] = field(default_factory=dict)

    def sample(self, over: Over, positions: int) -> Sample:
        """The sample of a layer with P positions: the same for all such layers and models."""
        key = (over, positions)
        if key not in self._samples:
            split = split_of(over)
            salt = generator_for(self.seed, "sample", split, positions).initial_seed()
            drawn = self.extractor.sample(positions, self.sources[split].scan().keys, salt, over == "fit")
            made = checked_sample(self.extractor, drawn)
            if over == "fit" and len(made) == len(self.sample("train", positions)):
                made = self.sample("train", positions)  # one object says that one record serves both
            self._samples[key] = made
        return self._samples[key]

    def label_note(self, measure: FeatureMeasure) -> str:
        """What the status of a measure's values says of how the targets behind its labels were read."""
        labeler = measure.labeler
        if not isinstance(labeler, TargetLabeler):
            return ""
        splits = {split_of(one.split) for one in measure.passes if "labels" in one.fields}
        if splits and type(labeler).fit is not TargetLabeler.fit:
            splits.add("train")
        return self.target_note(splits)

    def target_note(self, splits: Collection[Split]) -> str:
        """What the status of a value says of how the targets of these splits were read."""
        notes = [note for split, source in self.sources.items() if split in splits for note in source.notes]
        return "; ".join(dict.fromkeys(notes))


def labeler_for(targets: TargetInfo) -> TargetLabeler:
    """The labeler that fits a kind of targets."""
    if targets.kind == "continuous":
        return Histogram()
    return Downsampled() if targets.spatial else Image()


def prepare_measures(
    measures: Sequence[Measure], extractor: Extractor, sources: Mapping[Split, DataSource]
) -> list[Measure]:
    """Copies of the measures that know the extractor and all have the labelers they need.

    Raises DataError if a measure needs data or targets that are not there.
    """
    ready: list[Measure] = []
    for given in measures:
        measure = given.clone()
        if isinstance(measure, FeatureMeasure):
            measure.extractor = extractor
            measure.prepare(extractor)
            check_passes(measure, measure.passes)
            for one in measure.passes:
                fitted = bool(one.fields & FITTED_FIELDS) or isinstance(measure.labeler, FeatureLabeler)
                for split in ("train", split_of(one.split)) if fitted else (split_of(one.split),):
                    if split not in sources:
                        raise DataError(f"{measure.name} needs {split} data, and none are given")
            if measure.labeler is not None:
                check_attributes(measure.labeler)
            labelled = {split_of(one.split) for one in measure.passes if "labels" in one.fields}
            if labelled and measure.labeler is None:
                measure.labeler = _default_labeler(measure, labelled.pop(), sources)
            if isinstance(measure.labeler, TargetLabeler):
                for split in {split_of(one.split) for one in measure.passes if "labels" in one.fields}:
                    _check_labels(measure, measure.labeler, sources[split])
        ready.append(measure)
    return ready


def _default_labeler(measure: FeatureMeasure, split: Split, sources: Mapping[Split, DataSource]) -> Labeler:
    targets = sources[split].scan().targets
    if targets is None:
        raise DataError(
            f"{measure.name} needs labels, and the {split} data have no targets: give ({split} inputs, targets), "
            "choose a labeler that needs none (KMeans), or leave the measure out"
        )
    return labeler_for(targets)


def _check_labels(measure: FeatureMeasure, labeler: TargetLabeler, source: DataSource) -> None:
    if source.scan().targets is None:
        raise DataError(
            f"{measure.name} with the labeler {labeler.name!r} needs targets, and the {source.name} data have none"
        )
    if isinstance(labeler, Downsampled) and labeler.rounding == "nearest" and 0 in source.ignored:
        raise DataError(
            f"{measure.name}: {source.name} data: with rounding='nearest' class 0 stands where no other has half the "
            "area, and ignore_index=0 leaves it out: choose rounding='ceil' or 'majority'"
        )
    _, targets = next(iter(source))
    assert targets is not None
    if type(labeler).fit is TargetLabeler.fit:
        try:
            labeler.label(targets[:1], (1,) * max(0, targets.dim() - 2))
        except DataError as error:
            raise DataError(f"{measure.name}: {source.name} data: {error}") from error
        except Exception:  # it will be the status of this measure, and the others go on
            log.debug("%r cannot label the first target", labeler, exc_info=True)


def prepare_data(
    sources: Mapping[Split, DataSource], measures: Sequence[Measure], extractor: Extractor, seed: int
) -> PreparedData:
    """Scan the splits once and fit the measures' target labelers on the training targets."""
    labelers: dict[str, TargetLabeler] = {}
    for measure in measures:
        if isinstance(measure, FeatureMeasure) and isinstance(measure.labeler, TargetLabeler):
            labelers.setdefault(repr(measure.labeler), measure.labeler.clone())
    fitted = [labeler for labeler in labelers.values() if type(labeler).fit is not TargetLabeler.fit]
    if fitted and "train" in sources:
        sources["train"].scan(fitted)
        for labeler in fitted:
            labeler.fit(generator_for(seed, "labeler", labeler))
    for source in sources.values():
        shape = source.scan().input_shape
        first = next(iter(sources.values())).scan().input_shape
        if shape != first:
            names = " and ".join(sources)
            raise DataError(f"{names} data: inputs differ in shape, {first} against {shape}")
    return PreparedData(dict(sources), labelers, extractor, seed)
