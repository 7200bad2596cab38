"""Confidence, entropy and energy of the outputs, without labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genmeasures.plugin import OptionError, log_probabilities
from genmeasures_outputs.rows import output_rows


def average_confidence(logits: ArrayLike) -> float:
    """Return the mean of the largest probability.

    Args:
        logits: (N, K) or (N, K, *S).

    Raises:
        DataError: the shape is wrong.
        Undefined: logits are NaN or infinite.

    Example:
        >>> average_confidence([[0.0, 0.0], [0.0, 100.0]])
        0.75
    """
    return float(np.exp(log_probabilities(output_rows(logits)).max(axis=1)).mean())


def entropy(logits: ArrayLike) -> NDArray[np.float64]:
    """Return the entropy −Σ p log p of each output, in nats; its mean over voxels is a measure of a segmentation.

    Args:
        logits: (N, K) or (N, K, *S).

    Returns:
        float64 (N·S,), between 0 and log K.

    Raises:
        DataError: the shape is wrong.
        Undefined: logits are NaN or infinite.

    Example:
        >>> entropy([[0.0, 0.0]]).round(4)
        array([0.6931])
    """
    logs = log_probabilities(output_rows(logits))
    p = np.exp(logs)
    # The limit of p log p is 0, also for a class that is ruled out.
    return np.asarray(-np.multiply(p, logs, out=np.zeros_like(p), where=p > 0).sum(axis=1))


def energy(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the energy −T log Σ exp(f/T) of each output.

    Args:
        logits: (N, K) or (N, K, *S).
        temperature: T, positive.

    Returns:
        float64 (N·S,).

    Raises:
        OptionError: the temperature is not positive.
        DataError: the shape is wrong.
        Undefined: logits are NaN or infinite.

    Source: Liu et al., Energy-based Out-of-distribution Detection (2020).

    Example:
        >>> energy([[0.0, 0.0], [1e6, 0.0]]).round(4).tolist()
        [-0.6931, -1000000.0]
    """
    if not temperature > 0:
        raise OptionError(f"energy: temperature must be positive, got {temperature!r}")
    rows = output_rows(logits)
    # log Σ exp(f/T) = max f/T − log max p
    return np.asarray(-rows.max(axis=1) + temperature * log_probabilities(rows, temperature).max(axis=1))


__all__ = ["average_confidence", "energy", "entropy"]
