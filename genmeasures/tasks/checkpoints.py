"""Task of a folder of trained PyTorch weights, with the code of their architecture and a manifest."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genmeasures.errors import DataError, GenmeasuresError, ModelError, OptionError
from genmeasures.interfaces import SPLITS, Split, Task, TaskModel, one_of, require
from genmeasures.tasks import arrays
from genmeasures.tasks.imports import locate
from genmeasures.tasks.manifest import DatasetSpec, ModelSpec, read_manifest
from genmeasures.tasks.weights import SUFFIXES, Misfit, load_weights

log = logging.getLogger(__name__)

_NEVER_TAKEN = frozenset({"pretrained", "weights", "checkpoint_path", "device"})
"""Arguments by which factories load other weights, or leave the CPU."""

_SHOWN = 8


class Checkpoints(Task):
    """A folder of trained PyTorch weights with a manifest.

    A complete ``manifest.yaml``::

        factory: torchvision.models.resnet18   # dotted path of a callable that returns the architecture
        factory_kwargs: {num_classes: 10}      # its arguments, for all models
        strict: true                           # false permits keys in files that the model does not have
        python_path: .                         # folder, or list of folders, with modules to import
        metric: accuracy                       # metric that measures are judged against: accuracy (default), iou, …
        data:                                  # train, test or others; none for measures of weights
          train:                               # arrays of an .npz file …
            npz: cifar10_subset.npz
            x: x_train                         # inputs
            y: y_train                         # targets; omitted for data without targets
            layout: NHWC                       # axes of x: N, C, and L or H, W or D, H, W; NHW without channels
            scale: 255                         # divisor of x; required for integers
            mean: [0.5, 0.5, 0.5]              # subtracted after that, a number or one per channel
            std: [0.5, 0.5, 0.5]               # divisor after that
          test:                                # … or a callable that returns a torch Dataset or DataLoader
            _target_: mypackage.MyDataset
            root: /data/mine                   # its arguments, passed unchanged
          validation:                          # optional: labeled data like the training data, not trained on
            _target_: mypackage.MyDataset
            root: /data/held_out
          ignore_index: 255                    # target that means "no label", if any
        models:
          net_0:
            weights: net_0.pth                 # default: net_0 with .pt, .pth, .ckpt, …, or without a suffix
            train_accuracy: 0.73
            test_accuracy: 0.59
            hparams: {width: 64}               # hyperparameters, passed to the factory if it has such arguments
            factory_kwargs: {depth: 18}        # in addition to those of all models
            factory: mypackage.OtherNet        # instead of that of all models
            key: ema                           # entry of the file with the weights; default: searched for

    A factory is called with ``factory_kwargs``, and with the hyperparameters of the model that its signature names,
    except ``pretrained``, ``weights``, ``checkpoint_path`` and ``device``. Hyperparameters that only a ``**kwargs``
    would accept are not passed. If both have the same name, ``factory_kwargs`` takes precedence.

    With ``strict: false`` a file may have keys that the model does not have; ``model_status`` names them. All keys of
    the model must be in the file in any case.

    Models can also be listed in a CSV file::

        models:
          table: accuracies.csv
          columns: {run: model, acc: test_accuracy, val_loss: null}   # renamed or skipped columns

    The table has a column ``model`` and optionally ``weights``, ``factory`` and ``key``. ``factory_kwargs.depth`` is
    an argument of the factory, parsed like a value of the manifest. ``train_x`` and ``test_x`` are metrics if both
    exist or x is the metric of the manifest, and so is ``validation_x`` then. All other columns are hyperparameters.
    Numeric columns that are named like metrics (``val_loss``, ``acc``) are refused unless ``columns`` maps them to the
    name of a metric, to null to skip them, or to ``hparams.acc``. An empty cell is a missing value.

    Weights are read from files of ``torch.save`` with any suffix, or of safetensors. The entry of the file with the
    weights and the prefixes of wrappers are searched for: the state dict that the model loads strictly is used (see
    :func:`genmeasures.tasks.weights.load_weights`). ``key`` selects the entry, such as ``ema`` or
    ``state_dict.teacher``: names of entries and prefixes, joined by dots.

    Paths, including those in the table, are relative to the manifest. Weights are read as data and never executed.
    The modules of ``factory`` and ``_target_`` are imported, which executes them.

    Args:
        path: folder with ``manifest.yaml``, or the path of a manifest.

    Raises:
        OptionError: ``path`` is empty or not a path.

    Example:
        >>> Checkpoints("runs/nets/manifest.yaml").label
        'nets'
    """

    name = "checkpoints"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        require(isinstance(path, str | os.PathLike), self, f"path={path!r} must be the path of a folder or manifest")
        require(bool(os.fspath(path)), self, "path is empty: set the path of a folder or manifest")
        self.path = os.fspath(path)

    @property
    def label(self) -> str:
        """The name of the folder of the manifest."""
        path = Path(self.path).expanduser().resolve()
        return (path if path.is_dir() else path.parent).name or self.name

    @property
    def identity(self) -> None:
        """None, for the content of the data: the folder can be moved, and its models can change."""
        return None

    @property
    def metric(self) -> str:  # type: ignore[override]  # a class variable of most tasks
        """The metric of the manifest."""
        return read_manifest(self.path).metric

    @property
    def splits(self) -> tuple[Split, ...]:  # type: ignore[override]  # as above
        """The splits of the manifest."""
        return tuple(read_manifest(self.path).data)

    @property
    def ignore_index(self) -> float | None:  # type: ignore[override]  # as above
        """The target that means "no label", if any."""
        return read_manifest(self.path).ignore_index

    def models(self) -> Sequence[TaskModel]:
        """List the models of the manifest, without loading them.

        Returns:
            The models, in the order of the manifest.

        Raises:
            OptionError: the manifest is invalid; the message names the file and the key.
        """
        manifest = read_manifest(self.path)
        return [
            TaskModel(
                name=spec.name,
                build=functools.partial(build_model, spec, manifest.python_path),
                hparams=spec.hparams,
                metrics=spec.metrics,
            )
            for spec in manifest.models
        ]

    def data(self, split: Split) -> Any:
        """Data of a split.

        Args:
            split: "train", "test" or "validation".

        Returns:
            Arrays (x,) or (x, y) with x float32 (N, C, ``*space``) or (N, features) and targets y as int64 or
            float32, or what ``_target_`` returns. None if the manifest has no such split.

        Raises:
            DataError: the data cannot be read; the message names the file and the array.
        """
        one_of(self, "split", split, SPLITS)
        manifest = read_manifest(self.path)
        if split not in manifest.data:
            return None
        spec = manifest.data[split]
        try:
            return _dataset(spec, manifest.python_path) if isinstance(spec, DatasetSpec) else arrays.load(spec)
        except GenmeasuresError as error:
            raise DataError(f"{manifest.path}: data.{split}: {error}") from error


def build_model(spec: ModelSpec, python_path: Sequence[Path] = ()) -> nn.Module:
    """Build the architecture of a model and load its trained weights.

    Args:
        spec: the model.
        python_path: folders that are searched for the factory's module.

    Returns:
        The network on the CPU, in evaluation mode, in float32 unless the factory returns float64 or bfloat16.

    Raises:
        ModelError: the architecture or its weights cannot be loaded; the message names the model and the file or
            factory.

    Example:
        >>> spec = ModelSpec("net", "torch.nn.Linear", {}, (Path("no_such_file.pt"),), None, True, {}, {})
        >>> build_model(spec)
        Traceback (most recent call last):
            ...
        genmeasures.errors.ModelError: model 'net': there is no file no_such_file.pt...
    """
    try:
        make = functools.partial(_architecture, spec, python_path)
        model = load_weights(make, _weights_file(spec), spec.key, spec.strict)
    except (ModelError, OptionError) as error:
        hint = _hint_not_passed(spec, python_path) if isinstance(error, Misfit) else ""
        raise ModelError(f"model {spec.name!r}: {error}{hint}") from error
    return model.eval()


def _weights_file(spec: ModelSpec) -> Path:
    """The file with the weights. Raises ModelError if there is none."""
    files = [path for path in spec.weights if path.is_file()]
    if len(files) > 1:
        others = ", ".join(path.name for path in files[1:])
        log.warning("model %s: %s is read, not %s; set weights to choose a file", spec.name, files[0], others)
    if files:
        return files[0]
    path = spec.weights[0]
    last = spec.weights[-1]
    if last.is_dir():
        inside = _listed(last)
        raise ModelError(f"{last} is a folder: set weights to a file in it, weights: {last.name}/{inside or '…'}")
    if len(spec.weights) == 1:
        raise ModelError(f"there is no file {path}{_beside(path)}")
    endings = ", ".join(suffix or "nothing" for suffix in SUFFIXES[1:])
    raise ModelError(f"there is no file {path}, nor one with the suffix {endings}{_beside(path)}")


def _beside(path: Path) -> str:
    """Hint about the folder of a missing file."""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    files = _listed(path.parent)
    return f"; the folder has {files}: set weights to one of its files" if files else ""


def _listed(folder: Path) -> str:
    """Names of the first files in a folder that may be weights."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix in SUFFIXES)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _architecture(spec: ModelSpec, python_path: Sequence[Path]) -> nn.Module:
    """The network that the factory returns, before its weights are loaded."""
    factory = locate(spec.factory, python_path)
    passed = {name: spec.hparams[name] for name in _accepted(factory) if name in spec.hparams}
    kwargs = {**passed, **spec.factory_kwargs}
    passed = {name: value for name, value in passed.items() if name not in spec.factory_kwargs}
    if passed:
        _log_passed(spec.factory, tuple(passed))
    # Initial weights come from torch's global generator, whose state is restored.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = factory(**copy.deepcopy(kwargs))
        except Exception as error:  # the user's code can fail in any way
            raise ModelError(f"{_failed(spec.factory, kwargs, error)}{_hint_passed(passed)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec.factory} must return a torch.nn.Module, got {type(model).__name__}")
    try:
        return model.cpu()
    except NotImplementedError as error:  # torch's for parameters without values
        raise ModelError(
            f"{spec.factory} returned a network on the device meta; it must return one on the CPU"
        ) from error


def _accepted(factory: Callable[..., Any]) -> list[str]:
    """Names of the parameters of a factory that hyperparameters may set."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # compiled code without a signature
        return []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in named if name not in _NEVER_TAKEN]


@functools.cache
def _log_passed(factory: str, names: tuple[str, ...]) -> None:
    """Log once which hyperparameters a factory is called with."""
    log.info("%s is called with the hyperparameters that its signature names: %s", factory, ", ".join(names))


def _hint_not_passed(spec: ModelSpec, python_path: Sequence[Path]) -> str:
    """Hint about hyperparameters that the factory of a model that does not fit its weights may need."""
    factory = locate(spec.factory, python_path)
    try:
        kinds = {parameter.kind for parameter in inspect.signature(factory).parameters.values()}
    except (TypeError, ValueError):
        return ""
    names = [name for name in spec.hparams if name not in (*_accepted(factory), *spec.factory_kwargs)]
    if inspect.Parameter.VAR_KEYWORD not in kinds or not names:
        return ""
    return (
        f"; the hyperparameters {', '.join(names)} were not passed to the **kwargs of {spec.factory}: add those that "
        "it accepts to factory_kwargs"
    )


def _hint_passed(passed: Mapping[str, Any]) -> str:
    """Hint about the arguments of a factory that are hyperparameters."""
    if not passed:
        return ""
    names = ", ".join(passed)
    return f"; the arguments {names} are hyperparameters; factory_kwargs overrides them"


def _dataset(spec: DatasetSpec, python_path: Sequence[Path]) -> Any:
    """The data set that a callable returns."""
    make = locate(spec.target, python_path)
    try:
        dataset = make(**copy.deepcopy(dict(spec.kwargs)))
    except Exception as error:  # as above
        raise DataError(_failed(spec.target, spec.kwargs, error)) from error
    if not hasattr(dataset, "__getitem__") and not hasattr(dataset, "__iter__"):
        raise DataError(f"{spec.target} must return a Dataset or DataLoader, got {type(dataset).__name__}")
    return dataset


def _failed(path: str, kwargs: Any, error: Exception) -> str:
    """Message for a call that raised."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
    return f"{path}({arguments}) failed: {type(error).__name__}: {error}"
