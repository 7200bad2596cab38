"""Dice coefficients by brute force, and against MOVAL on the same logits."""

from __future__ import annotations

import numpy as np
import pytest

from genmeasures.errors import Undefined
from genmeasures.estimates.dice import (
    dice_baseline,
    dice_of_confidence,
    dice_of_shifted_confidence,
    dice_of_thresholded_confidence,
    known_dice,
    soft_dice,
)
from genmeasures.estimates.outputs import Outputs

ONES = np.ones((1, 6))


def discs(seed: int, noise: float) -> Outputs:
    """Six images of two concentric discs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:20, :20]
    logits, labels = [], []
    for _ in range(6):
        cy, cx, r = *rng.uniform(7, 13, 2).tolist(), rng.uniform(4, 7)
        distance = np.hypot(y - cy, x - cx)
        label = np.where(distance < r / 2, 2, np.where(distance < r, 1, 0))
        f = 1.8 * np.eye(3)[label].transpose(2, 0, 1) + noise * rng.normal(size=(3, 20, 20))
        logits.append(f.round(3))
        labels.append(label)
    return Outputs.of(np.array(logits), np.array(labels))


@pytest.fixture(scope="module")
def splits() -> tuple[Outputs, Outputs]:
    return discs(0, 1.5), discs(1, 2.0)


# Of the foreground classes 1 and 2, with numpy<2, scipy<1.12 and moval==0.3.25 (it does not run with NumPy 2):
# m = moval.MOVAL(mode="segmentation", metric="f1score", confidence_scores="max_class_probability-conf",
#                 estim_algorithm="doc-model" or "atc-model", class_specific=True, approximate=False)
# m.fit(list(validation_logits), list(validation_labels)); m.estimate(list(validation_logits or target_logits))
MOVAL = {
    "doc": ([0.50206988, 0.29481968], [0.57216838, 0.37580224]),
    "atc": ([0.50124140, 0.29531531], [0.64726097, 0.43944329]),
}
# The same with estim_algorithm="ac-model", class_specific=False, for all classes.
MOVAL_AC = [0.88291528, 0.86564051, 0.84434784]


def test_doc_is_that_of_moval(splits: tuple[Outputs, Outputs]) -> None:
    """Up to the tolerance of its simplex search."""
    for target, expected in zip(splits, MOVAL["doc"], strict=True):
        estimate = dice_of_shifted_confidence(splits[0], target)(ONES, ONES)[0, 1:]
        np.testing.assert_allclose(estimate, 100 * np.array(expected), atol=1e-3)


def test_atc_is_that_of_moval(splits: tuple[Outputs, Outputs]) -> None:
    """Any threshold between two neighboring validation scores is right: those of target pixels lie between them."""
    known = dice_of_thresholded_confidence(*splits[:1] * 2)(ONES, ONES)[0, 1:]
    np.testing.assert_allclose(known, 100 * np.array(MOVAL["atc"][0]), atol=1e-3)
    estimate = dice_of_thresholded_confidence(*splits)(ONES, ONES)[0, 1:]
    np.testing.assert_allclose(estimate, 100 * np.array(MOVAL["atc"][1]), atol=0.3)


def test_soft_dice_counts_the_probability_of_missed_pixels(splits: tuple[Outputs, Outputs]) -> None:
    """MOVAL's average confidence leaves p_c out where another class is predicted: its coefficients are larger."""
    target = splits[1]
    estimate = dice_of_confidence(target)(ONES, ONES)[0]
    p, predicted = target.probabilities, target.predictions
    for c in range(3):
        both = [(p[i, c] * (predicted[i] == c)).sum() for i in range(6)]
        sizes = [(predicted[i] == c).sum() for i in range(6)]
        full = [2 * b / (p[i, c].sum() + n) for i, (b, n) in enumerate(zip(both, sizes, strict=True))]
        without = [2 * b / (b + n) for b, n in zip(both, sizes, strict=True)]
        assert estimate[c] == pytest.approx(100 * np.mean(full))
        assert np.mean(without) == pytest.approx(MOVAL_AC[c], abs=1e-6)  # it adds 1e-5 to both sums
        assert estimate[c] < 100 * MOVAL_AC[c] - 5


@pytest.mark.parametrize("average", ["inputs", "pixels"])
def test_target_equal_to_validation_gives_its_dice(splits: tuple[Outputs, Outputs], average: str) -> None:
    """ATC up to a quantile of the confidences of a class."""
    validation = splits[0]
    known = dice_baseline(validation, average)(ONES, ONES)
    shifted = dice_of_shifted_confidence(validation, validation, average)(ONES, ONES)
    np.testing.assert_allclose(shifted, known, atol=1e-6)
    thresholded = dice_of_thresholded_confidence(validation, validation, average)(ONES, ONES)
    np.testing.assert_allclose(thresholded, known, atol=0.25)


def test_known_dice_is_that_of_scikit_learn(splits: tuple[Outputs, Outputs]) -> None:
    from sklearn.metrics import f1_score

    outputs = splits[0]
    assert outputs.labels is not None
    pooled = f1_score(outputs.labels.ravel(), outputs.predictions.ravel(), average=None)
    np.testing.assert_allclose(known_dice(outputs, "pixels").of(ONES)[0], 100 * pooled)
    each = [
        f1_score(y.ravel(), p.ravel(), average=None) for y, p in zip(outputs.labels, outputs.predictions, strict=True)
    ]
    np.testing.assert_allclose(known_dice(outputs).of(ONES)[0], 100 * np.mean(each, axis=0))


def test_certain_outputs_have_a_soft_dice_of_1() -> None:
    logits = 1000 * np.eye(3)[np.arange(12).reshape(2, 6) % 3].transpose(0, 2, 1)
    np.testing.assert_array_equal(soft_dice(Outputs.of(logits)).of(np.ones((1, 2))), 100)


def test_inputs_without_the_class() -> None:
    """Half a pixel is expected: a miss. None is expected: left out. Nowhere: undefined."""
    logits = np.zeros((3, 3, 4))
    logits[:, 0] = 1000
    logits[1, 1, :2] = 1000  # two pixels of class 1 with ½
    logits[2, 1, 0] = 2000  # one pixel of class 1, certain
    estimate = soft_dice(Outputs.of(logits)).of(np.ones((1, 3)))[0]
    assert estimate[1] == pytest.approx((0 + 100) / 2)
    assert np.isnan(estimate[2])
    labels = np.zeros((3, 4), dtype=int)
    assert known_dice(Outputs.of(logits, labels)).of(np.ones((1, 3)))[0, 1] == 0  # predicted, and not there


def test_weights_are_inputs_that_occur_so_often(splits: tuple[Outputs, Outputs]) -> None:
    validation, target = splits
    rows, new = np.array([0, 0, 2, 3, 5, 5]), np.array([1, 1, 1, 2, 4, 4])
    counts = np.bincount(rows, minlength=6)[None].astype(float), np.bincount(new, minlength=6)[None].astype(float)
    assert validation.labels is not None
    drawn, drawn_target = Outputs.of(validation.logits[rows], validation.labels[rows]), Outputs.of(target.logits[new])
    for average in ("inputs", "pixels"):
        for method, tolerance in ((dice_of_shifted_confidence, 1e-6), (dice_of_thresholded_confidence, 1.0)):
            weighted = method(validation, target, average)(*counts)
            again = method(drawn, drawn_target, average)(ONES, ONES)
            # Thresholds are quantiles of the scores of all inputs, or of those that were drawn.
            np.testing.assert_allclose(weighted, again, atol=tolerance)


def test_dice_needs_pixels() -> None:
    with pytest.raises(Undefined, match=r"an output per pixel, got outputs logits \(2, 2\)"):
        soft_dice(Outputs.of(np.zeros((2, 2))))
