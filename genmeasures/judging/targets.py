"""Targets, groups and covariates of a judgment, read from the coordinates of a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from genmeasures.errors import DataError, OptionError, ResultError, nearest
from genmeasures.judging.ranks import Floats
from genmeasures.judging.resampling import dummies
from genmeasures.results.schema import GAP, hparams_of


def read_targets(ds: xr.Dataset, against: str | Sequence[str] | Mapping[str, ArrayLike] | None) -> dict[str, Floats]:
    """Targets of the models by name.

    Args:
        ds: A result.
        against: Option of :func:`genmeasures.judge`.

    Returns:
        float64 of shape (models,) by name.

    Raises:
        ResultError: The result has none of the default targets.
        OptionError: A coordinate is unknown.
        DataError: A target is not numeric, or does not have one value per model.

    Example:
        >>> read_targets(xr.Dataset(coords={"model": ["a", "b"], "epoch": ("model", [1, 2])}), "epoch")
        {'epoch': array([1., 2.])}
    """
    if isinstance(against, Mapping):
        return {name: _numeric(name, np.asarray(values), ds.sizes["model"]) for name, values in against.items()}
    numeric = [str(name) for name, c in ds.coords.items() if c.dims == ("model",) and c.dtype.kind in "fiub"]
    if against is None:
        names = _default_targets(ds)
    else:
        names = [against] if isinstance(against, str) else list(dict.fromkeys(against))
    for name in names:
        if name not in ds.coords:
            raise OptionError(f"judge: the result has no coordinate {name!r} along model{nearest(name, numeric)}")
    return {name: _numeric(name, ds[name].values, ds.sizes["model"]) for name in names}


def _default_targets(ds: xr.Dataset) -> list[str]:
    metric = f"test_{ds.attrs.get('metric', 'accuracy')}"
    names = [name for name in (metric, GAP) if name in ds.coords]
    if not names:
        raise ResultError(
            f"judge: the result has neither {metric} nor {GAP}: measure with labeled test data, so that the accuracy "
            f'is counted, add the coordinate with ds.assign_coords({metric}=("model", [...])), or name another '
            "coordinate with against="
        )
    return names


def _numeric(name: str, values: NDArray[Any], models: int) -> Floats:
    """The values of a target as float64 (models,)."""
    _check_length(name, values, models)
    if values.dtype.kind not in "fiub":
        raise DataError(f"judge: the target {name!r} must be numeric, got {values.dtype}")
    return values.astype(np.float64)


def _check_length(name: str, values: NDArray[Any], models: int) -> None:
    if values.shape != (models,):
        raise DataError(
            f"judge: {name!r} must have one value for each of {models} models, got the shape {values.shape}"
        )


def read_groups(ds: xr.Dataset, groups: str | ArrayLike | None) -> tuple[NDArray[Any] | None, str]:
    """Group labels of the models, and their name.

    Args:
        ds: A result.
        groups: Option of :func:`genmeasures.judge`.

    Returns:
        Labels of shape (models,) and their name; None and "" without groups.

    Raises:
        OptionError: The coordinate is unknown.
        DataError: There is not one label per model, or only one group.

    Example:
        >>> read_groups(xr.Dataset(coords={"model": ["a", "b"]}), [1, 2])
        (array([1, 2]), 'groups')
    """
    if groups is None:
        return None, ""
    name = groups if isinstance(groups, str) else "groups"
    labels = _coordinate(ds, groups) if isinstance(groups, str) else np.asarray(groups)
    _check_length(name, labels, ds.sizes.get("model", 0))
    if len(set(labels.astype(str))) < 2:
        raise DataError(f"judge: groups must have at least 2 distinct labels, but {name} has one label for all models")
    return labels, name


def read_covariates(
    ds: xr.Dataset, given: str | Sequence[str] | Mapping[str, ArrayLike] | None
) -> tuple[Floats | None, tuple[str, ...]]:
    """Covariates of the models, with dummy coding of texts, and the names of the variables.

    Args:
        ds: A result.
        given: Option of :func:`genmeasures.judge`.

    Returns:
        float64 of shape (models, q) and the names; None and () without covariates.

    Raises:
        OptionError: A coordinate is unknown.
        DataError: A covariate does not have one value per model.

    Example:
        >>> read_covariates(xr.Dataset(coords={"model": ["a", "b"]}), {"loss": ["dice", "mse"]})
        (array([[0.],
               [1.]]), ('loss',))
    """
    if given is None:
        return None, ()
    if not isinstance(given, Mapping):
        given = {name: _coordinate(ds, name) for name in ([given] if isinstance(given, str) else given)}
    models = ds.sizes.get("model", 0)
    columns = [np.empty((models, 0))]
    for name, values in given.items():
        array = np.asarray(values)
        _check_length(name, array, models)
        numeric = array.dtype.kind in "fiub"
        columns.append(array.astype(np.float64)[:, None] if numeric else dummies(array))
    return np.concatenate(columns, axis=1), tuple(given)


def read_hparams(ds: xr.Dataset) -> pd.DataFrame | None:
    """Hyperparameters of the models (models, k); None where there are none.

    Example:
        >>> ds = xr.Dataset(coords={"model": ["a", "b"], "lr": ("model", [0.1, 0.2])}, attrs={"hparams": '["lr"]'})
        >>> read_hparams(ds)["lr"].tolist()
        [0.1, 0.2]
    """
    names = [name for name in hparams_of(ds) if name in ds.coords]
    return pd.DataFrame({name: ds[name].values for name in names}) if names else None


def _coordinate(ds: xr.Dataset, name: str) -> NDArray[Any]:
    names = [str(name) for name, c in ds.coords.items() if c.dims == ("model",)]
    if name not in names:
        raise OptionError(f"judge: the result has no coordinate {name!r} along model{nearest(name, names)}")
    return np.asarray(ds[name].values)
