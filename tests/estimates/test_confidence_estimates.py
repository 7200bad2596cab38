"""AC, DoC, ATC and IM against their definitions, and where they must return the validation accuracy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmeasures.errors import DataError, Undefined
from genmeasures.estimates.average_confidence import average_confidence, difference_of_confidences, known_accuracy
from genmeasures.estimates.importance import importance, outside
from genmeasures.estimates.outputs import Outputs
from genmeasures.estimates.resampling import Floats
from genmeasures.estimates.thresholded_confidence import thresholded_confidence
from genmeasures.statistics import outputs as statistics


def draw(seed: int, n: int = 60, k: int = 4, scale: float = 2.0) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    return Outputs.of(scale * np.eye(k)[labels] + rng.normal(size=(n, k)), labels)


def whole(estimator, validation: Outputs, target: Outputs) -> float:  # type: ignore[no-untyped-def]
    return float(estimator(np.ones((1, len(validation))), np.ones((1, len(target))))[0])


def threshold_by_search(scores: Floats, correct: np.ndarray) -> float:
    """The definition: of all thresholds, that whose fraction below is closest to the error; the smallest of several."""
    error = (~correct).mean()
    candidates = [*np.unique(scores), np.inf]
    distances = [abs(int((scores < t).sum()) - int((~correct).sum())) for t in candidates]
    assert 0 <= error <= 1
    return float(candidates[int(np.argmin(distances))])


def public_threshold(scores: Floats, correct: np.ndarray) -> float:
    """The search that is widely copied: it takes the score that it has just counted, and begins with 0."""
    order = np.argsort(scores)
    wrong_above, right_below = int((~correct).sum()), 0
    best, threshold = abs(wrong_above - right_below), 0.0
    for index in order:
        if correct[index]:
            right_below += 1
        else:
            wrong_above -= 1
        if abs(wrong_above - right_below) < best:
            best, threshold = abs(wrong_above - right_below), float(scores[index])
    return threshold


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 5), st.sampled_from([0.0, 1.0, 4.0]))
def test_target_equal_to_validation_gives_its_accuracy(seed: int, n: int, k: int, scale: float) -> None:
    """Of DoC and IM up to rounding; of ATC too, since continuous scores have no ties."""
    outputs = draw(seed, n, k, scale)
    for estimator in (
        difference_of_confidences(outputs, outputs),
        importance(outputs, outputs),
        thresholded_confidence(outputs, outputs),
        thresholded_confidence(outputs, outputs, "entropy"),
    ):
        assert whole(estimator, outputs, outputs) == pytest.approx(outputs.accuracy, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from(["confidence", "entropy"]))
def test_atc_is_its_definition(seed: int, tied: bool, score: str) -> None:
    validation, target = draw(seed, 25), draw(seed + 1, 30, scale=1.0)
    if tied:  # few different scores
        validation, target = (Outputs.of(of.logits.round(), of.labels) for of in (validation, target))
    scores = validation.score(score)
    t = threshold_by_search(scores, validation.correct)
    expected = 100 * (target.score(score) >= t).mean()
    assert whole(thresholded_confidence(validation, target, score), validation, target) == pytest.approx(expected)


def test_atc_differs_from_the_search_that_is_off_by_one() -> None:
    """It counts the score below the threshold that it then takes as the threshold."""
    outputs = draw(3, 50)
    scores = outputs.confidence
    copied = 100 * (scores >= public_threshold(scores, outputs.correct)).mean()
    assert copied != pytest.approx(outputs.accuracy, abs=1e-9)
    assert abs(copied - outputs.accuracy) == pytest.approx(100 / 50)
    assert whole(thresholded_confidence(outputs, outputs), outputs, outputs) == pytest.approx(outputs.accuracy)


def test_atc_has_a_threshold_where_the_public_search_keeps_0() -> None:
    """All validation outputs are right: outputs below the smallest score of them count as wrong."""
    validation = Outputs.of([[0.0, 2.0], [0.0, 3.0]], [1, 1])
    target = Outputs.of([[0.0, 0.1], [0.0, 2.5]])
    assert public_threshold(validation.confidence, validation.correct) == 0
    assert whole(thresholded_confidence(validation, target), validation, target) == 50
    wrong = Outputs.of(validation.logits, [0, 0])
    assert whole(thresholded_confidence(wrong, target), wrong, target) == 0  # the threshold is infinite


def test_saturated_confidences_keep_their_order() -> None:
    """As floating-point numbers, these probabilities are all 1."""
    logits = np.stack([np.zeros(10), np.linspace(60, 90, 10)], axis=1)
    assert len(np.unique(np.exp(statistics.log_probabilities(logits)).max(1))) == 1
    outputs = Outputs.of(logits, [0] * 3 + [1] * 7)
    assert whole(thresholded_confidence(outputs, outputs), outputs, outputs) == pytest.approx(70)


def test_each_resample_has_the_value_of_its_inputs() -> None:
    """Weights of the estimators are the same as inputs that occur so often."""
    validation, target = draw(5, 20), draw(6, 15, scale=1.0)
    rng = np.random.default_rng(0)
    rows, new = rng.integers(20, size=20), rng.integers(15, size=15)
    counts = np.bincount(rows, minlength=20)[None].astype(float), np.bincount(new, minlength=15)[None].astype(float)
    assert validation.labels is not None
    drawn = Outputs.of(validation.logits[rows], validation.labels[rows])
    drawn_target = Outputs.of(target.logits[new])
    for method in (
        thresholded_confidence,
        difference_of_confidences,
        importance,
        lambda v, u: known_accuracy(v),
        lambda v, u: average_confidence(u),
    ):
        weighted = float(method(validation, target)(*counts)[0])
        assert weighted == pytest.approx(whole(method(drawn, drawn_target), drawn, drawn_target), abs=1e-9)


def test_pixels_are_pooled_and_unlabeled_ones_left_out() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(4, 3, 5, 5)), rng.integers(-1, 3, size=(4, 5, 5))
    dense = Outputs.of(logits, labels)
    flat_labels = labels.reshape(-1)
    flat = Outputs.of(np.moveaxis(logits, 1, -1).reshape(-1, 3)[flat_labels >= 0], flat_labels[flat_labels >= 0])
    target = Outputs.of(rng.normal(size=(3, 3, 5, 5)))
    flat_target = Outputs.of(np.moveaxis(target.logits, 1, -1).reshape(-1, 3))
    for method in (thresholded_confidence, difference_of_confidences, importance):
        pooled = whole(method(flat, flat_target), flat, flat_target)
        assert whole(method(dense, target), dense, target) == pytest.approx(pooled, abs=1e-9)
    assert dense.accuracy == pytest.approx(flat.accuracy)


def test_resamples_of_many_pixels_have_quantiles_as_thresholds() -> None:
    """The estimate of all inputs is exact; resamples are within the width of a quantile, 100/4096 points."""
    rng = np.random.default_rng(2)
    labels = rng.integers(2, size=(4, 140, 140))
    logits = np.stack([1 - labels, labels], axis=1) + rng.normal(size=(4, 2, 140, 140))
    validation, target = Outputs.of(logits, labels), Outputs.of(logits * 0.7)
    estimator = thresholded_confidence(validation, target)
    t = threshold_by_search(validation.score("confidence").reshape(-1), validation.correct.reshape(-1))
    exact = 100 * (target.score("confidence") >= t).mean()
    assert whole(estimator, validation, target) == pytest.approx(exact, abs=1e-9)
    twice = estimator(np.full((1, 4), 2.0), np.full((1, 4), 2.0))  # the same resample, by quantiles
    assert float(twice[0]) == pytest.approx(exact, abs=0.05)


def test_bins_without_validation_outputs_take_the_nearest_one() -> None:
    validation = Outputs.of([[0.0, 0.2]] * 3 + [[0.0, 9.0]] * 2, [1, 1, 0, 1, 1])
    target = Outputs.of([[0.0, 1.2]])  # 0.77, nearer to 0.55 than to 1.0
    assert outside(validation, target) == 1
    assert whole(importance(validation, target), validation, target) == pytest.approx(200 / 3)


def test_the_temperature_is_where_the_likelihood_is_largest() -> None:
    outputs = draw(8, 200, scale=1.0)
    assert outputs.labels is not None
    t = statistics.fit_temperature(3 * outputs.logits + 1e6, outputs.labels)

    def loss(temperature: float) -> float:
        logs = statistics.log_probabilities(3 * outputs.logits, temperature)
        assert outputs.labels is not None
        return -float(logs[np.arange(200), outputs.labels].mean())

    grid = np.exp(np.linspace(np.log(t) - 1, np.log(t) + 1, 2001))
    assert grid[int(np.argmin([loss(value) for value in grid]))] == pytest.approx(t, rel=2e-3)  # steps of 0.1 %
    # Large offsets cost the digits of the logits that they push out, and no more.
    assert statistics.fit_temperature(3 * outputs.logits, outputs.labels) == pytest.approx(t, rel=1e-8)


@pytest.mark.parametrize(
    ("logits", "labels", "reason"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], [0, 1], "is 0: every validation output is correct"),
        ([[1.0, 0.0], [0.0, 1.0]], [1, 0], "is infinite"),
        ([[1.0, 1.0], [2.0, 2.0]], [1, 0], "all logits of each output are equal"),
        ([[1.0, 1.0], [2.0, 2.0]], [-1, -1], "there are none"),
    ],
)
def test_no_temperature_is_made_up(logits: list[list[float]], labels: list[int], reason: str) -> None:
    with pytest.raises(Undefined, match=reason):
        statistics.fit_temperature(logits, labels)


def test_negative_entropy_is_that_of_scipy() -> None:
    from scipy.stats import entropy

    logits = np.array([[0.0, 1.0, 3.0], [0.0, -np.inf, 0.0]])
    p = np.exp(statistics.log_probabilities(logits))
    np.testing.assert_allclose(statistics.confidence_score(logits, "entropy"), -entropy(p, axis=1), rtol=1e-12)


@pytest.mark.parametrize(
    ("logits", "error", "match"),
    [
        ([1.0, 2.0], DataError, r"the pair of logits \(0, f\)"),
        ([["a", "b"]], DataError, "must be numbers"),
        ([[np.nan, 0.0], [1.0, 2.0]], Undefined, "of 1 inputs are NaN or infinite"),
        ([[np.inf, 0.0]], Undefined, "NaN or infinite"),
    ],
)
def test_logits_are_checked(logits: list[object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        statistics.checked_logits(logits)


@pytest.mark.parametrize(
    ("labels", "match"),
    [([0, 1], r"shape \(1,\)"), ([2], "up to 2, but there are 2 outputs"), ([0.5], "class numbers")],
)
def test_labels_are_checked(labels: list[float], match: str) -> None:
    with pytest.raises(DataError, match=match):
        Outputs.of([[0.0, 1.0]], labels)
