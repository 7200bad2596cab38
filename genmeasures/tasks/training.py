"""Training of many small classifiers, each in one thread and from its own seed, and keeping them on disk."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from genmeasures.errors import GenmeasuresError
from genmeasures.tasks.cache import keep, read_kept
from genmeasures.tasks.cnn import SmallCNN
from genmeasures.tasks.digits import Arrays


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
    kept = read_kept(path)
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
                _train_and_keep(job)
                progress.advance(bar)
        else:
            in_processes(_train_and_keep, jobs, workers, lambda: progress.advance(bar), start_worker)


_T = TypeVar("_T")


def in_processes(
    train: Callable[[_T], object],
    jobs: Sequence[_T],
    workers: int,
    one_done: Callable[[], None],
    start: Callable[..., object],
    *arguments: object,
) -> None:
    """Call ``train`` with each job in one of so many processes, each of which begins with ``start(*arguments)``.

    Raises GenmeasuresError where a process ends too early. Whatever ends this function ends the processes.
    """
    # spawn: a forked copy of a process whose torch has started its threads can hang.
    context = multiprocessing.get_context("spawn")
    ended = context.Event()
    executor = ProcessPoolExecutor(workers, context, _start, (ended, start, arguments))
    try:
        for future in as_completed([executor.submit(train, job) for job in jobs]):
            future.result()
            one_done()
    except BrokenProcessPool as error:
        raise GenmeasuresError(
            "a process that trains networks ended too early. A script that starts such processes must be a file "
            'and do so under `if __name__ == "__main__":`; otherwise give workers=1. '
            "If the processes were killed for want of memory, give fewer workers"
        ) from error
    except BaseException:
        ended.set()  # a training in hand may have hours to go
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start(ended: Event, start: Callable[..., object], arguments: Sequence[object]) -> None:
    threading.Thread(target=_end_with_pool, args=(ended,), daemon=True).start()
    start(*arguments)


def _end_with_pool(ended: Event) -> None:
    ended.wait()
    os._exit(1)


def worker_count(workers: int | None) -> int:
    """How many processes train: as many as asked for, or one for each core that this process may use."""
    if multiprocessing.current_process().daemon:
        return 1  # such a process may not start others
    if workers is not None:
        return workers
    # A batch system can give fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker() -> None:
    """Set up a worker process: one thread, interrupts left to the parent, and an end when the parent ends."""
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole group; the parent answers it, and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that is killed cannot end its workers, and they would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train_and_keep(job: Job) -> None:
    with one_thread():
        model, metrics = _train(job)
    keep(job.path, {"state_dict": model.state_dict(), "metrics": metrics})


@contextmanager
def one_thread() -> Iterator[None]:
    """More threads gain nothing on networks this small, and would change the order of their sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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


__all__ = [
    "Hparams",
    "Job",
    "Recipe",
    "accuracy",
    "architecture",
    "in_processes",
    "one_thread",
    "read",
    "start_worker",
    "train_all",
    "worker_count",
]
