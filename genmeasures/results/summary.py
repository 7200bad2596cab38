"""Readable summary of a result: failed models, missing values, skipped layers."""

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
"""Number of names that a line lists."""
_REASONS = 5
"""Number of reasons that are listed for one measure."""


def mostly_failed(ds: xr.Dataset) -> str:
    """Message for a result of which more than half of the models failed.

    Args:
        ds: A result.

    Returns:
        The message; "" if at most half of the models failed.

    Example:
        >>> mostly_failed(xr.Dataset(coords={"model": ["a"], "model_status": ("model", ["failed: no file"])}))
        '1 of 1 models failed'
    """
    failed = int((~is_measured(ds["model_status"].values)).sum())
    models = ds.sizes["model"]
    return f"{failed} of {models} models failed" if 2 * failed > models else ""


def skipped(ds: xr.Dataset) -> list[str]:
    """Readable lines about layers that were not measured, one per reason, the most frequent first.

    Args:
        ds: A result with the coordinate ``skipped_layers``.

    Returns:
        The lines.

    Example:
        >>> layers = '{"embed": "its inputs are integers"}'
        >>> skipped(xr.Dataset(coords={"model": ["a"], "skipped_layers": ("model", [layers])}))
        ['not measured: 1 layer (embed) of all models: its inputs are integers']
    """
    names = ds["model"].values.astype(str)
    by_reason: dict[str, dict[str, list[str]]] = {}
    for model, text in zip(names, ds["skipped_layers"].values.astype(str), strict=True):
        for layer, reason in json.loads(text or "{}").items():
            by_reason.setdefault(" ".join(str(reason).split()), {}).setdefault(layer, []).append(model)
    lines = []
    for reason, layers in sorted(by_reason.items(), key=lambda item: -sum(map(len, item[1].values()))):
        models = list(dict.fromkeys(model for of in layers.values() for model in of))
        whose = "all models" if len(models) == len(names) else f"{len(models)} of {len(names)} models"
        count = f"{len(layers)} layer{'s' * (len(layers) > 1)}"
        lines.append(f"not measured: {count} ({listed(list(layers))}) of {whose}: {reason}")
    rest = lines[_REASONS:]
    lines = lines[:_REASONS] + ([f"not measured: layers for {len(rest)} other reasons"] if rest else [])
    return [shown(line) for line in lines]


def failures(ds: xr.Dataset) -> list[str]:
    """Readable lines about models that failed and about missing values.

    Reasons that differ only in numbers are grouped and counted.

    Args:
        ds: A result with the dimensions (model, layer), or an aggregated one.

    Returns:
        A few lines per measure, none if nothing failed.

    Example:
        >>> status = {"model_status": ("model", ["ok"]), "model": ["a"]}
        >>> failures(xr.Dataset({"m": ("model", [np.nan]), "m_status": ("model", ["undefined: no labels"])}, status))
        ['m: no value for 1 of 1 models (a): no labels']
    """
    lines = models_that_failed(ds)
    for name in measure_variables(ds):
        lines += _undefined(ds.isel(model=is_measured(ds["model_status"].values)), name)
    return [shown(line) for line in lines]


def models_that_failed(ds: xr.Dataset) -> list[str]:
    """Lines about the models that failed, one per reason.

    Args:
        ds: A result.

    Returns:
        The lines.

    Example:
        >>> models_that_failed(xr.Dataset(coords={"model": ["a"], "model_status": ("model", ["failed: no file"])}))
        ['1 of 1 models failed (a): no file']
    """
    models = ds["model"].values.astype(str)
    status = ds["model_status"].values.astype(str)
    failed = ~is_measured(status)
    lines = []
    for alike in _alike(status[failed], models[failed]):
        names = models[failed][alike]
        lines.append(f"{len(names)} of {len(models)} models failed ({listed(names)}){_reason(status[failed][alike])}")
    return lines


def model_notes(ds: xr.Dataset) -> list[str]:
    """Lines about the notes on measured models, such as an accuracy that differs from the claimed one.

    Args:
        ds: A result.

    Returns:
        One line per note.

    Example:
        >>> model_notes(xr.Dataset(coords={"model": ["a"], "model_status": ("model", ["note: 2 keys unused"])}))
        ['1 of 1 models (a): 2 keys unused']
    """
    models = ds["model"].values.astype(str)
    status = ds["model_status"].values.astype(str)
    noted = [
        (model, note)
        for model, text in zip(models, status, strict=True)
        if text.startswith("note: ")
        for note in text.removeprefix("note: ").split("; ")
    ]
    names, notes = (np.array([pair[part] for pair in noted], dtype=str) for part in (0, 1))
    return [
        shown(f"{len(alike)} of {len(models)} models ({listed(names[alike])}){_reason(notes[alike])}")
        for alike in _alike(notes, names)
    ]


def _undefined(ds: xr.Dataset, name: str) -> list[str]:
    """Lines about the values of one measure that are undefined or failed, the most frequent reason first."""
    layered = "layer" in ds[name].dims
    statuses = ds[f"{name}{STATUS}"].transpose("model", ...).values.astype(str)
    indices = np.argwhere(np.char.startswith(statuses, "undefined") | np.char.startswith(statuses, "failed"))
    without = statuses[tuple(indices.T)]
    groups = sorted(_alike(without), key=len, reverse=True)
    models = ds["model"].values.astype(str)
    total = np.count_nonzero(statuses)
    lines = []
    for alike in groups[:_REASONS]:
        who = list(dict.fromkeys(models[indices[alike, 0]]))
        line = f"{name}: no value for {len(alike)} of {total} {'layers' if layered else 'models'}"
        if layered:
            names = ds["layer_name"].transpose("model", "layer").values.astype(str)
            # Sorted by layer, whichever model has the layer first.
            by_layer = sorted(map(tuple, indices[alike]), key=lambda index: index[1])
            where = list(dict.fromkeys(names[index] for index in by_layer))
            line += f" (layers {listed(where)}; {len(who)} {'model' if len(who) == 1 else 'models'}: {listed(who)})"
        else:
            line += f" ({listed(who)})"
        lines.append(line + _reason(without[alike]))
    rest = groups[_REASONS:]
    if rest:
        lines.append(f"{name}: no value for {sum(map(len, rest))} more, for {len(rest)} other reasons")
    return lines


def _alike(statuses: NDArray[np.str_], names: NDArray[np.str_] | None = None) -> list[list[int]]:
    """Groups of indices of statuses that differ only in numbers and names of models, in order of appearance."""
    groups: dict[str, list[int]] = {}
    for i, status in enumerate(statuses):
        groups.setdefault(kind_of(str(status), "" if names is None else str(names[i])), []).append(i)
    return list(groups.values())


def kind_of(message: str, name: str) -> str:
    """Kind of a message on a model: the message without its numbers and the name of the model.

    Args:
        message: The message.
        name: Name of the model.

    Returns:
        A text that is equal for messages of the same kind.

    Example:
        >>> kind_of("nets/net_a.pt: 3 keys are missing", "net_a") == kind_of("nets/b.pt: 5 keys are missing", "b")
        True
    """
    bare = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "\0", message) if name else message
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", bare)


def _reason(alike: NDArray[np.str_]) -> str:
    """The first of a group of statuses on one line, without its first word, which the sentence already has."""
    text = " ".join(re.sub(r"^(undefined|failed):\s*", "", alike[0]).split())
    return f": {text}" if len(set(alike)) == 1 else f", for example: {text}"


def listed(names: Sequence[str] | NDArray[np.str_]) -> str:
    """The first few names of a list.

    Args:
        names: The names.

    Returns:
        A text with at most three names.

    Example:
        >>> listed(["a", "b", "c", "d"])
        'a, b, c, …'
    """
    return ", ".join(names[:_EXAMPLES]) + (", …" if len(names) > _EXAMPLES else "")
