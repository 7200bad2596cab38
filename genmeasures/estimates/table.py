"""Estimates of all models and methods, as a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from genmeasures.errors import GenmeasuresError
from genmeasures.estimates.dice import known_dice
from genmeasures.estimates.methods import ModelOutputs
from genmeasures.estimates.outputs import Outputs
from genmeasures.estimates.resampling import MIN_INPUTS, Floats, Resampled, interval
from genmeasures.failures import status_of
from genmeasures.results.schema import STATUS, with_note
from genmeasures.results.store import SCHEMA_VERSION


class Table:
    """The arrays of the result."""

    def __init__(self, names: list[str], methods: list[str], metric: str, confidence: float, resamples: int) -> None:
        self._names, self._methods, self._metric = names, methods, metric
        self._confidence, self._resamples = confidence, resamples
        shape = len(names), len(methods)
        self._value, self._low, self._high = (np.full(shape, np.nan) for _ in range(3))
        self._resampled = np.full((*shape, resamples), np.nan)
        self._status = np.full(shape, "", dtype=object)
        self._model_status = np.full(len(names), "ok", dtype=object)
        self._by_class: dict[tuple[int, int], tuple[Floats, Floats, Floats]] = {}

    def fail(self, name: str, status: str) -> None:
        """Record why a model has no estimates."""
        row = self._names.index(name)
        failed = status if status.startswith("failed") else f"failed: {status.partition(': ')[2]}"
        self._model_status[row] = failed
        self._status[row] = failed

    def put(
        self,
        name: str,
        column: int,
        run: Callable[[], tuple[Resampled, str]],
        model: ModelOutputs,
        background: int | None,
    ) -> None:
        """Record an estimate of one model, or why there is none."""
        row = self._names.index(name)
        try:
            result, note = run()
        except Exception as error:  # whatever stops one estimate, the others continue
            self._status[row, column] = status_of(error, f"{self._methods[column]} of {name}")
            return
        if result.value.ndim:
            ends = interval(result.resamples, self._confidence)
            few = min(len(model.validation), len(model.target)) < MIN_INPUTS
            missing = np.full_like(ends[0], np.nan)
            self._by_class[row, column] = (result.value, *((missing, missing) if few else ends))
            undefined = [str(c) for c in np.flatnonzero(np.isnan(result.value))]
            if undefined:
                note = f"no Dice coefficient of class {', '.join(undefined)}"
            result = _mean_over_classes(result, background)
        self._set(row, column, float(result.value), result.resamples, note, model)

    def put_group(self, column: int, names: list[str], run: Callable[[], Resampled]) -> None:
        """Record the estimates of a method that compares models."""
        try:
            result = run()
        except Exception as error:  # as above
            status = status_of(error, self._methods[column])
            for name in names:
                self._status[self._names.index(name), column] = status
            return
        for number, name in enumerate(names):
            row = self._names.index(name)
            self._set(row, column, float(result.value[number]), result.resamples[:, number], "", None)

    def _set(
        self, row: int, column: int, value: float, resamples: Floats, note: str, model: ModelOutputs | None
    ) -> None:
        if not np.isfinite(value):
            method = self._methods[column]
            reason = "no line through the agreements of at least 3 pairs" if method == "aline" else "no pixels to count"
            self._status[row, column] = f"undefined: {reason}"
            return
        self._value[row, column] = value
        self._resampled[row, column] = resamples
        self._status[row, column] = with_note("ok", note)
        few = model is not None and min(len(model.validation), len(model.target)) < MIN_INPUTS
        low, high = (np.nan, np.nan) if few else map(float, interval(resamples, self._confidence))
        self._low[row, column], self._high[row, column] = low, high
        reason = f"fewer than {MIN_INPUTS} inputs" if few else "the estimate is the same in all resamples"
        if not np.isfinite(low):
            self._status[row, column] = with_note(self._status[row, column], f"no interval: {reason}")
        if not -1e-9 <= value <= 100 + 1e-9:
            beyond = "the estimate is outside of 0 to 100 %"
            self._status[row, column] = with_note(self._status[row, column], beyond)

    def dataset(
        self, models: Mapping[str, ModelOutputs], average: str, background: int | None, scale: bool, seed: int
    ) -> xr.Dataset:
        """The result."""
        dims = ("model", "estimator")
        what = "accuracy" if self._metric == "accuracy" else "mean Dice coefficient"
        level = f"{100 * self._confidence:g} % bootstrap interval over inputs"
        variables: dict[str, Any] = {
            "estimate": (dims, self._value, {"long_name": f"estimated {what} on the target data", "units": "%"}),
            "estimate_low": (dims, self._low, {"long_name": f"lower end of the {level}", "units": "%"}),
            "estimate_high": (dims, self._high, {"long_name": f"upper end of the {level}", "units": "%"}),
            f"estimate{STATUS}": (dims, self._status),
            "resampled": (
                (*dims, "resample"),
                self._resampled,
                {"long_name": "estimates of resamples, which are the same ones for all models", "units": "%"},
            ),
        }
        coords: dict[str, Any] = {
            "model": ("model", np.array(self._names, dtype=object)),
            "estimator": ("estimator", np.array(self._methods, dtype=object)),
            "model_status": ("model", self._model_status),
            "validation_size": ("model", self._of(models, lambda m: float(len(m.validation)))),
            "target_size": ("model", self._of(models, lambda m: float(len(m.target)))),
        }
        if scale:
            coords["temperature"] = ("model", self._of(models, _temperature))
        for split in ("validation", "target"):
            of_split = {name: getattr(model, split) for name, model in models.items()}
            known = np.array([_known(of_split.get(name), self._metric, average, background) for name in self._names])
            if np.isfinite(known).any():
                text = {"long_name": f"{what} on the {split} data, by their labels", "units": "%"}
                coords[f"{split}_{self._metric}"] = ("model", known, text)
        if self._metric == "dice":
            variables |= self._classes(models, average)
        first = next(iter(models.values()))
        attrs: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "metric": self._metric,
            "confidence": self._confidence,
            "resamples": self._resamples,
            "seed": seed,
            "classes": first.target.classes,
        }
        if self._metric == "dice":
            attrs |= {"average": average, "background": -1 if background is None else background}
        return xr.Dataset(variables, coords, attrs)

    def _of(self, models: Mapping[str, ModelOutputs], value: Callable[[ModelOutputs], float]) -> Floats:
        return np.array([value(models[name]) if name in models else np.nan for name in self._names])

    def _classes(self, models: Mapping[str, ModelOutputs], average: str) -> dict[str, Any]:
        """Dice coefficients by class."""
        classes = max(model.target.classes for model in models.values())
        arrays = np.full((3, len(self._names), len(self._methods), classes), np.nan)
        for (row, column), values in self._by_class.items():
            for array, value in zip(arrays, values, strict=True):
                array[row, column, : len(value)] = value
        dims = ("model", "estimator", "class")
        names = {"dice": "estimated Dice coefficient", "dice_low": "lower end", "dice_high": "upper end"}
        variables: dict[str, Any] = {
            name: (dims, array, {"long_name": text, "units": "%"})
            for (name, text), array in zip(names.items(), arrays, strict=True)
        }
        known = np.full((len(self._names), classes), np.nan)
        for name, model in models.items():
            if _is_labeled(model.target):
                dice = known_dice(model.target, average).of(np.ones((1, len(model.target))))[0]
                known[self._names.index(name), : len(dice)] = dice
        if np.isfinite(known).any():
            attrs = {"long_name": "Dice coefficient on the target data, by their labels", "units": "%"}
            variables["target_class_dice"] = (("model", "class"), known, attrs)
        return variables


def _mean_over_classes(result: Resampled, background: int | None) -> Resampled:
    """The mean over the classes that have a value for all inputs, without the background."""
    used = np.isfinite(result.value)
    if background is not None and 0 <= background < len(used):
        used[background] = False
    if not used.any():
        return Resampled(np.array(np.nan), np.full(len(result.resamples), np.nan))
    return Resampled(np.asarray(result.value[used].mean()), result.resamples[:, used].mean(axis=1))


def _temperature(model: ModelOutputs) -> float:
    return np.nan if isinstance(model.temperature, GenmeasuresError) else model.temperature


def _is_labeled(outputs: Outputs) -> bool:
    return outputs.labels is not None and bool((outputs.labels >= 0).any())


def _known(outputs: Outputs | None, metric: str, average: str, background: int | None) -> float:
    """The metric by the labels, in percent; NaN without labels."""
    if outputs is None or not _is_labeled(outputs):
        return float("nan")
    if metric == "accuracy":
        return outputs.accuracy
    dice = known_dice(outputs, average).of(np.ones((1, len(outputs))))
    return float(_mean_over_classes(Resampled(dice[0], dice), background).value)


__all__ = ["Table"]
