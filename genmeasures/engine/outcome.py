"""Values of measures, checked, with their statuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmeasures.errors import ComponentError, Undefined, nearest
from genmeasures.failures import status_of
from genmeasures.interfaces import Value, Variable


@dataclass(frozen=True)
class Outcome:
    """A value with its status.

    The status is "ok" or "note: …" (valid, with a remark); a NaN has "undefined: …" or "failed: …".
    """

    value: float | NDArray[np.float64]
    """A number, or a float64 array with one axis per dimension that the variable has besides ``layer``."""
    status: str


def by_variable(method: str, values: object, variables: Sequence[Variable]) -> Mapping[str, Any]:
    """What a method of a measure returned, by variable name; a single value belongs to the only variable.

    Args:
        method: "compute" or "measure", for messages.
        values: what the method returned.
        variables: those of the measure.

    Returns:
        A value for each variable.

    Raises:
        ComponentError: a name is missing, or is not that of a variable.

    Example:
        >>> by_variable("compute", {"men": 1.0}, [Variable("mean", "mean of the features")])
        Traceback (most recent call last):
            ...
        genmeasures.errors.ComponentError: compute returned a value for 'men', which is not a variable of the measure \
(did you mean 'mean'? known: mean)
    """
    names = [variable.name for variable in variables]
    if not isinstance(values, Mapping):
        if len(names) > 1 or method == "measure":
            example = ", ".join(f"{name!r}: …" for name in names)
            raise ComponentError(f"{method} returned {_described(values)}, expected a dict of values: {{{example}}}")
        return {names[0]: values}
    for name in values:
        if name not in names:
            raise ComponentError(
                f"{method} returned a value for {name!r}, which is not a variable of the measure"
                f"{nearest(str(name), names)}"
            )
    missing = [name for name in names if name not in values]
    if missing:
        raise ComponentError(
            f"{method} returned no value for {', '.join(missing)}; return Undefined('why') where there is none"
        )
    return values


def _described(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"


def outcome_of(value: float | Value | Undefined | NDArray[np.float64], dims: Sequence[str] = ()) -> Outcome:
    """The outcome of a value as a measure returned it; a number that is not finite is undefined.

    Args:
        value: what the measure returned for a variable.
        dims: the dimensions that the variable has besides ``layer``.

    Raises:
        ComponentError: the value is neither a number nor, with ``dims``, an array with as many axes.

    Example:
        >>> outcome_of(Value(0.5, "few vectors"))
        Outcome(value=0.5, status='note: few vectors')
        >>> outcome_of(np.ones((2, 3)), ("row", "column")).status
        'ok'
    """
    if isinstance(value, Undefined):
        return Outcome(float("nan"), status_of(value, "a measure"))
    axes = value.ndim if isinstance(value, np.ndarray) else 0
    if axes != len(dims) or (dims and not isinstance(value, np.ndarray)):
        what = f"a NumPy array of shape {np.shape(value)}" if isinstance(value, np.ndarray) else _described(value)
        expected = f"a NumPy array with the dimensions ({', '.join(dims)})" if dims else "a number"
        raise ComponentError(f"the measure returned {what}, expected {expected}")
    if isinstance(value, np.ndarray) and dims:
        return _array(value)
    note = value.note if isinstance(value, Value) else ""
    bare = value.value if isinstance(value, Value) else value
    try:
        number = float(bare)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ComponentError(f"the measure returned {_described(bare)}, expected a number ({error})") from error
    if not np.isfinite(number):
        return Outcome(float("nan"), f"undefined: the measure returned {number}")
    return Outcome(number, f"note: {note}" if note else "ok")


def _array(values: NDArray[np.float64]) -> Outcome:
    """The outcome of an array, in which numbers that are not finite become NaN."""
    finite = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    missing = int(np.isnan(finite).sum())
    if missing == finite.size:
        return Outcome(finite, "undefined: the measure returned no finite value")
    return Outcome(finite, f"note: {missing} of {finite.size} values are not finite" if missing else "ok")


def noted(outcome: Outcome, note: str) -> Outcome:
    """The outcome with one more note in its status; a missing value gets none.

    Args:
        outcome: the outcome.
        note: the note, "" for none.

    Example:
        >>> noted(noted(Outcome(1.0, "ok"), "one"), "two").status
        'note: one; two'
    """
    if not note or not (outcome.status == "ok" or outcome.status.startswith("note: ")):
        return outcome
    return Outcome(outcome.value, f"note: {note}" if outcome.status == "ok" else f"{outcome.status}; {note}")
