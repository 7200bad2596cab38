"""Result dataset of a single model."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from genmeasures.engine import ModelResult, Outcome
from genmeasures.errors import ResultError
from genmeasures.interfaces import SPLITS, Measure, Split, TaskModel, Variable
from genmeasures.results.columns import column_of, texts
from genmeasures.results.schema import (
    GAP,
    LAYERS_USED,
    MEASURED,
    RESERVED,
    STATUS,
    VECTORS,
    measured_accuracy,
    measured_labels,
)

_BY_LAYER = ("model", "layer")
_NOTHING = ModelResult(layers=(), skipped=(), outcomes={}, vectors={})
"""Result of a model that failed."""


def model_dataset(model: TaskModel, result: ModelResult | str, measures: Sequence[Measure]) -> xr.Dataset:
    """Result dataset of one model.

    Args:
        model: The model, with its hyperparameters and metrics.
        result: What the engine measured; the message of the error if the model failed.
        measures: The measures of the run.

    Returns:
        The values and statuses of all variables of the measures, with the dimensions model (1) and layer, and the
        coordinates of the model: its layers, hyperparameters, metrics and status.

    Raises:
        ResultError: A hyperparameter or metric has a reserved name or an unsupported type.

    Example:
        >>> from torch import nn
        >>> ds = model_dataset(TaskModel("net", nn.Linear(2, 2), hparams={"lr": 0.1}), "out of memory", [])
        >>> ds.model_status.item(), ds.lr.item()
        ('failed: out of memory', 0.1)
    """
    failure = result if isinstance(result, str) else None
    measured = _NOTHING if isinstance(result, str) else result
    coords: dict[str, Any] = {
        "model": ("model", texts([model.name])),
        **_layer_coords(measured),
        "model_status": ("model", texts(["ok" if failure is None else f"failed: {failure}"])),
        "skipped_layers": (
            "model",
            texts([json.dumps(dict(measured.skipped))]),
            {"long_name": "layers that were not measured, and why (JSON)"},
        ),
    }
    for split in SPLITS:
        # Results of runs without validation data do not mention them.
        if split != "validation" or split in measured.vectors:
            coords |= _split_coords(measured, split)
    sizes = {"model": 1, "layer": len(measured.layers), **_own_sizes(measured.outcomes, measures)}
    coords |= {dim: (dim, np.arange(size)) for dim, size in sizes.items() if dim not in coords}
    variables: dict[str, Any] = {}
    for measure in measures:
        for variable in measure.written():
            outcomes = list(measured.outcomes.get(variable.name, []))
            if failure is not None and "layer" not in variable.dims:
                outcomes = [Outcome(float("nan"), f"failed: {failure}")]
            variables |= _values(measure, variable, outcomes, sizes)
    reserved = {*coords, *variables, *RESERVED, *MEASURED, *VECTORS, GAP}
    reserved |= {f"{variable.name}{LAYERS_USED}" for measure in measures for variable in measure.written()}
    return xr.Dataset(variables, {**coords, **_known_coords(model, reserved)})


def _layer_coords(result: ModelResult) -> dict[str, Any]:
    """Coordinates of the layers."""
    layers = result.layers
    order = "of the forward pass" if result.ran else "of registration: the model is not run without data"

    def numbers(value: Callable[[Any], float]) -> NDArray[np.float64]:
        return np.array([[value(layer) for layer in layers]], dtype=np.float64)

    def strings(value: Callable[[Any], str]) -> NDArray[np.object_]:
        return texts([[value(layer) for layer in layers]])

    return {
        "layer": ("layer", np.arange(len(layers)), {"long_name": f"measured layer, in the order {order}"}),
        "layer_name": (_BY_LAYER, strings(lambda layer: layer.name)),
        "layer_type": (_BY_LAYER, strings(lambda layer: layer.kind)),
        "layer_tap": (_BY_LAYER, strings(lambda layer: layer.tap), {"long_name": "where the output is read"}),
        "channels": (_BY_LAYER, numbers(lambda layer: layer.channels)),
        "positions": (
            _BY_LAYER,
            numbers(lambda layer: layer.positions if result.ran else np.nan),
            {"long_name": "output pixels of one input"},
        ),
        "weight_norm": (
            _BY_LAYER,
            numbers(lambda layer: layer.weight_norm),
            {"long_name": "Frobenius norm of the weight"},
        ),
    }


def _split_coords(result: ModelResult, split: Split) -> dict[str, Any]:
    """Coordinates of one split: number of vectors per layer, and the accuracy counted in the passes."""
    vectors = result.vectors.get(split, [np.nan] * len(result.layers))
    correct = result.correct.get(split)
    return {
        f"vectors_{split}": (
            _BY_LAYER,
            np.array([vectors], dtype=np.float64),
            {"long_name": f"vectors sampled from the {split} data"},
        ),
        measured_accuracy(split): (
            "model",
            np.array([np.nan if correct is None else correct.correct / correct.labels]),
            {"long_name": f"fraction of {split} labels that the model predicts, counted in its passes"},
        ),
        measured_labels(split): (
            "model",
            np.array([np.nan if correct is None else correct.labels], dtype=np.float64),
            {"long_name": f"number of {split} labels behind that"},
        ),
    }


def _own_sizes(outcomes: Mapping[str, Sequence[Outcome]], measures: Sequence[Measure]) -> dict[str, int]:
    """Sizes of the dimensions that variables add: the longest value decides, shorter ones are padded."""
    sizes: dict[str, int] = {}
    for measure in measures:
        for variable in measure.written():
            arrays = [o.value for o in outcomes.get(variable.name, ()) if isinstance(o.value, np.ndarray)]
            for axis, dim in enumerate(dim for dim in variable.dims if dim != "layer"):
                sizes[dim] = max([sizes.get(dim, 0), *(array.shape[axis] for array in arrays)])
    return sizes


def _values(
    measure: Measure, variable: Variable, outcomes: Sequence[Outcome], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """The values of a variable, and their statuses."""
    attrs = {
        "long_name": variable.long_name,
        "units": variable.units,
        "expected_accuracy": variable.expected_accuracy,
        "expected_accuracy_source": variable.expected_accuracy_source,
        "expected_gap": variable.expected_gap,
        "expected_gap_source": variable.expected_gap_source,
        "auxiliary": int(variable.auxiliary),
        "references": variable.references,
        "measure": measure.described(),
    }
    dims = ("model", *variable.dims)
    own = [dim for dim in dims if dim not in _BY_LAYER]
    values = np.full((len(outcomes), *(sizes[dim] for dim in own)), np.nan)
    if own:
        for row, outcome in zip(values, outcomes, strict=True):
            if isinstance(outcome.value, np.ndarray):
                row[tuple(map(slice, outcome.value.shape))] = outcome.value
    else:
        values[:] = [outcome.value for outcome in outcomes]
    status_dims = tuple(dim for dim in dims if dim not in own)
    status = texts([outcome.status for outcome in outcomes]).reshape([sizes[dim] for dim in status_dims])
    return {
        variable.name: (dims, values.reshape(tuple(sizes[dim] for dim in dims)), attrs),
        variable.name + STATUS: (status_dims, status),
    }


def _known_coords(model: TaskModel, reserved: Collection[str]) -> dict[str, Any]:
    """Hyperparameters, metrics and the generalization gap of a model."""
    coords: dict[str, Any] = {}
    for name, value in [*model.hparams.items(), *model.metrics.items()]:
        _check_name(model, name, reserved)
        column = column_of(value)
        if column is None:
            raise ResultError(
                f"model {model.name}: the hyperparameter or metric {name!r} must be a number, a text or a bool, got "
                f"{value!r}; leave it out for a model that does not have it"
            )
        if name in model.metrics and column.dtype.kind not in "if":
            raise ResultError(f"model {model.name}: the metric {name!r} must be a number, got {value!r}")
        coords[name] = ("model", column)
    metric = next((name.removeprefix("train_") for name in model.metrics if name.startswith("train_")), None)
    if metric is not None and f"test_{metric}" in model.metrics:
        gap = model.metrics[f"train_{metric}"] - model.metrics[f"test_{metric}"]
        coords[GAP] = ("model", np.array([gap]), {"long_name": f"train − test {metric}"})
    return coords


def _check_name(model: TaskModel, name: object, reserved: Collection[str]) -> None:
    if not isinstance(name, str):
        raise ResultError(
            f"model {model.name}: the name of a hyperparameter or metric must be a string, got {name!r}: rename it"
        )
    if name in reserved:
        raise ResultError(
            f"model {model.name}: {name!r} is a reserved name and cannot be a hyperparameter or metric: rename it"
        )
    if name in model.hparams and name in model.metrics:
        raise ResultError(f"model {model.name}: {name!r} is both a hyperparameter and a metric: rename one of them")
