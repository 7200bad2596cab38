"""UNet tasks: training, checkpoints, data, and a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from genmeasures_unet import UNetDenoising, UNetSegmentation
from genmeasures_unet import task as task_module
from genmeasures_unet.assembly import predict_volume, probabilities
from genmeasures_unet.shifts import Shift

import genmeasures
from genmeasures.plugin import DataError, ModelError, OptionError, load_checkpoint, save_checkpoint, temporary_path


def balls(path: Path, count: int = 10, size: int = 20, classes: int = 2) -> Path:
    """Images uint8 with noise and a bright disc for each class, in an .npz."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    x, y = np.zeros((2, count, size, size), dtype=np.uint8)
    for number in range(count):
        for label in range(1, classes):
            row, column = generator.uniform(4, size - 4, size=2)
            y[number][(rows - row) ** 2 + (columns - column) ** 2 < 20] = label
        x[number] = np.clip(60 + 80.0 * y[number] + 15 * generator.standard_normal((size, size)), 0, 255)
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("unets")
    balls(made / "balls.npz")
    return made


def small(folder: Path, **options: Any) -> dict[str, Any]:
    given = {"volumes": folder / "balls.npz", "patch": [8, 8], "depth": 2, "epochs": 2, "epoch_size": 24}
    return {**given, "patches": 30, "cache": str(folder / "cache"), "workers": 1, **options}


@pytest.fixture(scope="module")
def task(folder: Path) -> UNetSegmentation:
    """Two objectives and two seeds of two epochs each, trained."""
    made = UNetSegmentation(**small(folder, objectives=["mse", "dice"], seeds=[0, 3]))
    made.models()
    return made


def test_models_are_objectives_by_seeds_by_epochs(task: UNetSegmentation) -> None:
    models = task.models()
    assert [model.name for model in models] == [
        f"{objective}_seed{seed}_epoch0{epoch}" for objective in ("mse", "dice") for seed in (0, 3) for epoch in (1, 2)
    ]
    assert dict(models[3].hparams) == {"objective": "mse", "seed": 3, "epoch": 2}
    for model in models:
        assert next(iter(model.metrics)) == "test_iou"
        assert set(model.metrics) == {"test_iou", "test_dice", "train_iou", "train_dice", "train_loss"}
        assert not model.build().training


def test_trained_networks_are_not_trained_again(task: UNetSegmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "train", lambda *_: pytest.fail("it is trained again"))
    assert len(task.models()) == 8


def test_more_epochs_resume_training(task: UNetSegmentation, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("epoch*.pt")}
    longer = UNetSegmentation(**small(folder, objectives=["mse"], epochs=3))
    assert len(longer.models()) == 3
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("epoch*.pt")}
    assert {path: after[path] for path in before} == before
    assert {path.name for path in after if path not in before} == {"epoch003.pt"}


def test_processes_give_the_same_networks(task: UNetSegmentation, folder: Path) -> None:
    options = small(folder, objectives=["mse", "dice"], cache=str(folder / "parallel"), workers=2)
    alone = task.models()
    for mine, theirs in zip(UNetSegmentation(**options).models(), [*alone[:2], *alone[4:6]], strict=True):
        assert mine.name == theirs.name
        assert mine.metrics == theirs.metrics
        first, second = mine.build().state_dict(), theirs.build().state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_epochs_can_be_thinned_out(task: UNetSegmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "train", lambda *_: pytest.fail("it is trained again"))
    thinned = UNetSegmentation(**{**task.options(), "every": 2})
    assert [model.hparams["epoch"] for model in thinned.models()] == [2] * 4
    epochs = {every: list(UNetSegmentation(epochs=7, every=every)._listed) for every in (1, 2, 3, 7, 9)}
    assert epochs == {1: [1, 2, 3, 4, 5, 6, 7], 2: [1, 3, 5, 7], 3: [1, 4, 7], 7: [7], 9: [7]}


def test_networks_can_learn_from_few_cases(task: UNetSegmentation, folder: Path) -> None:
    made = UNetSegmentation(**small(folder, objectives=["dice"], train_cases=[4, 2], epochs=1))
    models = made.models()
    assert [model.name for model in models] == [f"dice_train_cases{number}_seed0_epoch01" for number in (2, 4)]
    assert dict(models[0].hparams) == {"objective": "dice", "train_cases": 2, "seed": 0, "epoch": 1}
    assert len({path.parent.parent for path in folder.rglob("cache/**/epoch001.pt")}) == 1  # beside all other networks
    cases = made.cases()
    for model, members in zip(models, (cases.train[:2], cases.train[:4]), strict=True):
        windows = {
            case.image[0, i : i + 8, j : j + 8].tobytes() for case in members for i in range(13) for j in range(13)
        }
        assert all(patch[0].tobytes() in windows for patch in model.train[0])
    assert not np.array_equal(models[0].train[0], models[1].train[0])
    first, second, whole = (
        model.build().state_dict() for model in (*models, *(m for m in task.models() if m.name == "dice_seed0_epoch01"))
    )
    assert not torch.equal(first["head.weight"], second["head.weight"])
    assert not torch.equal(first["head.weight"], whole["head.weight"])
    # All of the training cases are the default.
    full = UNetSegmentation(**small(folder, objectives=["dice"], train_cases=[8], epochs=1)).models()[0].build()
    assert torch.equal(full.state_dict()["head.weight"], whole["head.weight"])


def test_test_cases_can_be_shifted(task: UNetSegmentation, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "train", lambda *_: pytest.fail("it is trained again"))
    made = UNetSegmentation(**{**task.options(), "shift": "noise", "strength": 2.0})
    shift = Shift("noise", 2.0)
    models = made.models()
    for model, before in zip(models, task.models(), strict=True):
        assert next(iter(model.metrics)) == "test_iou"
        kept = {name: value for name, value in before.metrics.items() if not name.startswith("test")}
        given = {f"unshifted_{name}": before.metrics[f"test_{name}"] for name in ("iou", "dice")}
        assert {name: model.metrics[name] for name in (*kept, *given)} == {**kept, **given}
        assert set(model.metrics) == {*kept, *given, "test_iou", "test_dice"}
    network = models[-1].build()
    scores = []
    for case in made.cases().test:
        image = torch.from_numpy(shift.apply(case).image)
        found = predict_volume(network, image, (8, 8), overlap=0.25, output=probabilities)[0].numpy() > 0.5
        scores.append((found & (case.mask == 1)).sum() / (found | (case.mask == 1)).sum())
    assert models[-1].metrics["test_iou"] == pytest.approx(np.mean(scores), abs=1e-6)

    monkeypatch.setattr(task_module, "score_shifted", lambda *_: pytest.fail("it is scored again"))
    assert [model.metrics for model in made.models()] == [model.metrics for model in models]
    assert all(np.array_equal(a, b) for a, b in zip(made.data("train"), task.data("train"), strict=True))
    (x, y), (shifted, same) = task.data("test"), made.data("test")
    assert np.array_equal(y, same)
    windows = {
        shift.apply(case).image[0, i : i + 8, j : j + 8].tobytes()
        for case in made.cases().test
        for i in range(13)
        for j in range(13)
    }
    assert all(patch[0].tobytes() in windows for patch in shifted)
    assert not np.array_equal(x, shifted)


def test_networks_that_changed_are_scored_again(tmp_path: Path) -> None:
    balls(tmp_path / "balls.npz")
    options = small(tmp_path, objectives=["mse"], epochs=1, shift="contrast", strength=3.0)
    first = UNetSegmentation(**options).models()[0].metrics
    (checkpoint,) = tmp_path.rglob("epoch001.pt")
    content = load_checkpoint(checkpoint)
    content["state_dict"]["head.bias"] += 100  # foreground everywhere
    save_checkpoint(checkpoint, content)
    again = UNetSegmentation(**options)
    share = np.mean([case.mask.mean() for case in again.cases().test])
    assert again.models()[0].metrics["test_iou"] == pytest.approx(share)
    assert first["test_iou"] != again.models()[0].metrics["test_iou"]


def test_cases_are_split_once(task: UNetSegmentation) -> None:
    cases = task.cases()
    names = [case.name for case in (*cases.train, *cases.test)]
    assert (len(cases.train), len(cases.test)) == (8, 2)
    assert len(set(names)) == 10
    other = UNetSegmentation(**{**task.options(), "objectives": ["bce"], "patches": 3, "width": 16})
    assert [case.name for case in other.cases().test] == [case.name for case in cases.test]


def test_patches_are_of_the_split_and_spread_over_the_groups(task: UNetSegmentation) -> None:
    for split, members in (("train", task.cases().train), ("test", task.cases().test)):
        x, y = task.data(split)  # type: ignore[arg-type]
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((30, 1, 8, 8), np.float32, (30, 8, 8), np.int64)
        share = y.reshape(30, -1).mean(1)
        groups = [(share == 0).sum(), ((share > 0) & (share <= 0.15)).sum(), (share > 0.15).sum()]
        assert groups == [10, 10, 10]
        windows = {
            case.image[0, i : i + 8, j : j + 8].tobytes() for case in members for i in range(13) for j in range(13)
        }
        assert all(patch[0].tobytes() in windows for patch in x)
    again, _ = task.data("train")
    assert np.array_equal(again, task.data("train")[0])


def test_all_measures_with_both_extractors(task: UNetSegmentation) -> None:
    for extractor in ("receptive_field", "whole_tensor"):
        made = genmeasures.measure(task, measures=["davies_bouldin", "roughness", "confidence"], extractor=extractor)
        assert made.sizes == {"model": 8, "layer": 5}
        assert made.davies_bouldin.notnull().all()
        assert made.attrs["metric"] == "iou"
        assert np.isfinite(made.test_iou).all()
        np.testing.assert_allclose(made.generalization_gap, made.train_iou - made.test_iou, atol=1e-12)


def test_classes_of_the_masks_are_kept_where_asked(tmp_path: Path) -> None:
    balls(tmp_path / "balls.npz", classes=4)
    made = UNetSegmentation(**small(tmp_path, objectives=["dice_bce"], foreground="classes", epochs=1))
    assert made.models()[0].build().head.out_channels == 4  # type: ignore[union-attr]
    assert set(np.unique(made.data("train")[1])) == {0, 1, 2, 3}


def test_denoising(folder: Path) -> None:
    made = UNetDenoising(**small(folder, train_cases=[4, 1]))
    models = made.models()
    assert [model.name for model in models] == [f"train_cases{n}_seed0_epoch0{e}" for n in (1, 4) for e in (1, 2)]
    assert next(iter(models[0].metrics)) == "test_r2"
    x, y = models[0].train
    assert x.shape == y.shape == (30, 1, 8, 8)
    assert y.dtype == np.float32
    only = made.cases().train[0]
    windows = {only.image[0, i : i + 8, j : j + 8].tobytes() for i in range(13) for j in range(13)}
    assert all(patch[0].tobytes() in windows for patch in y)
    result = genmeasures.measure(made, measures=["davies_bouldin", "roughness"])
    assert result.davies_bouldin.notnull().all()
    assert result.attrs["metric"] == "r2"


def test_a_damaged_checkpoint_does_not_affect_the_others(tmp_path: Path) -> None:
    balls(tmp_path / "balls.npz")
    models = UNetSegmentation(**small(tmp_path, objectives=["mse"])).models()
    next(tmp_path.rglob("epoch002.pt")).write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"epoch002\.pt is damaged.*list the models again"):
        models[1].build()
    assert models[0].build() is not None


def test_the_next_run_removes_files_of_a_killed_one(tmp_path: Path) -> None:
    balls(tmp_path / "balls.npz")
    task = UNetSegmentation(**small(tmp_path, objectives=["mse"], epochs=1))
    task.models()
    (checkpoint,) = tmp_path.rglob("epoch001.pt")
    stale, current = temporary_path(checkpoint), temporary_path(checkpoint)
    for path in (stale, current):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    task.models()
    assert not stale.exists()
    assert current.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": [8]}, "patch="),
        ({"patch": [8, 0]}, "patch="),
        ({"objectives": []}, "objectives="),
        ({"objectives": ["dice", "dice"]}, "has duplicates"),
        ({"objectives": ["dise"]}, "did you mean 'dice'"),
        ({"seeds": [0, 0]}, "has duplicates"),
        ({"seeds": [-1]}, "seeds="),
        ({"seeds": [2**70]}, "seeds="),
        ({"epochs": 0}, "epochs=0"),
        ({"reduce": 0.5}, "reduce=0.5"),
        ({"volumes": ""}, "volumes=''"),
        ({"workers": 0}, "workers=0"),
        ({"foreground": "both"}, "foreground='both'"),
        ({"every": 0}, "every=0"),
        ({"train_cases": []}, "train_cases="),
        ({"train_cases": [4, 4]}, "has duplicates"),
        ({"shift": "blur"}, "shift='blur' is unknown"),
        ({"shift": "noise", "strength": -1}, "strength=-1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        UNetSegmentation(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"noise": 0}, "noise=0"), ({"train_cases": []}, "train_cases="), ({"train_cases": [0]}, "train_cases=")],
)
def test_options_of_denoising_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        UNetDenoising(**options)


def test_volumes_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.npz"):
        UNetSegmentation(tmp_path / "nothing.npz").models()
    balls(tmp_path / "one.npz", count=1)
    with pytest.raises(DataError, match=r"one\.npz: expected at least 2 cases.*got 1"):
        UNetSegmentation(tmp_path / "one.npz").models()
    with np.load(balls(tmp_path / "balls.npz")) as arrays:
        np.savez(tmp_path / "bare.npz", x=arrays["x"])
    with pytest.raises(DataError, match="has no mask: segmentation needs one"):
        UNetSegmentation(**small(tmp_path, volumes=tmp_path / "bare.npz")).models()
    with np.load(tmp_path / "balls.npz") as arrays:
        np.savez(tmp_path / "empty.npz", x=arrays["x"], y=np.zeros_like(arrays["y"]))
        np.savez(tmp_path / "flat.npz", x=np.where(np.arange(10)[:, None, None] == 7, 3, arrays["x"]))
        np.savez(tmp_path / "thin.npz", x=arrays["x"][:, :2])
    with pytest.raises(DataError, match=r"empty\.npz: none of the 8 training cases has any foreground"):
        UNetSegmentation(**small(tmp_path, volumes=tmp_path / "empty.npz")).models()
    with pytest.raises(DataError, match="case 7 is constant"):
        UNetDenoising(**small(tmp_path, volumes=tmp_path / "flat.npz", train_cases=[1])).models()
    with pytest.raises(DataError, match=r"case \d: structural similarity needs"):
        UNetDenoising(**small(tmp_path, volumes=tmp_path / "thin.npz", train_cases=[1])).models()
    with pytest.raises(OptionError, match=r"train_cases must be at most 8.*got 9"):
        UNetDenoising(**small(tmp_path, train_cases=[9])).models()
    with pytest.raises(OptionError, match=r"UNetSegmentation: train_cases must be at most 8.*got 9"):
        UNetSegmentation(**small(tmp_path, train_cases=[9])).models()
    with np.load(tmp_path / "balls.npz") as arrays:
        first = np.random.default_rng(0).permutation(10)[2]
        np.savez(tmp_path / "first.npz", x=arrays["x"], y=arrays["y"] * (np.arange(10) != first)[:, None, None])
    with pytest.raises(DataError, match=r"first\.npz: none of the 1 training cases has any foreground"):
        UNetSegmentation(**small(tmp_path, volumes=tmp_path / "first.npz", train_cases=[4, 1])).models()
    with pytest.raises(DataError, match="2 spatial axes, but the patch size has 3"):
        UNetSegmentation(**small(tmp_path, patch=[8, 8, 8])).models()
    with pytest.raises(OptionError, match="device='warp' cannot be used"):
        UNetSegmentation(**small(tmp_path, device="warp")).models()
