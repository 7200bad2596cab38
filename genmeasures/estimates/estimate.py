"""Estimates of all methods for several models, with bootstrap intervals over inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import xarray as xr

from genmeasures.errors import DataError, GenmeasuresError, OptionError, nearest
from genmeasures.estimates.dice import AVERAGES
from genmeasures.estimates.methods import (
    DICE_METHODS,
    GROUP_METHODS,
    METHODS,
    METRICS,
    ModelOutputs,
    estimator_of,
    group_estimates,
    model_outputs,
)
from genmeasures.estimates.outputs import Outputs
from genmeasures.estimates.resampling import Resampled, resample
from genmeasures.estimates.table import Table
from genmeasures.failures import status_of
from genmeasures.interfaces import is_count


def estimate_outputs(
    validation: Mapping[str, Outputs | GenmeasuresError],
    target: Mapping[str, Outputs | GenmeasuresError],
    methods: Sequence[str] = ("atc",),
    *,
    metric: str | None = None,
    scale: bool = False,
    average: str = "inputs",
    background: int | None = 0,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Estimate the accuracy of models on unlabeled data; see :func:`genmeasures.estimate`.

    Args:
        validation: labeled outputs by model, or the error with which they could not be read.
        target: outputs of the same models.
        methods: names of :data:`~genmeasures.estimates.methods.METHODS`.
        metric: "accuracy" or "dice"; None is "dice" for outputs per pixel.
        scale: whether probabilities are scaled by a temperature fitted on the validation data.
        average: for Dice coefficients, "inputs" or "pixels".
        background: class that the mean of Dice coefficients leaves out; None for none.
        confidence: confidence level of the intervals.
        resamples: number of bootstrap resamples.
        seed: of every random choice.

    Returns:
        Dataset (model, estimator), see :func:`genmeasures.estimate`.

    Raises:
        OptionError: an option is unknown or out of range.
        DataError: no model has outputs.

    Example:
        >>> import numpy as np
        >>> logits = np.log([[0.8, 0.2]] * 6 + [[0.2, 0.8]] * 4)
        >>> validation = {"net": Outputs.of(logits, [0] * 9 + [1])}
        >>> ds = estimate_outputs(validation, {"net": Outputs.of(logits)}, ["validation", "ac"], resamples=99)
        >>> ds.estimate.values.round(6)
        array([[70., 80.]])
    """
    _check(methods, metric, average, confidence, resamples, seed)
    models: dict[str, ModelOutputs] = {}
    problems: dict[str, GenmeasuresError] = {}
    for name in validation:
        pair = validation[name], target[name]
        error = next((of for of in pair if isinstance(of, GenmeasuresError)), None)
        try:
            if error is not None:
                raise error
            models[name] = model_outputs(*pair, scale)  # type: ignore[arg-type]
        except GenmeasuresError as caught:
            problems[name] = caught
    if not models:
        raise DataError(
            f"no model has outputs to estimate from; {next(iter(problems))}: {next(iter(problems.values()))}"
        )
    if metric is None:
        metric = "dice" if all(model.target.is_dense for model in models.values()) else "accuracy"
    for method in methods:
        if metric == "dice" and method not in DICE_METHODS:
            raise OptionError(f"method {method!r} does not estimate Dice coefficients{nearest(method, DICE_METHODS)}")
    table = Table(list(validation), list(methods), metric, confidence, resamples)
    for name, problem in problems.items():
        table.fail(name, status_of(problem, f"estimates of {name}"))
    for column, method in enumerate(methods):
        if metric == "accuracy" and method in GROUP_METHODS:
            table.put_group(column, list(models), partial(group_estimates, method, models, resamples, seed))
            continue
        for name, model in models.items():
            table.put(
                name, column, partial(_resampled, method, model, metric, average, resamples, seed), model, background
            )
    return table.dataset(models, average, background, scale, seed)


def _resampled(
    method: str, model: ModelOutputs, metric: str, average: str, resamples: int, seed: int
) -> tuple[Resampled, str]:
    """The estimate of one model by a method, and a note on it."""
    estimator, note = estimator_of(method, model, metric, average, seed)
    return resample(estimator, len(model.validation), len(model.target), resamples, seed), note


def _check(
    methods: Sequence[str], metric: str | None, average: str, confidence: float, resamples: int, seed: int
) -> None:
    if not methods:
        raise OptionError(f"estimate: name a method{nearest('', METHODS)}")
    for method in methods:
        if method not in METHODS:
            raise OptionError(f"estimate: method {method!r} is unknown{nearest(str(method), METHODS)}")
    if len(set(methods)) < len(methods):
        raise OptionError(f"estimate: methods are named twice: {', '.join(methods)}")
    for option, value, known in (("metric", metric, (None, *METRICS)), ("average", average, AVERAGES)):
        if value not in known:
            raise OptionError(f"estimate: {option}={value!r} is unknown{nearest(str(value), filter(None, known))}")
    if not 0 < confidence < 1:
        raise OptionError(f"estimate: confidence must be between 0 and 1, got {confidence!r}")
    if not is_count(resamples):
        raise OptionError(f"estimate: resamples must be a positive integer, got {resamples!r}")
    if not is_count(seed, 0):
        raise OptionError(f"estimate: seed must be an integer ≥ 0, got {seed!r}")


__all__ = ["METHODS", "estimate_outputs"]
