"""Scores of predictions, compared with scikit-learn and scikit-image."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
from genmeasures_unet.scores import dice, iou, r2, ssim
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import f1_score, jaccard_score, r2_score

from genmeasures.plugin import DataError, GenmeasuresError, OptionError

Pair = tuple[NDArray[np.int64], NDArray[np.int64], int]


@st.composite
def labeled(draw: st.DrawFn) -> Pair:
    classes = draw(st.integers(2, 5))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    numbers = hnp.arrays(np.int64, shape, elements=st.integers(0, classes - 1))
    return draw(numbers), draw(numbers), classes


@settings(deadline=None)
@given(labeled())
def test_iou_and_dice_match_scikit_learn(pair: Pair) -> None:
    predicted, truth, classes = pair
    there = [c for c in range(1, classes) if (truth == c).any()]
    if not there:
        assert math.isnan(iou(predicted, truth, classes))
        assert math.isnan(dice(predicted, truth, classes))
        return
    flat = (truth.ravel(), predicted.ravel())
    assert iou(predicted, truth, classes) == pytest.approx(jaccard_score(*flat, labels=there, average="macro"))
    assert dice(predicted, truth, classes) == pytest.approx(f1_score(*flat, labels=there, average="macro"))


def test_by_hand() -> None:
    truth = np.array([[0, 1, 1], [0, 2, 2]])
    predicted = np.array([[1, 1, 1], [0, 2, 0]])
    # Class 1: 2 of 3; class 2: 1 of 2; class 3 is nowhere.
    assert iou(predicted, truth, 4) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert dice(predicted, truth, 4) == pytest.approx((4 / 5 + 2 / 3) / 2)
    # Bool and uint8, whose sums must not wrap around.
    large = np.ones((40, 40), bool)
    half = np.zeros_like(large)
    half[:20] = True
    assert iou(half, large) == iou(half.astype(np.uint8), large) == 0.5
    assert dice(half, large) == pytest.approx(2 / 3)
    assert iou(half, ~half) == dice(half, ~half) == 0
    # Where there is nothing to find, no prediction has a score.
    nothing = np.zeros_like(large)
    assert math.isnan(iou(half, nothing))
    assert math.isnan(dice(nothing, nothing))


@pytest.mark.parametrize("score", [iou, dice])
def test_class_labels_out_of_range_are_refused(score: Callable[..., float]) -> None:
    ones = np.ones((2, 2), np.int64)
    with pytest.raises(DataError, match="truth: expected class labels from 0 to 1, got labels from 2 to 2"):
        score(ones, 2 * ones)
    with pytest.raises(DataError, match="prediction: expected class labels from 0 to 1, got labels from -1"):
        score(-ones, ones)
    with pytest.raises(DataError, match=r"class labels.*got float64"):
        score(ones.astype(np.float64), ones)
    with pytest.raises(DataError, match="same shape"):
        score(ones, ones[:1])
    with pytest.raises(DataError, match="none of them empty"):
        score(ones[:0], ones[:0])
    with pytest.raises(OptionError, match="at least 2"):
        score(ones, ones, 1)


@settings(deadline=None)
@given(
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=2, max_side=4).flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=st.integers(-100, 100))] * 2)
    )
)
def test_r2_matches_scikit_learn(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    predicted, truth = pair
    if np.ptp(truth) == 0:
        assert math.isnan(r2(predicted, truth))
    else:
        expected = r2_score(truth.ravel().astype(np.float64), predicted.ravel().astype(np.float64))
        assert r2(predicted, truth) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert r2(truth, truth) == 1


def test_r2_works_in_float64() -> None:
    truth = (4096 + np.arange(100_000) % 3).astype(np.float32)
    expected = r2_score(truth.astype(np.float64), truth.astype(np.float64) + 0.5)
    assert r2(truth + np.float32(0.5), truth) == pytest.approx(expected, rel=1e-12)
    # The mean of a constant can differ from it by rounding: what counts is that there is nothing to explain.
    assert math.isnan(r2(truth[:7], np.full(7, 0.1)))
    with pytest.raises(DataError, match="same shape"):
        r2(truth, truth[:, None])


@pytest.mark.parametrize(
    ("shape", "window"), [((12, 9), 7), ((7, 20), 7), ((6, 20), 5), ((9, 8, 4), 3), ((3, 8, 8), 3), ((16, 16, 16), 7)]
)
def test_ssim_matches_scikit_image(shape: tuple[int, ...], window: int) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    rng = np.random.default_rng(0)
    truth = rng.random(shape).astype(np.float32)
    predicted = truth + rng.normal(0, 0.1, shape).astype(np.float32)
    expected = metrics.structural_similarity(
        truth.astype(np.float64), predicted.astype(np.float64), data_range=2.0, win_size=window
    )
    assert ssim(predicted, truth, 2.0) == pytest.approx(expected, rel=1e-12)
    assert 0.2 < ssim(predicted, truth, 1.0) < ssim(predicted, truth, 2.0) < ssim(truth, truth, 1.0)
    assert ssim(truth, truth, 1.0) == pytest.approx(1)


def test_ssim_by_hand() -> None:
    pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    # One 3 × 3 window of zeros but for one: mean 1/9, variance (1/9 − 1/81) · 9/8 = 1/9; against its negative.
    truth = np.zeros((3, 3))
    truth[1, 1] = 1
    c1, c2 = 0.01**2, 0.03**2
    expected = (-2 / 81 + c1) * (-2 / 9 + c2) / ((2 / 81 + c1) * (2 / 9 + c2))
    assert ssim(-truth, truth, 1.0) == pytest.approx(expected)


def test_errors_of_ssim() -> None:
    volume = np.zeros((8, 8, 8))
    for bad in (volume[0, 0], volume[:2], volume[None]):
        with pytest.raises(DataError, match="at least 3 voxels"):
            ssim(bad, bad, 1.0)
    with pytest.raises(DataError, match="same shape"):
        ssim(volume, volume[1:], 1.0)
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(OptionError, match="data_range"):
            ssim(volume, volume, wrong)


def test_ssim_names_the_extra_if_scikit_image_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(GenmeasuresError, match=r"pip install 'genmeasures-unet\[mri\]'"):
        ssim(np.zeros((8, 8)), np.zeros((8, 8)), 1.0)
