"""Command ``genmeasures plot``: figures on disk, and what it says where there is none."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import xarray as xr
from matplotlib.image import imread

from genmeasures import plot
from genmeasures.cli.main import main
from genmeasures.cli.plot_arguments import MODEL_KINDS, RESULT_KINDS
from genmeasures.results import save
from genmeasures.results.store import SCHEMA_VERSION


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, folders: SimpleNamespace) -> Path:
    return folders.write_task(tmp_path_factory.mktemp("plot") / "nets", {"a": 0, "$b$": 1}, module="plotted")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    curves = {
        f"ablation_{o}": (("model", "layer", "kernel"), [[[0.6, 0.1]]]) for o in ("ascending", "descending", "random")
    }
    names = {
        "model": ["net"],
        "model_status": ("model", ["ok"]),
        "layer_name": (("model", "layer"), [["conv"]]),
    }
    ds = xr.Dataset({**curves, "ablation_none": ("model", [0.9])}, names, {"schema_version": SCHEMA_VERSION})
    return save(ds, tmp_path_factory.mktemp("results") / "run.nc")


def test_every_figure_is_a_kind() -> None:
    assert sorted([*MODEL_KINDS, *RESULT_KINDS]) == sorted(plot.__all__)


def test_a_manifold_of_a_task(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plot", "manifold", "task=checkpoints", f"task.path={task}"]) == 0
    image = imread(tmp_path / "manifold.png")
    assert image.shape[2] == 4
    assert image.std() > 0


def test_overrides_may_follow_options(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    draw = plot.manifold

    def spy(*args: object, **kwargs: object) -> object:
        seen.update(kwargs)
        return draw(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(plot, "manifold", spy)
    arguments = ["task=checkpoints", "--model", "$b$", "--layer", "fc2", "--layer", "0", f"task.path={task}"]
    path = tmp_path / "figure.svg"
    settings = ["labeler=kmeans", "labeler.k=3", "seed=4", "extractor=whole_tensor", "--output", str(path)]
    assert main(["plot", "manifold", *arguments, *settings]) == 0
    assert repr(seen["labeler"]).startswith("KMeans(k=3")
    assert repr(seen["extractor"]).startswith("WholeTensor(")
    assert (seen["layers"], seen["seed"], seen["dimensions"]) == (["fc2", 0], 4, 3)
    assert path.read_text().startswith("<?xml")


def test_clusters_of_a_task(task: Path, tmp_path: Path) -> None:
    path = tmp_path / "figure.pdf"
    grid = ["--layer", "fc1", "--k", "2,3", "--components", "2", "--mixtures", "0,1", "--output", str(path)]
    assert main(["plot", "clusters", "task=checkpoints", f"task.path={task}", *grid]) == 0
    assert path.read_bytes().startswith(b"%PDF")


def test_a_figure_of_a_result_is_beside_it(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "ablation", str(result), "--layer", "conv"]) == 0
    path = result.with_name("run-ablation.png")
    assert capsys.readouterr().out.strip() == f"figure: {path}"
    assert imread(path).std() > 0
    assert [file for file in result.parent.iterdir() if file.suffix == ".tmp"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ablation", "no.nc"], "error: there is no result file no.nc"),
        (["profile", "RESULT"], "error: the result has no variable 'trajectory_position', which the measure"),
        (["ablation", "RESULT", "--model", "nett"], "the result has no model 'nett' (did you mean 'net'? known: net)"),
        (["ablation", "RESULT", "--layer", "con"], "has no layer 'con' (did you mean 'conv'? known: conv)"),
        (["ablation", "RESULT", "--output", "a.jpg"], "--output a.jpg: the name must end in .png, .pdf or .svg"),
        (["ablation", "RESULT", "--output", "no/a.png"], "--output no/a.png: there is no folder no"),
        (["ablation", "RESULT", "--measure", "silenced"], "no variable 'silenced_ablation_none', but 'ablation_none' "
         "of the measure cumulative_ablation, which is not renamed: leave out --measure"),
        (["manifold", "task=checkpoints", "task.path=nope"], "error: nope: there is no such file or folder\n"),
        (["manifold", "TASK", "--model", "c"], "error: --model c: the task has no such model (known: $b$, a)"),
        (["manifold", "TASK", "--layer", "fc3"], "error: there is no layer 'fc3' to measure (did you mean 'fc"),
        (["manifold", "TASK", "layers=[0]"], "error: layers=[0]: write --layer NAME"),
        (["manifold", "TASK", "output=x"], "error: output=x: write --output FILE"),
        (["manifold", "TASK", "sead=1"], "a figure does not depend on the setting 'sead' (did you mean 'seed'?"),
        (["manifold", "TASK", "seed=-1"], "error: seed must be an integer ≥ 0, got -1"),
        (["manifold", "TASK", "extractor.cup=1"], "error: extractor.cup=1: there is no setting 'extractor.cup'"),
        (["manifold", "TASK", "labeler=kmean"], "error: there is no labeler 'kmean' (did you mean 'kmeans'?"),
        (["manifold", "task=check"], "error: there is no task 'check' (did you mean 'checkpoints'?"),
        (["clusters", "TASK", "labeler=kmeans"], "the clusters are those of k-means: leave labeler out, and set --k"),
        (["clusters", "TASK", "--k", "1"], "error: k must be one or several integers ≥ 2, got [1]"),
    ],
)  # fmt: skip
def test_errors_are_one_line(
    arguments: list[str], message: str, task: Path, result: Path, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = {"RESULT": [str(result)], "TASK": ["task=checkpoints", f"task.path={task}"]}
    assert main(["plot", *(part for word in arguments for part in words.get(word, [word]))]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert main(["plot", "ablation", str(result), "--output", str(tmp_path / "a.png")]) == 1
    assert f"{tmp_path} is not writable: choose another folder, --output FILE" in capsys.readouterr().err
    assert main(["plot", "ablation", str(result), "--output", str(result.parent)]) == 1


@pytest.mark.parametrize("arguments", [["plot"], ["plot", "maniflod"], ["plot", "manifold", "--kk"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: genmeasures" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "part"), [("3,x", "x"), ("3,", ""), ("2.5", "2.5")])
def test_numbers_that_are_none_are_named(text: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plot", "clusters", "--k", text])
    assert f"argument --k: expected integers separated by commas, got {part!r}" in capsys.readouterr().err
