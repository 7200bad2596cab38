"""Bootstrap over inputs: how often each resample contains each input, and intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Estimator: TypeAlias = Callable[[Floats, Floats], Floats]
"""Takes weights of the inputs, float64 (R, validation inputs) and (R, target inputs), to estimates (R, …)."""

MIN_INPUTS = 8
"""Smallest number of inputs of a split with an interval."""

_SPLITS = ("validation", "target")
_BLOCK = 1 << 22
"""Elements of the weights that are in memory at a time."""
_SAME = 1e-12


def input_counts(inputs: int, resamples: int, seed: int, split: str) -> Iterator[NDArray[np.float64]]:
    """Draw bootstrap resamples of the inputs of a split, in blocks.

    The draws depend on the seed, the split and the number of inputs alone: all models are compared on the same ones.

    Args:
        inputs: number N of inputs.
        resamples: number of resamples.
        seed: seed of the draws.
        split: "validation" or "target".

    Yields:
        float64 (R, N), how often each resample has each input.

    Example:
        >>> [block] = input_counts(5, 3, 0, "target")
        >>> block.shape, block.sum(axis=1)
        ((3, 5), array([5., 5., 5.]))
    """
    rng = np.random.default_rng([seed, _SPLITS.index(split)])
    for start in range(0, resamples, rows := block_rows(inputs)):
        count = min(rows, resamples - start)
        block = np.empty((count, inputs))
        for row in block:
            row[:] = np.bincount(rng.integers(inputs, size=inputs), minlength=inputs)
        yield block


def block_rows(width: int) -> int:
    """Number of resamples at a time for arrays of that width.

    Example:
        >>> block_rows(1 << 22)
        1
    """
    return max(1, _BLOCK // max(1, width))


@dataclass(frozen=True)
class Resampled:
    """An estimate with its bootstrap distribution."""

    value: Floats
    """(…): the estimate of all inputs."""
    resamples: Floats
    """(R, …): of each resample; NaN where it is undefined."""


def resample(estimator: Estimator, validation: int, target: int, resamples: int, seed: int) -> Resampled:
    """Evaluate an estimator on all inputs, and on bootstrap resamples of the inputs of both splits.

    Args:
        estimator: see :data:`Estimator`.
        validation: number of validation inputs.
        target: number of target inputs.
        resamples: number of resamples.
        seed: seed of the draws.

    Returns:
        The estimate, and those of the resamples.

    Example:
        >>> accuracy = np.array([1.0, 0.0, 1.0, 1.0])
        >>> result = resample(lambda _, weights: weights @ accuracy / weights.sum(1), 2, 4, 100, 0)
        >>> float(result.value), result.resamples.shape
        (0.75, (100,))
    """
    value = estimator(np.ones((1, validation)), np.ones((1, target)))[0]
    of_validation, of_target = (
        input_counts(size, resamples, seed, split) for size, split in zip((validation, target), _SPLITS, strict=True)
    )
    # The wider split decides how many resamples are in memory; the other one is cut alike.
    blocks = [estimator(*pair) for pair in _aligned(of_validation, of_target)]
    return Resampled(np.asarray(value), np.concatenate(blocks))


def _aligned(first: Iterator[Floats], second: Iterator[Floats]) -> Iterator[tuple[Floats, Floats]]:
    left, right = next(first, None), next(second, None)
    while left is not None and right is not None:
        rows = min(len(left), len(right))
        yield left[:rows], right[:rows]
        left = left[rows:] if len(left) > rows else next(first, None)
        right = right[rows:] if len(right) > rows else next(second, None)


def interval(resamples: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Percentile intervals of bootstrap resamples.

    Args:
        resamples: (R, …), NaN where a resample is undefined.
        confidence: between 0 and 1.

    Returns:
        Both ends, (…). NaN where more than a tenth of the resamples is undefined, and where all are equal: the
        uncertainty cannot be estimated then.

    Example:
        >>> low, high = interval(np.arange(101.0), 0.5)
        >>> float(low), float(high)
        (25.0, 75.0)
    """
    finite = np.isfinite(resamples)
    kept = np.where(finite, resamples, np.nan)
    enough = finite.mean(axis=0) >= 0.9
    filled = np.where(enough, kept, 0.0)
    low, high = np.nanquantile(filled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    known = enough & (np.nanmax(filled, axis=0) - np.nanmin(filled, axis=0) > _SAME)
    return np.where(known, low, np.nan), np.where(known, high, np.nan)


__all__ = ["MIN_INPUTS", "Estimator", "Floats", "Resampled", "block_rows", "input_counts", "interval", "resample"]
