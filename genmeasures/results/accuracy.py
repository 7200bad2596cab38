"""Measured accuracies: filled in where the task states none, and compared with those that it states.

A stated accuracy is consistent if it differs from the measured one by at most its rounding (half a unit of the last
digit of any accuracy of that name) plus three standard errors of a fraction of as many labels, because the stated
accuracy may be of more data. The standard error is the larger one of the stated and the measured fraction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from genmeasures.interfaces import SPLITS, Split
from genmeasures.results.schema import GAP, hparams_of, measured_accuracy, measured_labels, with_note

_NAMES = ("accuracy", "acc", "top1", "acc1", "top1_accuracy", "top1_acc")
"""Names of metrics that are the fraction of correct predictions, without the split that they begin with."""

_ERRORS = 3
"""Number of standard errors by which fractions of different samples may differ."""

_CAUSES = "check data, normalization, preprocessing and the order of the classes"


def with_accuracies(ds: xr.Dataset) -> xr.Dataset:
    """Fill in measured accuracies where the task states none, and note inconsistent ones in ``model_status``.

    The accuracies of the splits are filled in under the name of the metric of the result if it is an accuracy, in
    percent if others are in percent, and so is the generalization gap. An accuracy below chance level is not filled in:
    it indicates that labels and outputs do not match.

    Args:
        ds: A result with the dimensions (model, layer), with the metrics that the task states.

    Returns:
        The result with the coordinates filled in.

    Example:
        >>> counted = {"measured_test_accuracy": ("model", [0.9]), "measured_test_labels": ("model", [100.0])}
        >>> ds = xr.Dataset(coords={"model": ["net"], "model_status": ("model", ["ok"]), **counted})
        >>> with_accuracies(ds).test_accuracy.item()
        0.9
    """
    metric = str(ds.attrs.get("metric", "accuracy"))
    filled = ds
    for split in SPLITS:
        if measured_accuracy(split) not in ds.coords:
            continue
        stated = _stated_accuracies(ds, split)
        faults = _faults(ds, split, stated)
        status = [with_note(str(old), fault) for old, fault in zip(filled["model_status"].values, faults, strict=True)]
        filled = filled.assign_coords(model_status=("model", np.array(status, dtype=object)))
        if metric in _NAMES and f"{split}_{metric}" not in hparams_of(ds):
            filled = _filled(filled, f"{split}_{metric}", split, stated, faults)
    return _with_gap(filled, metric)


@dataclass(frozen=True)
class _StatedAccuracy:
    """Accuracy of all models on one split that the task states under one name."""

    name: str
    values: NDArray[np.float64]
    """Fractions; NaN where not stated."""
    scale: float
    """Unit of the stated numbers: 100 for percent, else 1."""
    rounding: float


def _stated_accuracies(ds: xr.Dataset, split: Split) -> list[_StatedAccuracy]:
    hparams = hparams_of(ds)
    stated = []
    for metric in _NAMES:
        name = f"{split}_{metric}"
        if name in hparams or name not in ds.coords or ds[name].dims != ("model",) or ds[name].dtype.kind not in "fi":
            continue
        values = ds[name].values.astype(np.float64)
        finite = [float(value) for value in values if np.isfinite(value)]
        if finite:
            scale = _scale(ds, metric)
            # Fractions that are all integers, such as 1, are assumed to be rounded to percent.
            decimals = max(map(_decimals, finite)) or (2 if scale == 1 else 0)
            stated.append(_StatedAccuracy(name, values / scale, scale, 0.5 * 10.0**-decimals / scale))
    return stated


def _scale(ds: xr.Dataset, metric: str) -> float:
    """100 if the accuracies of a name are in percent, else 1; equal for all splits, whose differences are the gap."""
    names = [f"{split}_{metric}" for split in SPLITS]
    numbers = [ds[name].values for name in names if name in ds.coords and ds[name].dtype.kind in "fi"]
    return 100.0 if any((values[np.isfinite(values)] > 1).any() for values in numbers) else 1.0


def _decimals(value: float) -> int:
    """Number of decimal places with which a number is written."""
    mantissa, _, exponent = repr(value).partition("e")
    return max(0, len(mantissa.partition(".")[2].rstrip("0")) - int(exponent or 0))


def _faults(ds: xr.Dataset, split: Split, stated: Sequence[_StatedAccuracy]) -> list[str]:
    """For each model why its measured accuracy is implausible, "" where it is not."""
    measured = ds[measured_accuracy(split)].values.astype(np.float64)
    labels = ds[measured_labels(split)].values.astype(np.float64)
    chance = 1 / max(2, int(ds.attrs.get("classes", 2)))
    faults = []
    for i, (accuracy, count) in enumerate(zip(measured, labels, strict=True)):
        fault = ""
        if np.isfinite(accuracy):
            applicable = [s for s in stated if np.isfinite(s.values[i])]
            wrong = [s for s in applicable if _differs(accuracy, s.values[i], count, s.rounding)]
            if wrong:
                scale = wrong[0].scale
                comparison = f"{accuracy * scale:.4g} on {count:.0f} labels, claimed {wrong[0].values[i] * scale:.4g}"
                fault = f"{split} accuracy is {comparison}: {_CAUSES}"
            elif not applicable and accuracy < chance and _differs(accuracy, chance, count, 0):
                fault = f"{split} accuracy is {accuracy:.4g} on {count:.0f} labels, below chance level: {_CAUSES}"
        faults.append(fault)
    return faults


def _differs(measured: float, stated: float, count: float, rounding: float) -> bool:
    spread = max(p * (1 - p) for p in (measured, min(max(stated, 0.0), 1.0)))
    return abs(measured - stated) > rounding + _ERRORS * math.sqrt(spread / count) + 1e-9


def _filled(
    ds: xr.Dataset, name: str, split: Split, stated: Sequence[_StatedAccuracy], faults: Sequence[str]
) -> xr.Dataset:
    """The result with the measured accuracy under that name for models whose accuracy is not stated by any name."""
    measured = ds[measured_accuracy(split)].values.astype(np.float64)
    missing = np.isfinite(measured) & (np.array(faults, dtype=object) == "")
    for accuracy in stated:
        missing &= np.isnan(accuracy.values)
    if not missing.any():
        return ds
    values = ds[name].values.astype(np.float64) if name in ds.coords else np.full(len(measured), np.nan)
    values = np.where(missing, measured * _scale(ds, name.partition("_")[2]), values)
    attrs = {
        **(ds[name].attrs if name in ds.coords else {}),
        "comment": "measured in this run where the task has none",
    }
    return ds.assign_coords({name: ("model", values, attrs)})


def _with_gap(ds: xr.Dataset, metric: str) -> xr.Dataset:
    """The result with the generalization gap of models whose train and test accuracy are known."""
    names = [f"{split}_{metric}" for split in ("train", "test")]
    if metric not in _NAMES or any(name not in ds.coords or ds[name].dtype.kind not in "fi" for name in names):
        return ds
    train, test = (ds[name].values.astype(np.float64) for name in names)
    gap, attrs = train - test, {"long_name": f"train − test {metric}"}
    if GAP in ds.coords:
        existing = ds[GAP]
        if existing.attrs != attrs:  # the gap of another metric
            return ds
        gap = np.where(np.isnan(existing.values), gap, existing.values)
    return ds.assign_coords({GAP: ("model", gap, attrs)})


__all__ = ["with_accuracies"]
