"""Task of small networks on handwritten digits: a full grid of hyperparameters, trained at first use."""

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
from genmeasures.interfaces import Split, Task, TaskModel, is_count, one_of, require
from genmeasures.tasks.cache import cache_folder, check_writable
from genmeasures.tasks.digits import Arrays, split_digits, training_set
from genmeasures.tasks.digits_training import Hparams, Job, Recipe, read, train_all
from genmeasures.tasks.pool import worker_count

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
    """All combinations, in a fixed random order, so that the first few vary every hyperparameter.

    Example:
        >>> len(grid())
        128
    """
    combinations = [Hparams(**dict(zip(LEVELS, values, strict=True))) for values in itertools.product(*LEVELS.values())]
    random.Random(0).shuffle(combinations)
    return combinations


class DigitsCNN(Task):
    """128 small networks on 8x8 digits: all combinations of two levels of seven hyperparameters.

    The networks differ in width, depth, dropout, weight decay, batch normalization, number of training images and
    fraction of wrong training labels (``LEVELS``). ``train_accuracy`` is measured on the training set of each model,
    including its wrong labels, and ``test_accuracy`` on 600 digits with correct labels. A network that does not fit
    the wrong labels therefore has a negative generalization gap.

    Missing networks are trained by ``models()``, in about a second per network, and cached in
    ``<cache>/digits_cnn/<key of recipe and data>/<model>.pt``. Damaged files are trained again.

    Args:
        cache: cache folder. None for ``$GENMEASURES_CACHE``, or ``~/.cache/genmeasures``.
        workers: number of training processes. None for one per usable core.
        limit: number of models, spread over the grid. None for all.

    Raises:
        OptionError: an option is out of range.

    Example:
        >>> DigitsCNN(limit=12).options()
        {'cache': None, 'workers': None, 'limit': 12}
    """

    name = "digits_cnn"
    splits = ("train", "test", "validation")
    incidental = ("cache", "workers")

    def __init__(self, cache: str | None = None, workers: int | None = None, limit: int | None = None) -> None:
        require(cache is None or bool(str(cache)), self, "cache is empty: set a folder, or null for the default")
        require(workers is None or is_count(workers), self, f"workers={workers!r} must be a positive integer, or null")
        require(limit is None or is_count(limit), self, f"limit={limit!r} must be a positive integer, or null")
        self.cache = cache
        self.workers = workers
        self.limit = limit

    @property
    def identity(self) -> str:
        """The name: ``limit`` selects among the same networks."""
        return self.name

    def models(self) -> Sequence[TaskModel]:
        """List the networks; those that are not cached are trained first.

        Returns:
            The models, each with its training set.

        Raises:
            OptionError: the cache cannot be written.
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
        metrics = {job.path: _cached_metrics(job) for job in jobs}
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
        """Images with correct labels.

        Each model has its own training set, with its wrong labels, in ``TaskModel.train``.

        Args:
            split: "test" for the 600 test digits, "train" for the digits of the largest training set, "validation" for
                the 877 digits of the training split that no network is trained on.

        Returns:
            Images, float32 (N, 1, 8, 8) with values from 0 to 1, and labels, int64 (N,).
        """
        one_of(self, "split", split, self.splits)
        train, test = split_digits()
        largest = max(LEVELS["train_size"])
        if split == "validation":
            return train[0][largest:].copy(), train[1][largest:].copy()
        return test if split == "test" else training_set(train, largest, 0.0)

    def _folder(self, recipe: Recipe, train: Arrays, test: Arrays) -> Path:
        """Cache folder of a recipe and its data."""
        noisy = training_set(train, len(train[1]), max(LEVELS["label_noise"]))
        digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
        for array in (*train, *test, *noisy):
            digest.update(array.tobytes())
        return cache_folder(self.cache, self.name) / digest.hexdigest()[:12]


def _cached_metrics(job: Job) -> dict[str, float] | None:
    """Metrics of the checkpoint of a network; None if it is missing or damaged."""
    try:
        return read(job.path, job.hparams, job.recipe)[1]
    except (FileNotFoundError, ValueError):
        return None


def _build(path: Path, hparams: Hparams, recipe: Recipe) -> nn.Module:
    """Load a network."""
    try:
        return read(path, hparams, recipe)[0]
    except (FileNotFoundError, ValueError) as error:
        raise ModelError(f"{hparams.name}: {error}; list the models again to train it again") from error
