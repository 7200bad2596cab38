"""Residuals of weighted linear regressions on covariates."""

from __future__ import annotations

import numpy as np

from genmeasures.judging.ranks import Floats

_ROUNDING = 1e-10
"""Residuals below this fraction of the regressed values are rounding errors: the regression explains everything."""


def residuals(values: Floats, covariates: Floats) -> Floats:
    """Residuals of linear regressions with intercept.

    Args:
        values: float64 of shape (m, n), the responses.
        covariates: float64 of shape (n, q).

    Returns:
        float64 of shape (m, n), each row of unit length; NaN where the regression explains a row completely.

    Example:
        >>> residuals(np.array([[1.0, 2.0, 3.0], [0.0, 3.0, 0.0]]), np.array([[1.0], [2.0], [3.0]])).round(3)
        array([[   nan,    nan,    nan],
               [-0.408,  0.816, -0.408]])
    """
    return weighted_residuals(values, basis_of(covariates), np.ones(len(covariates)))


def rank_of(covariates: Floats) -> int:
    """Degrees of freedom that an intercept and covariates (n, q) use.

    Example:
        >>> rank_of(np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]))
        2
    """
    return int(basis_of(covariates).shape[1])


def basis_of(covariates: Floats) -> Floats:
    """Orthonormal basis of the span of an intercept and the covariates.

    Args:
        covariates: float64 of shape (n, q).

    Returns:
        float64 of shape (n, rank).

    Example:
        >>> np.abs(basis_of(np.empty((4, 0)))).T
        array([[0.5, 0.5, 0.5, 0.5]])
    """
    return weighted_basis(covariates, np.ones(len(covariates)))


def weighted_basis(covariates: Floats, weights: Floats) -> Floats:
    """Orthonormal basis (n, rank) of the span of √w times an intercept and the covariates (n, q).

    Args:
        covariates: float64 of shape (n, q).
        weights: float64 of shape (n,), not negative.

    Example:
        >>> np.abs(weighted_basis(np.empty((3, 0)), np.array([1.0, 0.0, 1.0]))).T.round(3)
        array([[0.707, 0.   , 0.707]])
    """
    drawn = weights > 0
    centered = covariates - np.average(covariates, axis=0, weights=weights)
    scale = np.abs(centered[drawn]).max(0, initial=0.0)
    # A covariate that is constant except for rounding would otherwise become a regressor of noise.
    varies = scale > 1e-13 * np.abs(covariates[drawn]).max(0, initial=0.0)
    scaled = np.divide(centered, scale, out=np.zeros_like(centered), where=varies)
    roots = np.sqrt(weights)[:, None]
    left, sizes, _ = np.linalg.svd(roots * np.column_stack([np.ones(len(covariates)), scaled]), full_matrices=False)
    return np.asarray(left[:, sizes > _ROUNDING * sizes[0]])


def weighted_residuals(values: Floats, basis: Floats, weights: Floats) -> Floats:
    """√w times the residuals of the rows of values (m, n), of unit length; NaN where nothing is left.

    Args:
        values: float64 of shape (m, n).
        basis: float64 of shape (n, rank), from :func:`weighted_basis`.
        weights: float64 of shape (n,), not negative.

    Example:
        >>> weights = np.ones(2)
        >>> weighted_residuals(np.array([[1.0, 3.0]]), weighted_basis(np.empty((2, 0)), weights), weights).round(3)
        array([[-0.707,  0.707]])
    """
    drawn = weights > 0
    centered = np.where(drawn, values - np.average(values, axis=1, weights=weights)[:, None], 0.0)
    largest = np.abs(centered).max(axis=1, keepdims=True)
    constant = largest[:, 0] <= 1e-13 * np.abs(np.where(drawn, values, 0.0)).max(axis=1)
    centered = np.sqrt(weights) * centered / np.where(largest > 0, largest, 1.0)
    left = centered - (centered @ basis) @ basis.T
    length, whole = np.linalg.norm(left, axis=1), np.linalg.norm(centered, axis=1)
    explained = constant | (length <= _ROUNDING * whole)
    return np.asarray(left / np.where(explained, np.nan, length)[:, None])
