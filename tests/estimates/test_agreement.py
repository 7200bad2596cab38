"""Estimates from the agreement of models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import linregress, norm

from genmeasures.errors import Undefined
from genmeasures.estimates.agreement import agreement_line, disagreement, ensemble_agreement, pairwise_agreement
from genmeasures.estimates.outputs import Outputs

ONES = np.ones((1, 80))


def recipe(seed: int, scale: float = 1.0, labels: np.ndarray | None = None) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(99).integers(3, size=80) if labels is None else labels
    return Outputs.of(scale * np.eye(3)[labels] + rng.normal(size=(80, 3)), labels)


def test_identical_models_agree() -> None:
    model = recipe(0)
    assert disagreement(model, model) == 0
    for estimator in (pairwise_agreement, ensemble_agreement):
        np.testing.assert_array_equal(estimator([model, model, model])(ONES, ONES), 100)


def test_agreement_is_the_mean_over_pairs() -> None:
    models = [recipe(seed) for seed in range(4)]
    estimate = pairwise_agreement(models)(ONES, ONES)[0]
    for i, model in enumerate(models):
        others = [(model.predictions == other.predictions).mean() for j, other in enumerate(models) if j != i]
        assert estimate[i] == pytest.approx(100 * np.mean(others))


def test_the_ensemble_leaves_the_model_out() -> None:
    models = [recipe(seed) for seed in range(3)]
    estimate = ensemble_agreement(models)(ONES, ONES)[0]
    vote = (models[1].probabilities + models[2].probabilities).argmax(1)
    assert estimate[0] == pytest.approx(100 * (models[0].predictions == vote).mean())


def test_the_line_is_that_of_scipy() -> None:
    scales = (0.5, 1.0, 1.5, 2.0)
    validations = [recipe(seed, scale) for seed, scale in enumerate(scales)]
    targets = [recipe(seed + 50, 0.7 * scale) for seed, scale in enumerate(scales)]
    pairs = [(i, j) for i in range(4) for j in range(i)]
    x, y = (
        norm.ppf([(of[i].predictions == of[j].predictions).mean() for i, j in pairs]) for of in (validations, targets)
    )
    line = linregress(x, y)
    expected = [100 * norm.cdf(line.slope * norm.ppf(v.accuracy / 100) + line.intercept) for v in validations]
    np.testing.assert_allclose(agreement_line(validations, targets)(ONES, ONES)[0], expected, rtol=1e-9)


def test_the_line_of_equal_splits_is_the_diagonal() -> None:
    models = [recipe(seed, scale) for seed, scale in enumerate((0.5, 1.0, 2.0))]
    np.testing.assert_allclose(
        agreement_line(models, models)(ONES, ONES)[0], [model.accuracy for model in models], rtol=1e-9
    )


def test_there_is_no_line_without_three_pairs() -> None:
    """Identical models agree everywhere: they have no place on it."""
    same = recipe(0)
    assert np.isnan(agreement_line([same] * 3, [same] * 3)(ONES, ONES)).all()
    with pytest.raises(Undefined, match="at least 3 models, got 2"):
        agreement_line([same] * 2, [same] * 2)


def test_models_must_have_the_same_inputs() -> None:
    with pytest.raises(Undefined, match="at least 2 models"):
        pairwise_agreement([recipe(0)])
    other = Outputs.of(np.zeros((79, 3)))
    with pytest.raises(Undefined, match=r"same inputs, got the shapes \[\(79,\), \(80,\)\]"):
        pairwise_agreement([recipe(0), other])
