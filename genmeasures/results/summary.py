"""Readable lines about a result: what failed, what has no value, what was not measured."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from genmeasures.errors import shown
from genmeasures.results.schema import STATUS, is_measured, measure_variables

_EXAMPLES = 3
"""How many names a line lists before it stops."""
_REASONS = 5
"""How many reasons are told apart for one measure."""


def mostly_failed(ds: xr.Dataset) -> str:
    """What to say of a result more than half of whose models failed; empty for others."""
    failed = int((~is_measured(ds["model_status"].values)).sum())
    models = ds.sizes["model"]
    return f"{failed} of {models} models failed" if 2 * failed > models else ""


def skipped(ds: xr.Dataset) -> list[str]:
    """Readable lines about layers that were not measured, one a reason, the most frequent first."""
    names = ds["model"].values.astype(str)
    found: dict[str, dict[str, list[str]]] = {}
    for model, text in zip(names, ds["skipped_layers"].values.astype(str), strict=True):
        for layer, reason in json.loads(text or "{}").items():
            found.setdefault(" ".join(str(reason).split()), {}).setdefault(layer, []).append(model)
    lines = []
    for reason, layers in sorted(found.items(), key=lambda item: -sum(map(len, item[1].values()))):
        models = list(dict.fromkeys(model for of in layers.values() for model in of))
        whose = "all models" if len(models) == len(names) else f"{len(models)} of {len(names)} models"
        count = f"{len(layers)} layer{'s' * (len(layers) > 1)}"
        lines.append(f"not measured: {count} ({listed(list(layers))}) of {whose}: {reason}")
    rest = lines[_REASONS:]
    lines = lines[:_REASONS] + ([f"not measured: layers for {len(rest)} other reasons"] if rest else [])
    return [shown(line) for line in lines]


def failures(ds: xr.Dataset) -> list[str]:
    """Readable lines about models that failed, and about measures without a value; empty where all went well.

    Alike reasons, which differ in numbers alone, are grouped and counted: a few lines a measure at most.
    Reads a result with dims (model, layer), or an aggregated one.
    """
    lines = models_that_failed(ds)
    for name in measure_variables(ds):
        lines += _undefined(ds.isel(model=is_measured(ds["model_status"].values)), name)
    return [shown(line) for line in lines]


def models_that_failed(ds: xr.Dataset) -> list[str]:
    """One line a reason, with the models that it stopped."""
    models = ds["model"].values.astype(str)
    status = ds["model_status"].values.astype(str)
    failed = ~is_measured(status)
    lines = []
    for alike in _alike(status[failed], models[failed]):
        names = models[failed][alike]
        lines.append(f"{len(names)} of {len(models)} models failed ({listed(names)}){_reason(status[failed][alike])}")
    return lines


def model_notes(ds: xr.Dataset) -> list[str]:
    """One line a remark on models that were measured, such as an accuracy that is not the claimed one."""
    models = ds["model"].values.astype(str)
    status = ds["model_status"].values.astype(str)
    found = [
        (model, note)
        for model, text in zip(models, status, strict=True)
        if text.startswith("note: ")
        for note in text.removeprefix("note: ").split("; ")
    ]
    names, notes = (np.array([pair[place] for pair in found], dtype=str) for place in (0, 1))
    return [
        shown(f"{len(alike)} of {len(models)} models ({listed(names[alike])}){_reason(notes[alike])}")
        for alike in _alike(notes, names)
    ]


def _undefined(ds: xr.Dataset, name: str) -> list[str]:
    """Lines about the values of one measure that are undefined or failed, the most frequent reason first."""
    layered = "layer" in ds[name].dims
    statuses = ds[f"{name}{STATUS}"].transpose("model", ...).values.astype(str)
    places = np.argwhere(np.char.startswith(statuses, "undefined") | np.char.startswith(statuses, "failed"))
    without = statuses[tuple(places.T)]
    groups = sorted(_alike(without), key=len, reverse=True)
    models = ds["model"].values.astype(str)
    total = np.count_nonzero(statuses)
    lines = []
    for alike in groups[:_REASONS]:
        who = list(dict.fromkeys(models[places[alike, 0]]))
        line = f"{name}: no value for {len(alike)} of {total} {'layers' if layered else 'models'}"
        if layered:
            names = ds["layer_name"].transpose("model", "layer").values.astype(str)
            # In network order, whatever model shows a layer first.
            in_order = sorted(map(tuple, places[alike]), key=lambda found: found[1])
            where = list(dict.fromkeys(names[found] for found in in_order))
            line += f" (layers {listed(where)}; {len(who)} {'model' if len(who) == 1 else 'models'}: {listed(who)})"
        else:
            line += f" ({listed(who)})"
        lines.append(line + _reason(without[alike]))
    rest = groups[_REASONS:]
    if rest:
        lines.append(f"{name}: no value for {sum(map(len, rest))} more, for {len(rest)} other reasons")
    return lines


def _alike(statuses: NDArray[np.str_], names: NDArray[np.str_] | None = None) -> list[list[int]]:
    """Indices of statuses that differ in numbers and the models' names alone, in the order of their appearance."""
    groups: dict[str, list[int]] = {}
    for i, status in enumerate(statuses):
        groups.setdefault(kind_of(str(status), "" if names is None else str(names[i])), []).append(i)
    return list(groups.values())


def kind_of(message: str, name: str) -> str:
    """A message on a model without numbers and the model's name: those of one kind tell of the same mistake.

    Example:
        >>> kind_of("nets/net_a.pt: 3 keys are missing", "net_a") == kind_of("nets/b.pt: 5 keys are missing", "b")
        True
    """
    bare = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "\0", message) if name else message
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", bare)


def _reason(alike: NDArray[np.str_]) -> str:
    """The first of some alike statuses on one line, without the word that the sentence before it says already."""
    text = " ".join(re.sub(r"^(undefined|failed):\s*", "", alike[0]).split())
    return f": {text}" if len(set(alike)) == 1 else f", for example: {text}"


def listed(names: Sequence[str] | NDArray[np.str_]) -> str:
    """The first few names of a list."""
    return ", ".join(names[:_EXAMPLES]) + (", …" if len(names) > _EXAMPLES else "")
