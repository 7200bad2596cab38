"""Accessor of xarray datasets: ``print(ds.genmeasures)`` summarizes a result."""

from __future__ import annotations

import numpy as np
import xarray as xr

from genmeasures.errors import shown
from genmeasures.results.schema import STATUS, is_measured, measure_variables
from genmeasures.results.summary import model_notes, models_that_failed, skipped


@xr.register_dataset_accessor("genmeasures")  # type: ignore[no-untyped-call]
class Summary:
    """Summary of a result: ``print(ds.genmeasures)``.

    The summary counts the models that were measured and that failed, with the reasons; the layers, and those that
    were skipped, with the reasons; and for each measure its values, and those that are undefined or failed.

    Args:
        ds: A result, aggregated or not.

    Example:
        >>> import genmeasures
        >>> from torch import nn, ones
        >>> data = (ones(9, 2),)
        >>> print(genmeasures.measure([nn.Linear(2, 2)], data, data, measures=["roughness"]).genmeasures)
        1 model: 1 ok
        1 layer, in every model
        roughness: 0 values, 1 undefined
        roughness_projected: 0 values, 1 undefined
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def __repr__(self) -> str:
        ds = self._ds
        if "model_status" not in ds.coords:
            return "not a result of genmeasures: there is no coordinate model_status"
        ok = int(is_measured(ds["model_status"].values).sum())
        lines = [f"{_count(ds.sizes['model'], 'model')}: {ok} ok", *models_that_failed(ds), *model_notes(ds)]
        if "layer_name" in ds.coords:
            layers = (ds["layer_name"].values.astype(str) != "").sum(axis=ds["layer_name"].get_axis_num("layer"))
            measured = layers[layers > 0]
            if len(measured) and measured.min() == measured.max():
                lines.append(f"{_count(int(measured[0]), 'layer')}, in every model")
            elif len(measured):
                lines.append(f"{measured.min()} to {measured.max()} layers per model")
        if "skipped_layers" in ds.coords:
            lines += skipped(ds)
        for name in measure_variables(ds):
            status = ds[name + STATUS].values.astype(str)
            values = int(np.isfinite(ds[name].values).sum())
            counts = [f"{values} values"]
            for prefix, label in (("undefined", "undefined"), ("failed", "failed"), ("note: ", "with a note")):
                number = int(np.char.startswith(status, prefix).sum())
                counts += [f"{number} {label}"] if number else []
            lines.append(f"{name}: {', '.join(counts)}{' (auxiliary)' if ds[name].attrs.get('auxiliary') else ''}")
        return "\n".join(map(shown, lines))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
