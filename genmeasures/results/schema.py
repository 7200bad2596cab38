"""What the variables of a result dataset are called, and how to tell measures from the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from genmeasures.errors import ResultError

STATUS = "_status"
"""Suffix of the variable that says why a value is what it is."""

LAYERS_USED = "_layers_used"
"""Suffix of the variable of an aggregated result that says how many layers a value is made of."""

MODEL_CONTENT = "model_content"
"""Coordinate: a hash of what each model is, whatever the settings; "" where it is not known."""

MODEL_KEY = "model_key"
"""Coordinate: a hash of everything that each model's values depend on; "" where it is not known."""

MODEL_NAME = "model_name"
"""Coordinate of merged results: what each model is called in its task."""

MODEL_TASK = "model_task"
"""Coordinate of merged results: the label of each model's task."""

MODEL_TASK_ID = "model_task_id"
"""Coordinate of merged results: the identity of each model's task; "" where it is not known."""

RESERVED = frozenset({MODEL_CONTENT, MODEL_KEY, MODEL_NAME, MODEL_TASK, MODEL_TASK_ID})
"""Coordinates that are added to results later on."""


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


def settings_of(ds: xr.Dataset, path: Path) -> dict[str, Any]:
    """How a result was measured: measures, extractor, layers and seed.

    Args:
        ds: a result; without the attribute ``settings``, as of a table of another program, nothing is known.
        path: its file, for the error.

    Returns:
        Values by name, as they stand in the attribute ``settings``.

    Raises:
        ResultError: the attribute is not what a run writes.
    """
    try:
        settings = yaml.safe_load(str(ds.attrs.get("settings", ""))) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ResultError(f"cannot read the result {path}: its settings are not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ResultError(f"cannot read the result {path}: its settings are {type(settings).__name__}, not a mapping")
    return settings
