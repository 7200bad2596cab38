"""Which model of one result file is the same as one of another."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from genmeasures.results.schema import (
    MEASURED,
    MODEL_CONTENT,
    MODEL_NAME,
    MODEL_TASK,
    MODEL_TASK_ID,
    RESERVED,
    measure_variables,
)

_ROUNDING = 1e-5
"""Relative difference of values that another processor or batch size may make: features are float32."""
_OF_A_RUN = RESERVED | MEASURED | {"model", "model_status", "skipped_layers"}


@dataclass(frozen=True, eq=False)
class ModelResults:
    """A model of a result file, and what says who it is."""

    path: Path
    ds: xr.Dataset
    """The whole file."""
    place: int
    """Index of the model in it."""
    name: str
    """In its task, whatever merged files call it."""
    task: str
    """Label of the task."""
    task_id: str
    """Identity of the task; "" where it is not known."""
    content: str
    """Hash of what the model is; "" where it is not known."""
    measured: bool
    """Whether the model did not fail."""

    def is_same(self, other: ModelResults) -> bool:
        """Whether both are results of one model, measured once or twice."""
        identified = bool(self.task_id and other.task_id)
        task = self.task_id == other.task_id if identified else self.task == other.task
        if not task or self.name != other.name:
            return False
        if self.content and other.content:
            return self.content == other.content
        # What is not known can only be compared. A model that failed often has no content, and no values.
        if not (self.measured and other.measured):
            return identified or self._is_known_as(other)
        return self.has_values_of(other)

    def has_values_of(self, other: ModelResults) -> bool:
        """Whether both have equal values, but for rounding, and are known to be alike."""
        return self._is_known_as(other) and self._has_equal_layers(other)

    def _is_known_as(self, other: ModelResults) -> bool:
        """Whether hyperparameters and metrics are equal."""
        mine, theirs = self._known, other._known
        return mine.keys() == theirs.keys() and all(_is_equal(mine[name], theirs[name]) for name in mine)

    @cached_property
    def _known(self) -> dict[str, str | float]:
        """Hyperparameters and metrics that the model has."""
        values = {
            str(name): coord.values[self.place]
            for name, coord in self.ds.coords.items()
            if coord.dims == ("model",) and name not in _OF_A_RUN
        }
        known = {name: value if isinstance(value, str) else float(value) for name, value in values.items()}
        return {name: value for name, value in known.items() if value != "" and value == value}

    def _has_equal_layers(self, other: ModelResults) -> bool:
        mine, theirs = self._layers, other._layers
        return mine.keys() == theirs.keys() and all(
            mine[name].shape == theirs[name].shape and _equal(mine[name], theirs[name]) for name in mine
        )

    @cached_property
    def _layers(self) -> dict[str, Any]:
        """Values of the measures and weight norms, of the layers that the model has."""
        one = self.ds.isel(model=self.place)
        names = one["layer_name"].values.astype(str) if "layer_name" in one else np.array([], dtype=str)
        found: dict[str, Any] = {"layer_name": names[names != ""]}
        for name in [*measure_variables(self.ds), "weight_norm"]:
            if name in one:
                found[name] = one[name].values[names != ""] if one[name].dims else one[name].values
        return found


def _equal(mine: Any, theirs: Any) -> bool:
    if mine.dtype.kind == "U":
        return bool((mine == theirs).all())
    return bool(np.isclose(mine, theirs, rtol=_ROUNDING, atol=0.0, equal_nan=True).all())


def _is_equal(mine: str | float, theirs: str | float) -> bool:
    """Whether two hyperparameters are equal; a number is a text where another model of its file has a text."""
    if isinstance(mine, str) == isinstance(theirs, str):
        return mine == theirs
    return _number(mine) == _number(theirs)


def _number(value: str | float) -> float | None:
    try:
        return float({"True": 1, "False": 0}.get(str(value), value))
    except ValueError:
        return None


def _short(identity: str) -> str:
    return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def models_of(path: Path, ds: xr.Dataset) -> list[ModelResults]:
    """The models of a result file, merged or not."""
    count = ds.sizes["model"]

    def texts(name: str, otherwise: Sequence[str]) -> list[str]:
        return [str(value) for value in ds[name].values] if name in ds.coords else list(otherwise)

    names = texts(MODEL_NAME, texts("model", []))
    tasks = texts(MODEL_TASK, [str(ds.attrs.get("task", ""))] * count)
    ids = texts(MODEL_TASK_ID, [str(ds.attrs.get("task_id", ""))] * count)
    contents = texts(MODEL_CONTENT, [""] * count)
    measured = [not status.startswith("failed") for status in texts("model_status", ["ok"] * count)]
    return [
        ModelResults(path, ds, place, *of)
        for place, of in enumerate(zip(names, tasks, ids, contents, measured, strict=True))
    ]


def distinct_names(models: Sequence[ModelResults]) -> list[str]:
    """A name for each of some models that are all different, none of them twice.

    Models of several tasks have the label of the task before their name. Where that does not tell
    them apart, a short hash of their content follows, else of their task's identity, else a number.
    """
    several = len({model.task for model in models}) > 1
    names = [f"{model.task}/{model.name}" if several else model.name for model in models]
    for name, count in Counter(names).items():
        places = [place for place, other in enumerate(names) if other == name] if count > 1 else []
        alike = [models[place] for place in places]
        marks = [str(number) for number in range(1, len(alike) + 1)]
        for known in ([model.content for model in alike], [model.task_id for model in alike]):
            if all(known) and len(set(known)) == len(known):
                marks = [_short(identity) for identity in known]
                break
        for place, mark in zip(places, marks, strict=True):
            names[place] = f"{name} [{mark}]"
    made: list[str] = []
    for name in names:
        while name in made:  # a model may be called like another with its mark
            name += "'"
        made.append(name)
    return made
