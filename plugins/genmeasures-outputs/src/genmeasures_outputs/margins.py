"""Margins of the outputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genmeasures.plugin import Undefined
from genmeasures_outputs.rows import labeled_rows


def margins(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return the margin γ = f_y − max_{j≠y} f_j of each labeled output, negative where the prediction is wrong.

    Args:
        logits: (N, K) or (N, K, *S).
        labels: class numbers (N,) or (N, *S); a negative number means no label.

    Returns:
        float64 (n,), in the order of inputs and then of pixels.

    Raises:
        DataError: shapes do not match.
        Undefined: nothing is labeled, or logits are NaN or infinite.

    Example:
        >>> margins([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]], [0, 1])
        array([ 2., -2.])
    """
    rows, classes = labeled_rows(logits, labels)
    own = np.take_along_axis(rows, classes[:, None], axis=1)[:, 0]
    others = rows.copy()
    np.put_along_axis(others, classes[:, None], -np.inf, axis=1)
    gamma = own - others.max(axis=1)
    if not np.isfinite(gamma).all():
        raise Undefined("margins are infinite: classes are ruled out by logits of −∞")
    return np.asarray(gamma)


def margin_statistics(logits: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Return the mean, the median and the 10th percentile of the margins.

    Args:
        logits: (N, K) or (N, K, *S).
        labels: class numbers (N,) or (N, *S); a negative number means no label.

    Returns:
        ``mean``, ``median`` and ``p10``, each with its sign.

    Raises:
        DataError: shapes do not match.
        Undefined: as of :func:`margins`.

    Example:
        >>> margin_statistics([[3.0, 1.0], [0.0, 5.0], [0.0, 1.0]], [0, 1, 0])
        {'mean': 2.0, 'median': 2.0, 'p10': -0.39...}
    """
    gamma = margins(logits, labels)
    return {
        "mean": float(gamma.mean()),
        "median": float(np.median(gamma)),
        "p10": float(np.quantile(gamma, 0.1)),
    }


def inverse_squared_margin(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return 1/γ₁₀² of the 10th percentile γ₁₀ of the margins.

    Args:
        logits: (N, K) or (N, K, *S).
        labels: class numbers (N,) or (N, *S); a negative number means no label.

    Raises:
        DataError: shapes do not match.
        Undefined: γ₁₀ is not positive, so that more than a tenth of the outputs is wrong: its square would lose the
            sign.

    Source: Jiang et al., Fantastic Generalization Measures and Where to Find Them (2020), the inverse margin.

    Example:
        >>> inverse_squared_margin([[4.0, 0.0], [0.0, 4.0]], [0, 1])
        0.0625
    """
    return squared_inverse(margin_statistics(logits, labels)["p10"])


def squared_inverse(tenth: float) -> float:
    """Return 1/γ₁₀².

    Args:
        tenth: the 10th percentile γ₁₀ of the margins.

    Raises:
        Undefined: it is not positive.

    Example:
        >>> squared_inverse(0.5)
        4.0
    """
    if tenth <= 0:
        raise Undefined(f"the 10th percentile of the margins is {tenth:.4g}, and must be positive")
    return 1 / tenth**2


__all__ = ["inverse_squared_margin", "margin_statistics", "margins", "squared_inverse"]
