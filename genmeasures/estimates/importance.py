"""Importance weighting by a histogram of confidence (IM)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genmeasures.estimates.outputs import Outputs, per_input
from genmeasures.estimates.resampling import Estimator, Floats

BINS = 10
"""Default number of bins."""


def importance(validation: Outputs, target: Outputs, bins: int = BINS) -> Estimator:
    """Estimator IM: the validation accuracy within bins of confidence, weighted by the target outputs in each bin.

    Bins are of equal width between 0 and 1. Target outputs in a bin without validation outputs count for the nearest
    bin that has some, the lower one of two. If the target outputs are the validation outputs, the estimate is the
    validation accuracy.

    Args:
        validation: labeled outputs; only labeled pixels count.
        target: outputs; labels are not read.
        bins: number of bins.

    Returns:
        Percent, of weights (R, inputs) of both splits.

    Source: Chen et al., Mandoline: Model Evaluation under Distribution Shift (2021), with the confidence as the slice.

    Example:
        >>> validation = Outputs.of([[0.0, 0.1], [0.0, 0.1], [0.0, 9.0]], [0, 1, 1])
        >>> target = Outputs.of([[0.0, 0.1], [0.0, 9.0]])
        >>> importance(validation, target)(np.ones((1, 3)), np.ones((1, 2)))  # (50 + 100) / 2
        array([75.])
    """
    labeled = validation.labeled
    known, new = _bins(validation.confidence, bins), _bins(target.confidence, bins)
    labels, correct, counts = (
        np.stack([per_input(where & (of == b)) for b in range(bins)], axis=1)
        for where, of in ((labeled, known), (validation.correct, known), (np.ones(new.shape, dtype=bool), new))
    )

    def estimate(of_validation: Floats, of_target: Floats) -> Floats:
        n, right, mass = of_validation @ labels, of_validation @ correct, of_target @ counts
        with np.errstate(invalid="ignore"):
            accuracy = np.take_along_axis(right / n, _nearest(n > 0), axis=1)
        return np.asarray(100 * (accuracy * mass).sum(1) / mass.sum(1))

    return estimate


def outside(validation: Outputs, target: Outputs, bins: int = BINS) -> float:
    """Fraction of the target outputs in bins of confidence without a validation output.

    Args:
        validation: labeled outputs.
        target: outputs.
        bins: number of bins.

    Example:
        >>> validation, target = Outputs.of([[0.0, 0.1]], [0]), Outputs.of([[0.0, 0.1], [0.0, 9.0]])
        >>> outside(validation, target)
        0.5
    """
    known = np.bincount(_bins(validation.confidence, bins)[validation.labeled], minlength=bins)
    return float((known[_bins(target.confidence, bins)] == 0).mean())


def _bins(confidence: Floats, bins: int) -> NDArray[np.int64]:
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def _nearest(filled: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(R, bins): the nearest bin that is filled, for each bin."""
    index = np.arange(filled.shape[1])
    distance = np.abs(index[:, None] - index).astype(np.float64)
    return np.asarray(np.where(filled[:, None, :], distance, np.inf).argmin(axis=2))


__all__ = ["BINS", "importance", "outside"]
