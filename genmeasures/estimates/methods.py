"""The methods: which estimator each is, for the outputs of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from genmeasures.errors import DataError, GenmeasuresError, Undefined
from genmeasures.estimates.agreement import agreement_line, ensemble_agreement, pairwise_agreement
from genmeasures.estimates.average_confidence import average_confidence, difference_of_confidences, known_accuracy
from genmeasures.estimates.confidence_transport import CAP, confidence_transport
from genmeasures.estimates.dice import (
    dice_baseline,
    dice_of_confidence,
    dice_of_shifted_confidence,
    dice_of_thresholded_confidence,
)
from genmeasures.estimates.importance import importance, outside
from genmeasures.estimates.outputs import Outputs
from genmeasures.estimates.resampling import Estimator, Resampled, resample
from genmeasures.estimates.thresholded_confidence import thresholded_confidence
from genmeasures.statistics.outputs import fit_temperature

METHODS: Mapping[str, str] = {
    "validation": "accuracy on the validation data: no shift",
    "ac": "average confidence",
    "doc": "validation accuracy minus the drop of the average confidence",
    "atc": "fraction of outputs whose largest probability reaches a threshold fitted on the validation data",
    "atc_entropy": "the same with the negative entropy",
    "im": "validation accuracy within bins of confidence, weighted by the target outputs",
    "cot": "optimal transport between validation labels and target outputs",
    "gde": "mean agreement with the other models",
    "ensemble": "agreement with the mean probabilities of the other models",
    "aline": "validation accuracy moved along the line of the agreements of all pairs of models",
}
"""Methods with their descriptions."""

DICE_METHODS = ("validation", "ac", "doc", "atc")
"""Methods that estimate Dice coefficients."""

METRICS = ("accuracy", "dice")
GROUP_METHODS = ("gde", "ensemble", "aline")
_LABELS_ALONE = ("validation", "gde", "aline")
"""Methods that read predictions, and not probabilities."""


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of one model on both splits, or why there are none."""

    validation: Outputs
    target: Outputs
    temperature: float | GenmeasuresError


def model_outputs(validation: Outputs, target: Outputs, scale: bool) -> ModelOutputs:
    """The outputs of a model on both splits, with its temperature or why there is none.

    Args:
        validation: labeled outputs.
        target: outputs of the same classes.
        scale: whether a temperature is fitted on the validation data.

    Raises:
        DataError: both splits do not have the same classes.
        Undefined: the validation data have no labels.

    Example:
        >>> outputs = Outputs.of([[0.0, 1.0]], [1])
        >>> model_outputs(outputs, outputs, scale=False).temperature
        1.0
    """
    if validation.logits.shape[1] != target.logits.shape[1] or validation.is_dense != target.is_dense:
        raise DataError(
            f"validation logits {validation.logits.shape} and target logits {target.logits.shape} must have the same "
            "classes, both with pixels or both without"
        )
    temperature: float | GenmeasuresError = 1.0
    _ = validation.labeled
    if scale:
        assert validation.labels is not None
        try:
            rows = validation.logits, validation.labels
            temperature = fit_temperature(*rows)
        except Undefined as error:
            temperature = error
    return ModelOutputs(validation, target, temperature)


def _scaled(model: ModelOutputs) -> tuple[Outputs, Outputs]:
    if isinstance(model.temperature, GenmeasuresError):
        raise Undefined(str(model.temperature))
    return model.validation.at(model.temperature), model.target.at(model.temperature)


def estimator_of(method: str, model: ModelOutputs, metric: str, average: str, seed: int) -> tuple[Estimator, str]:
    """The estimator of a method that reads one model, and a note on its value.

    Args:
        method: name of the method.
        model: outputs of the model.
        metric: "accuracy" or "dice".
        average: for Dice coefficients, "inputs" or "pixels".
        seed: of random choices.

    Raises:
        Undefined: the method has no estimate, or the temperature is not defined.

    Example:
        >>> import numpy as np
        >>> outputs = Outputs.of([[0.0, 100.0]], [1])
        >>> estimator, note = estimator_of("ac", model_outputs(outputs, outputs, False), "accuracy", "inputs", 0)
        >>> estimator(np.ones((1, 1)), np.ones((1, 1))), note
        (array([100.]), '')
    """
    if method == "validation":
        of = model.validation
        return (dice_baseline(of, average) if metric == "dice" else known_accuracy(of)), ""
    validation, target = _scaled(model)
    if metric == "dice":
        if method == "ac":
            return dice_of_confidence(target, average), ""
        calibrated = dice_of_shifted_confidence if method == "doc" else dice_of_thresholded_confidence
        return calibrated(validation, target, average), ""
    if method == "ac":
        return average_confidence(target), ""
    if method == "doc":
        return difference_of_confidences(validation, target), ""
    if method == "im":
        part = outside(validation, target)
        note = f"{100 * part:.1f} % of the target outputs are in bins of confidence without validation outputs"
        return importance(validation, target), note if part else ""
    if method == "cot":
        note = f"transport of {CAP} target inputs drawn at random" if len(target) > CAP else ""
        return confidence_transport(validation, target, seed=seed), note
    return thresholded_confidence(validation, target, "entropy" if method == "atc_entropy" else "confidence"), ""


def group_estimates(method: str, models: Mapping[str, ModelOutputs], resamples: int, seed: int) -> Resampled:
    """The estimates (M,) of a method that compares models.

    Args:
        method: one of :data:`GROUP_METHODS`.
        models: outputs by model, on the same inputs.
        resamples: number of bootstrap resamples.
        seed: of the draws.

    Raises:
        Undefined: there are too few models, or their inputs differ in number.

    Example:
        >>> outputs = Outputs.of([[0.0, 1.0]], [1])
        >>> models = {name: model_outputs(outputs, outputs, False) for name in "ab"}
        >>> group_estimates("gde", models, resamples=3, seed=0).value
        array([100., 100.])
    """
    pairs = [
        (model.validation, model.target) if method in _LABELS_ALONE else _scaled(model) for model in models.values()
    ]
    validations, targets = zip(*pairs, strict=True)
    if method == "aline":
        estimator = agreement_line(validations, targets)
    else:
        estimator = (pairwise_agreement if method == "gde" else ensemble_agreement)(targets)
    return resample(estimator, len(validations[0]), len(targets[0]), resamples, seed)


__all__ = [
    "DICE_METHODS",
    "GROUP_METHODS",
    "METHODS",
    "METRICS",
    "ModelOutputs",
    "estimator_of",
    "group_estimates",
    "model_outputs",
]
