"""Bias-corrected and accelerated (BCa) bootstrap intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.special
from numpy.typing import NDArray

from genmeasures.judging.ranks import Floats

MIN_UNITS = 8
"""Smallest number of models, or groups, with an interval.

For bivariate normals, 95 % intervals of rank correlations cover the true value in 89 % of cases with 6 models and in
97 % with 8. Below 8, intervals are wider than 1.5 (of at most 2) unless the correlation is strong.
"""

SAME = 1e-12
"""Coefficients that differ by less are equal up to rounding."""


class Intervals(NamedTuple):
    """Bootstrap intervals of many coefficients, of shape (…,)."""

    low: Floats
    high: Floats
    dropped: NDArray[np.int64]
    """Number of resamples in which each coefficient is undefined."""


def bca_interval(
    observed: Floats, resampled: Floats, left_out: Floats, confidence: float = 0.95, *, widen: float = 1.0
) -> Intervals:
    """Bias-corrected and accelerated (BCa) bootstrap intervals.

    Args:
        observed: float64 of shape (…,), the coefficients of the sample.
        resampled: float64 of shape (…, R), the coefficients of the bootstrap resamples; NaN are dropped and counted.
        left_out: float64 of shape (…, units), the jackknife: the coefficients with one unit left out at a time,
            from which the acceleration is estimated; NaN are ignored.
        confidence: Confidence level, between 0 and 1.
        widen: Factor of the normal quantiles, see :func:`~genmeasures.judging.bootstrap.widening`.

    Returns:
        The intervals. NaN where no resample has a coefficient, and where the coefficient is equal in all resamples:
        its uncertainty cannot be estimated then.

    Source: Efron, Better bootstrap confidence intervals (1987); Efron & Tibshirani, An Introduction to the
    Bootstrap (1993), eqs. 14.9 to 14.15.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=30)
        >>> means = rng.multinomial(30, np.full(30, 1 / 30), size=999) @ x / 30
        >>> interval = bca_interval(x.mean(), means, (x.sum() - x) / 29)
        >>> bool(interval.low < x.mean() < interval.high)
        True
    """
    observed = np.asarray(observed, dtype=np.float64)
    ascending = np.sort(resampled, axis=-1)  # NaN come last
    kept = np.isfinite(ascending).sum(axis=-1)
    bias = _bias(observed, ascending, kept)
    acceleration = _acceleration(left_out)
    last = np.maximum(kept - 1, 0)
    ends = []
    for probability in ((1 - confidence) / 2, (1 + confidence) / 2):
        quantile = bias + widen * scipy.special.ndtri(probability)
        # Beyond 1/acceleration the transformation ends, and so does the distribution.
        slack = np.maximum(1 - acceleration * quantile, 1e-3)
        ends.append(_interpolated(ascending, scipy.special.ndtr(bias + quantile / slack) * last, last))
    lowest, highest = ascending[..., 0], np.take_along_axis(ascending, last[..., None], axis=-1)[..., 0]
    undefined = ~(highest - lowest > SAME) | ~np.isfinite(observed)
    low, high = (np.where(undefined, np.nan, end) for end in ends)
    return Intervals(low, high, resampled.shape[-1] - kept)


def _bias(observed: Floats, ascending: Floats, kept: NDArray[np.int64]) -> Floats:
    """Bias correction z₀: normal quantile of the fraction of resamples below the observed value; ties count half."""
    below = (ascending < observed[..., None] - SAME).sum(axis=-1)
    at_most = (ascending <= observed[..., None] + SAME).sum(axis=-1)
    count = np.maximum(kept, 1)
    fraction = np.clip((below + at_most) / (2 * count), 0.5 / count, 1 - 0.5 / count)
    return np.asarray(scipy.special.ndtri(fraction))


def _acceleration(left_out: Floats) -> Floats:
    """Acceleration a, a sixth of the skewness of the jackknife influence; 0 where it is undefined."""
    center = np.nanmean(np.where(np.isfinite(left_out).any(axis=-1, keepdims=True), left_out, 0.0), axis=-1)
    influence = np.nan_to_num(center[..., None] - left_out)
    with np.errstate(divide="ignore", invalid="ignore"):
        acceleration = (influence**3).sum(axis=-1) / (6 * (influence**2).sum(axis=-1) ** 1.5)
    return np.where(np.isfinite(acceleration), acceleration, 0.0)


def _interpolated(ascending: Floats, position: Floats, last: NDArray[np.int64]) -> Floats:
    """Linear interpolation of ascending values (…, R) at a fractional position (…,) of at most ``last`` (…,)."""
    lower = np.floor(position).astype(np.int64)
    at, after = (
        np.take_along_axis(ascending, np.minimum(p, last)[..., None], axis=-1)[..., 0] for p in (lower, lower + 1)
    )
    return np.asarray(at + (position - lower) * (after - at))


def widening(units: int, covariates: int = 0) -> float:
    """Factor of the normal quantiles in the interval of a correlation of few models: √(n / (n − 2 − q)).

    The bootstrap distribution has a variance with n in its denominator, where the correlation has used two degrees
    of freedom and one more per covariate. Coverage of 95 % intervals over 1200 samples of bivariate normals with
    ρ = 0, 0.5 and 0.9 (without widening in parentheses): Pearson 0.97–0.98 (0.92–0.93) for n = 8,
    0.95–0.96 (0.90–0.92) for 12, 0.94 (0.92) for 20 and 0.92–0.94 (0.91–0.94) for 50; rank correlations at least
    0.94 for every n.

    Args:
        units: Number n of models, or groups.
        covariates: Degrees of freedom q that the covariates use.

    Returns:
        The factor, infinite where no degree of freedom is left.

    Example:
        >>> round(widening(8), 3), round(widening(50), 3)
        (1.155, 1.021)
    """
    free = units - 2 - covariates
    return math.sqrt(units / free) if free > 0 else math.inf
