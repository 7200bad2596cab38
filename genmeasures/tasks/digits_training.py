"""Training of many small classifiers, each in one thread and from its own seed, and keeping them on disk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from genmeasures.tasks.cache import load_checkpoint, save_checkpoint
from genmeasures.tasks.cnn import SmallCNN
from genmeasures.tasks.digits import Arrays
from genmeasures.tasks.pool import one_thread, run_in_processes


@dataclass(frozen=True)
class Recipe:
    """How every network is trained: AdamW with a one-cycle learning rate for a fixed number of steps."""

    version: int = 1
    """Raised with each change of the training that the other fields do not show."""
    steps: int = 220
    batch_size: int = 32
    learning_rate: float = 0.01
    warm_up: float = 0.1
    """Share of the steps in which the learning rate rises."""
    hidden: int = 128
    """Units of the hidden linear layer."""


@dataclass(frozen=True)
class Hparams:
    """What the networks differ in."""

    width: int
    """Channels of each convolution."""
    depth: int
    """Number of convolutions."""
    dropout: float
    weight_decay: float
    """AdamW's, which multiplies it by the learning rate."""
    batch_norm: bool
    train_size: int
    """Number of training images."""
    label_noise: float
    """Share of the training labels that are wrong."""

    @property
    def name(self) -> str:
        """A name that no other combination has, fit for a file."""
        return (
            f"width{self.width}_depth{self.depth}_dropout{self.dropout:g}_decay{self.weight_decay:g}"
            f"_norm{int(self.batch_norm)}_size{self.train_size}_noise{self.label_noise:g}"
        )


@dataclass(frozen=True)
class Job:
    """A network to train, and the file to keep it in."""

    path: Path
    hparams: Hparams
    recipe: Recipe
    train: Arrays
    test: Arrays


def architecture(hparams: Hparams, recipe: Recipe) -> SmallCNN:
    """The network that the hyperparameters ask for, with random weights from torch's global generator."""
    return SmallCNN(
        hparams.width,
        hparams.depth,
        dropout=hparams.dropout,
        batch_norm=hparams.batch_norm,
        hidden=recipe.hidden,
    )


def read(path: Path, hparams: Hparams, recipe: Recipe) -> tuple[SmallCNN, dict[str, float]]:
    """A network that ``train_all`` kept, in evaluation mode, and its metrics.

    Raises ValueError where the file is damaged or does not fit, and FileNotFoundError.
    """
    kept = load_checkpoint(path)
    try:
        metrics = {name: float(kept["metrics"][name]) for name in ("train_accuracy", "test_accuracy")}
        with torch.random.fork_rng(devices=[]):
            model = architecture(hparams, recipe)
        model.load_state_dict(kept["state_dict"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not all(math.isfinite(value) for value in metrics.values()):
        raise ValueError(f"{path} is damaged: its metrics are {metrics}")
    return model.eval(), metrics


def train_all(jobs: Sequence[Job], workers: int, title: str) -> None:
    """Train the networks and keep each in its file, with a progress bar on standard error.

    ``workers`` processes of one thread each train them; with one, this process does. A network's
    weights do not depend on that. Whatever ends this function ends the processes.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(title, total=len(jobs))
        if workers == 1:
            for job in jobs:
                _train_and_save(job)
                progress.advance(bar)
        else:
            run_in_processes(_train_and_save, jobs, workers, lambda: progress.advance(bar))


def _train_and_save(job: Job) -> None:
    with one_thread():
        model, metrics = _train(job)
    save_checkpoint(job.path, {"state_dict": model.state_dict(), "metrics": metrics})


def _train(job: Job) -> tuple[nn.Module, dict[str, float]]:
    hparams, recipe = job.hparams, job.recipe
    x, y = (torch.from_numpy(array) for array in job.train)
    # Initial weights and dropout draw from the global generator, whose state must come back as it was.
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(int.from_bytes(hashlib.sha256(hparams.name.encode()).digest()[:4]))
        model = architecture(hparams, recipe)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=recipe.learning_rate, weight_decay=hparams.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=recipe.warm_up
        )
        model.train()
        for batch in _batches(len(x), recipe.batch_size, recipe.steps):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    model.eval()
    return model, {"train_accuracy": accuracy(model, job.train), "test_accuracy": accuracy(model, job.test)}


def _batches(size: int, batch_size: int, steps: int) -> Iterator[Tensor]:
    """Indices, int64 (≤ batch_size,), of ``steps`` batches: each epoch in a new random order."""
    left = steps
    while left > 0:
        order = torch.randperm(size)
        starts = range(0, size, batch_size)[:left]
        left -= len(starts)
        for start in starts:
            yield order[start : start + batch_size]


def accuracy(model: nn.Module, data: Arrays) -> float:
    """Share of the images whose largest logit is their label's; the model's mode is left as it is."""
    with torch.inference_mode():
        predicted = model(torch.from_numpy(data[0])).argmax(1)
    return float((predicted == torch.from_numpy(data[1])).double().mean())


__all__ = ["Hparams", "Job", "Recipe", "accuracy", "architecture", "read", "train_all"]
