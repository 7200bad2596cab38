"""Preparation of a run: checked data, fitted target labelers, complete measures."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from genmeasures.data import DataSource, TargetInfo
from genmeasures.engine.accuracy import classes_of, kind_of
from genmeasures.engine.consumer import FITTED_FIELDS
from genmeasures.engine.returned import checked_sample
from genmeasures.engine.seeds import generator_for
from genmeasures.errors import DataError
from genmeasures.extractors.samples import places
from genmeasures.interfaces import (
    Extractor,
    FeatureLabeler,
    FeatureMeasure,
    Labeler,
    Measure,
    OutputMeasure,
    Sample,
    SampleName,
    Split,
    TargetLabeler,
    TaskKind,
    check_attributes,
    check_passes,
    check_splits,
    is_held_back,
    split_of,
)
from genmeasures.labelers import ClassLabel, Downsampled, Histogram

log = logging.getLogger(__name__)

FITTED_ELSEWHERE = "fitted on the {split} sample, since there are no training data"
"""Note of values for which a projection, a labeler or the measure itself was not fitted on training data."""


@dataclass
class PreparedData:
    """The splits of one run, scanned, and the target labelers fitted on their training targets."""

    sources: Mapping[Split, DataSource]
    labelers: Mapping[str, TargetLabeler]
    """By ``repr``."""
    extractor: Extractor
    seed: int
    lacking: Mapping[str, str] = field(default_factory=dict)
    """By ``repr`` of a measure without the data or labels that it needs: what it lacks."""
    classes: int = 0
    """The number of classes by the largest label; 0 if no targets are class numbers."""
    kind: TaskKind = "unknown"
    """What the targets say of the outputs of the models."""
    _samples: dict[tuple[SampleName, int], Sample] = field(default_factory=dict)
    _places: dict[Split, Tensor] = field(default_factory=dict)
    _held_back: dict[Split, Tensor] = field(default_factory=dict)

    def split_of(self, sample: SampleName) -> Split:
        """The split of a sample."""
        return split_of(sample, self.sources)

    def sample(self, name: SampleName, positions: int) -> Sample:
        """The sample of layers with P positions, the same for all of them and all models."""
        key = (name, positions)
        if key not in self._samples:
            split = self.split_of(name)
            salt = generator_for(self.seed, "sample", split, positions).initial_seed()
            drawn = self.extractor.sample(positions, self.sources[split].scan().keys, salt, name == "fit")
            sample = checked_sample(self.extractor, drawn)
            if name == "fit" and len(sample) == len(self.sample(split, positions)):
                sample = self.sample(split, positions)  # the same object: one record serves both
            self._samples[key] = sample
        return self._samples[key]

    def places(self, split: Split) -> Tensor:
        """int64 (N,): rank of each input of a split by its contents."""
        if split not in self._places:
            self._places[split] = torch.from_numpy(places(self.sources[split].scan().keys))
        return self._places[split]

    def held_back(self, split: Split) -> Tensor:
        """bool (N,): the inputs that are held back, all copies of an input or none."""
        if split not in self._held_back:
            copies = torch.from_numpy(self.sources[split].scan().copies)
            self._held_back[split] = is_held_back(copies)
        return self._held_back[split]

    def note(self, measure: FeatureMeasure) -> str:
        """Note of a measure's values on the data: on which split it was fitted, and how targets were read."""
        labeler = measure.labeler
        split = self.split_of("fit")
        fitted = FITTED_ELSEWHERE.format(split=split) if split != "train" and _reads_fit(measure) else ""
        if not isinstance(labeler, TargetLabeler):
            return fitted
        splits = {self.split_of(one_pass.sample) for one_pass in measure.passes if "labels" in one_pass.fields}
        binned = ""
        if splits and _is_fitted(labeler):
            splits.add(self.split_of("fit"))
            binned = self.labelers[repr(labeler)].note
        return "; ".join(filter(None, (fitted, self.target_note(splits), binned)))

    def target_note(self, splits: Collection[Split]) -> str:
        """Note of a value on how the targets of these splits were read."""
        notes = [note for split, source in self.sources.items() if split in splits for note in source.notes]
        return "; ".join(dict.fromkeys(notes))


def _is_fitted(labeler: Labeler | None) -> bool:
    """Whether a labeler is fitted on targets before it labels any."""
    return isinstance(labeler, TargetLabeler) and labeler.needs_fit


def _reads_fit(measure: FeatureMeasure) -> bool:
    """Whether a measure, or what it reads, is fitted on a sample."""
    by_labels = isinstance(measure.labeler, FeatureLabeler) or _is_fitted(measure.labeler)
    return any(
        one_pass.sample == "fit" or one_pass.fields & FITTED_FIELDS or ("labels" in one_pass.fields and by_labels)
        for one_pass in measure.passes
    )


def labeler_for(targets: TargetInfo) -> TargetLabeler:
    """The default labeler for a kind of targets.

    Example:
        >>> labeler_for(TargetInfo("integer", 1, ()))
        ClassLabel()
    """
    if targets.kind == "continuous":
        return Histogram()
    return Downsampled() if targets.spatial else ClassLabel()


def prepare_measures(
    measures: Sequence[Measure], extractor: Extractor, sources: Mapping[Split, DataSource]
) -> tuple[list[Measure], dict[str, str]]:
    """Prepare copies of the measures: they know the extractor, and have a labeler if they read labels.

    Args:
        measures: measures of the run.
        extractor: extractor of the run.
        sources: by split.

    Returns:
        The copies, and by ``repr`` of a measure without the data or targets that it needs, what it lacks.

    Raises:
        DataError: all measures lack data, or a labeler does not fit the targets.

    Example:
        >>> import torch
        >>> from genmeasures.extractors import ReceptiveField
        >>> from genmeasures.measures import DaviesBouldin
        >>> data = {"train": DataSource((torch.zeros(4, 2), torch.arange(4) % 2), "train", 4)}
        >>> (measure,), lacking = prepare_measures([DaviesBouldin()], ReceptiveField(), data)
        >>> measure.labeler, lacking
        (ClassLabel(), {})
    """
    ready: list[Measure] = []
    lacking: dict[str, str] = {}
    for original in measures:
        measure = original.clone()
        if isinstance(measure, FeatureMeasure):
            measure.extractor = extractor
            measure.prepare(extractor)
            check_passes(measure, measure.passes)
            if measure.labeler is not None:
                check_attributes(measure.labeler)
            lacks = _lacks(measure, sources)
            if lacks:
                lacking[repr(measure)] = lacks
            elif isinstance(measure.labeler, TargetLabeler):
                for split in _labeled(measure, sources):
                    _check_labels(measure, measure.labeler, sources[split])
        elif isinstance(measure, OutputMeasure):
            check_splits(measure, measure.splits)
            missing = [split for split in measure.splits if split not in sources]
            if missing:
                lacking[repr(measure)] = f"needs {missing[0]} data, and none are given"
        ready.append(measure)
    if measures and len(lacking) == len(measures):
        named = [f"{measure.name} {lacks}" for measure, lacks in zip(measures, lacking.values(), strict=True)]
        raise DataError("; ".join(named))
    return ready, lacking


def _labeled(measure: FeatureMeasure, sources: Mapping[Split, DataSource]) -> set[Split]:
    """The splits whose labels a measure reads."""
    return {split_of(one_pass.sample, sources) for one_pass in measure.passes if "labels" in one_pass.fields}


def _lacks(measure: FeatureMeasure, sources: Mapping[Split, DataSource]) -> str:
    """What a measure needs but does not get, "" for nothing; sets the default labeler if it has none."""
    for one_pass in measure.passes:
        split = split_of(one_pass.sample, sources)
        if split not in sources:
            return f"needs {split} data, and none are given"
    for split in sorted(_labeled(measure, sources)):
        targets = sources[split].scan().targets
        if measure.labeler is None:
            if targets is None:
                return (
                    f"needs labels, and the {split} data have no targets: pass ({split} inputs, targets), "
                    "choose a labeler without targets (KMeans), or leave the measure out"
                )
            measure.labeler = labeler_for(targets)
        elif isinstance(measure.labeler, TargetLabeler) and targets is None:
            return f"with the labeler {measure.labeler.name!r} needs targets, and the {split} data have none"
    fit = split_of("fit", sources)
    if _reads_fit(measure) and fit not in sources:
        return f"needs {fit} data, and none are given"
    if _is_fitted(measure.labeler) and sources[fit].scan().targets is None:
        assert measure.labeler is not None
        return f"with the labeler {measure.labeler.name!r} needs targets, and the {fit} data have none"
    return ""


def _check_labels(measure: FeatureMeasure, labeler: TargetLabeler, source: DataSource) -> None:
    if isinstance(labeler, Downsampled) and labeler.rounding == "nearest" and 0 in source.ignored:
        raise DataError(
            f"{measure.name}: {source.name} data: with rounding='nearest' class 0 means that no other class has half "
            "the area, and ignore_index=0 leaves it out: choose rounding='ceil' or 'majority'"
        )
    _, targets = next(iter(source))
    assert targets is not None
    if not labeler.needs_fit:
        try:
            labeler.label(targets[:1], (1,) * max(0, targets.dim() - 2))
        except DataError as error:
            raise DataError(f"{measure.name}: {source.name} data: {error}") from error
        except Exception:  # it becomes the status of this measure, and the others continue
            log.debug("%r cannot label the first target", labeler, exc_info=True)


def prepare_data(
    sources: Mapping[Split, DataSource],
    measures: Sequence[Measure],
    extractor: Extractor,
    seed: int,
    lacking: Mapping[str, str] | None = None,
) -> PreparedData:
    """Scan the splits once, and fit the target labelers of the measures on the training targets.

    Args:
        sources: by split.
        measures: prepared, see :func:`prepare_measures`.
        extractor: extractor of the run.
        seed: seed of the run.
        lacking: what measures lack, by ``repr``.

    Raises:
        DataError: a split has invalid samples, or the inputs of the splits differ in shape.

    Example:
        >>> import torch
        >>> from genmeasures.extractors import ReceptiveField
        >>> data = {"train": DataSource((torch.zeros(4, 2), torch.arange(4) % 2), "train", 4)}
        >>> prepare_data(data, [], ReceptiveField(), seed=0).classes
        2
    """
    lacking = lacking or {}
    labelers: dict[str, TargetLabeler] = {}
    for measure in measures:
        if repr(measure) in lacking:
            continue
        if isinstance(measure, FeatureMeasure) and isinstance(measure.labeler, TargetLabeler):
            labelers.setdefault(repr(measure.labeler), measure.labeler.clone())
    fitted = [labeler for labeler in labelers.values() if _is_fitted(labeler)]
    if fitted:
        sources[split_of("fit", sources)].scan(fitted)
        for labeler in fitted:
            labeler.fit(generator_for(seed, "labeler", labeler))
    for source in sources.values():
        shape = source.scan().input_shape
        first = next(iter(sources.values())).scan().input_shape
        if shape != first:
            names = " and ".join(sources)
            raise DataError(f"{names} data: inputs differ in shape, {first} against {shape}")
    return PreparedData(dict(sources), labelers, extractor, seed, lacking, classes_of(sources), kind_of(sources))
