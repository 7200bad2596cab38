"""Hyperparameters and metrics of the models of a task, from ``model_configs.json``."""

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
"""Names of metrics in the files of the competition, and in genmeasures."""

_REQUIRED = ("train_acc", "test_acc")
_LARGEST_FILE = 2**26
_LARGEST = 1e308
"""Metrics are clipped here: an integer in JSON may have any number of digits."""


@dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters and metrics of one model, or the problem with its entry.

    Attributes:
        hparams: hyperparameters by name.
        metrics: metrics by the names of genmeasures, ``train_accuracy`` and so on.
        problem: what is wrong with the entry; empty if it is valid.
    """

    hparams: dict[str, float | int | str | bool] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    problem: str = ""


def read_model_configs(path: Path) -> dict[str, ModelConfig]:
    """Read the hyperparameters and metrics of all models of a task.

    An invalid entry does not affect the others: its ``problem`` is set.

    Args:
        path: the file ``model_configs.json``.

    Returns:
        One entry per model, by the model's number as text.

    Raises:
        DataError: the file cannot be read, is not valid JSON, or has a duplicate key; the message names it.

    Example:
        >>> import tempfile
        >>> entry = '{"hparams": {"width": {"current_value": 4}}, "metrics": {"train_acc": 1, "test_acc": 0.9}}'
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model_configs.json"
        ...     _ = path.write_text('{"0": ' + entry + ', "1": {}}')
        ...     configs = read_model_configs(path)
        >>> configs["0"].hparams, configs["0"].metrics
        ({'width': 4}, {'train_accuracy': 1.0, 'test_accuracy': 0.9})
        >>> configs["1"].problem
        'hparams is missing'
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for name, value in pairs:
            if name in entries:
                raise DataError(f"{path}: duplicate key {name!r}")
            entries[name] = value
        return entries

    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise DataError(f"{path} must have at most {_LARGEST_FILE} bytes, got {path.stat().st_size}")
        content = json.loads(path.read_bytes(), object_pairs_hook=unique)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} must hold a JSON object with one entry per model, by the model's number")
    entries = unique([(name.removeprefix("model_"), entry) for name, entry in content.items()])
    return {name: _config(entry) for name, entry in entries.items()}


def _config(entry: Any) -> ModelConfig:
    hparams = entry.get("hparams") if isinstance(entry, Mapping) else None
    metrics = entry.get("metrics") if isinstance(entry, Mapping) else None
    values: dict[str, float | int | str | bool] = {}
    for name, setting in hparams.items() if isinstance(hparams, Mapping) else ():
        value = setting.get("current_value") if isinstance(setting, Mapping) else None
        if not isinstance(value, float | int | str) or value != value:
            return ModelConfig(problem=f"the hyperparameter {name!r} has no current_value")
        values[name] = value
    if not values:
        return ModelConfig(problem="hparams is missing")
    if not isinstance(metrics, Mapping):
        return ModelConfig(values, problem="metrics is missing")
    numbers = {}
    for name, renamed in METRICS.items():
        value = metrics.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
        if name in _REQUIRED and not is_number:
            return ModelConfig(
                values, problem=f"{name} must be a number, got {'nothing' if value is None else repr(value)}"
            )
        if is_number:
            numbers[renamed] = float(min(max(metrics[name], -_LARGEST), _LARGEST))
    return ModelConfig(values, numbers)


__all__ = ["METRICS", "ModelConfig", "read_model_configs"]
