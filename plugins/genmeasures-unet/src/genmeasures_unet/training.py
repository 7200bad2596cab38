"""Training of UNets on patches of volumes, with a checkpoint per epoch; interrupted training runs resume."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genmeasures.plugin import load_checkpoint, save_checkpoint
from genmeasures_unet.assembly import predict_volume
from genmeasures_unet.network import ResidualUNet
from genmeasures_unet.problems import Problem
from genmeasures_unet.shifts import Shift
from genmeasures_unet.volumes import Case

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Settings of networks and training that all runs share (Rajagopal et al. 2021, section 3.1, appendix A.2)."""

    patch: tuple[int, ...]
    """Spatial size of the patches."""
    epoch_size: int
    """Number of patches per epoch; each epoch samples new ones."""
    version: int = 1
    """Incremented with each change of the training that the other fields do not reflect."""
    width: int = 8
    depth: int = 5
    batch_size: int = 16
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    overlap: float = 0.25
    """Fraction of a patch's side that neighbors share when a whole volume is predicted."""


@dataclass(frozen=True)
class TrainingRun:
    """One training run: a network, trained from its initial weights, and the folder of its checkpoints.

    Example:
        >>> from genmeasures_unet.problems import Segmentation
        >>> recipe = Recipe(patch=(8, 8), epoch_size=2, depth=1)
        >>> run = TrainingRun(Path("runs/1"), Segmentation("dice", classes=2), recipe, seed=0, epochs=1)
        >>> run.checkpoint(1).name, run.state.name
        ('epoch001.pt', 'training.pt')
    """

    folder: Path
    problem: Problem
    recipe: Recipe
    seed: int
    """Seed of the initial weights and of the patches, which do not depend on the objective."""
    epochs: int

    def checkpoint(self, epoch: int) -> Path:
        """File of the weights after an epoch, counted from 1."""
        return self.folder / f"epoch{epoch:03d}.pt"

    @property
    def state(self) -> Path:
        """File of the state from which training resumes."""
        return self.folder / "training.pt"


@dataclass(frozen=True)
class Cases:
    """Training and test cases."""

    train: Sequence[Case]
    test: Sequence[Case]

    def scored(self, problem: Problem) -> Sequence[Case]:
        """Training cases for the training score, at most as many as there are test cases."""
        return problem.training_cases(self.train)[: len(self.test)]


def network(run: TrainingRun, cases: Cases) -> ResidualUNet:
    """Build the network of a run, with weights from torch's global generator.

    Args:
        run: Training run.
        cases: Cases, whose images tell the number of dimensions and channels.

    Example:
        >>> from genmeasures_unet.problems import Denoising
        >>> cases = Cases([Case("a", np.zeros((1, 16, 16), dtype=np.float32), None)], [])
        >>> run = TrainingRun(Path("runs/1"), Denoising(0.5, 1), Recipe(patch=(8, 8), epoch_size=2, depth=1), 0, 1)
        >>> network(run, cases).dimensions
        2
    """
    case = cases.train[0]
    return ResidualUNet(
        dimensions=case.image.ndim - 1,
        channels=len(case.image),
        out_channels=run.problem.out_channels(cases.train),
        width=run.recipe.width,
        depth=run.recipe.depth,
    )


def metrics(run: TrainingRun, epoch: int) -> dict[str, float] | None:
    """Read the metrics of the network after an epoch.

    Args:
        run: Training run.
        epoch: Epoch, counted from 1.

    Returns:
        Metrics by name; None if the checkpoint is missing or damaged.

    Example:
        >>> from genmeasures_unet.problems import Denoising
        >>> run = TrainingRun(Path("no_such_folder"), Denoising(0.5, 1), Recipe(patch=(8, 8), epoch_size=2), 0, 1)
        >>> metrics(run, 1) is None
        True
    """
    path = run.checkpoint(epoch)
    try:
        return {str(name): float(value) for name, value in load_checkpoint(path)["metrics"].items()}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s cannot be read; the network is trained again: %s", path, error)
        return None


def load(run: TrainingRun, epoch: int, cases: Cases) -> ResidualUNet:
    """Load the network after an epoch.

    Args:
        run: Training run.
        epoch: Epoch, counted from 1.
        cases: Cases of the training run.

    Returns:
        The network in evaluation mode.

    Raises:
        FileNotFoundError: there is no checkpoint of the epoch.
        ValueError: the checkpoint is damaged.

    Example:
        >>> import tempfile
        >>> from genmeasures_unet.problems import Denoising
        >>> case = Case("a", np.random.default_rng(0).random((1, 16, 16), dtype=np.float32), None)
        >>> cases = Cases([case], [case])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = TrainingRun(Path(folder), Denoising(0.5, 1), Recipe(patch=(8, 8), epoch_size=2, depth=1), 0, 1)
        ...     train(run, cases, torch.device("cpu"))
        ...     load(run, 1, cases).training
        False
    """
    path = run.checkpoint(epoch)
    checkpoint = load_checkpoint(path)
    with torch.random.fork_rng(devices=[]):
        model = network(run, cases)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return model.eval()


def train(run: TrainingRun, cases: Cases, device: torch.device) -> None:
    """Train up to the last epoch and save a checkpoint after each; an interrupted training run resumes.

    On a CPU, the weights do not depend on interruptions: the patches of an epoch depend on the seed and the epoch
    alone. If a checkpoint is missing or damaged, training restarts.

    Args:
        run: Training run, whose folder exists.
        cases: Training and test cases.
        device: Device of the network.

    Example:
        >>> import tempfile
        >>> from genmeasures_unet.problems import Denoising
        >>> case = Case("a", np.random.default_rng(0).random((1, 16, 16), dtype=np.float32), None)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = TrainingRun(Path(folder), Denoising(0.5, 1), Recipe(patch=(8, 8), epoch_size=2, depth=1), 0, 1)
        ...     train(run, Cases([case], [case]), torch.device("cpu"))
        ...     sorted(metrics(run, 1))
        ['test_r2', 'test_ssim', 'train_loss', 'train_r2', 'train_ssim']
    """
    recipe, problem = run.recipe, run.problem
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        model, optimizer, done = _begin(run, cases, device)
        sampler = problem.sampler(problem.training_cases(cases.train), recipe.patch)
        for epoch in range(done + 1, run.epochs + 1):
            generator = np.random.default_rng([run.seed, epoch])
            x, y = (torch.from_numpy(array) for array in sampler.draw(recipe.epoch_size, generator))
            loss = _epoch(model, optimizer, problem, x, y, recipe.batch_size, device)
            scores = {**score(model, run, cases, device), "train_loss": loss}
            weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
            save_checkpoint(run.checkpoint(epoch), {"state_dict": weights, "metrics": scores})
            save_checkpoint(run.state, {"epoch": epoch, "state_dict": weights, "optimizer": optimizer.state_dict()})


def _begin(run: TrainingRun, cases: Cases, device: torch.device) -> tuple[ResidualUNet, torch.optim.Optimizer, int]:
    """The network, its optimizer and the number of epochs that are done."""
    try:
        state: dict[str, Any] | None = load_checkpoint(run.state)
    except FileNotFoundError:
        state = None
    except ValueError as error:
        log.warning("%s: training restarts", error)
        state = None
    while True:
        torch.manual_seed(run.seed)
        model = network(run, cases).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=run.recipe.learning_rate)
        if state is None:
            return model, optimizer, 0
        try:
            done = int(state["epoch"])
            if all(metrics(run, epoch) is not None for epoch in range(1, done + 1)):
                model.load_state_dict(state["state_dict"])
                optimizer.load_state_dict(state["optimizer"])
                return model, optimizer, done
        except Exception as error:  # the state of an optimizer is not checked before it is used
            log.warning("%s is damaged, training restarts: %s", run.state, error)
        state = None


def score(model: nn.Module, run: TrainingRun, cases: Cases, device: torch.device) -> dict[str, float]:
    """Compute the scores of a network, means over cases, each predicted as a whole volume.

    Args:
        model: Network on ``device``.
        run: Training run.
        cases: Training and test cases.
        device: Device of the network.

    Returns:
        Scores by name, ``test_…`` and ``train_…``.

    Example:
        >>> from genmeasures_unet.problems import Denoising
        >>> case = Case("a", np.random.default_rng(0).random((1, 16, 16), dtype=np.float32), None)
        >>> run = TrainingRun(Path("runs/1"), Denoising(0.0, 1), Recipe(patch=(8, 8), epoch_size=2), 0, 1)
        >>> score(nn.Identity(), run, Cases([case], [case]), torch.device("cpu"))["test_r2"] > 0.999
        True
    """
    test, trained = (_score_cases(model, run, members, device) for members in (cases.test, cases.scored(run.problem)))
    return {
        **{f"test_{name}": value for name, value in test.items()},
        **{f"train_{name}": value for name, value in trained.items()},
    }


def shifted_metrics(run: TrainingRun, epoch: int, shift: Shift) -> dict[str, float] | None:
    """Read the metrics of the network after an epoch, with the test cases shifted.

    Args:
        run: Training run.
        epoch: Epoch, counted from 1.
        shift: How the images of the test cases are changed.

    Returns:
        Metrics by name: ``test_…`` of the shifted test cases, ``unshifted_…`` of the test cases as they are, and those
        of training. None if :func:`score_shifted` has not scored this checkpoint.

    Example:
        >>> from genmeasures_unet.problems import Denoising
        >>> run = TrainingRun(Path("no_such_folder"), Denoising(0.5, 1), Recipe(patch=(8, 8), epoch_size=2), 0, 1)
        >>> shifted_metrics(run, 1, Shift("noise", 0.5)) is None
        True
    """
    trained = metrics(run, epoch)
    if trained is None:
        return None
    try:
        stored = load_checkpoint(_shifted_file(run, epoch, shift))
        if stored["checkpoint"] != _digest(run.checkpoint(epoch)):
            return None  # the network has been trained again
        found = {f"test_{name}": float(value) for name, value in stored["scores"].items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    others = {name: value for name, value in trained.items() if not name.startswith("test_")}
    unshifted = {f"unshifted_{name.removeprefix('test_')}": trained[name] for name in found}
    return {**found, **unshifted, **others}


def score_shifted(run: TrainingRun, epochs: Sequence[int], cases: Cases, shift: Shift, device: torch.device) -> None:
    """Score trained networks on shifted test cases, and store the scores beside the checkpoints.

    Args:
        run: Training run, with checkpoints of the epochs.
        epochs: Epochs, counted from 1.
        cases: Training and test cases.
        shift: How the images of the test cases are changed.
        device: Device of the network.

    Example:
        >>> import tempfile
        >>> from genmeasures_unet.problems import Denoising
        >>> case = Case("a", np.random.default_rng(0).random((1, 16, 16), dtype=np.float32), None)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = TrainingRun(Path(folder), Denoising(0.5, 1), Recipe(patch=(8, 8), epoch_size=2, depth=1), 0, 1)
        ...     train(run, Cases([case], [case]), torch.device("cpu"))
        ...     score_shifted(run, [1], Cases([case], [case]), Shift("noise", 0.5), torch.device("cpu"))
        ...     list(shifted_metrics(run, 1, Shift("noise", 0.5)))[:3]
        ['test_r2', 'test_ssim', 'unshifted_r2']
    """
    shifted = [shift.apply(case) for case in cases.test]
    for epoch in epochs:
        digest = _digest(run.checkpoint(epoch))
        found = _score_cases(load(run, epoch, cases).to(device), run, shifted, device)
        save_checkpoint(_shifted_file(run, epoch, shift), {"checkpoint": digest, "scores": found})


def _score_cases(model: nn.Module, run: TrainingRun, members: Sequence[Case], device: torch.device) -> dict[str, float]:
    """Means over cases of the scores of a network, by name."""
    by_case: list[dict[str, float]] = []
    for case in members:
        image, target = run.problem.example(case)
        assembled = predict_volume(
            model,
            torch.from_numpy(image).to(device),
            run.recipe.patch,
            overlap=run.recipe.overlap,
            output=run.problem.output,
        )
        by_case.append(run.problem.score(assembled.cpu(), target))
    return {name: float(np.nanmean([row[name] for row in by_case])) for name in by_case[0]}


def _shifted_file(run: TrainingRun, epoch: int, shift: Shift) -> Path:
    """File of the scores on shifted test cases."""
    return run.folder / f"{run.checkpoint(epoch).stem}_{shift.kind}{shift.strength:g}.pt"


def _digest(path: Path) -> str:
    """Digest of a checkpoint file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    problem: Problem,
    x: Tensor,
    y: Tensor,
    batch_size: int,
    device: torch.device,
) -> float:
    """Train on all patches once; returns the mean loss over batches."""
    model.train()
    losses = []
    for inputs, targets in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
        loss = problem.loss(model(inputs.to(device)), targets.to(device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).double().mean())


__all__ = [
    "Cases",
    "Recipe",
    "TrainingRun",
    "load",
    "metrics",
    "network",
    "score",
    "score_shifted",
    "shifted_metrics",
    "train",
]
