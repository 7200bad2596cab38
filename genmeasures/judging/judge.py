"""Judge every measure of a result against what is known of the models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from genmeasures.errors import DataError, OptionError, ResultError, nearest
from genmeasures.interfaces import is_count
from genmeasures.judging.correlation import MIN_MODELS, STATISTICS, Floats, bootstrap_interval, is_constant
from genmeasures.judging.correlation import resample_counts as draw
from genmeasures.judging.grid import GRID, grid_scores
from genmeasures.results.schema import judged_variables

_GAP = "generalization_gap"


def judge(
    ds: xr.Dataset,
    against: str | Sequence[str] | Mapping[str, ArrayLike] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlate measures with targets over models, with bootstrap confidence intervals.

    Args:
        ds: a result, aggregated or not.
        against: names of numeric coordinates along ``model``, or a mapping from names to one value
            a model in the order of ``ds.model``; by default the test metric (``test_accuracy``,
            ``test_iou``) and ``generalization_gap``, whichever the result has.
        confidence: probability that the percentile intervals are to hold.
        resamples: number of bootstrap resamples over models. Rows with the same models share them.
        seed: of the resamples.

    Returns:
        One row for each measure, layer and target. Columns: ``measure``, ``layer`` (Int64, <NA>
        for a value a model), ``against``, ``n`` models used, ``excluded`` models without a finite
        value or target, ``pearson``, ``spearman`` and ``kendall`` (tau-b), each with ``_low`` and
        ``_high``, and ``status``: "ok", "note: …", or "undefined: …" where the coefficients are
        NaN. Where the target is ``generalization_gap`` and the result knows hyper-parameters, the
        scores of the PGDL competition and its like follow, see :func:`grid_scores`; a measure that is
        expected to fall with the gap is turned round for them, as they ask for one that grows with it.
        Elsewhere they are NaN with an empty ``grid_status``. The attributes of the frame carry task,
        metric, aggregator, number of models, confidence, resamples and seed.

    Raises:
        ResultError: the result has none of the default targets.
        OptionError: a target is unknown, or an option is out of range.
        DataError: a target is not numeric, or has not one value a model.
    """
    if not 0 < confidence < 1:
        raise OptionError(f"judge: confidence={confidence!r} must lie between 0 and 1")
    if not is_count(resamples):
        raise OptionError(f"judge: resamples={resamples!r} must be a whole number of at least 1")
    targets = _targets(ds, against)
    hparams = _hparams(ds)
    test_size = int(ds.attrs["test_size"]) if "test_size" in ds.attrs else None
    models = ds.sizes.get("model", 0)
    counts: dict[bytes, Floats] = {}
    rows: list[dict[str, Any]] = []
    grids: dict[bytes, list[tuple[int, Floats, Floats, NDArray[np.bool_]]]] = {}
    for measure, layer, values in _columns(ds):
        for target, truth in targets.items():
            used = np.isfinite(values) & np.isfinite(truth)
            n = int(used.sum())
            row: dict[str, Any] = {
                "measure": measure,
                "layer": layer,
                "against": target,
                "n": n,
                "excluded": models - n,
            }
            x, y = values[used], truth[used]
            if target == _GAP and hparams is not None:
                rising = -x if int(ds[measure].attrs.get("expected_gap", 0)) < 0 else x
                # Measures with the same models go together: their grid is taken apart once.
                grids.setdefault(used.tobytes(), []).append((len(rows), rising, y, used))
            reason = _undefined(x, y, measure, target)
            if reason:
                rows.append({**row, "status": f"undefined: {reason}"})
                continue
            key = used.tobytes()
            if key not in counts:
                counts[key] = draw(n, resamples, np.random.default_rng(seed))
            dropped = 0
            for name, statistic in STATISTICS.items():
                interval = bootstrap_interval(statistic, x, y, counts[key], confidence)
                row |= {name: float(statistic(x, y, None)), f"{name}_low": interval.low, f"{name}_high": interval.high}
                dropped = max(dropped, interval.dropped)
            note = f"note: {dropped} of {resamples} resamples are constant and left out of the intervals"
            rows.append({**row, "status": note if dropped else "ok"})
    for members in grids.values():
        _, _, gap, used = members[0]
        assert hparams is not None
        scores = grid_scores(np.stack([rising for _, rising, _, _ in members]), gap, hparams[used], test_size)
        for (place, _, _, _), found in zip(members, scores, strict=True):
            rows[place] |= found
    numbers = [f"{name}{suffix}" for name in STATISTICS for suffix in ("", "_low", "_high")]
    texts = ["pgdl_pair", "grid_status"]
    columns = ["measure", "layer", "against", "n", "excluded", *numbers, "status", *GRID, *texts]
    frame = pd.DataFrame([{**dict.fromkeys(texts, ""), **row} for row in rows], columns=columns)
    numbers += GRID
    frame = frame.astype({"layer": "Int64", "n": "int64", "excluded": "int64", **dict.fromkeys(numbers, "float64")})
    frame.attrs = {name: ds.attrs[name] for name in ("task", "metric", "aggregator") if name in ds.attrs}
    frame.attrs |= {"models": models, "confidence": confidence, "resamples": resamples, "seed": seed}
    return frame


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
    """Hyper-parameters of the models (models, k), None where there are none."""
    names = [name for name in json.loads(ds.attrs.get("hparams", "[]")) if name in ds.coords]
    return pd.DataFrame({name: ds[name].values for name in names}) if names else None


def _undefined(x: Floats, y: Floats, measure: str, target: str) -> str:
    """Why x and y have no correlation; empty where they have one."""
    if len(x) < MIN_MODELS:
        return f"{len(x)} models have a value and a target, {MIN_MODELS} are needed"
    for name, values in ((measure, x), (target, y)):
        if is_constant(values):
            return f"{name} is the same for all models"
    return ""


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
                f"the result has neither {metric} nor generalization_gap to judge measures against: add one with "
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
