"""A task that is trained here: a full grid of small networks on hand-written digits."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from genmeasures.errors import ModelError
from genmeasures.files import remove_stale_temporaries
from genmeasures.interfaces import SPLITS, Split, Task, TaskModel, is_count, one_of, require
from genmeasures.tasks.cache import cache_folder, check_writable
from genmeasures.tasks.digits import Arrays, split_digits, training_set
from genmeasures.tasks.training import (
    Hparams,
    Job,
    Recipe,
    read,
    train_all,
    worker_count,
)

LEVELS: dict[str, tuple[Any, Any]] = {
    "width": (8, 16),
    "depth": (2, 4),
    "dropout": (0.0, 0.4),
    "weight_decay": (0.0, 1.0),
    "batch_norm": (False, True),
    "train_size": (80, 320),
    "label_noise": (0.0, 0.2),
}
"""The two levels of each hyperparameter; the task has all 128 combinations."""


def grid() -> list[Hparams]:
    """All combinations, shuffled once for all so that the first few vary every hyperparameter."""
    combinations = [Hparams(**dict(zip(LEVELS, values, strict=True))) for values in itertools.product(*LEVELS.values())]
    random.Random(0).shuffle(combinations)
    return combinations


class DigitsCNN(Task):
    """128 small networks on 8x8 digits: every combination of two levels of seven hyperparameters.

    They differ in width, depth, dropout, weight decay, batch normalization, number of training
    images and share of wrong training labels (``LEVELS``). ``train_accuracy`` is taken on a
    model's own training set with its own labels, wrong ones included, and ``test_accuracy`` on 600
    clean digits; a network that resists the wrong labels so has a gap below zero.

    ``models()`` trains what is missing, about a second a network, and keeps it in
    ``<cache>/digits_cnn/<key of recipe and data>/<model>.pt``; files that are damaged are trained again.

    Args:
        cache: Folder for the trained networks; None is $GENMEASURES_CACHE, or ~/.cache/genmeasures.
        workers: Number of processes that train; None is one for each usable core.
        limit: Number of networks to take, spread over the grid; None takes all.
    """

    name = "digits_cnn"
    incidental = ("cache", "workers")

    def __init__(self, cache: str | None = None, workers: int | None = None, limit: int | None = None) -> None:
        require(cache is None or bool(str(cache)), self, "cache is empty: give a folder, or null for the default")
        require(workers is None or is_count(workers), self, f"workers={workers!r} must be a number from 1, or null")
        require(limit is None or is_count(limit), self, f"limit={limit!r} must be a number from 1, or null")
        self.cache = cache
        self.workers = workers
        self.limit = limit

    @property
    def identity(self) -> str:
        """Its name: ``limit`` chooses among the same networks."""
        return self.name

    def models(self) -> Sequence[TaskModel]:
        """The networks, those that are not in the cache being trained first.

        Raises OptionError where the cache cannot be written.
        """
        recipe = Recipe()
        train, test = split_digits()
        chosen = grid()[: self.limit]
        sets: dict[tuple[int, float], Arrays] = {
            (h.train_size, h.label_noise): training_set(train, h.train_size, h.label_noise) for h in chosen
        }
        folder = self._folder(recipe, train, test)
        remove_stale_temporaries(folder)
        jobs = [Job(folder / f"{h.name}.pt", h, recipe, sets[h.train_size, h.label_noise], test) for h in chosen]
        metrics = {job.path: _kept_metrics(job) for job in jobs}
        missing = [job for job in jobs if metrics[job.path] is None]
        if missing:
            check_writable(folder)
            train_all(missing, min(worker_count(self.workers), len(missing)), "Training networks on digits")
        return [
            TaskModel(
                name=job.hparams.name,
                build=functools.partial(_build, job.path, job.hparams, recipe),
                hparams=asdict(job.hparams),
                metrics=metrics[job.path] or read(job.path, job.hparams, recipe)[1],
                train=job.train,
            )
            for job in jobs
        ]

    def data(self, split: Split) -> Arrays:
        """Images float32 (N, 1, 8, 8) from 0 to 1 and right labels int64 (N,).

        ``test`` has 600 digits. ``train`` has the digits of the largest training set; each model
        carries its own training set, with its wrong labels, in ``TaskModel.train``.
        """
        one_of(self, "split", split, SPLITS)
        train, test = split_digits()
        return test if split == "test" else training_set(train, max(LEVELS["train_size"]), 0.0)

    def _folder(self, recipe: Recipe, train: Arrays, test: Arrays) -> Path:
        noisy = training_set(train, len(train[1]), max(LEVELS["label_noise"]))
        digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
        for array in (*train, *test, *noisy):
            digest.update(array.tobytes())
        return cache_folder(self.cache, self.name) / digest.hexdigest()[:12]


def _kept_metrics(job: Job) -> dict[str, float] | None:
    try:
        return read(job.path, job.hparams, job.recipe)[1]
    except (FileNotFoundError, ValueError):
        return None


def _build(path: Path, hparams: Hparams, recipe: Recipe) -> nn.Module:
    try:
        return read(path, hparams, recipe)[0]
    except (FileNotFoundError, ValueError) as error:
        raise ModelError(f"{hparams.name}: {error}; list the models again and it is trained again") from error
