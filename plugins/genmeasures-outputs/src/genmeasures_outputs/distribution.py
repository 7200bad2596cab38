"""Statistics of the outputs of a whole data set, without labels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from genmeasures.plugin import DataError, OptionError, Undefined, log_probabilities
from genmeasures_outputs.confidence import energy
from genmeasures_outputs.rows import output_rows

CRITERION = 5.0
"""Largest mean of −log p for which MaNo uses the Taylor approximation."""


def nuclear_norm(logits: ArrayLike) -> float:
    """Return the nuclear norm of the probabilities P (N, K), divided by √(min(N, K) N).

    It is 1 if predictions are certain and classes balanced, and 1/√(K min(N, K)) if all probabilities are equal.

    Args:
        logits: (N, K) or (N, K, *S), of which each pixel is a row.

    Raises:
        DataError: the shape is wrong.
        Undefined: logits are NaN or infinite.

    Source: Deng et al., Confidence and Dispersity Speak: Characterizing Prediction Matrix for Unsupervised Accuracy
    Estimation (2023).

    Example:
        >>> round(nuclear_norm(1000 * np.tile(np.eye(2), (3, 1))), 6)
        1.0
        >>> round(nuclear_norm(np.zeros((8, 2))), 6)
        0.5
    """
    p = np.exp(log_probabilities(output_rows(logits)))
    return float(np.linalg.svd(p, compute_uv=False).sum() / math.sqrt(min(p.shape) * len(p)))


def mano(logits: ArrayLike, order: float = 4.0) -> float:
    """Return MaNo, (1/(N K) Σ q^p)^{1/p} of normalized outputs q.

    If the mean of −log p over all outputs and classes, p = softmax(f), is at most 5, outputs are normalized by the
    Taylor approximation v = 1 + f + f²/2 of the exponential, of logits minus the smallest one of each row, and
    q = v / Σ v; else by the softmax. The value is 1/K for equal outputs, and K^{−1/p} for certain ones.

    Args:
        logits: (N, K) or (N, K, *S), of a network in evaluation mode, all of the data set together.
        order: the order p of the norm.

    Raises:
        OptionError: the order is not positive.
        DataError: the shape is wrong.
        Undefined: logits are NaN or infinite.

    Source: Xie et al., MaNo: Exploiting Matrix Norm for Unsupervised Accuracy Estimation Under Distribution Shifts
    (2024).

    Example:
        >>> round(mano(np.zeros((5, 4))), 6), round(mano(1e6 * np.eye(4)), 6) == round(4**-0.25, 6)
        (0.25, True)
    """
    if not order > 0:
        raise OptionError(f"mano: order must be positive, got {order!r}")
    rows = output_rows(logits)
    logs = log_probabilities(rows)
    if -logs.mean() <= CRITERION:
        shifted = rows - rows.min(axis=1, keepdims=True)
        normalized = 1 + shifted + shifted**2 / 2
        normalized /= normalized.sum(axis=1, keepdims=True)
    else:
        normalized = np.exp(logs)
    return float((normalized**order).mean() ** (1 / order))


def dispersion(features: ArrayLike, predictions: ArrayLike, classes: int) -> float:
    """Return the dispersion score log(Σ_k n_k ‖μ_k − μ‖² / (K − 1)) of features by predicted class.

    Args:
        features: (N, D).
        predictions: class numbers (N,).
        classes: number K of classes of the model; classes that are never predicted add nothing.

    Raises:
        DataError: shapes do not match, or a prediction is no class.
        Undefined: a single class is predicted, its mean is that of all features, or features are NaN or infinite.

    Source: Xie et al., On the Importance of Feature Separability in Predicting Out-Of-Distribution Error (2023).

    Example:
        >>> round(dispersion([[0.0], [0.0], [2.0], [2.0]], [0, 0, 1, 1], 2), 6) == round(math.log(4), 6)
        True
    """
    vectors, of = np.asarray(features, dtype=np.float64), np.asarray(predictions)
    if vectors.ndim != 2 or of.shape != vectors.shape[:1] or of.dtype.kind not in "iu":
        raise DataError(f"features must be (N, D) and predictions integers (N,), got {vectors.shape} and {of.shape}")
    if classes < 2 or (len(of) and not 0 <= of.min() <= of.max() < classes):
        raise DataError(f"predictions must be class numbers below {classes}, at least 2")
    if not np.isfinite(vectors).all():
        raise Undefined("NaN or infinite features")
    present, index, counts = np.unique(of, return_inverse=True, return_counts=True)
    if len(present) < 2:
        raise Undefined("a single class is predicted")
    # Centered twice: the mean of large numbers is rounded.
    centered = vectors - vectors.mean(axis=0)
    centered -= centered.mean(axis=0)
    sums = np.zeros((len(present), vectors.shape[1]))
    np.add.at(sums, index, centered)
    spread = float(((sums**2).sum(axis=1) / counts).sum())
    if spread <= 0:
        raise Undefined("features have the same mean in every predicted class")
    return math.log(spread / (classes - 1))


def meta_distribution_energy(logits: ArrayLike, temperature: float = 1.0, centered: bool = False) -> float:
    """Return MDE, minus the mean log-softmax, over the data set, of the energies of the outputs.

    Args:
        logits: (N, K) or (N, K, *S), of which each pixel is an output.
        temperature: T of the energies −T log Σ exp(f/T).
        centered: whether log N is subtracted: the value is then 0 for equal energies and does not grow with the number
            of outputs.

    Raises:
        OptionError: the temperature is not positive.
        DataError: the shape is wrong.
        Undefined: logits are NaN or infinite.

    Source: Peng et al., Energy-based Automated Model Evaluation (2024).

    Example:
        >>> round(meta_distribution_energy(np.zeros((7, 3))), 6) == round(math.log(7), 6)
        True
        >>> round(meta_distribution_energy(np.zeros((7, 3)), centered=True), 6)
        0.0
    """
    values = energy(logits, temperature)
    shifted = values - values.max()
    total = np.exp(shifted)
    log_sum = math.log(total.mean() if centered else total.sum())
    return float(log_sum - shifted.mean())


__all__ = ["CRITERION", "dispersion", "mano", "meta_distribution_energy", "nuclear_norm"]
