"""Judge every measure of a result against what is known of the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from genmeasures.errors import DataError, OptionError, ResultError, nearest
from genmeasures.interfaces import is_count
from genmeasures.judging.coefficients import NUMBERS, agreement, coefficients, remarks
from genmeasures.judging.correlation import MIN_MODELS, Floats, is_constant, rank_of, residuals
from genmeasures.judging.grid import GRID, grid_scores
from genmeasures.judging.resampling import Draws, draw, dummies, group_codes
from genmeasures.results.schema import hparams_of, judged_variables

_GAP = "generalization_gap"
_ROWS = 128
"""Measures that are resampled at once."""
_NAMED = 5
"""How many excluded models a row names."""


def judge(
    ds: xr.Dataset,
    against: str | Sequence[str] | Mapping[str, ArrayLike] | None = None,
    *,
    groups: str | ArrayLike | None = None,
    given: str | Sequence[str] | Mapping[str, ArrayLike] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlate measures with targets over models, with bootstrap intervals and permutation p-values.

    Intervals are bias-corrected and accelerated ones over models, with quantiles widened for few models
    (:func:`~genmeasures.judging.resampling.widening`); of fewer than 8 models there is none, and a note. P-values
    are two-sided: how often a correlation is as strong when the models change their targets, over all
    permutations of up to 8 models, over ``resamples`` random ones of more.

    Args:
        ds: a result, aggregated or not.
        against: names of numeric coordinates along ``model``, or a mapping from names to one value
            a model in the order of ``ds.model``; by default the test metric (``test_accuracy``,
            ``test_iou``) and ``generalization_gap``, whichever the result has.
        groups: a coordinate's name, or one label a model: models that belong together, such as the
            checkpoints of one training. Whole groups are resampled, and change places for p-values: the
            k-th model of one with the k-th of another, so that a correlation that all groups share, by
            their epochs for one, is no evidence. Groups of different size have no p-value.
        given: names of coordinates or a mapping as for ``against``, of what is known already: correlations
            are partial ones, of what linear regressions on it leave (of the ranks, for Spearman). Texts
            are groups, each with a level of its own. Kendall's and the scores of the grid are NaN then.
        confidence: probability that the intervals are to hold.
        resamples: number of bootstrap resamples, and of permutations where not all are taken. Rows
            with the same models share them.
        seed: of both.

    Returns:
        One row for each measure, layer and target. Columns:

        - ``measure``, ``layer`` (Int64, <NA> for a value a model), ``against``.
        - ``n`` models used, ``excluded`` models without a finite value, target or ``given``,
          ``excluded_models`` their names, five at most; ``groups`` used (Int64, <NA> without groups).
        - ``pearson``, ``spearman`` and ``kendall`` (tau-b), each with ``_low``, ``_high`` and ``_p``.
        - ``expected``: the sign that the measure's source states for this target (+1, −1, 0 for none),
          and ``agrees``: "yes" or "no" by the sign of Spearman's coefficient where it is told from 0 at
          this confidence, "open" where it is not, "" where no sign is expected.
        - ``status``: "ok", "note: …", or "undefined: …" where the coefficients are NaN.
        - :data:`~genmeasures.judging.grid.GRID`, ``pgdl_pair`` and ``grid_status`` where the target is
          ``generalization_gap`` and the result knows hyperparameters; a measure that is expected to fall
          with the gap is turned round for them, as they ask for one that grows with it, and one
          without an expected sign is scored as it is. Elsewhere they are NaN with an empty ``grid_status``.

        The attributes of the frame carry task, metric, aggregator, number of models, confidence, resamples,
        seed, and the names of ``groups`` and ``given``.

    Raises:
        ResultError: the result has none of the default targets.
        OptionError: a coordinate is unknown, or an option is out of range.
        DataError: a target is not numeric, or has not one value a model; there is but one group.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> accuracy = rng.uniform(size=12)
        >>> ds = xr.Dataset(
        ...     {"m": ("model", accuracy + 0.1 * rng.normal(size=12)), "m_status": ("model", ["ok"] * 12)},
        ...     {"test_accuracy": ("model", accuracy)},
        ... )
        >>> row = judge(ds).iloc[0]
        >>> bool(row["pearson_low"] < row["pearson"] < row["pearson_high"]), bool(row["pearson_p"] < 0.01)
        (True, True)
    """
    if not isinstance(ds, xr.Dataset):
        raise OptionError(f"judge: a result of measure is expected, an xarray Dataset, not {type(ds).__name__}")
    if not 0 < confidence < 1:
        raise OptionError(f"judge: confidence={confidence!r} must lie between 0 and 1")
    if not is_count(resamples):
        raise OptionError(f"judge: resamples={resamples!r} must be an integer of at least 1")
    targets = _targets(ds, against)
    hparams = _hparams(ds) if given is None else None
    test_size = int(ds.attrs["test_size"]) if "test_size" in ds.attrs else None
    count = ds.sizes.get("model", 0)
    labels, groups_name = _groups(groups, ds, count)
    known, given_names = _given(given, ds, count)
    names = ds["model"].values.astype(str) if "model" in ds.coords else np.arange(count).astype(str)
    rows: list[dict[str, Any]] = []
    cases: dict[bytes, _Case] = {}
    for measure, layer, values in _columns(ds):
        for target, truth in targets.items():
            used = np.isfinite(values) & np.isfinite(truth)
            if known is not None:
                used &= np.isfinite(known).all(axis=1)
            lost = names[~used]
            row: dict[str, Any] = {
                "measure": measure,
                "layer": layer,
                "against": target,
                "n": int(used.sum()),
                "excluded": len(lost),
                "excluded_models": ", ".join(lost[:_NAMED]) + (", …" if len(lost) > _NAMED else ""),
                "expected": _expected(ds, measure, target),
            }
            case = cases.setdefault(used.tobytes(), _Case(used))
            x, y = values[used], truth[used]
            if target == _GAP and hparams is not None and len(x):
                # Measures with the same models go together: their grid is taken apart once.
                case.grid.append((len(rows), -x if row["expected"] < 0 else x, y))
            reason = _undefined(x, y, measure, target, None if known is None else known[used])
            if not reason:
                case.add(len(rows), x, y, target)
            rows.append({**row, "status": f"undefined: {reason}"})
    for case in cases.values():
        if not case.rows and not case.grid:
            continue
        codes = None if labels is None else group_codes(labels[case.used])
        draws = draw(int(case.used.sum()), resamples, seed, codes, None if known is None else known[case.used])
        for place, found in case.judged(draws, confidence):
            notes = remarks(found, draws)
            rows[place] |= {name: found[name] for name in NUMBERS}
            rows[place]["status"] = f"note: {'; '.join(notes)}" if notes else "ok"
            rows[place]["agrees"] = agreement(rows[place]["expected"], found, confidence)
        if case.grid:
            assert hparams is not None
            measures = np.stack([values for _, values, _ in case.grid])
            scores = grid_scores(measures, case.grid[0][2], hparams[case.used], test_size, draws, confidence)
            for (place, _, _), of_grid in zip(case.grid, scores, strict=True):
                rows[place] |= of_grid
        if draws.grouped:
            for place, _, _ in (*case.rows, *case.grid):
                rows[place]["groups"] = draws.units
    frame = _frame(rows)
    frame.attrs = {name: ds.attrs[name] for name in ("task", "metric", "aggregator") if name in ds.attrs}
    frame.attrs |= {"models": count, "confidence": confidence, "resamples": resamples, "seed": seed}
    if groups_name:
        frame.attrs["groups"] = groups_name
    if given_names:
        frame.attrs["given"] = ", ".join(given_names)
    return frame


@dataclass
class _Case:
    """Rows of the table that have the same models."""

    used: NDArray[np.bool_]
    grid: list[tuple[int, Floats, Floats]] = field(default_factory=list)
    """Row, values that grow with the gap as far as is known, and the gap."""
    targets: dict[str, Floats] = field(default_factory=dict)
    measures: dict[bytes, Floats] = field(default_factory=dict)
    rows: list[tuple[int, bytes, str]] = field(default_factory=list)
    """Row, values of the measure, and target."""

    def add(self, row: int, values: Floats, truth: Floats, target: str) -> None:
        self.targets[target] = truth
        self.measures[values.tobytes()] = values
        self.rows.append((row, values.tobytes(), target))

    def judged(self, draws: Draws, confidence: float) -> Iterator[tuple[int, dict[str, float]]]:
        """Row, and the columns of :func:`coefficients` that are found for it."""
        keys = list(self.measures)
        for start in range(0, len(keys), _ROWS):
            part = keys[start : start + _ROWS]
            x = np.stack([self.measures[key] for key in part])
            found = coefficients(x, np.stack(list(self.targets.values())), draws, confidence)
            places = {key: place for place, key in enumerate(part)}
            columns = {target: place for place, target in enumerate(self.targets)}
            for row, key, target in self.rows:
                if key in places:
                    yield row, {name: float(of[places[key], columns[target]]) for name, of in found.items()}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    texts = {"excluded_models": "", "agrees": "", "pgdl_pair": "", "grid_status": ""}
    columns = ["measure", "layer", "against", "n", "excluded", "excluded_models", "groups", *NUMBERS]
    columns += ["expected", "agrees", "status", *GRID, "pgdl_pair", "grid_status"]
    frame = pd.DataFrame([{**texts, **row} for row in rows], columns=columns)
    types = {"layer": "Int64", "n": "int64", "excluded": "int64", "groups": "Int64", "expected": "int64"}
    return frame.astype({**types, **dict.fromkeys((*NUMBERS, *GRID), "float64")})


def _expected(ds: xr.Dataset, measure: str, target: str) -> int:
    """The expected sign of a measure's correlation with a target: 0 where none is stated."""
    kind = {_GAP: "gap", f"test_{ds.attrs.get('metric', 'accuracy')}": "accuracy"}.get(target)
    return 0 if kind is None else int(ds[measure].attrs.get(f"expected_{kind}", 0))


def _columns(ds: xr.Dataset) -> Iterator[tuple[str, int | None, Floats]]:
    """Measure, layer and values (models,) of all that is judged."""
    for name in judged_variables(ds):
        if "layer" not in ds[name].dims:
            yield name, None, ds[name].values.astype(np.float64)
            continue
        values = ds[name].transpose("layer", "model").values.astype(np.float64)
        for index, row in zip(ds[name]["layer"].values, values, strict=True):
            yield name, int(index), row


def _hparams(ds: xr.Dataset) -> pd.DataFrame | None:
    """Hyperparameters of the models (models, k), None where there are none."""
    names = [name for name in hparams_of(ds) if name in ds.coords]
    return pd.DataFrame({name: ds[name].values for name in names}) if names else None


def _undefined(x: Floats, y: Floats, measure: str, target: str, given: Floats | None) -> str:
    """Why x and y have no correlation; empty where they have one."""
    if len(x) < MIN_MODELS:
        return f"models with a value and a target: {len(x)}, {MIN_MODELS} are needed"
    for name, values in ((measure, x), (target, y)):
        if is_constant(values):
            return f"{name} is the same for all models"
    if given is None:
        return ""
    if len(x) - rank_of(given) < 2:
        return f"{len(x)} models and {rank_of(given) - 1} degrees of freedom of what is given leave none to correlate"
    for name, left in zip((measure, target), residuals(np.stack([x, y]), given), strict=True):
        if np.isnan(left).any():
            return f"what is given explains {name} wholly"
    return ""


def _groups(groups: str | ArrayLike | None, ds: xr.Dataset, models: int) -> tuple[NDArray[Any] | None, str]:
    """One label a model, and what they are called."""
    if groups is None:
        return None, ""
    name = groups if isinstance(groups, str) else "groups"
    labels = _coordinate(ds, groups) if isinstance(groups, str) else np.asarray(groups)
    if labels.shape != (models,):
        raise DataError(f"judge: {name} has the shape {labels.shape}; one label for each of {models} models is needed")
    if len(set(labels.astype(str))) < 2:
        raise DataError(f"judge: {name} puts all models into one group: there is nothing to resample")
    return labels, name


def _given(
    given: str | Sequence[str] | Mapping[str, ArrayLike] | None, ds: xr.Dataset, models: int
) -> tuple[Floats | None, tuple[str, ...]]:
    """Regressors (models, q), texts as dummies, and the names of what they stand for."""
    if given is None:
        return None, ()
    if not isinstance(given, Mapping):
        given = {name: _coordinate(ds, name) for name in ([given] if isinstance(given, str) else given)}
    columns = [np.empty((models, 0))]
    for name, values in given.items():
        array = np.asarray(values)
        if array.shape != (models,):
            raise DataError(
                f"judge: {name!r} has the shape {array.shape}; one value for each of {models} models is needed"
            )
        if array.dtype.kind in "fiub":
            columns.append(array.astype(np.float64)[:, None])
        else:
            # All levels but one, which the intercept stands for.
            columns.append(dummies(array))
    return np.concatenate(columns, axis=1), tuple(given)


def _coordinate(ds: xr.Dataset, name: str) -> NDArray[Any]:
    known = [str(name) for name, c in ds.coords.items() if c.dims == ("model",)]
    if name not in known:
        raise OptionError(f"judge: the result has no coordinate {name!r} along model{nearest(name, known)}")
    return np.asarray(ds[name].values)


def _targets(ds: xr.Dataset, against: str | Sequence[str] | Mapping[str, ArrayLike] | None) -> dict[str, Floats]:
    """float64 (models,) by name."""
    if isinstance(against, Mapping):
        return {name: _numeric(name, np.asarray(values), ds.sizes["model"]) for name, values in against.items()}
    known = [str(name) for name, c in ds.coords.items() if c.dims == ("model",) and c.dtype.kind in "fiub"]
    if against is None:
        metric = f"test_{ds.attrs.get('metric', 'accuracy')}"
        names = [name for name in (metric, _GAP) if name in ds.coords]
        if not names:
            raise ResultError(
                f"the result has neither {metric} nor generalization_gap to judge measures against: measure with "
                "labeled test data, of which accuracy is counted, add one with "
                f'ds.assign_coords({metric}=("model", [...])), or name another with against='
            )
    else:
        names = [against] if isinstance(against, str) else list(dict.fromkeys(against))
    for name in names:
        if name not in ds.coords:
            raise OptionError(f"judge: the result has no coordinate {name!r} along model{nearest(name, known)}")
    return {name: _numeric(name, ds[name].values, ds.sizes["model"]) for name in names}


def _numeric(name: str, values: NDArray[Any], models: int) -> Floats:
    """The values of a target as float64 (models,)."""
    if values.shape != (models,):
        raise DataError(
            f"judge: {name!r} has the shape {values.shape}; one value for each of {models} models is needed"
        )
    if values.dtype.kind not in "fiub":
        raise DataError(f"judge: {name!r} holds no numbers ({values.dtype}), so nothing can be correlated with it")
    return values.astype(np.float64)
