"""Conditional mutual information between the order of a measure and the order of gaps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from genmeasures.errors import OptionError, Undefined
from genmeasures.judging.hparam_grid import complete_grid
from genmeasures.judging.ranks import Floats

_PAIRS = 1 << 20
"""Number of pairs of models × measures in memory at once."""
_SINGLE = 4096
"""Largest number of models whose counts of pairs are exact in single precision."""


def conditional_mutual_information(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame, size: int) -> float:
    """Normalized conditional mutual information K between the orders of a measure and of the gap.

    K = min over all sets S of at most ``size`` hyperparameters of I(V_μ, V_g | U_S) / H(V_g | U_S), including the
    empty set. The sample consists of all ordered pairs (i, j) of models with i ≠ j. V = [x_i > x_j] is strict: a tie
    counts as "not larger", which the paper leaves open. U_S are the values of S in both models. I and H are the
    conditional mutual information and the conditional entropy of the sample: each slice has the weight p(U_S), its
    fraction of the pairs, and 0·log 0 = 0.

    This is not the official PGDL score. :func:`pgdl_score` in the symmetric mode differs in three points: it takes
    sets of exactly two hyperparameters, weights all slices equally, and adds 1e-12 in the logarithm of the entropy.

    Args:
        measure: float64 of shape (n,); only the order of its values matters.
        gap: float64 of shape (n,), train accuracy − test accuracy.
        hparams: (n, k) values of k ≥ 2 hyperparameters, a complete grid with one row per model.
        size: Largest number of hyperparameters in S: 0, 1 or 2 (the paper's).

    Returns:
        A number between 0 and 1, not larger for a larger ``size``.

    Raises:
        OptionError: ``size`` is not 0, 1 or 2.
        DataError: The lengths differ, a value is not finite, or the grid is not complete or has duplicates.
        Undefined: A set, which is named, leaves no uncertainty about the order of the gaps. With two
            hyperparameters this is always so for size 2.

    Source: Jiang et al., Fantastic Generalization Measures and Where to Find Them (2020), section 2.2.3.

    Example:
        >>> hparams = pd.DataFrame({"lr": [0.1, 0.1, 0.2, 0.2], "norm": ["batch", "none"] * 2})
        >>> round(conditional_mutual_information([1, 3, 2, 4], [0.1, 0.2, 0.3, 0.4], hparams, 0), 3)
        0.35
    """
    if size not in (0, 1, 2):
        raise OptionError(f"conditional_mutual_information: size must be 0, 1 or 2, got {size!r}")
    values, gaps, codes = complete_grid(measure, gap, hparams)
    sets = [s for r in range(size + 1) for s in itertools.combinations(range(codes.shape[1]), r)]
    ratio = conditional_information(values[None], gaps, codes, sets).ratio()[0]
    undefined = np.flatnonzero(np.isnan(ratio))
    if len(undefined):
        names = [hparams.columns[a] for a in sets[undefined[0]]]
        raise Undefined(no_entropy(names, len(undefined), len(sets)))
    return float(ratio.min())


def set_scores(measures: Floats, gap: Floats, codes: NDArray[np.int64]) -> Floats:
    """:func:`conditional_mutual_information` of many measures, with size 0, 1 and 2.

    Args:
        measures: float64 of shape (m, n), finite.
        gap: float64 of shape (n,), finite.
        codes: int64 of shape (n, k), from :func:`~genmeasures.judging.hparam_grid.grid_codes`.

    Returns:
        float64 of shape (m, 3), NaN where a set leaves no uncertainty about the order of the gaps.

    Example:
        >>> codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> set_scores(np.array([[1.0, 3.0, 2.0, 4.0]]), np.array([0.1, 0.2, 0.3, 0.4]), codes).round(3)
        array([[0.35, 0.35,  nan]])
    """
    sets = [s for r in range(3) for s in itertools.combinations(range(codes.shape[1]), r)]
    ratio = conditional_information(measures, gap, codes, sets).ratio()
    ends = (1, 1 + codes.shape[1], len(sets))
    return np.stack([ratio[:, :end].min(axis=1) for end in ends], axis=1)


def no_entropy(names: Sequence[object], undefined: int, sets: int) -> str:
    """Message that a ratio is 0/0, with the hyperparameters of a set without entropy: none if all gaps are equal.

    Args:
        names: names of the hyperparameters of one such set.
        undefined: number of such sets.
        sets: number of all sets.

    Example:
        >>> no_entropy(["width"], 1, 3)
        "the values of 'width' determine the order of the gaps (1 of 3 sets of hyperparameters): the score is 0/0"
    """
    if not names:
        return "all gaps are equal: models have no order by gap"
    return (
        f"the values of {' and '.join(repr(name) for name in names)} determine the order of the gaps "
        f"({undefined} of {sets} sets of hyperparameters): the score is 0/0"
    )


class ConditionalInformation(NamedTuple):
    """Mutual information and entropy, in bits, of m measures given each of s sets of hyperparameters."""

    information: Floats
    """(m, s): I(V_μ, V_g | U_S)."""
    entropy: Floats
    """(s,): H(V_g | U_S)."""
    defined: NDArray[np.bool_]
    """(s,): whether the entropy is positive."""

    def ratio(self) -> Floats:
        """float64 (m, s): information / entropy, NaN without entropy."""
        entropy = np.where(self.defined, self.entropy, np.nan)
        # The offset of the entropy, and rounding, can raise the ratio of a perfect measure just above 1.
        return np.clip(self.information / entropy, 0.0, 1.0)


class _Slices(NamedTuple):
    """Ordered pairs of models, sliced by the cells (c) of the grid that contain the two models."""

    member: Floats  # (n, c): 1 where a model lies in a cell
    pairs: Floats  # (c, c): number of pairs in a slice
    higher: Floats  # (c, c): number of pairs whose first model has the larger gap
    weights: Floats  # (c, c): weight of a slice in the mean


def conditional_information(
    measures: Floats,
    gap: Floats,
    codes: NDArray[np.int64],
    sets: Sequence[tuple[int, ...]],
    *,
    self_pairs: bool = False,
    offset: float = 0.0,
    uniform: bool = False,
) -> ConditionalInformation:
    """Mutual information of the orders of measures and gaps, conditional on sets of hyperparameters.

    Args:
        measures: float64 of shape (m, n), finite.
        gap: float64 of shape (n,), finite.
        codes: int64 of shape (n, k), from :func:`~genmeasures.judging.hparam_grid.grid_codes`.
        sets: Columns of ``codes`` in each of s sets.
        self_pairs: Whether the pairs (i, i) belong to the sample.
        offset: Constant that is added to a probability in the logarithm of the entropy.
        uniform: Whether all slices have the same weight, instead of their fraction of the pairs.

    Returns:
        Information and entropy.

    Example:
        >>> codes, measure = np.array([[0], [1]]), np.array([[1.0, 2.0]])
        >>> conditional_information(measure, measure[0], codes, [(), (0,)]).ratio()  # () is the empty set
        array([[ 1., nan]])
    """
    g = (gap[:, None] > gap[None, :]).astype(np.float64)
    slices = [_slice(g, codes[:, list(s)], self_pairs=self_pairs, uniform=uniform) for s in sets]
    information = np.empty((len(measures), len(sets)))
    # A few measures at a time: memory stays bounded.
    step = max(_PAIRS // len(gap) ** 2, 1)
    for start in range(0, len(measures), step):
        mu = measures[start : start + step]
        # Counts of pairs are integers below 2^24 for up to 4096 models: single precision is exact.
        m = (mu[:, :, None] > mu[:, None, :]).astype(np.float32 if len(gap) <= _SINGLE else np.float64)
        joint = m * g.astype(m.dtype)
        for column, s in enumerate(slices):
            information[start : start + step, column] = (s.weights * _information(s, m, joint)).sum(axis=(1, 2))
    entropy = np.array([float((s.weights * _entropy(s, offset)).sum()) for s in slices])
    defined = np.array([bool(((s.higher > 0) & (s.higher < s.pairs)).any()) for s in slices])
    return ConditionalInformation(information, entropy, defined)


def _slice(g: Floats, codes: NDArray[np.int64], *, self_pairs: bool, uniform: bool) -> _Slices:
    """Slices by the columns of codes (n, r); r = 0 columns have one cell."""
    cell = np.zeros(len(codes), dtype=np.int64)
    for column in codes.T:
        cell = cell * (column.max() + 1) + column
    member = (cell[:, None] == np.arange(cell.max() + 1)).astype(np.float64)
    inside = member.sum(axis=0)
    pairs = np.outer(inside, inside)
    if not self_pairs:
        pairs -= np.diag(inside)
    weights = np.full_like(pairs, 1 / pairs.size) if uniform else pairs / max(pairs.sum(), 1.0)
    return _Slices(member, pairs, member.T @ g @ member, weights)


def _information(s: _Slices, m: NDArray[Any], both: NDArray[Any]) -> Floats:
    """float64 (m, c, c): mutual information in bits of "larger gap" and "larger measure", from (m, n, n) indicators."""
    member = s.member.astype(m.dtype)
    larger, joint = ((member.T @ (pairs @ member)).astype(np.float64) for pairs in (m, both))
    total = np.maximum(s.pairs, 1.0)
    information = np.zeros_like(joint)
    for cell, of_gap, of_measure in (
        (joint, s.higher, larger),
        (s.higher - joint, s.higher, s.pairs - larger),
        (larger - joint, s.pairs - s.higher, larger),
        (s.pairs - s.higher - larger + joint, s.pairs - s.higher, s.pairs - larger),
    ):
        # Counts are integers: the ratio of independent cells is exactly 1.
        ratio = np.divide(cell * total, of_gap * of_measure, out=np.ones_like(cell), where=cell > 0)
        information += cell / total * np.log2(ratio)
    return np.asarray(information)


def _entropy(s: _Slices, offset: float) -> Floats:
    """float64 (c, c): −Σ p·log₂(p + offset) of "larger gap"; 0 for a slice without pairs."""
    entropy = np.zeros_like(s.pairs)
    for count in (s.higher, s.pairs - s.higher):
        p = count / np.maximum(s.pairs, 1.0)
        entropy -= p * np.log2(p + offset, out=np.zeros_like(p), where=p > 0)
    return entropy
