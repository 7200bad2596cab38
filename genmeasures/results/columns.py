"""Text and number columns of result datasets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray


def texts(values: Sequence[Any]) -> NDArray[np.object_]:
    """Strings, nested or not, as an array of dtype object.

    Example:
        >>> texts(["ok", "failed: out of memory"])
        array(['ok', 'failed: out of memory'], dtype=object)
    """
    return np.array(values, dtype=object)


def column_of(value: object) -> NDArray[Any] | None:
    """A hyperparameter or metric of one model as an array of shape (1,).

    Args:
        value: A number, string or bool. Integers that int64 cannot represent become texts.

    Returns:
        A text, bool, int64 or float64 array; None for any other type.

    Example:
        >>> column_of(0.1), column_of("sgd"), column_of([1, 2])
        (array([0.1]), array(['sgd'], dtype=object), None)
    """
    if isinstance(value, bool | np.bool_):
        return np.array([bool(value)])
    if isinstance(value, int | np.integer):
        number = int(value)
        return np.array([number]) if -(2**63) <= number < 2**63 else texts([str(number)])
    if isinstance(value, float | np.floating):
        return np.array([float(value)])
    return texts([str(value)]) if isinstance(value, str) else None


def is_text(array: xr.DataArray | xr.Variable) -> bool:
    """Whether an array holds texts.

    Example:
        >>> is_text(xr.Variable("model", ["sgd"])), is_text(xr.Variable("model", [0.1]))
        (True, False)
    """
    return array.dtype.kind in "OUST"


def number_as_text(value: Any) -> str:
    """A NumPy number as a text: "" for NaN, and integers without a decimal point.

    Integers become floats beside a model that lacks them, so that 64.0 stands for 64.

    Example:
        >>> number_as_text(np.float64(64.0)), number_as_text(np.float64(0.5)), number_as_text(np.float64("nan"))
        ('64', '0.5', '')
    """
    number = value.item()
    if isinstance(number, float):
        return "" if math.isnan(number) else str(int(number) if number.is_integer() else number)
    return str(number)
