"""The statistics of the study that the library does not have: pure functions on arrays.

Rows are models, or what is resampled of them. Where a number is not defined, because there are too few rows, a
value is not finite, or something is constant, it is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from genmeasures.judging.correlation import is_constant
from genmeasures.judging.regression import basis_of

Floats: TypeAlias = NDArray[np.float64]


class Interval(NamedTuple):
    """An interval that holds a share of the resamples, and how many of them have no statistic."""

    low: float
    high: float
    dropped: int


class Explained(NamedTuple):
    """R² of two linear models, one within the other."""

    base: float
    """Of the smaller model."""
    added: float
    """What the larger one has more."""


class TwoWay(NamedTuple):
    """Shares of the total sum of squares, which add up to 1."""

    first: float
    second: float
    rest: float
    """Interaction of the two, and what differs within their cells."""


def variance_explained(y: Floats, base: Floats, extra: Floats) -> Explained:
    """How much of y linear models explain: one on ``base``, and one on ``base`` and ``extra``, both with intercept.

    Args:
        y: float64 (n,).
        base: float64 (n, q), such as log epoch and dummies of the objectives.
        extra: float64 (n,) or (n, p), such as a measure.

    Returns:
        R² of the first, and what the second adds; NaN where y is constant, or the larger model has no degree of
        freedom left.
    """
    whole = np.column_stack([base, extra])
    if not (np.isfinite(y).all() and np.isfinite(whole).all()) or is_constant(y):
        return Explained(math.nan, math.nan)
    small, large = basis_of(base), basis_of(whole)
    if len(y) <= large.shape[1]:
        return Explained(math.nan, math.nan)
    explained = _r_squared(y, small)
    return Explained(explained, _r_squared(y, large) - explained)


def two_way(y: Floats, first: Sequence[Any] | NDArray[Any], second: Sequence[Any] | NDArray[Any]) -> TwoWay:
    """Shares of the sum of squares of y (n,) between the groups of two crossed factors, (n,) each.

    The shares are defined where every pair of groups has equally many rows, as the factors are orthogonal then;
    NaN elsewhere, and where y is constant.
    """
    codes = [np.unique(np.asarray(factor).astype(str), return_inverse=True)[1] for factor in (first, second)]
    cells = np.zeros([int(code.max(initial=-1)) + 1 for code in codes])
    np.add.at(cells, tuple(codes), 1)
    balanced = cells.size > 0 and bool((cells == cells.flat[0]).all())
    if not balanced or not np.isfinite(y).all() or is_constant(y):
        return TwoWay(math.nan, math.nan, math.nan)
    deviations = y - y.mean()
    total = float(deviations @ deviations)
    shares = []
    for code in codes:
        sums, counts = np.bincount(code, deviations), np.bincount(code)
        shares.append(float((sums**2 / counts).sum()) / total)
    return TwoWay(shares[0], shares[1], 1 - shares[0] - shares[1])


def percentile_interval(resampled: Floats, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap interval from a statistic's resamples (R,), NaN where none has a statistic.

    Resamples of whole training runs are few: with R runs there are only C(2R − 1, R) different ones (35 for 4
    runs), and the interval of few runs is coarse, and rather too narrow.
    """
    kept = resampled[np.isfinite(resampled)]
    dropped = len(resampled) - len(kept)
    if len(kept) == 0:
        return Interval(math.nan, math.nan, dropped)
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), dropped)


def _r_squared(y: Floats, basis: Floats) -> float:
    deviations = y - y.mean()
    left = deviations - basis @ (basis.T @ deviations)
    return float(1 - (left @ left) / (deviations @ deviations))
