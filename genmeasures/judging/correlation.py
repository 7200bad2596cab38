"""Correlation coefficients of many bootstrap resamples at once, and percentile intervals.

A resample of n models is stored as counts: how often each model was drawn. Every coefficient here
is a function of the counts, so that R resamples are a few operations on (R, n) arrays and Kendall's
tau, a quadratic form in the counts, is one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from genmeasures.errors import DataError

Floats: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats, Floats, Floats | None], Floats]

MIN_MODELS = 3
"""With two models every coefficient is +1 or −1."""


class Interval(NamedTuple):
    """A confidence interval, and the number of resamples that had no coefficient."""

    low: float
    high: float
    dropped: int


def is_constant(x: Floats) -> bool:
    """Whether finite values (n,) differ by no more than rounding does: by 1e-13 of the largest."""
    return bool(len(x) == 0 or np.ptp(x) <= 1e-13 * np.abs(x).max())


def resample_counts(n: int, resamples: int, rng: np.random.Generator) -> Floats:
    """float64 (resamples, n): how often each of n models is drawn, n draws with replacement."""
    return rng.multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(np.float64)


def pearson(x: Floats, y: Floats, counts: Floats | None = None) -> Floats:
    """Pearson's product-moment correlation of x and y (n,).

    Args:
        x, y: float64 (n,).
        counts: float64 (R, n), rows that add up to n: one resample a row.

    Returns:
        float64 (R,), or () without ``counts``. NaN where x or y is constant or not finite, or n < 3.

    Raises:
        DataError: the shapes do not fit.
    """
    weights, usable = _check(x, y, counts)
    if not usable:
        return _undefined(counts)
    n = len(x)
    dx, dy = (_deviations(v, weights) for v in (x, y))
    coefficient = _ratio(_product(weights, dx, dy), _product(weights, dx, dx), _product(weights, dy, dy))
    # Exact, where rounding of the means could leave a constant resample with some variance.
    constant = (_tie_sizes(x, weights)[0].max(axis=1) == n) | (_tie_sizes(y, weights)[0].max(axis=1) == n)
    return _shaped(np.where(constant, np.nan, coefficient), counts)


def spearman(x: Floats, y: Floats, counts: Floats | None = None) -> Floats:
    """Spearman's rank correlation, ties given their mean rank, ranked anew in every resample.

    Arguments, result and errors are those of :func:`pearson`.
    """
    weights, usable = _check(x, y, counts)
    if not usable:
        return _undefined(counts)
    rx, ry = (_centred_ranks(v, weights) for v in (x, y))
    coefficient = _ratio(_product(weights, rx, ry), _product(weights, rx, rx), _product(weights, ry, ry))
    return _shaped(coefficient, counts)


def kendall(x: Floats, y: Floats, counts: Floats | None = None) -> Floats:
    """Kendall's tau-b: (concordant − discordant) / √((pairs untied in x)·(pairs untied in y)).

    A model drawn twice is a pair tied in both. Arguments, result and errors are those of
    :func:`pearson`; memory O(n²). Source: Kendall, The treatment of ties in ranking problems
    (Biometrika 1945).
    """
    weights, usable = _check(x, y, counts)
    if not usable:
        return _undefined(counts)
    signs = np.ones((len(x), len(x)))
    untied = []
    for v in (x, y):
        sizes, code = _tie_sizes(v, weights)
        signs *= np.sign(code[:, None] - code[None, :])
        untied.append((len(x) ** 2 - (sizes**2).sum(axis=1)) / 2)
    concordance = np.einsum("rn,rn->r", weights @ signs, weights) / 2
    return _shaped(_ratio(concordance, untied[0], untied[1]), counts)


STATISTICS: Mapping[str, Statistic] = MappingProxyType({"pearson": pearson, "spearman": spearman, "kendall": kendall})
"""The coefficients that measures are judged by."""


def bootstrap_interval(
    statistic: Statistic, x: Floats, y: Floats, counts: Floats, confidence: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of a coefficient over models.

    Args:
        statistic: :func:`pearson`, :func:`spearman` or :func:`kendall`.
        x, y: float64 (n,).
        counts: float64 (R, n) from :func:`resample_counts`; the same counts for several measures
            give them common resamples.
        confidence: probability that the interval is to hold.

    Returns:
        The interval, NaN where no resample has a coefficient. Resamples in which x or y is
        constant have none: they are dropped and counted.

    Source: Efron, Nonparametric standard errors and confidence intervals (1981).
    """
    found = statistic(x, y, counts)
    kept = found[np.isfinite(found)]
    dropped = len(found) - len(kept)
    if len(kept) == 0:
        return Interval(np.nan, np.nan, dropped)
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), dropped)


def _check(x: Floats, y: Floats, counts: Floats | None) -> tuple[Floats, bool]:
    """The counts, one resample without repetition where none are given; and whether x and y can be used."""
    if x.ndim != 1 or x.shape != y.shape:
        raise DataError(f"a correlation needs two arrays of the same length, not of shapes {x.shape} and {y.shape}")
    if counts is not None and (counts.ndim != 2 or counts.shape[1] != len(x)):
        raise DataError(f"counts must have the shape (resamples, {len(x)}), not {counts.shape}")
    usable = len(x) >= MIN_MODELS and bool(np.isfinite(x).all() and np.isfinite(y).all())
    return np.ones((1, len(x))) if counts is None else counts, usable


def _undefined(counts: Floats | None) -> Floats:
    return np.full(() if counts is None else len(counts), np.nan)


def _shaped(coefficients: Floats, counts: Floats | None) -> Floats:
    return coefficients.reshape(()) if counts is None else coefficients


def _product(weights: Floats, a: Floats, b: Floats) -> Floats:
    """(R,): Σ_i w_i a_i b_i of every resample."""
    return np.asarray(np.einsum("rn,rn,rn->r", weights, a, b))


def _ratio(together: Floats, alone_x: Floats, alone_y: Floats) -> Floats:
    """(R,): together / √(alone_x · alone_y) within [−1, 1], NaN where one of them is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = together / (np.sqrt(alone_x) * np.sqrt(alone_y))
    return np.where((alone_x > 0) & (alone_y > 0), np.clip(ratio, -1.0, 1.0), np.nan)


def _deviations(v: Floats, weights: Floats) -> Floats:
    """(R, n): deviations from the mean of each resample, in units of the largest one in that resample."""
    scaled = v / max(np.abs(v).max(), np.finfo(np.float64).tiny)
    means = weights @ scaled / len(v)
    deviations = np.where(weights > 0, scaled[None, :] - means[:, None], 0.0)
    # Linear densities span hundreds of orders of magnitude: without the largest model, squares would underflow.
    largest = np.abs(deviations).max(axis=1, keepdims=True)
    return np.asarray(deviations / np.where(largest > 0, largest, 1.0))


def _tie_sizes(v: Floats, weights: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """(R, groups): how many of a resample have each value of v, in ascending order; and (n,) each one's group."""
    _, code, sizes = np.unique(v, return_inverse=True, return_counts=True)
    ascending = weights[:, np.argsort(code, kind="stable")]
    if len(sizes) == len(v):
        return ascending, code
    return np.add.reduceat(ascending, np.cumsum(sizes) - sizes, axis=1), code


def _centred_ranks(v: Floats, weights: Floats) -> Floats:
    """(R, n): mean rank of every value within each resample, less the mean of the ranks; exact halves."""
    sizes, code = _tie_sizes(v, weights)
    # Of a group that ends at rank e and has c members, the mean rank is e − (c − 1)/2.
    ranks = sizes.cumsum(axis=1) - (sizes - 1) / 2
    return np.asarray((ranks - (len(v) + 1) / 2)[:, code])
