"""The statistics of the study that the library does not have: pure functions on arrays.

Rows are models, or what is resampled of them. Where a number is not defined, because there are too few rows, a
value is not finite, or something is constant, it is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from genmeasures.judging.correlation import Interval, is_constant

Floats: TypeAlias = NDArray[np.float64]

_ROUNDING = 1e-10
"""Residuals below this share of what was regressed are rounding: a linear model explains everything."""


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


def partial_correlation(x: Floats, y: Floats, given: Floats) -> float:
    """Pearson's correlation of what linear regressions on ``given``, with intercept, leave of x and y.

    Args:
        x, y: float64 (n,).
        given: float64 (n, q); q may be 0, which is Pearson's correlation of x and y.

    Returns:
        A number in [−1, 1]. NaN where the regression leaves fewer than two degrees of freedom, or nothing of
        x or y.
    """
    if not all(np.isfinite(part).all() for part in (x, y, given)) or is_constant(x) or is_constant(y):
        return math.nan
    basis = _basis(given)
    if len(x) - basis.shape[1] < 2:
        return math.nan
    a, b = _residuals(x, basis), _residuals(y, basis)
    if a is None or b is None:
        return math.nan
    return float(np.clip(a @ b, -1.0, 1.0))


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
    small, large = _basis(base), _basis(whole)
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


def run_bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    runs: Sequence[Any] | NDArray[Any],
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a statistic for which whole training runs are resampled.

    Checkpoints of one run follow from each other, so that n of them are no n independent models; runs are. With
    R runs there are only C(2R − 1, R) different resamples (35 for 4 runs): the interval of few runs is coarse, and
    rather too narrow.

    Args:
        statistic: from row numbers int64 (m,), in which those of a run drawn twice stand twice, to a number.
        runs: (n,), the run of each row.
        resamples, seed: how many resamples of the runs are drawn, with replacement, and from which seed.
        confidence: probability that the interval is to hold.

    Returns:
        The interval, and how many resamples had no finite statistic and were left out; NaN where none is left, and
        where there are fewer than two runs.
    """
    _, code = np.unique(np.asarray(runs).astype(str), return_inverse=True)
    members = [np.flatnonzero(code == number) for number in range(int(code.max(initial=-1)) + 1)]
    if len(members) < 2:
        return Interval(math.nan, math.nan, resamples)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    drawn, times = np.unique(counts, axis=0, return_counts=True)
    found = np.repeat(
        [
            statistic(np.concatenate([rows for rows, k in zip(members, row, strict=True) for _ in range(k)]))
            for row in drawn
        ],
        times,
    )
    kept = found[np.isfinite(found)]
    if len(kept) == 0:
        return Interval(math.nan, math.nan, resamples)
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), resamples - len(kept))


def dummies(labels: Sequence[Any] | NDArray[Any]) -> Floats:
    """float64 (n, groups − 1): whether a row is of each group but the first, in sorted order."""
    known, code = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    return np.eye(len(known))[code][:, 1:]


def _basis(given: Floats) -> Floats:
    """float64 (n, rank): orthonormal columns that span an intercept and the regressors (n, q)."""
    centred = given - given.mean(0)
    scale = np.abs(centred).max(0, initial=0.0)
    # What is constant but for rounding would otherwise come out as a regressor of noise.
    moves = scale > 1e-13 * np.abs(given).max(0, initial=0.0)
    scaled = np.divide(centred, scale, out=np.zeros_like(centred), where=moves)
    left, sizes, _ = np.linalg.svd(np.column_stack([np.ones(len(given)), scaled]), full_matrices=False)
    return np.asarray(left[:, sizes > _ROUNDING * sizes[0]])


def _residuals(v: Floats, basis: Floats) -> Floats | None:
    """Residuals (n,) of unit length; None where nothing is left."""
    centred = v - v.mean()
    centred = centred / np.abs(centred).max()
    left = centred - basis @ (basis.T @ centred)
    length = float(np.linalg.norm(left))
    return left / length if length > _ROUNDING * float(np.linalg.norm(centred)) else None


def _r_squared(y: Floats, basis: Floats) -> float:
    deviations = y - y.mean()
    left = deviations - basis @ (basis.T @ deviations)
    return float(1 - (left @ left) / (deviations @ deviations))
