"""The task ``pgdl``: Keras networks with their training and test data, read without TensorFlow."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from genmeasures.plugin import (
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
    """A task of the competition "Predicting Generalization in Deep Learning" (NeurIPS 2020), read as downloaded.

    Hyperparameters and metrics are read from ``model_configs.json``, in the task's folder or in ``reference_data``
    next to it. Models are built one at a time. Data are read record by record, and all checksums are verified. A model
    with damaged files fails without affecting the others.

    Source: Jiang et al. 2020, *NeurIPS 2020 Competition: Predicting Generalization in Deep Learning*
    (arXiv:2012.07976).

    Args:
        path: the task's folder, a folder above it, or the zip archive.
        which: name of the task, such as ``task1_v4``; required if the path holds several.
        cache: archives are unpacked into ``<cache>/pgdl`` (default: ``$GENMEASURES_CACHE``, or
            ``~/.cache/genmeasures``). An archive with a compression ratio above 200 is refused unless
            ``GENMEASURES_TRUST_ARCHIVES=1`` is set in the environment.

    Raises:
        OptionError: an option is of the wrong type.

    Example:
        >>> import tempfile, torch
        >>> from genmeasures_pgdl.writer import write_model, write_model_configs, write_split
        >>> config = {"model_config": [{"layer_name": "Dense", "units": 2}], "input_shape": [3]}
        >>> model = nn.Sequential()
        >>> model.add_module("dense", nn.Linear(3, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mine"
        ...     write_model(path / "model_0", config, model, model)
        ...     metrics = {"train_accuracy": 1.0, "test_accuracy": 0.9}
        ...     write_model_configs(path / "model_configs.json", {"0": {"width": 2}}, {"0": metrics})
        ...     write_split(path / "dataset_1" / "train", torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]))
        ...     task = PGDL(path)
        ...     print(task.models()[0].name, task.model(0)(torch.zeros(1, 3)).shape, len(task.data("train")))
        model_0 torch.Size([1, 2]) 4
    """

    name = "pgdl"
    incidental = ("cache",)

    def __init__(self, path: str | os.PathLike[str], which: str | None = None, cache: str | None = None) -> None:
        valid = isinstance(path, str | os.PathLike) and bool(os.fspath(path))
        require(valid, self, f"path={path!r} must be the path of a folder or of a zip archive")
        require(which is None or isinstance(which, str), self, f"which={which!r} must be the name of a task")
        valid = cache is None or (isinstance(cache, str) and bool(cache))
        require(valid, self, f"cache={cache!r} must be the path of a folder, or null for the default")
        self.path = os.fspath(path)
        self.which = which
        self.cache = cache

    @property
    def label(self) -> str:
        """The name of the task's folder, such as ``task1_v4``."""
        return self._task().name

    @property
    def identity(self) -> str:
        """Name and label: a PGDL task is identified by the name of its folder, wherever that is."""
        return f"{self.name}({self.label})"

    def models(self) -> Sequence[TaskModel]:
        """The models, sorted by number; their weights are read when they are built.

        Raises:
            DataError: the task or its metrics cannot be read; the message names the file.
            OptionError: the path holds several tasks, or not the chosen one.
        """
        task = self._task()
        configs = read_model_configs(task.configs)
        ids = task.model_ids()
        for number in configs:
            if number not in ids:
                raise DataError(
                    f"task {task.name}: {task.configs} has the model {number}, but there is no folder for it"
                )
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
        """Build one model.

        Args:
            number: number of the model, 20 or ``"model_20"``.
            initial: whether to load the weights at initialization instead of the trained ones.

        Returns:
            The model, on the CPU and in evaluation mode. Inputs are float32 (B, C, *S) or (B, F), outputs are logits.

        Raises:
            OptionError: there is no such model.
            ModelError: a file of the model is damaged; the message names the task, model and file.
        """
        task = self._task()
        name = str(number).removeprefix("model_")
        if name not in (ids := task.model_ids()):
            raise OptionError(f"task {task.name} has no model {name!r}{nearest(name, ids)}")
        return _load(task, name, "weights_init.hdf5" if initial else "weights.hdf5")

    def data(self, split: Split) -> RecordDataset:
        """The data of a split: inputs float32 (C, *S) or (F,), and classes int64 ().

        Args:
            split: ``"train"`` or ``"test"``.

        Raises:
            OptionError: the split is unknown.
            DataError: a file is missing or damaged; the message names the task and the file.
        """
        one_of(self, "split", split, self.splits)
        task = self._task()
        try:
            return RecordDataset(shards_of(task.folder / "dataset_1" / split))
        except DataError as error:
            raise DataError(f"task {task.name}: {error}") from error

    def _task(self) -> TaskFolder:
        return choose_task(Path(self.path), self.which, cache_folder(self.cache, "pgdl"))


def _build(task: TaskFolder, number: str, config: ModelConfig | None) -> nn.Module:
    problem = "the model is missing" if config is None else config.problem
    if problem:
        raise ModelError(f"task {task.name}, model_{number}: {task.configs}: {problem}")
    return _load(task, number, "weights.hdf5")


def _load(task: TaskFolder, number: str, weights: str) -> nn.Module:
    folder = task.folder / f"model_{number}"
    try:
        return load(read_network(folder / "config.json"), folder / weights)
    except ModelError as error:
        raise ModelError(f"task {task.name}, model_{number}: {error}") from error


__all__ = ["PGDL"]
