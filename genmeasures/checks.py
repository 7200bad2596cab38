"""Checks of the settings of a run before models and data are read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from genmeasures.engine.selection import base_60
from genmeasures.errors import OptionError
from genmeasures.interfaces import SPLITS, Measure, TaskModel, is_count
from genmeasures.results.model_dataset import model_dataset
from genmeasures.results.schema import LAYERS_USED, MEASURED, RESERVED, STATUS, VECTORS


def check_names(measures: Sequence[Measure], models: Sequence[TaskModel]) -> None:
    """Check that the variables of a result have distinct names that are not reserved.

    Args:
        measures: Measures of the run.
        models: Models of the run, whose hyperparameters and metrics are reserved names.

    Raises:
        OptionError: Two variables have the same name, or the name of a variable or dimension is reserved.

    Example:
        >>> from genmeasures.measures import Roughness
        >>> check_names([Roughness(), Roughness()], [])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: duplicate variable 'roughness' of ...
    """
    reserved = {*map(str, model_dataset(TaskModel("", nn.Module), "", ()).variables), *RESERVED, "generalization_gap"}
    reserved |= {*MEASURED, *VECTORS, *(f"{split}_accuracy" for split in SPLITS)}
    for model in models:
        reserved |= {*model.hparams, *model.metrics}
    owners: dict[str, Measure] = {}
    for measure in measures:
        for variable in measure.written():
            for dim in set(variable.dims) & (reserved - {"layer"}):
                raise OptionError(
                    f"{measure.described()}: the variable {variable.name!r} cannot have the dimension {dim!r}, the "
                    "name of a coordinate of results: rename it"
                )
            for name in (variable.name, variable.name + STATUS, variable.name + LAYERS_USED):
                if name.removesuffix(STATUS) != name and name == variable.name:
                    raise OptionError(f"{measure.described()}: a variable cannot end in {STATUS!r}, got {name!r}")
                if name in reserved:
                    raise OptionError(
                        f"{measure.described()}: a variable cannot be called {name!r}, the name of a coordinate of "
                        f"results: {_REMEDY}"
                    )
                if name in owners:
                    raise OptionError(
                        f"duplicate variable {name!r} of {owners[name].described()} and {measure.described()}: "
                        f"{_REMEDY}"
                    )
                owners[name] = measure


_REMEDY = (
    "give one of them another name, measures={'NAME': MEASURE} in Python and +measure@measure.NAME=MEASURE on the "
    "command line"
)


def check_seed(seed: object) -> None:
    """Check that a seed is a non-negative integer.

    Args:
        seed: The seed.

    Raises:
        OptionError: It is not.

    Example:
        >>> check_seed(-1)
        Traceback (most recent call last):
        genmeasures.errors.OptionError: seed must be an integer ≥ 0, got -1
    """
    if not is_count(seed, 0):
        raise OptionError(f"seed must be an integer ≥ 0, got {seed!r}")


def check_layers(layers: object) -> None:
    """Check that layers are None, a name, glob or range, or a list of these and of indices.

    Args:
        layers: Choice of layers; None for all layers.

    Raises:
        OptionError: They are not.

    Example:
        >>> check_layers(0)
        Traceback (most recent call last):
        genmeasures.errors.OptionError: layers must be a list of names or indices, such as [0], got 0
    """
    if layers is None or isinstance(layers, str):
        return
    if not isinstance(layers, Sequence):
        yaml = base_60(layers) if isinstance(layers, int) else ""
        raise OptionError(f"layers must be a list of names or indices, such as {[layers]!r}, got {layers!r}{yaml}")
    if not layers:
        raise OptionError("layers is an empty list: leave it out to measure all layers")
    for layer in layers:
        if not isinstance(layer, str | int) or isinstance(layer, bool):
            raise OptionError(f"layers must be names or indices (0 is the first, -1 the last), got {layer!r}")


__all__ = ["check_layers", "check_names", "check_seed"]
