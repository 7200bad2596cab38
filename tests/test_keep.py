"""Stored results of models: which are reused, which models are measured again, and what is reported."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import genmeasures
from genmeasures.engine import measure_model
from genmeasures.errors import GenmeasuresError
from genmeasures.extractors import ReceptiveField
from genmeasures.failures import RESOURCE_STATUS
from genmeasures.interfaces import Layer, ModelData, ModelMeasure, Split, Task, TaskModel, Variable
from genmeasures.kept import slug
from genmeasures.measures import DaviesBouldin
from genmeasures.results import load, save
from genmeasures.run import Run

RUNS: list[str] = []
"""The models that were measured: not noted by themselves, as a list that their code reads would be part of it."""


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_and_note(model: nn.Module, *args: Any) -> Any:
        RUNS.append(str(getattr(model, "seed", "")))
        return measure_model(model, *args)

    RUNS.clear()
    monkeypatch.setattr("genmeasures.run.measure_model", measure_and_note)


class Net(nn.Module):
    """``act`` is a plain attribute, ``scale`` a buffer that is not saved."""

    def __init__(self, seed: int = 0, act: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)
        self.act = act
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.seed = seed

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)) * self.scale)
        return out


@pytest.fixture
def data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return np.random.default_rng(0).normal(size=(60, 6)).astype("f4"), np.arange(60) % 4


@pytest.fixture
def measured(data: Any, tmp_path: Path) -> Callable[..., xr.Dataset]:
    def measure(models: Any, **options: Any) -> xr.Dataset:
        RUNS.clear()
        given = {"train": data, "measures": ["davies_bouldin"], "keep": tmp_path / "kept", **options}
        return genmeasures.measure(models, **given)

    return measure


def changed(model: Net, change: Callable[[Net], object]) -> Net:
    change(model)
    return model


CHANGES: dict[str, Callable[[Net], object]] = {
    "activation": lambda net: setattr(net, "act", torch.tanh),
    "buffer that is not saved": lambda net: net.scale.fill_(2),  # type: ignore[operator]
    "hook": lambda net: net.fc1.register_forward_hook(lambda module, inputs, output: output * 2),
    "forward of its own": lambda net: setattr(net, "forward", lambda x: net.fc2(net.fc1(x))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_of_the_same_name_and_weights(measured: Callable[..., xr.Dataset], change: str) -> None:
    first = measured({"net": Net()})
    assert not measured({"net": Net()}).equals(first.assign_coords(model=["other"]))
    assert not RUNS
    second = measured({"net": changed(Net(), CHANGES[change])})
    fresh = measured({"net": changed(Net(), CHANGES[change])}, keep=None)
    np.testing.assert_array_equal(second["davies_bouldin"], fresh["davies_bouldin"])
    assert (second["davies_bouldin"] != first["davies_bouldin"]).any()


def test_batches_tiles_and_names_do_not_change_values(measured: Callable[..., xr.Dataset], tmp_path: Path) -> None:
    first = measured({"net": Net()})
    for options in ({"batch_size": 7}, {"device": "cpu"}, {"layers": None}):
        again = measured({"net": Net()}, **options)
        assert not RUNS, options
        np.testing.assert_array_equal(again["davies_bouldin"], first["davies_bouldin"])
    renamed = measured({"a name [/x] of another kind": Net()})
    assert not RUNS
    assert renamed["model"].values.tolist() == ["a name [/x] of another kind"]
    (part,) = (tmp_path / "kept").iterdir()
    assert part.name.startswith("net-")


class Dropping(Net):
    """Random in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(nn.functional.dropout(self.fc1(x)))
        return out


class Standardizing(Net):
    """Its features depend on the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        out: Tensor = self.fc2((hidden - hidden.mean(0)) / hidden.std(0))
        return out


@pytest.mark.parametrize("kind", [Dropping, Standardizing])
def test_values_that_depend_on_the_batches_are_taken_for_the_same_ones(
    measured: Callable[..., xr.Dataset], kind: type[Net]
) -> None:
    first = measured({"net": kind()}, batch_size=30)
    again = measured({"net": kind()}, batch_size=30)
    assert not RUNS
    np.testing.assert_array_equal(again["davies_bouldin"], first["davies_bouldin"])
    measured({"net": kind()}, batch_size=30, memory=1)  # the budget decides how many inputs run together
    assert RUNS
    other = measured({"net": kind()}, batch_size=20)
    assert RUNS
    assert (other["davies_bouldin"] != first["davies_bouldin"]).any()


def test_order_of_layers_that_were_asked_for_does_not_count(measured: Callable[..., xr.Dataset]) -> None:
    measured({"net": Net()}, layers=["fc2", "fc1"])
    measured({"net": Net()}, layers=["fc1", "fc2"])
    assert not RUNS
    measured({"net": Net()}, layers=["fc1"])
    assert RUNS


class Accuracies(Task):
    """Two models, of which more or less is known."""

    name = "accuracies"

    def __init__(self, known: Any, given: Any) -> None:
        self.known, self.given = known, given

    def models(self) -> Sequence[TaskModel]:
        return [TaskModel(f"n{seed}", lambda seed=seed: Net(seed), *self.known) for seed in (0, 1)]  # type: ignore[misc]

    def data(self, split: Split) -> Any:
        return self.given


def test_facts_of_a_model_are_always_the_present_ones(measured: Callable[..., xr.Dataset], data: Any) -> None:
    before = ({"width": 3, "optimizer": "sgd"}, {"train_accuracy": 0.9, "test_accuracy": 0.5})
    now = ({"width": 4}, {"train_accuracy": 0.9, "test_accuracy": 0.7})
    first = measured(Accuracies(before, data))
    second = measured(Accuracies(now, data))
    assert not RUNS
    assert "optimizer" not in second.coords
    assert second["width"].values.tolist() == [4, 4]
    np.testing.assert_allclose(second["generalization_gap"], 0.2)
    np.testing.assert_array_equal(second["davies_bouldin"], first["davies_bouldin"])
    # A run that keeps nothing says the same.
    fresh = measured(Accuracies(now, data), keep=None)
    xr.testing.assert_identical(second.drop_attrs(deep=False), fresh.drop_attrs(deep=False))


def test_identity_of_a_model_and_its_task(measured: Callable[..., xr.Dataset], data: Any) -> None:
    x, y = data
    one, same = measured({"a": Net(0), "b": Net(1)}), measured([Net(1)], keep=None)
    assert one["model_content"].values[1] == same["model_content"].values[0]
    assert one["model_content"].values[0] != one["model_content"].values[1]
    assert one.attrs["task"] == "models"
    assert one.attrs["task_id"] == same.attrs["task_id"] != measured([Net()], train=(x + 1, y)).attrs["task_id"]
    settings = measured([Net(1)], seed=1)
    assert settings["model_content"].values[0] == same["model_content"].values[0]
    assert settings["model_key"].values[0] != same["model_key"].values[0]
    for ds in (one, same):
        assert all(len(key) == 24 for key in ds["model_key"].values)


def test_identity_of_a_task() -> None:
    assert genmeasures.load_task("digits_cnn", limit=3).identity == "digits_cnn"
    plain, elsewhere, wider = (
        genmeasures.load_task("unet_denoising", **options)
        for options in ({}, {"cache": "/elsewhere", "workers": 2}, {"width": 4})
    )
    assert plain.identity == elsewhere.identity != wider.identity
    assert genmeasures.load_task("unet_denoising", volumes="a").identity is None


def test_a_folder_is_its_data_wherever_it_lies(tmp_path: Path, data: Any) -> None:
    x, y = data

    def folder(place: str, shift: float = 0, count: int = 1) -> xr.Dataset:
        path = tmp_path / place
        path.mkdir(parents=True)
        np.savez(path / "d.npz", x=x + np.float32(shift), y=y)
        split = "{npz: d.npz, x: x, y: y}"
        lines = ["factory: torch.nn.Linear", "factory_kwargs: {in_features: 6, out_features: 4}"]
        lines += [f"data: {{train: {split}, test: {split}}}", "models:"]
        for number in range(count):
            torch.manual_seed(number)
            torch.save(nn.Linear(6, 4).state_dict(), path / f"n{number}.pt")
            lines.append(f"  n{number}: {{test_accuracy: 0.5, train_accuracy: 0.6}}")
        (path / "manifest.yaml").write_text("\n".join(lines))
        task = genmeasures.load_task("checkpoints", path=str(path))
        return genmeasures.measure(task, measures=["davies_bouldin"])

    here, there, other = folder("here/nets"), folder("there/nets", count=2), folder("other/nets", shift=1)
    assert here.attrs["task"] == there.attrs["task"] == "nets"
    assert here.attrs["task_id"] == there.attrs["task_id"] != other.attrs["task_id"]
    assert here["model_content"].values[0] == there["model_content"].values[0] != other["model_content"].values[0]
    assert here["model_key"].values[0] == there["model_key"].values[0]


# What cannot be kept ----------------------------------------------------------------------------------------


def test_models_without_a_hash_are_not_stored_and_reported_once(
    measured: Callable[..., xr.Dataset], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = {f"n{seed}": changed(Net(seed), lambda net: setattr(net, "lock", threading.Lock())) for seed in (0, 1)}
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            ds = measured(models)
        assert RUNS
        (said,) = [record.getMessage() for record in caplog.records if record.name == "genmeasures.run"]
        assert said.startswith("nothing is stored: attribute 'lock' of a Net")
    assert ds["model_key"].values.tolist() == ["", ""]
    assert (ds["model_status"] == "ok").all()
    assert not list((tmp_path / "kept").iterdir())
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        measured(models, keep=None)
    assert not caplog.records


class Option:
    """Its repr contains its address."""


def test_a_component_that_cannot_be_told_apart(measured: Callable[..., xr.Dataset], tmp_path: Path) -> None:
    for _ in range(2):
        measured({"net": Net()}, measures=[Starved(Option())])
        assert RUNS
    assert not list((tmp_path / "kept").iterdir())


class Starved(ModelMeasure):
    """Fails as its option says."""

    name = "starved"
    variables = (Variable("starved", "starved", 0, dims=()),)
    error: Exception | None = None

    def __init__(self, option: Any = None) -> None:
        self.option = option

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, float]:
        if type(self).error is not None:
            raise type(self).error
        return {"starved": 1.0}


SHORTAGES = [
    MemoryError("cannot have that much"),
    RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    OSError(24, "Too many open files"),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_a_value_missing_for_lack_of_memory_is_measured_again(
    measured: Callable[..., xr.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    measures = ["davies_bouldin", Starved()]
    with monkeypatch.context() as patch:
        patch.setattr(Starved, "error", error)
        ds = measured({"net": Net()}, measures=measures)
        status = str(ds["model_status"].values[0])
        assert status.startswith(RESOURCE_STATUS)
        assert str(error) in status
        assert ds["model_key"].values[0] == ""
        assert np.isfinite(ds["davies_bouldin"]).all()
    assert not list((tmp_path / "kept").iterdir())
    again = measured({"net": Net()}, measures=measures)
    assert RUNS
    assert again["model_status"].values.tolist() == ["ok"]
    assert again["starved"].values.tolist() == [1.0]


def test_another_failure_is_a_result(measured: Callable[..., xr.Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Starved, "error", ValueError("never"))
    ds = measured({"net": Net()}, measures=[Starved()])
    assert ds["model_status"].values.tolist() == ["ok"]
    RUNS.clear()
    measured({"net": Net()}, measures=[Starved()])
    assert not RUNS


def test_a_model_that_does_not_fit_into_memory(measured: Callable[..., xr.Dataset]) -> None:
    def forward(x: Tensor) -> Tensor:
        raise MemoryError("no room")

    ds = measured({"net": Net(), "large": changed(Net(1), lambda net: setattr(net, "forward", forward))})
    assert ds["model_status"].values.tolist()[0] == "ok"
    assert ds["model_status"].values.tolist()[1].startswith(RESOURCE_STATUS)


def test_errors_of_models_are_raised_where_asked_for(
    measured: Callable[..., xr.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(x: Tensor) -> Tensor:
        raise KeyError("inside")

    models = {"net": Net(), "broken": changed(Net(1), lambda net: setattr(net, "forward", forward))}
    assert "failed" in str(measured(models)["model_status"].values[1])
    monkeypatch.setenv("GENMEASURES_DEBUG", "1")
    with pytest.raises((KeyError, GenmeasuresError)) as raised:
        measured(models)
    chain: BaseException | None = raised.value
    while chain is not None and not isinstance(chain, KeyError):
        chain = chain.__cause__ or chain.__context__
    assert isinstance(chain, KeyError)


def test_a_full_disk_is_reported_once(
    measured: Callable[..., xr.Dataset], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    count = 0

    def full(ds: xr.Dataset, path: Path) -> Path:
        nonlocal count
        count += 1
        if count > 1:
            raise OSError(28, "No space left on device")
        return save(ds, path)

    monkeypatch.setattr("genmeasures.kept.save", full)
    with caplog.at_level(logging.WARNING):
        ds = measured({f"n{seed}": Net(seed) for seed in range(4)})
    assert np.isfinite(ds["davies_bouldin"]).all()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "3 of 4 models could not be stored" in said
    assert "No space left" in said
    monkeypatch.setattr("genmeasures.kept.save", save)
    measured({f"n{seed}": Net(seed) for seed in range(4)})
    assert set(RUNS) == {"1", "2", "3"}


# An earlier result ------------------------------------------------------------------------------------------


def run(models: Sequence[TaskModel], data: Any) -> Run:
    return Run(
        models, data, None, [DaviesBouldin()], ReceptiveField(),
        layers=None, seed=0, device="cpu", batch_size=32, keep=None,
    )  # fmt: skip


def named(*names: str) -> list[TaskModel]:
    return [TaskModel(name, lambda name=name: Net(int(name[1:]))) for name in names]  # type: ignore[misc]


def test_models_are_taken_from_an_earlier_result(data: Any, tmp_path: Path) -> None:
    deep = TaskModel("deep", lambda: nn.Sequential(*(nn.Linear(6, 6) for _ in range(5))))
    earlier = load(save(run([*named("n0", "n1"), deep], data).measure({}), tmp_path / "earlier.nc"))
    RUNS.clear()
    again = run(named("n1", "n2", "n0"), data)
    ds = again.measure({}, earlier=earlier)
    assert set(RUNS) == {"2"}
    assert again.account.taken == ["n1", "n0"]
    assert again.account.measured == {"n2": "new"}
    assert again.account.removed == ["deep"]
    # As if it had been measured alone: without the layers that only "deep" had.
    fresh = run(named("n1", "n2", "n0"), data).measure({})
    xr.testing.assert_identical(ds.drop_attrs(deep=False), fresh.drop_attrs(deep=False))


def test_why_a_model_is_measured_again(data: Any) -> None:
    x, y = data
    earlier = run(named("n0"), data).measure({})

    def why(model: Net, given: Any = data) -> str:
        again = run([TaskModel("n0", lambda: model)], given)
        again.measure({}, earlier=earlier)
        return again.account.measured["n0"]

    assert why(Net(0, torch.tanh)) == "code changed"
    assert why(changed(Net(0), lambda net: nn.init.ones_(net.fc1.weight))) == "weights changed"
    assert why(Net(0), (x + 1, y)) == "data changed"
    assert why(Net(1)) == "weights and code changed"
    assert why(changed(Net(0), lambda net: setattr(net, "lock", threading.Lock()))).startswith(
        "it is not known whether"
    )


def test_names_of_files_are_short_and_plain() -> None:
    for name in ("n" * 300, "模型" * 200, "𝔘" * 100, "a/b\\c:d\0e\nf", "../..", "\ud800x"):
        made = slug(name)
        assert 0 < len(made.encode()) <= 80
        assert not set(made) & set("/\\\0\n:")
