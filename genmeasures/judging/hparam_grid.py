"""Grids of hyperparameters as integer codes.

A grid is a DataFrame with one row per model, matched by position whatever its index, and one column per
hyperparameter. Values may have any hashable type, a missing value is a value of its own, and a constant
hyperparameter is allowed. Every function raises :class:`~genmeasures.errors.DataError` where a number is not finite,
lengths differ, two columns share a name, values cannot be compared (such as lists), or two models share all
hyperparameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from genmeasures.errors import DataError
from genmeasures.judging.ranks import Floats

_SHOWN = 5
"""Number of rows or indices that an error message lists."""


def grid_codes(hparams: pd.DataFrame) -> NDArray[np.int64]:
    """Encode the values of each hyperparameter of a complete grid.

    Args:
        hparams: (n, k) values of k ≥ 2 hyperparameters.

    Returns:
        int64 of shape (n, k): 0, 1, … in the order in which the values of a column first appear.

    Raises:
        DataError: There are fewer than two hyperparameters, a combination is a duplicate (its rows are named) or
            is missing (one is named), or the DataFrame cannot be used.

    Example:
        >>> grid_codes(pd.DataFrame({"lr": [0.1, 0.1, 0.2, 0.2], "norm": ["batch", "none"] * 2})).tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    _check_frame(hparams)
    if hparams.shape[1] < 2:
        raise DataError(f"hparams must have at least 2 columns, got {hparams.shape[1]}: add hyperparameters")
    codes, values = _encode(hparams)
    keys = set(_distinct_keys(hparams, codes, values))
    combinations = math.prod(map(len, values))
    if len(keys) < combinations:
        raise DataError(
            f"the grid of hyperparameters is not complete: {combinations - len(keys)} of {combinations} combinations "
            f"have no model, for example {_combination(hparams, _missing(keys, values))}"
        )
    return codes


def complete_grid(
    measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Check a measure (n,), a gap (n,) and a complete grid (n, k); return them as float64 and codes.

    Args:
        measure: float64 of shape (n,).
        gap: float64 of shape (n,).
        hparams: (n, k) values of k ≥ 2 hyperparameters.

    Example:
        >>> hparams = pd.DataFrame({"width": [8, 8, 16, 16], "depth": [1, 2, 1, 2]})
        >>> complete_grid([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], hparams)[2].tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    values, gaps = _finite("measure", measure), _finite("gap", gap)
    codes = grid_codes(hparams)
    _check_lengths(values, gaps, codes)
    return values, gaps, codes


def any_grid(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Check a measure (n,), a gap (n,) and a grid (n, k), complete or not; return them as float64 and codes.

    Args:
        measure: float64 of shape (n,).
        gap: float64 of shape (n,).
        hparams: (n, k) values of k ≥ 1 hyperparameters.

    Example:
        >>> any_grid([3, 1], [0.1, 0.2], pd.DataFrame({"width": [8, 16]}))[2].tolist()
        [[0], [1]]
    """
    values, gaps = _finite("measure", measure), _finite("gap", gap)
    _check_frame(hparams)
    if hparams.shape[1] == 0:
        raise DataError("hparams must have at least 1 column, got 0: add hyperparameters")
    codes, levels = _encode(hparams)
    _check_lengths(values, gaps, codes)
    _distinct_keys(hparams, codes, levels)
    return values, gaps, codes


def distinct_codes(hparams: pd.DataFrame) -> NDArray[np.int64]:
    """Codes int64 (n, k) of a grid, complete or not, in which no two models share all hyperparameters.

    Example:
        >>> distinct_codes(pd.DataFrame({"width": [8, 16, 8], "norm": ["batch", None, None]})).tolist()
        [[0, 0], [1, 1], [0, 1]]
    """
    codes, values = _encode(hparams)
    _distinct_keys(hparams, codes, values)
    return codes


def as_numbers(name: str, values: ArrayLike | pd.DataFrame) -> Floats:
    """Values as float64, or a DataError that names them.

    Args:
        name: what the values are, for the message.
        values: numbers of any shape.

    Example:
        >>> as_numbers("gap", ["high"])
        Traceback (most recent call last):
            ...
        genmeasures.errors.DataError: gap must be numeric: could not convert string to float: 'high'
    """
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must be numeric: {error}") from error


def _finite(name: str, values: ArrayLike) -> Floats:
    """Finite float64 (n,)."""
    x = as_numbers(name, values)
    if x.ndim != 1:
        raise DataError(f"{name} must have one value per model, got the shape {x.shape}")
    invalid = np.flatnonzero(~np.isfinite(x))
    if len(invalid):
        raise DataError(f"{name} is not finite for {len(invalid)} of {len(x)} models, at index {_listed(invalid)}")
    return x


def _check_lengths(measure: Floats, gap: Floats, codes: NDArray[np.int64]) -> None:
    if not len(measure) == len(gap) == len(codes):
        raise DataError(
            "measure, gap and hparams must have one entry per model, got "
            f"{len(measure)} values, {len(gap)} values and {len(codes)} rows"
        )


def _check_frame(hparams: object) -> None:
    if not isinstance(hparams, pd.DataFrame):
        raise DataError(f"hparams must be a pandas DataFrame with one row per model, got {type(hparams).__name__}")


def _encode(hparams: pd.DataFrame) -> tuple[NDArray[np.int64], list[list[object]]]:
    """Codes int64 (n, k), and for each column the values that they stand for."""
    _check_frame(hparams)
    if not hparams.columns.is_unique:
        duplicate = hparams.columns[hparams.columns.duplicated()][0]
        raise DataError(f"hparams has a duplicate column {duplicate!r}")
    if len(hparams) == 0:
        raise DataError("hparams must have one row per model, got no rows")
    codes = np.empty(hparams.shape, dtype=np.int64)
    values: list[list[object]] = []
    for index, (name, column) in enumerate(hparams.items()):
        try:
            codes[:, index], levels = pd.factorize(column, use_na_sentinel=False)
        except TypeError as error:
            raise DataError(f"hyperparameter {name!r} has values that cannot be compared: {error}") from error
        values.append(levels.tolist())
    return codes, values


def _distinct_keys(hparams: pd.DataFrame, codes: NDArray[np.int64], values: list[list[object]]) -> list[int]:
    """One integer per model for its combination of values, or an error where two models share one."""
    keys = [0] * len(codes)
    for column in codes.T:
        # Python integers: a wide table has more combinations than fit into 64 bits.
        size = int(column.max()) + 1
        keys = [key * size + int(code) for key, code in zip(keys, column, strict=True)]
    if len(set(keys)) < len(keys):
        _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        rows = np.flatnonzero(inverse.reshape(-1) == np.flatnonzero(counts > 1)[0])
        combination = _combination(hparams, [v[code] for v, code in zip(values, codes[rows[0]], strict=True)])
        raise DataError(
            f"models share all hyperparameters: rows {_listed(rows)} have {combination} ({int((counts > 1).sum())} "
            "duplicate combinations in total): add the hyperparameter in which they differ, such as the seed"
        )
    return keys


def _missing(keys: set[int], values: list[list[object]]) -> list[object]:
    """Values of the first combination without a model."""
    key = next(i for i in itertools.count() if i not in keys)
    digits: list[int] = []
    for size in reversed([len(v) for v in values]):
        key, digit = divmod(key, size)
        digits.insert(0, digit)
    return [v[digit] for v, digit in zip(values, digits, strict=True)]


def _combination(hparams: pd.DataFrame, values: Sequence[object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in zip(hparams.columns, values, strict=True))


def _listed(indices: NDArray[np.int64]) -> str:
    return ", ".join(str(i) for i in indices[:_SHOWN]) + (", …" if len(indices) > _SHOWN else "")
