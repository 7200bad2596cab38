"""Judgment of every measure of a result against what is known of the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from genmeasures.errors import OptionError
from genmeasures.interfaces import is_count
from genmeasures.judging.coefficients import NUMBERS
from genmeasures.judging.comparison import Comparison, comparisons, correlation_columns, grid_columns
from genmeasures.judging.grid import GRID
from genmeasures.judging.resampling import draw, group_codes
from genmeasures.judging.targets import read_covariates, read_groups, read_hparams, read_targets
from genmeasures.results.schema import GAP


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

    Intervals are bias-corrected and accelerated (BCa) bootstrap intervals over models. Their normal quantiles are
    widened for few models (:func:`~genmeasures.judging.bootstrap.widening`); with fewer than 8 models there is no
    interval, and a note says so. P-values are two-sided permutation p-values: the fraction of permutations of the
    targets with at least as strong a correlation, over all permutations of up to 8 models, and over ``resamples``
    random ones of more.

    Args:
        ds: A result of :func:`genmeasures.measure`, aggregated or not.
        against: Names of numeric coordinates along ``model``, or a mapping from names to one value per model in the
            order of ``ds.model``. By default the test metric (``test_accuracy``, ``test_iou``) and
            ``generalization_gap``, whichever the result has.
        groups: Name of a coordinate, or one label per model: models that are not independent, such as the
            checkpoints of one training run. Whole groups are resampled (cluster bootstrap) and permuted: the k-th
            model of one group is exchanged with the k-th of another, so that a correlation within every group, such
            as a common trend over epochs, is no evidence. Groups of different sizes have no p-value.
        given: Covariates: names of coordinates or a mapping, as for ``against``. Coefficients become partial
            correlations: those of the residuals of linear regressions on the covariates (on their ranks, for
            Spearman). Texts are categorical, with dummy coding. Kendall's coefficient and the scores on the grid are
            NaN then.
        confidence: Confidence level of the intervals, between 0 and 1.
        resamples: Number of bootstrap resamples, and of permutations where not all are enumerated. Rows with the
            same models share them.
        seed: Seed of both.

    Returns:
        One row for each measure, layer and target. Columns:

        - ``measure``, ``layer`` (Int64, <NA> for a value per model), ``against``.
        - ``n``: number of models used; ``excluded``: number of models without a finite value, target or covariate;
          ``excluded_models``: their names, at most five; ``groups``: number of groups (Int64, <NA> without groups).
        - ``pearson``, ``spearman`` and ``kendall`` (τ-b), each with ``_low``, ``_high`` and ``_p``.
        - ``expected``: the sign that the source of the measure states for this target (+1, −1, or 0 for none), and
          ``agrees``: "yes" or "no" by the sign of Spearman's coefficient where it differs significantly from 0 at
          this confidence level, "open" where it does not, "" where no sign is expected.
        - ``status``: "ok", "note: …", or "undefined: …" where the coefficients are NaN.
        - :data:`~genmeasures.judging.grid.GRID`, ``pgdl_pair`` and ``grid_status``, where the target is
          ``generalization_gap`` and the result has hyperparameters. These scores assume a measure that grows with
          the gap: one that is expected to fall is negated, and one without an expected sign is scored as it is.
          Elsewhere they are NaN with an empty ``grid_status``.

        The attributes of the DataFrame are task, metric, aggregator, number of models, confidence, resamples, seed,
        and the names of ``groups`` and ``given``.

    Raises:
        ResultError: The result has none of the default targets.
        OptionError: A coordinate is unknown, or an option is out of range.
        DataError: A target is not numeric, an argument does not have one value per model, or there is only one group.

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
    _check_options(ds, confidence, resamples)
    targets = read_targets(ds, against)
    hparams = read_hparams(ds) if given is None else None
    labels, groups_name = read_groups(ds, groups)
    covariates, covariate_names = read_covariates(ds, given)
    count = ds.sizes.get("model", 0)
    names = ds["model"].values.astype(str) if "model" in ds.coords else np.arange(count).astype(str)
    test_size = int(ds.attrs["test_size"]) if "test_size" in ds.attrs else None

    rows = {comparison: comparison.counts(names) for comparison in comparisons(ds, targets, covariates)}
    for members in _by_models(rows):
        defined = [member for member in members if not member.undefined]
        on_grid = [] if hparams is None else [member for member in members if member.target == GAP and len(member.x)]
        if not defined and not on_grid:
            continue
        used = members[0].used
        codes = None if labels is None else group_codes(labels[used])
        draws = draw(int(used.sum()), resamples, seed, codes, None if covariates is None else covariates[used])
        for member, columns in correlation_columns(defined, draws, confidence):
            rows[member] |= columns
        if hparams is not None:
            for member, scores in grid_columns(on_grid, hparams, test_size, draws, confidence):
                rows[member] |= scores
        if draws.grouped:
            for member in (*defined, *on_grid):
                rows[member]["groups"] = draws.units

    frame = _frame(list(rows.values()))
    frame.attrs = {name: ds.attrs[name] for name in ("task", "metric", "aggregator") if name in ds.attrs}
    frame.attrs |= {"models": count, "confidence": confidence, "resamples": resamples, "seed": seed}
    frame.attrs |= {"groups": groups_name} if groups_name else {}
    frame.attrs |= {"given": ", ".join(covariate_names)} if covariate_names else {}
    return frame


def _check_options(ds: object, confidence: float, resamples: int) -> None:
    if not isinstance(ds, xr.Dataset):
        raise OptionError(f"judge: ds must be an xarray Dataset, a result of measure, got {type(ds).__name__}")
    if not 0 < confidence < 1:
        raise OptionError(f"judge: confidence must be between 0 and 1, got {confidence!r}")
    if not is_count(resamples):
        raise OptionError(f"judge: resamples must be a positive integer, got {resamples!r}")


def _by_models(rows: Mapping[Comparison, Any]) -> list[list[Comparison]]:
    """Comparisons that use the same models, which share resamples and permutations."""
    groups: dict[bytes, list[Comparison]] = {}
    for comparison in rows:
        groups.setdefault(comparison.used.tobytes(), []).append(comparison)
    return list(groups.values())


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    texts = {"excluded_models": "", "agrees": "", "pgdl_pair": "", "grid_status": ""}
    columns = ["measure", "layer", "against", "n", "excluded", "excluded_models", "groups", *NUMBERS]
    columns += ["expected", "agrees", "status", *GRID, "pgdl_pair", "grid_status"]
    frame = pd.DataFrame([{**texts, **row} for row in rows], columns=columns)
    types = {"layer": "Int64", "n": "int64", "excluded": "int64", "groups": "Int64", "expected": "int64"}
    return frame.astype({**types, **dict.fromkeys((*NUMBERS, *GRID), "float64")})
