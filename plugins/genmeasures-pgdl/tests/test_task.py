"""PGDL tasks on disk: the supported layouts, damaged files, and a run."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from genmeasures_pgdl import PGDL
from genmeasures_pgdl.network import build_network
from genmeasures_pgdl.writer import write_model, write_model_configs, write_split

import genmeasures
from genmeasures.plugin import DataError, OptionError

IDS = ("3", "20", "100", "7")


def config(width: int) -> dict[str, Any]:
    return {
        "model_config": [
            {"layer_name": "Conv2D", "filters": width, "kernel_size": 3, "padding": "same", "activation": "relu"},
            {"layer_name": "Flatten"},
            {"layer_name": "Dense", "units": 3},
        ],
        "input_shape": [4, 4, 2],
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of four models with random weights."""
    folder = tmp_path_factory.mktemp("tasks") / "task1_v4"
    generator = torch.Generator().manual_seed(0)
    hparams, metrics = {}, {}
    for place, number in enumerate(IDS):
        width = 2 + 2 * (place // 2)
        networks = []
        for _ in range(2):
            network = build_network(config(width)).module.to_empty(device="cpu")
            for value in network.parameters():
                value.data = torch.randn(value.shape, generator=generator)
            networks.append(network)
        write_model(folder / f"model_{number}", config(width), *networks)
        hparams[number] = {"width": width, "dropout": 0.5 * (place % 2)}
        metrics[number] = {"train_accuracy": 0.9 + 0.01 * place, "test_accuracy": 0.8, "test_loss": 0.5}
    write_model_configs(folder / "model_configs.json", hparams, metrics)
    for split, number in (("train", 50), ("test", 30)):
        x = torch.randn((number, 2, 4, 4), generator=generator)
        write_split(folder / "dataset_1" / split, x, torch.arange(number) % 3, per_shard=20)
    return folder


@pytest.fixture
def task(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "task1_v4"))


def zipped(archive: Path, folder: Path, inside: str) -> Path:
    with zipfile.ZipFile(archive, "w") as made:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                made.write(file, f"{inside}/{file.relative_to(folder)}")
    return archive


def check(read: PGDL) -> None:
    models = read.models()
    assert [one.name for one in models] == ["model_3", "model_7", "model_20", "model_100"]
    assert dict(models[1].hparams) == {"width": 4, "dropout": 0.5}
    assert dict(models[0].metrics) == {"train_accuracy": 0.9, "test_accuracy": 0.8, "test_loss": 0.5}
    x, y = read.data("train")[21]
    assert x.shape == (2, 4, 4)
    assert int(y) == 0
    assert len(read.data("test")) == 30
    assert read.model(20)(x[None]).shape == (1, 3)
    assert not torch.equal(read.model("model_20")(x[None]), read.model(20, initial=True)(x[None]))


def test_a_task_is_found_at_any_supported_path(written: Path, tmp_path: Path) -> None:
    check(PGDL(written))
    check(PGDL(written.parent))
    check(PGDL(str(written.parent), which="task1_v4"))
    # As the archives unpack: data apart from what is known of the models.
    apart = tmp_path / "public"
    shutil.copytree(written, apart / "input_data" / "task1_v4")
    (apart / "reference_data" / "task1_v4").mkdir(parents=True)
    os.replace(
        apart / "input_data" / "task1_v4" / "model_configs.json",
        apart / "reference_data" / "task1_v4" / "model_configs.json",
    )
    for path in (apart, apart / "input_data", apart / "input_data" / "task1_v4"):
        check(PGDL(path))
    for inside in ("public_data", "."):
        archive = zipped(tmp_path / f"a{inside[0]}.zip", apart, inside)
        check(PGDL(archive, cache=str(tmp_path / "cache")))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    check(PGDL(archive, cache=str(tmp_path / "cache")))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}


def test_paths_are_relative_to_the_folder(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(written, tmp_path / "input_data" / "task1_v4")
    (tmp_path / "reference_data" / "task1_v4").mkdir(parents=True)
    configs = "task1_v4/model_configs.json"
    os.replace(tmp_path / "input_data" / configs, tmp_path / "reference_data" / configs)
    for folder, path in (
        ("input_data", "task1_v4"),
        ("input_data/task1_v4", "."),
        ("input_data/task1_v4/model_3", ".."),
    ):
        monkeypatch.chdir(tmp_path / folder)
        check(PGDL(path))
        assert PGDL(path).label == "task1_v4"


def test_several_tasks(written: Path, tmp_path: Path) -> None:
    for name in ("task2_v1", "task4"):
        shutil.copytree(written, tmp_path / name)
    with pytest.raises(OptionError, match="holds the tasks task2_v1, task4: choose one with which="):
        PGDL(tmp_path).models()
    with pytest.raises(OptionError, match=r"no task 'task5' .did you mean 'task4'"):
        PGDL(tmp_path, which="task5").models()
    check(PGDL(tmp_path, which="task4"))


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "C:evil", "..\\evil"])
def test_an_archive_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("task/model_1/config.json", "{}")
        made.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(
        DataError, match=r"a\.zip: the entry .* lies outside the archive's folder .*; nothing is unpacked"
    ):
        PGDL(tmp_path / "a.zip", cache=str(tmp_path / "cache")).models()
    assert not list((tmp_path / "cache" / "pgdl").iterdir())


def test_an_archive_with_a_link_or_damage(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        link = zipfile.ZipInfo("task/model_1/config.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="or is not a file; nothing is unpacked"):
        PGDL(tmp_path / "a.zip", cache=str(tmp_path / "cache")).models()
    (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:40])
    with pytest.raises(DataError, match=r"b\.zip is damaged or not a zip archive"):
        PGDL(tmp_path / "b.zip", cache=str(tmp_path / "cache")).models()
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("task/model_1/config.json", "{}" * 1000)
    content = bytearray((tmp_path / "c.zip").read_bytes())
    content[60] ^= 0xFF
    (tmp_path / "c.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"c\.zip is damaged or not a zip archive"):
        PGDL(tmp_path / "c.zip", cache=str(tmp_path / "cache")).models()
    with pytest.raises(DataError, match=r"cannot unpack .*c\.zip into .*b\.zip"):
        PGDL(tmp_path / "c.zip", cache=str(tmp_path / "b.zip")).models()


def test_paths_without_a_task(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder or zip archive"):
        PGDL(tmp_path / "none").models()
    with pytest.raises(DataError, match="holds no PGDL task"):
        PGDL(tmp_path).models()
    with pytest.raises(OptionError, match="path='' must be the path"):
        PGDL("")


def _configs(task: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = task / "model_configs.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: _configs(t, lambda c: c["7"].pop("metrics")), r"model_configs\.json: metrics is missing"),
        (lambda t: _configs(t, lambda c: c["7"]["metrics"].pop("test_acc")), "test_acc must be a number, got nothing"),
        (lambda t: _configs(t, lambda c: c["7"]["metrics"].update(test_acc="x")), "test_acc must be a number, got 'x'"),
        (lambda t: _configs(t, lambda c: c["7"].pop("hparams")), "hparams is missing"),
        (lambda t: _configs(t, lambda c: c["7"]["hparams"].update(width=[])), "'width' has no current_value"),
        (lambda t: _configs(t, lambda c: c.pop("7")), r"model_configs\.json: the model is missing"),
        (lambda t: (t / "model_7" / "config.json").write_text("{"), r"config\.json is not valid JSON"),
        (lambda t: (t / "model_7" / "config.json").write_text(json.dumps(config(3))), r"kernel must have the shape"),
        (
            lambda t: (t / "model_7" / "weights.hdf5").write_bytes(b"\x89HDF"),
            "is damaged or not an HDF5 file",
        ),
        (lambda t: (t / "model_7" / "weights.hdf5").unlink(), "there is no file"),
    ],
)
def test_a_damaged_model_does_not_affect_the_others(task: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(task)
    read = PGDL(task)
    ds = genmeasures.measure(read, measures=["roughness"])
    assert ds["model"].values.tolist() == ["model_3", "model_7", "model_20", "model_100"]
    status = ds["model_status"].values.tolist()
    assert [not one.startswith("failed") for one in status] == [True, False, True, True]
    assert "task task1_v4, model_7: " in status[1]
    assert message.replace("\\", "") in status[1]
    assert np.isfinite(ds["roughness"].isel(model=[0, 2, 3], layer=0)).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: (t / "model_configs.json").unlink(), r"model_configs\.json: No such file"),
        (lambda t: (t / "model_configs.json").write_text("[]"), "must hold a JSON object with one entry per model"),
        (lambda t: (t / "model_configs.json").write_text('{"3": {}, "3": {}}'), "duplicate key '3'"),
        (lambda t: (t / "model_configs.json").write_text('{"3": {}, "model_3": {}}'), "duplicate key '3'"),
        (lambda t: (t / "model_configs.json").write_text("[" * 100_000), "is not valid JSON"),
        (lambda t: shutil.rmtree(t / "model_20"), "has the model 20, but there is no folder for it"),
    ],
)
def test_a_damaged_task(task: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(task)
    with pytest.raises(DataError, match=message):
        PGDL(task).models()


def test_damaged_data(task: Path) -> None:
    shard = task / "dataset_1" / "train" / "shard_1.tfrecord"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"shard_1\.tfrecord.*record"):
        genmeasures.measure(PGDL(task), measures=["davies_bouldin"])
    shard.unlink()
    with pytest.raises(DataError, match=r"task task1_v4: .*shard_1"):
        PGDL(task).data("train")
