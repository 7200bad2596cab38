"""The result dataset, its file, and what becomes of many files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from torch import nn

import genmeasures
from genmeasures.engine import ModelResult, Outcome
from genmeasures.errors import OptionError, ResultError
from genmeasures.extractors import ReceptiveField, WholeTensor
from genmeasures.interfaces import Layer, Measure, Task, TaskModel, Variable
from genmeasures.measures import Confidence, DaviesBouldin, Roughness
from genmeasures.results import (
    SCHEMA_VERSION,
    STATUS,
    collect,
    combine,
    load,
    measure_variables,
    model_dataset,
    save,
)
from genmeasures.run import Run

VALUES = [
    variable.name
    for measure in (DaviesBouldin(), Roughness(), Confidence())
    for variable in measure.variables
    if not variable.auxiliary
]
NAN = float("nan")


class Toy(Measure):
    """A value a layer and a value a model."""

    name = "toy"
    variables = (
        Variable("toy", "a toy", -1, units="m", references="Nobody 1900"),
        Variable("whole", "a toy of the model", 1, dims=()),
    )


def layer(index: int, name: str = "") -> Layer:
    return Layer(index, name or f"conv{index + 1}", "Conv2d", 8, (4, 4), 9, 64, 1.5 + index, "Conv2d > relu")


def one(
    name: str,
    values: Sequence[float] | None = (1.0, 2.0),
    hparams: Any = None,
    metrics: Any = None,
    whole: float = 7.0,
    statuses: Sequence[str] | None = None,
) -> xr.Dataset:
    """The dataset of a model with so many layers; ``values=None``: it failed."""
    model = TaskModel(name, nn.Module, hparams or {}, metrics or {})
    if values is None:
        return model_dataset(model, "no such file", [Toy()])
    by_layer = [Outcome(value, status) for value, status in zip(values, statuses or ["ok"] * len(values), strict=True)]
    result = ModelResult(
        tuple(layer(i) for i in range(len(values))),
        (("rnn", "layers of type RNN are not measured"),),
        {"toy": by_layer, "whole": [Outcome(whole, "ok")]},
        {"train": [100] * len(values)},
    )
    return model_dataset(model, result, [Toy()])


def combined(*datasets: xr.Dataset, **attrs: Any) -> xr.Dataset:
    return combine(datasets, {"schema_version": SCHEMA_VERSION, **attrs})


@pytest.fixture(scope="module")
def nets(make_net: Any) -> dict[str, nn.Module]:
    """Two of one architecture, one of another, one that fails."""
    broken = make_net(1)
    broken.fc2.weight.data.fill_(NAN)
    shallow = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    return {"first": make_net(0), "shallow": shallow, "broken": broken, "last": make_net(2)}


class Nets(Task):
    """Models with hyperparameters that not all of them have."""

    name = "nets"

    def __init__(self, nets: Any, digits: Any) -> None:
        self.nets, self.digits = nets, digits

    def models(self) -> Sequence[TaskModel]:
        known: dict[str, Any] = {
            "first": ({"width": 8, "optimizer": "adam", "norm": True}, {"train_accuracy": 0.9, "test_accuracy": 0.8}),
            "shallow": ({"width": 4, "depth": 1}, {"train_accuracy": 0.95, "test_accuracy": 0.7}),
            "broken": ({"optimizer": "sgd", "norm": False}, {"test_accuracy": 0.1}),
            "last": ({}, {}),
        }
        return [TaskModel(name, lambda net=net: net, *known[name]) for name, net in self.nets.items()]  # type: ignore[misc]

    def data(self, split: Any) -> Any:
        x, y = self.digits[split == "test"]
        return x[:80], y[:80]


@pytest.fixture(scope="module")
def measured(nets: dict[str, nn.Module], digits: Any) -> xr.Dataset:
    torch.manual_seed(0)
    return genmeasures.measure(Nets(nets, digits), extractor=ReceptiveField(cap=500))


# The dataset ------------------------------------------------------------------------------------------------


def test_dimensions_and_coordinates(measured: xr.Dataset) -> None:
    assert dict(measured.sizes) == {"model": 4, "layer": 4}
    assert list(measured["model"].values) == ["first", "shallow", "broken", "last"]
    assert list(measured["layer"].values) == [0, 1, 2, 3]
    names = [["conv1", "conv2", "fc1", "fc2"], ["0", "3", "", ""], [""] * 4, ["conv1", "conv2", "fc1", "fc2"]]
    assert measured["layer_name"].values.tolist() == names
    assert measured["layer_type"].values[1].tolist() == ["Conv2d", "Linear", "", ""]
    assert measured["layer_tap"].values[1].tolist() == ["Conv2d > relu", "Linear", "", ""]
    np.testing.assert_array_equal(measured["channels"].values[1], [4, 10, NAN, NAN])
    np.testing.assert_array_equal(measured["positions"].values[0], [64, 16, 1, 1])
    np.testing.assert_array_equal(measured["vectors_train"].values[0], [500, 500, 80, 80])
    np.testing.assert_array_equal(measured["vectors_test"].values[2], [NAN] * 4)
    assert measured["model_status"].values[[0, 3]].tolist() == ["ok"] * 2
    assert " on 80 labels, claimed 0.95: check data, " in measured["model_status"].values[1]  # untrained
    assert "fc2.weight" in measured["model_status"].values[2]


def test_weight_norms_are_frobenius(measured: xr.Dataset, nets: dict[str, nn.Module]) -> None:
    norms = [np.linalg.norm(p.detach().numpy()) for name, p in nets["last"].named_parameters() if "weight" in name]
    np.testing.assert_allclose(measured["weight_norm"].sel(model="last").values, norms, rtol=1e-6)


def test_hyper_parameters_and_metrics(measured: xr.Dataset) -> None:
    np.testing.assert_array_equal(measured["width"].values, [8, 4, NAN, NAN])
    np.testing.assert_array_equal(measured["depth"].values, [NAN, 1, NAN, NAN])
    np.testing.assert_array_equal(measured["norm"].values.astype(float), [1, NAN, 0, NAN])
    assert measured["optimizer"].values.tolist() == ["adam", "", "sgd", ""]
    train, test = (measured[f"measured_{split}_accuracy"].values for split in ("train", "test"))
    np.testing.assert_array_equal(measured["test_accuracy"].values, [0.8, 0.7, 0.1, test[3]])
    np.testing.assert_allclose(measured["generalization_gap"].values, [0.1, 0.25, NAN, train[3] - test[3]])
    assert np.isfinite([train[3], test[3]]).all()
    assert set(measured["generalization_gap"].dims) == {"model"}
    assert json.loads(measured.attrs["hparams"]) == ["width", "optimizer", "norm", "depth"]


def test_attributes_of_variables(measured: xr.Dataset) -> None:
    kinds = {name: bool(measured[name].attrs["auxiliary"]) for name in measure_variables(measured)}
    assert {name for name, auxiliary in kinds.items() if not auxiliary} == set(VALUES)
    for measure in (DaviesBouldin(), Roughness(), Confidence()):
        for variable in measure.variables:
            attrs = measured[variable.name].attrs
            assert attrs["long_name"] == variable.long_name
            assert attrs["units"] == "1"
            for target in ("accuracy", "gap"):
                for end in ("", "_source"):
                    assert attrs[f"expected_{target}{end}"] == getattr(variable, f"expected_{target}{end}")
            assert attrs["auxiliary"] == variable.auxiliary
            assert attrs["references"] == variable.references
    assert "DaviesBouldin(" in measured["davies_bouldin"].attrs["measure"]
    assert "spread='mean'" in measured["davies_bouldin"].attrs["measure"]


def test_statuses(measured: xr.Dataset) -> None:
    for name in VALUES:
        values, statuses = measured[name].values, measured[name + STATUS].values
        for value, status, layer_name in zip(
            values.flat, statuses.flat, measured["layer_name"].values.flat, strict=True
        ):
            assert isinstance(status, str)
            if not layer_name:
                assert status == ""
                assert np.isnan(value)
            else:
                assert np.isnan(value) != (status == "ok" or status.startswith("note: "))


def test_provenance(measured: xr.Dataset) -> None:
    attrs = measured.attrs
    assert attrs["schema_version"] == SCHEMA_VERSION
    assert attrs["seed"] == 0
    assert attrs["device"] == "as given"
    assert attrs["metric"] == "accuracy"
    assert "ReceptiveField(cap=500" in attrs["extractor"]
    versions = json.loads(attrs["versions"])
    assert versions["genmeasures"] == genmeasures.__version__
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert {"python", "numpy", "scikit-learn", "xarray"} <= set(versions)
    assert np.datetime64(attrs["created"].split("+")[0]) <= np.datetime64("now")
    settings = yaml.safe_load(attrs["settings"])
    assert len(settings["measures"]) == 3
    assert yaml.safe_load(attrs["config"])["batch_size"] == 128
    assert attrs["task"] == "nets"
    assert attrs["task_id"].startswith("nets(")


def test_skipped_layers_say_why(digits: Any) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gru, self.unused = nn.Conv2d(1, 8, 8), nn.GRU(8, 6, batch_first=True), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.gru(self.conv(x).flatten(2).transpose(1, 2))[0]

    (x, y), _ = digits
    ds = genmeasures.measure({"net": Mixed()}, (x[:60], y[:60]), measures=["davies_bouldin"])
    skipped = json.loads(str(ds["skipped_layers"].values[0]))
    assert set(skipped) == {"gru", "unused"}
    assert "GRU" in skipped["gru"]
    assert "never called" in skipped["unused"]


@pytest.mark.parametrize(
    "name", ["model", "layer", "channels", "toy", "toy_status", "generalization_gap", "weight_norm"]
)
def test_a_hyper_parameter_of_a_name_that_is_taken(name: str) -> None:
    with pytest.raises(ResultError, match=f"model a: '{name}' is a reserved name"):
        one("a", hparams={name: 1})


@pytest.mark.parametrize("value", [None, (64, 64), {"a": 1}, [1, 2]])
def test_a_hyper_parameter_that_is_no_scalar(value: Any) -> None:
    with pytest.raises(
        ResultError, match="model a: the hyperparameter or metric 'width' must be a number, a text or a bool"
    ):
        one("a", hparams={"width": value})


def test_names_are_checked_before_any_model_runs(nets: dict[str, nn.Module], digits: Any) -> None:
    built = []

    def build() -> nn.Module:
        built.append("first")
        return nets["first"]

    models = [TaskModel("first", build), TaskModel("second", build, {"channels": 3})]
    (x, y), _ = digits
    options: dict[str, Any] = {"layers": None, "seed": 0, "device": None, "batch_size": 64, "keep": None}
    run = Run(models, (x, y), None, [DaviesBouldin()], WholeTensor(), **options)
    with pytest.raises(ResultError, match=r"model second: .*'channels'"):
        run.measure({})
    assert not built


# Combining --------------------------------------------------------------------------------------------------


def test_models_of_different_depth() -> None:
    whole = combined(one("deep", range(12)), one("flat", [5.0]), one("middle", [1.0, 2.0, 3.0]))
    assert whole["toy"].shape == (3, 12)
    # In network order, not in that of names: conv1, conv10, conv2.
    assert whole["layer_name"].values[0].tolist() == [f"conv{i + 1}" for i in range(12)]
    np.testing.assert_array_equal(whole["toy"].values[0], range(12))
    np.testing.assert_array_equal(whole["toy"].values[1], [5.0] + [NAN] * 11)
    assert whole["toy_status"].values[2].tolist() == ["ok"] * 3 + [""] * 9
    assert whole["layer_name"].values[1].tolist() == ["conv1"] + [""] * 11
    assert whole["layer"].dtype.kind == "i"
    np.testing.assert_array_equal(whole["whole"].values, [7, 7, 7])
    assert whole["toy"].attrs == {
        "long_name": "a toy", "units": "m", "references": "Nobody 1900", "measure": "Toy()", "auxiliary": 0,
        "expected_accuracy": -1, "expected_accuracy_source": "", "expected_gap": 0, "expected_gap_source": "",
    }  # fmt: skip


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_failed_models_among_others(order: list[int]) -> None:
    all_ = [one("a", [1.0, 2.0]), one("failed", None, {"width": 3}), one("c", [4.0])]
    whole = combined(*(all_[i] for i in order)).sel(model=["a", "failed", "c"])
    np.testing.assert_array_equal(whole["toy"].values, [[1, 2], [NAN, NAN], [4, NAN]])
    np.testing.assert_array_equal(whole["whole"].values, [7, NAN, 7])
    assert whole["whole_status"].values.tolist() == ["ok", "failed: no such file", "ok"]
    assert whole["model_status"].values.tolist() == ["ok", "failed: no such file", "ok"]
    assert whole["toy_status"].values[1].tolist() == ["", ""]
    np.testing.assert_array_equal(whole["width"].values, [NAN, 3, NAN])


def test_failed_models_alone(tmp_path: Path) -> None:
    whole = combined(one("a", None), one("b", None))
    assert whole.sizes == {"model": 2, "layer": 0}
    assert load(save(whole, tmp_path / "failed.nc")).sizes == {"model": 2, "layer": 0}


@pytest.mark.parametrize(
    ("one_value", "other", "expected"),
    [
        (1, 2.5, [1.0, 2.5, NAN]),
        (True, False, [True, False, NAN]),
        ("adam", "sgd", ["adam", "sgd", ""]),
        (64, "64 and more", ["64", "64 and more", ""]),
        (True, "yes", ["True", "yes", ""]),
    ],
)
def test_hyper_parameters_of_other_types(one_value: Any, other: Any, expected: list[Any], tmp_path: Path) -> None:
    """Numbers stay numbers; where one model has a text, they are texts."""
    whole = combined(one("a", hparams={"p": one_value}), one("b", hparams={"p": other}), one("c"))
    if isinstance(other, str):
        assert whole["p"].values.tolist() == expected
    else:
        np.testing.assert_array_equal(whole["p"].values.astype(float), np.array(expected, dtype=float))
    kept = load(save(whole, tmp_path / "result.nc"))
    if isinstance(other, str):
        assert kept["p"].values.tolist() == expected
    else:
        np.testing.assert_array_equal(kept["p"].values.astype(float), np.array(expected, dtype=float))


def test_whole_numbers_that_no_float_holds() -> None:
    """Hyperparameters of all models keep their type."""
    whole = combined(one("a", hparams={"seed": 2**60 + 1}), one("b", hparams={"seed": 3}))
    assert whole["seed"].values.tolist() == [2**60 + 1, 3]


def test_equal_names_cannot_be_combined() -> None:
    with pytest.raises(ResultError, match="duplicate names: a"):
        combined(one("a"), one("b"), one("a"))


def test_nothing_cannot_be_combined() -> None:
    with pytest.raises(ResultError, match="no result"):
        combined()


def test_many_models_of_many_depths() -> None:
    whole = combined(*(one(f"m{i}", np.arange(1.0 + i % 7), {"width": i}) for i in range(100)))
    assert whole.sizes == {"model": 100, "layer": 7}
    np.testing.assert_array_equal(whole["width"].values, range(100))


# Files ------------------------------------------------------------------------------------------------------


def test_the_round_trip_changes_nothing(measured: xr.Dataset, tmp_path: Path) -> None:
    path = save(measured, tmp_path / "new" / "folder" / "result.nc")
    kept = load(path)
    assert set(kept.variables) == set(measured.variables)
    assert set(kept.coords) == set(measured.coords)
    for name in measured.variables:
        expected, found = measured[name], kept[name]
        assert found.dims == expected.dims
        assert found.attrs == expected.attrs
        if expected.dtype.kind in "OUT":
            assert found.dtype == object
            assert all(isinstance(value, str) or np.isnan(value) for value in found.values.flat)
        assert found.values.tolist() == expected.values.tolist() or np.array_equal(
            found.values.astype(float), expected.values.astype(float), equal_nan=True
        )
    assert set(kept.attrs) == set(measured.attrs)
    for name, value in measured.attrs.items():
        assert kept.attrs[name] == value
    again = save(kept, tmp_path / "again.nc")
    xr.testing.assert_identical(load(again), kept)


def test_texts_of_any_script_and_length(tmp_path: Path) -> None:
    name = "Netz_ü_网_🙂" * 20
    kept = load(save(combined(one(name), one("", [1.0])), tmp_path / "result.nc"))
    assert kept["model"].values.tolist() == [name, ""]


@pytest.mark.parametrize("mode", ["first", "over another"])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "result.nc"
    if mode == "over another":
        save(combined(one("kept")), path)
    unstorable = combined(one("a")).assign(bad=("model", np.array([object()], dtype=object)))
    with pytest.raises(ResultError, match=r"cannot write the result .*result\.nc.*object"):
        save(unstorable, path)
    assert [p.name for p in tmp_path.iterdir()] == (["result.nc"] if mode == "over another" else [])
    if mode == "over another":
        assert load(path)["model"].values.tolist() == ["kept"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def interrupted(*args: Any) -> None:
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(combined(one("a")), tmp_path / "result.nc")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match=r"cannot write the result .*result\.nc.*choose another output folder"):
        save(combined(one("a")), tmp_path / "file" / "result.nc")
    (tmp_path / "result.nc").mkdir()
    with pytest.raises(ResultError, match=r"cannot write the result .*result\.nc"):
        save(combined(one("a")), tmp_path / "result.nc")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "result.nc"}


@pytest.mark.parametrize("contents", ["absent", "folder", "empty", "text", "truncated", "other netCDF", "other schema"])
def test_what_cannot_be_loaded_is_named(tmp_path: Path, contents: str) -> None:
    path = tmp_path / "result.nc"
    if contents == "folder":
        path.mkdir()
    elif contents in ("empty", "text"):
        path.write_text("" if contents == "empty" else "no result")
    elif contents == "truncated":
        save(combined(one("a")), path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif contents == "other netCDF":
        xr.Dataset({"x": ("y", [1.0])}).to_netcdf(path, engine="h5netcdf")
    elif contents == "other schema":
        save(combined(one("a")).assign_attrs(schema_version=SCHEMA_VERSION + 1), path)
    with pytest.raises(ResultError, match=r"result\.nc"):
        load(path)


def test_files_are_netcdf_for_everyone(tmp_path: Path) -> None:
    """Plain xarray reads them, as does h5py."""
    path = save(combined(one("a", hparams={"norm": True, "optimizer": "sgd"}), title="x"), tmp_path / "result.nc")
    with xr.open_dataset(path) as opened:
        assert opened["toy"].values.tolist() == [[1.0, 2.0]]
        assert opened.attrs["title"] == "x"
        assert opened["norm"].values.tolist() == [1]
    assert path.stat().st_mode & 0o777 == 0o644


# Collecting -------------------------------------------------------------------------------------------------


def write(path: Path, *names: str, settings: str = "seed: 0\n", task: str = "toys", **options: Any) -> Path:
    return save(combined(*(one(name, **options) for name in names), settings=settings, task=task), path)


@pytest.fixture
def collected(tmp_path: Path) -> Callable[[], Any]:
    return lambda: collect(tmp_path, tmp_path / "collected")


def test_files_of_one_way_of_measuring_are_merged(tmp_path: Path, collected: Callable[[], Any]) -> None:
    write(tmp_path / "b.nc", "c", "a", values=[1.0, 2.0, 3.0])
    write(tmp_path / "deep" / "er" / "a.nc", "b")
    found = collected()
    (merged,) = found.files.values()
    assert merged["model"].values.tolist() == ["c", "a", "b"]
    assert merged["toy"].shape == (3, 3)
    assert found.problems == []
    (path,) = found.files
    assert path.parent == tmp_path / "collected"
    xr.testing.assert_identical(load(path), merged)


def test_collecting_again_gives_the_same(tmp_path: Path, collected: Callable[[], Any]) -> None:
    write(tmp_path / "a.nc", "a")
    write(tmp_path / "b.nc", "b")
    (path, first), *_ = collected().files.items()
    contents = path.read_bytes()
    for _ in range(2):
        (again, second), *_ = collected().files.items()
        assert again == path
        xr.testing.assert_identical(second, first)
        assert len(list((tmp_path / "collected").iterdir())) == 1
    assert len(contents) == path.stat().st_size


def test_later_files_join_in(tmp_path: Path, collected: Callable[[], Any]) -> None:
    write(tmp_path / "a.nc", "a")
    collected()
    write(tmp_path / "b.nc", "b")
    (merged,) = collected().files.values()
    assert merged["model"].values.tolist() == ["a", "b"]


def test_a_model_measured_twice_is_left_out_and_named(tmp_path: Path, collected: Callable[[], Any]) -> None:
    write(tmp_path / "1.nc", "a", "b")
    write(tmp_path / "2.nc", "b", "c", "a")
    found = collected()
    (merged,) = found.files.values()
    assert merged["model"].values.tolist() == ["a", "b", "c"]
    assert found.problems == []
    (remark,) = found.remarks
    assert remark.startswith(f"{tmp_path / '2.nc'}: model b and 1 more already measured")
    assert f"{tmp_path / '1.nc'}; left out" in remark


def test_other_settings_stand_apart(tmp_path: Path, collected: Callable[[], Any]) -> None:
    write(tmp_path / "1.nc", "a", settings="measures: [toy]\nseed: 0\nextractor: E()\n")
    write(tmp_path / "2.nc", "a", settings="measures: [toy]\nseed: 1\nextractor: E()\n")
    write(tmp_path / "3.nc", "b", settings="measures: [toy]\nseed: 1\nextractor: E()\n")
    found = collected()
    assert sorted(ds["model"].values.tolist() for ds in found.files.values()) == [["a"], ["a", "b"]]
    assert sorted(found.labels.values()) == ["seed=0", "seed=1"]
    assert found.problems == []


def test_models_of_one_name_in_two_tasks(tmp_path: Path, collected: Callable[[], Any]) -> None:
    write(tmp_path / "1.nc", "a", task="one")
    write(tmp_path / "2.nc", "a", task="two")
    (merged,) = collected().files.values()
    assert merged["model"].values.tolist() == ["one/a", "two/a"]
    assert merged.attrs["task"] == "one, two"


@pytest.mark.parametrize("place", ["x.parts/a.nc", ".hidden/a.nc", ".result.nc.abc.tmp", "run.parts/deep/a.nc"])
def test_what_is_not_finished_is_left_alone(tmp_path: Path, collected: Callable[[], Any], place: str) -> None:
    write(tmp_path / "1.nc", "a")
    write(tmp_path / place, "b")
    found = collected()
    (merged,) = found.files.values()
    assert merged["model"].values.tolist() == ["a"]
    assert found.problems == []


def test_files_that_cannot_be_read_are_left_out_and_named(tmp_path: Path, collected: Callable[[], Any]) -> None:
    write(tmp_path / "1.nc", "a")
    (tmp_path / "0.nc").write_text("no result")
    xr.Dataset({"x": ("y", [1.0])}).to_netcdf(tmp_path / "2.nc", engine="h5netcdf")
    found = collected()
    (merged,) = found.files.values()
    assert merged["model"].values.tolist() == ["a"]
    assert len(found.problems) == 2
    assert "0.nc" in found.problems[0]
    assert "2.nc" in found.problems[1]
    assert all(problem.endswith("left out") for problem in found.problems)


def test_nothing_to_collect(tmp_path: Path, collected: Callable[[], Any]) -> None:
    assert collected().files == {}
    with pytest.raises(ResultError, match="absent does not exist"):
        collect(tmp_path / "absent", tmp_path / "collected")


def test_real_runs_are_collected(tmp_path: Path, nets: dict[str, nn.Module], digits: Any) -> None:
    """Two runs over half of the models each give what one run over all gives."""
    (x, y), (x_test, y_test) = digits

    def measured(*names: str) -> xr.Dataset:
        models = {name: nets[name] for name in names}
        return genmeasures.measure(models, (x[:80], y[:80]), (x_test[:80], y_test[:80]), extractor=WholeTensor())

    save(measured("first", "broken"), tmp_path / "1.nc")
    save(measured("shallow", "last"), tmp_path / "2.nc")
    (merged,) = collect(tmp_path, tmp_path / "out").files.values()
    whole = measured("first", "broken", "shallow", "last")
    for name in whole.variables:
        assert merged[name].values.tolist() == whole[name].values.tolist() or np.array_equal(
            merged[name].values.astype(float), whole[name].values.astype(float), equal_nan=True
        )


def test_options_of_collecting_are_not_options_of_measuring() -> None:
    """What the results say of themselves can be read without this package's classes."""
    with pytest.raises(OptionError):
        genmeasures.aggregate(combined(one("a")), "no such")
