"""Permutation tests of correlations."""

from __future__ import annotations

import functools
import itertools
import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from genmeasures.judging.bootstrap import SAME
from genmeasures.judging.ranks import Floats, centered_ranks, dense_ranks, pair_blocks
from genmeasures.judging.regression import basis_of, residuals

Permutations: TypeAlias = NDArray[np.int64]
"""int64 (P, n): each row maps the index of a model to the index of the model whose target it is assigned."""

_EXACT = 50_000
"""Largest number of permutations that are enumerated: those of 8 models or groups."""


def permutations(
    n: int, resamples: int, rng: np.random.Generator, groups: NDArray[np.int64] | None = None
) -> tuple[Permutations, bool] | None:
    """Permutations of models: all of them up to 50,000 (8 units), a random sample otherwise.

    Args:
        n: Number of models.
        resamples: Number of random permutations where not all are enumerated.
        rng: Random number generator.
        groups: int64 of shape (n,) from :func:`~genmeasures.judging.group_codes`. Whole groups are then permuted:
            the k-th model of one group is exchanged with the k-th of another.

    Returns:
        int64 of shape (P, n), and whether these are all permutations; None where groups differ in size and are
        not exchangeable.

    Example:
        >>> permutations(2, 100, np.random.default_rng(0))
        (array([[0, 1],
               [1, 0]]), True)
    """
    codes = np.arange(n) if groups is None else groups
    sizes = np.bincount(codes)
    if len(set(sizes.tolist())) > 1:
        return None
    units = len(sizes)
    # (units, models per unit), each in the order of the models.
    members = np.argsort(codes, kind="stable").reshape(units, -1)
    exhaustive = units <= 12 and math.factorial(units) <= _EXACT
    order = _all_permutations(units) if exhaustive else rng.permuted(np.tile(np.arange(units), (resamples, 1)), axis=1)
    permuted = np.empty((len(order), n), dtype=np.int64)
    permuted[:, members.reshape(-1)] = members[order].reshape(len(order), n)
    return permuted, exhaustive


@functools.lru_cache(maxsize=4)
def _all_permutations(n: int) -> Permutations:
    return np.array(list(itertools.permutations(range(n))), dtype=np.int64).reshape(-1, n)


def p_value(observed: Floats, permuted: Floats, exhaustive: bool) -> Floats:
    """Permutation p-value: the fraction of permutations whose statistic is at least the observed one.

    Args:
        observed: float64 of shape (…,), the statistic; its absolute value for a two-sided test.
        permuted: float64 of shape (…, P), the statistic of the permutations.
        exhaustive: Whether these are all permutations. In a random sample the observed order counts as one more,
            so that p is never 0.

    Returns:
        float64 of shape (…,); NaN where the observed statistic is NaN.

    Source: Phipson & Smyth, Permutation p-values should never be zero (2010).

    Example:
        >>> p_value(np.array(2.0), np.array([0.0, 1.0, 2.0]), exhaustive=False)
        array(0.5)
    """
    larger = (permuted >= observed[..., None] - SAME).sum(axis=-1)
    fractions = larger / permuted.shape[-1] if exhaustive else (larger + 1) / (permuted.shape[-1] + 1)
    return np.where(np.isfinite(observed), fractions, np.nan)


def correlation_p_values(
    x: Floats, y: Floats, orders: Permutations, exhaustive: bool, covariates: Floats | None = None
) -> dict[str, Floats]:
    """Two-sided permutation p-values of all correlation coefficients.

    Args:
        x: float64 of shape (m, n), finite and not constant.
        y: float64 of shape (t, n), likewise; its values are permuted over the models.
        orders: int64 of shape (P, n), from :func:`permutations`.
        exhaustive: Whether these are all permutations.
        covariates: float64 of shape (n, q). Partial correlations are then tested by permuting the residuals of y
            (Freedman & Lane, 1983), which is exact only asymptotically, and Kendall's coefficient is not tested.

    Returns:
        float64 of shape (m, t) for ``pearson``, ``spearman`` and, without covariates, ``kendall``.

    Example:
        >>> x, y = np.arange(4.0)[None], np.array([[0.0, 1.0, 2.0, 3.5]])
        >>> orders, exhaustive = permutations(4, 100, np.random.default_rng(0))
        >>> correlation_p_values(x, y, orders, exhaustive)["spearman"].round(3)  # 2 of 24 permutations
        array([[0.083]])
    """
    p_values = {
        "pearson": _product_moment_p(x, y, orders, exhaustive, covariates),
        "spearman": _product_moment_p(
            centered_ranks(x),
            centered_ranks(y),
            orders,
            exhaustive,
            None if covariates is None else centered_ranks(covariates.T).T,
        ),
    }
    if covariates is None:
        p_values["kendall"] = _kendall_p(x, y, orders, exhaustive)
    return p_values


def _product_moment_p(
    x: Floats, y: Floats, orders: Permutations, exhaustive: bool, covariates: Floats | None
) -> Floats:
    """p-values (m, t) of product-moment correlations, partial ones given covariates (n, q)."""
    regressors = np.empty((x.shape[1], 0)) if covariates is None else covariates.reshape(x.shape[1], -1)
    left, right = residuals(x, regressors), residuals(y, regressors)
    permuted = np.empty((len(x), len(y), len(orders)))
    for target, column in enumerate(right):
        shuffled = column[orders]
        if covariates is not None:
            basis = basis_of(regressors)
            shuffled = shuffled - (shuffled @ basis) @ basis.T
            shuffled /= np.linalg.norm(shuffled, axis=1, keepdims=True)
        permuted[:, target] = left @ shuffled.T
    return p_value(np.abs(left @ right.T), np.abs(permuted), exhaustive)


def _kendall_p(x: Floats, y: Floats, orders: Permutations, exhaustive: bool) -> Floats:
    """p-values (m, t) of Kendall's τ-b: permutations keep the number of ties, so that the numerator decides."""
    ranks_x, ranks_y = dense_ranks(x), dense_ranks(y)
    transposed = np.ascontiguousarray(orders.T)
    permuted = np.zeros((len(x), len(y), len(orders)))
    observed = np.zeros((len(x), len(y)))
    for first, second in pair_blocks(x.shape[1], max(len(orders), len(x))):
        signs = np.sign(ranks_x[:, first] - ranks_x[:, second])
        for target, ranks in enumerate(ranks_y):
            shuffled = ranks[transposed]
            permuted[:, target] += signs @ np.sign(shuffled[first] - shuffled[second])
            observed[:, target] += signs @ np.sign(ranks[first] - ranks[second])
    return p_value(np.abs(observed), np.abs(permuted), exhaustive)
