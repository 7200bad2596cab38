"""Each function against an independent implementation, and the errors of public code."""

from __future__ import annotations

import math

import numpy as np
import pytest
from genmeasures_outputs import (
    average_confidence,
    brier_score,
    calibration_error,
    dispersion,
    energy,
    entropy,
    inverse_squared_margin,
    mano,
    margin_statistics,
    margins,
    meta_distribution_energy,
    negative_log_likelihood,
    nuclear_norm,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import log_loss

from genmeasures.plugin import DataError, OptionError, Undefined


def smooth_logits() -> np.ndarray:
    i, j = np.mgrid[:200, :4]
    return np.asarray(2 * np.sin(1.7 * i + 2.3 * j + 0.1) + np.cos(0.9 * i * (j + 1)))


LABELS = (np.arange(200) * 7 // 3) % 4


def random_logits(seed: int, n: int = 30, k: int = 5) -> np.ndarray:
    return np.asarray(3 * np.random.default_rng(seed).normal(size=(n, k)))


# Margins --------------------------------------------------------------------------------------------------------


def test_margins_are_their_definition() -> None:
    f = random_logits(0)
    labels = np.arange(30) % 5
    expected = [f[i, y] - max(f[i, j] for j in range(5) if j != y) for i, y in enumerate(labels)]
    np.testing.assert_allclose(margins(f, labels), expected)
    statistics = margin_statistics(f, labels)
    assert statistics == pytest.approx(
        {"mean": np.mean(expected), "median": np.median(expected), "p10": np.percentile(expected, 10)}
    )


def test_the_tenth_percentile_keeps_its_sign() -> None:
    """A widely copied implementation takes the absolute value, and calls a bad network good."""
    f = np.array([[0.0, 4.0]] * 5 + [[4.0, 0.0]] * 5)
    labels = np.array([1] * 3 + [0] * 2 + [0] * 5)
    tenth = margin_statistics(f, labels)["p10"]
    assert tenth == -4
    with pytest.raises(Undefined, match="10th percentile of the margins is -4, and must be positive"):
        inverse_squared_margin(f, labels)
    mistaken = 1 / abs(tenth) ** 2
    assert mistaken == inverse_squared_margin(f, [1] * 5 + [0] * 5)  # the same as of a perfect network


def test_margins_of_pixels_leave_unlabeled_ones_out() -> None:
    f = np.arange(12.0).reshape(1, 2, 2, 3)
    labels = np.array([[[0, 1, -1], [1, 1, -1]]])
    np.testing.assert_array_equal(margins(f, labels), [-6, 6, 6, 6])


# Probabilities --------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 1e6, -1e6]))
def test_probabilities_are_those_of_scipy(seed: int, offset: float) -> None:
    """Also at a large offset, of which logits keep 16 − 6 digits."""
    f = random_logits(seed)
    p, labels = softmax(f, axis=1), np.arange(30) % 5
    np.testing.assert_allclose(entropy(f + offset), scipy_entropy(p, axis=1), atol=1e-8)
    np.testing.assert_allclose(energy(f + offset) + offset, -logsumexp(f, axis=1), atol=1e-8)
    np.testing.assert_allclose(energy(f, 2.0), -2 * logsumexp(f / 2, axis=1), atol=1e-12)
    assert average_confidence(f + offset) == pytest.approx(p.max(1).mean(), abs=1e-9)
    assert negative_log_likelihood(f + offset, labels) == pytest.approx(log_loss(labels, p), abs=1e-8)
    assert brier_score(f + offset, labels) == pytest.approx(((p - np.eye(5)[labels]) ** 2).sum(1).mean(), abs=1e-8)


def test_the_calibration_error_is_that_of_torchmetrics() -> None:
    """torchmetrics 1.9.0, in float32: calibration_error(p, labels, task="multiclass", num_classes=4, n_bins=15)."""
    assert calibration_error(smooth_logits(), LABELS) == pytest.approx(0.44869211316108704, abs=1e-6)


def test_the_calibration_error_is_its_definition() -> None:
    f = random_logits(3, 200)
    labels = np.random.default_rng(0).integers(5, size=200)
    p = softmax(f, axis=1)
    confidence, correct = p.max(1), p.argmax(1) == labels
    total = 0.0
    for b in range(15):
        chosen = (confidence >= b / 15) & (confidence < (b + 1) / 15)
        if chosen.any():
            total += chosen.sum() / 200 * abs(correct[chosen].mean() - confidence[chosen].mean())
    assert calibration_error(f, labels) == pytest.approx(total)
    assert calibration_error(np.log([[0.75, 0.25]] * 4), [0, 0, 0, 1]) == pytest.approx(0)


# Distribution ---------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(2, 8))
def test_the_nuclear_norm_is_that_of_the_eigenvalues(seed: int, n: int, k: int) -> None:
    f = random_logits(seed, n, k)
    p = softmax(f, axis=1)
    # Square roots of eigenvalues lose half of the digits.
    expected = np.sqrt(np.maximum(np.linalg.eigvalsh(p.T @ p), 0)).sum() / math.sqrt(min(n, k) * n)
    assert nuclear_norm(f) == pytest.approx(expected, abs=1e-6)
    assert nuclear_norm(f) <= 1 + 1e-12
    assert nuclear_norm(f[::-1] + 7) == pytest.approx(nuclear_norm(f))


def test_the_nuclear_norm_is_divided_by_the_root_of_n() -> None:
    """The README of one public implementation divides by N √min(N, K): its value vanishes with N."""
    balanced = 1000 * np.tile(np.eye(4), (50, 1))
    assert nuclear_norm(balanced) == pytest.approx(1)
    mistaken = np.linalg.svd(np.tile(np.eye(4), (50, 1)), compute_uv=False).sum() / (200 * math.sqrt(4))
    assert mistaken == pytest.approx(1 / math.sqrt(200))
    assert nuclear_norm(np.zeros((200, 4))) == pytest.approx(1 / 4)  # 1/√(K min(N, K))


def test_mano_is_its_definition_on_both_sides_of_the_switch() -> None:
    flat, sharp = random_logits(1), 20 * random_logits(1)
    assert -np.log(softmax(flat, axis=1)).mean() < 5 < -np.log(softmax(sharp, axis=1)).mean()
    v = flat - flat.min(1, keepdims=True)
    v = 1 + v + v**2 / 2
    q = v / v.sum(1, keepdims=True)
    assert mano(flat) == pytest.approx((q**4).mean() ** 0.25)
    assert mano(sharp) == pytest.approx((softmax(sharp, axis=1) ** 4).mean() ** 0.25)
    assert mano(sharp, order=2) == pytest.approx((softmax(sharp, axis=1) ** 2).mean() ** 0.5)


def test_mano_is_that_of_the_whole_data_set() -> None:
    """The public code loses the mean over batches: its score is that of one batch."""
    f = np.concatenate([random_logits(1, 20), 0.01 * random_logits(2, 20)])
    batches = [mano(f[:20]), mano(f[20:])]
    assert mano(f) == pytest.approx(np.mean(np.array(batches) ** 4) ** 0.25)
    assert abs(mano(f) - batches[-1]) > 0.05


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 1e6]))
def test_dispersion_is_its_definition(seed: int, offset: float) -> None:
    """Also of features far from 0, which the class means must not lose."""
    rng = np.random.default_rng(seed)
    features, predictions = rng.normal(size=(40, 3)).round(4), np.arange(40) % 3  # digits that the offset leaves
    mean = features.mean(0)
    total = sum((predictions == k).sum() * ((features[predictions == k].mean(0) - mean) ** 2).sum() for k in range(3))
    assert dispersion(features + offset, predictions, 5) == pytest.approx(math.log(total / 4), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 3.0]))
def test_mde_is_its_definition(seed: int, temperature: float) -> None:
    f = random_logits(seed)
    energies = -temperature * logsumexp(f / temperature, axis=1)
    expected = -np.log(softmax(energies)).mean()
    assert meta_distribution_energy(f, temperature) == pytest.approx(expected, abs=1e-9)
    centered = meta_distribution_energy(f, temperature, centered=True)
    assert centered == pytest.approx(expected - math.log(30), abs=1e-9)
    twice = np.concatenate([f, f])
    assert meta_distribution_energy(twice, temperature, centered=True) == pytest.approx(centered, abs=1e-9)
    assert centered >= -1e-12


# Faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: margins([[1.0, 2.0]], [-1]), Undefined, "there are no labels"),
        (lambda: margins([[1.0, 2.0]], [2]), DataError, "labels go up to 2, but there are 2 outputs"),
        (lambda: margins([[1.0, 2.0]], [0, 1]), DataError, "integers of shape"),
        (lambda: margins([[1.0, -np.inf]], [0]), Undefined, "margins are infinite"),
        (lambda: entropy([[np.nan, 1.0]]), Undefined, "NaN or infinite"),
        (lambda: nuclear_norm([1.0, 2.0]), DataError, "must be of shape"),
        (lambda: energy([[1.0, 2.0]], 0), OptionError, "temperature must be positive"),
        (lambda: calibration_error([[1.0, 2.0]], [0], 0), OptionError, "bins must be a positive integer"),
        (lambda: mano([[1.0, 2.0]], -1), OptionError, "order must be positive"),
        (lambda: dispersion([[1.0], [2.0]], [1, 1], 3), Undefined, "a single class is predicted"),
        (lambda: dispersion([[1.0], [1.0]], [0, 1], 3), Undefined, "the same mean"),
        (lambda: dispersion([[np.inf], [1.0]], [0, 1], 3), Undefined, "NaN or infinite features"),
        (lambda: dispersion([[1.0], [1.0]], [0, 3], 3), DataError, "class numbers below 3"),
        (lambda: dispersion([1.0, 1.0], [0, 1], 3), DataError, r"must be \(N, D\)"),
    ],
)
def test_degenerate_input_has_no_value(call, error: type[Exception], match: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=match):
        call()


def test_classes_that_are_ruled_out_have_no_entropy() -> None:
    np.testing.assert_allclose(entropy([[0.0, -np.inf, 0.0]]), [math.log(2)])
