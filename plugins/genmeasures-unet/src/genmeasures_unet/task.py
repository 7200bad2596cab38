"""Tasks of UNets that are trained on volumes, with one model per epoch."""

from __future__ import annotations

import abc
import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from genmeasures.plugin import (
    SPLITS,
    DataError,
    ModelError,
    Split,
    Task,
    TaskModel,
    cache_folder,
    check_writable,
    is_count,
    one_of,
    one_thread,
    remove_stale_temporaries,
    require,
    run_in_processes,
    usable_device,
    worker_count,
)
from genmeasures_unet.objectives import OBJECTIVES
from genmeasures_unet.problems import Denoising, Problem, Segmentation, mask_of
from genmeasures_unet.scores import ssim
from genmeasures_unet.shifts import Shift
from genmeasures_unet.training import (
    Cases,
    Recipe,
    TrainingRun,
    load,
    metrics,
    score_shifted,
    shifted_metrics,
    train,
)
from genmeasures_unet.volumes import Case, binary, mni152, read_cases, reduced, standardized

_J = TypeVar("_J")

_TEST_FRACTION = 0.2
"""Fraction of the cases in the test split (Rajagopal et al. 2021, section 3.1)."""

Checkpoint = tuple[TrainingRun, int]
"""A network after an epoch."""
Patches = tuple[NDArray[np.float32], NDArray[np.int64] | NDArray[np.float32]]


class _UNets(Task, abc.ABC):
    """Base of the tasks: volumes, training of all networks, one model per epoch."""

    incidental = ("cache", "workers", "device")
    title: ClassVar[str]
    """Title of the progress bar."""
    _merged = False
    """Whether all classes of the masks are merged."""

    def __init__(
        self,
        volumes: str | os.PathLike[str] | None,
        reduce: int,
        patch: Sequence[int],
        width: int,
        depth: int,
        epochs: int,
        epoch_size: int,
        every: int,
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
        require(sides, self, f"patch={patch!r} must be a list of 2 or 3 positive integers, one per axis")
        counts = {"reduce": reduce, "width": width, "depth": depth, "epochs": epochs, "epoch_size": epoch_size}
        for name, value in {**counts, "every": every, "patches": patches}.items():
            require(is_count(value), self, f"{name}={value!r} must be a positive integer")
        sound = _is_list(seeds) and all(is_count(seed, 0) and seed < 2**63 for seed in seeds)
        _distinct(self, "seeds", seeds, sound)
        require(cache is None or bool(str(cache)), self, "cache is empty: set a folder, or null for the default")
        require(workers is None or is_count(workers), self, f"workers={workers!r} must be a positive integer, or null")
        self.volumes = None if volumes is None else os.fspath(volumes)
        self.reduce = reduce
        self.patch = list(patch)
        self.width = width
        self.depth = depth
        self.epochs = epochs
        self.epoch_size = epoch_size
        self.every = every
        self.seeds = list(seeds)
        self.patches = patches
        self.cache = cache
        self.workers = workers
        self.device = device

    @property
    def identity(self) -> str | None:
        """Name and options; None, for the content of the data, if the volumes are files of the user."""
        return super().identity if self.volumes is None else None

    @abc.abstractmethod
    def _problems(self, cases: Cases) -> Sequence[Problem]:
        """The learning problems of the networks, which differ in their hyperparameters."""

    def models(self) -> Sequence[TaskModel]:
        """List one model per network and listed epoch; those that are not cached are trained first.

        Returns:
            The models, by problem, seed and epoch.

        Raises:
            OptionError: the cache cannot be written.
            DataError: the volumes cannot be used.
        """
        cases = self.cases()
        runs = self.runs(cases)
        for run in runs:
            remove_stale_temporaries(run.folder)
        known = {(run, epoch): metrics(run, epoch) for run in runs for epoch in self._listed}
        missing = [run for run in runs if any(known[run, epoch] is None for epoch in self._listed)]
        if missing:
            for run in missing:
                check_writable(run.folder)
            self._train(missing)
        scores = self._scores({key: found or metrics(*key) or {} for key, found in known.items()})
        own = self._own(cases)
        return [
            TaskModel(
                name=f"{run.folder.name}_epoch{epoch:02d}",
                build=functools.partial(_build, run, epoch, cases),
                hparams={**run.problem.hparams, "seed": run.seed, "epoch": epoch},
                metrics=scores[run, epoch],
                train=own.get(len(run.problem.training_cases(cases.train))),
            )
            for run in runs
            for epoch in self._listed
        ]

    def data(self, split: Split) -> Patches:
        """Patches of the training or test cases, and their targets.

        Args:
            split: "train" or "test".

        Returns:
            Inputs, float32 (``patches``, C, ``*S``), and masks int64 (``patches``, ``*S``) or targets float32
            (``patches``, C, ``*S``).
        """
        one_of(self, "split", split, self.splits)
        problems = self._problems(self.cases())
        return self._drawn(problems[-1], split)

    def cases(self) -> Cases:
        """The cases: a random fifth in the test split, the others in the training split.

        Returns:
            The cases, standardized and reduced.

        Raises:
            DataError: a file or case cannot be used; the message names it.
        """
        return _cases(self.volumes, self.reduce, self._merged)

    def runs(self, cases: Cases) -> list[TrainingRun]:
        """List the training runs of the task, each with the folder of its checkpoints.

        Args:
            cases: what :meth:`cases` returns.

        Returns:
            One run per problem and seed.
        """
        recipe = Recipe(
            patch=tuple(self.patch),
            epoch_size=self.epoch_size,
            width=self.width,
            depth=self.depth,
        )
        folder = self._folder(recipe, cases)
        return [
            TrainingRun(
                folder / "_".join([*_words(problem.hparams), f"seed{seed}"]), problem, recipe, seed, self.epochs
            )
            for problem in self._problems(cases)
            for seed in self.seeds
        ]

    @property
    def _epochs(self) -> range:
        return range(1, self.epochs + 1)

    @property
    def _listed(self) -> range:
        """The epochs that are models of the task."""
        return self._epochs[(self.epochs - 1) % self.every :: self.every]

    def _own(self, cases: Cases) -> Mapping[int, Patches]:
        """Training patches of networks that are not trained on all training cases, by their number of cases."""
        return {}

    def _own_patches(self, cases: Cases) -> Mapping[int, Patches]:
        """Training patches by number of cases, for networks that learn from different numbers."""
        by_number = {len(problem.training_cases(cases.train)): problem for problem in self._problems(cases)}
        return {number: self._drawn(problem, "train") for number, problem in by_number.items()}

    def _scores(self, known: Mapping[Checkpoint, Mapping[str, float]]) -> Mapping[Checkpoint, Mapping[str, float]]:
        """Metrics of the models, from those of training."""
        return known

    def _test_cases(self, cases: Cases) -> Sequence[Case]:
        """Cases of the test split, as the networks are measured on them."""
        return cases.test

    def _drawn(self, problem: Problem, split: Split) -> Patches:
        """Patches of the cases of a split."""
        cases = self.cases()
        members = self._test_cases(cases) if split == "test" else problem.training_cases(cases.train)
        sampler = problem.sampler(members, tuple(self.patch))
        x, y = sampler.draw(self.patches, np.random.default_rng(SPLITS.index(split)))
        return x, y

    def _train(self, runs: Sequence[TrainingRun]) -> None:
        """Train the networks of these runs."""
        with _progress(self.title, [run.checkpoint(epoch) for run in runs for epoch in self._epochs]):
            self._call(_train_one, [(self, run, str(self._training_device())) for run in runs])

    def _call(self, function: Callable[[_J], object], jobs: Sequence[_J]) -> None:
        """Call a function once per job, in parallel processes on the CPU."""
        # Processes that train at the same time compete for the memory of a GPU.
        workers = min(worker_count(self.workers), len(jobs)) if self._training_device().type == "cpu" else 1
        if workers > 1:
            run_in_processes(function, jobs, workers)
        else:
            for job in jobs:
                function(job)

    def _training_device(self) -> torch.device:
        """The device of the option, or a GPU if there is one."""
        if self.device is None:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return usable_device(self.device)

    def _folder(self, recipe: Recipe, cases: Cases) -> Path:
        """Cache folder of a recipe and its cases."""
        digest = hashlib.sha256(json.dumps([asdict(recipe), *self._settings()], sort_keys=True).encode())
        for case in (*cases.train, *cases.test):
            digest.update(f"{case.name} {case.image.shape}".encode() + case.image.tobytes())
            digest.update(b"" if case.mask is None else case.mask.tobytes())
        return cache_folder(self.cache, self.name) / digest.hexdigest()[:12]

    def _settings(self) -> list[Any]:
        """Options that the weights depend on besides the recipe, the cases, and the names of the folders."""
        return []


class UNetSegmentation(_UNets):
    """UNets that segment volumes, trained by several objectives: the models of Rajagopal et al. (2021).

    One residual UNet is trained per objective and seed, and its weights after each epoch are a model of the task.
    ``test_iou`` and ``test_dice`` are means over the test cases, a fifth of all cases, each predicted as a whole
    volume from overlapping patches. ``train_iou`` and ``train_dice`` are means over as many training cases. The
    measured patches have no, little and much foreground in equal numbers, as in training.

    With ``train_cases``, one network is trained per objective, number of training cases and seed, all for the same
    number of steps. With ``shift``, the test split is that of another scanner: its images are changed by
    :class:`~genmeasures_unet.shifts.Shift`, and ``test_iou`` and ``test_dice`` are those of the changed images;
    ``unshifted_iou`` and ``unshifted_dice`` are those of the images as they are.

    Missing networks are trained by ``models()`` and cached in ``<cache>/unet/<key>/<objective>_seed<n>/``, or
    ``<objective>_train_cases<m>_seed<n>/``, with their scores on shifted images. An interrupted training run resumes.

    Args:
        volumes: file or folder that :func:`~genmeasures_unet.volumes.read_cases` reads. None for the MNI152
            template, which needs the extra ``mri`` of genmeasures-unet.
        reduce: factor by which the resolution is reduced.
        foreground: "merged" for one foreground class, "classes" to keep all.
        patch: spatial size of the patches in voxels.
        width: channels of the first stage of the network.
        depth: stages of the encoder, and of the decoder.
        objectives: any of "mse", "bce", "dice" and "dice_bce".
        train_cases: numbers of training cases; None for all of them.
        shift: change of the test images, "noise", "contrast" or "resolution"; None for none.
        strength: strength of the shift: the standard deviation of the noise in units of that of the image, the power
            of the contrast, or the number of voxels that are averaged along each axis.
        epochs: number of epochs.
        epoch_size: number of patches per epoch; each epoch samples new ones.
        every: 1 for a model per epoch, 2 for one per second epoch, and so on, counted back from the last epoch.
        seeds: seeds of the initial weights and of the patches.
        patches: number of measured patches per split (198 in the paper).
        cache: cache folder. None for ``$GENMEASURES_CACHE``, or ``~/.cache/genmeasures``.
        workers: number of training processes. None for one per usable core.
        device: device to train on. None for a GPU if there is one.

    Raises:
        OptionError: an option is out of range.

    Example:
        >>> task = UNetSegmentation(patch=[8, 8, 8], objectives=["dice"], epochs=4)
        >>> task.name, task.metric, task.epochs
        ('unet', 'iou', 4)
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
        train_cases: Sequence[int] | None = None,
        shift: str | None = None,
        strength: float = 1.0,
        epochs: int = 32,
        epoch_size: int = 384,
        every: int = 1,
        seeds: Sequence[int] = (0,),
        patches: int = 198,
        cache: str | None = None,
        workers: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(
            volumes, reduce, patch, width, depth, epochs, epoch_size, every, seeds, patches, cache, workers, device
        )
        one_of(self, "foreground", foreground, ("merged", "classes"))
        _distinct(self, "objectives", objectives, _is_list(objectives))
        for objective in objectives:
            one_of(self, "objectives", objective, tuple(OBJECTIVES))
        if train_cases is not None:
            _check_train_cases(self, train_cases)
        self.foreground = foreground
        self._merged = foreground == "merged"
        self.objectives = list(objectives)
        self.train_cases = None if train_cases is None else list(train_cases)
        self.shift = shift
        self.strength = strength
        self._shift = None if shift is None else Shift(shift, strength)

    def _problems(self, cases: Cases) -> Sequence[Problem]:
        numbers: list[int] | list[None] = [None]
        if self.train_cases is not None:
            numbers = _available(self.train_cases, self, cases)
        for split, members in (("training", cases.train[: numbers[0]]), ("test", cases.test)):
            if not any(mask_of(case).any() for case in members):
                raise DataError(f"{self.volumes}: none of the {len(members)} {split} cases has any foreground")
        classes = 1 + max(int(mask_of(case).max()) for case in (*cases.train, *cases.test))
        return [Segmentation(objective, max(classes, 2), number) for objective in self.objectives for number in numbers]

    def _own(self, cases: Cases) -> Mapping[int, Patches]:
        return {} if self.train_cases is None else self._own_patches(cases)

    def _test_cases(self, cases: Cases) -> Sequence[Case]:
        return cases.test if self._shift is None else [self._shift.apply(case) for case in cases.test]

    def _scores(self, known: Mapping[Checkpoint, Mapping[str, float]]) -> Mapping[Checkpoint, Mapping[str, float]]:
        if self._shift is None:
            return known
        missing: dict[TrainingRun, list[int]] = {}
        for run, epoch in known:
            if shifted_metrics(run, epoch, self._shift) is None:
                missing.setdefault(run, []).append(epoch)
        device = str(self._training_device())
        self._call(_score_one, [(self, run, epochs, self._shift, device) for run, epochs in missing.items()])
        return {key: shifted_metrics(*key, self._shift) or {} for key in known}


class UNetDenoising(_UNets):
    """UNets that denoise volumes, trained on few or many cases: regression from image to image.

    The input is the standardized volume with Gaussian noise, the target the volume without it. One residual UNet is
    trained per number of training cases and seed, all for the same number of steps, and its weights after each epoch
    are a model of the task. ``test_r2`` and ``test_ssim`` are means over the test cases, a fifth of all cases, each
    predicted as a whole volume from overlapping patches. ``train_r2`` and ``train_ssim`` are means over the training
    cases of the network, at most as many. SSIM needs the extra ``mri`` of genmeasures-unet.

    Missing networks are trained by ``models()`` and cached in ``<cache>/unet_denoising/<key>/``. An interrupted
    training run resumes.

    Args:
        volumes: file or folder that :func:`~genmeasures_unet.volumes.read_cases` reads. None for the MNI152
            template, which needs the extra ``mri``.
        reduce: factor by which the resolution is reduced.
        noise: standard deviation of the noise, in units of that of a volume.
        patch: spatial size of the patches in voxels.
        width: channels of the first stage of the network.
        depth: stages of the encoder, and of the decoder.
        train_cases: numbers of training cases.
        epochs: number of epochs.
        epoch_size: number of patches per epoch; each epoch samples new ones.
        every: 1 for a model per epoch, 2 for one per second epoch, and so on, counted back from the last epoch.
        seeds: seeds of the initial weights and of the patches.
        patches: number of measured patches per split.
        cache: cache folder. None for ``$GENMEASURES_CACHE``, or ``~/.cache/genmeasures``.
        workers: number of training processes. None for one per usable core.
        device: device to train on. None for a GPU if there is one.

    Raises:
        OptionError: an option is out of range.

    Example:
        >>> task = UNetDenoising(train_cases=[1, 4], noise=0.5)
        >>> task.name, task.metric, task.train_cases
        ('unet_denoising', 'r2', [1, 4])
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
        every: int = 1,
        seeds: Sequence[int] = (0,),
        patches: int = 198,
        cache: str | None = None,
        workers: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(
            volumes, reduce, patch, width, depth, epochs, epoch_size, every, seeds, patches, cache, workers, device
        )
        positive = isinstance(noise, float | int) and not isinstance(noise, bool) and 0 < noise < float("inf")
        require(positive, self, f"noise={noise!r} must be a positive number")
        _check_train_cases(self, train_cases)
        self.noise = noise
        self.train_cases = list(train_cases)

    def _problems(self, cases: Cases) -> Sequence[Problem]:
        numbers = _available(self.train_cases, self, cases)
        # Checked here rather than when the first epoch is scored.
        all_cases = (*cases.train, *cases.test)
        for case in all_cases:
            if not case.image.any():  # standardized, so that a constant is zero
                raise DataError(f"case {case.name} is constant: there is nothing to denoise")
        thinnest = min(all_cases, key=lambda case: min(case.image.shape[1:]))
        try:
            ssim(thinnest.image[0], thinnest.image[0], 1.0)
        except DataError as error:
            raise DataError(f"case {thinnest.name}: {error}") from error
        return [Denoising(self.noise, number) for number in numbers]

    def _own(self, cases: Cases) -> Mapping[int, Patches]:
        return self._own_patches(cases)

    def _settings(self) -> list[Any]:
        return [self.noise]


@functools.lru_cache(maxsize=1)
def _cases(volumes: str | None, reduce: int, merged: bool) -> Cases:
    """The prepared cases, read once per process. Cached by value, because each job brings its own task."""
    raw = mni152() if volumes is None else read_cases(volumes)
    if len(raw) < 2:
        raise DataError(f"{volumes}: expected at least 2 cases, to train and to test with, got {len(raw)}")
    cases = [standardized(reduced(binary(case) if merged else case, reduce)) for case in raw]
    order = np.random.default_rng(0).permutation(len(cases))
    tested = max(1, round(_TEST_FRACTION * len(cases)))
    return Cases([cases[i] for i in order[tested:]], [cases[i] for i in order[:tested]])


def _train_one(job: tuple[_UNets, TrainingRun, str]) -> None:
    """Train the network of one run."""
    task, run, device = job
    with one_thread():
        train(run, task.cases(), torch.device(device))


def _score_one(job: tuple[_UNets, TrainingRun, Sequence[int], Shift, str]) -> None:
    """Score the networks of one run on the shifted test cases."""
    task, run, epochs, shift, device = job
    with one_thread():
        score_shifted(run, epochs, task.cases(), shift, torch.device(device))


def _build(run: TrainingRun, epoch: int, cases: Cases) -> nn.Module:
    """Load the network after an epoch."""
    try:
        return load(run, epoch, cases)
    except (FileNotFoundError, ValueError) as error:
        raise ModelError(f"{error}; list the models again to train it again") from error


@contextmanager
def _progress(title: str, checkpoints: Sequence[Path]) -> Iterator[None]:
    """Progress bar on standard error that counts the checkpoints on disk, whichever process writes them."""
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
    """Hyperparameters as parts of a name: strings as they are, numbers after their names."""
    return [value if isinstance(value, str) else f"{name}{value}" for name, value in hparams.items()]


def _is_list(value: object) -> bool:
    """Whether the value is a sequence that is not empty, and not a string."""
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _check_train_cases(task: Task, train_cases: Any) -> None:
    """Raise OptionError unless these are distinct positive numbers of training cases."""
    counts = all(is_count(number) for number in train_cases) if _is_list(train_cases) else False
    _distinct(task, "train_cases", train_cases, counts)


def _available(train_cases: Sequence[int], task: Task, cases: Cases) -> list[int]:
    """The numbers of training cases in ascending order, or OptionError if there are not so many cases."""
    numbers = sorted(train_cases)
    most = len(cases.train)
    require(numbers[-1] <= most, task, f"train_cases must be at most {most}, the training cases, got {numbers[-1]}")
    return numbers


def _distinct(task: Task, option: str, values: Any, sound: bool) -> None:
    """Raise OptionError unless the values are valid and distinct."""
    require(sound, task, f"{option}={values!r} must be a list of at least one valid value")
    require(len(set(values)) == len(values), task, f"{option}={list(values)} has duplicates")


__all__ = ["UNetDenoising", "UNetSegmentation"]
