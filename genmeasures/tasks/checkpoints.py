"""A task from files: trained PyTorch weights, the code of their architecture, and a manifest."""

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
"""Arguments by which factories fetch weights of their own, or leave the CPU."""

_SHOWN = 8


class Checkpoints(Task):
    """A folder of PyTorch weights with a manifest; no Python is needed if the architecture can be imported.

    ``path`` is the folder that has ``manifest.yaml``, or the path of a manifest::

        factory: torchvision.models.resnet18   # dotted path of a callable that returns the architecture
        factory_kwargs: {num_classes: 10}      # its arguments, for all models
        strict: true                           # false lets keys of files pass that the model does not have
        python_path: .                         # folder, or list of folders, to find modules in
        metric: accuracy                       # what models are judged by: accuracy (default), iou, …
        data:                                  # train, test or both; none for measures of weights alone
          train:                               # arrays of an .npz file …
            npz: cifar10_subset.npz
            x: x_train                         # inputs
            y: y_train                         # targets; left out for data without any
            layout: NHWC                       # axes of x: N, C, and L or H, W or D, H, W; NHW has no channels
            scale: 255                         # x is divided by it; needed for integers
            mean: [0.5, 0.5, 0.5]              # subtracted after that, a number or one a channel
            std: [0.5, 0.5, 0.5]               # divided by after that
          test:                                # … or what a callable returns: a torch Dataset or DataLoader
            _target_: mypackage.MyDataset
            root: /data/mine                   # its arguments, handed on as they stand
          ignore_index: 255                    # target that means "no label", if there is one
        models:
          net_0:
            weights: net_0.pth                 # default: net_0 with .pt, .pth, .ckpt, .safetensors, …, or nothing
            train_accuracy: 0.73
            test_accuracy: 0.59
            hparams: {width: 64}               # known of it, and given to the factory if it names such an argument
            factory_kwargs: {depth: 18}        # added to those of all models
            factory: mypackage.OtherNet        # in place of that of all models
            key: ema                           # where in the file the weights lie; default: looked for

    A factory is called with ``factory_kwargs``, and with the hyperparameters of the model that its signature names
    (those that only ``**kwargs`` would take are not handed over, nor ``pretrained``, ``weights``, ``checkpoint_path``
    and ``device``). Where both have a name, ``factory_kwargs`` counts.

    With ``strict: false`` a file may have keys that the model does not have; ``model_status`` names them. What the
    model has must be in the file in any case.

    Instead of one by one, models can be listed in a CSV file::

        models:
          table: accuracies.csv
          columns: {run: model, acc: test_accuracy, val_loss: null}   # what columns are, if not by their own names

    It has a column ``model`` and, if wanted, ``weights``, ``factory`` and ``key``; ``factory_kwargs.depth`` is an
    argument of the factory, read as it would be in the manifest; ``train_x`` and ``test_x`` are metrics where
    both are there or x is the manifest's metric, and every other column is a hyperparameter. Columns of numbers
    that are named like metrics (``val_loss``, ``acc``) are refused until ``columns`` says what they are: the name of
    a metric, null to leave them out, or ``hparams.acc``. An empty cell means not known.

    The weights may lie in any file of ``torch.save``, whatever it ends in, or of safetensors. Where in the file
    they lie, and what wrappers put before the names, is found by trying: what the model loads strictly is taken
    (:func:`genmeasures.tasks.weights.load_weights` has the order). ``key`` names the place, as ``ema`` or
    ``state_dict.teacher``: entries, then what stands before the names, joined by dots.

    Paths are relative to the manifest, those in the table too. Weights are read as data and never
    run; what the manifest names under ``factory`` and ``_target_`` is imported, as if it were run.

    Args:
        path: Folder that has manifest.yaml, or the path of a manifest.
    """

    name = "checkpoints"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        require(isinstance(path, str | os.PathLike), self, f"path={path!r} must be the path of a folder or manifest")
        require(bool(os.fspath(path)), self, "path is empty: give the path of a folder or manifest")
        self.path = os.fspath(path)

    @property
    def label(self) -> str:
        """The name of the folder that has the manifest."""
        path = Path(self.path).expanduser().resolve()
        return (path if path.is_dir() else path.parent).name or self.name

    @property
    def identity(self) -> None:
        """The content of its data: the folder can be moved, and list other models."""
        return None

    @property
    def metric(self) -> str:  # type: ignore[override]  # a class variable of most tasks
        """The metric that the manifest names."""
        return read_manifest(self.path).metric

    @property
    def ignore_index(self) -> float | None:  # type: ignore[override]  # as above
        """The target that means "no label" by the manifest."""
        return read_manifest(self.path).ignore_index

    def models(self) -> Sequence[TaskModel]:
        """The models of the manifest, none of them loaded; raises OptionError naming file and key."""
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
        """Arrays (x,) or (x, y), with x float32 (N, C, *space) or (N, features), or what ``_target_`` returned.

        None where the manifest has no such data. Targets y keep their shape, as int64 or float32. Raises DataError
        naming file and array.
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
    """The architecture with its trained weights, on the CPU and in evaluation mode.

    It is float32, unless the factory returns a network in float64 or bfloat16.

    Raises ModelError naming the model and the file or factory.
    """
    try:
        make = functools.partial(_architecture, spec, python_path)
        model = load_weights(make, _weights_file(spec), spec.key, spec.strict)
    except (ModelError, OptionError) as error:
        hint = _not_handed_over(spec, python_path) if isinstance(error, Misfit) else ""
        raise ModelError(f"model {spec.name!r}: {error}{hint}") from error
    return model.eval()


def _weights_file(spec: ModelSpec) -> Path:
    """The file that has the weights; raises ModelError with what to write where there is none."""
    found = [path for path in spec.weights if path.is_file()]
    if len(found) > 1:
        others = ", ".join(path.name for path in found[1:])
        log.warning("model %s: %s is taken, not %s; weights: names the file", spec.name, found[0], others)
    if found:
        return found[0]
    path = spec.weights[0]
    last = spec.weights[-1]
    if last.is_dir():
        inside = _listed(last)
        raise ModelError(f"{last} is a folder: name the file in it, weights: {last.name}/{inside or '…'}")
    if len(spec.weights) == 1:
        raise ModelError(f"there is no file {path}{_beside(path)}")
    endings = ", ".join(suffix or "nothing" for suffix in SUFFIXES[1:])
    raise ModelError(f"there is no file {path}, nor one that ends in {endings}{_beside(path)}")


def _beside(path: Path) -> str:
    """What there is in the folder of a file that is missing, to end an error with."""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    files = _listed(path.parent)
    return f"; the folder has {files}: name the file with weights: …" if files else ""


def _listed(folder: Path) -> str:
    """The first names of files in a folder that may be weights."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix in SUFFIXES)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _architecture(spec: ModelSpec, python_path: Sequence[Path]) -> nn.Module:
    factory = locate(spec.factory, python_path)
    taken = {name: spec.hparams[name] for name in _taken(factory) if name in spec.hparams}
    kwargs = {**taken, **spec.factory_kwargs}
    taken = {name: value for name, value in taken.items() if name not in spec.factory_kwargs}
    if taken:
        _say_taken(spec.factory, tuple(taken))
    # Initial weights come from torch's global generator, whose state is not ours to change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = factory(**copy.deepcopy(kwargs))
        except Exception as error:  # the user's code can fail in any way
            raise ModelError(f"{_failed(spec.factory, kwargs, error)}{_handed_over(taken)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec.factory} returned a {type(model).__name__}, not a torch.nn.Module")
    try:
        return model.cpu()
    except NotImplementedError as error:  # torch's for parameters without values
        raise ModelError(f"{spec.factory} returned a network on the device meta: return one on the CPU") from error


def _taken(factory: Callable[..., Any]) -> list[str]:
    """The hyperparameters that a factory takes, which are all that its signature names."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # compiled code without a signature
        return []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in named if name not in _NEVER_TAKEN]


@functools.cache
def _say_taken(factory: str, names: tuple[str, ...]) -> None:
    log.info("%s is given the hyperparameters that it takes by name: %s", factory, ", ".join(names))


def _not_handed_over(spec: ModelSpec, python_path: Sequence[Path]) -> str:
    """To end an error of a model that does not fit its weights: hyperparameters that its factory may have needed."""
    factory = locate(spec.factory, python_path)
    try:
        kinds = {parameter.kind for parameter in inspect.signature(factory).parameters.values()}
    except (TypeError, ValueError):
        return ""
    names = [name for name in spec.hparams if name not in (*_taken(factory), *spec.factory_kwargs)]
    if inspect.Parameter.VAR_KEYWORD not in kinds or not names:
        return ""
    return (
        f"; {spec.factory} takes **kwargs, of which the hyperparameters {', '.join(names)} were not given to it, since "
        "its signature does not name them: write those that it takes under factory_kwargs"
    )


def _handed_over(taken: Mapping[str, Any]) -> str:
    if not taken:
        return ""
    names = ", ".join(taken)
    return f"; of its arguments, {names} are hyperparameters of that name: factory_kwargs gives others"


def _dataset(spec: DatasetSpec, python_path: Sequence[Path]) -> Any:
    make = locate(spec.target, python_path)
    try:
        dataset = make(**copy.deepcopy(dict(spec.kwargs)))
    except Exception as error:  # as above
        raise DataError(_failed(spec.target, spec.kwargs, error)) from error
    if not hasattr(dataset, "__getitem__") and not hasattr(dataset, "__iter__"):
        raise DataError(f"{spec.target} returned a {type(dataset).__name__}, not a data set")
    return dataset


def _failed(path: str, kwargs: Any, error: Exception) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
    return f"{path}({arguments}) failed: {type(error).__name__}: {error}"
