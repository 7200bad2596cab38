"""The task that trains its own networks: its grid, its data, and what it keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch import nn

import genmeasures
from genmeasures.errors import ModelError, OptionError
from genmeasures.interfaces import TaskModel
from genmeasures.tasks import DigitsCNN, digits_training
from genmeasures.tasks.cnn import SmallCNN
from genmeasures.tasks.digits import split_digits, training_set
from genmeasures.tasks.digits_cnn import LEVELS, grid
from genmeasures.tasks.digits_training import Job, Recipe, train_all

ROOT = Path(genmeasures.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the first two networks of the grid are trained."""
    folder = tmp_path_factory.mktemp("cache")
    DigitsCNN(cache=str(folder), workers=1, limit=2).models()
    return folder


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def weights(models: Sequence[TaskModel]) -> dict[str, torch.Tensor]:
    return {f"{m.name}/{key}": value for m in models for key, value in m.build().state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# The grid


def test_grid_is_complete_and_without_repeats() -> None:
    combinations = [astuple(hparams) for hparams in grid()]
    assert len(combinations) == 128
    assert set(combinations) == set(product(*LEVELS.values()))
    assert len({hparams.name for hparams in grid()}) == 128


@pytest.mark.parametrize("first", [8, 16, 32])
def test_the_first_few_vary_every_hyperparameter(first: int) -> None:
    for values in zip(*map(astuple, grid()[:first]), strict=True):
        assert min(Counter(values).values()) >= first // 8
        assert len(set(values)) == 2


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_architecture_has_the_layers_asked_for(depth: int, batch_norm: bool) -> None:
    model = SmallCNN(6, depth, dropout=0.3, batch_norm=batch_norm)
    kinds = Counter(type(module) for module in model.modules())
    assert kinds[nn.Conv2d] == depth
    assert kinds[nn.BatchNorm2d] == depth * batch_norm
    assert kinds[nn.MaxPool2d] == 1
    assert kinds[nn.Linear] == 2
    assert model.dropout.p == 0.3
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


# The data


def test_split_has_every_digit_once_and_each_class_in_proportion() -> None:
    (x_train, y_train), (x_test, y_test) = split_digits()
    assert x_test.shape == (600, 1, 8, 8)
    # Otherwise torch takes the channel to come last, and rounds differently from arrays that were copied.
    assert all(torch.from_numpy(x).stride() == (64, 64, 8, 1) for x in (x_train, x_test))
    assert x_train.dtype == np.float32
    assert y_train.dtype == np.int64
    source = load_digits()
    expected = Counter((image.tobytes(), int(label)) for image, label in zip(source.images, source.target, strict=True))
    parts = [(x_train, y_train), (x_test, y_test)]
    found = Counter(
        ((p[0] * 16.0).astype(float).tobytes(), int(label)) for x, y in parts for p, label in zip(x, y, strict=True)
    )
    assert found == expected
    shares = np.bincount(source.target) / len(source.target)
    np.testing.assert_allclose(np.bincount(y_test) / 600, shares, atol=0.002)


def test_training_and_test_digits_are_disjoint(cache: Path) -> None:
    task = DigitsCNN(cache=str(cache), limit=2)
    x_train, y_train = task.data("train")
    x_test, _ = task.data("test")
    assert len(x_train) == len(y_train) == 320
    # The source has no two digits alike, so images in common would be the same digit.
    assert not {p.tobytes() for p in x_train} & {p.tobytes() for p in x_test}


@pytest.mark.parametrize("size", [80, 320, 1000])
@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5])
def test_share_of_wrong_labels_is_right(size: int, noise: float) -> None:
    train, _ = split_digits()
    x, y = training_set(train, size, noise)
    assert (y != train[1][:size]).sum() == round(noise * size)
    assert set(y) <= set(range(10))
    np.testing.assert_array_equal(x, train[0][:size])


def test_training_sets_are_nested_and_leave_the_source_alone() -> None:
    train, _ = split_digits()
    before = train[1].copy()
    small, large = training_set(train, 80, 0.2), training_set(train, 320, 0.2)
    np.testing.assert_array_equal(small[0], large[0][:80])
    np.testing.assert_array_equal(train[1], before)
    less = training_set(train, 320, 0.1)[1] != before[:320]
    assert ((large[1] != before[:320]) >= less).all()


def test_unknown_split() -> None:
    with pytest.raises(OptionError, match="did you mean 'train'"):
        DigitsCNN().data("trian")  # type: ignore[arg-type]


# The models


def test_metrics_are_those_of_the_weights_on_their_own_data(cache: Path) -> None:
    task = DigitsCNN(cache=str(cache), limit=2)
    x_test, y_test = task.data("test")
    for model in task.models():
        network = model.build()
        assert not network.training
        for (x, y), name in ((model.train, "train_accuracy"), ((x_test, y_test), "test_accuracy")):
            with torch.no_grad():
                predicted = network(torch.from_numpy(x)).numpy().argmax(1)
            assert model.metrics[name] == pytest.approx(np.mean(predicted == y))
        assert len(model.train[0]) == model.hparams["train_size"]
        assert model.metrics["test_accuracy"] > 0.3
        assert list(model.hparams) == list(LEVELS)


def test_what_is_there_is_not_trained_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in files(cache)}
    assert len(before) == 2
    monkeypatch.setattr(digits_training, "_train", None)
    assert len(DigitsCNN(cache=str(cache), limit=2).models()) == 2
    assert {path: path.stat().st_mtime_ns for path in files(cache)} == before


def test_weights_do_not_depend_on_the_workers(cache: Path, tmp_path: Path) -> None:
    alone = weights(DigitsCNN(cache=str(cache), workers=1, limit=2).models())
    together = weights(DigitsCNN(cache=str(tmp_path), workers=2, limit=2).models())
    assert len(files(tmp_path)) == 2
    assert same(alone, together)


def test_training_here_leaves_torch_as_it_was(cache: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        with torch.no_grad():
            models = DigitsCNN(cache=str(tmp_path), workers=1, limit=1).models()
        models[0].build()
        assert torch.equal(torch.rand(3), expected)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert same(weights(models), weights(DigitsCNN(cache=str(cache), limit=1).models()))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_content(path: Path) -> None:
    torch.save({"state_dict": {}, "metrics": {"train_accuracy": 1.0, "test_accuracy": 1.0}}, path)


@pytest.mark.parametrize("damage", [truncate, flip_a_weight, empty, other_content])
def test_damaged_file_is_trained_again(damage: object, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = DigitsCNN(cache=str(cache), workers=1, limit=2)
    models = task.models()
    expected = weights(models)
    victim, other = files(cache)
    untouched = other.stat().st_mtime_ns
    damage(victim)  # type: ignore[operator]
    with pytest.raises(ModelError, match=victim.name):
        next(model for model in models if model.name == victim.stem).build()
    assert same(weights(task.models()), expected)
    assert other.stat().st_mtime_ns == untouched
    assert files(cache) == [victim, other]


def test_another_recipe_is_kept_elsewhere(tmp_path: Path) -> None:
    task = DigitsCNN(cache=str(tmp_path))
    train, test = split_digits()
    folder = task._folder(Recipe(), train, test)
    assert folder == task._folder(Recipe(), train, test)
    assert folder.parent == tmp_path / "digits_cnn"
    assert folder != task._folder(Recipe(steps=1), train, test)
    assert folder != task._folder(Recipe(version=0), train, test)
    assert folder != task._folder(Recipe(), (train[0], train[1][::-1].copy()), test)


def test_default_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = split_digits()
    monkeypatch.setenv("GENMEASURES_CACHE", str(tmp_path))
    assert DigitsCNN()._folder(Recipe(), train, test).is_relative_to(tmp_path)
    monkeypatch.delenv("GENMEASURES_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert DigitsCNN()._folder(Recipe(), train, test).is_relative_to(tmp_path / "home" / ".cache/genmeasures")


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OptionError, match=r"cannot write .*file/digits_cnn.*GENMEASURES_CACHE"):
        DigitsCNN(cache=str(tmp_path / "file"), limit=1).models()


def test_failure_in_a_worker_arrives_here(tmp_path: Path) -> None:
    train, test = split_digits()
    jobs = [Job(tmp_path / "absent" / "network.pt", grid()[0], Recipe(steps=11), train, test)]
    with pytest.raises(OptionError, match=r"cannot write .*absent"):
        train_all(jobs, 2, "Training")


# The options


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 1.5}, {"limit": 0}, {"limit": True}, {"cache": ""}])
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=f"DigitsCNN: {next(iter(options))}"):
        DigitsCNN(**options)  # type: ignore[arg-type]


def test_config_has_every_option_with_its_default() -> None:
    config = OmegaConf.load(ROOT / "genmeasures/conf/task/digits_cnn.yaml")
    task = instantiate(config)
    assert isinstance(task, DigitsCNN)
    assert task.options() == DigitsCNN().options()
    assert set(config) == {"_target_", *task.options()}
    assert task.clone().options() == task.options()
