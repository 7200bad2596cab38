"""Scores of predicted volumes: IoU, Dice, R² and SSIM."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmeasures.plugin import DataError, GenmeasuresError, OptionError

_WIDEST_WINDOW = 7


def iou(predicted: NDArray[Any], truth: NDArray[Any], classes: int = 2) -> float:
    """Intersection over union of the foreground (Rajagopal et al. 2021, appendix A.2.4).

    Args:
        predicted: predicted class labels, integer or bool (``*S``), from 0 (background) to ``classes`` − 1.
        truth: true class labels, of the same shape.
        classes: number of classes, including the background.

    Returns:
        The mean over the foreground classes that occur in the truth, from 0 to 1. NaN if the truth has no foreground,
        so that means over volumes cover the same volumes for every network.

    Raises:
        DataError: the shapes differ, or a label is out of range.
        OptionError: ``classes`` is below 2.

    Example:
        >>> iou(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1])) == 2 / 3
        True
    """
    values = [overlap / (total - overlap) for overlap, total in _overlaps(predicted, truth, classes)]
    return float(np.mean(values)) if values else math.nan


def dice(predicted: NDArray[Any], truth: NDArray[Any], classes: int = 2) -> float:
    """Dice coefficient (F1 score) of the foreground.

    Args:
        predicted: predicted class labels, integer or bool (``*S``), from 0 (background) to ``classes`` − 1.
        truth: true class labels, of the same shape.
        classes: number of classes, including the background.

    Returns:
        The mean over the foreground classes that occur in the truth, from 0 to 1; NaN as for :func:`iou`.

    Raises:
        DataError: the shapes differ, or a label is out of range.
        OptionError: ``classes`` is below 2.

    Example:
        >>> dice(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]))
        0.8
    """
    values = [2 * overlap / total for overlap, total in _overlaps(predicted, truth, classes)]
    return float(np.mean(values)) if values else math.nan


def r2(predicted: NDArray[Any], truth: NDArray[Any]) -> float:
    """Coefficient of determination over all voxels, computed in float64.

    Args:
        predicted: predicted values, real.
        truth: true values, of the same shape.

    Returns:
        1 for a perfect prediction, 0 for the mean of the truth everywhere. NaN if the truth is constant.

    Raises:
        DataError: the shapes differ.

    Example:
        >>> r2(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))
        1.0
    """
    predicted, truth = _real(predicted, truth)
    if truth.min() == truth.max():
        return math.nan
    return float(1 - np.sum((truth - predicted) ** 2) / np.sum((truth - truth.mean()) ** 2))


def ssim(predicted: NDArray[Any], truth: NDArray[Any], data_range: float) -> float:
    """Mean structural similarity (Wang et al. 2004) of two images or volumes, by scikit-image.

    The side of the window is the largest odd number up to 7 that fits the shortest axis. Scores of volumes with fewer
    than 7 slices are therefore not comparable with those of thicker ones.

    Args:
        predicted: predicted values, real (H, W) or (D, H, W).
        truth: true values, of the same shape.
        data_range: difference between the largest and the smallest possible value.

    Returns:
        The mean over voxels, at most 1.

    Raises:
        DataError: the shapes differ, or an axis is shorter than 3.
        OptionError: ``data_range`` is not positive and finite.
        GenmeasuresError: scikit-image is not installed.

    Example:
        >>> image = np.arange(64.0).reshape(8, 8)
        >>> ssim(image, image, data_range=63.0)
        1.0
    """
    predicted, truth = _real(predicted, truth)
    if truth.ndim not in (2, 3) or min(truth.shape) < 3:
        raise DataError(
            f"structural similarity needs images or volumes of at least 3 voxels along each axis, got {truth.shape}"
        )
    if not (data_range > 0 and math.isfinite(data_range)):
        raise OptionError(f"data_range must be positive and finite, got {data_range}")
    try:
        metrics = importlib.import_module("skimage.metrics")
    except ImportError as error:
        raise GenmeasuresError("SSIM needs scikit-image: pip install 'genmeasures-unet[mri]'") from error
    shortest = min(truth.shape)
    window = min(_WIDEST_WINDOW, shortest - 1 + shortest % 2)
    return float(metrics.structural_similarity(truth, predicted, win_size=window, data_range=data_range))


def _overlaps(predicted: NDArray[Any], truth: NDArray[Any], classes: int) -> Iterator[tuple[int, int]]:
    """For each foreground class of the truth: size of the intersection, and the sum of both sizes, in voxels."""
    if classes < 2:
        raise OptionError(f"classes must be at least 2, including the background, got {classes}")
    _same_shape(predicted, truth)
    for name, array in (("prediction", predicted), ("truth", truth)):
        if array.dtype.kind not in "biu":
            raise DataError(f"the {name}: expected class labels, such as int64, got {array.dtype}")
        if array.min() < 0 or array.max() >= classes:
            raise DataError(
                f"the {name}: expected class labels from 0 to {classes - 1}, got labels from {array.min()} to "
                f"{array.max()}"
            )
    for label in range(1, classes):
        positive, real = predicted == label, truth == label
        if real.any():
            yield int(np.count_nonzero(positive & real)), int(np.count_nonzero(positive) + np.count_nonzero(real))


def _real(predicted: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both arrays in float64."""
    _same_shape(predicted, truth)
    return predicted.astype(np.float64), truth.astype(np.float64)


def _same_shape(predicted: NDArray[Any], truth: NDArray[Any]) -> None:
    """Raise DataError unless both arrays have the same shape and are not empty."""
    if predicted.shape != truth.shape or truth.size == 0:
        raise DataError(
            f"expected a prediction and a truth of the same shape, none of them empty, got {predicted.shape} and "
            f"{truth.shape}"
        )
