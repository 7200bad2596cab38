"""Training recipe of the digits task, and the checkpoints of its networks."""

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
    """Settings that all training runs share: AdamW with a one-cycle learning rate for a fixed number of steps."""

    version: int = 1
    """Incremented with each change of the training that the other fields do not reflect."""
    steps: int = 220
    batch_size: int = 32
    learning_rate: float = 0.01
    warm_up: float = 0.1
    """Fraction of the steps in which the learning rate increases."""
    hidden: int = 128
    """Units of the hidden linear layer."""


@dataclass(frozen=True)
class Hparams:
    """Hyperparameters in which the networks differ."""

    width: int
    """Number of channels of each convolution."""
    depth: int
    """Number of convolutions."""
    dropout: float
    weight_decay: float
    """Weight decay of AdamW, which multiplies it by the learning rate."""
    batch_norm: bool
    train_size: int
    """Number of training images."""
    label_noise: float
    """Fraction of the training labels that are wrong."""

    @property
    def name(self) -> str:
        """Unique name of the combination, valid as a file name."""
        return (
            f"width{self.width}_depth{self.depth}_dropout{self.dropout:g}_decay{self.weight_decay:g}"
            f"_norm{int(self.batch_norm)}_size{self.train_size}_noise{self.label_noise:g}"
        )


@dataclass(frozen=True)
class Job:
    """One training run: a network, its data, and the file of its checkpoint."""

    path: Path
    hparams: Hparams
    recipe: Recipe
    train: Arrays
    test: Arrays


def architecture(hparams: Hparams, recipe: Recipe) -> SmallCNN:
    """The network of these hyperparameters, initialized from torch's global generator.

    Args:
        hparams: hyperparameters of the network.
        recipe: settings of the training.

    Example:
        >>> hparams = Hparams(4, 2, 0.0, 0.0, False, 100, 0.0)
        >>> architecture(hparams, Recipe())(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    return SmallCNN(
        hparams.width,
        hparams.depth,
        dropout=hparams.dropout,
        batch_norm=hparams.batch_norm,
        hidden=recipe.hidden,
    )


def read(path: Path, hparams: Hparams, recipe: Recipe) -> tuple[SmallCNN, dict[str, float]]:
    """Read a network that :func:`train_all` saved.

    Args:
        path: the checkpoint.
        hparams: hyperparameters of the network.
        recipe: settings of the training.

    Returns:
        The network in evaluation mode, and its metrics ``train_accuracy`` and ``test_accuracy``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or has weights of another architecture.

    Example:
        >>> read(Path("no_such_file.pt"), Hparams(4, 2, 0.0, 0.0, False, 100, 0.0), Recipe())
        Traceback (most recent call last):
            ...
        FileNotFoundError: [Errno 2] No such file or directory: 'no_such_file.pt'
    """
    checkpoint = load_checkpoint(path)
    try:
        metrics = {name: float(checkpoint["metrics"][name]) for name in ("train_accuracy", "test_accuracy")}
        with torch.random.fork_rng(devices=[]):
            model = architecture(hparams, recipe)
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not all(math.isfinite(value) for value in metrics.values()):
        raise ValueError(f"{path} is damaged: its metrics are {metrics}")
    return model.eval(), metrics


def train_all(jobs: Sequence[Job], workers: int, title: str) -> None:
    """Train networks and save a checkpoint of each, with a progress bar on standard error.

    The weights of a network do not depend on the number of processes.

    Args:
        jobs: the networks to train.
        workers: number of processes, of one thread each; with 1, this process trains.
        title: title of the progress bar.

    Raises:
        OptionError: a checkpoint cannot be written.
        GenmeasuresError: a process ended before its training was done.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> data = np.zeros((4, 1, 8, 8), dtype=np.float32), np.array([0, 1, 2, 3])
        >>> hparams, recipe = Hparams(2, 2, 0.0, 0.0, False, 4, 0.0), Recipe(steps=2, hidden=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "net.pt"
        ...     train_all([Job(path, hparams, recipe, data, data)], 1, "Training")
        ...     sorted(read(path, hparams, recipe)[1])
        ['test_accuracy', 'train_accuracy']
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
    """Train one network and save its checkpoint."""
    with one_thread():
        model, metrics = _train(job)
    save_checkpoint(job.path, {"state_dict": model.state_dict(), "metrics": metrics})


def _train(job: Job) -> tuple[nn.Module, dict[str, float]]:
    """The trained network and its metrics."""
    hparams, recipe = job.hparams, job.recipe
    x, y = (torch.from_numpy(array) for array in job.train)
    # Initial weights and dropout draw from the global generator, whose state is restored.
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
    """Indices, int64 (≤ batch_size,), of ``steps`` batches; each epoch is in a new random order."""
    remaining = steps
    while remaining > 0:
        order = torch.randperm(size)
        starts = range(0, size, batch_size)[:remaining]
        remaining -= len(starts)
        for start in starts:
            yield order[start : start + batch_size]


def accuracy(model: nn.Module, data: Arrays) -> float:
    """Fraction of the images that are classified correctly, in the current mode of the model.

    Args:
        model: the network.
        data: images and labels.

    Example:
        >>> import numpy as np
        >>> accuracy(nn.Flatten(), (np.eye(2, dtype=np.float32), np.array([0, 0])))
        0.5
    """
    with torch.inference_mode():
        predicted = model(torch.from_numpy(data[0])).argmax(1)
    return float((predicted == torch.from_numpy(data[1])).double().mean())


__all__ = ["Hparams", "Job", "Recipe", "accuracy", "architecture", "read", "train_all"]
