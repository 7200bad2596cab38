"""Bootstrap resamples, jackknife samples and permutations of models."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmeasures.judging.bootstrap import MIN_UNITS, widening
from genmeasures.judging.permutation import Permutations, permutations
from genmeasures.judging.ranks import Floats
from genmeasures.judging.regression import rank_of


@dataclass(frozen=True)
class Draws:
    """Resamples and permutations of n models, shared by all measures; see :func:`draw`."""

    counts: Floats
    """(R, n): bootstrap resamples."""
    left_out: Floats
    """(units, n): each model, or group, left out once."""
    orders: Permutations | None
    """(P, n): permutations; None where groups differ in size and are not exchangeable."""
    exhaustive: bool
    """Whether these are all permutations."""
    grouped: bool
    """Whether units are groups of models."""
    covariates: Floats | None
    """(n, q): covariates of partial correlations."""

    @property
    def units(self) -> int:
        """Number of models, or groups, that are resampled."""
        return len(self.left_out)

    @functools.cached_property
    def covariate_rank(self) -> int:
        """Degrees of freedom that the covariates use."""
        return 0 if self.covariates is None else rank_of(self.covariates) - 1

    @property
    def enough(self) -> bool:
        """Whether there are enough units for an interval."""
        return self.units - self.covariate_rank >= MIN_UNITS

    @property
    def widen(self) -> float:
        """Factor of the normal quantiles of intervals."""
        return widening(self.units, self.covariate_rank)


def draw(
    n: int, resamples: int, seed: int, groups: NDArray[np.int64] | None = None, covariates: Floats | None = None
) -> Draws:
    """Draw resamples and permutations of n models, equal for equal seeds.

    Args:
        n: Number of models.
        resamples: Number of bootstrap resamples, and of permutations where not all are enumerated.
        seed: Seed of both.
        groups: int64 of shape (n,) from :func:`group_codes`, or None.
        covariates: float64 of shape (n, q), or None.

    Returns:
        The resamples and permutations.

    Example:
        >>> draws = draw(10, resamples=100, seed=0)
        >>> draws.counts.shape, draws.units, draws.exhaustive
        ((100, 10), 10, False)
    """
    rng = np.random.default_rng(seed)
    counts = resample_counts(n, resamples, rng, groups)
    drawn = permutations(n, resamples, rng, groups)
    orders, exhaustive = (None, False) if drawn is None else drawn
    return Draws(counts, left_out_counts(n, groups), orders, exhaustive, groups is not None, covariates)


def group_codes(groups: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    """Encode group labels as integers.

    Args:
        groups: Label of each of n models; labels are compared as strings.

    Returns:
        int64 of shape (n,): the index of each model's group among the sorted labels.

    Example:
        >>> group_codes(["run b", "run a", "run b"])
        array([1, 0, 1])
    """
    return np.unique(np.asarray(groups).astype(str), return_inverse=True)[1].reshape(-1).astype(np.int64)


def dummies(labels: Sequence[Any] | NDArray[Any]) -> Floats:
    """Dummy coding of a categorical variable: one indicator for each level except the first in sorted order.

    Args:
        labels: Level of each of n models; levels are compared as strings.

    Returns:
        float64 of shape (n, levels − 1).

    Example:
        >>> dummies(["dice", "mse", "dice"])
        array([[0.],
               [1.],
               [0.]])
    """
    codes = group_codes(labels)
    return np.eye(int(codes.max(initial=0)) + 1)[codes][:, 1:]


def resample_counts(
    n: int, resamples: int, rng: np.random.Generator, groups: NDArray[np.int64] | None = None
) -> Floats:
    """Draw bootstrap resamples of models with replacement.

    Args:
        n: Number of models.
        resamples: Number R of resamples.
        rng: Random number generator.
        groups: int64 of shape (n,) from :func:`group_codes`. Whole groups are then drawn (cluster bootstrap),
            as many as there are.

    Returns:
        float64 of shape (R, n): how often each resample contains each model.

    Example:
        >>> counts = resample_counts(5, 3, np.random.default_rng(0))
        >>> counts.shape, counts.sum(axis=1)
        ((3, 5), array([5., 5., 5.]))
    """
    units = n if groups is None else int(groups.max()) + 1
    counts = rng.multinomial(units, np.full(units, 1.0 / units), size=resamples).astype(np.float64)
    return np.asarray(counts if groups is None else counts[:, groups])


def left_out_counts(n: int, groups: NDArray[np.int64] | None = None) -> Floats:
    """Jackknife samples: every model once, except for one model, or one group.

    Args:
        n: Number of models.
        groups: int64 of shape (n,) from :func:`group_codes`, or None.

    Returns:
        float64 of shape (units, n).

    Example:
        >>> left_out_counts(3)
        array([[0., 1., 1.],
               [1., 0., 1.],
               [1., 1., 0.]])
    """
    codes = np.arange(n) if groups is None else groups
    kept = codes[None, :] != np.arange(int(codes.max()) + 1)[:, None]
    return np.asarray(kept, dtype=np.float64)
