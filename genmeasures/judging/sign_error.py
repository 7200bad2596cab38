"""Sign error of a measure as one hyperparameter changes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from genmeasures.errors import OptionError, Undefined
from genmeasures.interfaces import is_count
from genmeasures.judging.hparam_grid import any_grid
from genmeasures.judging.ranks import Floats
from genmeasures.judging.single_changes import SingleChanges, differ_in_one, pairwise_signs


def sign_errors(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame, test_size: int) -> pd.DataFrame:
    """Sign error of a measure for each hyperparameter: how often it misorders two models by their gaps.

    An environment is a hyperparameter: all pairs of models that differ in it and in no other. The error of a pair is
    (1 − sgn Δmeasure · sgn Δgap)/2: 0, 1, or ½ for a tie. Its weight is
    max(0, 1 − 2·exp(−2·test_size·(Δgap/2)²))², by Hoeffding's inequality small where the difference of the gaps may
    be noise of the test set. The grid need not be complete.

    Args:
        measure: float64 of shape (n,).
        gap: float64 of shape (n,), of accuracies between 0 and 1.
        hparams: (n, k) values of k ≥ 1 hyperparameters, one row per model.
        test_size: Number of test samples behind the gaps.

    Returns:
        One row per hyperparameter. Columns: ``hparam``; ``error`` (float64: weighted mean between 0 and 1, NaN where
        all weights are 0); ``pairs`` (int64: number of unordered pairs); ``weight`` (float64: sum of their weights).

    Raises:
        OptionError: ``test_size`` is not a positive integer.
        DataError: The lengths differ, a value is not finite, or models share all hyperparameters.

    Source: Dziugaite et al., In Search of Robust Measures of Generalization (2020).

    Example:
        >>> hparams = pd.DataFrame({"lr": [0.1, 0.1, 0.2, 0.2], "norm": ["batch", "none"] * 2})
        >>> sign_errors([1, 2, 4, 3], [0.1, 0.2, 0.3, 0.4], hparams, 10_000)["error"].tolist()
        [0.0, 0.5]
    """
    if not is_count(test_size):
        raise OptionError(f"sign_errors: test_size must be a positive integer, got {test_size!r}")
    values, gaps, codes = any_grid(measure, gap, hparams)
    error = (1.0 - pairwise_signs(values) * pairwise_signs(gaps)) / 2
    weight = _pair_weights(gaps[:, None] - gaps[None, :], test_size)
    rows = []
    for hparam, differs in zip(hparams.columns, differ_in_one(codes), strict=True):
        pairs = np.triu(differs)
        total = float(weight[pairs].sum())
        mean = float((weight * error)[pairs].sum()) / total if total > 0 else np.nan
        rows.append((hparam, mean, int(pairs.sum()), total))
    return pd.DataFrame(rows, columns=["hparam", "error", "pairs", "weight"])


def worst_sign_error(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame, test_size: int) -> float:
    """Largest of the :func:`sign_errors` of a measure over hyperparameters.

    Args:
        measure: As for :func:`sign_errors`.
        gap: As for :func:`sign_errors`.
        hparams: As for :func:`sign_errors`.
        test_size: As for :func:`sign_errors`.

    Returns:
        A number between 0 and 1; ½ is chance.

    Raises:
        OptionError: ``test_size`` is not a positive integer.
        DataError: As for :func:`sign_errors`.
        Undefined: No hyperparameter has an error.

    Example:
        >>> hparams = pd.DataFrame({"lr": [0.1, 0.1, 0.2, 0.2], "norm": ["batch", "none"] * 2})
        >>> worst_sign_error([1, 2, 4, 3], [0.1, 0.2, 0.3, 0.4], hparams, 10_000)
        0.5
    """
    errors = sign_errors(measure, gap, hparams, test_size)["error"]
    if errors.isna().all():
        raise Undefined(
            "the sign error needs two models that differ in exactly one hyperparameter and whose gaps differ "
            f"significantly on {test_size} test samples, got none"
        )
    return float(errors.max())


def sign_error_weights(pairs: SingleChanges, gap: Floats, test_size: int) -> Floats:
    """Weights of the errors of pairs for each hyperparameter, as in :func:`sign_errors`, with sum 1.

    Args:
        pairs: Pairs of n models that differ in exactly one hyperparameter.
        gap: float64 of shape (n,).
        test_size: Number of test samples behind the gaps.

    Returns:
        float64 of shape (pairs, k), for k hyperparameters with pairs; NaN where all weights are 0.

    Example:
        >>> from genmeasures.judging.single_changes import single_changes
        >>> pairs = single_changes(pd.DataFrame({"lr": [0.1, 0.1, 0.2], "norm": ["batch", "none", "none"]}))
        >>> sign_error_weights(pairs, np.array([0.1, 0.2, 0.3]), 10_000)
        array([[1., 0.],
               [0., 1.]])
    """
    weight = _pair_weights(gap[pairs.first] - gap[pairs.second], test_size)
    own = np.where(pairs.hparam[:, None] == np.unique(pairs.hparam), weight[:, None], 0.0)
    total = own.sum(axis=0)
    return np.asarray(own / np.where(total > 0, total, np.nan))


def _pair_weights(difference: Floats, test_size: int) -> Floats:
    """Weights of pairs by Hoeffding's inequality, from differences of gaps of any shape."""
    return np.asarray(np.maximum(0.0, 1.0 - 2.0 * np.exp(-2.0 * test_size * (difference / 2) ** 2)) ** 2)
