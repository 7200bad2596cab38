"""Training of UNets on patches of volumes, with a checkpoint after every epoch, and going on after a break."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genmeasures.tasks.cache import keep, read_kept
from genmeasures.tasks.unet.assembly import predict_volume
from genmeasures.tasks.unet.network import ResidualUNet
from genmeasures.tasks.unet.problems import Problem
from genmeasures.tasks.unet.volumes import Case

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How every network is built and trained (Rajagopal et al. 2021, section 3.1 and appendix A.2)."""

    patch: tuple[int, ...]
    """Spatial size of the patches."""
    epoch_size: int
    """Patches an epoch, drawn anew each time."""
    version: int = 1
    """Raised with each change of the training that the other fields do not show."""
    width: int = 8
    depth: int = 5
    batch_size: int = 16
    learning_rate: float = 1e-3
    """Adam's."""
    overlap: float = 0.25
    """Share of a patch's side that neighbors share when a whole volume is predicted."""


@dataclass(frozen=True)
class Run:
    """A network to train from its initial weights, and the folder of its checkpoints."""

    folder: Path
    problem: Problem
    recipe: Recipe
    seed: int
    """Of the initial weights and of the patches, which are the same whatever the objective."""
    epochs: int

    def checkpoint(self, epoch: int) -> Path:
        """Where the weights after that epoch, from 1, are kept."""
        return self.folder / f"epoch{epoch:03d}.pt"

    @property
    def state(self) -> Path:
        """Where what it takes to go on with the training is kept."""
        return self.folder / "training.pt"


@dataclass(frozen=True)
class Cases:
    """Training and test cases, and those of the training cases that models are scored on."""

    train: Sequence[Case]
    test: Sequence[Case]

    def scored(self, problem: Problem) -> Sequence[Case]:
        """Training cases for the training score: no more than there are test cases."""
        return problem.training_cases(self.train)[: len(self.test)]


def network(run: Run, cases: Cases) -> ResidualUNet:
    """The network that a run trains, with weights from torch's global generator."""
    case = cases.train[0]
    return ResidualUNet(
        dimensions=case.image.ndim - 1,
        channels=len(case.image),
        out_channels=run.problem.out_channels(cases.train),
        width=run.recipe.width,
        depth=run.recipe.depth,
    )


def metrics(run: Run, epoch: int) -> dict[str, float] | None:
    """What is known of the network after an epoch; None where its checkpoint is missing or damaged."""
    path = run.checkpoint(epoch)
    try:
        return {str(name): float(value) for name, value in read_kept(path)["metrics"].items()}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s cannot be read and is made again: %s", path, error)
        return None


def load(run: Run, epoch: int, cases: Cases) -> ResidualUNet:
    """The network after an epoch, in evaluation mode; raises ValueError, or FileNotFoundError, naming the file."""
    path = run.checkpoint(epoch)
    kept = read_kept(path)
    with torch.random.fork_rng(devices=[]):
        model = network(run, cases)
    try:
        model.load_state_dict(kept["state_dict"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return model.eval()


def train(run: Run, cases: Cases, device: torch.device) -> None:
    """Train up to the last epoch and keep each, from where an earlier training was interrupted.

    On a CPU, the weights after an epoch do not depend on breaks: patches are drawn from the seed and
    the number of the epoch alone. Where a checkpoint is missing or damaged, training begins anew.
    """
    recipe, problem = run.recipe, run.problem
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        model, optimizer, done = _begin(run, cases, device)
        sampler = problem.sampler(problem.training_cases(cases.train), recipe.patch)
        for epoch in range(done + 1, run.epochs + 1):
            generator = np.random.default_rng([run.seed, epoch])
            x, y = (torch.from_numpy(array) for array in sampler.draw(recipe.epoch_size, generator))
            loss = _epoch(model, optimizer, problem, x, y, recipe.batch_size, device)
            found = {**score(model, run, cases, device), "train_loss": loss}
            weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
            keep(run.checkpoint(epoch), {"state_dict": weights, "metrics": found})
            keep(run.state, {"epoch": epoch, "state_dict": weights, "optimizer": optimizer.state_dict()})


def _begin(run: Run, cases: Cases, device: torch.device) -> tuple[ResidualUNet, torch.optim.Optimizer, int]:
    """The network and its optimizer, and the number of epochs that it has behind it."""
    try:
        kept: dict[str, Any] | None = read_kept(run.state)
    except FileNotFoundError:
        kept = None
    except ValueError as error:
        log.warning("%s: training begins anew", error)
        kept = None
    while True:
        torch.manual_seed(run.seed)
        model = network(run, cases).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=run.recipe.learning_rate)
        if kept is None:
            return model, optimizer, 0
        try:
            done = int(kept["epoch"])
            if all(metrics(run, epoch) is not None for epoch in range(1, done + 1)):
                model.load_state_dict(kept["state_dict"])
                optimizer.load_state_dict(kept["optimizer"])
                return model, optimizer, done
        except Exception as error:  # the optimizer's state is not checked before it is used
            log.warning("%s is damaged, training begins anew: %s", run.state, error)
        kept = None


def score(model: nn.Module, run: Run, cases: Cases, device: torch.device) -> dict[str, float]:
    """Scores ``test_…`` and ``train_…``: means over cases, each of a whole volume assembled from patches."""
    found: dict[str, float] = {}
    for split, members in (("test", cases.test), ("train", cases.scored(run.problem))):
        each: list[dict[str, float]] = []
        for case in members:
            image, target = run.problem.given(case)
            assembled = predict_volume(
                model,
                torch.from_numpy(image).to(device),
                run.recipe.patch,
                overlap=run.recipe.overlap,
                output=run.problem.output,
            )
            each.append(run.problem.score(assembled.cpu(), target))
        found |= {f"{split}_{name}": float(np.nanmean([one[name] for one in each])) for name in each[0]}
    return found


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    problem: Problem,
    x: Tensor,
    y: Tensor,
    batch_size: int,
    device: torch.device,
) -> float:
    """Train on all patches once; the mean of the batches' objectives."""
    model.train()
    losses = []
    for inputs, targets in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
        loss = problem.loss(model(inputs.to(device)), targets.to(device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).double().mean())


__all__ = ["Cases", "Recipe", "Run", "load", "metrics", "network", "score", "train"]
