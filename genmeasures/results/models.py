"""Identity of models across result files."""

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
"""Relative difference of values between processors or batch sizes: features are float32."""
_OF_A_RUN = RESERVED | MEASURED | {"model", "model_status", "skipped_layers"}


@dataclass(frozen=True, eq=False)
class ModelResults:
    """A model of a result file, with what identifies it."""

    path: Path
    ds: xr.Dataset
    """The dataset of the file."""
    index: int
    """Index of the model in the dataset."""
    name: str
    """Name in its task, whatever its name in a merged file."""
    task: str
    """Label of the task."""
    task_id: str
    """Identity of the task; "" where unknown."""
    content: str
    """Hash of the model; "" where unknown."""
    measured: bool
    """Whether the model was measured without failing."""

    def is_same(self, other: ModelResults) -> bool:
        """Whether both are results of the same model."""
        identified = bool(self.task_id and other.task_id)
        task = self.task_id == other.task_id if identified else self.task == other.task
        if not task or self.name != other.name:
            return False
        if self.content and other.content:
            return self.content == other.content
        # Without hashes, only values can be compared. A model that failed often has neither a hash nor values.
        if not (self.measured and other.measured):
            return identified or self._has_same_metadata(other)
        return self.has_values_of(other)

    def has_values_of(self, other: ModelResults) -> bool:
        """Whether both have equal metadata and values, up to rounding."""
        return self._has_same_metadata(other) and self._has_equal_layers(other)

    def _has_same_metadata(self, other: ModelResults) -> bool:
        """Whether hyperparameters and metrics are equal."""
        mine, theirs = self._metadata, other._metadata
        return mine.keys() == theirs.keys() and all(_is_equal(mine[name], theirs[name]) for name in mine)

    @cached_property
    def _metadata(self) -> dict[str, str | float]:
        """Hyperparameters and metrics that the model has."""
        values = {
            str(name): coord.values[self.index]
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
        """Values of the measures, and weight norms, of the layers of the model."""
        model = self.ds.isel(model=self.index)
        names = model["layer_name"].values.astype(str) if "layer_name" in model else np.array([], dtype=str)
        layers: dict[str, Any] = {"layer_name": names[names != ""]}
        for name in [*measure_variables(self.ds), "weight_norm"]:
            if name in model:
                layers[name] = model[name].values[names != ""] if model[name].dims else model[name].values
        return layers


def _equal(mine: Any, theirs: Any) -> bool:
    if mine.dtype.kind == "U":
        return bool((mine == theirs).all())
    return bool(np.isclose(mine, theirs, rtol=_ROUNDING, atol=0.0, equal_nan=True).all())


def _is_equal(mine: str | float, theirs: str | float) -> bool:
    """Whether two hyperparameters are equal; numbers are texts in files in which another model has a text."""
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
    """The models of a result file, merged or not.

    Args:
        path: Path of the file.
        ds: Its dataset.

    Returns:
        One entry per model, in the order of the dataset.

    Example:
        >>> [model] = models_of(Path("a.nc"), xr.Dataset(coords={"model": ["net"]}, attrs={"task": "digits"}))
        >>> model.task, model.name
        ('digits', 'net')
    """
    count = ds.sizes["model"]

    def texts(name: str, default: Sequence[str]) -> list[str]:
        return [str(value) for value in ds[name].values] if name in ds.coords else list(default)

    names = texts(MODEL_NAME, texts("model", []))
    tasks = texts(MODEL_TASK, [str(ds.attrs.get("task", ""))] * count)
    ids = texts(MODEL_TASK_ID, [str(ds.attrs.get("task_id", ""))] * count)
    contents = texts(MODEL_CONTENT, [""] * count)
    measured = [not status.startswith("failed") for status in texts("model_status", ["ok"] * count)]
    return [
        ModelResults(path, ds, index, *identity)
        for index, identity in enumerate(zip(names, tasks, ids, contents, measured, strict=True))
    ]


def distinct_names(models: Sequence[ModelResults]) -> list[str]:
    """Distinct names of distinct models.

    Models of several tasks have the label of their task as prefix. Models with equal names have a short hash of
    their content as suffix, else a hash of the identity of their task, else a number.

    Args:
        models: Models, no two of which are the same.

    Returns:
        One name per model.

    Example:
        >>> models = [ModelResults(Path(), xr.Dataset(), 0, "net", task, "", "", True) for task in ("a", "b")]
        >>> distinct_names(models)
        ['a/net', 'b/net']
    """
    several = len({model.task for model in models}) > 1
    names = [f"{model.task}/{model.name}" if several else model.name for model in models]
    for name, count in Counter(names).items():
        indices = [index for index, other in enumerate(names) if other == name] if count > 1 else []
        namesakes = [models[index] for index in indices]
        suffixes = [str(number) for number in range(1, len(namesakes) + 1)]
        for identities in ([model.content for model in namesakes], [model.task_id for model in namesakes]):
            if all(identities) and len(set(identities)) == len(identities):
                suffixes = [_short(identity) for identity in identities]
                break
        for index, suffix in zip(indices, suffixes, strict=True):
            names[index] = f"{name} [{suffix}]"
    distinct: list[str] = []
    for name in names:
        while name in distinct:  # a model may have the name of another one with its suffix
            name += "'"
        distinct.append(name)
    return distinct
