"""What is checked of a run's settings before anything is read: names of measures, and chosen layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from genmeasures.errors import OptionError
from genmeasures.interfaces import SPLITS, Measure, TaskModel, is_count
from genmeasures.results.build import model_dataset
from genmeasures.results.schema import LAYERS_USED, RESERVED, STATUS, measured_accuracy, measured_labels


def check_names(measures: Sequence[Measure], models: Sequence[TaskModel]) -> None:
    """Raise OptionError where two variables of a result would have the same name, or one that results need."""
    needed = {*map(str, model_dataset(TaskModel("", nn.Module), "", ()).variables), *RESERVED, "generalization_gap"}
    for split in SPLITS:
        needed |= {f"{split}_accuracy", measured_accuracy(split), measured_labels(split)}
    for model in models:
        needed |= {*model.hparams, *model.metrics}
    owners: dict[str, Measure] = {}
    for measure in measures:
        for variable in measure.written():
            for name in (variable.name, variable.name + STATUS, variable.name + LAYERS_USED):
                if name.removesuffix(STATUS) != name and name == variable.name:
                    raise OptionError(f"{measure.described()}: a variable cannot end in {STATUS!r}: {name!r}")
                if name in needed:
                    raise OptionError(
                        f"{measure.described()}: a variable cannot be called {name!r}, the name of a coordinate of "
                        f"results: {_REMEDY}"
                    )
                if name in owners:
                    raise OptionError(
                        f"two measures write the variable {name!r}, {owners[name].described()} and "
                        f"{measure.described()}: {_REMEDY}"
                    )
                owners[name] = measure


_REMEDY = (
    "give one of them another name, measures={'NAME': MEASURE} in Python and +measure@measure.NAME=MEASURE on the "
    "command line"
)


def check_seed(seed: object) -> None:
    """Raise OptionError unless a seed is an integer of at least 0."""
    if not is_count(seed, 0):
        raise OptionError(f"seed must be an integer ≥ 0, not {seed!r}")


def check_layers(layers: Sequence[str | int] | None) -> None:
    """Raise OptionError unless layers are a list of names and integers, or None."""
    if layers is None:
        return
    if isinstance(layers, str | int) or not isinstance(layers, Sequence):
        raise OptionError(f"layers must be a list of names or places, layers=[{layers}], not {layers!r}")
    if not layers:
        raise OptionError("layers is an empty list: leave it out to measure all layers")
    for one in layers:
        if not isinstance(one, str | int) or isinstance(one, bool):
            raise OptionError(f"layers must be names or places (0 is the first, -1 the last), not {one!r}")


__all__ = ["check_layers", "check_names", "check_seed"]
