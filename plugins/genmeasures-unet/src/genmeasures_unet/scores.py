"""How well a predicted volume agrees with the truth."""

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
    """Intersection over union of the foreground, from 0 to 1 (Rajagopal et al. 2021, appendix A.2.4).

    ``predicted`` and ``truth`` are class numbers from 0, the background, to ``classes`` − 1, integer or bool, of
    one shape. With several foreground classes, the mean over those that occur in the truth. NaN where the truth has
    no foreground, whatever is predicted: means over volumes are then over the same ones for every network.

    Raises DataError where the arrays do not fit each other or the number of classes.
    """
    values = [both / (total - both) for both, total in _overlaps(predicted, truth, classes)]
    return float(np.mean(values)) if values else math.nan


def dice(predicted: NDArray[Any], truth: NDArray[Any], classes: int = 2) -> float:
    """Dice coefficient (F1 score) of the foreground, from 0 to 1; arguments, NaN and errors as for :func:`iou`."""
    values = [2 * both / total for both, total in _overlaps(predicted, truth, classes)]
    return float(np.mean(values)) if values else math.nan


def r2(predicted: NDArray[Any], truth: NDArray[Any]) -> float:
    """Coefficient of determination over all voxels: 1 for the truth itself, 0 for its mean everywhere.

    Real arrays of one shape, in float64. NaN where the truth is constant. Raises DataError where shapes differ.
    """
    predicted, truth = _real(predicted, truth)
    if truth.min() == truth.max():
        return math.nan
    return float(1 - np.sum((truth - predicted) ** 2) / np.sum((truth - truth.mean()) ** 2))


def ssim(predicted: NDArray[Any], truth: NDArray[Any], data_range: float) -> float:
    """Mean structural similarity (Wang et al. 2004) of two images or volumes, by scikit-image, at most 1.

    Real arrays (H, W) or (D, H, W) of one shape. ``data_range`` is the distance between the smallest and largest
    possible value. The window is a cube (square) as wide as the largest odd number up to 7 that fits the shortest
    axis: scores of volumes with fewer than 7 slices are not comparable with those of thicker ones.

    Raises DataError where shapes differ or an axis is shorter than 3, OptionError for a range that is not positive,
    and GenmeasuresError where scikit-image is not installed.
    """
    predicted, truth = _real(predicted, truth)
    if truth.ndim not in (2, 3) or min(truth.shape) < 3:
        raise DataError(
            f"structural similarity needs images or volumes of at least 3 voxels along each axis, not {truth.shape}"
        )
    if not (data_range > 0 and math.isfinite(data_range)):
        raise OptionError(f"data_range is {data_range}: it must be positive and finite")
    try:
        metrics = importlib.import_module("skimage.metrics")
    except ImportError as error:
        raise GenmeasuresError("SSIM needs scikit-image: pip install 'genmeasures-unet[mri]'") from error
    shortest = min(truth.shape)
    window = min(_WIDEST_WINDOW, shortest - 1 + shortest % 2)
    return float(metrics.structural_similarity(truth, predicted, win_size=window, data_range=data_range))


def _overlaps(predicted: NDArray[Any], truth: NDArray[Any], classes: int) -> Iterator[tuple[int, int]]:
    """For each foreground class of the truth: the voxels both arrays have, and the sum of what each has."""
    if classes < 2:
        raise OptionError(f"classes is {classes}: it must be at least 2, background included")
    _same_shape(predicted, truth)
    for name, array in (("prediction", predicted), ("truth", truth)):
        if array.dtype.kind not in "biu":
            raise DataError(f"the {name} has type {array.dtype}: class numbers, as int64, are needed")
        if array.min() < 0 or array.max() >= classes:
            raise DataError(
                f"the {name} has class numbers from {array.min()} to {array.max()}, but {classes} classes are "
                f"numbered 0 to {classes - 1}"
            )
    for number in range(1, classes):
        found, real = predicted == number, truth == number
        if real.any():
            yield int(np.count_nonzero(found & real)), int(np.count_nonzero(found) + np.count_nonzero(real))


def _real(predicted: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _same_shape(predicted, truth)
    return predicted.astype(np.float64), truth.astype(np.float64)


def _same_shape(predicted: NDArray[Any], truth: NDArray[Any]) -> None:
    if predicted.shape != truth.shape or truth.size == 0:
        raise DataError(
            f"a prediction of shape {predicted.shape} cannot be scored against a truth of shape {truth.shape}: "
            "both must have the same shape, not empty"
        )
