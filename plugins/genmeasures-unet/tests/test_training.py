"""Training of UNets: learning, resumption after an interruption, and scores."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from genmeasures_unet.objectives import OBJECTIVES
from genmeasures_unet.problems import Denoising, Problem, Segmentation
from genmeasures_unet.training import Cases, Recipe, TrainingRun, load, metrics, score, train
from genmeasures_unet.volumes import Case
from sklearn.metrics import f1_score, jaccard_score, r2_score
from torch import Tensor

CPU = torch.device("cpu")
RECIPE = Recipe(patch=(12, 12), epoch_size=48, depth=2, learning_rate=0.01)


def discs(count: int, seed: int, classes: int = 2) -> list[Case]:
    """Images 20 × 20 with noise and a bright disc for each class but the background."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:20, :20]
    cases = []
    for number in range(count):
        mask = np.zeros((20, 20), dtype=np.int64)
        for label in range(1, classes):
            y, x = generator.uniform(4, 16, size=2)
            mask[(rows - y) ** 2 + (columns - x) ** 2 < 16] = label
        image = 2.0 * mask + 0.3 * generator.standard_normal(mask.shape)
        cases.append(Case(f"disc{seed}-{number}", image[None].astype(np.float32), mask))
    return cases


CASES = Cases(discs(8, 0), discs(4, 1))


def run_in(folder: Path, problem: Problem | None = None, epochs: int = 3, seed: int = 0) -> TrainingRun:
    folder.mkdir(exist_ok=True)
    return TrainingRun(folder, problem or Segmentation("dice", 2), RECIPE, seed, epochs)


def weights(run: TrainingRun, epoch: int) -> dict[str, Tensor]:
    return load(run, epoch, CASES).state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """A run of three epochs without a break."""
    run = run_in(tmp_path_factory.mktemp("whole"))
    train(run, CASES, CPU)
    return run


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_learns(objective: str, tmp_path: Path) -> None:
    run = run_in(tmp_path, Segmentation(objective, 2), epochs=12)
    train(run, CASES, CPU)
    first, last = metrics(run, 1), metrics(run, 12)
    assert first is not None
    assert last is not None
    assert last["train_loss"] < first["train_loss"]
    assert last["test_iou"] > 0.7


def test_several_classes_are_learnt(tmp_path: Path) -> None:
    cases = Cases(discs(8, 0, 3), discs(4, 1, 3))
    run = run_in(tmp_path, Segmentation("dice_bce", 3), epochs=12)
    train(run, cases, CPU)
    found = metrics(run, 12)
    assert found is not None
    assert found["test_iou"] > 0.7
    assert load(run, 12, cases).head.out_channels == 3


def test_denoising_is_learnt(tmp_path: Path) -> None:
    """Better than the noisy image itself, whose R² is known."""
    problem = Denoising(noise=1.0, train_cases=8)
    run = run_in(tmp_path, problem, epochs=12)
    train(run, CASES, CPU)
    found = metrics(run, 12)
    assert found is not None
    bare = np.mean([r2_score(true.ravel(), noisy.ravel()) for noisy, true in map(problem.example, CASES.test)])
    assert found["test_r2"] > bare + 0.2


def test_an_interruption_changes_nothing(whole: TrainingRun, tmp_path: Path) -> None:
    broken = run_in(tmp_path, epochs=1)
    train(broken, CASES, CPU)
    assert metrics(broken, 2) is None
    longer = replace(broken, epochs=3)
    train(longer, CASES, CPU)
    for epoch in (1, 2, 3):
        assert same(weights(longer, epoch), weights(whole, epoch))
        assert metrics(longer, epoch) == metrics(whole, epoch)


def test_an_interruption_between_checkpoint_and_state_changes_nothing(whole: TrainingRun, tmp_path: Path) -> None:
    broken = run_in(tmp_path, epochs=2)
    train(broken, CASES, CPU)
    state = broken.state.read_bytes()
    train(replace(broken, epochs=3), CASES, CPU)
    broken.state.write_bytes(state)  # as if it had been broken off before the last state was written
    train(replace(broken, epochs=3), CASES, CPU)
    assert same(weights(broken, 3), weights(whole, 3))


@pytest.mark.parametrize("name", ["epoch002.pt", "training.pt"])
@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_damaged_files_are_written_again(name: str, content: bytes | None, whole: TrainingRun, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    train(run, CASES, CPU)
    path = tmp_path / name
    if content is None:
        torch.save({"epoch": 3, "metrics": 1.0}, path)
    else:
        path.write_bytes(content)
    train(run, CASES, CPU)
    for epoch in (1, 2, 3):
        assert same(weights(run, epoch), weights(whole, epoch))
        assert metrics(run, epoch) == metrics(whole, epoch)


def test_a_damaged_checkpoint_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = run_in(tmp_path)
    run.checkpoint(1).write_bytes(b"nonsense")
    with caplog.at_level(logging.WARNING):
        assert metrics(run, 1) is None
    assert str(run.checkpoint(1)) in caplog.text
    with pytest.raises(ValueError, match=r"epoch001\.pt is damaged"):
        load(run, 1, CASES)


def test_scores_are_computed_on_whole_volumes(whole: TrainingRun) -> None:
    """A patch as large as the volume: nothing is assembled, and scikit-learn says the rest."""
    run = replace(whole, recipe=replace(RECIPE, patch=(20, 20)))
    model = load(whole, 3, CASES)
    found = score(model, run, CASES, CPU)
    with torch.inference_mode():
        predicted = [model(torch.from_numpy(case.image)[None])[0, 0].numpy() > 0 for case in CASES.test]
    truth = [case.mask for case in CASES.test if case.mask is not None]
    for name, reference in (("test_iou", jaccard_score), ("test_dice", f1_score)):
        each = [reference(y.ravel(), p.ravel()) for y, p in zip(truth, predicted, strict=True)]
        assert found[name] == pytest.approx(np.mean(each), abs=1e-12)


def test_training_scores_are_of_as_many_cases_as_test_scores() -> None:
    assert len(CASES.scored(Segmentation("mse", 2))) == 4
    assert [case.name for case in CASES.scored(Denoising(1.0, 2))] == ["disc0-0", "disc0-1"]


def test_networks_depend_on_the_seed(whole: TrainingRun, tmp_path: Path) -> None:
    other = run_in(tmp_path / "seed", epochs=1, seed=1)
    train(other, CASES, CPU)
    assert not same(weights(other, 1), weights(whole, 1))


def test_global_generator_is_unchanged(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    train(run_in(tmp_path, epochs=1), CASES, CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # type: ignore[index]  # noqa: NPY002


def test_noise_is_that_of_the_case() -> None:
    case = CASES.test[0]
    noisy, target = Denoising(0.5, 1).example(case)
    again, _ = Denoising(0.5, 1).example(case)
    other, _ = Denoising(0.5, 1).example(replace(case, name="another"))
    assert np.array_equal(noisy, again)
    assert not np.array_equal(noisy, other)
    assert target is case.image
    assert np.std(noisy - target) == pytest.approx(0.5, rel=0.15)
