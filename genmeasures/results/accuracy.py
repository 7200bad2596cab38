"""Accuracies that were measured in passing: filled in where none is known, and compared with those that are claimed.

A claim stands if it differs from what was measured by no more than its rounding, half a unit of the last digit that
any claim of this name has, plus three standard errors of a fraction of as many labels, since the claim may be of more
data than were measured. The standard error is that of the claimed fraction or of the measured one, the larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from genmeasures.interfaces import SPLITS, Split
from genmeasures.results.schema import hparams_of, measured_accuracy, measured_labels, with_note

_NAMES = ("accuracy", "acc", "top1", "acc1", "top1_accuracy", "top1_acc")
"""What metrics are called that are the fraction of right predictions, without ``train_`` and ``test_``."""

_ERRORS = 3
"""Standard errors by which fractions of different samples may differ."""

_CAUSES = "other data, normalization, preprocessing or order of the classes?"


def with_accuracies(ds: xr.Dataset) -> xr.Dataset:
    """A result with the measured accuracies filled in where none are known, and what is wrong in ``model_status``.

    Filled in are train and test accuracy under the name of the result's metric, if that is an accuracy, in percent
    if others are in percent; and the generalization gap that follows. An accuracy below that of a blind guess is
    not filled in: it says that labels and outputs do not belong together.

    Args:
        ds: a result with dims (model, layer), whose metrics are those that the task knows.
    """
    metric = str(ds.attrs.get("metric", "accuracy"))
    made = ds
    for split in SPLITS:
        if measured_accuracy(split) not in ds.coords:
            continue
        claims = _claims(ds, split)
        faults = _faults(ds, split, claims)
        status = [with_note(str(one), note) for one, note in zip(made["model_status"].values, faults, strict=True)]
        made = made.assign_coords(model_status=("model", np.array(status, dtype=object)))
        if metric in _NAMES and f"{split}_{metric}" not in hparams_of(ds):
            made = _filled(made, f"{split}_{metric}", split, claims, faults)
    return _with_gap(made, metric)


@dataclass(frozen=True)
class _Claim:
    """What is known of the accuracy of all models on one split, by one name."""

    name: str
    values: NDArray[np.float64]
    """As fractions; NaN where there is none."""
    scale: float
    """What they are multiplied by where they stand: 100 for percent."""
    rounding: float


def _claims(ds: xr.Dataset, split: Split) -> list[_Claim]:
    hparams = hparams_of(ds)
    made = []
    for metric in _NAMES:
        name = f"{split}_{metric}"
        if name in hparams or name not in ds.coords or ds[name].dims != ("model",) or ds[name].dtype.kind not in "fi":
            continue
        values = ds[name].values.astype(np.float64)
        known = [float(value) for value in values if np.isfinite(value)]
        if known:
            scale = _scale(ds, metric)
            # Of integers alone, all 1 for one, fractions are taken to be rounded to percent.
            decimals = max(map(_decimals, known)) or (2 if scale == 1 else 0)
            made.append(_Claim(name, values / scale, scale, 0.5 * 10.0**-decimals / scale))
    return made


def _scale(ds: xr.Dataset, metric: str) -> float:
    """100 if the accuracies of a name are in percent, else 1: the same for both splits, whose difference is taken."""
    names = [f"{split}_{metric}" for split in SPLITS]
    found = [ds[name].values for name in names if name in ds.coords and ds[name].dtype.kind in "fi"]
    return 100.0 if any((values[np.isfinite(values)] > 1).any() for values in found) else 1.0


def _decimals(value: float) -> int:
    """Digits behind the point with which a number is written."""
    mantissa, _, exponent = repr(value).partition("e")
    return max(0, len(mantissa.partition(".")[2].rstrip("0")) - int(exponent or 0))


def _faults(ds: xr.Dataset, split: Split, claims: Sequence[_Claim]) -> list[str]:
    """For each model what is wrong with its measured accuracy, "" for nothing."""
    measured = ds[measured_accuracy(split)].values.astype(np.float64)
    labels = ds[measured_labels(split)].values.astype(np.float64)
    guess = 1 / max(2, int(ds.attrs.get("classes", 2)))
    faults = []
    for i, (found, count) in enumerate(zip(measured, labels, strict=True)):
        fault = ""
        if np.isfinite(found):
            known = [claim for claim in claims if np.isfinite(claim.values[i])]
            wrong = [claim for claim in known if _differs(found, claim.values[i], count, claim.rounding)]
            if wrong:
                scale = wrong[0].scale
                told = f"{found * scale:.4g} on {count:.0f} labels, claimed {wrong[0].values[i] * scale:.4g}"
                fault = f"{split} accuracy is {told}: {_CAUSES}"
            elif not known and found < guess and _differs(found, guess, count, 0):
                fault = f"{split} accuracy is {found:.4g} on {count:.0f} labels, below a blind guess: {_CAUSES}"
        faults.append(fault)
    return faults


def _differs(measured: float, claimed: float, count: float, rounding: float) -> bool:
    spread = max(p * (1 - p) for p in (measured, min(max(claimed, 0.0), 1.0)))
    return abs(measured - claimed) > rounding + _ERRORS * math.sqrt(spread / count) + 1e-9


def _filled(ds: xr.Dataset, name: str, split: Split, claims: Sequence[_Claim], faults: Sequence[str]) -> xr.Dataset:
    """The result with the measured accuracy under that name for the models of which it is not known by any name."""
    measured = ds[measured_accuracy(split)].values.astype(np.float64)
    lacking = np.isfinite(measured) & (np.array(faults, dtype=object) == "")
    for claim in claims:
        lacking &= np.isnan(claim.values)
    if not lacking.any():
        return ds
    values = ds[name].values.astype(np.float64) if name in ds.coords else np.full(len(measured), np.nan)
    values = np.where(lacking, measured * _scale(ds, name.partition("_")[2]), values)
    attrs = {**(ds[name].attrs if name in ds.coords else {}), "comment": "measured in this run where the task has none"}
    return ds.assign_coords({name: ("model", values, attrs)})


def _with_gap(ds: xr.Dataset, metric: str) -> xr.Dataset:
    """The result with the generalization gap of models whose train and test accuracy are known."""
    names = [f"{split}_{metric}" for split in SPLITS]
    if metric not in _NAMES or any(name not in ds.coords or ds[name].dtype.kind not in "fi" for name in names):
        return ds
    train, test = (ds[name].values.astype(np.float64) for name in names)
    gap, attrs = train - test, {"long_name": f"train − test {metric}"}
    if "generalization_gap" in ds.coords:
        known = ds["generalization_gap"]
        if known.attrs != attrs:  # it is that of another metric
            return ds
        gap = np.where(np.isnan(known.values), gap, known.values)
    return ds.assign_coords(generalization_gap=("model", gap, attrs))


__all__ = ["with_accuracies"]
