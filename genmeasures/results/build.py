"""The result dataset, made from what the engine measured."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from genmeasures.engine import ModelResult, Outcome
from genmeasures.errors import ResultError
from genmeasures.interfaces import Measure, TaskModel
from genmeasures.results.schema import LAYERS_USED, RESERVED, STATUS, measured_accuracy, measured_labels

_EXACT = 2**53
"""Up to which float64 holds every integer."""


def model_dataset(model: TaskModel, result: ModelResult | str, measures: Sequence[Measure]) -> xr.Dataset:
    """The dataset of one model: dims model (1) and layer; ``result`` is a message where measuring failed."""
    failed = isinstance(result, str)
    layers = [] if isinstance(result, str) else result.layers
    outcomes = {} if isinstance(result, str) else result.outcomes
    by_layer = ("model", "layer")
    ran = isinstance(result, str) or result.ran
    order = "in the order of the forward pass" if ran else "as the model registers them: without data it is not run"
    coords: dict[str, Any] = {
        "model": ("model", _texts([model.name])),
        "layer": ("layer", np.arange(len(layers)), {"long_name": f"measured layer, {order}"}),
        "layer_name": (by_layer, _texts([[layer.name for layer in layers]])),
        "layer_type": (by_layer, _texts([[layer.kind for layer in layers]])),
        "layer_tap": (by_layer, _texts([[layer.tap for layer in layers]]), {"long_name": "where the output is read"}),
        "channels": (by_layer, np.array([[layer.channels for layer in layers]], dtype=np.float64)),
        "positions": (
            by_layer,
            np.array([[layer.positions if ran else np.nan for layer in layers]], dtype=np.float64),
            {"long_name": "output pixels of one input"},
        ),
        "weight_norm": (
            by_layer,
            np.array([[layer.weight_norm for layer in layers]], dtype=np.float64),
            {"long_name": "Frobenius norm of the weight"},
        ),
        "model_status": ("model", _texts([f"failed: {result}" if failed else "ok"])),
        "skipped_layers": (
            "model",
            _texts([json.dumps({} if isinstance(result, str) else dict(result.skipped))]),
            {"long_name": "layers that were not measured, and why (JSON)"},
        ),
    }
    for split in ("train", "test"):
        counts = [] if isinstance(result, str) else result.vectors.get(split, [np.nan] * len(layers))
        coords[f"vectors_{split}"] = (
            by_layer,
            np.array([counts], dtype=np.float64),
            {"long_name": f"vectors sampled from the {split} data"},
        )
        correct = None if isinstance(result, str) else result.correct.get(split)
        coords[measured_accuracy(split)] = (
            "model",
            np.array([np.nan if correct is None else correct.correct / correct.labels]),
            {"long_name": f"fraction of {split} labels that the model predicts, counted in its passes"},
        )
        coords[measured_labels(split)] = (
            "model",
            np.array([np.nan if correct is None else correct.labels], dtype=np.float64),
            {"long_name": f"number of {split} labels behind that"},
        )
    variables: dict[str, Any] = {}
    sizes = {"model": 1, "layer": len(layers), **_own_sizes(outcomes, measures)}
    coords |= {dim: (dim, np.arange(size)) for dim, size in sizes.items() if dim not in coords}
    for measure in measures:
        for variable in measure.written():
            found = list(outcomes.get(variable.name, []))
            if failed and "layer" not in variable.dims:
                found = [Outcome(float("nan"), f"failed: {result}")]
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
            shape = tuple(sizes[dim] for dim in dims)
            own = [dim for dim in dims if dim not in ("model", "layer")]
            values = np.full((len(found), *(sizes[dim] for dim in own)), np.nan)
            for row, one in zip(values, found, strict=True) if own else ():
                row[: np.size(one.value)] = one.value
            if not own:
                values[:] = [one.value for one in found]
            variables[variable.name] = (dims, values.reshape(shape), attrs)
            of = tuple(dim for dim in dims if dim not in own)
            status = _texts([one.status for one in found]).reshape([sizes[dim] for dim in of])
            variables[variable.name + STATUS] = (of, status)
    taken = {*coords, *variables, *RESERVED, "generalization_gap"}
    taken |= {f"{variable.name}{LAYERS_USED}" for measure in measures for variable in measure.written()}
    known: list[tuple[object, object]] = [*model.hparams.items(), *model.metrics.items()]
    for name, value in known:
        what = f"model {model.name}: "
        if not isinstance(name, str):
            raise ResultError(f"{what}the name of a hyperparameter or metric is a text, not {name!r}: rename it")
        if name in taken:
            raise ResultError(f"{what}a hyperparameter or metric cannot be called {name!r}: rename it")
        if name in model.hparams and name in model.metrics:
            raise ResultError(f"{what}{name!r} is a hyperparameter and a metric: rename one of them")
        column = _column(value)
        if column is None:
            raise ResultError(
                f"{what}the hyperparameter {name!r} must be a number, a text, true or false, not "
                f"{value!r}: leave it out where there is none"
            )
        if name in model.metrics and column.dtype.kind not in "if":
            raise ResultError(f"{what}the metric {name!r} must be a number, not {value!r}")
        coords[name] = ("model", column)
    metric = next((name.removeprefix("train_") for name in model.metrics if name.startswith("train_")), None)
    if metric is not None and f"test_{metric}" in model.metrics:
        gap = model.metrics[f"train_{metric}"] - model.metrics[f"test_{metric}"]
        coords["generalization_gap"] = ("model", np.array([gap]), {"long_name": f"train − test {metric}"})
    return xr.Dataset(variables, coords)


def _own_sizes(outcomes: Mapping[str, Sequence[Outcome]], measures: Sequence[Measure]) -> dict[str, int]:
    """The sizes of the dimensions that measures have of their own: the longest row counts, others are padded."""
    sizes: dict[str, int] = {}
    for measure in measures:
        for variable in measure.written():
            for dim in set(variable.dims) - {"layer"}:
                rows = [np.size(o.value) for o in outcomes.get(variable.name, ()) if isinstance(o.value, np.ndarray)]
                sizes[dim] = max([sizes.get(dim, 0), *rows])
    return sizes


def combine(datasets: Sequence[xr.Dataset], attrs: Mapping[str, Any]) -> xr.Dataset:
    """One dataset of all models, in the given order.

    Args:
        datasets: results with dims (model, layer), of one model or more, each name once.
        attrs: the attributes of the whole.

    Returns:
        All variables and coordinates that any of them has. Where a model lacks one it is NaN, or "" for
        texts; integers and booleans are then float64. A hyperparameter that is a text for one model
        is one for all, and so is one with integers that float64 would have to hold and cannot.

    Raises:
        ResultError: there is nothing to combine, or two models have the same name.
    """
    if not datasets:
        raise ResultError("there is no result to combine")
    names = [str(name) for ds in datasets for name in ds["model"].values]
    counts = collections.Counter(names)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise ResultError(f"models with the same name: {', '.join(twice)}")
    datasets = _alike(datasets)
    lengths = {
        dim: max(ds.sizes.get(dim, 0) for ds in datasets)
        for dim in sorted({str(dim) for ds in datasets for dim in ds.dims} - {"model"})
    }
    wanted = {name: ds[name] for ds in reversed(datasets) for name in ds.variables}
    padded = []
    for ds in datasets:
        fills = {name: _fill(ds[name]) for name in ds.variables if name not in lengths}
        ds = ds.reindex({dim: np.arange(n) for dim, n in lengths.items() if dim in ds.dims}, fill_value=fills)
        lacking = {name: like for name, like in wanted.items() if name not in ds.variables}
        for name, like in lacking.items():
            if name in lengths:
                ds = ds.assign_coords({name: (name, np.arange(lengths[name]))})
                continue
            shape = tuple(lengths.get(str(dim), ds.sizes["model"]) for dim in like.dims)
            empty = np.full(shape, _fill(like), dtype=object if like.dtype == object else np.float64)
            made = xr.DataArray(empty, dims=like.dims, attrs=like.attrs)
            ds = ds.assign_coords({name: made}) if name in like.coords else ds.assign({name: made})
        padded.append(ds)
    whole = xr.concat(
        padded, "model", data_vars="all", coords="different", compat="equals", join="exact", combine_attrs="override"
    )
    whole.attrs = dict(attrs)
    return whole


def _alike(datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """The same with each coordinate either a text in all of them, or in none."""
    names = dict.fromkeys(name for ds in datasets for name in ds.coords)
    found = {name: [ds.variables[name] for ds in datasets if name in ds.coords] for name in names}
    texts = [name for name in names if _is_text(found[name], len(datasets))]
    made = []
    for ds in datasets:
        numbers = {name: ds[name] for name in texts if name in ds.coords and not _holds_text(ds.variables[name])}
        as_text = {name: (old.dims, _texts([_text(v) for v in old.values]), old.attrs) for name, old in numbers.items()}
        made.append(ds.assign_coords(as_text))
    return made


def _is_text(arrays: Sequence[xr.Variable], count: int) -> bool:
    """Whether a coordinate that these of so many datasets have must be a text in all of them."""
    if any(map(_holds_text, arrays)):
        return True
    whole = [array.values for array in arrays if array.dtype.kind == "i"]
    if len(whole) == count:
        return False
    # Beside a float, or a model that lacks it, integers become floats.
    return any(values.size and (values.max() > _EXACT or values.min() < -_EXACT) for values in whole)


def _holds_text(array: xr.DataArray | xr.Variable) -> bool:
    return array.dtype.kind in "OUST"


def _text(value: Any) -> str:
    """A number as a text: 64 may have become 64.0 beside a model that lacks it, and NaN is none at all."""
    number = value.item()
    if isinstance(number, float):
        return "" if math.isnan(number) else str(int(number) if number.is_integer() else number)
    return str(number)


def _column(value: object) -> NDArray[Any] | None:
    """What is known of a model, as text, bool, int64 or float64 (1,); None for what is none of these."""
    if isinstance(value, bool | np.bool_):
        return np.array([bool(value)])
    if isinstance(value, int | np.integer):
        number = int(value)
        return np.array([number]) if -(2**63) <= number < 2**63 else _texts([str(number)])
    if isinstance(value, float | np.floating):
        return np.array([float(value)])
    return _texts([str(value)]) if isinstance(value, str) else None


def _fill(array: xr.DataArray) -> Any:
    return "" if _holds_text(array) else np.nan


def _texts(values: Sequence[Any]) -> NDArray[np.object_]:
    return np.array(values, dtype=object)
