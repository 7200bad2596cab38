"""Training of new tasks in the style of PGDL: a full grid of networks on a small data set.

Command line: ``python -m genmeasures_pgdl.recipe PATH --family vgg --data digits``.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from genmeasures.plugin import (
    GenmeasuresError,
    OptionError,
    is_count,
    nearest,
    one_thread,
    remove_stale_temporaries,
    run_in_processes,
    worker_count,
    write_atomically,
    write_folder_atomically,
)
from genmeasures_pgdl.network import build_network, read_network
from genmeasures_pgdl.sources import CLASSES, SOURCES, Images, images
from genmeasures_pgdl.tfrecord import RecordDataset, shards_of
from genmeasures_pgdl.weights import load
from genmeasures_pgdl.writer import write_model, write_model_configs, write_split

Hparams: TypeAlias = Mapping[str, float | int | bool]
Layer: TypeAlias = dict[str, Any]

LEVELS: dict[str, dict[str, tuple[float | int | bool, ...]]] = {
    "vgg": {
        "width": (8, 16),
        "depth": (1, 2),
        "dropout": (0.0, 0.3),
        "weight_decay": (0.0, 0.1),
        "batch_size": (8, 32),
    },
    "nin": {
        "width": (12, 24),
        "depth": (1, 2),
        "dropout": (0.0, 0.2),
        "weight_decay": (0.0, 0.1),
        "batch_size": (8, 32),
    },
}
"""Levels of the hyperparameters of each family; a task has all 32 combinations."""

DIGITS_TRAIN_SIZE = 200
"""Training digits by default; with all 1197, the generalization gaps would be too small to predict."""

_LEARNING_RATE = 0.005
"""Learning rate where it is no hyperparameter."""
_VERSION = 1
"""Incremented when the training changes in a way that the other settings do not show."""
_LARGE_IMAGE = 16
_EVALUATION_BATCH = 500
_RECIPE = "recipe.json"
_TRAINING = "training.json"
_DATA = "dataset_1"


@dataclass(frozen=True)
class Settings:
    """Everything that the networks of a task depend on.

    Attributes:
        family: family of architectures.
        data: name of the data set.
        digest: hash of the images and classes.
        train_size: number of training images.
        stop_loss: training loss at which training stops.
        epochs: largest number of epochs.
        seed: seed of the run.
        grid: levels of the hyperparameters by name.
        version: version of the training procedure.

    Example:
        >>> settings = Settings("vgg", "digits", "", 200, 0.01, 60, 0, {"width": [8, 16], "depth": [1, 2]})
        >>> settings.models()[1]
        {'width': 8, 'depth': 2}
    """

    family: str
    data: str
    digest: str
    train_size: int
    stop_loss: float
    epochs: int
    seed: int
    grid: dict[str, list[float | int | bool]]
    version: int = _VERSION

    def models(self) -> list[Hparams]:
        """All combinations of the grid; the number of a model is its index."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


def make_task(
    path: str | os.PathLike[str],
    family: str = "vgg",
    data: str = "digits",
    folder: str | os.PathLike[str] | None = None,
    train_size: int | None = None,
    stop_loss: float = 0.01,
    epochs: int = 60,
    seed: int = 0,
    workers: int | None = None,
    grid: Mapping[str, Sequence[float | int | bool]] | None = None,
) -> Path:
    """Train a grid of networks and store them as a PGDL task.

    Each network is trained by AdamW on the cross-entropy. Training stops at the end of the first
    epoch at which the mean over the training images, in evaluation mode, is at most ``stop_loss``, or after ``epochs``
    epochs. Accuracies and losses in ``model_configs.json`` are those of the network as read back from its files.
    Models of an earlier call with the same settings, which may have been interrupted, are kept; ``recipe.json`` holds
    the settings.

    Args:
        path: folder of the task; it is created if needed.
        family: ``"vgg"`` (blocks of 3 × 3 convolutions and max pooling, then two dense layers) or ``"nin"`` (blocks of
            one 3 × 3 and several 1 × 1 convolutions with batch normalization, then global average pooling).
        data: ``"digits"``, ``"fashion_mnist"`` or ``"cifar10"``, see :func:`genmeasures_pgdl.sources.images`.
        folder: folder with the files of the data set; digits need none.
        train_size: number of training images, drawn at random with the seed (default: all; 200 digits).
        stop_loss: training loss at which training stops.
        epochs: largest number of epochs.
        seed: seed of the draw of images and of each network.
        workers: number of processes (default: one per core). The networks do not depend on it.
        grid: levels of hyperparameters by name, replacing those in ``LEVELS``: ``width`` (channels of the first
            block), ``depth`` (convolutions per block: 3 × 3 in vgg, 1 × 1 in nin), ``dropout``, ``weight_decay``,
            ``batch_size``, ``batch_norm`` (default: no hyperparameter, False in vgg and True in nin) and
            ``learning_rate`` (default: no hyperparameter, 0.005; with the large images of CIFAR-10 and without batch
            normalization, networks learn at 0.001).

    Returns:
        The folder of the task.

    Raises:
        OptionError: an option is unknown or out of range, or the folder cannot be written, has other files or a task
            with other settings.
        DataError: a file of the data set is missing or damaged; the message names it.

    Example:
        >>> import tempfile
        >>> from genmeasures_pgdl import PGDL
        >>> grid = {"width": [2], "depth": [1], "dropout": [0.0], "weight_decay": [0.0], "batch_size": [8]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     task = PGDL(make_task(folder, train_size=8, epochs=1, workers=1, grid=grid))
        ...     [model.name for model in task.models()]
        ['model_0']
    """
    path = Path(path)
    levels = _levels(family, grid)
    _check_numbers(train_size, stop_loss, epochs, seed, workers)
    sets = _drawn(images(data, None if folder is None else Path(folder)), data, train_size, seed)
    settings = Settings(family, data, _digest(sets), len(sets[0]), float(stop_loss), epochs, seed, levels)
    try:
        _claim(path, settings)
        _write_data(path, sets)
        _train_all(path, settings, workers)
        _write_configs(path, settings)
    except OSError as error:
        raise OptionError(f"cannot write {error.filename or path}: {error.strerror or error}") from error
    return path


def architecture(family: str, hparams: Hparams, shape: Sequence[int]) -> dict[str, Any]:
    """The architecture of a family with given hyperparameters.

    Args:
        family: ``"vgg"`` or ``"nin"``.
        hparams: ``width``, ``depth``, ``dropout``, and optionally ``batch_norm``.
        shape: shape of the images, (C, H, W).

    Returns:
        The content of a ``config.json``, as in :func:`genmeasures_pgdl.network.build_network`.

    Example:
        >>> config = architecture("vgg", {"width": 8, "depth": 1, "dropout": 0.0}, (1, 8, 8))
        >>> [layer["layer_name"] for layer in config["model_config"]][:3]
        ['Conv2D', 'ReLU', 'MaxPooling2D']
    """
    channels, height, width = shape
    blocks = 3 if min(height, width) >= _LARGE_IMAGE else 2
    layers = (_vgg if family == "vgg" else _nin)(hparams, blocks)
    return {"model_config": layers, "input_shape": [height, width, channels]}


def _vgg(hparams: Hparams, blocks: int) -> list[Layer]:
    norm, width, dropout = bool(hparams.get("batch_norm", False)), int(hparams["width"]), _dropout(hparams)
    layers: list[Layer] = []
    for block in range(blocks):
        for _ in range(int(hparams["depth"])):
            layers += _convolution(width << block, 3, norm)
        layers += [{"layer_name": "MaxPooling2D", "pool_size": 2}, *dropout]
    dense: list[Layer] = [{"layer_name": "Dense", "units": 4 * width}, {"layer_name": "ReLU"}]
    return [*layers, {"layer_name": "Flatten"}, *dense, *dropout, {"layer_name": "Dense", "units": CLASSES}]


def _nin(hparams: Hparams, blocks: int) -> list[Layer]:
    norm, width, dropout = bool(hparams.get("batch_norm", True)), int(hparams["width"]), _dropout(hparams)
    layers: list[Layer] = []
    for block in range(blocks):
        layers += _convolution(width << block, 3, norm)
        for _ in range(int(hparams["depth"])):
            layers += _convolution(width << block, 1, norm)
        # Global average pooling at the end replaces the last max pooling.
        layers += [{"layer_name": "MaxPooling2D", "pool_size": 2}] * (block < blocks - 1) + dropout
    last: Layer = {"layer_name": "Conv2D", "filters": CLASSES, "kernel_size": 1}
    return [*layers, last, {"layer_name": "GlobalAveragePooling2D"}]


def _convolution(filters: int, window: int, norm: bool) -> list[Layer]:
    layer: Layer = {"layer_name": "Conv2D", "filters": filters, "kernel_size": window, "padding": "same"}
    return [layer, *([{"layer_name": "BatchNormalization"}] if norm else []), {"layer_name": "ReLU"}]


def _dropout(hparams: Hparams) -> list[Layer]:
    return [{"layer_name": "Dropout", "rate": hparams["dropout"]}] if hparams["dropout"] else []


# Options, data and the folder of the task


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "width": (is_count, "integers of at least 1"),
    "depth": (is_count, "integers of at least 1"),
    "batch_size": (is_count, "integers of at least 1"),
    "dropout": (lambda value: _is_number(value) and 0 <= value < 1, "numbers in [0, 1)"),
    "weight_decay": (lambda value: _is_number(value) and 0 <= value < math.inf, "finite numbers of at least 0"),
    "batch_norm": (lambda value: isinstance(value, bool), "Booleans"),
    "learning_rate": (lambda value: _is_number(value) and 0 < value < math.inf, "finite numbers above 0"),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _levels(
    family: str, grid: Mapping[str, Sequence[float | int | bool]] | None
) -> dict[str, list[float | int | bool]]:
    if family not in LEVELS:
        raise OptionError(f"family={family!r} is unknown{nearest(str(family), LEVELS)}")
    levels = {name: list(values) for name, values in {**LEVELS[family], **(grid or {})}.items()}
    for name, values in levels.items():
        if name not in _ALLOWED:
            raise OptionError(f"grid: there is no hyperparameter {name!r}{nearest(str(name), _ALLOWED)}")
        allowed, kind = _ALLOWED[name]
        if not values or not all(map(allowed, values)) or len(set(values)) < len(values):
            raise OptionError(f"grid: {name} must be distinct {kind}, got {values}")
    return levels


def _check_numbers(train_size: int | None, stop_loss: float, epochs: int, seed: int, workers: int | None) -> None:
    for name, value, least in (
        ("train_size", 1 if train_size is None else train_size, 1),
        ("epochs", epochs, 1),
        ("seed", seed, 0),
        ("workers", 1 if workers is None else workers, 1),
    ):
        if not is_count(value, least):
            raise OptionError(f"{name} must be an integer of at least {least}, got {value!r}")
    if not _is_number(stop_loss) or not 0 <= stop_loss < math.inf:
        raise OptionError(f"stop_loss must be a finite number of at least 0, got {stop_loss!r}")


def _drawn(sets: Images, data: str, train_size: int | None, seed: int) -> Images:
    x, y, test_x, test_y = sets
    size = train_size or (DIGITS_TRAIN_SIZE if data == "digits" else len(x))
    if size > len(x):
        raise OptionError(f"train_size must be at most {len(x)}, the number of training images of {data}, got {size}")
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:size]
    return x[rows], y[rows], test_x, test_y


def _digest(sets: Images) -> str:
    digest = hashlib.sha256()
    for part in sets:
        digest.update(str(tuple(part.shape)).encode())
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def _claim(path: Path, settings: Settings) -> None:
    """Write the settings into a new folder, or check those of an existing one; OptionError if they differ."""
    expected = json.loads(json.dumps(asdict(settings)))
    file = path / _RECIPE
    remove_stale_temporaries(path)
    if not path.is_dir() or not any(path.iterdir()):
        path.mkdir(parents=True, exist_ok=True)
        _write_json(file, expected)
        return
    try:
        stored = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise OptionError(f"{path} is not empty and has no {_RECIPE}: choose another folder") from error
    except ValueError as error:
        raise OptionError(f"{file} is damaged: {error}; choose another folder") from error
    if not isinstance(stored, dict) or stored != expected:
        stored = stored if isinstance(stored, dict) else {}
        differences = [
            f"{name}: expected {value!r}, got {stored.get(name)!r}"
            for name, value in expected.items()
            if stored.get(name) != value
        ]
        raise OptionError(f"{path} holds a task with other settings ({'; '.join(differences)}): choose another folder")


def _write_data(path: Path, sets: Images) -> None:
    if (path / _DATA).is_dir():
        return
    with write_folder_atomically(path / _DATA) as temporary:
        write_split(temporary / "train", *sets[:2])
        write_split(temporary / "test", *sets[2:])


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _write_configs(path: Path, settings: Settings) -> None:
    hparams = {str(number): model_hparams for number, model_hparams in enumerate(settings.models())}
    metrics = {number: _stored_metrics(path, int(number)) or {} for number in hparams}
    write_model_configs(path / "model_configs.json", hparams, metrics)


def _stored_metrics(path: Path, number: int) -> dict[str, float] | None:
    """The metrics of a trained model, or None if it has none yet."""
    try:
        metrics = json.loads((path / f"model_{number}" / _TRAINING).read_bytes())["metrics"]
        return {name: float(value) for name, value in metrics.items()}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


# Training


class _Trainer:
    """Trains and writes the models of one task, on the data as read back from its files."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.settings = path, settings
        self.models = settings.models()
        self.train, self.test = (_read_all(path / _DATA / split) for split in ("train", "test"))

    def run(self, number: int) -> None:
        """Train a model and write its folder atomically."""
        config = architecture(self.settings.family, self.models[number], self.train[0].shape[1:])
        folder = self.path / f"model_{number}"
        with one_thread():
            trained, initial, epochs = self._train(config, self.models[number])
            with write_folder_atomically(folder) as temporary:
                write_model(temporary, config, trained, initial)
                metrics = self._metrics(load(read_network(temporary / "config.json"), temporary / "weights.hdf5"))
                _write_json(temporary / _TRAINING, {"epochs": epochs, "metrics": metrics})
                shutil.rmtree(folder, ignore_errors=True)  # of a model whose training.json is damaged

    def _train(self, config: Mapping[str, Any], hparams: Hparams) -> tuple[nn.Module, nn.Module, int]:
        """The trained network, the network before training, and the number of epochs."""
        x, y = self.train
        # Initialization and dropout draw from the global generator, whose state is restored.
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(_model_seed(self.settings.seed, hparams))
            model = _initialized(config)
            initial = copy.deepcopy(model)
            optimizer = torch.optim.AdamW(
                model.parameters(),
                lr=float(hparams.get("learning_rate", _LEARNING_RATE)),
                weight_decay=float(hparams["weight_decay"]),
                fused=True,
            )
            epochs, mean = 0, math.inf
            while epochs < self.settings.epochs and mean > self.settings.stop_loss:
                model.train()
                for rows in torch.randperm(len(x)).split(int(hparams["batch_size"])):
                    loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                epochs, mean = epochs + 1, _evaluate(model.eval(), x, y)[1]
        return model, initial, epochs

    def _metrics(self, model: nn.Module) -> dict[str, float]:
        metrics = {}
        for split, data in (("train", self.train), ("test", self.test)):
            metrics[f"{split}_accuracy"], metrics[f"{split}_loss"] = _evaluate(model, *data)
        # The losses of a network that diverged are not finite, which JSON cannot express.
        return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _read_all(folder: Path) -> tuple[Tensor, Tensor]:
    """All images float32 (N, C, H, W), contiguous, and classes int64 (N,) of a split."""
    records = RecordDataset(shards_of(folder))
    rows = records.__getitems__(range(len(records)))
    # Each image is made contiguous: its strides would select channels-last kernels, which round differently.
    x = torch.stack([torch.as_tensor(image).contiguous() for image, _ in rows])
    return x, torch.tensor([int(label) for _, label in rows])


def _model_seed(seed: int, hparams: Hparams) -> int:
    text = json.dumps([seed, sorted(hparams.items())])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def _initialized(config: Mapping[str, Any]) -> nn.Module:
    """A network initialized as in Keras, drawn from the global generator of torch."""
    network = build_network(config).module.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return network


def _evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of a model in evaluation mode, in float64."""
    correct, losses = [], []
    with torch.inference_mode():
        for batch, classes in zip(x.split(_EVALUATION_BATCH), y.split(_EVALUATION_BATCH), strict=True):
            logits = model(batch)
            correct.append(logits.argmax(1) == classes)
            losses.append(nn.functional.cross_entropy(logits.double(), classes, reduction="none"))
    return float(torch.cat(correct).double().mean()), float(torch.cat(losses).mean())


def _train_all(path: Path, settings: Settings, workers: int | None) -> None:
    """Train the models that are missing, with a progress bar on standard error."""
    numbers = range(len(settings.models()))
    missing = [number for number in numbers if _stored_metrics(path, number) is None]
    if not missing:
        return
    workers = min(worker_count(workers), len(missing))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"Training {settings.family} networks on {settings.data}", total=len(numbers))
        progress.advance(bar, len(numbers) - len(missing))
        if workers > 1:
            run_in_processes(_train_model, missing, workers, lambda: progress.advance(bar), _start, path, settings)
            return
        trainer = _Trainer(path, settings)
        for number in missing:
            trainer.run(number)
            progress.advance(bar)


_trainer: _Trainer | None = None
"""The trainer of a worker process, which reads the data once instead of receiving them with every model."""


def _start(path: Path, settings: Settings) -> None:
    global _trainer
    _trainer = _Trainer(path, settings)


def _train_model(number: int) -> None:
    assert _trainer is not None
    _trainer.run(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the arguments (default: those of the process).

    Returns:
        The exit status, 0 or 2.

    Example:
        >>> main(["task", "--family", "none"])
        2
    """
    parser = argparse.ArgumentParser(
        prog="python -m genmeasures_pgdl.recipe", description="Train a grid of networks as a PGDL task."
    )
    parser.add_argument("path", metavar="PATH", help="folder of the task; models that it already has are kept")
    parser.add_argument("--family", default="vgg", help=f"one of {', '.join(LEVELS)} (default: vgg)")
    parser.add_argument("--data", default="digits", help=f"one of {', '.join(SOURCES)} (default: digits)")
    parser.add_argument("--folder", help="folder with the files of the data; digits need none")
    parser.add_argument("--train-size", type=int, help="number of training images (default: all; 200 digits)")
    parser.add_argument("--stop-loss", type=float, default=0.01, help="training loss to stop at (default: 0.01)")
    parser.add_argument("--epochs", type=int, default=60, help="largest number of epochs (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images drawn and of the networks (default: 0)")
    parser.add_argument("--workers", type=int, help="number of processes (default: one per core)")
    try:
        print(make_task(**vars(parser.parse_args(arguments))))
    except GenmeasuresError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["DIGITS_TRAIN_SIZE", "LEVELS", "Settings", "architecture", "main", "make_task"]
