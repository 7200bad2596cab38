"""Outputs and labels as rows, one per input or pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genmeasures.plugin import DataError, Undefined, checked_logits


def output_rows(logits: ArrayLike) -> NDArray[np.float64]:
    """Return the outputs as rows.

    Args:
        logits: (N, K) or (N, K, *S).

    Returns:
        float64 (N·S, K), in the order of inputs and then of pixels.

    Example:
        >>> output_rows(np.arange(8.0).reshape(1, 2, 2, 2)).tolist()
        [[0.0, 4.0], [1.0, 5.0], [2.0, 6.0], [3.0, 7.0]]
    """
    last = np.moveaxis(checked_logits(logits), 1, -1)
    return np.ascontiguousarray(last.reshape(-1, last.shape[-1]))


def labeled_rows(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the outputs that have a label, as rows, with their labels.

    Args:
        logits: (N, K) or (N, K, *S).
        labels: class numbers (N,) or (N, *S); a negative number means no label.

    Returns:
        float64 (n, K) and int64 (n,).

    Raises:
        DataError: labels have another shape, or are no class numbers.
        Undefined: nothing is labeled.

    Example:
        >>> rows, classes = labeled_rows([[1.0, 2.0], [3.0, 4.0]], [1, -1])
        >>> rows.tolist(), classes.tolist()
        ([[1.0, 2.0]], [1])
    """
    rows, shape = output_rows(logits), np.shape(logits)
    classes = np.asarray(labels)
    expected = (shape[0], *shape[2:])
    if classes.shape != expected or classes.dtype.kind not in "iu":
        raise DataError(f"labels must be integers of shape {expected}, got {classes.dtype} of shape {classes.shape}")
    flat = classes.reshape(-1).astype(np.int64)
    labeled = flat >= 0
    if not labeled.any():
        raise Undefined("there are no labels")
    if flat.max() >= rows.shape[1]:
        raise DataError(f"labels go up to {flat.max()}, but there are {rows.shape[1]} outputs")
    return rows[labeled], flat[labeled]


__all__ = ["labeled_rows", "output_rows"]
