"""Score of the NeurIPS competition "Predicting Generalization in Deep Learning" (PGDL)."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from genmeasures.errors import OptionError, Undefined, nearest
from genmeasures.judging.hparam_grid import complete_grid
from genmeasures.judging.mutual_information import ConditionalInformation, conditional_information, no_entropy
from genmeasures.judging.ranks import Floats

MODES = ("official", "symmetric")
"""With the pairs (i, i) of a model with itself, as the competition scored, and without them."""

_OFFSET = 1e-12
"""Constant that the official scorer adds to a probability in the logarithm of its entropy."""


def pgdl_score(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame, mode: str = "official") -> float:
    """PGDL score of a measure on one task.

    The score is the minimum of the :func:`pgdl_pairs` scores over all pairs of hyperparameters. The competition
    reports 100 times its mean over tasks. The score does not judge whether a measure grows or falls with the gap.
    The official mode still depends on the sign of the measure, because pairs (i, i) count as "not larger".

    Args:
        measure: float64 of shape (n,); only the order of its values matters.
        gap: float64 of shape (n,), train accuracy − test accuracy.
        hparams: (n, k) values of k ≥ 2 hyperparameters, a complete grid with one row per model.
        mode: "official" includes the pairs of a model with itself, "symmetric" excludes them.

    Returns:
        A number between 0 and 1.

    Raises:
        OptionError: The mode is unknown.
        DataError: The lengths differ, a value is not finite, or the grid is not complete or has duplicates.
        Undefined: Two hyperparameters, which are named, leave no uncertainty about the order of the gaps: the score
            of the pair is 0/0. With only two hyperparameters this is always so.

    Source: Jiang et al., NeurIPS 2020 Competition: Predicting Generalization in Deep Learning (2020).

    Example:
        >>> hparams = pd.DataFrame(list(np.ndindex(2, 2, 2)), columns=["width", "depth", "lr"])
        >>> gap = [3, 1, 2, 6, 4, 8, 5, 7]
        >>> pgdl_score(gap, gap, hparams), round(pgdl_score([5, 1, 4, 2, 8, 3, 7, 6], gap, hparams), 3)
        (1.0, 0.258)
    """
    pairs = pgdl_pairs(measure, gap, hparams, mode)
    undefined = pairs["score"].isna()
    if undefined.any():
        names = [] if np.ptp(np.asarray(gap)) == 0 else pairs.loc[undefined, ["first", "second"]].iloc[0].tolist()
        raise Undefined(no_entropy(names, int(undefined.sum()), len(pairs)))
    return float(pairs["score"].min())


def pgdl_pairs(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame, mode: str = "official") -> pd.DataFrame:
    """Normalized mutual information of the orders of measure and gap, conditional on each pair of hyperparameters.

    For hyperparameters a and b, all ordered pairs (i, j) of models are sliced by (a_i, a_j, b_i, b_j). In each slice,
    with G = [gap_i > gap_j] and M = [measure_i > measure_j], both strict, I is the mutual information of G and M and
    H = −Σ p_G·log₂(p_G + 1e-12), both in bits. All ``|a|²·|b|²`` slices have the same weight. The symmetric mode
    excludes i = j; slices without pairs then add 0 to both means, which does not change their ratio.

    In the symmetric mode the score of −measure equals that of measure, unless both gaps and measures have ties.

    Args:
        measure: As for :func:`pgdl_score`.
        gap: As for :func:`pgdl_score`.
        hparams: As for :func:`pgdl_score`.
        mode: As for :func:`pgdl_score`.

    Returns:
        One row per unordered pair of hyperparameters. Columns: ``first``, ``second``; ``information`` (mean I,
        float64); ``entropy`` (mean H, float64); ``score`` (their ratio, float64 between 0 and 1, NaN where no slice
        has entropy); ``minimum`` (bool): whether the pair determines the score of the task, False everywhere if a
        score is NaN.

    Raises:
        OptionError: The mode is unknown.
        DataError: As for :func:`pgdl_score`.

    Example:
        >>> hparams = pd.DataFrame(list(np.ndindex(2, 2, 2)), columns=["width", "depth", "lr"])
        >>> pairs = pgdl_pairs([3, 1, 2, 6, 8, 4, 5, 7], [3, 1, 2, 6, 4, 8, 5, 7], hparams)
        >>> pairs[["first", "second", "minimum"]].values.tolist()
        [['width', 'depth', False], ['width', 'lr', False], ['depth', 'lr', True]]
    """
    values, gaps, codes = complete_grid(measure, gap, hparams)
    sets = _hparam_pairs(codes)
    result = _pair_information(values[None], gaps, codes, mode)
    score = result.ratio()[0]
    return pd.DataFrame(
        {
            "first": [hparams.columns[a] for a, _ in sets],
            "second": [hparams.columns[b] for _, b in sets],
            "information": result.information[0],
            "entropy": result.entropy,
            "score": score,
            # A NaN makes the minimum NaN, which equals nothing.
            "minimum": score == score.min(),
        }
    )


def pair_scores(measures: Floats, gap: Floats, codes: NDArray[np.int64], mode: str = "official") -> Floats:
    """Scores of :func:`pgdl_pairs` for many measures at once.

    Args:
        measures: float64 of shape (m, n), finite.
        gap: float64 of shape (n,), finite.
        codes: int64 of shape (n, k), from :func:`~genmeasures.judging.hparam_grid.grid_codes`.
        mode: As for :func:`pgdl_score`.

    Returns:
        float64 of shape (m, k·(k − 1)/2), columns in the order of ``itertools.combinations(range(k), 2)``. The
        minimum over the last axis is the score of each measure, NaN where it is undefined.

    Raises:
        OptionError: The mode is unknown.

    Example:
        >>> codes = np.array(list(np.ndindex(2, 2, 2)))
        >>> pair_scores(np.arange(8.0)[None], np.arange(8.0), codes, "symmetric")
        array([[1., 1., 1.]])
    """
    return _pair_information(measures, gap, codes, mode).ratio()


def _pair_information(measures: Floats, gap: Floats, codes: NDArray[np.int64], mode: str) -> ConditionalInformation:
    if mode not in MODES:
        raise OptionError(f"pgdl: unknown mode {mode!r}{nearest(str(mode), MODES)}")
    sets = _hparam_pairs(codes)
    return conditional_information(
        measures, gap, codes, sets, self_pairs=mode == "official", offset=_OFFSET, uniform=True
    )


def _hparam_pairs(codes: NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(codes.shape[1]), 2))
