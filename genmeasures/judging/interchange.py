"""Files of measures that others made or read: the competition's predictions, and tables."""

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
from genmeasures.results.schema import STATUS, measure_variables

_GAP = "generalization_gap"


def write_predictions(ds: xr.Dataset, measure: str, path: str | os.PathLike[str]) -> None:
    """Write ``<task>.predict`` as the competition's ingestion program does, for its scoring program to read.

    A JSON object with a number for each model, larger for a larger gap: a measure that is expected to fall
    with the gap is written with the other sign.

    Args:
        ds: an aggregated result, (model,).
        measure: name of its variable.
        path: of the file; the scoring program expects the task's name and ``.predict``.

    Raises:
        OptionError: there is no such measure.
        ResultError: it is not aggregated, a model has no finite value (the scorer needs all), or the file
            cannot be written.
    """
    if measure not in measure_variables(ds):
        raise OptionError(f"the result has no measure {measure!r}{nearest(measure, measure_variables(ds))}")
    if ds[measure].dims != ("model",):
        raise ResultError(f"{measure} has one value per layer: aggregate the result first")
    values = ds[measure].values.astype(np.float64)
    names = ds["model"].values.astype(str)
    lost = names[~np.isfinite(values)]
    if len(lost):
        raise ResultError(
            f"{path}: {len(lost)} of {len(names)} models have no value of {measure}: {', '.join(lost[:5])}"
        )
    sign = -1.0 if int(ds[measure].attrs.get("expected_gap", 0)) < 0 else 1.0
    content = {name: sign * float(value) for name, value in zip(names, values, strict=True)}
    try:
        write_atomically(Path(path), (json.dumps(content, indent=4) + "\n").encode())
    except OSError as error:
        raise ResultError(f"{path} cannot be written: {error.strerror or error}") from error


def read_predictions(path: str | os.PathLike[str]) -> pd.Series[float]:
    """float64 (models,) of a ``.predict`` file, by the names of models; NaN for one that ran out of time.

    Raises ResultError naming the file and the model.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ResultError(f"{path}: a model is there twice")
        return dict(pairs)

    try:
        content = json.loads(Path(path).read_bytes(), object_pairs_hook=distinct)
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ResultError(f"{path}: numbers by the names of models are expected")
    for name, value in content.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and not 1e308 < abs(value) < math.inf
        if value != "EXCEEDED" and not number:
            raise ResultError(f"{path}: model {name!r} has {reprlib.repr(value)}, not a number")
    numbers = [math.nan if value == "EXCEEDED" else float(value) for value in content.values()]
    return pd.Series(numbers, index=list(content), dtype="float64", name=Path(path).stem)


def read_table(
    path: str | os.PathLike[str], hparams: Sequence[str], *, gap: str = "gap", test_size: int | None = None
) -> xr.Dataset:
    """A table of measures computed elsewhere, as a result that :func:`genmeasures.judge` takes.

    A CSV file with a column ``model``, columns of hyperparameters, which are read as words, the gap
    (train − test accuracy), and every other column a measure, larger for a larger gap. An empty cell of a
    measure is a model without a value.

    Args:
        path: of the file.
        hparams: names of the columns with hyperparameters.
        gap: name of the column with the generalization gap.
        test_size: number of test samples behind the gaps, for the sign error.

    Returns:
        Measures (model,), each with its status, and the coordinates ``generalization_gap`` and hyperparameters.

    Raises:
        ResultError: the file cannot be read, a column is missing, a model is there twice, or a value is no number.
    """
    try:
        # Words as they stand: names such as 1.10 or None are names.
        table = pd.read_csv(path, dtype=dict.fromkeys(("model", *hparams), str), keep_default_na=False, na_values=[""])
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from error
    except (ValueError, pd.errors.ParserError) as error:
        raise ResultError(f"{path} is not a CSV table: {error}") from error
    columns = [str(name) for name in table.columns]
    for name in ("model", gap, *hparams):
        if name not in columns:
            raise ResultError(f"{path} has no column {name!r}{nearest(name, columns)}")
    if not isinstance(table.index, pd.RangeIndex):
        raise ResultError(f"{path}: its rows have more cells than its header")
    if not len(table):
        raise ResultError(f"{path} has no rows")
    taken = [name for name in columns if (name in (_GAP, "layer") and name != gap) or name.endswith(STATUS)]
    if taken:
        raise ResultError(f"{path}: a column cannot be called {taken[0]!r}, which results use themselves: rename it")
    measures = [name for name in columns if name not in {"model", gap, *hparams}]
    for name in (gap, *measures):
        if table[name].dtype.kind not in "fiu":
            raise ResultError(f"{path}: the column {name!r} holds something that is no number; name it in hparams")
    models = table["model"].fillna("")
    if models.duplicated().any():
        raise ResultError(f"{path}: model {models[models.duplicated()].iloc[0]!r} is there twice")
    coords = {"model": models.to_numpy(dtype=object), _GAP: ("model", table[gap].to_numpy(dtype=np.float64))}
    coords |= {name: ("model", table[name].fillna("").to_numpy(dtype=object)) for name in hparams}
    variables = {}
    for name in measures:
        values = table[name].to_numpy(dtype=np.float64)
        status = np.where(np.isfinite(values), "ok", "undefined: the table has no finite value").astype(object)
        variables[name] = ("model", values, {"long_name": name})
        variables[f"{name}{STATUS}"] = ("model", status, {})
    attrs = {"task": Path(path).stem, "hparams": json.dumps(list(hparams)), "metric": "accuracy"}
    return xr.Dataset(variables, coords, {**attrs, **({} if test_size is None else {"test_size": test_size})})
