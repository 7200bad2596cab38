"""Tasks of UNets that are trained here on volumes, with a model for every epoch."""

from __future__ import annotations

import abc
import functools
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from genmeasures.errors import DataError, ModelError, OptionError
from genmeasures.files import remove_stale_temporaries
from genmeasures.interfaces import SPLITS, Split, Task, TaskModel, is_count, one_of, require
from genmeasures.tasks.cache import cache_folder, check_writable
from genmeasures.tasks.training import (
    in_processes,
    one_thread,
    start_worker,
    worker_count,
)
from genmeasures.tasks.unet.objectives import OBJECTIVES
from genmeasures.tasks.unet.problems import Denoising, Problem, Segmentation, mask_of
from genmeasures.tasks.unet.scores import ssim
from genmeasures.tasks.unet.training import Cases, Recipe, Run, load, metrics, train
from genmeasures.tasks.unet.volumes import binary, mni152, read_cases, reduced, standardized

_TEST_SHARE = 0.2
"""Share of the cases that are kept for testing (Rajagopal et al. 2021, section 3.1)."""

Patches = tuple[NDArray[np.float32], NDArray[np.int64] | NDArray[np.float32]]


class _UNets(Task, abc.ABC):
    """What tasks of UNets have in common: volumes, the training of all networks, a model for each epoch."""

    incidental = ("cache", "workers", "device")
    title: ClassVar[str]
    """What the progress of the training is called."""
    _merged = False
    """Whether all classes of the masks become one."""

    def __init__(
        self,
        volumes: str | os.PathLike[str] | None,
        reduce: int,
        patch: Sequence[int],
        width: int,
        depth: int,
        epochs: int,
        epoch_size: int,
        seeds: Sequence[int],
        patches: int,
        cache: str | None,
        workers: int | None,
        device: str | None,
    ) -> None:
        path = volumes is None or (isinstance(volumes, str | os.PathLike) and bool(os.fspath(volumes)))
        require(
            path, self, f"volumes={volumes!r} must be the path of a file or folder, or null for the MNI152 template"
        )
        sides = _is_list(patch) and len(patch) in (2, 3) and all(is_count(side) for side in patch)
        require(sides, self, f"patch={patch!r} must be a list of 2 or 3 integers from 1, a side for each axis")
        counts = {"reduce": reduce, "width": width, "depth": depth, "epochs": epochs, "epoch_size": epoch_size}
        for name, value in {**counts, "patches": patches}.items():
            require(is_count(value), self, f"{name}={value!r} must be an integer from 1")
        sound = _is_list(seeds) and all(is_count(seed, 0) and seed < 2**63 for seed in seeds)
        _distinct(self, "seeds", seeds, sound)
        require(cache is None or bool(str(cache)), self, "cache is empty: give a folder, or null for the default")
        require(workers is None or is_count(workers), self, f"workers={workers!r} must be a number from 1, or null")
        self.volumes = None if volumes is None else os.fspath(volumes)
        self.reduce = reduce
        self.patch = list(patch)
        self.width = width
        self.depth = depth
        self.epochs = epochs
        self.epoch_size = epoch_size
        self.seeds = list(seeds)
        self.patches = patches
        self.cache = cache
        self.workers = workers
        self.device = device

    @property
    def identity(self) -> str | None:
        """Its name and options; None, the content of the data, where the volumes are files of the user."""
        return super().identity if self.volumes is None else None

    @abc.abstractmethod
    def _problems(self, cases: Cases) -> Sequence[Problem]:
        """What the networks of this task differ in, seeds and epochs apart."""

    def models(self) -> Sequence[TaskModel]:
        """A model for each network and epoch; what is not in the cache is trained first.

        Raises OptionError where the cache cannot be written, and DataError where the volumes cannot be used.
        """
        cases = self.cases()
        runs = self.runs(cases)
        for run in runs:
            remove_stale_temporaries(run.folder)
        known = {(run, epoch): metrics(run, epoch) for run in runs for epoch in self._epochs}
        missing = [run for run in runs if any(known[run, epoch] is None for epoch in self._epochs)]
        if missing:
            for run in missing:
                check_writable(run.folder)
            self._train(missing)
        own = {problem: self._own(problem) for problem in {run.problem for run in runs}}
        return [
            TaskModel(
                name=f"{run.folder.name}_epoch{epoch:02d}",
                build=functools.partial(_build, run, epoch, cases),
                hparams={**run.problem.hparams, "seed": run.seed, "epoch": epoch},
                metrics=known[run, epoch] or metrics(run, epoch) or {},
                train=own[run.problem],
            )
            for run in runs
            for epoch in self._epochs
        ]

    def data(self, split: Split) -> Patches:
        """Patches float32 (``patches``, C, *S) of the training or test cases, and their targets."""
        one_of(self, "split", split, SPLITS)
        problems = self._problems(self.cases())
        return self._drawn(problems[-1], split)

    def cases(self) -> Cases:
        """All cases, every fifth of them, in random order, for testing. Raises DataError naming a file or case."""
        return _cases(self.volumes, self.reduce, self._merged)

    def runs(self, cases: Cases) -> list[Run]:
        """The networks to train, each with the folder of its checkpoints."""
        recipe = Recipe(
            patch=tuple(self.patch),
            epoch_size=self.epoch_size,
            width=self.width,
            depth=self.depth,
        )
        folder = self._folder(recipe, cases)
        return [
            Run(folder / "_".join([*_words(problem.hparams), f"seed{seed}"]), problem, recipe, seed, self.epochs)
            for problem in self._problems(cases)
            for seed in self.seeds
        ]

    @property
    def _epochs(self) -> range:
        return range(1, self.epochs + 1)

    def _own(self, problem: Problem) -> Patches | None:
        """Training patches of the networks that are not trained on all cases."""
        return None

    def _drawn(self, problem: Problem, split: Split) -> Patches:
        cases = self.cases()
        members = cases.test if split == "test" else problem.training_cases(cases.train)
        sampler = problem.sampler(members, tuple(self.patch))
        x, y = sampler.draw(self.patches, np.random.default_rng(SPLITS.index(split)))
        return x, y

    def _train(self, runs: Sequence[Run]) -> None:
        device = self._training_device()
        # A GPU is shared badly by processes that do not know of each other.
        workers = min(worker_count(self.workers), len(runs)) if device.type == "cpu" else 1
        jobs = [(self, run, str(device)) for run in runs]
        with _progress(self.title, [run.checkpoint(epoch) for run in runs for epoch in self._epochs]):
            if workers == 1:
                for job in jobs:
                    _train_one(job)
            else:
                in_processes(_train_one, jobs, workers, lambda: None, start_worker)

    def _training_device(self) -> torch.device:
        if self.device is None:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise OptionError(f"{type(self).__name__}: device={self.device!r} cannot be used: {reason}") from error
        return device

    def _folder(self, recipe: Recipe, cases: Cases) -> Path:
        digest = hashlib.sha256(json.dumps([asdict(recipe), *self._settings()], sort_keys=True).encode())
        for case in (*cases.train, *cases.test):
            digest.update(f"{case.name} {case.image.shape}".encode() + case.image.tobytes())
            digest.update(b"" if case.mask is None else case.mask.tobytes())
        return cache_folder(self.cache, self.name) / digest.hexdigest()[:12]

    def _settings(self) -> list[Any]:
        """What the weights depend on besides recipe, cases, and what the folders of runs are named after."""
        return []


class UNetSegmentation(_UNets):
    """UNets that learn masks from volumes, by several objectives: the models of Rajagopal et al. (2021).

    Each objective trains one residual UNet, and its weights after each epoch are a model of the task.
    ``test_iou`` and ``test_dice`` are means over the test cases, a fifth of all, each predicted as a whole
    from overlapping patches; ``train_iou`` and ``train_dice`` the same over as many training cases. Measured
    are patches with as little, some and much foreground as in the training, equally often.

    ``models()`` trains what is missing, in ``workers`` processes (default: one for each usable core), and
    keeps it in ``<cache>/unet/<key>/<objective>_seed<n>/``; an interrupted training run resumes.

    Options: ``volumes`` is a file or folder that :func:`~genmeasures.tasks.unet.volumes.read_cases` reads
    (default: the MNI152 template, for which the extra ``mri`` is needed). ``reduce`` divides the resolution.
    ``foreground``: "merged" makes one class of all, "classes" keeps them. ``patch`` is the spatial size of a
    patch. ``width`` and ``depth`` are the network's, ``epochs`` how long it is trained, on ``epoch_size``
    new patches each; ``objectives`` are of mse, bce, dice and dice_bce, ``seeds`` those of the initial weights
    and patches: each gives networks of its own. ``patches`` is the number measured of each split (paper: 198),
    ``cache`` the folder (default: ``$GENMEASURES_CACHE``, or ``~/.cache/genmeasures``), ``device`` what trains
    (default: a GPU if there is one).
    """

    name = "unet"
    metric = "iou"
    title = "Training UNets to segment"

    def __init__(
        self,
        volumes: str | os.PathLike[str] | None = None,
        reduce: int = 1,
        foreground: str = "merged",
        patch: Sequence[int] = (16, 16, 16),
        width: int = 8,
        depth: int = 5,
        objectives: Sequence[str] = ("mse", "bce", "dice", "dice_bce"),
        epochs: int = 32,
        epoch_size: int = 384,
        seeds: Sequence[int] = (0,),
        patches: int = 198,
        cache: str | None = None,
        workers: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(
            volumes, reduce, patch, width, depth, epochs, epoch_size, seeds, patches, cache, workers, device
        )
        one_of(self, "foreground", foreground, ("merged", "classes"))
        _distinct(self, "objectives", objectives, _is_list(objectives))
        for objective in objectives:
            one_of(self, "objectives", objective, tuple(OBJECTIVES))
        self.foreground = foreground
        self._merged = foreground == "merged"
        self.objectives = list(objectives)

    def _problems(self, cases: Cases) -> Sequence[Problem]:
        for split, members in (("training", cases.train), ("test", cases.test)):
            if not any(mask_of(case).any() for case in members):
                raise DataError(f"{self.volumes}: none of the {len(members)} {split} cases has any foreground")
        classes = 1 + max(int(mask_of(case).max()) for case in (*cases.train, *cases.test))
        return [Segmentation(objective, max(classes, 2)) for objective in self.objectives]


class UNetDenoising(_UNets):
    """UNets that learn to take noise out of volumes, from few or many cases: regression from image to image.

    The network is given the standardized volume with Gaussian noise, and the volume without it is the target.
    Each number of training cases gives one residual UNet, trained for as many steps as the others, and its
    weights after each epoch are a model of the task. ``test_r2`` and ``test_ssim`` are means over the test
    cases, a fifth of all, each predicted as a whole from overlapping patches; ``train_r2`` and ``train_ssim``
    the same over cases of the network's own, at most as many. SSIM needs the extra ``mri``.

    ``models()`` trains what is missing, in ``workers`` processes (default: one for each usable core), and
    keeps it in ``<cache>/unet_denoising/<key>/``; an interrupted training run resumes.

    Options: ``volumes`` is a file or folder that :func:`~genmeasures.tasks.unet.volumes.read_cases` reads
    (default: the MNI152 template, for which the extra ``mri`` is needed). ``reduce`` divides the resolution.
    ``noise`` is the standard deviation of the noise, that of a volume being 1. ``patch`` is the spatial size of
    a patch. ``width`` and ``depth`` are the network's, ``epochs`` how long it is trained, on ``epoch_size``
    new patches each; ``train_cases`` the numbers of training cases, ``seeds`` those of the initial weights and
    patches: each gives networks of its own.
    ``patches`` is the number measured of each split, ``cache`` the folder (default: ``$GENMEASURES_CACHE``, or
    ``~/.cache/genmeasures``), ``device`` what trains (default: a GPU if there is one).
    """

    name = "unet_denoising"
    metric = "r2"
    title = "Training UNets to denoise"

    def __init__(
        self,
        volumes: str | os.PathLike[str] | None = None,
        reduce: int = 1,
        noise: float = 1.0,
        patch: Sequence[int] = (16, 16, 16),
        width: int = 8,
        depth: int = 5,
        train_cases: Sequence[int] = (1, 2, 4),
        epochs: int = 16,
        epoch_size: int = 384,
        seeds: Sequence[int] = (0,),
        patches: int = 198,
        cache: str | None = None,
        workers: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(
            volumes, reduce, patch, width, depth, epochs, epoch_size, seeds, patches, cache, workers, device
        )
        positive = isinstance(noise, float | int) and not isinstance(noise, bool) and 0 < noise < float("inf")
        require(positive, self, f"noise={noise!r} must be a number above 0")
        counts = all(is_count(number) for number in train_cases) if _is_list(train_cases) else False
        _distinct(self, "train_cases", train_cases, counts)
        self.noise = noise
        self.train_cases = list(train_cases)

    def _problems(self, cases: Cases) -> Sequence[Problem]:
        most = max(self.train_cases)
        if most > len(cases.train):
            raise OptionError(
                f"UNetDenoising: train_cases={most}, but there are only {len(cases.train)} training cases"
            )
        # All this now, rather than when the first epoch is scored.
        everything = (*cases.train, *cases.test)
        for case in everything:
            if not case.image.any():  # standardized: a constant is zero
                raise DataError(f"case {case.name} is constant: there is nothing to take noise out of")
        thinnest = min(everything, key=lambda case: min(case.image.shape[1:]))
        try:
            ssim(thinnest.image[0], thinnest.image[0], 1.0)
        except DataError as error:
            raise DataError(f"case {thinnest.name}: {error}") from error
        return [Denoising(self.noise, number) for number in sorted(self.train_cases)]

    def _own(self, problem: Problem) -> Patches | None:
        return self._drawn(problem, "train")

    def _settings(self) -> list[Any]:
        return [self.noise]


@functools.lru_cache(maxsize=1)
def _cases(volumes: str | None, reduce: int, merged: bool) -> Cases:
    """The cases ready for patches to be cut, read once a process: by value, since each job brings its own task."""
    found = mni152() if volumes is None else read_cases(volumes)
    if len(found) < 2:
        raise DataError(f"{volumes}: {len(found)} case, at least 2 are needed: to train with, and to test")
    cases = [standardized(reduced(binary(case) if merged else case, reduce)) for case in found]
    order = np.random.default_rng(0).permutation(len(cases))
    tested = max(1, round(_TEST_SHARE * len(cases)))
    return Cases([cases[place] for place in order[tested:]], [cases[place] for place in order[:tested]])


def _train_one(job: tuple[_UNets, Run, str]) -> None:
    task, run, device = job
    with one_thread():
        train(run, task.cases(), torch.device(device))


def _build(run: Run, epoch: int, cases: Cases) -> nn.Module:
    try:
        return load(run, epoch, cases)
    except (FileNotFoundError, ValueError) as error:
        raise ModelError(f"{error}; list the models again and it is trained again") from error


@contextmanager
def _progress(title: str, checkpoints: Sequence[Path]) -> Iterator[None]:
    """A bar on standard error that follows the checkpoints on disk, whichever process writes them."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(title, total=len(checkpoints))
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(1):
                progress.update(bar, completed=sum(path.exists() for path in checkpoints))

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            progress.update(bar, completed=sum(path.exists() for path in checkpoints))


def _words(hparams: Any) -> list[str]:
    """Hyperparameters as parts of a name: texts as they are, numbers with their names before them."""
    return [value if isinstance(value, str) else f"{name}{value}" for name, value in hparams.items()]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _distinct(task: Task, option: str, values: Any, sound: bool) -> None:
    require(sound, task, f"{option}={values!r} must be a list of at least one, of the right kind")
    require(len(set(values)) == len(values), task, f"{option}={list(values)} has one of them twice")


__all__ = ["UNetDenoising", "UNetSegmentation"]
