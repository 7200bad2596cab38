"""Granulated Kendall coefficient ψ."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from genmeasures.errors import Undefined
from genmeasures.judging.hparam_grid import any_grid
from genmeasures.judging.ranks import Floats
from genmeasures.judging.single_changes import SingleChanges, differ_in_one, pairwise_signs


class GranulatedKendall(NamedTuple):
    """Granulated Kendall coefficient of a measure; see :func:`granulated_kendall`."""

    psi: float
    """Mean of the coefficients of the hyperparameters."""
    hparams: pd.DataFrame
    """Coefficient of each hyperparameter."""


def granulated_kendall(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame) -> GranulatedKendall:
    """Granulated Kendall coefficient ψ: rank correlation with the gap as one hyperparameter changes at a time.

    For each hyperparameter, the models that agree in all others form a group. The coefficient of a group of c models
    is Kendall's τ-a, as in the source: Σ sgn(Δmeasure)·sgn(Δgap) over ordered pairs, divided by c·(c − 1), so that
    ties of the measure count as 0 (τ-b would exclude them). Groups of one model, and groups whose gaps are all equal,
    have no order: they are left out, for every measure alike, and counted. The grid need not be complete.

    Args:
        measure: float64 of shape (n,).
        gap: float64 of shape (n,), train accuracy − test accuracy.
        hparams: (n, k) values of k ≥ 1 hyperparameters, one row per model.

    Returns:
        ``psi``: the mean coefficient over hyperparameters that have one, between −1 and 1. ``hparams``: one row per
        hyperparameter with the columns ``hparam``, ``kendall`` (float64: mean τ-a of its groups, NaN without any),
        ``groups`` (int64: number of groups used) and ``left_out`` (int64: number of groups left out).

    Raises:
        DataError: The lengths differ, a value is not finite, or models share all hyperparameters.
        Undefined: No group has a coefficient.

    Source: Jiang et al., Fantastic Generalization Measures and Where to Find Them (2020), section 2.2.2.

    Example:
        >>> hparams = pd.DataFrame({"lr": [0.1, 0.1, 0.2, 0.2], "norm": ["batch", "none"] * 2})
        >>> result = granulated_kendall([1, 2, 4, 3], [0.1, 0.2, 0.3, 0.4], hparams)
        >>> result.psi, result.hparams["kendall"].tolist()  # agrees with both changes of lr and one of norm
        (0.5, [1.0, 0.0])
    """
    values, gaps, codes = any_grid(measure, gap, hparams)
    agreement = pairwise_signs(values) * pairwise_signs(gaps)
    untied = np.abs(pairwise_signs(gaps))
    rows = []
    for hparam, differs in zip(hparams.columns, differ_in_one(codes), strict=True):
        tau, groups = _group_coefficients(agreement, untied, differs)
        mean = float(tau.mean()) if len(tau) else np.nan
        rows.append((hparam, mean, len(tau), groups - len(tau)))
    frame = pd.DataFrame(rows, columns=["hparam", "kendall", "groups", "left_out"])
    if frame["kendall"].isna().all():
        raise Undefined(
            "granulated Kendall needs two models with different gaps that differ in exactly one hyperparameter, "
            "got none"
        )
    return GranulatedKendall(float(frame["kendall"].mean()), frame)


def _group_coefficients(agreement: Floats, untied: Floats, differs: NDArray[np.bool_]) -> tuple[Floats, int]:
    """Kendall's τ-a of each group that has one, and the number of groups, from (n, n) arrays of pairs."""
    # All pairs within a group differ in this hyperparameter only, so each model knows the size of its group.
    size = differs.sum(axis=1) + 1.0
    leader = ~np.tril(differs).any(axis=1)
    together = differs | np.eye(len(differs), dtype=bool)
    total = together[leader] @ (agreement * differs).sum(axis=1)
    usable = together[leader] @ (untied * differs).sum(axis=1) > 0
    c = size[leader][usable]
    return np.asarray(total[usable] / (c * (c - 1))), int(leader.sum())


def psi_weights(pairs: SingleChanges, gap: Floats, counts: Floats) -> Floats:
    """Weights of pairs whose weighted sum of :meth:`SingleChanges.agreement` is ψ.

    A pair counts as often as a resample contains its two models; two copies of a model are not a pair.

    Args:
        pairs: Pairs of n models that differ in exactly one hyperparameter.
        gap: float64 of shape (n,).
        counts: float64 of shape (R, n), how often each resample contains each model.

    Returns:
        float64 of shape (pairs, R); NaN in a resample in which no group has a coefficient.

    Example:
        >>> from genmeasures.judging.single_changes import single_changes
        >>> pairs = single_changes(pd.DataFrame({"lr": [0.1, 0.1, 0.2], "norm": ["batch", "none", "none"]}))
        >>> psi_weights(pairs, np.array([0.1, 0.2, 0.3]), np.ones((1, 3)))[:, 0]
        array([0.5, 0.5])
    """
    transposed = counts.T
    together = transposed[pairs.first] * transposed[pairs.second]
    if not len(together):
        return np.asarray(together)
    starts = np.flatnonzero(np.diff(pairs.group, prepend=-1))
    total = np.add.reduceat(together, starts, axis=0)
    untied = (gap[pairs.first] != gap[pairs.second]).astype(np.float64)
    usable = np.add.reduceat(together * untied[:, None], starts, axis=0) > 0
    hparams = pairs.hparam[starts]
    begin = np.flatnonzero(np.diff(hparams, prepend=-1))
    groups = np.add.reduceat(usable.astype(np.float64), begin, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = usable / total / groups[np.searchsorted(hparams[begin], hparams)] / (groups > 0).sum(axis=0)
    weight = np.where(usable, weight, 0.0)
    weight[:, ~usable.any(axis=0)] = np.nan
    return np.asarray(together * weight[pairs.group])
