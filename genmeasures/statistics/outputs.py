"""Probabilities, confidences and the temperature of logits, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.optimize
from numpy.typing import ArrayLike, NDArray

from genmeasures.errors import DataError, Undefined

_HOTTEST = 2.0**60
"""Largest factor by which logits are multiplied in the search for a temperature."""


def checked_logits(logits: ArrayLike, name: str = "logits") -> NDArray[np.float64]:
    """Check logits, and convert them to float64.

    Args:
        logits: (N, K) or (N, K, *S) numbers, K ≥ 2 classes. −∞ means that a class is ruled out.
        name: what errors call them.

    Returns:
        float64 of the same shape.

    Raises:
        DataError: the array has another shape or no numbers.
        Undefined: an output is NaN or +∞, or rules out all classes.

    Example:
        >>> checked_logits([[1, 2, 3]]).dtype
        dtype('float64')
    """
    array: NDArray[Any] = np.asarray(logits)
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name} must be numbers, got an array of {array.dtype}")
    if array.ndim < 2 or array.shape[1] < 2 or not array.size:
        hint = ""
        if array.ndim == 1 or (array.ndim > 1 and array.shape[1] == 1):
            hint = "; one logit f per input of a binary model is the pair of logits (0, f)"
        raise DataError(
            f"{name} must be of shape (N, K) or (N, K, *spatial) with K ≥ 2 classes, got {array.shape}{hint}"
        )
    array = array.astype(np.float64)
    largest = array.max(axis=1)
    bad = ~np.isfinite(largest)
    if bad.any():
        raise Undefined(f"{name} of {int(bad.reshape(len(bad), -1).any(1).sum())} inputs are NaN or infinite")
    return array


def log_probabilities(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Compute the logarithms of the softmax of logits divided by a temperature.

    The largest probability p of an output is 1 − r with r summed over the other classes, so that its logarithm keeps
    its relative precision where p is 1 in floating-point numbers: confident outputs stay in their order.

    Args:
        logits: (N, K) or (N, K, *S).
        temperature: positive.

    Returns:
        float64 of the same shape.

    Example:
        >>> float(log_probabilities([[0.0, 50.0]])[0, 1])
        -1.92...e-22
    """
    scaled = checked_logits(logits) / temperature
    top = scaled.argmax(axis=1)[:, None]
    shifted: NDArray[np.float64] = scaled - np.take_along_axis(scaled, top, axis=1)
    others = np.exp(shifted)
    np.put_along_axis(others, top, 0.0, axis=1)
    return np.asarray(shifted - np.log1p(others.sum(axis=1, keepdims=True)))


def confidence_score(logits: ArrayLike, score: str = "confidence", temperature: float = 1.0) -> NDArray[np.float64]:
    """Compute a score of each output that grows with the confidence.

    Args:
        logits: (N, K) or (N, K, *S).
        score: "confidence" for the logarithm of the largest probability, which orders outputs as the probability does,
            or "entropy" for the negative entropy Σ p log p, in nats.
        temperature: positive.

    Returns:
        float64 (N, *S), at most 0.

    Example:
        >>> np.exp(confidence_score([[0.0, 0.0], [0.0, 1.0]])).round(3)
        array([0.5  , 0.731])
        >>> confidence_score([[0.0, 0.0]], "entropy").round(3)
        array([-0.693])
    """
    logs = log_probabilities(logits, temperature)
    if score == "confidence":
        return np.asarray(logs.max(axis=1))
    products = np.exp(logs)
    np.multiply(products, logs, out=products, where=products > 0)  # 0 log 0 = 0
    return np.asarray(products.sum(axis=1))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Fit the temperature T that minimizes the mean negative log-likelihood of softmax(f/T).

    The likelihood is convex in β = 1/T; the root of its derivative, the mean of Σ p f − f_y, is bracketed.

    Args:
        logits: (N, K) or (N, K, *S).
        labels: integers (N,) or (N, *S), −1 for none.

    Returns:
        The temperature.

    Raises:
        Undefined: no temperature minimizes it: all outputs are correct (T → 0), or the logits of the labels are no
            larger than the mean logits (T → ∞).

    Source: Guo et al., On Calibration of Modern Neural Networks (2017), temperature scaling.

    Example:
        >>> logits = np.log([[0.9, 0.1]] * 10)
        >>> round(fit_temperature(logits, [0] * 9 + [1]), 6)  # calibrated
        1.0
        >>> round(fit_temperature(2 * logits, [0] * 9 + [1]), 6)  # twice as confident
        2.0
    """
    rows = np.moveaxis(checked_logits(logits), 1, -1)
    rows = rows.reshape(-1, rows.shape[-1])
    flat = np.asarray(labels).reshape(-1).astype(np.int64)
    rows, flat = rows[flat >= 0], flat[flat >= 0]
    if not len(rows):
        raise Undefined("the temperature needs labels, and there are none")
    rows = rows - rows.max(axis=1, keepdims=True)
    rows = np.maximum(rows, -1e300)  # ruled-out classes: 0 · ∞ is NaN
    own = rows[np.arange(len(rows)), flat]
    scale = float(-rows.mean())
    if scale == 0:
        raise Undefined("the temperature is not defined: all logits of each output are equal")

    def slope(beta: float) -> float:
        weights = np.exp(beta / scale * rows)
        expected = (weights * rows).sum(axis=1) / weights.sum(axis=1)
        return float((expected - own).mean())

    if slope(0.0) >= 0:
        raise Undefined("the temperature is infinite: logits of the labels are no larger than the mean logits")
    upper = 1.0
    while slope(upper) <= 0:
        upper *= 2
        if upper > _HOTTEST:
            raise Undefined("the temperature is 0: every validation output is correct")
    beta = scipy.optimize.brentq(slope, 0.0, upper, xtol=1e-15, rtol=1e-14)
    return float(scale / beta)


__all__ = ["checked_logits", "confidence_score", "fit_temperature", "log_probabilities"]
