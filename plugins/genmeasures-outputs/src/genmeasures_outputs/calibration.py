"""Likelihood and calibration of the probabilities, with labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from genmeasures.plugin import OptionError, log_probabilities
from genmeasures_outputs.rows import labeled_rows


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean negative log-probability of the labels, in nats.

    Args:
        logits: (N, K) or (N, K, *S).
        labels: class numbers (N,) or (N, *S); a negative number means no label.

    Raises:
        DataError: shapes do not match.
        Undefined: nothing is labeled, or logits are NaN or infinite.

    Example:
        >>> round(negative_log_likelihood([[0.0, 0.0], [0.0, 1000.0]], [0, 0]), 4)
        500.3466
    """
    rows, classes = labeled_rows(logits, labels)
    return float(-np.take_along_axis(log_probabilities(rows), classes[:, None], axis=1).mean())


def brier_score(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the Brier score, the mean of Σ_k (p_k − 1[y = k])², between 0 and 2.

    Args:
        logits: (N, K) or (N, K, *S).
        labels: class numbers (N,) or (N, *S); a negative number means no label.

    Raises:
        DataError: shapes do not match.
        Undefined: nothing is labeled, or logits are NaN or infinite.

    Source: Brier, Verification of Forecasts Expressed in Terms of Probability (1950), in its form for several classes.

    Example:
        >>> brier_score([[0.0, 0.0], [0.0, 1000.0]], [0, 0])
        1.25
    """
    rows, classes = labeled_rows(logits, labels)
    difference = np.exp(log_probabilities(rows))
    difference[np.arange(len(rows)), classes] -= 1
    return float((difference**2).sum(axis=1).mean())


def calibration_error(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Return the expected calibration error Σ_b (n_b/N) abs(accuracy_b − confidence_b).

    Args:
        logits: (N, K) or (N, K, *S).
        labels: class numbers (N,) or (N, *S); a negative number means no label.
        bins: number of bins of equal width of the largest probability, each with its lower end.

    Raises:
        OptionError: the number of bins is not positive.
        DataError: shapes do not match.
        Undefined: nothing is labeled, or logits are NaN or infinite.

    Source: Guo et al., On Calibration of Modern Neural Networks (2017).

    Example:
        >>> calibration_error([[0.0, 100.0], [0.0, 100.0]], [1, 0])  # sure, and right half of the time
        0.5
    """
    if bins < 1:
        raise OptionError(f"calibration_error: bins must be a positive integer, got {bins!r}")
    rows, classes = labeled_rows(logits, labels)
    confidence = np.exp(log_probabilities(rows).max(axis=1))
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    correct = rows.argmax(axis=1) == classes
    # The count of a bin cancels: n_b |mean − mean| = |sum − sum|.
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(rows))


__all__ = ["brier_score", "calibration_error", "negative_log_likelihood"]
