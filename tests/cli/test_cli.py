"""The command line, on a folder of small checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from matplotlib.image import imread

import genmeasures
from genmeasures.cli.main import main
from genmeasures.cli.run import digest
from genmeasures.measures import Confidence, DaviesBouldin, Roughness
from genmeasures.results import load, measure_variables
from genmeasures.results.schema import judged_variables

MODULE = '''
import torch
from torch import nn


class TinyNet(nn.Module):
    """Shared by the command line's tests."""

    def __init__(self, width=3):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.fc = nn.Linear(width * 36, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))
'''
MODELS = ("net_0", "net_1", "net_2")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, digits: Any) -> Path:
    """A task of three networks, as a user would lay it out."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "genmeasures_tiny.py").write_text(MODULE)
    scope: dict[str, Any] = {}
    exec(MODULE, scope)
    torch.manual_seed(0)
    for number, name in enumerate(MODELS):
        net = scope["TinyNet"]()
        with torch.no_grad():
            net.conv.weight.mul_(1 + number)
        torch.save(net.state_dict(), folder / f"{name}.pt")
    (x, y), (x_test, y_test) = digits
    arrays = {"x": x[:90], "y": y[:90], "xt": x_test[:60], "yt": y_test[:60]}
    np.savez(folder / "digits.npz", **arrays)
    data = {"npz": "digits.npz", "layout": "NCHW"}
    manifest = {
        "factory": "genmeasures_tiny.TinyNet",
        "python_path": ".",
        "data": {"train": {**data, "x": "x", "y": "y"}, "test": {**data, "x": "xt", "y": "yt"}},
        "models": {
            name: {"train_accuracy": 0.9 + 0.01 * i, "test_accuracy": accuracy, "hparams": {"scale": 1 + i}}
            for i, (name, accuracy) in enumerate(zip(MODELS, (0.8, 0.5, 0.65), strict=True))
        },
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder


@pytest.fixture
def run(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``run("seed=1")``: exit status, standard output and error of ``genmeasures run`` on the checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*overrides: str, task: str | None = None) -> tuple[int, str, str]:
        chosen = ["task=checkpoints", f"task.path={task or checkpoints}", "extractor.cap=400", "figures=false"]
        status = main(["run", *chosen, *overrides])
        return status, *capfd.readouterr()

    return call


def results(folder: Path) -> list[Path]:
    return sorted(folder.glob("results/*.nc"))


# run --------------------------------------------------------------------------------------------------------


def test_a_run_measures_judges_draws_and_keeps(run: Callable[..., Any], tmp_path: Path, checkpoints: Path) -> None:
    status, out, _ = run("figures=true")
    assert status == 0
    (path,) = results(tmp_path)
    assert f"result: results/{path.name}" in out
    ds = load(path)
    assert ds["model"].values.tolist() == list(MODELS)
    defaults = (DaviesBouldin(), Roughness(), Confidence())
    assert set(measure_variables(ds)) == {variable.name for one in defaults for variable in one.variables}
    assert np.isfinite(ds["roughness"].values).all()
    assert ds["scale"].values.tolist() == [1, 2, 3]
    assert ds.attrs["task"] == checkpoints.name
    config = yaml.safe_load(ds.attrs["config"])
    assert config["extractor"]["cap"] == 400
    assert config["task"]["path"] == str(checkpoints)
    for name in judged_variables(ds):
        assert name in out
    assert "Against test_accuracy" in out
    assert "Against generalization_gap" in out
    assert imread(path.with_suffix(".png")).ndim == 3
    assert not path.with_suffix(".parts").exists()


def test_values_are_those_of_the_python_interface(run: Callable[..., Any], tmp_path: Path, checkpoints: Path) -> None:
    run("seed=5")
    task = genmeasures.load_task("checkpoints", path=str(checkpoints))
    extractor = genmeasures.extractors.ReceptiveField(cap=400)  # type: ignore[attr-defined]
    expected = genmeasures.measure(task, extractor=extractor, seed=5)
    found = load(results(tmp_path)[0])
    for name in measure_variables(expected):
        np.testing.assert_array_equal(found[name].values, expected[name].values)


def test_ignore_index_comes_from_the_command_line_or_the_manifest(
    run: Callable[..., Any], tmp_path: Path, checkpoints: Path
) -> None:
    run("measure=[davies_bouldin]", "ignore_index=3")
    (path,) = results(tmp_path)
    found = load(path)
    text = (checkpoints / "manifest.yaml").read_text()
    (checkpoints / "ignoring.yaml").write_text(text.replace("data:\n", "data:\n  ignore_index: 3\n"))
    task = genmeasures.load_task("checkpoints", path=str(checkpoints / "ignoring.yaml"))
    assert task.ignore_index == 3
    extractor = genmeasures.extractors.ReceptiveField(cap=400)  # type: ignore[attr-defined]
    by_manifest = genmeasures.measure(task, extractor=extractor, measures=["davies_bouldin"])
    np.testing.assert_array_equal(found["davies_bouldin"].values, by_manifest["davies_bouldin"].values)
    plain = genmeasures.load_task("checkpoints", path=str(checkpoints))
    assert plain.ignore_index is None
    without = genmeasures.measure(plain, extractor=extractor, measures=["davies_bouldin"])
    assert (found["davies_bouldin"].values != without["davies_bouldin"].values).all()
    run("measure=[davies_bouldin]", task=str(checkpoints / "ignoring.yaml"))
    (other,) = set(results(tmp_path)) - {path}
    np.testing.assert_array_equal(load(other)["davies_bouldin"].values, found["davies_bouldin"].values)
    status, _, err = run("measure=[davies_bouldin]", "ignore_index=void")
    assert status == 1
    assert "ignore_index must be a number" in err


def test_a_result_that_is_there_is_not_made_again(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("measure=[davies_bouldin]")
    (path,) = results(tmp_path)
    before = path.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("genmeasures.run.measure_model", None)
        # What is only presentation does not make another result.
        status, out, _ = run("measure=[davies_bouldin]", "aggregator=mean", "figures=true", "against=scale")
    assert status == 0
    assert f"The result exists already (force=true measures again): results/{path.name}" in out
    assert "Against scale, 3 models, Mean()" in out
    assert path.with_name(f"{path.stem}-mean.png").is_file()
    assert path.with_name(f"{path.stem}-mean-judged.csv").is_file()
    assert results(tmp_path) == [path]
    assert path.stat().st_mtime_ns == before
    _, out, _ = run("measure=[davies_bouldin]", "force=true")
    assert "exists already" not in out
    assert results(tmp_path) == [path]
    assert path.stat().st_mtime_ns > before


def test_results_are_named_by_what_their_values_depend_on(checkpoints: Path) -> None:
    def name(*overrides: str) -> str:
        return digest(compose("run", ["task=checkpoints", f"task.path={checkpoints}", *overrides]))

    with initialize_config_module("genmeasures.conf", version_base="1.3"):
        plain = name()
        assert name() == plain
        without_values = ("output=elsewhere", "force=true", "figures=false", "against=scale", "aggregator=max")
        for same in (*without_values, "batch_size=7", "tile=4", "memory=500", "device=cpu", "device='cpu:0'"):
            assert name(same) == plain
        others = [
            "seed=1", "extractor=whole_tensor", "extractor.cap=7", "measure=[roughness]", "layers=[conv]",
            "ignore_index=3", "measure.roughness.spread=rms", "measure.confidence.labeler.k=4", "task.path=elsewhere",
            "device=cuda",
        ]  # fmt: skip
        names = [name(*override.split(" ")) for override in others]
    assert len({plain, *names}) == len(others) + 1


def test_measures_are_chosen_by_name(run: Callable[..., Any], tmp_path: Path) -> None:
    status, out, _ = run("measure=[roughness,confidence]")
    assert status == 0
    ds = load(results(tmp_path)[0])
    variables = [variable.name for one in (Roughness(), Confidence()) for variable in one.variables]
    assert measure_variables(ds) == variables
    assert "davies_bouldin" not in out


def test_options_of_measures_and_labelers(run: Callable[..., Any], tmp_path: Path) -> None:
    status, _, _ = run(
        "measure=[davies_bouldin,roughness]",
        "+labeler@measure.davies_bouldin.labeler=kmeans",
        "measure.davies_bouldin.labeler.k=3",
        "measure.davies_bouldin.split=test",
        "measure.roughness.input_pca=4",
    )
    assert status == 0
    ds = load(results(tmp_path)[0])
    said = ds["davies_bouldin"].attrs["measure"]
    assert "labeler=KMeans(k=3" in said
    assert "split='test'" in said
    assert "input_pca=4" in ds["roughness"].attrs["measure"]


def test_a_model_that_fails_is_named_and_the_others_are_measured(
    run: Callable[..., Any], tmp_path: Path, checkpoints: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (*checkpoints.glob("*.pt"), checkpoints / "digits.npz"):
        (broken / path.name).write_bytes(path.read_bytes())
    manifest = yaml.safe_load((checkpoints / "manifest.yaml").read_text())
    (broken / "manifest.yaml").write_text(yaml.safe_dump({**manifest, "python_path": str(checkpoints)}))
    (broken / "net_1.pt").write_bytes(b"damaged")
    status, out, _ = run(task=str(broken))
    assert status == 0
    assert "1 of 3 models failed (net_1)" in out
    assert "net_1.pt" in out
    ds = load(results(tmp_path)[0])
    assert np.isfinite(ds["roughness"].sel(model=["net_0", "net_2"]).values).all()
    assert "net_1.pt" in str(ds["model_status"].sel(model="net_1").values)

    (broken / "net_1.pt").write_bytes((checkpoints / "net_1.pt").read_bytes())
    status, out, _ = run(task=str(broken))
    assert status == 0
    assert "failed" not in out
    assert "exists already" not in out
    mended = load(results(tmp_path)[0])
    assert np.isfinite(mended["roughness"].values).all()
    np.testing.assert_array_equal(mended["roughness"].sel(model="net_0"), ds["roughness"].sel(model="net_0"))
    assert not list(tmp_path.glob("results/*.parts"))


ERRORS = {
    "measure=[roughness,confidnce]": "error: there is no measure 'confidnce' (did you mean 'confidence'? known: ",
    "measure=[]": "measure",
    "measure.roughness.spread=median": "measure.roughness: Roughness: spread='median' is unknown (did you mean 'mean'?",
    "+measure.roughness.spred=rms": "measure.roughness.spred: unknown option (did you mean 'spread'?",
    "measure.roughness.labeler.k=1": "measure.roughness: KMeans: k must be an integer ≥ 2, got 1",
    "extractor.cap=0": "extractor: ReceptiveField: cap must be an integer ≥ 1 or null, got 0",
    "extractor=recptive_field": "receptive_field",
    "extractor._target_=genmeasures.extractors.Nothing": "extractor: genmeasures.extractors.Nothing",
    "extractor._target_=genmeasures.labelers.ClassLabel": "ClassLabel is not a subclass of Extractor",
    "task.path=nowhere": "nowhere",
    "task.path=null": "path",
    "task.path=???": "task.path: a value is needed",
    "layers=[cnv]": "there is no layer 'cnv' to measure (did you mean 'conv'?",
    "batch_size=0": "batch_size must be an integer ≥ 1, got 0",
    "batch_size=many": "batch_size must be an integer ≥ 1, got 'many'",
    "tile=0": "tile must be an integer ≥ 1, a list of integers ≥ 1 or null, got 0",
    "tile=[4,4,4]": "tile=[4, 4, 4]: inputs of shape",
    "seed=lucky": "seed must be an integer ≥ 0, got 'lucky'",
    "seed=0.5": "seed must be an integer ≥ 0, got 0.5",
    "device=cudda": "device='cudda' cannot be used",
    "aggregator=explicit": "aggregator.weights: a value is needed",
    "aggregator=single": "aggregator.layer: a value is needed",
    "aggregator=last_k aggregator.k=0": "k",
    "against=test_acuracy": "test_acuracy",
    "output=manifest.yaml/below": "manifest.yaml",
}


@pytest.mark.parametrize("overrides", ERRORS)
def test_errors_are_one_line_and_an_exit_status(
    run: Callable[..., Any], tmp_path: Path, overrides: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    (tmp_path / "manifest.yaml").write_text("a file")
    status, out, err = run("measure=[roughness]", *overrides.split(" "))
    said = out + err
    assert "Traceback" not in said
    assert ERRORS[overrides] in said
    assert status == 1
    assert results(tmp_path) == [] or overrides.startswith(("against", "aggregator"))


def test_a_setting_of_presentation_is_checked_before_the_work(run: Callable[..., Any], tmp_path: Path) -> None:
    """Aggregators that cannot be made, before any model is measured."""
    status, _, _ = run("aggregator=last_k", "aggregator.k=0")
    assert status == 1
    assert results(tmp_path) == []


def test_recipes_of_the_working_folder(run: Callable[..., Any], tmp_path: Path) -> None:
    recipe = tmp_path / "conf" / "experiment" / "mine.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("# @package _global_\ndefaults:\n  - override /measure: [roughness]\nseed: 3\n")
    status, _, _ = run("experiment=mine")
    assert status == 0
    ds = load(results(tmp_path)[0])
    assert measure_variables(ds) == ["roughness", "roughness_projected"]
    assert ds.attrs["seed"] == 3


def test_the_configuration_can_be_shown(run: Callable[..., Any], tmp_path: Path) -> None:
    status, out, _ = run("--cfg", "job")
    assert status == 0
    shown = yaml.safe_load(out)
    assert shown["extractor"]["cap"] == 400
    assert set(shown["measure"]) == {"davies_bouldin", "roughness", "confidence"}
    assert results(tmp_path) == []


def test_a_job_that_fails_stops_no_other(run: Callable[..., Any], tmp_path: Path) -> None:
    status, out, err = run("measure=[davies_bouldin]", "layers=[cnv],[conv]", "-m")
    assert status == 1
    assert len(results(tmp_path)) == 1
    assert "there is no layer 'cnv'" in out + err
    assert "Traceback" not in out + err


# In processes of their own ----------------------------------------------------------------------------------


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "genmeasures.cli.main", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_multirun_makes_a_result_each(tmp_path: Path, checkpoints: Path) -> None:
    task = ("task=checkpoints", f"task.path={checkpoints}", "measure=[davies_bouldin]", "figures=false")
    done = command(tmp_path, "run", *task, "extractor=receptive_field,whole_tensor", "-m")
    assert done.returncode == 0, done.stderr
    found = {load(path).attrs["extractor"].partition("(")[0] for path in results(tmp_path)}
    assert found == {"ReceptiveField", "WholeTensor"}

    collected = command(tmp_path, "collect", "results")
    assert collected.returncode == 0, collected.stderr
    assert collected.stdout.count("Against test_accuracy") == 2
    assert "models, extractor=WholeTensor\n" in collected.stdout
    assert len(list((tmp_path / "results" / "collected").glob("*.nc"))) == 2
    table = pd.read_csv(tmp_path / "results" / "collected" / "judged.csv")
    assert set(table["measure"]) == {"davies_bouldin"}
    assert len(set(table["run"])) == 2
    assert (table["n"] == 3).all()


def test_help_answers_without_torch() -> None:
    script = (
        "import sys\n"
        "from genmeasures.cli.main import main\n"
        "for arguments in (['--help'], ['--version'], ['collect', '--help'], ['run', '--help'], []):\n"
        "    try:\n"
        "        print('status', main(arguments))\n"
        "    except SystemExit as stop:\n"
        "        print('status', stop.code)\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'pandas', 'xarray', 'hydra', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("run", "collect", "plugins", "genmeasures run seed", genmeasures.__version__):
        assert word in done.stdout or word == "genmeasures run seed"
    assert "extractor=receptive_field,whole_tensor -m" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("status")] == ["status 0"] * 4 + ["status 2"]


# collect and plugins ----------------------------------------------------------------------------------------


def test_collect_prints_a_table_and_writes_it(
    run: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run("measure=[roughness]")
    run("measure=[roughness]", "seed=1")
    assert main(["collect", "results", "--output", "merged"]) == 0
    out = capfd.readouterr().out
    assert out.count("Against test_accuracy") == 2
    assert "seed=0" in out
    assert "seed=1" in out
    table = pd.read_csv(tmp_path / "merged" / "judged.csv")
    assert set(table["run"]) == {"seed=0", "seed=1"}
    assert {"measure", "against", "n", "pearson", "spearman", "kendall"} <= set(table.columns)
    assert len(list((tmp_path / "merged").glob("*.nc"))) == 2
    # Again, and with the files that it wrote itself in the folder.
    assert main(["collect", ".", "--output", "merged"]) == 0
    assert len(list((tmp_path / "merged").glob("*.nc"))) == 2


def test_collect_says_what_it_left_out(
    run: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run("measure=[roughness]")
    (tmp_path / "results" / "zzz.nc").write_text("no result")
    assert main(["collect", "results"]) == 1
    out = capfd.readouterr().out
    assert "zzz.nc" in out
    assert "Against test_accuracy" in out
    assert (tmp_path / "results" / "collected" / "judged.csv").is_file()


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_nothing_to_collect(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["collect", folder]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert folder in err
    assert err.count("\n") == 1


def test_plugins_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    out = capsys.readouterr().out
    assert f"genmeasures  genmeasures {genmeasures.__version__}" in out
    for text in (
        "davies_bouldin(labeler=None",
        "kmeans(k=5, restarts=10, repeats=1)",
        "last_k(k=3)",
        "checkpoints(path)",
    ):
        assert text in out


def test_plugins_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--json"]) == 0
    core = next(one for one in json.loads(capsys.readouterr().out) if one["name"] == "genmeasures")
    assert core["version"] == genmeasures.__version__
    assert core["error"] is None
    assert {"kind": "labeler", "name": "kmeans", "options": ["k=5", "restarts=10", "repeats=1"]} in core["components"]


def test_collect_in_json(run: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("measure=[roughness]")
    (tmp_path / "results" / "zzz.nc").write_text("no result")
    assert main(["collect", "results", "--json"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert len(found["problems"]) == 1
    assert "zzz.nc" in found["problems"][0]
    assert [file["models"] for file in found["files"]] == [3]
    assert {row["against"] for row in found["judged"]} == {"test_accuracy", "generalization_gap"}
    row = found["judged"][0]
    assert (row["measure"], row["n"], row["pearson_low"]) == ("roughness", 3, None)
    assert -1 <= row["pearson"] <= 1


def test_a_run_writes_its_table(run: Callable[..., Any], tmp_path: Path) -> None:
    status, out, _ = run("measure=[roughness]")
    assert status == 0
    (path,) = results(tmp_path)
    table = pd.read_csv(path.with_name(f"{path.stem}-judged.csv"))
    assert table["measure"].tolist() == ["roughness"] * 2 + ["roughness_projected"] * 2
    assert table["against"].tolist() == ["test_accuracy", "generalization_gap"] * 2
    assert table["status"].tolist() == ["note: no intervals: 3 models, at least 8 are needed"] * 4
    assert "no intervals: 3 models, at least 8 are needed" in out


def test_a_run_of_which_most_models_failed_is_no_success(
    run: Callable[..., Any], tmp_path: Path, checkpoints: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoints, broken)
    # One module of a name can be imported in one process.
    manifest = yaml.safe_load((checkpoints / "manifest.yaml").read_text())
    (broken / "manifest.yaml").write_text(yaml.safe_dump({**manifest, "python_path": str(checkpoints)}))
    (broken / f"{MODELS[0]}.pt").write_bytes(b"damaged")
    (broken / f"{MODELS[2]}.pt").write_bytes(b"damaged")
    status, out, err = run("measure=[roughness]", task=str(broken))
    assert status == 1
    assert "2 of 3 models failed" in err
    assert "Against test_accuracy" in out
    assert len(results(tmp_path)) == 1
