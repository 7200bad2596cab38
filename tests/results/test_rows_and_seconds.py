"""Rows of several lengths in one result, and the time that merged results took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import genmeasures
from genmeasures.interfaces import Layer, ModelData, ModelMeasure, Variable
from genmeasures.results import collect, load, save

NAN = np.nan


class Rows(ModelMeasure):
    """Per layer a row of the lengths that it is told, and per model two rows along one dimension."""

    name = "rows"
    variables = (
        Variable("row", "a row a layer", 0, dims=("layer", "kernel")),
        Variable("short", "a short row", 0, dims=("sample",)),
        Variable("long", "a long row", 0, dims=("sample",)),
    )

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.lengths = lengths

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        rows = [np.arange(1.0, length + 1) for length in self.lengths]
        return {"row": rows, "short": np.array([1.0]), "long": np.array([1.0, 2.0, 3.0])}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2))


@pytest.mark.parametrize("lengths", [(2, 4, 3), (4, 2, 3), (1, 1, 4)])
def test_rows_are_as_long_as_the_longest(lengths: tuple[int, ...], tmp_path: Path) -> None:
    ds = genmeasures.measure({"net": network()}, test=torch.randn(6, 4), measures=[Rows(lengths)])
    expected = [[*range(1, length + 1)] + [NAN] * (4 - length) for length in lengths]
    np.testing.assert_array_equal(ds["row"].values[0], expected)
    np.testing.assert_array_equal(ds["short"].values[0], [1, NAN, NAN])
    np.testing.assert_array_equal(ds["long"].values[0], [1, 2, 3])
    np.testing.assert_array_equal(load(save(ds, tmp_path / "a.nc"))["row"].values, ds["row"].values)


def test_merged_results_took_the_time_of_all(tmp_path: Path) -> None:
    for place, seconds in enumerate((1.5, 2.0, 4.0)):
        ds = genmeasures.measure({f"net_{place}": network()}, test=torch.randn(6, 4), measures=[Rows((1, 1, 1))])
        assert ds.attrs["seconds"] > 0
        save(ds.assign_attrs(seconds=seconds), tmp_path / f"{place}.nc")
    (merged,) = collect(tmp_path, tmp_path / "out").files.values()
    assert merged.attrs["seconds"] == 7.5
    assert merged.sizes["model"] == 3
