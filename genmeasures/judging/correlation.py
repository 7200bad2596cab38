"""Correlation coefficients of many measures on many resamples of the models at once.

A resample of n models is represented by counts: how often it contains each model. Every coefficient is a
function of the counts, so that R resamples of m measures take a few matrix products. The same representation
covers the jackknife (one model left out) and the cluster bootstrap (whole groups of models).

Shapes in this module: x is float64 of shape (m, n) or (n,), one row per measure; y is float64 of shape (t, n) or
(n,), one row per target; counts is float64 of shape (R, n), one row per resample. Values are finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from genmeasures.errors import DataError
from genmeasures.judging.ranks import Floats, dense_ranks, order_of, pair_blocks

Statistic: TypeAlias = Callable[[Floats, Floats, Floats | None], Floats]
Batch: TypeAlias = Callable[[Floats, Floats, Floats, Floats], Floats]
"""Coefficients (m, t, R) of x (m, n), y (t, n), counts (R, n) and covariates (n, q)."""

MIN_MODELS = 3
"""Smallest number of models with a coefficient: with two models, every coefficient is +1 or −1."""

_CANCELLATION = 1e-3
"""Below this fraction of the mean square, a variance from sums of squares has lost digits and is recomputed."""
_UNDERFLOW = 1e-200
"""Sums of squares below this, of values up to 1, have underflowed and are recomputed."""
_CACHED = 1 << 16
"""Number of elements of the arrays in which ranks are computed."""


def is_constant(x: Floats) -> bool:
    """Whether finite values (n,) are equal up to rounding: their range is at most 1e-13 of the largest magnitude.

    Example:
        >>> is_constant(np.array([0.3, 0.1 + 0.2])), is_constant(np.array([0.3, 0.31]))
        (True, False)
    """
    return bool(len(x) == 0 or np.ptp(x) <= 1e-13 * np.abs(x).max())


def pearson(x: Floats, y: Floats, counts: Floats | None = None) -> Floats:
    """Pearson's product-moment correlation coefficient r.

    Args:
        x: float64 of shape (m, n) or (n,).
        y: float64 of shape (t, n) or (n,).
        counts: float64 of shape (R, n), how often each resample contains each model; None is each model once.

    Returns:
        float64 of shape (m, t, R), without the axes that the arguments lack. NaN where x or y is constant or not
        finite, and for n < 3.

    Raises:
        DataError: The shapes do not match.

    Example:
        >>> x, y = np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 5.0])
        >>> round(float(pearson(x, y)), 3)
        0.839
    """
    return apply_statistic(_pearson, x, y, counts)


def spearman(x: Floats, y: Floats, counts: Floats | None = None) -> Floats:
    """Spearman's rank correlation coefficient ρ; ties have their mean rank.

    Args:
        x: As for :func:`pearson`; ranks are computed in every resample.
        y: As for :func:`pearson`.
        counts: As for :func:`pearson`.

    Returns:
        As :func:`pearson`.

    Raises:
        DataError: The shapes do not match.

    Example:
        >>> x, y = np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 5.0])
        >>> round(float(spearman(x, y)), 3)
        0.5
    """
    return apply_statistic(_spearman, x, y, counts)


def kendall(x: Floats, y: Floats, counts: Floats | None = None) -> Floats:
    """Kendall's rank correlation coefficient τ-b.

    τ-b = (concordant − discordant pairs) / √(pairs not tied in x · pairs not tied in y). In a resample, two
    copies of a model are a pair tied in both.

    Args:
        x: As for :func:`pearson`.
        y: As for :func:`pearson`.
        counts: As for :func:`pearson`.

    Returns:
        As :func:`pearson`.

    Raises:
        DataError: The shapes do not match.

    Source: Kendall, The treatment of ties in ranking problems, Biometrika 33 (1945).

    Example:
        >>> x, y = np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 5.0])
        >>> round(float(kendall(x, y)), 3)
        0.333
    """
    return apply_statistic(_kendall, x, y, counts)


STATISTICS: Mapping[str, Statistic] = MappingProxyType({"pearson": pearson, "spearman": spearman, "kendall": kendall})
"""Correlation coefficients that :func:`genmeasures.judge` reports."""


def apply_statistic(
    statistic: Batch, x: Floats, y: Floats, counts: Floats | None, given: Floats | None = None
) -> Floats:
    """Check the shapes, compute the coefficients of the rows that vary, and drop the axes that the arguments lack.

    Args:
        statistic: computes the coefficients.
        x: float64 of shape (m, n) or (n,).
        y: float64 of shape (t, n) or (n,).
        counts: float64 of shape (R, n); None is each model once.
        given: float64 of shape (n, q), covariates, or None.

    Raises:
        DataError: The shapes do not match.

    Example:
        >>> apply_statistic(_pearson, np.arange(3.0), np.arange(4.0), None)
        Traceback (most recent call last):
            ...
        genmeasures.errors.DataError: x and y must have the same number of models, got the shapes (3,) and (4,)
    """
    if x.ndim not in (1, 2) or y.ndim not in (1, 2) or x.shape[-1] != y.shape[-1]:
        raise DataError(f"x and y must have the same number of models, got the shapes {x.shape} and {y.shape}")
    n = x.shape[-1]
    if counts is not None and (counts.ndim != 2 or counts.shape[1] != n):
        raise DataError(f"counts must have the shape (resamples, {n}), got {counts.shape}")
    if given is not None and (given.ndim != 2 or len(given) != n):
        raise DataError(f"given must have the shape ({n}, covariates), got {given.shape}")
    rows, columns = np.atleast_2d(x), np.atleast_2d(y)
    weights = np.ones((1, n)) if counts is None else counts
    coefficients = np.full((len(rows), len(columns), len(weights)), np.nan)
    usable = [_varies(values) for values in (rows, columns)]
    covariates = np.empty((n, 0)) if given is None else given
    if n >= MIN_MODELS and np.isfinite(covariates).all() and usable[0].any() and usable[1].any():
        coefficients[np.ix_(*usable)] = statistic(rows[usable[0]], columns[usable[1]], weights, covariates)
    shape = (*x.shape[:-1], *y.shape[:-1], *([] if counts is None else [len(weights)]))
    return coefficients.reshape(shape)


def _varies(values: Floats) -> NDArray[np.bool_]:
    """(m,): which rows (m, n) are finite and not constant."""
    finite = np.isfinite(values).all(axis=1)
    varies = (values != values[:, :1]).any(axis=1) if values.shape[1] else np.zeros(len(values), dtype=np.bool_)
    return np.asarray(finite & varies)


def _pearson(x: Floats, y: Floats, counts: Floats, covariates: Floats) -> Floats:
    transposed = np.ascontiguousarray(counts.T)
    total = counts.sum(axis=1)
    rows, columns = _scaled(x), _scaled(y)
    sums_x, sums_y = rows @ transposed, columns @ transposed
    squares_x, squares_y = rows**2 @ transposed, columns**2 @ transposed
    variance_x, variance_y = squares_x - sums_x**2 / total, squares_y - sums_y**2 / total
    accurate_x, accurate_y = (
        (variance > _CANCELLATION * squares) & (squares > _UNDERFLOW)
        for variance, squares in ((variance_x, squares_x), (variance_y, squares_y))
    )
    coefficients = np.empty((len(x), len(y), len(counts)))
    for target, column in enumerate(columns):
        covariance = (rows * column) @ transposed - sums_x * sums_y[target] / total
        coefficients[:, target] = _ratio(covariance, variance_x, variance_y[target])
        # Resamples without the largest values may have a tiny variance beside the mean: recompute from deviations.
        for row, inaccurate in enumerate(~(accurate_x & accurate_y[target])):
            if inaccurate.any():
                coefficients[row, target, inaccurate] = _accurate_pearson(x[row], y[target], counts[inaccurate])
    return coefficients


def _accurate_pearson(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Pearson's coefficient (R,) from deviations within every resample, whatever their magnitude."""
    dx, dy = (_deviations(v, counts) for v in (x, y))
    coefficient = _ratio(_product(counts, dx, dy), _product(counts, dx, dx), _product(counts, dy, dy))
    # Exact, where rounding of the means could leave a constant resample with some variance.
    total = counts.sum(axis=1)
    transposed = counts.T
    largest_x, largest_y = (order_of(v).tie_sizes(transposed).max(axis=0) for v in (x, y))
    return np.where((largest_x == total) | (largest_y == total), np.nan, coefficient)


def _spearman(x: Floats, y: Floats, counts: Floats, covariates: Floats) -> Floats:
    orders_x, orders_y = [order_of(row) for row in x], [order_of(row) for row in y]
    coefficients = np.empty((len(x), len(y), len(counts)))
    # Some resamples at a time: ranks that fit into a processor's cache.
    step = max(_CACHED // x.shape[1], 16)
    for start in range(0, len(counts), step):
        transposed = np.ascontiguousarray(counts[start : start + step].T)
        targets = []
        for order in orders_y:
            ranks = order.ranks(transposed)
            targets.append((transposed * ranks, np.einsum("nr,nr,nr->r", transposed, ranks, ranks)))
        for row, order in enumerate(orders_x):
            ranks = order.ranks(transposed)
            variance_x = np.einsum("nr,nr,nr->r", transposed, ranks, ranks)
            for target, (weighted, variance_y) in enumerate(targets):
                covariance = np.einsum("nr,nr->r", weighted, ranks)
                coefficients[row, target, start : start + step] = _ratio(covariance, variance_x, variance_y)
    return coefficients


def _kendall(x: Floats, y: Floats, counts: Floats, covariates: Floats) -> Floats:
    transposed = np.ascontiguousarray(counts.T)
    total = counts.sum(axis=1)
    untied_x, untied_y = (
        np.stack([(total**2 - (order_of(row).tie_sizes(transposed) ** 2).sum(axis=0)) / 2 for row in values])
        for values in (x, y)
    )
    ranks_x, ranks_y = dense_ranks(x), dense_ranks(y)
    drawn = transposed.astype(np.float32)
    concordance = np.zeros((len(x), len(y), len(counts)))
    for first, second in pair_blocks(x.shape[1], max(len(counts), len(x))):
        # Sums of integers below 2^24 per block: single precision is exact.
        both = drawn[first] * drawn[second]
        signs = np.sign(ranks_x[:, first] - ranks_x[:, second])
        for target, ranks in enumerate(ranks_y):
            concordance[:, target] += (signs * np.sign(ranks[first] - ranks[second])) @ both
    return _ratio(concordance, untied_x[:, None], untied_y[None])


def _scaled(values: Floats) -> Floats:
    """(m, n): deviations of rows from their means, in units of the largest one."""
    largest = np.abs(values).max(axis=1, keepdims=True)
    scaled = values / np.maximum(largest, np.finfo(np.float64).tiny)
    centered = scaled - scaled.mean(axis=1, keepdims=True)
    spread = np.abs(centered).max(axis=1, keepdims=True)
    return np.asarray(centered / np.where(spread > 0, spread, 1.0))


def _product(weights: Floats, a: Floats, b: Floats) -> Floats:
    """(R,): Σ_i w_i a_i b_i of every resample."""
    return np.asarray(np.einsum("rn,rn,rn->r", weights, a, b))


def _ratio(covariance: Floats, variance_x: Floats, variance_y: Floats) -> Floats:
    """covariance / √(variance_x · variance_y), clipped to [−1, 1]; NaN where a variance is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = covariance / (np.sqrt(variance_x) * np.sqrt(variance_y))
    return np.where((variance_x > 0) & (variance_y > 0), np.clip(ratio, -1.0, 1.0), np.nan)


def _deviations(v: Floats, weights: Floats) -> Floats:
    """(R, n): deviations from the mean of each resample, in units of the largest one in that resample."""
    scaled = v / max(np.abs(v).max(), np.finfo(np.float64).tiny)
    means = weights @ scaled / weights.sum(axis=1)
    deviations = np.where(weights > 0, scaled[None, :] - means[:, None], 0.0)
    # Measures may span hundreds of orders of magnitude: without the largest value, squares would underflow.
    largest = np.abs(deviations).max(axis=1, keepdims=True)
    return np.asarray(deviations / np.where(largest > 0, largest, 1.0))
