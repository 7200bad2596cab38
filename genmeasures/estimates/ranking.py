"""Ranking of models by measures or estimates, with the probability that each is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from genmeasures.errors import DataError, OptionError, nearest
from genmeasures.estimates.resampling import Floats
from genmeasures.interfaces import is_count
from genmeasures.results.schema import STATUS, judged_variables, measure_variables

MEAN_RANK = "mean_rank"
"""Name of the ranking by the mean of the ranks of several others."""

_KNOWN = ("target_accuracy", "target_dice", "test_accuracy")
_ERRORS = ("_error", "_se")
"""Suffixes of variables with standard errors."""
_DRAWS = 1000
_NORMAL = 1.959963984540054
"""Normal quantile of 95 % intervals."""


@dataclass(frozen=True)
class _Criterion:
    """What models are ranked by; larger is better."""

    name: str
    sign: int
    values: Floats
    """(M,)."""
    draws: Floats | None
    """(M, R): resamples, or draws from the standard errors; None where nothing is known of the uncertainty."""
    resampled: bool
    low: Floats
    high: Floats


def rank(
    ds: xr.Dataset,
    by: str | Sequence[str] | Mapping[str, int] | None = None,
    *,
    against: str | ArrayLike | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Order models by one or several estimates or measures: which to take, and how sure that is.

    The probability that a model is the best is the fraction of resamples in which it is, ties shared. Resamples of
    estimates are those of the inputs, the same ones for all models, so that what models have in common cancels. Where
    only a value and its standard error are known, as of most measures, values are drawn 1000 times from independent
    normal distributions. Without a standard error the probability is NaN.

    Args:
        ds: a result of :func:`genmeasures.estimate`, or an aggregated one of :func:`genmeasures.measure`.
        by: methods of the estimates, or measures. None takes all estimates, or all measures whose source states a sign
            with the accuracy. A mapping says for each measure whether larger is better (1) or worse (−1); otherwise the
            stated sign decides. Several are also combined: ``mean_rank`` orders models by the mean of their ranks.
        against: what the models are known to reach, to tell what the choice costs: name of a coordinate, or one value
            per model. By default ``target_accuracy``, ``target_dice`` or ``test_accuracy``, if the result has it.
        seed: of the draws from standard errors.

    Returns:
        One row for each criterion and model, the best first. Columns:

        - ``by``, ``rank`` (from 1; ties have their mean rank), ``model``;
        - ``value``, with ``low`` and ``high`` where there is an interval;
        - ``p_best``: the probability that the model is the best one by this criterion;
        - ``known``: what the model is known to reach, and ``regret``: how far this is below the best model, in the same
          units (points of percent for estimates); NaN where unknown;
        - ``status``: "ok", or why there is no value, probability or interval.

    Raises:
        OptionError: a name is unknown, or a direction is not stated.
        DataError: no model has a value, or ``against`` does not have one number per model.

    Example:
        >>> status = ("model", ["ok", "ok"])
        >>> ds = xr.Dataset({"m": ("model", [0.5, 0.9]), "m_error": ("model", [0.1, 0.1]), "m_status": status})
        >>> table = rank(ds.assign_coords(model=["a", "b"]), {"m": 1}, against=[70.0, 68.0])
        >>> table[["rank", "model", "regret"]].values.tolist()
        [[1.0, 'b', 2.0], [2.0, 'a', 0.0]]
        >>> bool(0.99 < table["p_best"][0] < 1)
        True
    """
    if not isinstance(ds, xr.Dataset) or "model" not in ds.dims:
        raise OptionError("rank: ds must be a result of genmeasures.estimate or genmeasures.measure")
    if not is_count(seed, 0):
        raise OptionError(f"rank: seed must be an integer ≥ 0, got {seed!r}")
    names = ds["model"].values.astype(str) if "model" in ds.coords else np.arange(ds.sizes["model"]).astype(str)
    criteria = _of_estimates(ds, by) if "estimator" in ds.dims else _of_measures(ds, by, seed)
    if not any(np.isfinite(criterion.values).any() for criterion in criteria):
        raise DataError(f"rank: no model has a value of {', '.join(criterion.name for criterion in criteria)}")
    if len(criteria) > 1:
        criteria.append(_mean_rank(criteria))
    known = _known(ds, against)
    return pd.concat([_rows(criterion, ds, names, known) for criterion in criteria], ignore_index=True)


def _of_estimates(ds: xr.Dataset, by: str | Sequence[str] | Mapping[str, int] | None) -> list[_Criterion]:
    methods = ds["estimator"].values.astype(str).tolist()
    chosen = methods if by is None else [by] if isinstance(by, str) else list(by)
    criteria = []
    for name in chosen:
        if name not in methods:
            raise OptionError(f"rank: the result has no estimate {name!r}{nearest(name, methods)}")
        own = ds.isel(estimator=methods.index(name))
        draws = own["resampled"].transpose("model", "resample").values
        ends = own["estimate_low"].values, own["estimate_high"].values
        criteria.append(_Criterion(name, 1, own["estimate"].values, draws, True, *ends))
    return criteria


def _of_measures(ds: xr.Dataset, by: str | Sequence[str] | Mapping[str, int] | None, seed: int) -> list[_Criterion]:
    variables = [name for name in measure_variables(ds) if ds[name].dims == ("model",)]
    if not variables:
        hint = ": aggregate it first, genmeasures.aggregate(ds)" if "layer" in ds.dims else ""
        raise OptionError(f"rank: the result has no value per model{hint}")
    if by is None:
        signs = {name: _stated(ds, name) for name in judged_variables(ds) if name in variables and _stated(ds, name)}
        if not signs:
            raise OptionError(
                f"rank: no measure states whether larger is better: name one with its sign, by={{{variables[0]!r}: 1}} "
                f"or by={{{variables[0]!r}: -1}}"
            )
    else:
        named = by if isinstance(by, Mapping) else dict.fromkeys([by] if isinstance(by, str) else by, 0)
        signs = {}
        for name, sign in named.items():
            if name not in variables:
                raise OptionError(f"rank: the result has no measure {name!r} per model{nearest(name, variables)}")
            signs[name] = sign or _stated(ds, name)
            if signs[name] not in (1, -1):
                raise OptionError(
                    f"rank: {name} does not state whether larger is better: say so, by={{{name!r}: 1}} or "
                    f"by={{{name!r}: -1}}"
                )
    return [_of_measure(ds, name, sign, seed) for name, sign in signs.items()]


def _stated(ds: xr.Dataset, name: str) -> int:
    return int(ds[name].attrs.get("expected_accuracy", 0))


def _of_measure(ds: xr.Dataset, name: str, sign: int, seed: int) -> _Criterion:
    values = ds[name].values.astype(np.float64)
    missing = np.full_like(values, np.nan)
    error = next((ds[f"{name}{end}"].values for end in _ERRORS if f"{name}{end}" in ds.data_vars), None)
    if error is None:
        return _Criterion(name, sign, values, None, False, missing, missing)
    rng = np.random.default_rng([seed, *name.encode()])
    draws = values[:, None] + error[:, None] * rng.standard_normal((len(values), _DRAWS))
    return _Criterion(name, sign, values, draws, False, values - _NORMAL * error, values + _NORMAL * error)


def _mean_rank(criteria: Sequence[_Criterion]) -> _Criterion:
    """The mean of the ranks, of models that have a value of every criterion."""
    values = np.mean([_ranks(criterion.sign * criterion.values[:, None])[:, 0] for criterion in criteria], axis=0)
    missing = np.full_like(values, np.nan)
    draws = None
    if all(criterion.draws is not None for criterion in criteria):
        count = min(criterion.draws.shape[1] for criterion in criteria if criterion.draws is not None)
        ranked = [_ranks(of.sign * of.draws[:, :count]) for of in criteria if of.draws is not None]
        draws = np.mean(ranked, axis=0)
    return _Criterion(MEAN_RANK, -1, values, draws, all(of.resampled for of in criteria), missing, missing)


def _ranks(values: Floats) -> Floats:
    """(M, R): ranks of the models in each column, 1 for the largest; ties have their mean rank, NaN has none."""
    above = (values[None, :, :] > values[:, None, :]).sum(axis=1)
    alike = (values[None, :, :] == values[:, None, :]).sum(axis=1)
    return np.where(np.isfinite(values), above + (alike + 1) / 2, np.nan)


def _best(criterion: _Criterion) -> tuple[Floats, str]:
    """(M,): the probability that each model is the best, and why there is none."""
    missing = np.full(len(criterion.values), np.nan)
    if criterion.draws is None:
        return missing, "no standard error"
    ranked = np.isfinite(criterion.values)
    draws = criterion.sign * criterion.draws[ranked]
    usable = np.isfinite(draws).all(axis=0)
    if not len(draws) or not usable.any():
        return missing, "no resample has a value of every model"
    top = draws[:, usable] == draws[:, usable].max(axis=0)
    missing[ranked] = (top / top.sum(axis=0)).mean(axis=1)
    return missing, ""


def _known(ds: xr.Dataset, against: str | ArrayLike | None) -> Floats | None:
    """What the models are known to reach, (M,)."""
    if against is None:
        name = next((name for name in _KNOWN if name in ds.coords), None)
        if name is None:
            return None
        against = name
    if isinstance(against, str):
        numeric = [str(name) for name, c in ds.coords.items() if c.dims == ("model",) and c.dtype.kind in "fiu"]
        if against not in numeric:
            raise OptionError(f"rank: the result has no numbers {against!r} along model{nearest(against, numeric)}")
        return ds[against].values.astype(np.float64)
    values = np.asarray(against)
    if values.shape != (ds.sizes["model"],) or values.dtype.kind not in "fiu":
        raise DataError(f"rank: against must have one number for each of {ds.sizes['model']} models")
    return values.astype(np.float64)


def _rows(criterion: _Criterion, ds: xr.Dataset, names: np.ndarray, known: Floats | None) -> pd.DataFrame:
    """The rows of one criterion, the best model first."""
    best, why = _best(criterion)
    reached = np.full(len(names), np.nan) if known is None else known
    ranked = np.isfinite(criterion.values)
    highest = np.nanmax(reached) if np.isfinite(reached).any() else np.nan
    frame = pd.DataFrame(
        {
            "by": criterion.name,
            "rank": _ranks(criterion.sign * criterion.values[:, None])[:, 0],
            "model": names,
            "value": criterion.values,
            "low": criterion.low,
            "high": criterion.high,
            "p_best": best,
            "known": reached,
            "regret": highest - reached,
            "status": _statuses(criterion, ds, ranked, why),
        }
    )
    return frame.sort_values("rank", kind="stable", na_position="last")


def _statuses(criterion: _Criterion, ds: xr.Dataset, ranked: np.ndarray, why: str) -> list[str]:
    note = f"note: {why}" if why else "ok"
    if criterion.name == MEAN_RANK:
        return [note if has else "undefined: a criterion has no value" for has in ranked]
    if "estimator" in ds.dims:
        column = ds["estimator"].values.astype(str).tolist().index(criterion.name)
        own = ds[f"estimate{STATUS}"].transpose("model", "estimator").values[:, column]
    else:
        own = ds[f"{criterion.name}{STATUS}"].values
    return [note if has and status == "ok" else str(status) for has, status in zip(ranked, own, strict=True)]


__all__ = ["MEAN_RANK", "rank"]
