"""``experiment=pgdl``: all tasks of a folder and one table, also if a task is damaged."""

from __future__ import annotations

import itertools
from importlib.metadata import entry_points
from pathlib import Path

import pandas as pd
import pytest
import torch
from genmeasures_pgdl.network import build_network
from genmeasures_pgdl.report import official_scores
from genmeasures_pgdl.writer import write_model, write_model_configs, write_split

from genmeasures.plugin import Frobenius, published_scores

ROOT = Path(__file__).resolve().parents[3]
(SCRIPT,) = entry_points(group="console_scripts", name="genmeasures")


def main(arguments: list[str]) -> int:
    """Run the command ``genmeasures`` in this process."""
    status: int = SCRIPT.load()(arguments)
    return status


def write_task(folder: Path, seed: int) -> None:
    """A 2 × 2 × 2 grid of small networks with random weights, and made-up accuracies."""
    generator = torch.Generator().manual_seed(seed)
    hparams, metrics = {}, {}
    for number, (width, depth, decay) in enumerate(itertools.product((2, 4), (1, 2), (0.0, 0.1))):
        hidden = [{"layer_name": "Dense", "units": width, "activation": "relu"}] * depth
        config = {"model_config": [*hidden, {"layer_name": "Dense", "units": 2}], "input_shape": [3]}
        network = build_network(config).module.to_empty(device="cpu")
        for value in network.parameters():
            value.data = torch.randn(value.shape, generator=generator)
        write_model(folder / f"model_{number}", config, network, network)
        hparams[str(number)] = {"width": width, "depth": depth, "decay": decay}
        metrics[str(number)] = {"train_accuracy": 1.0, "test_accuracy": float(torch.rand((), generator=generator))}
    write_model_configs(folder / "model_configs.json", hparams, metrics)
    for split in ("train", "test"):
        write_split(folder / "dataset_1" / split, torch.randn(60, 3, generator=generator), torch.arange(60) % 2)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for seed, name in enumerate(("mine", "task4")):
        write_task(tmp_path / "tasks" / name, seed)
    return tmp_path / "tasks"


def run(tasks: Path, *more: str) -> int:
    given = [f"task.path={tasks}", "measure=[davies_bouldin,roughness]", f"output={tasks.parent / 'out'}"]
    return main(["run", "experiment=pgdl", *given, "figures=false", *more])


def test_all_tasks_and_one_table(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # outside of the repository
    assert run(tasks) == 0
    shown = capfd.readouterr().out
    assert "s per model, the limit of the competition is 300 s" in shown
    table = pd.read_csv(tasks.parent / "out" / "pgdl.csv", index_col="measure")
    assert list(table.columns) == ["mine", "task4", "mean", "low", "high"]
    ours = table.loc[["davies_bouldin", "roughness"]]
    assert ours[["mine", "task4"]].notna().all(axis=None)
    assert ours["mean"].to_numpy() == pytest.approx(ours[["mine", "task4"]].mean(axis=1).to_numpy())
    assert table.loc["DB × label-wise mixup (winner), as published", "task4"] == 31.79
    assert (tasks.parent / "out" / "pgdl.md").read_text().startswith("| measure | mine | task4 | mean |")


def test_a_damaged_task_leaves_the_others_and_the_table(
    tasks: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (tasks / "mine" / "dataset_1" / "train" / "shard_0.tfrecord").unlink()
    assert run(tasks) == 1
    assert "task mine" in capfd.readouterr().err
    table = pd.read_csv(tasks.parent / "out" / "pgdl.csv", index_col="measure")
    assert "mine" not in table.columns
    assert table.loc["roughness", "task4"] >= 0


def test_chosen_tasks(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert run(tasks, "task.which=task4") == 0
    assert [path.name.split("-")[0] for path in (tasks.parent / "out").glob("*.nc")] == ["task4"]


def test_published_scores() -> None:
    published = published_scores(["task1_v4", "task2_v1", "task9", "task1"])
    assert published.loc["DB × label-wise mixup (winner), as published"].tolist()[:3] == [25.22, 22.19, 25.86]
    assert published["task1"].isna().all()
    assert published.loc["sharpness (baseline), as published"].tolist()[:2] == [0.0, 0.0]
    assert published.loc["sharpness (baseline), as published"].isna()["task9"]
    assert published_scores(["toy"]).empty


def test_results_of_different_settings_have_separate_rows(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tasks / "mine").rename(tasks / "2020")  # a name that Hydra would take for a number
    assert run(tasks) == 0
    assert run(tasks, "seed=1") == 0
    table = pd.read_csv(tasks.parent / "out" / "pgdl.csv", index_col="measure")
    assert {"2020", "task4"} < set(table.columns)
    ours = [name for name in table.index if name.startswith("roughness, ")]
    assert len(ours) == 2
    assert all("seed=" in name for name in ours)


def test_official_scores_leave_out_merged_and_damaged_files(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert run(tasks, "task.which=mine") == 0
    (result,) = (tmp_path / "out").glob("*.nc")
    before, _ = official_scores(result.parent, Frobenius())
    assert main(["collect", str(result.parent), "--output", str(result.parent)]) == 0
    (merged,) = {*result.parent.glob("*.nc")} - {result}
    content = bytearray(result.read_bytes())
    (result.parent / "half.nc").write_bytes(content[: len(content) // 2])
    content[len(content) // 2] ^= 1
    (result.parent / "changed.nc").write_bytes(content)
    scores, remarks = official_scores(result.parent, Frobenius())
    assert f"{merged} is left out: it is merged from other results" in remarks
    for name in ("half.nc", "changed.nc"):
        assert sum(remark.startswith(f"{result.parent / name} is left out: ") for remark in remarks) == 1
    pd.testing.assert_frame_equal(scores, before)
    assert list(scores.columns) == ["mine"]
    assert scores.notna().all(axis=None)


def test_an_experiment_of_the_user_takes_precedence(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "pgdl.yaml").write_text("# @package _global_\nseed: 5\n")
    assert main(["run", "experiment=pgdl", "--cfg", "job"]) == 0
    assert "seed: 5" in capsys.readouterr().out
