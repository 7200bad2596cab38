"""Variables with dimensions of their own, of several sizes in one result, and the time that merged results took."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import genmeasures
from genmeasures.engine import measure_model
from genmeasures.errors import OptionError, Undefined
from genmeasures.interfaces import Layer, ModelData, ModelMeasure, Variable
from genmeasures.results import collect, load, measure_variables, save

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


class Images(ModelMeasure):
    """Per layer an array of the shape of its weight, with a constant axis; per model curves and a grid."""

    name = "images"
    variables = (
        Variable("image", "weight of each layer", dims=("layer", "kernel", "channel", "height", "width")),
        Variable("curve", "numbers along curves", dims=("trajectory", "point")),
        Variable("grid", "numbers in a plane", dims=("row", "column"), auxiliary=True),
        Variable("length", "number of curves", dims=()),
    )

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        images: list[Any] = [data.weight(layer).double().numpy()[:, :, None, None] for layer in layers]
        images[-1] = Undefined("the last layer has none")
        curve = np.arange(1.0, len(layers) * 5 + 1).reshape(len(layers), 5)
        return {"image": images, "curve": curve, "grid": curve.T, "length": len(layers)}


def network(widths: Sequence[int] = (4, 3, 3, 2)) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(before, after) for before, after in itertools.pairwise(widths)))


def filled(array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The array, padded with NaN at the end of each axis."""
    return np.pad(array, [(0, n - m) for m, n in zip(array.shape, shape, strict=True)], constant_values=NAN)


@pytest.mark.parametrize("lengths", [(2, 4, 3), (4, 2, 3), (1, 1, 4)])
def test_rows_are_as_long_as_the_longest(lengths: tuple[int, ...], tmp_path: Path) -> None:
    ds = genmeasures.measure({"net": network()}, test=torch.randn(6, 4), measures=[Rows(lengths)])
    expected = [[*range(1, length + 1)] + [NAN] * (4 - length) for length in lengths]
    np.testing.assert_array_equal(ds["row"].values[0], expected)
    np.testing.assert_array_equal(ds["short"].values[0], [1, NAN, NAN])
    np.testing.assert_array_equal(ds["long"].values[0], [1, 2, 3])
    np.testing.assert_array_equal(load(save(ds, tmp_path / "a.nc"))["row"].values, ds["row"].values)


NETS = {"small": (4, 3, 2), "deep": (4, 2, 5, 1, 3), "wide": (4, 7, 2)}


def measured(names: Sequence[str], **options: Any) -> xr.Dataset:
    nets = {name: network(NETS[name]) for name in names}
    return genmeasures.measure(nets, test=torch.ones(6, 4), measures=[Images()], **options)


def assert_complete(ds: xr.Dataset) -> None:
    """All values of all three networks are at their places, and all else is NaN."""
    assert ds["image"].dims == ("model", "layer", "kernel", "channel", "height", "width")
    assert ds["image"].shape == (3, 4, 7, 5, 1, 1)
    assert ds["curve"].dims == ("model", "trajectory", "point")
    assert ds["grid"].dims == ("model", "row", "column")
    for name, widths in NETS.items():
        one, depth = ds.sel(model=name), len(widths) - 1
        weights = [layer.weight.detach().double().numpy() for layer in network(widths)]  # type: ignore[union-attr]
        for index in range(4):
            missing = index >= depth - 1
            image = np.full((7, 5), NAN) if missing else filled(weights[index], (7, 5))
            np.testing.assert_array_equal(one["image"].values[index, :, :, 0, 0], image)
        curve = np.arange(1.0, depth * 5 + 1).reshape(depth, 5)
        np.testing.assert_array_equal(one["curve"].values, filled(curve, (4, 5)))
        np.testing.assert_array_equal(one["grid"].values, filled(curve.T, (5, 4)))
        status = one["image_status"].values
        assert status[: depth - 1].tolist() == ["ok"] * (depth - 1)
        assert status[depth - 1] == "undefined: the last layer has none"
        assert one["curve_status"].item() == "ok"
    assert ds["curve_status"].dims == ("model",)
    assert ds["image_status"].dims == ("model", "layer")


def test_arrays_of_several_sizes_and_dimensions(tmp_path: Path) -> None:
    ds = measured(list(NETS))
    assert_complete(ds)
    loaded = load(save(ds, tmp_path / "a.nc"))
    assert_complete(loaded)
    xr.testing.assert_equal(loaded[["image", "curve", "grid"]], ds[["image", "curve", "grid"]])


@pytest.mark.parametrize("order", [("small", "deep", "wide"), ("deep", "wide", "small")])
def test_arrays_of_several_files_are_merged(order: tuple[str, ...], tmp_path: Path) -> None:
    for name in order:
        save(measured([name]), tmp_path / f"{name}.nc")
    (merged,) = collect(tmp_path, tmp_path / "out").files.values()
    assert_complete(merged.sel(model=list(order)))


def test_arrays_are_kept_when_a_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def measure_and_note(model: Any, *args: Any) -> Any:
        runs.append(len(model))
        return measure_model(model, *args)

    monkeypatch.setattr("genmeasures.run.measure_model", measure_and_note)
    measured(["small"], keep=tmp_path)
    runs.clear()
    assert_complete(measured(list(NETS), keep=tmp_path))
    assert runs == [4, 2]
    runs.clear()
    assert_complete(measured(list(NETS), keep=tmp_path))
    assert runs == []


def test_arrays_are_neither_aggregated_nor_judged() -> None:
    ds = measured(list(NETS))
    assert measure_variables(ds) == ["length"]
    aggregated = genmeasures.aggregate(ds)
    assert not {"image", "curve", "grid"} & set(map(str, aggregated.data_vars))
    assert aggregated["length"].values.tolist() == [2, 4, 2]


def test_arrays_of_a_model_that_failed() -> None:
    def broken() -> nn.Module:
        raise RuntimeError("no weights")

    models = {"broken": broken, "small": network(NETS["small"])}
    ds = genmeasures.measure(models, test=torch.ones(6, 4), measures=[Images()])
    assert np.isnan(ds["curve"].values[0]).all()
    assert ds["curve_status"].values[0].startswith("failed: ")
    assert ds["curve"].values[1].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]


def test_a_dimension_with_the_name_of_a_coordinate_is_refused() -> None:
    class Taken(Images):
        variables = (Variable("image", "weight", dims=("layer", "channels")),)

    with pytest.raises(OptionError, match="the variable 'image' cannot have the dimension 'channels'"):
        genmeasures.measure({"net": network()}, test=torch.ones(6, 4), measures=[Taken()])


def test_merged_results_took_the_time_of_all(tmp_path: Path) -> None:
    for place, seconds in enumerate((1.5, 2.0, 4.0)):
        ds = genmeasures.measure({f"net_{place}": network()}, test=torch.randn(6, 4), measures=[Rows((1, 1, 1))])
        assert ds.attrs["seconds"] > 0
        save(ds.assign_attrs(seconds=seconds), tmp_path / f"{place}.nc")
    (merged,) = collect(tmp_path, tmp_path / "out").files.values()
    assert merged.attrs["seconds"] == 7.5
    assert merged.sizes["model"] == 3
