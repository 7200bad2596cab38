"""Estimates of the Dice coefficient of each class, for outputs per pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from genmeasures.errors import Undefined
from genmeasures.estimates.outputs import Outputs
from genmeasures.estimates.resampling import Estimator, Floats, block_rows

AVERAGES = ("inputs", "pixels")
"""Mean of the Dice coefficients of inputs, or one Dice coefficient of all pixels."""

_THRESHOLDS = 2048
"""Number of candidate thresholds per class, quantiles of the confidence."""
_SHIFTS = 1025
"""Number of shifts of the confidence between −1 and 1, between which Dice coefficients are interpolated."""
_EXPECTED = 0.5
"""Expected number of pixels from which an input without a predicted pixel of the class counts as a miss."""


class Ratio(NamedTuple):
    """Dice coefficients as a ratio of sums over inputs."""

    numerator: Floats
    """(N, …)."""
    denominator: Floats
    """(N, …)."""

    def of(self, weights: Floats) -> Floats:
        """(R, …): percent, for weights (R, N); NaN where nothing is there to be counted."""
        top, bottom = (np.tensordot(weights, part, axes=1) for part in self)
        return np.where(bottom > 0, 100 * top / np.where(bottom > 0, bottom, 1), np.nan)


def known_dice(outputs: Outputs, average: str = "inputs") -> Ratio:
    """Dice coefficients 2|ŷ = c ∧ y = c| / (|ŷ = c| + |y = c|) of labeled outputs.

    Args:
        outputs: labeled outputs (N, K, *S); only labeled pixels count.
        average: "inputs" for the mean over the inputs where the class is labeled or predicted, "pixels" for all pixels.

    Returns:
        Ratio with sums (N, K).

    Raises:
        Undefined: outputs are not dense, or nothing is labeled.

    Example:
        >>> logits = np.zeros((1, 2, 4)); logits[0, 1, :3] = 1  # predicted 1 1 1 0
        >>> known_dice(Outputs.of(logits, [[1, 1, 0, 0]])).of(np.ones((1, 1))).round(1)
        array([[66.7, 80. ]])
    """
    labeled = _dense(outputs).labeled
    assert outputs.labels is not None
    predicted, true = (
        [(of == c) & labeled for c in range(outputs.classes)] for of in (outputs.predictions, outputs.labels)
    )
    both = np.stack([_sums(p & t) for p, t in zip(predicted, true, strict=True)], axis=1)
    sizes = np.stack([_sums(p) + _sums(t) for p, t in zip(predicted, true, strict=True)], axis=1)
    return _averaged(2 * both, sizes, sizes > 0, average)


def soft_dice(outputs: Outputs, average: str = "inputs") -> Ratio:
    """Soft Dice coefficients 2 Σ p_c 1[ŷ = c] / (Σ p_c + Σ 1[ŷ = c]), the expectation for calibrated outputs.

    In the mean over inputs, an input without a predicted pixel of the class counts as a miss, with 0, if the expected
    number of pixels Σ p_c is at least ½, and is left out else.

    Args:
        outputs: outputs (N, K, *S); labels are not read.
        average: "inputs" for the mean over inputs, "pixels" for all pixels.

    Returns:
        Ratio with sums (N, K).

    Raises:
        Undefined: outputs are not dense.

    Source: Li et al., Estimating Model Performance under Domain Shifts with Class-Specific Confidence Scores (2022).

    Example:
        >>> logits = np.zeros((1, 2, 4)); logits[0, 1] = 99, 99, -99, -99  # one-hot probabilities
        >>> soft_dice(Outputs.of(logits)).of(np.ones((1, 1)))
        array([[100., 100.]])
    """
    p = _dense(outputs).probabilities
    predicted = [outputs.predictions == c for c in range(outputs.classes)]
    expected = np.stack([_sums(p[:, c]) for c in range(outputs.classes)], axis=1)
    counts = np.stack([_sums(where) for where in predicted], axis=1)
    both = np.stack([_sums(np.where(where, p[:, c], 0)) for c, where in enumerate(predicted)], axis=1)
    return _averaged(2 * both, expected + counts, (counts > 0) | (expected >= _EXPECTED), average)


def dice_baseline(validation: Outputs, average: str = "inputs") -> Estimator:
    """Estimator that returns the Dice coefficients on the validation data, as if there were no shift.

    Args:
        validation: labeled outputs (N, K, *S).
        average: see :func:`known_dice`.

    Returns:
        Percent (R, K), of weights (R, inputs) of both splits.

    Example:
        >>> logits = np.zeros((1, 2, 4)); logits[0, 1, :3] = 1
        >>> dice_baseline(Outputs.of(logits, [[1, 1, 0, 0]]))(np.ones((1, 1)), np.ones((1, 1))).round(1)
        array([[66.7, 80. ]])
    """
    known = known_dice(validation, average)
    return lambda of_validation, of_target: known.of(of_validation)


def dice_of_confidence(target: Outputs, average: str = "inputs") -> Estimator:
    """Estimator AC: the soft Dice coefficients of the target outputs.

    Args:
        target: outputs (N, K, *S).
        average: see :func:`soft_dice`.

    Returns:
        Percent (R, K), of weights (R, inputs) of both splits; validation inputs are not read.

    Example:
        >>> logits = np.zeros((1, 2, 4)); logits[0, 1] = 99, 99, -99, -99
        >>> dice_of_confidence(Outputs.of(logits))(np.ones((1, 1)), np.ones((1, 1)))
        array([[100., 100.]])
    """
    soft = soft_dice(target, average)
    return lambda of_validation, of_target: soft.of(of_target)


def dice_of_shifted_confidence(validation: Outputs, target: Outputs, average: str = "inputs") -> Estimator:
    """Estimator DoC, by class: soft Dice coefficients of shifted confidences.

    In pixels that are predicted as class c, q = max p − d_c within 0 to 1 replaces p_c, which is 0 elsewhere:
    2 Σ q / (Σ q + Σ 1[ŷ = c]). The shift d_c is that for which the estimate on the validation data is their Dice
    coefficient, interpolated between 1025 shifts.

    Args:
        validation: labeled outputs (N, K, *S); only labeled pixels count.
        target: outputs (N, K, *S).
        average: see :func:`known_dice`.

    Returns:
        Percent (R, K), of weights (R, inputs) of both splits.

    Source: Li et al. (2022), see :func:`soft_dice`.

    Example:
        >>> logits = np.zeros((1, 2, 4)); logits[0, 1] = 9, 9, 9, -9
        >>> validation = Outputs.of(logits, [[1, 1, 0, 0]])
        >>> dice_of_shifted_confidence(validation, validation)(np.ones((1, 1)), np.ones((1, 1))).round(1)
        array([[66.7, 80. ]])
    """
    shifts = np.linspace(-1, 1, _SHIFTS)
    return _calibrated(validation, target, average, lambda scores: _Shifts(shifts), smooth=True)


def dice_of_thresholded_confidence(validation: Outputs, target: Outputs, average: str = "inputs") -> Estimator:
    """Estimator ATC, by class: Dice coefficients of the pixels whose confidence reaches a threshold.

    A pixel that is predicted as class c counts as correct, q = 1, if its confidence is at least t_c:
    2 Σ q / (Σ q + Σ 1[ŷ = c]). The threshold is that of up to 2048 quantiles of the confidences of the class, and ∞,
    for which the estimate on the validation data is closest to their Dice coefficient.

    Args:
        validation: labeled outputs (N, K, *S); only labeled pixels count.
        target: outputs (N, K, *S).
        average: see :func:`known_dice`.

    Returns:
        Percent (R, K), of weights (R, inputs) of both splits.

    Source: Li et al. (2022), see :func:`soft_dice`.

    Example:
        >>> logits = np.zeros((1, 2, 4)); logits[0, 1] = 9, 8, 7, -9
        >>> validation = Outputs.of(logits, [[1, 1, 0, 0]])
        >>> dice_of_thresholded_confidence(validation, validation)(np.ones((1, 1)), np.ones((1, 1))).round(1)
        array([[100.,  80.]])
    """
    return _calibrated(validation, target, average, _thresholds, smooth=False)


_Curve: TypeAlias = Callable[[Floats], Floats]
"""Takes the scores (m,) of the predicted pixels of an input to Σ q (G,), for each parameter."""


class _Shifts:
    """Σ clip(s − d, 0, 1) for each shift d."""

    def __init__(self, shifts: Floats) -> None:
        self._shifts = shifts

    def __call__(self, scores: Floats) -> Floats:
        ascending = np.sort(np.exp(scores))
        below = np.concatenate([[0.0], np.cumsum(ascending)])
        # Scores between d and 1 + d count with s − d, those above with 1.
        first = np.searchsorted(ascending, self._shifts, "right")
        last = np.searchsorted(ascending, 1 + self._shifts, "right")
        inside = below[last] - below[first] - self._shifts * (last - first)
        return np.asarray(inside + (len(ascending) - last))


class _Thresholds:
    """Number of scores of at least each threshold, ascending, and of at least ∞."""

    def __init__(self, thresholds: Floats) -> None:
        self._thresholds = thresholds

    def __call__(self, scores: Floats) -> Floats:
        reached = np.searchsorted(self._thresholds, scores, "right")
        counts = np.bincount(reached, minlength=len(self._thresholds) + 1)
        return np.asarray(np.append(counts[::-1].cumsum()[::-1][1:], 0), dtype=np.float64)


def _thresholds(scores: Floats) -> _Thresholds:
    quantiles = np.linspace(0, 1, min(_THRESHOLDS, max(len(scores), 1)))
    return _Thresholds(np.unique(np.quantile(scores, quantiles, method="lower")) if len(scores) else scores)


def _calibrated(
    validation: Outputs, target: Outputs, average: str, curve_of: Callable[[Floats], _Curve], smooth: bool
) -> Estimator:
    """Estimator with one parameter per class, calibrated so that validation Dice coefficients are reproduced."""
    known = known_dice(validation, average)
    scores, new_scores = validation.score("confidence"), _dense(target).score("confidence")
    curves = []
    for c in range(validation.classes):
        where = (validation.predictions == c) & validation.labeled
        curve = curve_of(scores[where])
        before = _curves(validation, c, where, scores, curve, average)
        after = _curves(target, c, target.predictions == c, new_scores, curve, average)
        curves.append((before, after))

    def block(of_validation: Floats, of_target: Floats) -> Floats:
        wanted = known.of(of_validation)
        columns = [
            _at(before.of(of_validation), wanted[:, c], after.of(of_target), smooth)
            for c, (before, after) in enumerate(curves)
        ]
        return np.stack(columns, axis=1)

    def estimate(of_validation: Floats, of_target: Floats) -> Floats:
        rows = block_rows(max(_THRESHOLDS, _SHIFTS))
        starts = range(0, len(of_validation), rows)
        return np.concatenate([block(of_validation[s : s + rows], of_target[s : s + rows]) for s in starts])

    return estimate


def _curves(outputs: Outputs, c: int, where: NDArray[np.bool_], scores: Floats, curve: _Curve, average: str) -> Ratio:
    """The ratio (N, G) of a class for each parameter."""
    sums = np.stack([curve(own[chosen]) for own, chosen in zip(scores, where, strict=True)])
    counts = _sums(where)[:, None]
    expected = _sums(outputs.probabilities[:, c])[:, None]
    counted = np.broadcast_to((counts > 0) | (expected >= _EXPECTED), sums.shape)
    return _averaged(2 * sums, sums + counts, counted, average)


def _at(known: Floats, wanted: Floats, new: Floats, smooth: bool) -> Floats:
    """(R,): values of ``new`` (R, G) where ``known`` (R, G), which descends, is ``wanted`` (R,)."""
    rows = np.arange(len(known))
    usable = np.isfinite(known).all(axis=1) & np.isfinite(wanted) & np.isfinite(new).all(axis=1)
    known, new = (np.where(usable[:, None], of, 0.0) for of in (known, new))
    distance = known - np.where(usable, wanted, 0.0)[:, None]
    if not smooth:
        return np.where(usable, new[rows, np.abs(distance).argmin(axis=1)], np.nan)
    # The last parameter whose value is still at least what is wanted; the ends if there is none on either side.
    last = np.clip((distance >= 0).sum(axis=1) - 1, 0, known.shape[1] - 2)
    high, low = known[rows, last], known[rows, last + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.clip(np.where(high > low, (high - wanted) / (high - low), 0.0), 0.0, 1.0)
    return np.where(usable, new[rows, last] * (1 - part) + new[rows, last + 1] * part, np.nan)


def _averaged(top: Floats, bottom: Floats, counted: NDArray[np.bool_], average: str) -> Ratio:
    if average == "pixels":
        return Ratio(top, bottom)
    dice = np.where(counted, top / np.where(bottom > 0, bottom, 1), 0.0)
    return Ratio(dice, counted.astype(np.float64))


def _sums(values: Floats | NDArray[np.bool_]) -> Floats:
    return np.asarray(values.reshape(len(values), -1).sum(axis=1), dtype=np.float64)


def _dense(outputs: Outputs) -> Outputs:
    if not outputs.is_dense:
        raise Undefined(f"Dice coefficients need an output per pixel, got {outputs.name} logits {outputs.logits.shape}")
    return outputs


__all__ = [
    "AVERAGES",
    "Ratio",
    "dice_baseline",
    "dice_of_confidence",
    "dice_of_shifted_confidence",
    "dice_of_thresholded_confidence",
    "known_dice",
    "soft_dice",
]
