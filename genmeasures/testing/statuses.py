"""Checks of statuses."""

from __future__ import annotations

import numpy as np
import xarray as xr

from genmeasures.failures import says_nothing
from genmeasures.interfaces import Variable


def statuses(ds: xr.Dataset, variable: Variable) -> list[str]:
    """All statuses of a variable.

    Args:
        ds: a result.
        variable: a variable of it.

    Example:
        >>> ds = xr.Dataset({"m": ("model", [1.0]), "m_status": ("model", ["ok"])})
        >>> statuses(ds, Variable("m", "a measure"))
        ['ok']
    """
    return [str(text) for text in ds[f"{variable.name}_status"].values.ravel()]


def assert_sound(ds: xr.Dataset, variable: Variable, what: str = "") -> None:
    """No value of a variable has failed or is infinite, and what is missing has a reason.

    Args:
        ds: a result.
        variable: a variable of it.
        what: put before messages.

    Raises:
        AssertionError: a status is not sound, or a value is infinite.

    Example:
        >>> ds = xr.Dataset({"m": ("model", [np.nan]), "m_status": ("model", ["undefined: no data"])})
        >>> assert_sound(ds, Variable("m", "a measure"))
    """
    for status in statuses(ds, variable):
        assert not status.startswith("failed"), f"{what}{variable.name}: {status}"
        assert not says_nothing(status), (
            f"{what}{variable.name} has the status {status!r}: raise Undefined('why there is no value')"
        )
        assert status.startswith(("ok", "note: ", "undefined: ")), f"{what}{variable.name} has the status {status!r}"
    assert not np.isinf(ds[variable.name].values).any(), f"{what}{variable.name} is infinite"
