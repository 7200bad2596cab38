"""Judge a measure on a grid of hyperparameters: the PGDL score, granulated Kendall, worst-case sign error.

In all of this module a measure and a gap are array-likes with one finite number for each of n models,
and ``hparams`` is a frame of n rows in the same order, by position whatever its index, with a column
for each hyperparameter. A hyperparameter's values may be of any hashable type, a missing value is a
value of its own, and a constant hyperparameter counts.

Every function raises :class:`~genmeasures.errors.DataError` where lengths differ, a number is not
finite, a name stands for two columns, a value cannot be compared (a list), or two models share all
hyperparameters. The PGDL score and the conditional mutual information also need at least two
hyperparameters and a model for every combination of their values.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from genmeasures.errors import DataError, OptionError, Undefined, nearest
from genmeasures.interfaces import is_count
from genmeasures.judging.correlation import Floats
from genmeasures.judging.resampling import resample_counts

MODES = ("official", "symmetric")
"""With the pairs of a model with itself, as the competition scored; and without."""

_OFFSET = 1e-12
"""What the official scorer adds to a probability in the logarithm of its entropy."""

_PAIRS = 1 << 20
"""Pairs of models, times measures, that are held at once."""
_SINGLE = 4096
"""Up to so many models counts of pairs are exact in single precision."""

_SHOWN = 5
"""How many rows or positions an error message lists."""


class AlonePairs(NamedTuple):
    """Pairs of models that differ in one hyperparameter alone, sorted by it and by their group."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    group: NDArray[np.int64]
    """(pairs,): number of the models that agree in all other hyperparameters, in ascending order."""
    hparam: NDArray[np.int64]
    """(pairs,): number of the hyperparameter that differs, in ascending order."""

    def agreement(self, measures: Floats, gap: Floats) -> Floats:
        """float64 (m, pairs): sgn(Δmeasure)·sgn(Δgap) of measures (m, n)."""
        a, b = measures[:, self.first], measures[:, self.second]
        signs = (a > b).astype(np.float64) - (a < b)
        return np.asarray(signs * self._order(gap))

    def _order(self, gap: Floats) -> Floats:
        a, b = gap[self.first], gap[self.second]
        return np.asarray((a > b).astype(np.float64) - (a < b))


class GranulatedKendall(NamedTuple):
    """ψ, and the frame it is the mean of; see :func:`granulated_kendall`."""

    psi: float
    hparams: pd.DataFrame


def pgdl_score(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame, mode: str = "official") -> float:
    """Score of a task in the competition "Predicting Generalization in Deep Learning".

    The least :func:`pgdl_pairs` score over all pairs of hyperparameters; the competition reports 100
    times its mean over tasks. Whether a measure rises or falls with the gap is not judged, yet
    the official figure depends on its sign: the pairs of a model with itself count as "not larger".

    Args:
        measure: float64 (n,), only the order of its values matters.
        gap: float64 (n,), train accuracy − test accuracy.
        hparams: (n, k) values of k ≥ 2 hyperparameters, a complete grid.
        mode: "official" or "symmetric", see :data:`MODES`.

    Returns:
        Between 0 and 1.

    Raises:
        OptionError: the mode is unknown.
        DataError: the arrays do not fit, are not finite, or the grid is not complete; see the module.
        Undefined: two hyperparameters, named, leave no uncertainty about the order of the gaps, so that
            the score of the pair is 0/0. This is always so with two hyperparameters and no more.

    Source: Jiang et al., NeurIPS 2020 Competition: Predicting Generalization in Deep Learning (2020).
    """
    pairs = pgdl_pairs(measure, gap, hparams, mode)
    lost = pairs["score"].isna()
    if lost.any():
        names = [] if np.ptp(np.asarray(gap)) == 0 else pairs.loc[lost, ["first", "second"]].iloc[0].tolist()
        raise Undefined(_no_entropy(names, int(lost.sum()), len(pairs)))
    return float(pairs["score"].min())


def pgdl_pairs(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame, mode: str = "official") -> pd.DataFrame:
    """What a measure tells of the order of gaps beyond each pair of hyperparameters.

    For hyperparameters a and b, all ordered pairs (i, j) of models are sliced by (a_i, a_j, b_i, b_j).
    In each slice, with G = [gap_i > gap_j] and M = [measure_i > measure_j], both strict, I is the
    mutual information of G and M and H = −Σ p_G·log₂(p_G + 1e-12), in bits. All ``|a|²·|b|²`` slices have
    the same weight. The symmetric mode leaves out i = j; a slice without pairs then adds 0 to both means,
    which leaves their ratio as it is.

    In the symmetric mode the score of −measure is that of measure, unless both gaps and measures
    have ties.

    Arguments and errors are those of :func:`pgdl_score`, but for ``Undefined``.

    Returns:
        One row for each unordered pair of hyperparameters. Columns: ``first``, ``second``,
        ``information`` (mean I, float64), ``entropy`` (mean H, float64), ``score`` (their ratio, float64,
        between 0 and 1, NaN where no slice has entropy) and ``minimum`` (bool): whether the pair decides
        the score of the task, False everywhere if a score is NaN.
    """
    mu, g = _finite("measure", measure), _finite("gap", gap)
    codes = grid_codes(hparams)
    _same_length(mu, g, codes)
    sets = list(itertools.combinations(range(codes.shape[1]), 2))
    found = _condition(mu[None], g, codes, sets, self_pairs=_self_pairs(mode), offset=_OFFSET, uniform=True)
    score = found.ratio()[0]
    return pd.DataFrame(
        {
            "first": [hparams.columns[a] for a, _ in sets],
            "second": [hparams.columns[b] for _, b in sets],
            "information": found.information[0],
            "entropy": found.entropy,
            "score": score,
            # A NaN makes the minimum NaN, which nothing equals.
            "minimum": score == score.min(),
        }
    )


def pair_scores(measures: Floats, gap: Floats, codes: NDArray[np.int64], mode: str = "official") -> Floats:
    """The scores of :func:`pgdl_pairs` for many measures at once.

    Args:
        measures: float64 (m, n), finite.
        gap: float64 (n,), finite.
        codes: int64 (n, k) of :func:`grid_codes`.
        mode: as for :func:`pgdl_score`.

    Returns:
        float64 (m, k·(k − 1)/2), columns in the order of ``itertools.combinations(range(k), 2)``.
        Their least along the last axis is the score of each measure, NaN where it is undefined.

    Raises:
        OptionError: the mode is unknown.
    """
    sets = list(itertools.combinations(range(codes.shape[1]), 2))
    return _condition(measures, gap, codes, sets, self_pairs=_self_pairs(mode), offset=_OFFSET, uniform=True).ratio()


def conditional_mutual_information(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame, size: int) -> float:
    """K of "Fantastic Generalization Measures": a variant of the PGDL score, not the official figure.

    K = min over all sets S of at most ``size`` hyperparameters of I(V_μ, V_g | U_S) / H(V_g | U_S),
    the empty set included. Over all ordered pairs (i, j) of models with i ≠ j, V = [x_i > x_j], strict,
    so that a tie counts as "not larger", where the paper's sign leaves it open; U_S are the values of S
    in both models. I and H are the conditional mutual information and the conditional entropy over the
    sample of pairs: every slice is weighted by p(U_S), its share of the pairs. 0·log 0 = 0, nothing is
    added to a probability.

    :func:`pgdl_score` in the symmetric mode differs in three things: sets of exactly two, equal weights of all
    slices, and 1e-12 in the logarithm of the entropy.

    Args:
        measure, gap, hparams: as for :func:`pgdl_score`.
        size: largest number of hyperparameters conditioned on: 0, 1 or 2 (the paper's).

    Returns:
        Between 0 and 1, no larger for a larger ``size``.

    Raises:
        OptionError: ``size`` is not 0, 1 or 2.
        DataError: as for :func:`pgdl_score`.
        Undefined: a set, named, leaves no uncertainty about the order of the gaps. With two
            hyperparameters and no more this is always so at size 2.

    Source: Jiang et al., Fantastic Generalization Measures and Where to Find Them (2020), section 2.2.3.
    """
    if size not in (0, 1, 2):
        raise OptionError(f"conditional_mutual_information: size={size!r} must be 0, 1 or 2")
    mu, g = _finite("measure", measure), _finite("gap", gap)
    codes = grid_codes(hparams)
    _same_length(mu, g, codes)
    sets = [s for r in range(size + 1) for s in itertools.combinations(range(codes.shape[1]), r)]
    ratio = _condition(mu[None], g, codes, sets, self_pairs=False, offset=0.0, uniform=False).ratio()[0]
    lost = np.flatnonzero(np.isnan(ratio))
    if len(lost):
        raise Undefined(_no_entropy([hparams.columns[a] for a in sets[lost[0]]], len(lost), len(sets)))
    return float(ratio.min())


def set_scores(measures: Floats, gap: Floats, codes: NDArray[np.int64]) -> Floats:
    """K of :func:`conditional_mutual_information` for many measures at once, with size 0, 1 and 2.

    Args:
        measures: float64 (m, n), finite.
        gap: float64 (n,), finite.
        codes: int64 (n, k) of :func:`grid_codes`.

    Returns:
        float64 (m, 3), NaN where a set leaves no uncertainty about the order of the gaps.
    """
    sets = [s for r in range(3) for s in itertools.combinations(range(codes.shape[1]), r)]
    ratio = _condition(measures, gap, codes, sets, self_pairs=False, offset=0.0, uniform=False).ratio()
    upto = (1, 1 + codes.shape[1], len(sets))
    return np.stack([ratio[:, :number].min(axis=1) for number in upto], axis=1)


def granulated_kendall(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame) -> GranulatedKendall:
    """Granulated Kendall coefficient ψ: does a measure follow the gap as one hyperparameter changes?

    For each hyperparameter, the models that agree in all the others form a group. τ of a group of c
    models is that of the source, Kendall's τ-a: Σ sgn(Δmeasure)·sgn(Δgap) over ordered pairs, divided by
    c·(c − 1), so that a tie of the measure earns nothing (τ-b would forgive it). A group of one model, or
    whose gaps are all equal, has no order to be found: it is left out and counted, for every measure alike.
    The grid need not be complete.

    Args:
        measure: float64 (n,).
        gap: float64 (n,).
        hparams: (n, k) values of k ≥ 1 hyperparameters.

    Returns:
        ``psi``: the mean of τ over hyperparameters that have one, between −1 and 1. ``hparams``: one row a
        hyperparameter, with the columns ``hparam``, ``kendall`` (float64: mean τ of its groups, NaN
        without any), ``groups`` (int64: those used) and ``left_out`` (int64).

    Raises:
        DataError: the arrays do not fit or are not finite, or models repeat; see the module.
        Undefined: no group has a τ.

    Source: Jiang et al., Fantastic Generalization Measures and Where to Find Them (2020), section 2.2.2.
    """
    mu, g, codes = _loose(measure, gap, hparams)
    agreement = _signs(mu) * _signs(g)
    uneven = np.abs(_signs(g))
    rows = []
    for hparam, alone in zip(hparams.columns, _differ_alone(codes), strict=True):
        # Within a group all pairs differ alone, so that each model knows the size of its own.
        size = alone.sum(axis=1) + 1.0
        leader = ~np.tril(alone).any(axis=1)
        together = alone | np.eye(len(g), dtype=bool)
        total = together[leader] @ (agreement * alone).sum(axis=1)
        usable = together[leader] @ (uneven * alone).sum(axis=1) > 0
        c = size[leader][usable]
        tau = total[usable] / (c * (c - 1))
        mean = float(tau.mean()) if len(tau) else np.nan
        rows.append((hparam, mean, len(tau), int(leader.sum()) - len(tau)))
    frame = pd.DataFrame(rows, columns=["hparam", "kendall", "groups", "left_out"])
    if frame["kendall"].isna().all():
        raise Undefined("no two models with different gaps differ in one hyperparameter alone: there is no Kendall τ")
    return GranulatedKendall(float(frame["kendall"].mean()), frame)


def alone_pairs(hparams: pd.DataFrame) -> AlonePairs:
    """The pairs of models of a grid (n, k), complete or not, that differ in one hyperparameter alone.

    Raises DataError where models repeat or the frame cannot be used; see the module.
    """
    codes, values = _encode(hparams)
    _check_repeats(hparams, codes, values)
    parts = []
    before = 0
    for hparam, alone in enumerate(_differ_alone(codes)):
        first, second = np.nonzero(np.triu(alone))
        others = np.unique(np.delete(codes, hparam, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        order = np.argsort(others[first], kind="stable")
        group = before + np.unique(others[first][order], return_inverse=True)[1].reshape(-1)
        before = int(group.max(initial=before - 1)) + 1
        parts.append((first[order], second[order], group, np.full(len(first), hparam)))
    return AlonePairs(*(np.concatenate(columns).astype(np.int64) for columns in zip(*parts, strict=True)))


def psi_weights(pairs: AlonePairs, gap: Floats, counts: Floats) -> Floats:
    """What each pair counts for in ψ, whose value is the sum of these times :meth:`AlonePairs.agreement`.

    A pair counts as often as its models are drawn together; a model drawn twice is no pair with itself.

    Args:
        pairs: of n models.
        gap: float64 (n,).
        counts: float64 (R, n), how often each model is drawn in each resample.

    Returns:
        float64 (pairs, R); NaN in a resample without any group that has a τ.
    """
    turned = counts.T
    together = turned[pairs.first] * turned[pairs.second]
    if not len(together):
        return np.asarray(together)
    starts = np.flatnonzero(np.diff(pairs.group, prepend=-1))
    total = np.add.reduceat(together, starts, axis=0)
    uneven = (gap[pairs.first] != gap[pairs.second]).astype(np.float64)
    usable = np.add.reduceat(together * uneven[:, None], starts, axis=0) > 0
    hparams = pairs.hparam[starts]
    begin = np.flatnonzero(np.diff(hparams, prepend=-1))
    groups = np.add.reduceat(usable.astype(np.float64), begin, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = usable / total / groups[np.searchsorted(hparams[begin], hparams)] / (groups > 0).sum(axis=0)
    share = np.where(usable, share, 0.0)
    share[:, ~usable.any(axis=0)] = np.nan
    return np.asarray(together * share[pairs.group])


def sign_error_weights(pairs: AlonePairs, gap: Floats, test_size: int) -> Floats:
    """float64 (pairs, k): weights of the errors of :func:`sign_errors`, which add up to 1; NaN where all are 0."""
    difference = gap[pairs.first] - gap[pairs.second]
    weight = np.maximum(0.0, 1.0 - 2.0 * np.exp(-2.0 * test_size * (difference / 2) ** 2)) ** 2
    own = np.where(pairs.hparam[:, None] == np.unique(pairs.hparam), weight[:, None], 0.0)
    total = own.sum(axis=0)
    return np.asarray(own / np.where(total > 0, total, np.nan))


def sign_errors(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame, test_size: int) -> pd.DataFrame:
    """How often a measure mistakes which of two models has the larger gap, for each hyperparameter.

    An environment is a hyperparameter: all pairs of models that differ in it alone. The error of a pair is
    (1 − sgn Δmeasure · sgn Δgap)/2: 0, 1, or ½ for a tie. Its weight is
    max(0, 1 − 2·exp(−2·test_size·(Δgap/2)²))², by Hoeffding's inequality small where the difference of gaps
    may be noise of the test set. The grid need not be complete.

    Args:
        measure: float64 (n,).
        gap: float64 (n,), of accuracies between 0 and 1.
        hparams: (n, k) values of k ≥ 1 hyperparameters.
        test_size: number of test samples behind the gaps.

    Returns:
        One row a hyperparameter. Columns: ``hparam``, ``error`` (float64: weighted mean between 0 and 1,
        NaN where all weights are 0), ``pairs`` (int64: unordered pairs) and ``weight`` (float64: its sum over them).

    Raises:
        OptionError: ``test_size`` is not an integer of at least 1.
        DataError: the arrays do not fit or are not finite, or models repeat; see the module.

    Source: Dziugaite et al., In Search of Robust Measures of Generalization (2020).
    """
    if not is_count(test_size):
        raise OptionError(f"sign_errors: test_size={test_size!r} must be an integer of at least 1")
    mu, g, codes = _loose(measure, gap, hparams)
    error = (1.0 - _signs(mu) * _signs(g)) / 2
    difference = g[:, None] - g[None, :]
    weight = np.maximum(0.0, 1.0 - 2.0 * np.exp(-2.0 * test_size * (difference / 2) ** 2)) ** 2
    rows = []
    for hparam, alone in zip(hparams.columns, _differ_alone(codes), strict=True):
        pairs = np.triu(alone)
        total = float(weight[pairs].sum())
        mean = float((weight * error)[pairs].sum()) / total if total > 0 else np.nan
        rows.append((hparam, mean, int(pairs.sum()), total))
    return pd.DataFrame(rows, columns=["hparam", "error", "pairs", "weight"])


def worst_sign_error(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame, test_size: int) -> float:
    """The largest of :func:`sign_errors`, over the hyperparameters that have one.

    Arguments and errors are those of :func:`sign_errors`.

    Returns:
        Between 0 and 1; ½ is chance.

    Raises:
        Undefined: no hyperparameter has an error.
    """
    errors = sign_errors(measure, gap, hparams, test_size)["error"]
    if errors.isna().all():
        raise Undefined(
            f"no two models that differ in one hyperparameter alone have gaps that {test_size} test samples tell apart"
        )
    return float(errors.max())


def score_table(
    scores: pd.DataFrame,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int | np.random.Generator = 0,
) -> pd.DataFrame:
    """Mean score over tasks with a percentile bootstrap interval over tasks.

    Args:
        scores: float64 (measures, tasks), 100 × :func:`pgdl_score`, NaN where it is undefined.
        confidence: probability that the intervals are to hold.
        resamples: number of bootstrap resamples over tasks, shared by all measures.
        seed: of the resamples, or the generator that draws them.

    Returns:
        ``scores`` with ``mean``, ``low`` and ``high`` added, float64 (measures, tasks + 3). All three
        are NaN for a measure without a score on some task: its mean would not compare with the others'.
        ``low`` and ``high`` are NaN where there is one task only.

    Raises:
        OptionError: an option is out of range.
        DataError: there is no task, a score is infinite or no number, or a task has the name of an added column.

    Source: Efron, Nonparametric standard errors and confidence intervals (1981).
    """
    if not 0 < confidence < 1:
        raise OptionError(f"score_table: confidence={confidence!r} must lie between 0 and 1")
    if not is_count(resamples):
        raise OptionError(f"score_table: resamples={resamples!r} must be an integer of at least 1")
    taken = [name for name in ("mean", "low", "high") if name in scores.columns]
    if taken:
        raise DataError(f"score_table: a task cannot be named {taken[0]!r}, which is a column of the table")
    if scores.shape[1] == 0:
        raise DataError("score_table: there is no task")
    values = _numbers("scores", scores)
    if np.isinf(values).any():
        raise DataError(f"score_table: {int(np.isinf(values).sum())} scores are infinite")
    tasks = values.shape[1]
    bounds = np.full((2, len(values)), np.nan)
    if tasks > 1:
        counts = resample_counts(tasks, resamples, np.random.default_rng(seed))
        bounds = np.quantile(counts @ values.T / tasks, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return scores.assign(mean=values.mean(axis=1), low=bounds[0], high=bounds[1])


def grid_codes(hparams: pd.DataFrame) -> NDArray[np.int64]:
    """Number the values of each hyperparameter of a complete grid.

    Args:
        hparams: (n, k) values of k ≥ 2 hyperparameters.

    Returns:
        int64 (n, k): 0, 1, … in the order in which a column's values first appear.

    Raises:
        DataError: there are fewer than two hyperparameters, a combination repeats (its rows are named) or
            is missing (one is named), or the frame cannot be used; see the module.
    """
    _check_frame(hparams)
    if hparams.shape[1] < 2:
        raise DataError(f"the score needs at least 2 hyperparameters, not {hparams.shape[1]}")
    codes, values = _encode(hparams)
    keys = set(_check_repeats(hparams, codes, values))
    sizes = [len(v) for v in values]
    combinations = 1
    for size in sizes:
        combinations *= size
    if len(keys) < combinations:
        key = next(i for i in itertools.count() if i not in keys)
        digits: list[int] = []
        for size in reversed(sizes):
            key, digit = divmod(key, size)
            digits.insert(0, digit)
        missing = [v[digit] for v, digit in zip(values, digits, strict=True)]
        raise DataError(
            f"the grid of hyperparameters is not complete: {combinations - len(keys)} of {combinations} combinations "
            f"have no model, for one {_combination(hparams, missing)}"
        )
    return codes


class _Conditional(NamedTuple):
    """Of m measures and s conditioning sets: bits of information (m, s) and entropy (s,), and whether any is there."""

    information: Floats
    entropy: Floats
    defined: NDArray[np.bool_]

    def ratio(self) -> Floats:
        """float64 (m, s): information / entropy, NaN without entropy."""
        entropy = np.where(self.defined, self.entropy, np.nan)
        # The 1e-12 of the entropy, and rounding, can carry a perfect measure just past 1.
        return np.clip(self.information / entropy, 0.0, 1.0)


class _Slices(NamedTuple):
    """Ordered pairs of models, sliced by the cells (c) of the grid that the two lie in."""

    member: Floats  # (n, c): 1 where a model lies in a cell
    pairs: Floats  # (c, c): pairs in a slice
    higher: Floats  # (c, c): those of which the first has the larger gap
    weights: Floats  # (c, c): of a slice in the mean


def _condition(
    measures: Floats,
    gap: Floats,
    codes: NDArray[np.int64],
    sets: Sequence[tuple[int, ...]],
    *,
    self_pairs: bool,
    offset: float,
    uniform: bool,
) -> _Conditional:
    """Information of measures (m, n) on the order of gaps (n,), given the hyperparameters in each set."""
    g = (gap[:, None] > gap[None, :]).astype(np.float64)
    slices = [_slice(g, codes[:, list(s)], self_pairs=self_pairs, uniform=uniform) for s in sets]
    information = np.empty((len(measures), len(sets)))
    # Some measures at a time: memory stays bounded, and the products carry the cost.
    step = max(_PAIRS // len(gap) ** 2, 1)
    for start in range(0, len(measures), step):
        mu = measures[start : start + step]
        # Counts of pairs are integers below 2^24 for up to 4096 models: single precision is exact.
        m = (mu[:, :, None] > mu[:, None, :]).astype(np.float32 if len(gap) <= _SINGLE else np.float64)
        both = m * g.astype(m.dtype)
        for column, s in enumerate(slices):
            information[start : start + step, column] = (s.weights * _information(s, m, both)).sum(axis=(1, 2))
    entropy = np.array([float((s.weights * _entropy(s, offset)).sum()) for s in slices])
    defined = np.array([bool(((s.higher > 0) & (s.higher < s.pairs)).any()) for s in slices])
    return _Conditional(information, entropy, defined)


def _slice(g: Floats, codes: NDArray[np.int64], *, self_pairs: bool, uniform: bool) -> _Slices:
    """Slice by the columns of codes (n, r); of r = 0 columns there is one cell."""
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
    """float64 (m, c, c): mutual information, in bits, of gap and measure being larger, from (m, n, n) indicators."""
    member = s.member.astype(m.dtype)
    larger, joint = ((member.T @ (pairs @ member)).astype(np.float64) for pairs in (m, both))
    total = np.maximum(s.pairs, 1.0)
    found = np.zeros_like(joint)
    for cell, of_gap, of_measure in (
        (joint, s.higher, larger),
        (s.higher - joint, s.higher, s.pairs - larger),
        (larger - joint, s.pairs - s.higher, larger),
        (s.pairs - s.higher - larger + joint, s.pairs - s.higher, s.pairs - larger),
    ):
        # Counts are integers: independent cells give a ratio of exactly 1.
        ratio = np.divide(cell * total, of_gap * of_measure, out=np.ones_like(cell), where=cell > 0)
        found += cell / total * np.log2(ratio)
    return np.asarray(found)


def _entropy(s: _Slices, offset: float) -> Floats:
    """float64 (c, c): −Σ p·log₂(p + offset) of the gap being larger; 0 of a slice without pairs."""
    found = np.zeros_like(s.pairs)
    for count in (s.higher, s.pairs - s.higher):
        p = count / np.maximum(s.pairs, 1.0)
        found -= p * np.log2(p + offset, out=np.zeros_like(p), where=p > 0)
    return found


def _self_pairs(mode: str) -> bool:
    if mode not in MODES:
        raise OptionError(f"pgdl: unknown mode {mode!r}{nearest(str(mode), MODES)}")
    return mode == "official"


def _no_entropy(names: Sequence[object], lost: int, of: int) -> str:
    """Why a ratio is 0/0, from the names of one of the sets without entropy: none if all gaps are equal."""
    if not names:
        return "all gaps are equal: there is no order of gaps to be told"
    return (
        f"the values of {' and '.join(repr(name) for name in names)} leave no uncertainty about the order of the gaps "
        f"({lost} of {of} sets of hyperparameters): the score is 0/0"
    )


def _signs(x: Floats) -> Floats:
    """float64 (n, n): sgn(x_i − x_j), without forming differences that could overflow."""
    return (x[:, None] > x[None, :]).astype(np.float64) - (x[:, None] < x[None, :])


def _differ_alone(codes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool (k, n, n): pairs of models that differ in each hyperparameter and in no other."""
    differ = codes.T[:, :, None] != codes.T[:, None, :]
    return np.asarray(differ & (differ.sum(axis=0) == 1))


def _loose(measure: ArrayLike, gap: ArrayLike, hparams: pd.DataFrame) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Measure (n,), gap (n,) and codes (n, k) of a grid that need not be complete."""
    mu, g = _finite("measure", measure), _finite("gap", gap)
    _check_frame(hparams)
    if hparams.shape[1] == 0:
        raise DataError("there is no hyperparameter")
    codes, values = _encode(hparams)
    _same_length(mu, g, codes)
    _check_repeats(hparams, codes, values)
    return mu, g, codes


def _numbers(name: str, values: ArrayLike | pd.DataFrame) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} holds something that is no number: {error}") from error


def _finite(name: str, values: ArrayLike) -> Floats:
    """Finite float64 (n,)."""
    x = _numbers(name, values)
    if x.ndim != 1:
        raise DataError(f"{name} has the shape {x.shape}; one value a model is needed")
    lost = np.flatnonzero(~np.isfinite(x))
    if len(lost):
        raise DataError(f"{name} is not finite for {len(lost)} of {len(x)} models, at index {_listed(lost)}")
    return x


def _same_length(mu: Floats, g: Floats, codes: NDArray[np.int64]) -> None:
    if not len(mu) == len(g) == len(codes):
        raise DataError(
            f"measure has {len(mu)} values, gap {len(g)} and hparams {len(codes)} rows: one a model is needed"
        )


def _check_frame(hparams: object) -> None:
    if not isinstance(hparams, pd.DataFrame):
        kind = type(hparams).__name__
        raise DataError(f"hparams is of type {kind}, a pandas DataFrame is expected, a row for each model")


def _encode(hparams: pd.DataFrame) -> tuple[NDArray[np.int64], list[list[object]]]:
    """Codes int64 (n, k), and the values that they stand for."""
    _check_frame(hparams)
    if not hparams.columns.is_unique:
        repeated = hparams.columns[hparams.columns.duplicated()][0]
        raise DataError(f"hparams has more than one column {repeated!r}")
    if len(hparams) == 0:
        raise DataError("hparams has no rows, so there is no model")
    codes = np.empty(hparams.shape, dtype=np.int64)
    values: list[list[object]] = []
    for index, (name, column) in enumerate(hparams.items()):
        try:
            codes[:, index], found = pd.factorize(column, use_na_sentinel=False)
        except TypeError as error:
            raise DataError(f"hyperparameter {name!r} has values that cannot be compared: {error}") from error
        values.append(found.tolist())
    return codes, values


def _check_repeats(hparams: pd.DataFrame, codes: NDArray[np.int64], values: list[list[object]]) -> list[int]:
    """The number of each model's combination, or an error if two models share one."""
    keys = [0] * len(codes)
    for column in codes.T:
        # Python's integers: a wide table has more combinations than 64 bits count.
        size = int(column.max()) + 1
        keys = [key * size + int(code) for key, code in zip(keys, column, strict=True)]
    if len(set(keys)) < len(keys):
        _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        rows = np.flatnonzero(inverse.reshape(-1) == np.flatnonzero(counts > 1)[0])
        combination = _combination(hparams, [v[code] for v, code in zip(values, codes[rows[0]], strict=True)])
        raise DataError(
            f"models share all hyperparameters: rows {_listed(rows)} have {combination}"
            f"; combinations that repeat: {int((counts > 1).sum())}; a seed that tells them apart is a hyperparameter"
        )
    return keys


def _combination(hparams: pd.DataFrame, values: Sequence[object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in zip(hparams.columns, values, strict=True))


def _listed(positions: NDArray[np.int64]) -> str:
    return ", ".join(str(p) for p in positions[:_SHOWN]) + (", …" if len(positions) > _SHOWN else "")
