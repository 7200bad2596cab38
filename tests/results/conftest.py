"""Small results that tests of result files share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from torch import nn

from genmeasures.engine import ModelResult, Outcome
from genmeasures.interfaces import Layer, Measure, TaskModel, Variable
from genmeasures.results import SCHEMA_VERSION, combine, model_dataset, save


class Toy(Measure):
    """A value a layer, with a unit that looks like one of time."""

    name = "toy"
    variables = (Variable("toy", "a toy", -1, units="seconds"),)


@pytest.fixture(scope="session")
def one() -> Callable[..., xr.Dataset]:
    """``one(name, values, hparams, metrics, content)``: the dataset of a model; without values it failed."""

    def make(
        name: str,
        values: Sequence[float] | None = (1.0, 2.0),
        hparams: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        content: str | None = None,
        layers: Sequence[str] | None = None,
    ) -> xr.Dataset:
        model = TaskModel(name, nn.Module, hparams or {}, metrics or {})
        result: ModelResult | str = "no such file"
        if values is not None:
            names = layers or [f"conv{i}" for i in range(len(values))]
            found = tuple(Layer(i, n, "Conv2d", 8, (4, 4), 9, 64, 1.5, "Conv2d > relu") for i, n in enumerate(names))
            result = ModelResult(found, (), {"toy": [Outcome(value, "ok") for value in values]}, {})
        ds = model_dataset(model, result, [Toy()])
        if content is not None:
            ds = ds.assign_coords(model_content=("model", np.array([content], dtype=object)))
        return ds

    return make


@pytest.fixture(scope="session")
def whole() -> Callable[..., xr.Dataset]:
    """``whole(one(…), one(…), task="toys")``: a result of several models, with attributes."""

    def make(*datasets: xr.Dataset, settings: str = "seed: 0\n", task: str = "toys", **attrs: Any) -> xr.Dataset:
        return combine(datasets, {"schema_version": SCHEMA_VERSION, "settings": settings, "task": task, **attrs})

    return make


@pytest.fixture(scope="session")
def write(whole: Callable[..., xr.Dataset]) -> Callable[..., Path]:
    """``write(path, one(…), one(…), task="toys")``: the same, saved."""
    return lambda path, *datasets, **attrs: save(whole(*datasets, **attrs), path)
