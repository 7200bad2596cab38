"""Aggregation of a result: Dataset(model, layer) → Dataset(model)."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from genmeasures.aggregators.layers import has_layer
from genmeasures.errors import ComponentError, GenmeasuresError, ResultError
from genmeasures.failures import origin
from genmeasures.interfaces import Aggregator
from genmeasures.results.schema import LAYERS_USED, STATUS, is_measured, measure_variables


def aggregate(ds: xr.Dataset, aggregator: Aggregator) -> xr.Dataset:
    """Reduce the layers of every measure of a result to one number per model.

    Args:
        ds: Result with the dimensions (model, layer), the coordinates ``layer_name``, ``weight_norm`` and
            ``model_status``, and a variable ``<name>_status`` for every measure.
        aggregator: How layers are reduced.

    Returns:
        Dataset with the dimension ``model`` alone. Every measure is float64 (model,), NaN where it has no finite value;
        each reduced measure has ``<name>_layers_used`` (int64) and ``<name>_status``. The standard errors of layers,
        ``<name>_error`` and ``<name>_se``, are left out: layers are not independent, so that the error of an aggregate
        does not follow from them. Measures with one value per model, the coordinates along ``model`` and all attributes
        are kept. The attribute ``aggregator`` names the aggregator.

    Raises:
        ResultError: If a coordinate is missing, or the result is already aggregated.
        OptionError: If the aggregator does not fit the layers of the models.

    Example:
        >>> import torch
        >>> import genmeasures
        >>> from genmeasures.aggregators import Max, aggregate
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> ds = genmeasures.measure({"net": net}, test=torch.rand(40, 2), measures=["roughness"])
        >>> dict(ds.roughness.sizes), dict(aggregate(ds, Max()).roughness.sizes)
        ({'model': 1, 'layer': 2}, {'model': 1})
    """
    if "layer" not in ds.dims and "aggregator" in ds.attrs:
        raise ResultError(f"cannot aggregate: the result is already aggregated, by {ds.attrs['aggregator']}")
    for coordinate in ("model", "layer_name", "weight_norm", "model_status"):
        if coordinate not in ds.coords:
            raise ResultError(f"cannot aggregate: the result has no coordinate {coordinate!r}")
    per_model = ds.drop_dims([dim for dim in ds.dims if dim != "model"])
    names = ds["layer_name"].transpose("model", "layer").values.astype(object)
    norms = ds["weight_norm"].transpose("model", "layer").values.astype(np.float64)
    model_status = ds["model_status"].values.astype(str)

    reduced: dict[str, xr.DataArray] = {}
    for name in measure_variables(ds):
        layered = "layer" in ds[name].dims
        if layered and _is_error(name, ds):
            continue
        if not layered:
            reduced[name] = per_model[name]
            reduced[f"{name}{STATUS}"] = per_model[f"{name}{STATUS}"]
            continue
        values = ds[name].transpose("model", "layer").values.astype(np.float64)
        numbers, used, status = _reduce(values, norms, names, model_status, aggregator)
        attrs = {**ds[name].attrs, "aggregator": repr(aggregator)}
        label = attrs.get("long_name", name)
        if not aggregator.reads_values:
            # What a measure is expected to do says nothing of the weights of its layers.
            attrs = {key: value for key, value in attrs.items() if not key.startswith("expected_")}
            attrs |= {"long_name": f"weights of the layers of {label}", "expected_accuracy": 0, "expected_gap": 0}
        reduced[name] = xr.DataArray(numbers, dims="model", attrs=attrs)
        reduced[f"{name}{STATUS}"] = xr.DataArray(status, dims="model", attrs=ds[f"{name}{STATUS}"].attrs)
        reduced[f"{name}{LAYERS_USED}"] = xr.DataArray(
            used, dims="model", attrs={"long_name": f"{label}: number of layers used", "units": "1"}
        )
    # Measures first, in their order, then the other variables along ``model``.
    out = per_model.drop_vars(list(per_model.data_vars)).assign(reduced)
    out = out.assign({name: v for name, v in per_model.data_vars.items() if name not in out})
    out.attrs = {**ds.attrs, "aggregator": repr(aggregator)}
    return out


def _is_error(name: str, ds: xr.Dataset) -> bool:
    """Whether a variable is the standard error of another one."""
    of = {name.removesuffix(ending) for ending in ("_error", "_se") if name.endswith(ending)}
    return bool(ds[name].attrs.get("auxiliary")) and any(other in ds for other in of)


def _reduce(
    values: NDArray[np.float64],
    norms: NDArray[np.float64],
    names: NDArray[np.object_],
    model_status: NDArray[np.str_],
    aggregator: Aggregator,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.object_]]:
    """Values, numbers of layers used and statuses, each (models,), of one measure."""
    numbers, used = _checked(aggregator, values, norms, names)
    # What the aggregator would have used, had every layer a value and a norm, or a norm at least.
    ones = np.ones_like(norms)
    whole, needed = _checked(aggregator, np.ones_like(values), ones, names)
    valued = _checked(aggregator, values, ones, names)[1]
    with_value = (has_layer(names) & ~np.isnan(values)).sum(axis=1)
    measured = is_measured(model_status)
    numbers = np.where(np.isfinite(numbers) & measured, numbers, np.nan)

    status = np.full(len(numbers), "ok", dtype=object)
    for m, number in enumerate(numbers):
        missing = [
            f"{count} of {needed[m]} layers {'has' if count == 1 else 'have'} no {what}"
            for count, what in ((needed[m] - valued[m], "value"), (valued[m] - used[m], "usable weight norm"))
            if count > 0
        ]
        if not measured[m]:
            status[m] = str(model_status[m])
        elif with_value[m] == 0:
            status[m] = "undefined: no layer has a value"
        elif np.isnan(whole[m]):
            status[m] = f"undefined: the model lacks a layer that {aggregator!r} uses"
        elif missing:
            status[m] = f"{'undefined' if np.isnan(number) else 'note'}: {', '.join(missing)}"
        elif np.isnan(number):
            status[m] = "undefined: the layers' values give no finite number"
    return numbers, np.where(measured, used, 0), status


def _checked(
    aggregator: Aggregator, values: NDArray[np.float64], norms: NDArray[np.float64], names: NDArray[np.object_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Values and numbers of layers from read-only arrays; ComponentError unless shapes and types are as expected."""
    arguments = values.view(), norms.view(), names.view()
    for array in arguments:
        array.flags.writeable = False
    try:
        reduced: object = aggregator.reduce(*arguments)
    except GenmeasuresError:
        raise
    except Exception as error:  # a plugin's code can fail in any way
        location = origin(error)
        raise ComponentError(
            f"{aggregator!r}: {type(error).__name__}: {error}{f' ({location})' if location else ''}"
        ) from error
    if not isinstance(reduced, tuple) or len(reduced) != 2:
        what = (
            f"a tuple of {len(reduced)}"
            if isinstance(reduced, tuple)
            else f"an object of type {type(reduced).__name__}"
        )
        raise ComponentError(f"{aggregator!r}: reduce must return (values, numbers of layers used), got {what}")
    numbers, used = np.asarray(reduced[0]), np.asarray(reduced[1])
    models = (len(values),)
    if numbers.shape != models or used.shape != models:
        raise ComponentError(
            f"{aggregator!r}: reduce must return two arrays of shape {models}, a value and a number of layers per "
            f"model, got {numbers.shape} and {used.shape}"
        )
    if used.dtype.kind not in "iu":
        raise ComponentError(f"{aggregator!r}: reduce must return the numbers of layers as integers, got {used.dtype}")
    return numbers.astype(np.float64), used
