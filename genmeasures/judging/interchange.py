"""Files of measures from other programs: predictions of the PGDL competition, and tables."""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from genmeasures.errors import OptionError, ResultError, nearest
from genmeasures.files import write_atomically
from genmeasures.results.schema import GAP, STATUS, measure_variables


def write_predictions(ds: xr.Dataset, measure: str, path: str | os.PathLike[str]) -> None:
    """Write a measure as a ``<task>.predict`` file that the competition's scoring program reads.

    The file is a JSON object with one number per model, larger for a larger gap: a measure that is expected to fall
    with the gap is negated.

    Args:
        ds: An aggregated result, with the dimension (model,).
        measure: Name of the measure variable.
        path: Path of the file; the scoring program expects ``<task>.predict``.

    Raises:
        OptionError: There is no such measure.
        ResultError: The result is not aggregated, a model has no finite value (the scorer needs all), or the file
            cannot be written.

    Example:
        >>> import tempfile
        >>> ds = xr.Dataset({"m": ("model", [0.5, 0.25]), "m_status": ("model", ["ok"] * 2)}, {"model": ["a", "b"]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_predictions(ds, "m", f"{folder}/task.predict")
        ...     read_predictions(f"{folder}/task.predict").to_dict()
        {'a': 0.5, 'b': 0.25}
    """
    if measure not in measure_variables(ds):
        raise OptionError(f"the result has no measure {measure!r}{nearest(measure, measure_variables(ds))}")
    if ds[measure].dims != ("model",):
        raise ResultError(f"{measure} must have one value per model, got one per layer: aggregate the result first")
    values = ds[measure].values.astype(np.float64)
    names = ds["model"].values.astype(str)
    missing = names[~np.isfinite(values)]
    if len(missing):
        raise ResultError(
            f"{path}: {len(missing)} of {len(names)} models have no value of {measure}: {', '.join(missing[:5])}"
        )
    sign = -1.0 if int(ds[measure].attrs.get("expected_gap", 0)) < 0 else 1.0
    content = {name: sign * float(value) for name, value in zip(names, values, strict=True)}
    try:
        write_atomically(Path(path), (json.dumps(content, indent=4) + "\n").encode())
    except OSError as error:
        raise ResultError(f"cannot write {path}: {error.strerror or error}") from error


def read_predictions(path: str | os.PathLike[str]) -> pd.Series[float]:
    """Read a ``.predict`` file of the competition.

    Args:
        path: Path of the file.

    Returns:
        float64 (models,), indexed by the names of the models; NaN for a model that exceeded the time limit.

    Raises:
        ResultError: The file, which is named, cannot be read, has duplicate models or a value that is not a number.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "task.predict")
        ...     _ = path.write_text('{"model_1": 0.5, "model_2": "EXCEEDED"}')
        ...     read_predictions(path).tolist()
        [0.5, nan]
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        duplicates = [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []
        if duplicates:
            raise ResultError(f"{path}: duplicate model {duplicates[0]!r}")
        return dict(pairs)

    try:
        content = json.loads(Path(path).read_bytes(), object_pairs_hook=distinct)
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ResultError(f"{path}: expected a JSON object with one number per model, got {reprlib.repr(content)}")
    for name, value in content.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and not 1e308 < abs(value) < math.inf
        if value != "EXCEEDED" and not number:
            raise ResultError(f"{path}: model {name!r} must have a number, got {reprlib.repr(value)}")
    numbers = [math.nan if value == "EXCEEDED" else float(value) for value in content.values()]
    return pd.Series(numbers, index=list(content), dtype="float64", name=Path(path).stem)


def read_table(
    path: str | os.PathLike[str], hparams: Sequence[str], *, gap: str = "gap", test_size: int | None = None
) -> xr.Dataset:
    """Read a table of measures computed elsewhere, as a result for :func:`genmeasures.judge`.

    The table is a CSV file with a column ``model``, columns of hyperparameters, which are read as texts, the gap
    (train − test accuracy), and every other column a measure, larger for a larger gap. An empty cell of a measure is
    a model without a value.

    Args:
        path: Path of the file.
        hparams: Names of the columns with hyperparameters.
        gap: Name of the column with the generalization gap.
        test_size: Number of test samples behind the gaps, for the sign error.

    Returns:
        Measures (model,), each with its status, and the coordinates ``generalization_gap`` and hyperparameters.

    Raises:
        ResultError: The file cannot be read, a column is missing, a model is a duplicate, or a value is not a number.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "mine.csv")
        ...     _ = path.write_text("model,lr,gap,sharpness\\na,0.1,0.2,3.5\\nb,0.2,0.3,")
        ...     read_table(path, ["lr"])["sharpness"].values
        array([3.5, nan])
    """
    table = _read_csv(path, ["model", gap, *hparams], texts=["model", *hparams])
    measures = _measure_columns(table, path, gap, hparams)
    models = table["model"].fillna("")
    if models.duplicated().any():
        raise ResultError(f"{path}: duplicate model {models[models.duplicated()].iloc[0]!r}")
    coords = {"model": models.to_numpy(dtype=object), GAP: ("model", table[gap].to_numpy(dtype=np.float64))}
    coords |= {name: ("model", table[name].fillna("").to_numpy(dtype=object)) for name in hparams}
    variables = {}
    for name in measures:
        values = table[name].to_numpy(dtype=np.float64)
        status = np.where(np.isfinite(values), "ok", "undefined: the table has no finite value").astype(object)
        variables[name] = ("model", values, {"long_name": name})
        variables[f"{name}{STATUS}"] = ("model", status, {})
    attrs = {"task": Path(path).stem, "hparams": json.dumps(list(hparams)), "metric": "accuracy"}
    return xr.Dataset(variables, coords, {**attrs, **({} if test_size is None else {"test_size": test_size})})


def _read_csv(path: str | os.PathLike[str], required: Sequence[str], texts: Sequence[str]) -> pd.DataFrame:
    """The table of a CSV file that has the required columns."""
    try:
        # Texts are kept as they are: values such as 1.10 or None are names.
        table = pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=[""])
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, pd.errors.ParserError) as error:
        raise ResultError(f"{path} is not a CSV table: {error}") from error
    columns = [str(name) for name in table.columns]
    for name in required:
        if name not in columns:
            raise ResultError(f"{path} has no column {name!r}{nearest(name, columns)}")
    if not isinstance(table.index, pd.RangeIndex):
        raise ResultError(f"{path}: rows have more cells than the header")
    if not len(table):
        raise ResultError(f"{path} has no rows")
    return table


def _measure_columns(table: pd.DataFrame, path: str | os.PathLike[str], gap: str, hparams: Sequence[str]) -> list[str]:
    """Names of the columns that are measures, once they and the gap are found to be numeric."""
    columns = [str(name) for name in table.columns]
    reserved = [name for name in columns if (name in (GAP, "layer") and name != gap) or name.endswith(STATUS)]
    if reserved:
        raise ResultError(f"{path}: the column name {reserved[0]!r} is reserved for results: rename the column")
    measures = [name for name in columns if name not in {"model", gap, *hparams}]
    for name in (gap, *measures):
        if table[name].dtype.kind not in "fiu":
            raise ResultError(
                f"{path}: the column {name!r} must be numeric; if it is a hyperparameter, add it to hparams"
            )
    return measures
