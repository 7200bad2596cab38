"""Measures in several settings, and layers by place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import genmeasures
from genmeasures.errors import ModelError, OptionError
from genmeasures.interfaces import Layer, Measure, ModelData, ModelMeasure, Variable
from genmeasures.labelers import KMeans
from genmeasures.measures import Confidence, DaviesBouldin, Roughness
from genmeasures.results import judged_variables, load, measure_variables, save


@pytest.fixture
def nets() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    names = [f"n{number}" for number in range(4)]
    return {
        name: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)) for name in names
    }


@pytest.fixture
def data() -> Any:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(80, 4, generator=generator), torch.arange(80) % 3)


def measured(nets: Mapping[str, nn.Module], data: Any, measures: Any, **more: Any) -> xr.Dataset:
    return genmeasures.measure(nets, data, data, measures=measures, **more)


SETTINGS: dict[str, Measure] = {"roughness": Roughness(), "roughness_k8": Roughness(KMeans(k=8)), "c": Confidence()}


def test_each_setting_has_the_values_that_it_has_alone(nets: dict[str, nn.Module], data: Any) -> None:
    ds = measured(nets, data, SETTINGS)
    written = [variable.name for name, measure in SETTINGS.items() for variable in measure.called(name).written()]
    assert measure_variables(ds) == written
    assert {"roughness_k8_projected", "c", "c_rank", "c_rank_error"} < set(written)
    assert (ds["roughness"].values != ds["roughness_k8"].values).all()
    for name, measure in SETTINGS.items():
        alone = measured(nets, data, [measure])
        own = measure_variables(alone)
        for variable in own:
            given = variable.replace(measure.name, name)
            # Beside other measures the same operations compute other distances: float32 features.
            np.testing.assert_allclose(ds[given], alone[variable], rtol=1e-6)
            np.testing.assert_array_equal(ds[f"{given}_status"], alone[f"{variable}_status"])
            for attr in ("expected_accuracy", "expected_gap", "auxiliary", "units", "references"):
                assert ds[given].attrs[attr] == alone[variable].attrs[attr]
    assert ds["roughness_k8"].attrs["long_name"] == "roughness (roughness_k8)"
    assert "roughness_k8=Roughness(labeler=KMeans(k=8" in ds.attrs["settings"]


def test_what_follows_takes_the_names(nets: dict[str, nn.Module], data: Any, tmp_path: Path) -> None:
    ds = measured(nets, data, {"roughness": Roughness(), "k8": Roughness(KMeans(k=8))})
    ds = ds.assign_coords(test_accuracy=("model", [0.1, 0.4, 0.2, 0.3]))
    aggregated = genmeasures.aggregate(ds, "mean")
    names = ["roughness", "roughness_projected", "k8", "k8_projected"]
    assert judged_variables(aggregated) == names
    table = genmeasures.judge(aggregated, "test_accuracy").set_index("measure")
    assert list(table.index) == names
    expected = next(variable.expected_accuracy for variable in Roughness.variables)
    assert expected
    assert (table["expected"] == expected).all()
    assert "k8: " in repr(ds.genmeasures)
    again = load(save(ds, tmp_path / "r.nc"))
    assert measure_variables(again) == names


def test_what_is_kept_tells_settings_apart(nets: dict[str, nn.Module], data: Any, tmp_path: Path) -> None:
    def parts() -> int:
        return len(list(tmp_path.glob("*.nc")))

    first = measured(nets, data, {"r": Roughness(KMeans(k=3))}, keep=tmp_path)
    assert parts() == 4
    for measures in ({"r": Roughness(KMeans(k=4))}, {"other": Roughness(KMeans(k=3))}, [Roughness(KMeans(k=3))]):
        before = parts()
        ds = measured(nets, data, measures, keep=tmp_path)
        assert parts() == before + 4
        assert "r" in ds or "r" not in measures
    before = parts()
    again = measured(nets, data, {"r": Roughness(KMeans(k=3))}, keep=tmp_path)
    assert parts() == before
    assert again["r"].equals(first["r"])


class Both(ModelMeasure):
    """A measure of the model, with a variable that does not begin with its name."""

    name = "both"
    variables = (Variable("both_sum", "sum", dims=()), Variable("weight", "weight"))

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> dict[str, Any]:
        norms = [layer.weight_norm * self.scale for layer in layers]
        return {"both_sum": sum(norms), "weight": norms}


def test_model_measures_too(nets: dict[str, nn.Module], data: Any) -> None:
    ds = measured(nets, data, {"both": Both(), "twice": Both(2.0)})
    assert measure_variables(ds) == ["both_sum", "weight", "twice_sum", "twice_weight"]
    np.testing.assert_allclose(ds["twice_sum"], 2 * ds["both_sum"], rtol=1e-12)
    np.testing.assert_allclose(ds["twice_weight"], 2 * ds["weight_norm"], rtol=1e-12)


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        ([Roughness(), Roughness(KMeans(k=8))], "duplicate variable 'roughness' of Roughness(labeler="),
        ({"roughness": Roughness(), "a": "roughness", "roughness_status": "confidence"}, "'roughness_status'"),
        ({"test_accuracy": Roughness()}, "a variable cannot be called 'test_accuracy'"),
        ({"a_status": Roughness()}, "a variable cannot end in '_status'"),
        ({"layer": Roughness()}, "a variable cannot be called 'layer'"),
        ({"generalization_gap": Roughness()}, "a variable cannot be called 'generalization_gap'"),
        ({"a b": Roughness()}, "'a b' is not a name"),
        ({"": Roughness()}, "'' is not a name"),
        ({"_x": Roughness()}, "'_x' is not a name"),
        ({8: Roughness()}, "8 is not a name"),
        ({"x": 8}, "expected a name or an object of Measure, got int"),
        ({}, "there are no measures"),
    ],
)  # fmt: skip
def test_names_that_cannot_be(nets: dict[str, nn.Module], data: Any, measures: Any, said: str) -> None:
    with pytest.raises(OptionError) as raised:
        measured(nets, data, measures)
    assert said in str(raised.value)


# Layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ([0], ["0"]), ([-1], ["4"]), ([1], ["2"]), (["2"], ["2"]), ([2], ["4"]), ([-1, 0], ["0", "4"]),
        ([0, "0", -3], ["0"]), ((1, "4"), ["2", "4"]),
    ],
)  # fmt: skip
def test_layers_by_place_and_name(nets: dict[str, nn.Module], data: Any, layers: Any, names: list[str]) -> None:
    ds = measured(nets, data, [DaviesBouldin()], layers=layers)
    assert ds["layer_name"].values[0].tolist() == names
    whole = measured(nets, data, [DaviesBouldin()])
    places = [whole["layer_name"].values[0].tolist().index(name) for name in names]
    # Fewer layers beside: the same operations in another order.
    np.testing.assert_allclose(ds["davies_bouldin"], whole["davies_bouldin"].isel(layer=places), rtol=1e-6)


@pytest.mark.parametrize("place", [3, -4])
def test_a_place_out_of_range(nets: dict[str, nn.Module], data: Any, place: int) -> None:
    said = rf"there is no layer {place} to measure: the model has 3, with indices from -3 to 2 \(0 is '0', -1 is '4'\)"
    with pytest.raises(OptionError, match=said):
        measured(nets, data, [DaviesBouldin()], layers=[place])


def test_models_of_different_depth(nets: dict[str, nn.Module], data: Any) -> None:
    models = {"deep": nets["n0"], "flat": nn.Linear(4, 3)}
    ds = measured(models, data, [DaviesBouldin()], layers=[-1])
    assert ds["layer_name"].values[0].tolist() == ["4"]
    assert ds["layer_name"].values[1].tolist() == ["(model)"]
    ds = measured(models, data, [DaviesBouldin()], layers=[2])
    assert "there is no layer 2" in str(ds["model_status"].sel(model="flat").item())


@pytest.mark.parametrize("layers", [0, [], [True], [1.0], [None], {"0": 1}, {0}])
def test_what_layers_cannot_be(nets: dict[str, nn.Module], data: Any, layers: Any) -> None:
    with pytest.raises(OptionError, match="layers"):
        measured(nets, data, [DaviesBouldin()], layers=layers)


def test_kept_layers(nets: dict[str, nn.Module], data: Any, tmp_path: Path) -> None:
    for layers in ([0], [-1, "0"], ["0", -1, -1]):
        measured(nets, data, [DaviesBouldin()], layers=layers, keep=tmp_path)
    assert len(list(tmp_path.glob("*.nc"))) == 2 * len(nets)


def test_an_unknown_name(nets: dict[str, nn.Module], data: Any) -> None:
    with pytest.raises((OptionError, ModelError), match="there is no layer '1' to measure"):
        measured(nets, data, [DaviesBouldin()], layers=["1"])
