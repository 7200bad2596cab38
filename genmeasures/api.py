"""The Python interface: measure, aggregate, judge, load_task."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
import xarray as xr
from torch import nn

from genmeasures.aggregators.aggregate import aggregate as _aggregate
from genmeasures.errors import GenmeasuresWarning, ModelError, OptionError, nearest
from genmeasures.failures import raising
from genmeasures.interfaces import Aggregator, Component, Extractor, Measure, Task, TaskModel
from genmeasures.judging import judge
from genmeasures.progress import progress_bars
from genmeasures.registry import registry
from genmeasures.results.summary import model_notes
from genmeasures.run import Run
from genmeasures.tracing.kinds import not_a_module

__all__ = ["aggregate", "judge", "load_task", "measure"]

_DEFAULT_MEASURES = ("davies_bouldin", "roughness", "confidence")
_C = TypeVar("_C", bound=Component)


def measure(
    models: Task | Mapping[str, nn.Module | Callable[[], nn.Module]] | Sequence[nn.Module | Callable[[], nn.Module]],
    train: Any = None,
    test: Any = None,
    *,
    measures: Sequence[str | Measure] | Mapping[str, str | Measure] = _DEFAULT_MEASURES,
    extractor: str | Extractor = "receptive_field",
    layers: Sequence[str | int] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    batch_size: int = 128,
    keep: str | Path | None = None,
    tile: int | Sequence[int] | None = None,
    ignore_index: float | None = None,
    progress: bool | None = None,
    errors: Literal["status", "raise"] = "status",
) -> xr.Dataset:
    """Measure trained networks layer by layer.

    models: a dict of names to modules, a list of modules (named model_0, …), or a task, which
    brings its own data. In place of a module a function may stand that takes nothing and returns one; it is
    called when its turn comes, so that one model at a time is in memory.
    train, test: a torch Dataset, a DataLoader, a tuple of arrays (inputs (N, C, …) channels first,
    targets) or a list of pairs (input, target). Targets may be left out, and so may either split, or both for
    measures of weights alone. Without training data, what is fitted on them is fitted on the test
    data, with a note in the status; a measure that needs what is not there has no value, with the reason.
    measures, extractor: names or objects. A dict of measures, ``{"roughness_k8": Roughness(KMeans(k=8)), …}``,
    gives them the names that their variables have in the result, so that one measure can be there in several
    settings. layers: names of the layers to measure, or integers for their places in running order, -1 for the
    last; None for all.
    device: "cpu", "cuda", …, None to leave each model where it is. keep: a folder that keeps
    every model's result as soon as it is there, for a run that is interrupted and repeated. What is
    kept is taken only where everything that the values depend on is the same: weights, buffers, the
    code of the model and its attributes, data, components with their options, layers, seed, versions
    and the kind of device. Of a model that refers to something without contents to compare, a lock or
    an open file, nothing is kept, and a warning names it.
    tile: runs inputs by tiles of this size, of all spatial axes or of each, where their activations
    would not fit into memory; what a tile reads beside it is found and added, and no value changes.
    ignore_index: the target that means "no label", such as 255; pixels, or inputs, that have it are
    left out where labels are read. None takes the task's. How targets are read, and which notes
    the statuses have of it: :func:`genmeasures.data.targets.settle`.
    progress: whether a bar on standard error shows the model and the pass over the data; None shows it on a
    terminal and in a notebook, but not from other threads or processes than the main ones. The logger
    ``genmeasures.run`` has a line for each model, at level INFO.

    errors: "status" (default): an exception of a measure, or of a model, becomes a status, and the others go on; its
    traceback goes to the log ``genmeasures`` at debug level. "raise": it is raised, with its traceback, for a debugger
    or ``%debug`` to look at; a layer without a value (:class:`~genmeasures.plugin.Undefined`) is no error. The
    environment variable ``GENMEASURES_DEBUG=1`` does the same for a whole process, and for the command line.

    Floating-point inputs are read as float32 and come to each model in the type of its parameters (of
    the first layer that runs, where these differ); integers stay as they are. Features are float32.

    Models are left exactly as they were found. Values do not depend on the contexts of the caller:
    autocast and inference mode are left while measuring, and a model that is to run in autocast enters
    it in its own ``forward``.

    Returns a Dataset with dims model and layer; each variable has a ``<name>_status`` beside it.
    A model that cannot be measured has NaN, and the reason in ``model_status``. Layers with weights
    that are not measured are in ``skipped_layers``, with the reason. Where a model is random in
    evaluation mode, or its features depend on the other inputs of the batch, the status of its values
    says so; what is random is seeded by ``seed``, and the global generators are not moved.

    Where targets are classes and outputs one score for each, the passes count right predictions at no
    cost: ``measured_train_accuracy`` and ``measured_test_accuracy``, with the number of labels. Where a model has no
    ``test_accuracy`` (``train_accuracy``) of its own, this is it. Where it has, and the two differ by more than the
    rounding of the given one and three standard errors, ``model_status`` says so, with a
    :class:`~genmeasures.errors.GenmeasuresWarning`.

    Raises OptionError, DataError, or ModelError if no model can be measured.
    """
    if errors not in ("status", "raise"):
        raise OptionError(f"errors={errors!r} is unknown{nearest(str(errors), ('status', 'raise'))}")
    attrs: dict[str, Any] = {}
    if isinstance(models, Task):
        task_models = models.models()
        attrs = {"task": models.label, "metric": models.metric}
        if train is None and test is None and models.identity is not None:  # else the content of the data says it
            attrs["task_id"] = models.identity
        train = models.data("train") if train is None else train
        test = models.data("test") if test is None else test
        ignore_index = models.ignore_index if ignore_index is None else ignore_index
    else:
        task_models = _named(models)
    run = Run(
        task_models,
        train,
        test,
        _measures(measures),
        _component("extractor", extractor, Extractor),
        layers=layers,
        seed=seed,
        device=device,
        batch_size=batch_size,
        keep=None if keep is None else Path(keep),
        tile=tile,
        ignore_index=ignore_index,
    )
    with progress_bars(progress) as (on_model, on_batch), raising(errors == "raise"):
        ds = run.measure(attrs, on_model, on_batch)
    for note in model_notes(ds):
        warnings.warn(note, GenmeasuresWarning, stacklevel=2)
    return ds


def aggregate(ds: xr.Dataset, aggregator: str | Aggregator = "frobenius", **options: Any) -> xr.Dataset:
    """Reduce the layers of every measure to one number a model.

    aggregator: "frobenius" (default), "mean", "max", "last_k", "explicit", "single", or an object;
    options: those of the named one, ``aggregate(ds, "last_k", k=3)``.
    """
    return _aggregate(ds, _component("aggregator", aggregator, Aggregator, **options))


def load_task(name: str, **options: Any) -> Task:
    """A task by name, ``load_task("checkpoints", path="nets/")``. Raises OptionError for unknown names and options."""
    return _component("task", name, Task, **options)


def _named(models: Any) -> list[TaskModel]:
    if isinstance(models, nn.Module):
        raise ModelError("models is one module: give a list of models, [model], or a dict of names and models")
    if not isinstance(models, Iterable) or isinstance(models, str):
        kind = type(models).__name__
        raise ModelError(f"models is of type {kind}, a list or dict of modules is expected{not_a_module(models)}")
    if isinstance(models, Mapping):
        named = [(str(name), model) for name, model in models.items()]
    else:
        named = [(f"model_{number}", model) for number, model in enumerate(models)]
    for name, model in named:
        if not isinstance(model, nn.Module) and not _is_builder(model):
            kind = type(model).__name__
            raise ModelError(
                f"{name} is of type {kind}, a torch.nn.Module is expected, or a function without arguments that "
                f"returns one{not_a_module(model)}"
            )
    return [
        TaskModel(name, functools.partial(_itself, model) if isinstance(model, nn.Module) else model)
        for name, model in named
    ]


def _is_builder(value: object) -> bool:
    """Whether a value is a function that can be called without arguments, and neither a class nor a compiled model."""
    if not callable(value) or isinstance(value, type) or type(value).__module__.partition(".")[0] == "torch":
        return False
    try:
        inspect.signature(value).bind()
    except (TypeError, ValueError):
        return False
    return True


def _itself(model: nn.Module) -> nn.Module:
    return model


def _measures(given: Any) -> list[Measure]:
    if isinstance(given, Mapping):
        return [_component("measure", one, Measure).called(name) for name, one in given.items()]
    return [_component("measure", one, Measure) for one in ([given] if isinstance(given, str | Measure) else given)]


def _component(kind: str, given: str | _C, base: type[_C], **options: Any) -> _C:
    if isinstance(given, str):
        return cast(_C, registry().make(kind, given, options))
    if not isinstance(given, base):
        cls: Any = given
        if isinstance(cls, type) and issubclass(cls, base):
            raise OptionError(f"{kind}: {cls.__name__} is a class, an object of it is expected: {cls.__name__}(…)")
        raise OptionError(f"{kind}: a name or {base.__name__} is expected, not {type(given).__name__}")
    if options:
        raise OptionError(f"options ({', '.join(options)}) go with the name of a {kind}, not with an object")
    return given
