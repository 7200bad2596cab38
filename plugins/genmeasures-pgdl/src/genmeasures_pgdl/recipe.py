"""Making tasks in the style of PGDL: a full grid of networks, trained here on data that the user has.

On the command line: ``python -m genmeasures_pgdl.recipe PATH --family vgg --data digits``.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    in_processes,
    is_count,
    nearest,
    one_thread,
    remove_stale_temporaries,
    start_worker,
    temporary_path,
    worker_count,
    write_atomically,
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
"""The levels of each family's hyperparameters; a task has all 32 combinations."""

DIGITS_TRAIN_SIZE = 200
"""With all digits, every network would be right on all but a few of the others: no gaps to predict."""

_LEARNING_RATE = 0.005
_VERSION = 1
"""Raised with each change of what is trained that the settings do not show."""
_LARGE_IMAGE = 16
_EVALUATION_BATCH = 500
_RECIPE = "recipe.json"
_TRAINING = "training.json"
_DATA = "dataset_1"


@dataclass(frozen=True)
class Settings:
    """All that a task's networks depend on."""

    family: str
    data: str
    digest: str
    """Of the images and classes."""
    train_size: int
    stop_loss: float
    epochs: int
    seed: int
    grid: dict[str, list[float | int | bool]]
    version: int = _VERSION

    def models(self) -> list[Hparams]:
        """All combinations of the grid; a model's number is its place."""
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
    """Train a grid of networks and store it as a PGDL task in the folder ``path``, which is returned.

    family: "vgg" (blocks of 3 × 3 convolutions and max pooling, then two dense layers) or "nin" (blocks
    of a 3 × 3 and some 1 × 1 convolutions, with batch normalization, then a global average). data:
    "digits", "fashion_mnist" or "cifar10", the latter two read from ``folder`` (see :func:`images`).
    train_size: how many training images, drawn at random with the seed; None for all, of the digits
    200. seed: of the draw and of each network. workers: number of processes; None for one a core. A
    network is the same whatever their number.
    grid: levels of hyperparameters in place of those in ``LEVELS``, by name: width (channels of the
    first block), depth (convolutions of a block: 3 × 3 in vgg, 1 × 1 in nin), dropout, weight_decay,
    batch_size; also batch_norm, which is else False in vgg, True in nin, and no hyperparameter.

    Each network is trained by AdamW (learning rate 0.005) on the cross-entropy until, at the end of an
    epoch, its mean over the training images, taken in evaluation mode, is at most ``stop_loss``, or for
    ``epochs`` epochs. Accuracies and losses in ``model_configs.json`` are those of the network as read
    back from its files. What is there from an earlier call, which may have been interrupted, is kept:
    ``recipe.json`` says from which settings.

    Raises OptionError for options that are unknown or out of range, and where the folder holds
    something else, or a task of other settings; DataError naming a file of the data.
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
    """The content of a ``config.json`` for images of that shape, (C, H, W)."""
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
        # The average at the end takes the place of the last pooling.
        layers += [{"layer_name": "MaxPooling2D", "pool_size": 2}] * (block < blocks - 1) + dropout
    last: Layer = {"layer_name": "Conv2D", "filters": CLASSES, "kernel_size": 1}
    return [*layers, last, {"layer_name": "GlobalAveragePooling2D"}]


def _convolution(filters: int, window: int, norm: bool) -> list[Layer]:
    layer: Layer = {"layer_name": "Conv2D", "filters": filters, "kernel_size": window, "padding": "same"}
    return [layer, *([{"layer_name": "BatchNormalization"}] if norm else []), {"layer_name": "ReLU"}]


def _dropout(hparams: Hparams) -> list[Layer]:
    return [{"layer_name": "Dropout", "rate": hparams["dropout"]}] if hparams["dropout"] else []


# Options, data and the folder


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "width": (is_count, "integers from 1"),
    "depth": (is_count, "integers from 1"),
    "batch_size": (is_count, "integers from 1"),
    "dropout": (lambda value: _is_number(value) and 0 <= value < 1, "numbers from 0 to below 1"),
    "weight_decay": (lambda value: _is_number(value) and 0 <= value < math.inf, "numbers from 0"),
    "batch_norm": (lambda value: isinstance(value, bool), "True or False"),
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
        allowed, what = _ALLOWED[name]
        if not values or not all(map(allowed, values)) or len(set(values)) < len(values):
            raise OptionError(f"grid: {name} is {values}: different {what} are needed")
    return levels


def _check_numbers(train_size: int | None, stop_loss: float, epochs: int, seed: int, workers: int | None) -> None:
    for name, value, least in (
        ("train_size", 1 if train_size is None else train_size, 1),
        ("epochs", epochs, 1),
        ("seed", seed, 0),
        ("workers", 1 if workers is None else workers, 1),
    ):
        if not is_count(value, least):
            raise OptionError(f"{name}={value!r} must be an integer from {least}")
    if not _is_number(stop_loss) or not 0 <= stop_loss < math.inf:
        raise OptionError(f"stop_loss={stop_loss!r} must be a number from 0")


def _drawn(sets: Images, data: str, train_size: int | None, seed: int) -> Images:
    x, y, test_x, test_y = sets
    size = train_size or (DIGITS_TRAIN_SIZE if data == "digits" else len(x))
    if size > len(x):
        raise OptionError(f"train_size={size}: {data} has {len(x)} images for training")
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:size]
    return x[rows], y[rows], test_x, test_y


def _digest(sets: Images) -> str:
    digest = hashlib.sha256()
    for part in sets:
        digest.update(str(tuple(part.shape)).encode())
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def _claim(path: Path, settings: Settings) -> None:
    """Make the folder this task's, or see that it is. Raises OptionError where it holds something else."""
    known = json.loads(json.dumps(asdict(settings)))
    file = path / _RECIPE
    remove_stale_temporaries(path)
    if not path.is_dir() or not any(path.iterdir()):
        path.mkdir(parents=True, exist_ok=True)
        _write_json(file, known)
        return
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise OptionError(f"{path} holds files and no {_RECIPE}: give another folder, or an empty one") from error
    except ValueError as error:
        raise OptionError(f"{file} is damaged: {error}; give another folder") from error
    if not isinstance(found, dict) or found != known:
        found = found if isinstance(found, dict) else {}
        other = [f"{name} {found.get(name)!r}, not {known[name]!r}" for name in known if found.get(name) != known[name]]
        raise OptionError(f"{path} holds another task ({'; '.join(other)}): give another folder")


def _write_data(path: Path, sets: Images) -> None:
    if (path / _DATA).is_dir():
        return
    with _whole(path / _DATA) as part:
        write_split(part / "train", *sets[:2])
        write_split(part / "test", *sets[2:])


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A new folder, which takes the place of the one named once everything is in it."""
    part = temporary_path(folder)
    part.mkdir()
    try:
        yield part
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _write_configs(path: Path, settings: Settings) -> None:
    hparams = {str(number): known for number, known in enumerate(settings.models())}
    metrics = {number: _metrics(path, int(number)) or {} for number in hparams}
    write_model_configs(path / "model_configs.json", hparams, metrics)


def _metrics(path: Path, number: int) -> dict[str, float] | None:
    """Those of a model that is there, else None."""
    try:
        metrics = json.loads((path / f"model_{number}" / _TRAINING).read_bytes())["metrics"]
        return {name: float(value) for name, value in metrics.items()}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


# Training


class _Maker:
    """Trains and writes the models of one task, with the data as they are read from it."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.settings = path, settings
        self.models = settings.models()
        self.train, self.test = (_read_all(path / _DATA / split) for split in ("train", "test"))

    def make(self, number: int) -> None:
        """Train a model and write its folder, whole or not at all."""
        config = architecture(self.settings.family, self.models[number], self.train[0].shape[1:])
        folder = self.path / f"model_{number}"
        with one_thread():
            trained, initial, epochs = self._train(config, self.models[number])
            with _whole(folder) as part:
                write_model(part, config, trained, initial)
                metrics = self._measured(load(read_network(part / "config.json"), part / "weights.hdf5"))
                _write_json(part / _TRAINING, {"epochs": epochs, "metrics": metrics})

    def _train(self, config: Mapping[str, Any], hparams: Hparams) -> tuple[nn.Module, nn.Module, int]:
        """The trained network, the same before training, and the number of epochs."""
        x, y = self.train
        # Initial weights and dropout draw from the global generator, whose state must come back as it was.
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(_model_seed(self.settings.seed, hparams))
            model = _initialized(config)
            initial = copy.deepcopy(model)
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=_LEARNING_RATE, weight_decay=float(hparams["weight_decay"]), fused=True
            )
            epochs, mean = 0, math.inf
            while epochs < self.settings.epochs and mean > self.settings.stop_loss:
                model.train()
                for rows in torch.randperm(len(x)).split(int(hparams["batch_size"])):
                    loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                epochs, mean = epochs + 1, _evaluated(model.eval(), x, y)[1]
        return model, initial, epochs

    def _measured(self, model: nn.Module) -> dict[str, float]:
        made = {}
        for split, data in (("train", self.train), ("test", self.test)):
            made[f"{split}_accuracy"], made[f"{split}_loss"] = _evaluated(model, *data)
        # A network that diverged has accuracies all the same; JSON has no word for its losses.
        return {name: value for name, value in made.items() if math.isfinite(value)}


def _read_all(folder: Path) -> tuple[Tensor, Tensor]:
    """All images float32 (N, C, H, W), contiguous, and classes int64 (N,) of a split."""
    records = RecordDataset(shards_of(folder))
    rows = records.__getitems__(range(len(records)))
    # Contiguous one by one: by its strides torch would take the channels to come last, and round otherwise.
    x = torch.stack([torch.as_tensor(image).contiguous() for image, _ in rows])
    return x, torch.tensor([int(label) for _, label in rows])


def _model_seed(seed: int, hparams: Hparams) -> int:
    text = json.dumps([seed, sorted(hparams.items())])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def _initialized(config: Mapping[str, Any]) -> nn.Module:
    """A network as Keras initializes it, with draws from torch's global generator."""
    network = build_network(config).module.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return network


def _evaluated(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Accuracy and mean cross-entropy, in float64, of a model in evaluation mode."""
    right, losses = [], []
    with torch.inference_mode():
        for images_, classes in zip(x.split(_EVALUATION_BATCH), y.split(_EVALUATION_BATCH), strict=True):
            logits = model(images_)
            right.append(logits.argmax(1) == classes)
            losses.append(nn.functional.cross_entropy(logits.double(), classes, reduction="none"))
    return float(torch.cat(right).double().mean()), float(torch.cat(losses).mean())


def _train_all(path: Path, settings: Settings, workers: int | None) -> None:
    """Make the models that are not there, with a progress bar on standard error."""
    numbers = range(len(settings.models()))
    missing = [number for number in numbers if _metrics(path, number) is None]
    if not missing:
        return
    workers = min(worker_count(workers), len(missing))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"Training {settings.family} networks on {settings.data}", total=len(numbers))
        progress.advance(bar, len(numbers) - len(missing))
        if workers > 1:
            in_processes(_make, missing, workers, lambda: progress.advance(bar), _start, path, settings)
            return
        maker = _Maker(path, settings)
        for number in missing:
            maker.make(number)
            progress.advance(bar)


_maker: _Maker | None = None
"""In a process that trains: its own, so that data are read once and not sent with every model."""


def _start(path: Path, settings: Settings) -> None:
    global _maker
    start_worker()
    _maker = _Maker(path, settings)


def _make(number: int) -> None:
    assert _maker is not None
    _maker.make(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the status to exit with."""
    parser = argparse.ArgumentParser(
        prog="python -m genmeasures_pgdl.recipe", description="Train a grid of networks as a PGDL task."
    )
    parser.add_argument("path", metavar="PATH", help="folder of the task; models that are there are kept")
    parser.add_argument("--family", default="vgg", help=f"one of {', '.join(LEVELS)} (default: vgg)")
    parser.add_argument("--data", default="digits", help=f"one of {', '.join(SOURCES)} (default: digits)")
    parser.add_argument("--folder", help="folder with the files of the data; digits need none")
    parser.add_argument("--train-size", type=int, help="number of training images (default: all; of digits 200)")
    parser.add_argument("--stop-loss", type=float, default=0.01, help="training loss to stop at (default: 0.01)")
    parser.add_argument("--epochs", type=int, default=60, help="largest number of epochs (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--workers", type=int, help="number of processes (default: one a core)")
    try:
        print(make_task(**vars(parser.parse_args(arguments))))
    except GenmeasuresError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["DIGITS_TRAIN_SIZE", "LEVELS", "Settings", "architecture", "main", "make_task"]
