"""``genmeasures run`` where a result is there: what changed is measured, the rest is taken, and one line says so."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from genmeasures.cli.main import main
from genmeasures.engine import measure_model
from genmeasures.errors import ResultError
from genmeasures.files import temporary_path
from genmeasures.results import load

MEASURED: list[float] = []


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes each model that is measured, by a weight of it."""

    def measure_and_note(model: Any, *args: Any) -> Any:
        MEASURED.append(float(model.fc2.bias.detach()[0]))
        return measure_model(model, *args)

    monkeypatch.setattr("genmeasures.run.measure_model", measure_and_note)


@pytest.fixture
def module(tmp_path: Path) -> str:
    """A name that no other test has given to a module."""
    return f"stale_{tmp_path.name}"


@pytest.fixture
def nets(tmp_path: Path, folders: Any, module: str) -> Path:
    made: Path = folders.write_task(tmp_path / "nets", {"a": 0, "b": 1, "c": 2, "d": 3}, module=module)
    return made


@pytest.fixture
def run(
    nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*overrides: str, path: str = "nets") -> tuple[int, str]:
        MEASURED.clear()
        task = ("task=checkpoints", f"task.path={path}", "measure=[davies_bouldin]", "figures=false")
        status = main(["run", *task, *overrides])
        captured = capfd.readouterr()
        return status, captured.out + captured.err

    return call


def result(folder: Path) -> xr.Dataset:
    (path,) = folder.glob("results/*.nc")
    return load(path)


def line(said: str, start: str) -> str:
    (found,) = [one for one in said.splitlines() if one.startswith(start)]
    return found


def test_weights_models_and_accuracies_that_changed(
    run: Callable[..., Any], nets: Path, tmp_path: Path, folders: Any
) -> None:
    _, said = run()
    before = result(tmp_path)
    assert len(MEASURED) == 4
    assert "reused from" not in said
    folders.write_weights(nets / "w1.pt", 11)
    folders.write_weights(nets / "new.pt", 12)
    manifest = folders.read_manifest(nets)
    del manifest["models"]["d"]
    manifest["models"]["c"]["test_accuracy"] = 0.11
    manifest["models"]["c"]["hparams"] = {"number": 2, "optim": "sgd"}
    manifest["models"]["e"] = {"weights": "new.pt", "train_accuracy": 0.8, "test_accuracy": 0.7}
    folders.write_manifest(nets, manifest)
    status, said = run()
    assert status == 0
    assert len(MEASURED) == 2
    told = line(said, "2 of 4 models reused from results/nets-")
    assert told.endswith("1 measured (weights changed): b; 1 measured (new): e; 1 left out (no longer in the task): d")
    after = result(tmp_path)
    assert after["model"].values.tolist() == ["a", "b", "c", "e"]
    assert after["test_accuracy"].values.tolist() == [0.5, 0.55, 0.11, 0.7]
    assert after["optim"].values.tolist() == ["", "", "sgd", ""]
    values = after["davies_bouldin"], before["davies_bouldin"]
    np.testing.assert_array_equal(*(one.sel(model=["a", "c"]).values for one in values))
    assert (values[0].sel(model="b").values != values[1].sel(model="b").values).all()
    assert after.attrs["task"] == "nets"
    assert after.attrs["task_id"] == before.attrs["task_id"]
    _, said = run()
    assert "The result exists already" in said
    assert not MEASURED


def test_data_and_code_that_changed(
    run: Callable[..., Any], nets: Path, tmp_path: Path, folders: Any, module: str
) -> None:
    run()
    before = result(tmp_path)
    folders.write_task(nets, {"a": 0, "b": 1, "c": 2, "d": 3}, module=module, shift=0.5)
    _, said = run()
    assert len(MEASURED) == 4
    assert "4 measured (data changed): a, b, c, d" in said
    changed = result(tmp_path)
    assert changed.attrs["task_id"] != before.attrs["task_id"]
    assert (changed["davies_bouldin"].values != before["davies_bouldin"].values).all()
    manifest = folders.read_manifest(nets)
    manifest["factory_kwargs"]["wait"] = 0.001  # an attribute that the code reads
    folders.write_manifest(nets, manifest)
    _, said = run()
    assert "4 measured (code changed): a, b, c, d" in said


def test_another_normalization(run: Callable[..., Any], nets: Path, tmp_path: Path, folders: Any) -> None:
    run()
    before = result(tmp_path)
    manifest = folders.read_manifest(nets)
    manifest["data"]["test"]["scale"] = 2.0  # davies_bouldin does not read the test data, which the key still counts
    folders.write_manifest(nets, manifest)
    assert "4 measured (data changed)" in run()[1]
    manifest["data"]["train"] = {**manifest["data"]["train"], "mean": 0.3, "std": 2.0}
    folders.write_manifest(nets, manifest)
    assert "4 measured (data changed)" in run()[1]
    assert (result(tmp_path)["davies_bouldin"].values != before["davies_bouldin"].values).all()
    with np.load(nets / "d.npz") as arrays:
        changed = {name: arrays[name].copy() for name in arrays}
    changed["y"][0] += 1
    np.savez(nets / "d.npz", **changed)
    assert "4 measured (data changed)" in run()[1]
    assert "The result exists already" in run()[1]


def test_a_link_that_leads_elsewhere(run: Callable[..., Any], nets: Path, tmp_path: Path, folders: Any) -> None:
    """``task.path=current``, which is another folder today than yesterday."""
    other = folders.write_task(tmp_path / "other", {"a": 7, "b": 8}, module=f"linked_{tmp_path.name}")
    link = tmp_path / "current"
    link.symlink_to(nets)
    run(path="current")
    link.unlink()
    link.symlink_to(other)
    _, said = run(path="current")
    assert "exists already" not in said
    assert len(MEASURED) == 2
    assert sorted(load(path).sizes["model"] for path in tmp_path.glob("results/*.nc")) == [2, 4]


def test_only_what_is_known_changed(run: Callable[..., Any], nets: Path, tmp_path: Path, folders: Any) -> None:
    run()
    manifest = folders.read_manifest(nets)
    manifest["models"]["a"]["test_accuracy"] = 0.123
    folders.write_manifest(nets, manifest)
    _, said = run()
    assert not MEASURED
    assert "exists already" not in said
    assert line(said, "4 of 4 models reused from").endswith("hyperparameters, metrics and order are updated")
    assert float(result(tmp_path)["test_accuracy"][0]) == 0.123


def test_settings_without_values(run: Callable[..., Any]) -> None:
    run()
    for overrides in (["batch_size=7"], ["device=cpu"], ["device=null"], ["aggregator=mean", "against=number"]):
        _, said = run(*overrides)
        assert "The result exists already" in said, overrides
        assert not MEASURED
    run("force=true")
    assert len(MEASURED) == 4


def test_two_folders_called_the_same(
    run: Callable[..., Any], nets: Path, tmp_path: Path, monkeypatch: Any, folders: Any, module: str
) -> None:
    """One output and ``task.path=.``: each has its own result, and a path written in another way is the same."""
    other = folders.write_task(tmp_path / "other" / "nets", {"a": 5, "b": 6, "c": 7}, module=f"{module}_too")
    output = f"output={tmp_path / 'results'}"
    for folder in (nets, other):
        monkeypatch.chdir(folder)
        run(output, path=".")
    found = sorted(load(path).sizes["model"] for path in tmp_path.glob("results/nets-*.nc"))
    assert found == [3, 4]
    monkeypatch.chdir(tmp_path)
    _, said = run(path="other/nets/../nets")
    assert "The result exists already" in said


@pytest.mark.parametrize("content", [b"", b"no result at all" * 100])
def test_a_damaged_result_is_measured_again(run: Callable[..., Any], tmp_path: Path, content: bytes) -> None:
    run()
    before = result(tmp_path)
    (path,) = tmp_path.glob("results/*.nc")
    path.write_bytes(content)
    status, said = run()
    assert status == 0
    assert len(MEASURED) == 4
    assert path.name in line(said, "The result is measured again: ")
    np.testing.assert_array_equal(result(tmp_path)["davies_bouldin"], before["davies_bouldin"])


def test_a_result_that_cannot_be_written_is_shown(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(ds: xr.Dataset, path: Path) -> Path:
        raise ResultError(f"cannot write the result {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("genmeasures.cli.run.save", full)
        status, said = run()
    assert status == 1
    assert "Against test_accuracy" in said
    told = line(said, "error: ")
    assert "No space left" in told
    assert "4 of 4 models are kept in results/nets-" in told
    assert not list(tmp_path.glob("results/*.nc"))
    status, said = run()
    assert status == 0
    assert not MEASURED
    assert line(said, "4 of 4 models reused from results/nets-")
    assert not list(tmp_path.glob("results/*.parts"))


def test_a_table_that_cannot_be_written_is_shown(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("genmeasures.report.table.write_atomically", full)
        status, said = run()
    assert status == 1
    assert "Against test_accuracy" in said
    assert line(said, "result: results/nets-")
    told = line(said, "error: ")
    assert "cannot write the table results/nets-" in told
    assert "No space left" in told
    assert not list(tmp_path.glob("results/*.csv"))
    assert run()[0] == 0
    assert not MEASURED
    assert len(list(tmp_path.glob("results/*-judged.csv"))) == 1


def test_no_table_of_other_values_is_left(run: Callable[..., Any], nets: Path, tmp_path: Path, folders: Any) -> None:
    run()
    (table,) = tmp_path.glob("results/*-judged.csv")
    assert run("against=nothing")[0] == 1
    assert table.is_file()  # the result has not changed
    folders.write_weights(nets / "w1.pt", 11)
    status, said = run("against=nothing")
    assert status == 1
    assert "no coordinate 'nothing'" in line(said, "error: ")
    assert not table.is_file()
    run()
    assert table.is_file()


def test_no_figure_of_other_values_is_left(run: Callable[..., Any], nets: Path, tmp_path: Path, folders: Any) -> None:
    run("figures=true")
    (figure,) = tmp_path.glob("results/*.png")
    run()
    assert figure.is_file()  # it is of the same values
    folders.write_weights(nets / "w1.pt", 11)
    run()
    assert not figure.is_file()


def test_a_log_with_a_line_for_each_model(run: Callable[..., Any], nets: Path, tmp_path: Path, folders: Any) -> None:
    manifest = folders.read_manifest(nets)
    manifest["models"]["b"]["weights"] = "nowhere.pt"
    folders.write_manifest(nets, manifest)
    _, said = run()
    (log,) = tmp_path.glob("results/log/*/run.log")
    lines = [one.partition(" - model ")[2] for one in log.read_text().splitlines() if "[INFO] - model " in one]
    assert [re.sub(r"\d+\.\d\d", "…", one) for one in lines] == [
        "a: ok, … s, layers: 2", "b: failed, … s, layers: 0", "c: ok, … s, layers: 2", "d: ok, … s, layers: 2",
    ]  # fmt: skip
    assert "layers: 2" not in said
    assert "━" not in said  # no bar where nobody watches


def test_what_killed_runs_have_left_is_removed(run: Callable[..., Any], tmp_path: Path) -> None:
    results = tmp_path / "results"
    (results / "other-123.parts").mkdir(parents=True)
    (results / "busy-123.parts").mkdir()
    (results / "busy-123.parts" / "a-1.nc").write_bytes(b"a part")
    # A process that has ended left these.
    script = "import sys, pathlib; from genmeasures.files import temporary_path\n"
    script += "for p in sys.argv[1:]: temporary_path(pathlib.Path(p)).write_text('half')"
    targets = [str(results / "x.nc"), str(results / "busy-123.parts" / "b.nc")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", script, *targets], check=True, env=environment)
    mine = temporary_path(results / "y.nc")
    mine.write_text("in hand")
    assert len(list(results.rglob("*.tmp"))) + len(list(results.rglob(".*.tmp"))) >= 3
    run()
    assert sorted(path.name for path in results.rglob("*.tmp")) == [mine.name]
    assert sorted(path.name for path in results.glob("*.parts")) == ["busy-123.parts"]


NAMES = ["net[/x]", "two\nlines", "bell\x07", "n" * 240, "模型" * 60, "optim/lr", "a b"]


def test_names_of_all_kinds(run: Callable[..., Any], tmp_path: Path, folders: Any, module: str) -> None:
    seeds = {name: number for number, name in enumerate(NAMES)}
    folder = folders.write_task(tmp_path / "names", seeds, module=module)
    manifest = folders.read_manifest(folder)
    manifest["models"]["bell\x07"]["weights"] = "nowhere.pt"
    folders.write_manifest(folder, manifest)
    status, said = run(path="names")
    assert status == 0
    assert "\x07" not in said
    assert "bell\\x07" in said
    assert "1 of 7 models failed" in said
    ds = result(tmp_path)
    assert ds["model"].values.tolist() == NAMES
    assert sum(not str(status).startswith("failed") for status in ds["model_status"].values) == 6
