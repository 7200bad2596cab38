"""The result dataset, made from what the engine measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from genmeasures.engine import ModelResult, Outcome
from genmeasures.errors import ResultError
from genmeasures.interfaces import Measure, TaskModel
from genmeasures.results.schema import STATUS

_LAYER_TEXTS = ("layer_name", "layer_type", "layer_tap")


def model_dataset(model: TaskModel, result: ModelResult | str, measures: Sequence[Measure]) -> xr.Dataset:
    """The dataset of one model: dims model (1) and layer; ``result`` is a message where measuring failed."""
    failed = isinstance(result, str)
    layers = [] if isinstance(result, str) else result.layers
    outcomes = {} if isinstance(result, str) else result.outcomes
    by_layer = ("model", "layer")
    coords: dict[str, Any] = {
        "model": ("model", _texts([model.name])),
        "layer": ("layer", np.arange(len(layers)), {"long_name": "measured layer, in the order of the forward pass"}),
        "layer_name": (by_layer, _texts([[layer.name for layer in layers]])),
        "layer_type": (by_layer, _texts([[layer.kind for layer in layers]])),
        "layer_tap": (by_layer, _texts([[layer.tap for layer in layers]]), {"long_name": "where the output is read"}),
        "channels": (by_layer, np.array([[layer.channels for layer in layers]], dtype=np.float64)),
        "positions": (
            by_layer,
            np.array([[layer.positions for layer in layers]], dtype=np.float64),
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
    variables: dict[str, Any] = {}
    sizes = {"model": 1, "layer": len(layers), **_own_sizes(outcomes, measures)}
    coords |= {dim: (dim, np.arange(size)) for dim, size in sizes.items() if dim not in coords}
    for measure in measures:
        for variable in measure.variables:
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
                "measure": repr(measure),
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
    taken = {*coords, *variables, "generalization_gap"}
    for name, value in {**model.hparams, **model.metrics}.items():
        if name in taken:
            raise ResultError(f"model {model.name}: a hyper-parameter or metric cannot be called {name!r}: rename it")
        if not isinstance(value, str | bool | int | float | np.number | np.bool_):
            raise ResultError(
                f"model {model.name}: the hyper-parameter {name!r} must be a number, a text, true or false, not "
                f"{value!r}: leave it out where there is none"
            )
        coords[name] = ("model", _texts([value]) if isinstance(value, str) else np.array([value]))
    metric = next((name.removeprefix("train_") for name in model.metrics if name.startswith("train_")), None)
    if metric is not None and f"test_{metric}" in model.metrics:
        gap = model.metrics[f"train_{metric}"] - model.metrics[f"test_{metric}"]
        coords["generalization_gap"] = ("model", np.array([gap]), {"long_name": f"train − test {metric}"})
    return xr.Dataset(variables, coords)


def _own_sizes(outcomes: Mapping[str, Sequence[Outcome]], measures: Sequence[Measure]) -> dict[str, int]:
    """The sizes of the dimensions that measures have of their own: the longest row counts, others are padded."""
    sizes: dict[str, int] = {}
    for measure in measures:
        for variable in measure.variables:
            for dim in set(variable.dims) - {"layer"}:
                rows = [np.size(o.value) for o in outcomes.get(variable.name, ()) if isinstance(o.value, np.ndarray)]
                sizes[dim] = max([sizes.get(dim, 0), *rows])
    return sizes


def combine(datasets: Sequence[xr.Dataset], attrs: Mapping[str, Any]) -> xr.Dataset:
    """One dataset of all models, in the given order; layers and coordinates that a model lacks are NaN or ""."""
    if not datasets:
        raise ResultError("there is no result to combine")
    names = [str(name) for ds in datasets for name in ds["model"].values]
    twice = sorted({name for name in names if names.count(name) > 1})
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
            shape = tuple(lengths.get(str(dim), 1) for dim in like.dims)
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
    """A hyper-parameter that is a text for one model is one for all."""
    texts = {name for ds in datasets for name in ds.coords if ds[name].dtype.kind in "OUST"}
    made = []
    for ds in datasets:
        numbers = [name for name in texts & set(ds.coords) if ds[name].dtype.kind not in "OUST"]
        as_text = {name: (ds[name].dims, _texts([str(value) for value in ds[name].values])) for name in numbers}
        made.append(ds.assign_coords(as_text))
    return made


def _fill(array: xr.DataArray) -> Any:
    return "" if array.dtype.kind in "OUST" else np.nan


def _texts(values: Sequence[Any]) -> NDArray[np.object_]:
    return np.array(values, dtype=object)
