"""Combination of the datasets of several models."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from genmeasures.errors import ResultError
from genmeasures.results.columns import is_text, number_as_text, texts

_EXACT = 2**53
"""Largest magnitude up to which float64 represents every integer."""


def combine(datasets: Sequence[xr.Dataset], attrs: Mapping[str, Any]) -> xr.Dataset:
    """Combine the datasets of several models into one, in the given order.

    Args:
        datasets: Results with the dimensions (model, layer) of one or more models each; names are unique.
        attrs: Attributes of the combined dataset.

    Returns:
        All variables and coordinates of any of the datasets. Where a model lacks one it is NaN, or "" for texts;
        integers and booleans become float64 then. A hyperparameter that is a text for one model is a text for all,
        and so is one with integers that would become float64 and exceed its precision.

    Raises:
        ResultError: There is nothing to combine, or two models have the same name.

    Example:
        >>> first = xr.Dataset(coords={"model": ["a"], "layer": [0, 1], "lr": ("model", [0.1])})
        >>> second = xr.Dataset(coords={"model": ["b"], "layer": [0]})
        >>> combine([first, second], {}).lr.values
        array([0.1, nan])
    """
    if not datasets:
        raise ResultError("there is no result to combine")
    counts = collections.Counter(str(name) for ds in datasets for name in ds["model"].values)
    duplicates = sorted(name for name, count in counts.items() if count > 1)
    if duplicates:
        raise ResultError(f"models with duplicate names: {', '.join(duplicates)}")
    datasets = _same_text_coords(datasets)
    lengths = {
        dim: max(ds.sizes.get(dim, 0) for ds in datasets)
        for dim in sorted({str(dim) for ds in datasets for dim in ds.dims} - {"model"})
    }
    templates = {name: ds[name] for ds in reversed(datasets) for name in ds.variables}
    combined = xr.concat(
        [_padded(ds, lengths, templates) for ds in datasets],
        "model",
        data_vars="all",
        coords="different",
        compat="equals",
        join="exact",
        combine_attrs="override",
    )
    combined.attrs = dict(attrs)
    return combined


def _padded(ds: xr.Dataset, lengths: Mapping[str, int], templates: Mapping[Hashable, xr.DataArray]) -> xr.Dataset:
    """A dataset with dimensions of these lengths, and with all variables that the others have."""
    fills = {name: _fill(ds[name]) for name in ds.variables if name not in lengths}
    ds = ds.reindex({dim: np.arange(n) for dim, n in lengths.items() if dim in ds.dims}, fill_value=fills)
    missing = {name: template for name, template in templates.items() if name not in ds.variables}
    for name, template in missing.items():
        if name in lengths:
            ds = ds.assign_coords({name: (name, np.arange(lengths[str(name)]))})
            continue
        shape = tuple(lengths.get(str(dim), ds.sizes["model"]) for dim in template.dims)
        empty = np.full(shape, _fill(template), dtype=object if template.dtype == object else np.float64)
        array = xr.DataArray(empty, dims=template.dims, attrs=template.attrs)
        ds = ds.assign_coords({name: array}) if name in template.coords else ds.assign({name: array})
    return ds


def _fill(array: xr.DataArray) -> Any:
    return "" if is_text(array) else np.nan


def _same_text_coords(datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """The datasets with each coordinate either a text in all of them, or in none."""
    names = dict.fromkeys(name for ds in datasets for name in ds.coords)
    arrays = {name: [ds.variables[name] for ds in datasets if name in ds.coords] for name in names}
    text_names = [name for name in names if _must_be_text(arrays[name], len(datasets))]
    converted = []
    for ds in datasets:
        numbers = {name: ds[name] for name in text_names if name in ds.coords and not is_text(ds.variables[name])}
        converted.append(
            ds.assign_coords(
                {
                    name: (array.dims, texts([number_as_text(value) for value in array.values]), array.attrs)
                    for name, array in numbers.items()
                }
            )
        )
    return converted


def _must_be_text(arrays: Sequence[xr.Variable], datasets: int) -> bool:
    """Whether a coordinate, which these arrays of so many datasets hold, must be a text in all of them."""
    if any(map(is_text, arrays)):
        return True
    integers = [array.values for array in arrays if array.dtype.kind == "i"]
    if len(integers) == datasets:
        return False
    # Beside a float, or a model that lacks it, integers become floats.
    return any(values.size and (values.max() > _EXACT or values.min() < -_EXACT) for values in integers)
