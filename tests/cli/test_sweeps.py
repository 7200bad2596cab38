"""Sweeps: names of results, which runs there are, and what measures tell in each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from genmeasures.api import aggregate, judge
from genmeasures.cli.main import main
from genmeasures.cli.naming import readable_name, result_path, shown_overrides
from genmeasures.report import JudgedRun, by_run, render_by_run
from genmeasures.results import differing, load, measure_variables, run_settings


@pytest.fixture
def module(tmp_path: Path) -> str:
    return f"sweeps_{tmp_path.name}"


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folders: Any, module: str
) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    folders.write_task(tmp_path / "nets", {f"n{number}": number for number in range(3)}, module=module)

    def call(*overrides: str) -> str:
        task = ("task=checkpoints", "task.path=nets", "figures=false")
        assert main(["run", *task, *overrides]) == 0
        return capfd.readouterr().out

    return call


# Names --------------------------------------------------------------------------------------------------------


def test_a_name_tells_what_was_chosen(run: Callable[..., str], tmp_path: Path) -> None:
    run("measure=[roughness]", "measure.roughness.labeler.k=3", "seed=1", "output=out", "batch_size=7", "device=cpu")
    (path,) = (tmp_path / "out").glob("*.nc")
    name, _, digest = path.stem.rpartition("-")
    assert name == "nets-receptive_field-measure=roughness-roughness.labeler.k=3-seed=1"
    assert len(digest) == 12


def test_a_result_is_found_under_the_name_that_it_had(run: Callable[..., str], tmp_path: Path) -> None:
    run("measure=[davies_bouldin]")
    (path,) = tmp_path.glob("results/*.nc")
    old = path.with_name(f"nets-{path.stem.rpartition('-')[2]}.nc")  # as versions before this one called it
    path.rename(old)
    assert "The result exists already" in run("measure=[davies_bouldin]", "seed=0")
    assert list(tmp_path.glob("results/*.nc")) == [old]


def test_an_unfinished_run_is_found_under_the_name_that_it_had(tmp_path: Path) -> None:
    made = result_path(tmp_path, "nets", "receptive_field", ["seed=1"], "0123456789ab")
    assert made == tmp_path / "nets-receptive_field-seed=1-0123456789ab.nc"
    (tmp_path / "nets-0123456789ab.parts").mkdir()
    (tmp_path / "other-ba9876543210.nc").touch()
    (tmp_path / ".hidden-0123456789ab.nc").touch()  # collect does not see it
    assert result_path(tmp_path, "nets", "x", [], "0123456789ab") == tmp_path / "nets-0123456789ab.nc"
    (tmp_path / "found-0123456789ab.nc").touch()
    assert result_path(tmp_path, "nets", "x", [], "0123456789ab") == tmp_path / "found-0123456789ab.nc"


def test_what_names_leave_out() -> None:
    typed = [
        "task=unet", "task.volumes=/a/b", "task.epochs=8", "+extractor.cap=4", "extractor=whole_tensor", "output=x",
        "tile=[4,4]", "~measure.roughness", "seed=1", "seed=2", "+labeler@measure.davies_bouldin.labeler=kmeans",
        "experiment=quick",
    ]  # fmt: skip
    assert shown_overrides(typed, ["output", "tile"]) == [
        "cap=4", "epochs=8", "experiment=quick", "labeler@measure.davies_bouldin.labeler=kmeans", "roughness=",
        "seed=2",
    ]  # fmt: skip


@given(st.lists(st.text(max_size=300), min_size=1, max_size=8))
def test_names_are_safe_and_bounded(parts: list[str]) -> None:
    name = readable_name(parts)
    assert name
    assert len(name.encode()) <= 120
    assert not name.startswith((".", "-"))
    assert all(character.isalnum() or character in "_.=+-" for character in name if character.isascii())
    assert name.splitlines() == [name]


def test_names_of_odd_settings(run: Callable[..., str], tmp_path: Path) -> None:
    long = ",".join([*["fc1"] * 40, "fc2"])
    run("measure=[davies_bouldin]", f"layers=[{long}]", "seed=3")
    (path,) = tmp_path.glob("results/*.nc")
    assert len(path.name.encode()) < 160
    assert "seed=3" in path.name


# Measures in several settings ---------------------------------------------------------------------------------


def test_a_measure_in_several_settings(run: Callable[..., str], tmp_path: Path) -> None:
    """By a package of Hydra's, and by a file in the user's conf/measure."""
    (tmp_path / "conf" / "measure").mkdir(parents=True)
    (tmp_path / "conf" / "measure" / "rough3.yaml").write_text(
        "# @package measure.rough3\n_target_: genmeasures.measures.Roughness\nspread: rms\n"
    )
    given = ("measure=[roughness,rough3]", "+measure@measure.rough8=roughness", "measure.rough8.labeler.k=8")
    out = run(*given, "figures=true")
    (path,) = tmp_path.glob("results/*.nc")
    ds = load(path)
    variables = [name + end for name in ("roughness", "rough3", "rough8") for end in ("", "_projected")]
    assert measure_variables(ds) == variables
    assert "spread='rms'" in ds["rough3"].attrs["measure"]
    assert "k=8" in ds["rough8"].attrs["measure"]
    assert "rough8" in out
    assert path.with_suffix(".png").is_file()
    assert "exists already" not in run(*given[:2], "measure.rough8.labeler.k=4")
    assert len(list(tmp_path.glob("results/*.nc"))) == 2
    assert main(["collect", "results"]) == 0
    table = pd.read_csv(tmp_path / "results" / "collected" / "by_run.csv")
    assert sorted(set(table["rough8.labeler.k"])) == [4, 8]
    assert set(table["measure"]) == set(variables)


# Settings -----------------------------------------------------------------------------------------------------


def test_settings_of_a_result(run: Callable[..., str], tmp_path: Path) -> None:
    run("measure=[roughness]", "+measure@measure.rough8=roughness", "measure.rough8.labeler.k=8", "layers=[0]")
    (path,) = tmp_path.glob("results/*.nc")
    found = run_settings(load(path))
    expected = {
        "extractor": "ReceptiveField", "extractor.cap": "80000", "extractor.tap": "activation", "layers": "[0]",
        "roughness": "Roughness", "roughness.labeler": "KMeans", "roughness.labeler.k": "5", "rough8.labeler.k": "8",
        "rough8.spread": "mean", "seed": "0",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_only_what_differs() -> None:
    runs = [
        {"extractor": "A", "extractor.cap": "4", "m": "M", "m.k": "5", "seed": "0"},
        {"extractor": "A", "extractor.cap": "8", "m": "M", "m.k": "5", "seed": "1"},
        {"extractor": "B", "n": "N", "n.k": "1", "seed": "1", "layers": "[0]"},
    ]
    assert differing(runs) == ["extractor", "extractor.cap", "layers", "seed"]
    assert differing(runs[:1]) == []


# One table ----------------------------------------------------------------------------------------------------


def judged(values: dict[str, float]) -> pd.DataFrame:
    rows = [
        {"measure": name, "against": "test_accuracy", "pearson": value, "spearman": value / 2}
        for name, value in values.items()
    ]
    return pd.DataFrame(rows).assign(kendall=np.nan, pgdl=0.0)


def test_mean_and_spread_are_those_of_pandas() -> None:
    rng = np.random.default_rng(0)
    plain = [
        {"extractor": extractor, "seed": str(seed), "m": value, "n": -value}
        for extractor in ("a", "b")
        for seed in range(4)
        for value in [rng.normal()]
    ]
    runs = [
        JudgedRun(
            {name: str(one[name]) for name in ("extractor", "seed")} | {"cap": "3"},
            9,
            judged({"m": one["m"], "n": one["n"]}),
        )
        for one in plain
    ]
    table = by_run(runs).set_index(["extractor", "measure"])
    assert list(by_run(runs).columns[:2]) == ["extractor", "seeds"]
    grouped = pd.DataFrame(plain).groupby("extractor")
    for name in ("m", "n"):
        found = table.xs(name, level="measure")
        np.testing.assert_allclose(found["pearson"], grouped[name].mean(), rtol=1e-12)
        np.testing.assert_allclose(found["pearson_sd"], grouped[name].std(), rtol=1e-12)
        np.testing.assert_allclose(found["spearman"], grouped[name].mean() / 2, rtol=1e-12)
    assert (table["seeds"] == 4).all()
    assert (table["pearson_n"] == 4).all()
    assert (table["kendall_n"] == 0).all()
    assert table["kendall"].isna().all()


def test_runs_that_share_a_seed_count_once() -> None:
    """They differ in their measures, which is no setting of a measure that both have."""
    runs = [
        JudgedRun({"m": "M", "seed": "0"}, 9, judged({"m": 0.2})),
        JudgedRun({"m": "M", "n": "N", "seed": "0"}, 9, judged({"m": 0.2, "n": 0.1})),
        JudgedRun({"m": "M", "seed": "1"}, 9, judged({"m": 0.6})),
    ]
    found = by_run(runs).set_index("measure").loc["m"]
    assert (found["seeds"], found["pearson_n"]) == (2, 2)
    assert found["pearson"] == pytest.approx(0.4)
    assert found["pearson_sd"] == pytest.approx(np.std([0.2, 0.6], ddof=1))


def test_tables_of_several_aggregators_lie_side_by_side(run: Callable[..., str], tmp_path: Path) -> None:
    run("measure=[davies_bouldin]", "-m", "aggregator=mean,max,frobenius")
    (path,) = (tmp_path / "results").glob("*.nc")
    tables = sorted(one.name.removeprefix(path.stem) for one in path.parent.glob("*-judged.csv"))
    assert tables == ["-judged.csv", "-max-judged.csv", "-mean-judged.csv"]


def test_the_labeler_of_a_measure_is_a_choice(run: Callable[..., str], tmp_path: Path) -> None:
    run("measure=[roughness]", "labeler@measure.roughness.labeler=class_label")
    (path,) = (tmp_path / "results").glob("*.nc")
    assert "Roughness(labeler=ClassLabel()" in load(path).attrs["settings"]


def test_a_seed_without_a_value_and_one_alone(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        JudgedRun({"x": "a", "seed": "0"}, 9, judged({"m": 0.5, "n": np.nan})),
        JudgedRun({"x": "a", "seed": "1"}, 8, judged({"m": np.nan, "n": np.nan})),
        JudgedRun({"x": "b", "seed": "0"}, 9, judged({"n": -0.001})),
    ]
    table = by_run(runs)
    first = table[(table["x"] == "a") & (table["measure"] == "m")].iloc[0]
    assert (first["seeds"], first["pearson_n"], first["pearson"], first["models"]) == (2, 1, 0.5, "8–9")
    assert np.isnan(first["pearson_sd"])
    console = Console(width=100)
    render_by_run(table, "Mean()", console)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("  a ")] == [["a", "2", "8–9", "0.50", "(1)", "–"]]
    assert [line.split() for line in lines if line.startswith("  b ")] == [["b", "1", "9", "0.00"]]


@pytest.fixture
def swept(run: Callable[..., str], tmp_path: Path) -> Path:
    """2 numbers of clusters × 2 seeds."""
    run("measure=[roughness]", "-m", "seed=0,1", "measure.roughness.labeler.k=3,5")
    return tmp_path / "results"


def test_a_sweep_is_collected(swept: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["collect", "results", "--aggregator", "last_k", "k=1", "--against", "number"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("4 runs\n")
    assert "Pearson's correlation with number, LastK(k=1)" in out
    assert "columns left out: file" in out
    index = pd.read_csv(swept / "collected" / "runs.csv")
    assert list(index.columns) == ["run", "task", "models", "roughness.labeler.k", "seed", "file"]
    assert sorted(index["file"]) == sorted(path.name for path in swept.glob("*.nc"))
    assert len(index.groupby(["roughness.labeler.k", "seed"])) == 4

    # Against the files themselves, judged one by one.
    table = pd.read_csv(swept / "collected" / "by_run.csv")
    assert table["roughness.labeler.k"].tolist() == [3, 3, 5, 5]
    for _, row in table.iterrows():
        values = []
        for name in index[index["roughness.labeler.k"] == row["roughness.labeler.k"]]["file"]:
            judged = judge(aggregate(load(swept / name), "last_k", k=1), "number", resamples=1)
            values.append(float(judged.set_index("measure")["pearson"][row["measure"]]))
        assert row["pearson"] == pytest.approx(np.mean(values), abs=1e-12)
        assert row["pearson_sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
        assert row["seeds"] == 2
        assert f"{row['pearson']:.2f} ± {row['pearson_sd']:.2f}" in out

    assert main(["collect", "results", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert len(found["runs"]) == 4
    assert {row["against"] for row in found["by_run"]} == {"test_accuracy", "generalization_gap"}
    assert {row["roughness.labeler.k"] for row in found["by_run"]} == {"3", "5"}


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_cut(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the width: measures are left out whole, and named."""
    names = [f"measure_number_{number}" for number in range(8)]
    runs = [
        JudgedRun({"extractor": kind, "seed": str(seed)}, 9, judged(dict.fromkeys(names, -0.625 + seed / 8)))
        for kind in ("receptive_field", "whole_tensor")
        for seed in range(3)
    ]
    render_by_run(by_run(runs), "Mean()", Console(width=width))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in lines)
    told = " ".join(lines).partition("columns left out: ")[2]
    left = [name for name in names if name in told]
    assert (len(left) > 0) == (width < 200)
    shown = len(names) - len(left)
    assert " ".join(lines).count("-0.50") == 2 * shown  # the mean of −0.625, −0.5 and −0.375
    assert " ".join(lines).count("± 0.12") == 2 * shown
    assert shown >= 1


def test_few_runs_have_their_whole_tables(run: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    run("measure=[davies_bouldin]", "seed=0,1", "-m")
    assert main(["collect", "results"]) == 0
    out = capfd.readouterr().out
    assert out.count("Against test_accuracy") == 2
    lines = out.splitlines()
    (start,) = [place for place, line in enumerate(lines) if line.startswith("Pearson's correlation with test_acc")]
    assert lines[start + 2].split() == ["seeds", "models", "davies_bouldin"]
    assert lines[start + 4].split()[:2] == ["2", "3"]


@pytest.fixture(scope="module")
def one_result(tmp_path_factory: pytest.TempPathFactory, folders: Any) -> Path:
    """A folder with the result of one run, which is only read."""
    folder = tmp_path_factory.mktemp("one_result")
    nets = folders.write_task(folder / "nets", {f"n{number}": number for number in range(3)}, module="sweeps_of_one")
    task = ("task=checkpoints", f"task.path={nets}", "figures=false", f"output={folder / 'results'}")
    assert main(["run", *task, "measure=[davies_bouldin]", "layers=[0]"]) == 0
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--aggregator", "lastk"], "there is no aggregator 'lastk' (did you mean 'last_k'?"),
        (["--aggregator", "last_k", "n=2"], "the aggregator 'last_k' has no option 'n'"),
        (["--aggregator", "last_k", "2"], "'2': an option must be of the form OPTION=VALUE"),
        (["--aggregator", "last_k", "k=[1"], "'k=[1': the value cannot be read"),
        (["--aggregator", "single"], "the aggregator 'single' needs the option 'layer'"),
        (["--against", "test_acuracy"], "test_acuracy"),
    ],
)
def test_options_of_collect_that_are_wrong(
    one_result: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(one_result)
    assert main(["collect", "results", *arguments]) == 1
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
