"""What the variables of a result dataset are called, and how to tell measures from the rest."""

from __future__ import annotations

import numpy as np
import xarray as xr

STATUS = "_status"
"""Suffix of the variable that says why a value is what it is."""


def measure_variables(ds: xr.Dataset) -> list[str]:
    """Names of the measure variables of a result, in the order of the dataset.

    A measure variable has a floating dtype, the dimensions (model, layer) or (model,), and a
    partner ``<name>_status`` beside it.
    """
    return [
        str(name)
        for name, variable in ds.data_vars.items()
        if np.issubdtype(variable.dtype, np.floating)
        and set(variable.dims) in ({"model"}, {"model", "layer"})
        and f"{name}{STATUS}" in ds.data_vars
    ]


def judged_variables(ds: xr.Dataset) -> list[str]:
    """Names of the measure variables that are judged and plotted: those that are not auxiliary."""
    return [name for name in measure_variables(ds) if not int(ds[name].attrs.get("auxiliary", 0))]
