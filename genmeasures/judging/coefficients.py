"""Coefficients of measures with targets, their intervals and p-values, and what a reader must know of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from genmeasures.judging.correlation import STATISTICS, Floats, Statistic, partial_pearson, partial_spearman
from genmeasures.judging.resampling import MIN_UNITS, Draws, bca_interval, correlation_p_values

NUMBERS = tuple(f"{name}{end}" for name in STATISTICS for end in ("", "_low", "_high", "_p"))
"""Columns with numbers: each coefficient, the ends of its interval, and its p-value."""


def coefficients(x: Floats, y: Floats, draws: Draws, confidence: float) -> dict[str, Floats]:
    """All :data:`NUMBERS` of measures with targets, and of how many resamples each coefficient has none.

    Args:
        x: float64 (m, n), finite and not constant.
        y: float64 (t, n), likewise.
        draws: resamples and permutations of the n models, and what is given of them.
        confidence: probability that intervals are to hold.

    Returns:
        float64 (m, t) by column; beside :data:`NUMBERS`, ``<coefficient>_dropped``. NaN where there is none.
    """
    made: dict[str, Floats] = {}
    shape = (len(x), len(y))
    for name, statistic in _statistics(draws).items():
        observed = statistic(x, y, None)
        low, high, dropped = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape)
        if draws.enough:
            resampled, left_out = (statistic(x, y, counts) for counts in (draws.counts, draws.left_out))
            low, high, lost = bca_interval(observed, resampled, left_out, confidence, widen=draws.widen)
            dropped = lost.astype(np.float64)
        made |= {name: observed, f"{name}_low": low, f"{name}_high": high, f"{name}_dropped": dropped}
    if draws.orders is not None:
        found = correlation_p_values(x, y, draws.orders, draws.every, draws.given)
        made |= {f"{name}_p": np.where(np.isfinite(made[name]), p, np.nan) for name, p in found.items()}
    return {**{name: np.full(shape, np.nan) for name in NUMBERS}, **made}


def _statistics(draws: Draws) -> Mapping[str, Statistic]:
    given = draws.given
    if given is None:
        return STATISTICS
    return {
        "pearson": lambda x, y, counts: partial_pearson(x, y, given, counts),
        "spearman": lambda x, y, counts: partial_spearman(x, y, given, counts),
    }


def remarks(found: Mapping[str, float], draws: Draws) -> list[str]:
    """What a reader must know of one row of :func:`coefficients`."""
    notes = []
    if not draws.enough:
        what = "groups" if draws.grouped else "models"
        less = f" beyond the {draws.taken} degrees of freedom of what is given" if draws.taken else ""
        notes.append(f"{draws.units} {what}: no interval from fewer than {MIN_UNITS}{less}")
    else:
        dropped = max(int(found.get(f"{name}_dropped", 0)) for name in STATISTICS)
        if dropped:
            notes.append(
                f"{dropped} of {len(draws.counts)} resamples have no coefficient and are left out of the intervals"
            )
        stiff = [name for name in STATISTICS if np.isfinite(found[name]) and not np.isfinite(found[f"{name}_low"])]
        if stiff:
            notes.append(f"no interval of {' and '.join(stiff)}: it is the same in all resamples")
    if draws.orders is None:
        notes.append("no p-values: groups of different size cannot change places")
    return notes


def agreement(expected: int, found: Mapping[str, float], confidence: float) -> str:
    """Whether Spearman's coefficient has the expected sign.

    "yes" or "no" where it is told from 0: its p-value is at most 1 − confidence and its interval leaves 0 out,
    or the one of them that there is; "open" where it is not; "" where no sign is expected or there is no
    coefficient.
    """
    value, p = found["spearman"], found["spearman_p"]
    if not expected or not np.isfinite(value):
        return ""
    low, high = found["spearman_low"], found["spearman_high"]
    by_chance = np.isfinite(p) and p > 1 - confidence + 1e-12
    around_zero = np.isfinite(low) and low * high <= 0
    if by_chance or around_zero or not (np.isfinite(p) or np.isfinite(low)):
        return "open"
    return "yes" if value * expected > 0 else "no"
