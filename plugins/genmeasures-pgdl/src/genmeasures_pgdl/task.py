"""A PGDL task: networks of Keras, read without TensorFlow, with the data that they were trained and tested on."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from genmeasures.plugin import (
    SPLITS,
    DataError,
    ModelError,
    OptionError,
    Split,
    Task,
    TaskModel,
    cache_folder,
    nearest,
    one_of,
    require,
)
from genmeasures_pgdl.configs import ModelConfig, read_model_configs
from genmeasures_pgdl.folders import TaskFolder, choose_task
from genmeasures_pgdl.network import read_network
from genmeasures_pgdl.tfrecord import RecordDataset, shards_of
from genmeasures_pgdl.weights import load


class PGDL(Task):
    """A task of the competition "Predicting Generalization in Deep Learning" (NeurIPS 2020), as it is downloaded.

    path: the task's folder, a folder above it, or the zip archive. which: its name, task1_v4 for
    example, where the path holds several. cache: archives are unpacked in ``<cache>/pgdl`` (default:
    ``$GENMEASURES_CACHE``, or ``~/.cache/genmeasures``). An archive that is compressed more than 200 times is
    refused unless ``GENMEASURES_TRUST_ARCHIVES=1`` stands in the environment.

    Hyperparameters and metrics are read from ``model_configs.json``, in the task's folder or in
    ``reference_data`` beside it.

    Models are built one at a time, data are read record by record, with their checksums verified. A
    model whose files are damaged fails by itself. Images (H, W, C) come as (C, H, W).
    """

    name = "pgdl"
    incidental = ("cache",)

    def __init__(self, path: str | os.PathLike[str], which: str | None = None, cache: str | None = None) -> None:
        sound = isinstance(path, str | os.PathLike) and bool(os.fspath(path))
        require(sound, self, f"path={path!r} must be the path of a folder or of a zip archive")
        require(which is None or isinstance(which, str), self, f"which={which!r} must be the name of a task")
        sound = cache is None or (isinstance(cache, str) and bool(cache))
        require(sound, self, f"cache={cache!r} must be the path of a folder, or null for the default")
        self.path = os.fspath(path)
        self.which = which
        self.cache = cache

    @property
    def label(self) -> str:
        """The name of the task's folder, "task1_v4" for example."""
        return self._task().name

    @property
    def identity(self) -> str:
        """Its name and that of the task's folder: PGDL's tasks are known by it, wherever they lie."""
        return f"{self.name}({self.label})"

    def models(self) -> Sequence[TaskModel]:
        """The models by number, none of them loaded. Raises DataError naming the task and the file."""
        task = self._task()
        configs = read_model_configs(task.configs)
        ids = task.model_ids()
        for number in configs:
            if number not in ids:
                raise DataError(f"task {task.name}: {task.configs} names model {number}, but there is no folder for it")
        return [
            TaskModel(
                name=f"model_{number}",
                build=functools.partial(_build, task, number, configs.get(number)),
                hparams=configs[number].hparams if number in configs else {},
                metrics=configs[number].metrics if number in configs else {},
            )
            for number in ids
        ]

    def model(self, number: int | str, initial: bool = False) -> nn.Module:
        """One model with its trained weights, or those at initialization, on the CPU and in evaluation mode.

        Inputs are (B, C, *S) or (B, F), outputs are logits. Raises OptionError for a model that there
        is not, ModelError naming task, model and file.
        """
        task = self._task()
        name = str(number).removeprefix("model_")
        if name not in (ids := task.model_ids()):
            raise OptionError(f"task {task.name} has no model {name!r}{nearest(name, ids)}")
        return _load(task, name, "weights_init.hdf5" if initial else "weights.hdf5")

    def data(self, split: Split) -> RecordDataset:
        """Inputs float32 (C, *S) or (F,), and classes int64. Raises DataError naming the task and the file."""
        one_of(self, "split", split, SPLITS)
        task = self._task()
        try:
            return RecordDataset(shards_of(task.folder / "dataset_1" / split))
        except DataError as error:
            raise DataError(f"task {task.name}: {error}") from error

    def _task(self) -> TaskFolder:
        return choose_task(Path(self.path), self.which, cache_folder(self.cache, "pgdl"))


def _build(task: TaskFolder, number: str, config: ModelConfig | None) -> nn.Module:
    problem = "is missing" if config is None else config.problem
    if problem:
        raise ModelError(f"task {task.name}, model_{number}: {task.configs}: {problem}")
    return _load(task, number, "weights.hdf5")


def _load(task: TaskFolder, number: str, weights: str) -> nn.Module:
    folder = task.folder / f"model_{number}"
    try:
        return load(read_network(folder / "config.json"), folder / weights)
    except ModelError as error:
        raise ModelError(f"task {task.name}, model_{number}: {error}") from error
