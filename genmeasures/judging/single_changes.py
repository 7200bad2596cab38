"""Pairs of models that differ in exactly one hyperparameter."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from genmeasures.judging.hparam_grid import distinct_codes
from genmeasures.judging.ranks import Floats


class SingleChanges(NamedTuple):
    """Pairs of models that differ in exactly one hyperparameter, sorted by it and by group; see :func:`single_changes`.

    A group are all models that agree in all other hyperparameters.
    """

    first: NDArray[np.int64]
    """(pairs,): index of the first model."""
    second: NDArray[np.int64]
    """(pairs,): index of the second model."""
    group: NDArray[np.int64]
    """(pairs,): index of the group, in ascending order."""
    hparam: NDArray[np.int64]
    """(pairs,): index of the hyperparameter that differs, in ascending order."""

    def agreement(self, measures: Floats, gap: Floats) -> Floats:
        """float64 (m, pairs): sgn(Δmeasure)·sgn(Δgap) of measures (m, n) and gaps (n,)."""
        return np.asarray(self._signs(measures) * self._signs(gap))

    def _signs(self, values: Floats) -> Floats:
        a, b = values[..., self.first], values[..., self.second]
        return np.asarray((a > b).astype(np.float64) - (a < b))


def single_changes(hparams: pd.DataFrame) -> SingleChanges:
    """Find the pairs of models that differ in exactly one hyperparameter.

    Args:
        hparams: (n, k) values of k hyperparameters, a complete grid or not.

    Returns:
        The pairs.

    Raises:
        DataError: Two models share all hyperparameters, or the DataFrame cannot be used.

    Example:
        >>> pairs = single_changes(pd.DataFrame({"lr": [0.1, 0.1, 0.2], "norm": ["batch", "none", "none"]}))
        >>> list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.hparam.tolist()))
        [(1, 2, 0), (0, 1, 1)]
    """
    codes = distinct_codes(hparams)
    parts = []
    before = 0
    for hparam, differs in enumerate(differ_in_one(codes)):
        first, second = np.nonzero(np.triu(differs))
        others = np.unique(np.delete(codes, hparam, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        order = np.argsort(others[first], kind="stable")
        group = before + np.unique(others[first][order], return_inverse=True)[1].reshape(-1)
        before = int(group.max(initial=before - 1)) + 1
        parts.append((first[order], second[order], group, np.full(len(first), hparam)))
    return SingleChanges(*(np.concatenate(columns).astype(np.int64) for columns in zip(*parts, strict=True)))


def differ_in_one(codes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which pairs of models differ in each hyperparameter and in no other.

    Args:
        codes: int64 of shape (n, k).

    Returns:
        bool of shape (k, n, n), symmetric.

    Example:
        >>> differ_in_one(np.array([[0, 0], [0, 1], [1, 1]]))[1].astype(int)
        array([[0, 1, 0],
               [1, 0, 0],
               [0, 0, 0]])
    """
    differ = codes.T[:, :, None] != codes.T[:, None, :]
    return np.asarray(differ & (differ.sum(axis=0) == 1))


def pairwise_signs(x: Floats) -> Floats:
    """float64 (n, n): sgn(x_i − x_j), without differences that could overflow.

    Example:
        >>> pairwise_signs(np.array([1.0, 2.0]))
        array([[ 0., -1.],
               [ 1.,  0.]])
    """
    return (x[:, None] > x[None, :]).astype(np.float64) - (x[:, None] < x[None, :])
