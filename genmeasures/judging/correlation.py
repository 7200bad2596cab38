"""Correlation coefficients of many measures on many resamples of the models at once.

A resample of n models is stored as counts: how often each model was drawn. Every coefficient here is a
function of the counts, so that R resamples of m measures are a few products of matrices; leaving a model
out, for a jackknife, is a resample as well. Models drawn by whole groups are counts, too.

In all of this module x is float64 (m, n) or (n,), finite, one row a measure; y float64 (t, n) or (n,),
one row a target; counts float64 (R, n), one row a resample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from genmeasures.errors import DataError

Floats: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats, Floats, Floats | None], Floats]

MIN_MODELS = 3
"""With two models every coefficient is +1 or −1."""

_CANCELLATION = 1e-3
"""Below this share of the mean square, a variance by sums of squares has lost digits and is computed again."""
_UNDERFLOW = 1e-200
"""Below this sum of squares, of values up to 1, so have the squares themselves."""
_ROUNDING = 1e-10
"""Residuals below this share of what was regressed are rounding: a linear model explains everything."""
_CACHED = 1 << 16
"""Elements of the arrays that ranks are computed in."""
_BLOCK = 1 << 23
"""Elements of a block of pairs × resamples."""


def is_constant(x: Floats) -> bool:
    """Whether finite values (n,) differ by no more than rounding does: by 1e-13 of the largest."""
    return bool(len(x) == 0 or np.ptp(x) <= 1e-13 * np.abs(x).max())


def pearson(x: Floats, y: Floats, counts: Floats | None = None) -> Floats:
    """Pearson's product-moment correlation.

    Args:
        x: float64 (m, n) or (n,).
        y: float64 (t, n) or (n,).
        counts: float64 (R, n), how often each model counts in each resample; None takes each once.

    Returns:
        float64 (m, t, R), without the axes that were not given. NaN where x or y is constant or not
        finite, or n < 3.

    Raises:
        DataError: the shapes do not fit.

    Example:
        >>> x, y = np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 5.0])
        >>> round(float(pearson(x, y)), 3)
        0.839
    """
    return _apply(_pearson, x, y, counts)


def spearman(x: Floats, y: Floats, counts: Floats | None = None) -> Floats:
    """Spearman's rank correlation, ties given their mean rank, ranked anew in every resample.

    Arguments, result and errors are those of :func:`pearson`.
    """
    return _apply(_spearman, x, y, counts)


def kendall(x: Floats, y: Floats, counts: Floats | None = None) -> Floats:
    """Kendall's tau-b: (concordant − discordant) / √((pairs untied in x)·(pairs untied in y)).

    A model drawn twice is a pair tied in both. Arguments, result and errors are those of
    :func:`pearson`. Source: Kendall, The treatment of ties in ranking problems (Biometrika 1945).
    """
    return _apply(_kendall, x, y, counts)


STATISTICS: Mapping[str, Statistic] = MappingProxyType({"pearson": pearson, "spearman": spearman, "kendall": kendall})
"""The coefficients that measures are judged by."""


def partial_pearson(x: Floats, y: Floats, given: Floats, counts: Floats | None = None) -> Floats:
    """Pearson's correlation of what linear regressions on ``given``, with intercept, leave of x and y.

    Args:
        x, y, counts: as for :func:`pearson`. Every resample has regressions of its own.
        given: float64 (n, q); q may be 0, which is Pearson's correlation.

    Returns:
        As :func:`pearson`. NaN also where the regression leaves fewer than two degrees of freedom, or
        nothing of x or y.

    Raises:
        DataError: the shapes do not fit.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z, x, y = rng.normal(size=(3, 50))
        >>> round(float(partial_pearson(x + 9 * z, y - 9 * z, z[:, None])), 6) == round(
        ...     float(partial_pearson(x, y, z[:, None])), 6
        ... )
        True
    """
    return _apply(_partial(ranked=False), x, y, counts, given)


def partial_spearman(x: Floats, y: Floats, given: Floats, counts: Floats | None = None) -> Floats:
    """:func:`partial_pearson` of the ranks of x, y and each column of ``given``, ranked anew in every resample."""
    return _apply(_partial(ranked=True), x, y, counts, given)


def residuals(values: Floats, given: Floats) -> Floats:
    """What linear regressions on ``given`` (n, q), with intercept, leave of the rows of values (m, n).

    float64 (m, n), of unit length; NaN where nothing is left.
    """
    return _residuals(values, _basis(given, np.ones(len(given))), np.ones(len(given)))


def rank_of(given: Floats) -> int:
    """How many degrees of freedom an intercept and regressors (n, q) take."""
    return int(_basis(given, np.ones(len(given))).shape[1])


def centerd_ranks(values: Floats) -> Floats:
    """Mean ranks (m, n) of rows of values, less the mean of the ranks; exact halves."""
    ones = np.ones((values.shape[1], 1))
    return np.stack([_order(row).ranks(ones)[:, 0] for row in values]) if len(values) else values


def basis_of(given: Floats) -> Floats:
    """float64 (n, rank): orthonormal columns that span an intercept and the regressors (n, q)."""
    return _basis(given, np.ones(len(given)))


def pair_blocks(n: int, width: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs i < j of n models, as blocks of index arrays; of a size that fits arrays (pairs, width)."""
    first, second = np.triu_indices(n, 1)
    step = max(_BLOCK // max(width, 1), 1)
    return [(first[s : s + step], second[s : s + step]) for s in range(0, len(first), step)]


def dense_codes(values: Floats) -> NDArray[np.float32]:
    """Rows of values (m, n) as ranks without gaps, ties alike: what signs of differences need, exactly."""
    return np.stack([np.unique(row, return_inverse=True)[1] for row in values]).astype(np.float32)


# The coefficients of batches: x (m, n), y (t, n), counts (R, n), given (n, q) → (m, t, R)

_Batch: TypeAlias = Callable[[Floats, Floats, Floats, Floats], Floats]


def _apply(statistic: _Batch, x: Floats, y: Floats, counts: Floats | None, given: Floats | None = None) -> Floats:
    """Check the shapes, leave out what is not finite, and drop the axes that were not given."""
    if x.ndim not in (1, 2) or y.ndim not in (1, 2) or x.shape[-1] != y.shape[-1]:
        raise DataError(f"a correlation needs two arrays of the same length, not of shapes {x.shape} and {y.shape}")
    n = x.shape[-1]
    if counts is not None and (counts.ndim != 2 or counts.shape[1] != n):
        raise DataError(f"counts must have the shape (resamples, {n}), not {counts.shape}")
    if given is not None and (given.ndim != 2 or len(given) != n):
        raise DataError(f"given must have the shape ({n}, regressors), not {given.shape}")
    rows, columns = np.atleast_2d(x), np.atleast_2d(y)
    weights = np.ones((1, n)) if counts is None else counts
    made = np.full((len(rows), len(columns), len(weights)), np.nan)
    usable = [_varies(values) for values in (rows, columns)]
    regressors = np.empty((n, 0)) if given is None else given
    if n >= MIN_MODELS and np.isfinite(regressors).all() and usable[0].any() and usable[1].any():
        made[np.ix_(*usable)] = statistic(rows[usable[0]], columns[usable[1]], weights, regressors)
    shape = (*x.shape[:-1], *y.shape[:-1], *([] if counts is None else [len(weights)]))
    return made.reshape(shape)


def _varies(values: Floats) -> NDArray[np.bool_]:
    """(m,): which rows (m, n) are finite and not constant."""
    finite = np.isfinite(values).all(axis=1)
    moves = (values != values[:, :1]).any(axis=1) if values.shape[1] else np.zeros(len(values), dtype=np.bool_)
    return np.asarray(finite & moves)


def _pearson(x: Floats, y: Floats, counts: Floats, given: Floats) -> Floats:
    turned = np.ascontiguousarray(counts.T)
    total = counts.sum(axis=1)
    rows, columns = _scaled(x), _scaled(y)
    sums_x, sums_y = rows @ turned, columns @ turned
    squares_x, squares_y = rows**2 @ turned, columns**2 @ turned
    alone_x, alone_y = squares_x - sums_x**2 / total, squares_y - sums_y**2 / total
    sound_x, sound_y = (
        (alone > _CANCELLATION * squares) & (squares > _UNDERFLOW)
        for alone, squares in ((alone_x, squares_x), (alone_y, squares_y))
    )
    made = np.empty((len(x), len(y), len(counts)))
    for place, column in enumerate(columns):
        together = (rows * column) @ turned - sums_x * sums_y[place] / total
        made[:, place] = _ratio(together, alone_x, alone_y[place])
        # Without its largest models, what is left of a measure may be tiny beside their mean: once more, with care.
        for row, lost in enumerate(~(sound_x & sound_y[place])):
            if lost.any():
                made[row, place, lost] = _careful_pearson(x[row], y[place], counts[lost])
    return made


def _careful_pearson(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Pearson's coefficient (R,) from deviations of every resample, whatever their size."""
    dx, dy = (_deviations(v, counts) for v in (x, y))
    coefficient = _ratio(_product(counts, dx, dy), _product(counts, dx, dx), _product(counts, dy, dy))
    # Exact, where rounding of the means could leave a constant resample with some variance.
    total = counts.sum(axis=1)
    turned = counts.T
    constant = (_order(x).sizes(turned).max(axis=0) == total) | (_order(y).sizes(turned).max(axis=0) == total)
    return np.where(constant, np.nan, coefficient)


def _spearman(x: Floats, y: Floats, counts: Floats, given: Floats) -> Floats:
    orders_x, orders_y = [_order(row) for row in x], [_order(row) for row in y]
    made = np.empty((len(x), len(y), len(counts)))
    # Some resamples at a time: ranks that fit into a processor's cache.
    step = max(_CACHED // x.shape[1], 16)
    for start in range(0, len(counts), step):
        turned = np.ascontiguousarray(counts[start : start + step].T)
        targets = []
        for order in orders_y:
            ranks = order.ranks(turned)
            targets.append((turned * ranks, np.einsum("nr,nr,nr->r", turned, ranks, ranks)))
        for place, order in enumerate(orders_x):
            ranks = order.ranks(turned)
            alone = np.einsum("nr,nr,nr->r", turned, ranks, ranks)
            for column, (weighted, other) in enumerate(targets):
                together = np.einsum("nr,nr->r", weighted, ranks)
                made[place, column, start : start + step] = _ratio(together, alone, other)
    return made


def _kendall(x: Floats, y: Floats, counts: Floats, given: Floats) -> Floats:
    turned = np.ascontiguousarray(counts.T)
    total = counts.sum(axis=1)
    untied_x, untied_y = (
        np.stack([(total**2 - (_order(row).sizes(turned) ** 2).sum(axis=0)) / 2 for row in values]) for values in (x, y)
    )
    codes_x, codes_y = dense_codes(x), dense_codes(y)
    drawn = turned.astype(np.float32)
    concordance = np.zeros((len(x), len(y), len(counts)))
    for first, second in pair_blocks(x.shape[1], max(len(counts), len(x))):
        # Sums of integers below 2^24 a block: single precision is exact.
        both = drawn[first] * drawn[second]
        signs = np.sign(codes_x[:, first] - codes_x[:, second])
        for place, code in enumerate(codes_y):
            concordance[:, place] += (signs * np.sign(code[first] - code[second])) @ both
    return _ratio(concordance, untied_x[:, None], untied_y[None])


def _partial(ranked: bool) -> _Batch:
    def statistic(x: Floats, y: Floats, counts: Floats, given: Floats) -> Floats:
        orders = [[_order(row) for row in rows] for rows in (x, y, given.T)] if ranked else []
        # Of few groups there are few different resamples.
        different, which = np.unique(counts, axis=0, return_inverse=True)
        found = np.full((len(x), len(y), len(different)), np.nan)
        for place, weights in enumerate(different):
            parts = (x, y, given.T)
            if ranked:
                parts = tuple(  # type: ignore[assignment]
                    np.array([order.ranks(weights[:, None])[:, 0] for order in of]).reshape(values.shape)
                    for of, values in zip(orders, parts, strict=True)
                )
            rows, columns, regressors = parts
            basis = _basis(regressors.T, weights)
            if weights.sum() - basis.shape[1] < 2:
                continue
            left, right = (_residuals(values, basis, weights) for values in (rows, columns))
            found[..., place] = np.clip(left @ right.T, -1.0, 1.0)
        return found[..., which.reshape(-1)]

    return statistic


def _basis(given: Floats, weights: Floats) -> Floats:
    """float64 (n, rank): orthonormal columns that span √w times an intercept and the regressors (n, q)."""
    drawn = weights > 0
    centered = given - np.average(given, axis=0, weights=weights)
    scale = np.abs(centered[drawn]).max(0, initial=0.0)
    # What is constant but for rounding would otherwise come out as a regressor of noise.
    moves = scale > 1e-13 * np.abs(given[drawn]).max(0, initial=0.0)
    scaled = np.divide(centered, scale, out=np.zeros_like(centered), where=moves)
    roots = np.sqrt(weights)[:, None]
    left, sizes, _ = np.linalg.svd(roots * np.column_stack([np.ones(len(given)), scaled]), full_matrices=False)
    return np.asarray(left[:, sizes > _ROUNDING * sizes[0]])


def _residuals(values: Floats, basis: Floats, weights: Floats) -> Floats:
    """√w times the residuals of the rows of values (m, n), of unit length; NaN where nothing is left."""
    drawn = weights > 0
    centered = np.where(drawn, values - np.average(values, axis=1, weights=weights)[:, None], 0.0)
    largest = np.abs(centered).max(axis=1, keepdims=True)
    constant = largest[:, 0] <= 1e-13 * np.abs(np.where(drawn, values, 0.0)).max(axis=1)
    centered = np.sqrt(weights) * centered / np.where(largest > 0, largest, 1.0)
    left = centered - (centered @ basis) @ basis.T
    length, whole = np.linalg.norm(left, axis=1), np.linalg.norm(centered, axis=1)
    lost = constant | (length <= _ROUNDING * whole)
    return np.asarray(left / np.where(lost, np.nan, length)[:, None])


class _Order(NamedTuple):
    """The order of n values, and where the ties of each lie in it."""

    places: NDArray[np.int64]
    """(n,): the models in ascending order."""
    begin: NDArray[np.int64]
    """(n,): of each place in that order, where its ties begin."""
    end: NDArray[np.int64]
    """(n,): and the place after their last."""

    def ranks(self, turned: Floats) -> Floats:
        """(n, R): mean ranks within each resample, counts (n, R), less the mean of the ranks; exact halves."""
        below = np.zeros((len(turned) + 1, turned.shape[1]))
        np.cumsum(turned[self.places], axis=0, out=below[1:])
        # Ties from rank a + 1 to b have the mean rank (a + b + 1)/2, and the mean of all ranks is (total + 1)/2.
        found = (below[self.begin] + below[self.end] - below[-1]) / 2
        made = np.empty_like(found)
        made[self.places] = found
        return np.asarray(made)

    def sizes(self, turned: Floats) -> Floats:
        """(groups, R): how many of each resample, counts (n, R), have each value."""
        starts = np.flatnonzero(self.begin == np.arange(len(self.begin)))
        if len(starts) == len(turned):
            return turned
        return np.asarray(np.add.reduceat(turned[self.places], starts, axis=0))


def _order(values: Floats) -> _Order:
    places = np.argsort(values, kind="stable")
    ascending = values[places]
    return _Order(places, np.searchsorted(ascending, ascending), np.searchsorted(ascending, ascending, side="right"))


def _scaled(values: Floats) -> Floats:
    """(m, n): deviations of rows from their means, in units of the largest one."""
    largest = np.abs(values).max(axis=1, keepdims=True)
    scaled = values / np.maximum(largest, np.finfo(np.float64).tiny)
    centered = scaled - scaled.mean(axis=1, keepdims=True)
    spread = np.abs(centered).max(axis=1, keepdims=True)
    return np.asarray(centered / np.where(spread > 0, spread, 1.0))


def _product(weights: Floats, a: Floats, b: Floats) -> Floats:
    """(R,): Σ_i w_i a_i b_i of every resample."""
    return np.asarray(np.einsum("rn,rn,rn->r", weights, a, b))


def _ratio(together: Floats, alone_x: Floats, alone_y: Floats) -> Floats:
    """together / √(alone_x · alone_y) within [−1, 1], NaN where one of them is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = together / (np.sqrt(alone_x) * np.sqrt(alone_y))
    return np.where((alone_x > 0) & (alone_y > 0), np.clip(ratio, -1.0, 1.0), np.nan)


def _deviations(v: Floats, weights: Floats) -> Floats:
    """(R, n): deviations from the mean of each resample, in units of the largest one in that resample."""
    scaled = v / max(np.abs(v).max(), np.finfo(np.float64).tiny)
    means = weights @ scaled / weights.sum(axis=1)
    deviations = np.where(weights > 0, scaled[None, :] - means[:, None], 0.0)
    # Linear densities span hundreds of orders of magnitude: without the largest model, squares would underflow.
    largest = np.abs(deviations).max(axis=1, keepdims=True)
    return np.asarray(deviations / np.where(largest > 0, largest, 1.0))
