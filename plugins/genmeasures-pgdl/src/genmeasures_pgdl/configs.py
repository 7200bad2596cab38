"""model_configs.json: what is known of each model of a task."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genmeasures.plugin import DataError

METRICS = {
    "train_acc": "train_accuracy",
    "test_acc": "test_accuracy",
    "train_loss": "train_loss",
    "test_loss": "test_loss",
}
"""Names of the competition, and ours."""

_NEEDED = ("train_acc", "test_acc")
_LARGEST_FILE = 2**26
_LARGEST = 1e308
"""An integer of JSON may have any number of digits."""


@dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters and metrics of one model, or what is wrong with them."""

    hparams: dict[str, float | int | str | bool] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    problem: str = ""


def read_model_configs(path: Path) -> dict[str, ModelConfig]:
    """By the models' ids. An entry that is not sound says so; it concerns no other.

    Raises DataError naming the file where it cannot be read, or an id is there twice.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in pairs:
            if name in made:
                raise DataError(f"{path}: {name!r} is there twice")
            made[name] = value
        return made

    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise DataError(f"{path} is larger than {_LARGEST_FILE} bytes: no list of models")
        content = json.loads(path.read_bytes(), object_pairs_hook=distinct)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: models by their ids are expected")
    ids = distinct([(name.removeprefix("model_"), entry) for name, entry in content.items()])
    return {name: _config(entry) for name, entry in ids.items()}


def _config(entry: Any) -> ModelConfig:
    hparams = entry.get("hparams") if isinstance(entry, Mapping) else None
    metrics = entry.get("metrics") if isinstance(entry, Mapping) else None
    known: dict[str, float | int | str | bool] = {}
    for name, one in hparams.items() if isinstance(hparams, Mapping) else ():
        value = one.get("current_value") if isinstance(one, Mapping) else None
        if not isinstance(value, float | int | str) or value != value:
            return ModelConfig(problem=f"hyperparameter {name!r} has no current_value")
        known[name] = value
    if not known:
        return ModelConfig(problem="its hparams are missing")
    if not isinstance(metrics, Mapping):
        return ModelConfig(known, problem="its metrics are missing")
    numbers = {}
    for name, ours in METRICS.items():
        value = metrics.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
        if name in _NEEDED and not number:
            return ModelConfig(known, problem=f"its {name} is {'missing' if value is None else repr(value)}")
        if number:
            numbers[ours] = float(min(max(metrics[name], -_LARGEST), _LARGEST))
    return ModelConfig(known, numbers)
