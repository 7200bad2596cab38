"""Correlation coefficients with intervals, p-values and the remarks of a table row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from genmeasures.judging.bootstrap import MIN_UNITS, bca_interval
from genmeasures.judging.correlation import STATISTICS, Statistic
from genmeasures.judging.partial import partial_pearson, partial_spearman
from genmeasures.judging.permutation import correlation_p_values
from genmeasures.judging.ranks import Floats
from genmeasures.judging.resampling import Draws

NUMBERS = tuple(f"{name}{suffix}" for name in STATISTICS for suffix in ("", "_low", "_high", "_p"))
"""Numeric columns: each coefficient, the ends of its interval, and its p-value."""


def coefficients(x: Floats, y: Floats, draws: Draws, confidence: float) -> dict[str, Floats]:
    """Correlation coefficients of measures with targets, with intervals and p-values.

    Args:
        x: float64 of shape (m, n), the measures; finite and not constant.
        y: float64 of shape (t, n), the targets; likewise.
        draws: Resamples and permutations of the n models, and the covariates.
        confidence: Confidence level of the intervals.

    Returns:
        float64 of shape (m, t) for each of :data:`NUMBERS`, NaN where undefined, and ``<coefficient>_dropped``:
        the number of resamples in which the coefficient is undefined.

    Example:
        >>> from genmeasures.judging.resampling import draw
        >>> x = np.arange(10.0)[None]
        >>> columns = coefficients(x, x**2, draw(10, resamples=50, seed=0), 0.95)
        >>> float(columns["spearman"][0, 0]), round(float(columns["spearman_p"][0, 0]), 2)
        (1.0, 0.02)
    """
    columns: dict[str, Floats] = {}
    shape = (len(x), len(y))
    for name, statistic in _statistics(draws).items():
        observed = statistic(x, y, None)
        low, high, dropped = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape)
        if draws.enough:
            resampled, left_out = (statistic(x, y, counts) for counts in (draws.counts, draws.left_out))
            low, high, undefined = bca_interval(observed, resampled, left_out, confidence, widen=draws.widen)
            dropped = undefined.astype(np.float64)
        columns |= {name: observed, f"{name}_low": low, f"{name}_high": high, f"{name}_dropped": dropped}
    if draws.orders is not None:
        p_values = correlation_p_values(x, y, draws.orders, draws.exhaustive, draws.covariates)
        columns |= {f"{name}_p": np.where(np.isfinite(columns[name]), p, np.nan) for name, p in p_values.items()}
    return {**{name: np.full(shape, np.nan) for name in NUMBERS}, **columns}


def _statistics(draws: Draws) -> Mapping[str, Statistic]:
    covariates = draws.covariates
    if covariates is None:
        return STATISTICS
    return {
        "pearson": lambda x, y, counts: partial_pearson(x, y, covariates, counts),
        "spearman": lambda x, y, counts: partial_spearman(x, y, covariates, counts),
    }


def remarks(row: Mapping[str, float], draws: Draws) -> list[str]:
    """Remarks on one row of :func:`coefficients`: missing intervals, dropped resamples, missing p-values.

    Args:
        row: Columns of :func:`coefficients` for one measure and one target.
        draws: Resamples and permutations behind it.

    Returns:
        One remark per entry.

    Example:
        >>> from genmeasures.judging.resampling import draw
        >>> remarks({}, draw(5, resamples=50, seed=0))
        ['no intervals: 5 models, at least 8 are needed']
    """
    notes = []
    if not draws.enough:
        units = "groups" if draws.grouped else "models"
        rank = draws.covariate_rank
        needed = (
            f"{MIN_UNITS + rank} ({MIN_UNITS} + {rank} degrees of freedom of the covariates)"
            if rank
            else str(MIN_UNITS)
        )
        notes.append(f"no intervals: {draws.units} {units}, at least {needed} are needed")
    else:
        dropped = max(int(row.get(f"{name}_dropped", 0)) for name in STATISTICS)
        if dropped:
            notes.append(f"intervals without {dropped} of {len(draws.counts)} resamples, which have no coefficient")
        equal = [name for name in STATISTICS if np.isfinite(row[name]) and not np.isfinite(row[f"{name}_low"])]
        if equal:
            notes.append(f"no interval of {' and '.join(equal)}: equal in all resamples")
    if draws.orders is None:
        notes.append("no p-values: groups of different sizes are not exchangeable")
    return notes


def agreement(expected: int, row: Mapping[str, float], confidence: float) -> str:
    """Whether Spearman's coefficient has the expected sign.

    Args:
        expected: Expected sign: +1, −1, or 0 where none is stated.
        row: Columns ``spearman``, ``spearman_low``, ``spearman_high`` and ``spearman_p``.
        confidence: Confidence level.

    Returns:
        "yes" or "no" where the coefficient differs significantly from 0: its p-value is at most 1 − confidence and
        its interval excludes 0 (or the one of the two that exists). "open" where it does not. "" where no sign is
        expected or there is no coefficient.

    Example:
        >>> row = {"spearman": -0.8, "spearman_low": -0.9, "spearman_high": -0.4, "spearman_p": 0.01}
        >>> agreement(-1, row, 0.95), agreement(1, row, 0.95), agreement(1, {**row, "spearman_high": 0.1}, 0.95)
        ('yes', 'no', 'open')
    """
    value, p = row["spearman"], row["spearman_p"]
    if not expected or not np.isfinite(value):
        return ""
    low, high = row["spearman_low"], row["spearman_high"]
    not_significant = np.isfinite(p) and p > 1 - confidence + 1e-12
    includes_zero = np.isfinite(low) and low * high <= 0
    if not_significant or includes_zero or not (np.isfinite(p) or np.isfinite(low)):
        return "open"
    return "yes" if value * expected > 0 else "no"
