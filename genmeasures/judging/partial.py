"""Partial correlation coefficients of many measures on many resamples of the models at once.

Shapes are those of :mod:`genmeasures.judging.correlation`; covariates are float64 of shape (n, q).
"""

from __future__ import annotations

import numpy as np

from genmeasures.judging.correlation import Batch, apply_statistic
from genmeasures.judging.ranks import Floats, order_of
from genmeasures.judging.regression import weighted_basis, weighted_residuals


def partial_pearson(x: Floats, y: Floats, given: Floats, counts: Floats | None = None) -> Floats:
    """Partial correlation: Pearson's correlation of the residuals of x and y after regression on covariates.

    Args:
        x: float64 of shape (m, n) or (n,).
        y: float64 of shape (t, n) or (n,).
        given: float64 of shape (n, q), the covariates; the regressions have an intercept. With q = 0 the
            result is Pearson's correlation.
        counts: float64 of shape (R, n), how often each resample contains each model; None is each model once.
            The regressions are computed in every resample.

    Returns:
        float64 of shape (m, t, R), without the axes that the arguments lack. NaN where :func:`pearson` is NaN,
        where the regression leaves fewer than two degrees of freedom, and where it explains x or y completely.

    Raises:
        DataError: The shapes do not match.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z, x, y = rng.normal(size=(3, 50))
        >>> round(float(partial_pearson(x + 9 * z, y - 9 * z, z[:, None])), 6) == round(
        ...     float(partial_pearson(x, y, z[:, None])), 6
        ... )
        True
    """
    return apply_statistic(_partial(ranked=False), x, y, counts, given)


def partial_spearman(x: Floats, y: Floats, given: Floats, counts: Floats | None = None) -> Floats:
    """Partial rank correlation: :func:`partial_pearson` of the ranks of x, y and each covariate.

    Args:
        x: As for :func:`partial_pearson`; ranks are computed in every resample.
        y: As for :func:`partial_pearson`.
        given: As for :func:`partial_pearson`.
        counts: As for :func:`partial_pearson`.

    Returns:
        As :func:`partial_pearson`.

    Raises:
        DataError: The shapes do not match.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z, x, y = rng.normal(size=(3, 50))
        >>> bool(partial_spearman(np.exp(x), y, z[:, None]) == partial_spearman(x, y, z[:, None]))
        True
    """
    return apply_statistic(_partial(ranked=True), x, y, counts, given)


def _partial(ranked: bool) -> Batch:
    def statistic(x: Floats, y: Floats, counts: Floats, covariates: Floats) -> Floats:
        orders = [[order_of(row) for row in rows] for rows in (x, y, covariates.T)] if ranked else []
        # Few groups have few distinct resamples.
        distinct, which = np.unique(counts, axis=0, return_inverse=True)
        coefficients = np.full((len(x), len(y), len(distinct)), np.nan)
        for index, weights in enumerate(distinct):
            parts = (x, y, covariates.T)
            if ranked:
                parts = tuple(  # type: ignore[assignment]
                    np.array([order.ranks(weights[:, None])[:, 0] for order in of]).reshape(values.shape)
                    for of, values in zip(orders, parts, strict=True)
                )
            rows, columns, regressors = parts
            basis = weighted_basis(regressors.T, weights)
            if weights.sum() - basis.shape[1] < 2:
                continue
            left, right = (weighted_residuals(values, basis, weights) for values in (rows, columns))
            coefficients[..., index] = np.clip(left @ right.T, -1.0, 1.0)
        return coefficients[..., which.reshape(-1)]

    return statistic
