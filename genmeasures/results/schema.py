"""What the variables of a result dataset are called, and how to tell measures from the rest."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
import yaml
from numpy.typing import NDArray

from genmeasures.errors import ResultError
from genmeasures.interfaces import SPLITS, Split

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

SOURCES = "sources"
"""Attribute of merged results alone: the files that they were made of (JSON)."""

MEASURED = frozenset({f"measured_{split}_{what}" for split in SPLITS for what in ("accuracy", "labels")})
"""Coordinates: the accuracy of each model as counted in its passes, and of how many labels; NaN where none could be."""

RESERVED = frozenset({MODEL_CONTENT, MODEL_KEY, MODEL_NAME, MODEL_TASK, MODEL_TASK_ID})
"""Coordinates that are added to results later on."""


def measured_accuracy(split: Split) -> str:
    """The coordinate with the accuracy that was counted in the passes over a split."""
    return f"measured_{split}_accuracy"


def measured_labels(split: Split) -> str:
    """The coordinate with the number of labels behind it."""
    return f"measured_{split}_labels"


def is_measured(model_status: NDArray[Any]) -> NDArray[np.bool_]:
    """bool (models,): which models did not fail; "ok" and "note: …" are statuses of models that did not."""
    return ~np.char.startswith(model_status.astype(str), "failed")


def with_note(status: str, note: str) -> str:
    """A status with one more note; what failed has none.

    Example:
        >>> with_note("note: one", "two")
        'note: one; two'
    """
    if not note or not (status == "ok" or status.startswith("note: ")):
        return status
    return f"note: {note}" if status == "ok" else f"{status}; {note}"


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


def is_merged(ds: xr.Dataset) -> bool:
    """Whether a result was merged from others."""
    return SOURCES in ds.attrs


def hparams_of(ds: xr.Dataset) -> list[str]:
    """Names of the hyperparameters of a result. Raises ResultError if its attribute ``hparams`` is no JSON list."""
    try:
        names = json.loads(str(ds.attrs.get("hparams", "[]")))
    except ValueError as error:
        raise ResultError(f"its attribute hparams is not JSON: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ResultError("its attribute hparams is no list of names")
    return names


def settings_of(ds: xr.Dataset) -> dict[str, Any]:
    """How a result was measured: measures, extractor, layers and seed, as its attribute ``settings`` says.

    Empty where a result does not say. Raises ResultError if the attribute is no YAML mapping.
    """
    try:
        settings = yaml.safe_load(str(ds.attrs.get("settings", ""))) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ResultError(f"its attribute settings is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ResultError("its attribute settings is no mapping")
    return settings


def check(ds: xr.Dataset) -> None:
    """Raise ResultError unless a dataset has what all who read results rely on."""
    if "model" not in ds.coords or ds["model"].dims != ("model",) or not ds.sizes["model"]:
        raise ResultError("it names no models")
    hparams_of(ds)
    settings_of(ds)


def judged_variables(ds: xr.Dataset) -> list[str]:
    """Names of the measure variables that are judged and plotted: those that are not auxiliary."""
    return [name for name in measure_variables(ds) if not int(ds[name].attrs.get("auxiliary", 0))]
