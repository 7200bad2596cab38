"""Names of the variables, coordinates and attributes of result datasets."""

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
"""Suffix of the variable with the status of each value: "ok", "note: …", "undefined: …" or "failed: …"."""

LAYERS_USED = "_layers_used"
"""Suffix of the variable, in aggregated results, with the number of layers behind each value."""

GAP = "generalization_gap"
"""Coordinate: train − test metric of each model."""

MODEL_CONTENT = "model_content"
"""Coordinate: hash of each model, independent of the settings; "" where unknown."""

MODEL_KEY = "model_key"
"""Coordinate: hash of everything that the values of each model depend on; "" where unknown."""

MODEL_NAME = "model_name"
"""Coordinate of merged results: name of each model in its task."""

MODEL_TASK = "model_task"
"""Coordinate of merged results: label of the task of each model."""

MODEL_TASK_ID = "model_task_id"
"""Coordinate of merged results: identity of the task of each model; "" where unknown."""

SOURCES = "sources"
"""Attribute that only merged results have: the merged files (JSON)."""

MEASURED = frozenset({f"measured_{split}_{what}" for split in SPLITS for what in ("accuracy", "labels")})
"""Coordinates: accuracy of each model counted in its passes, and the number of labels behind it; NaN where unknown.
Those of validation data are only in results of runs that have such data."""

VECTORS = frozenset({f"vectors_{split}" for split in SPLITS})
"""Coordinates: number of vectors that were sampled from each layer; those of validation data as of MEASURED."""

RESERVED = frozenset({MODEL_CONTENT, MODEL_KEY, MODEL_NAME, MODEL_TASK, MODEL_TASK_ID})
"""Coordinates that are added to results after measuring."""


def measured_accuracy(split: Split) -> str:
    """Name of the coordinate with the accuracy counted in the passes over a split.

    Example:
        >>> measured_accuracy("test")
        'measured_test_accuracy'
    """
    return f"measured_{split}_accuracy"


def measured_labels(split: Split) -> str:
    """Name of the coordinate with the number of labels behind :func:`measured_accuracy`.

    Example:
        >>> measured_labels("test")
        'measured_test_labels'
    """
    return f"measured_{split}_labels"


def is_measured(model_status: NDArray[Any]) -> NDArray[np.bool_]:
    """Which models were measured: those whose status is "ok" or "note: …".

    Args:
        model_status: Status of each model, of shape (models,).

    Returns:
        bool of shape (models,).

    Example:
        >>> is_measured(np.array(["ok", "failed: out of memory"]))
        array([ True, False])
    """
    return ~np.char.startswith(model_status.astype(str), "failed")


def with_note(status: str, note: str) -> str:
    """Add a note to a status.

    Args:
        status: A status; notes are added only to "ok" and "note: …".
        note: The note; "" adds none.

    Returns:
        The status with the note.

    Example:
        >>> with_note("note: one", "two")
        'note: one; two'
    """
    if not note or not (status == "ok" or status.startswith("note: ")):
        return status
    return f"note: {note}" if status == "ok" else f"{status}; {note}"


def measure_variables(ds: xr.Dataset) -> list[str]:
    """Names of the measure variables of a result, in the order of the dataset.

    A measure variable has a floating-point dtype, the dimensions (model, layer) or (model,), and a status variable
    ``<name>_status``.

    Args:
        ds: A result, aggregated or not.

    Returns:
        The names.

    Example:
        >>> measure_variables(xr.Dataset({"m": ("model", [0.5]), "m_status": ("model", ["ok"])}))
        ['m']
    """
    return [
        str(name)
        for name, variable in ds.data_vars.items()
        if np.issubdtype(variable.dtype, np.floating)
        and set(variable.dims) in ({"model"}, {"model", "layer"})
        and f"{name}{STATUS}" in ds.data_vars
    ]


def is_merged(ds: xr.Dataset) -> bool:
    """Whether a result was merged from several files.

    Example:
        >>> is_merged(xr.Dataset(attrs={"sources": '["a.nc", "b.nc"]'}))
        True
    """
    return SOURCES in ds.attrs


def hparams_of(ds: xr.Dataset) -> list[str]:
    """Names of the hyperparameters of a result.

    Args:
        ds: A result.

    Returns:
        The names.

    Raises:
        ResultError: The attribute ``hparams`` is not a JSON list of names.

    Example:
        >>> hparams_of(xr.Dataset(attrs={"hparams": '["lr", "width"]'}))
        ['lr', 'width']
    """
    try:
        names = json.loads(str(ds.attrs.get("hparams", "[]")))
    except ValueError as error:
        raise ResultError(f"the attribute hparams must be a JSON list of names: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ResultError(f"the attribute hparams must be a JSON list of names, got {names!r}")
    return names


def settings_of(ds: xr.Dataset) -> dict[str, Any]:
    """Settings of the run behind a result: measures, extractor, layers and seed.

    Args:
        ds: A result.

    Returns:
        The attribute ``settings`` as a dict, empty without the attribute.

    Raises:
        ResultError: The attribute is not a YAML mapping.

    Example:
        >>> settings_of(xr.Dataset(attrs={"settings": "seed: 3"}))
        {'seed': 3}
    """
    try:
        settings = yaml.safe_load(str(ds.attrs.get("settings", ""))) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ResultError(f"the attribute settings must be a YAML mapping: {error}") from error
    if not isinstance(settings, dict):
        raise ResultError(f"the attribute settings must be a YAML mapping, got {settings!r}")
    return settings


def check(ds: xr.Dataset) -> None:
    """Check that a dataset has the coordinates and attributes that every result has.

    Args:
        ds: A dataset.

    Raises:
        ResultError: The dataset has no models, or an attribute is not as expected.

    Example:
        >>> check(xr.Dataset(coords={"model": ["net"]}))
    """
    if "model" not in ds.coords or ds["model"].dims != ("model",) or not ds.sizes["model"]:
        raise ResultError("it must have a coordinate model with at least one name")
    hparams_of(ds)
    settings_of(ds)


def judged_variables(ds: xr.Dataset) -> list[str]:
    """Names of the measure variables that are judged and plotted: those that are not auxiliary.

    Args:
        ds: A result, aggregated or not.

    Returns:
        The names.

    Example:
        >>> status = ("model", ["ok"])
        >>> ds = xr.Dataset({"m": ("model", [0.5]), "m_status": status, "n": ("model", [2.0]), "n_status": status})
        >>> ds["n"].attrs["auxiliary"] = 1
        >>> judged_variables(ds)
        ['m']
    """
    return [name for name in measure_variables(ds) if not int(ds[name].attrs.get("auxiliary", 0))]
