"""Estimates from the agreement of several models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from genmeasures.errors import Undefined
from genmeasures.estimates.outputs import Outputs, per_input
from genmeasures.estimates.resampling import Estimator, Floats


def disagreement(first: Outputs, second: Outputs) -> float:
    """Fraction of the predictions in which two models differ.

    Args:
        first: outputs of a model.
        second: outputs of another model on the same inputs.

    Example:
        >>> disagreement(Outputs.of([[1.0, 0.0], [1.0, 0.0]]), Outputs.of([[3.0, 2.0], [0.0, 1.0]]))
        0.5
    """
    return float((first.predictions != second.predictions).mean())


def pairwise_agreement(targets: Sequence[Outputs]) -> Estimator:
    """Estimator GDE: the mean agreement of each model with the others.

    The disagreement of two runs of one recipe is an estimate of their error, if their ensemble is calibrated by class.

    Args:
        targets: outputs of M ≥ 2 models on the same inputs.

    Returns:
        Percent (R, M), of weights (R, inputs) of both splits; validation inputs are not read.

    Raises:
        Undefined: there are fewer than two models.

    Source: Jiang et al., Assessing Generalization of SGD via Disagreement (2022).

    Example:
        >>> models = [Outputs.of([[1.0, 0.0], [1.0, 0.0]]), Outputs.of([[3.0, 2.0], [0.0, 1.0]])]
        >>> pairwise_agreement(models)(np.ones((1, 1)), np.ones((1, 2)))
        array([[50., 50.]])
    """
    predictions = _predictions(targets)
    models, pixels = len(predictions), predictions[0][0].size
    sums = np.zeros((len(targets[0]), models))
    for i, j in zip(*np.triu_indices(models, 1), strict=True):
        alike = per_input(predictions[i] == predictions[j])
        sums[:, i] += alike
        sums[:, j] += alike
    sums /= pixels * (models - 1)
    return lambda of_validation, of_target: 100 * (of_target @ sums) / of_target.sum(1, keepdims=True)


def ensemble_agreement(targets: Sequence[Outputs]) -> Estimator:
    """Estimator of the accuracy by the agreement of each model with the mean probabilities of all other models.

    Args:
        targets: outputs of M ≥ 2 models on the same inputs.

    Returns:
        Percent (R, M), of weights (R, inputs) of both splits; validation inputs are not read.

    Raises:
        Undefined: there are fewer than two models.

    Source: after Chen et al., Detecting Errors and Estimating Accuracy on Unlabeled Data with Self-Training Ensembles
    (2021), without the self-training.

    Example:
        >>> models = [Outputs.of([[1.0, 0.0], [f, 0.0]]) for f in (1.0, 2.0, -0.5)]
        >>> ensemble_agreement(models)(np.ones((1, 1)), np.ones((1, 2)))
        array([[100., 100.,  50.]])
    """
    predictions = _predictions(targets)
    total = np.sum([target.probabilities for target in targets], axis=0)
    pixels = predictions[0][0].size
    sums = np.stack(
        [
            per_input(own == (total - target.probabilities).argmax(axis=1)) / pixels
            for own, target in zip(predictions, targets, strict=True)
        ],
        axis=1,
    )
    return lambda of_validation, of_target: 100 * (of_target @ sums) / of_target.sum(1, keepdims=True)


def agreement_line(validations: Sequence[Outputs], targets: Sequence[Outputs]) -> Estimator:
    """Estimator ALine: the validation accuracy of each model, moved along the line of the agreements of all pairs.

    Φ⁻¹(accuracy on target) = a Φ⁻¹(accuracy on validation) + b, with a and b from the least-squares line through
    (Φ⁻¹(agreement on validation), Φ⁻¹(agreement on target)) of all pairs of models. Pairs that agree on all inputs of a
    split, or on none, have no place on the line and are left out, as is a model with an accuracy of 0 or 100 percent.
    At least three pairs must be left.

    Args:
        validations: labeled outputs of M ≥ 3 models on the same inputs.
        targets: their outputs on the target inputs; labels are not read.

    Returns:
        Percent (R, M), of weights (R, inputs) of both splits; NaN where there is no line.

    Raises:
        Undefined: there are fewer than three models.

    Source: Baek et al., Agreement-on-the-Line: Predicting the Performance of Neural Networks under Distribution Shift
    (2022), the method ALine-S.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(2, size=200)
        >>> logits = [rng.normal(size=(200, 2)) + np.eye(2)[labels] * s for s in (0.5, 1.0, 2.0)]
        >>> models = [Outputs.of(f, labels) for f in logits]
        >>> ones = np.ones((1, 200))
        >>> estimate = agreement_line(models, models)(ones, ones)[0]  # the line is the diagonal
        >>> np.allclose(estimate, [model.accuracy for model in models])
        True
    """
    known, new = _predictions(validations), _predictions(targets)
    models = len(known)
    if models < 3:
        raise Undefined(f"the agreement line needs at least 3 models, got {models}")
    pairs = list(zip(*np.triu_indices(models, 1), strict=True))
    correct = np.stack([per_input(outputs.correct) for outputs in validations], axis=1)
    labels = np.stack([per_input(outputs.labeled) for outputs in validations], axis=1)
    before, after = (
        np.stack([per_input(of[i] == of[j]) / of[0][0].size for i, j in pairs], axis=1) for of in (known, new)
    )

    def estimate(of_validation: Floats, of_target: Floats) -> Floats:
        x, y = (
            _probit((weights @ agreement) / weights.sum(1, keepdims=True))
            for weights, agreement in ((of_validation, before), (of_target, after))
        )
        slope, intercept = _lines(x, y)
        accuracy = _probit((of_validation @ correct) / (of_validation @ labels))
        return np.asarray(100 * ndtr(slope[:, None] * accuracy + intercept[:, None]))

    return estimate


def _predictions(outputs: Sequence[Outputs]) -> list[NDArray[np.int64]]:
    if len(outputs) < 2:
        raise Undefined("agreement needs at least 2 models, got 1")
    shapes = {of.predictions.shape for of in outputs}
    if len(shapes) > 1:
        raise Undefined(f"agreement needs outputs of all models on the same inputs, got the shapes {sorted(shapes)}")
    return [of.predictions for of in outputs]


def _probit(fraction: Floats) -> Floats:
    """Φ⁻¹ of fractions; NaN for 0 and 1."""
    inside = (fraction > 0) & (fraction < 1)
    return np.where(inside, ndtri(np.where(inside, fraction, 0.5)), np.nan)


def _lines(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Least-squares lines through the points of each row (R, P): slopes and intercepts (R,), NaN where undefined."""
    used = np.isfinite(x) & np.isfinite(y)
    count = used.sum(axis=1)
    enough = count >= 3
    divisor = np.maximum(count, 1)
    mean_x, mean_y = (np.where(used, of, 0).sum(axis=1) / divisor for of in (x, y))
    dx, dy = (np.where(used, of - mean[:, None], 0) for of, mean in ((x, mean_x), (y, mean_y)))
    spread = (dx**2).sum(axis=1)
    defined = enough & (spread > 1e-18 * divisor)
    slope = np.where(defined, (dx * dy).sum(axis=1) / np.where(defined, spread, 1), np.nan)
    return slope, np.where(defined, mean_y - slope * mean_x, np.nan)


__all__ = ["agreement_line", "disagreement", "ensemble_agreement", "pairwise_agreement"]
