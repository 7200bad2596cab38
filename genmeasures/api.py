"""The Python interface: measure, aggregate, judge, estimate, rank, load_task."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import nn

from genmeasures.aggregators.aggregate import aggregate as _aggregate
from genmeasures.engine import DEFAULT_MEMORY
from genmeasures.engine.selection import LayerChoice
from genmeasures.errors import GenmeasuresWarning, ModelError, OptionError, nearest
from genmeasures.estimates import estimate_outputs, rank, read_stored
from genmeasures.failures import raising
from genmeasures.interfaces import SPLITS, Aggregator, Component, Extractor, Measure, Split, Task, TaskModel
from genmeasures.judging import judge
from genmeasures.progress import progress_bars
from genmeasures.registry import registry
from genmeasures.results.summary import model_notes
from genmeasures.run import Run
from genmeasures.tracing.kinds import not_a_module

__all__ = ["aggregate", "estimate", "judge", "load_task", "measure", "rank"]

_DEFAULT_MEASURES = ("davies_bouldin", "roughness", "confidence")
_C = TypeVar("_C", bound=Component)


def measure(
    models: Task | Mapping[str, nn.Module | Callable[[], nn.Module]] | Sequence[nn.Module | Callable[[], nn.Module]],
    train: Any = None,
    test: Any = None,
    *,
    validation: Any = None,
    measures: Sequence[str | Measure] | Mapping[str, str | Measure] = _DEFAULT_MEASURES,
    extractor: str | Extractor = "receptive_field",
    layers: LayerChoice | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    batch_size: int = 128,
    keep: str | Path | None = None,
    tile: int | Sequence[int] | None = None,
    ignore_index: float | None = None,
    memory: float = DEFAULT_MEMORY,
    progress: bool | None = None,
    errors: Literal["status", "raise"] = "status",
) -> xr.Dataset:
    """Measure trained networks layer by layer.

    Models are left exactly as they were. Values depend neither on the batch size, nor on the order of the data, nor on
    contexts of the caller: autocast and inference mode are left while measuring, and a model that is to run in autocast
    enters it in its own ``forward``. Floating-point inputs are read as float32 and are cast for each model to the dtype
    of its parameters (of the first layer that runs, if they differ); integers stay as they are. Features are float32.

    Args:
        models: a dict of names to modules, a list of modules (named ``model_0``, …), or a task, which brings its own
            data. A function without arguments that returns a module can stand in for a module; it is called when its
            turn comes, so that one model at a time is in memory.
        train: training data: a torch Dataset, a DataLoader, a tuple of arrays (inputs (N, C, …) with channels first,
            targets), or a list of pairs (input, target). Targets can be left out. Without training data, what is fitted
            on them is fitted on the test data, with a note in the status.
        test: test data, in the same forms. Measures of weights alone need neither; a measure without the data that it
            needs has no value, with the reason in its status.
        validation: validation data, in the same forms: labeled data like the training data that no model was trained
            on.
        measures: names or objects. A dict, ``{"roughness_k8": Roughness(KMeans(k=8)), …}``, renames the variables of
            each measure, so that a run can have one measure in several settings.
        extractor: name or object: "receptive_field" for one vector per pixel, "whole_tensor" for one per input.
        layers: the layers to measure: a name, a glob (``"features.*"``), a range of indices as in Python's slices
            (``"2:11"``, ``"-3:"``), or a list of these and of indices in the order of the forward pass, −1 for the
            last. Each must match a layer of every model. None measures all.
        seed: of every random choice.
        device: "cpu", "cuda", …; None leaves each model where it is.
        batch_size: inputs per batch.
        keep: a folder that stores the result of each model as soon as it is measured, so that an interrupted run
            resumes. A stored result is reused only if all that its values depend on is the same: weights, buffers, the
            code of the model and its attributes, data, components with their options, layers, seed, versions and the
            kind of device. For a model that refers to something without comparable contents, a lock or an open file,
            nothing is stored, and a warning names it.
        tile: size of the tiles, for all spatial axes or for each, in which inputs run whose activations do not fit into
            memory. The halo that the layers need is added automatically. Values do not change.
        ignore_index: the target that means "no label", such as 255; such pixels or inputs are left out where labels are
            read. None takes that of the task. :func:`genmeasures.data.targets.settle` describes how targets are read.
        memory: MiB for activations and for what is kept between passes, besides the model and the data. A smaller
            budget costs passes over the data, and changes values no more than another batch size does.
        progress: whether to show a progress bar on standard error; None shows it on a terminal and in notebooks, in the
            main thread of the main process. The logger ``genmeasures.run`` has one line per model at level INFO.
        errors: "status" turns an exception of a measure or of a model into a status, and the others continue; its
            traceback goes to the logger ``genmeasures`` at level DEBUG. "raise" raises it; the environment variable
            ``GENMEASURES_DEBUG=1`` does so for the whole process. A layer without a value
            (:class:`~genmeasures.plugin.Undefined`) is not an error.

    Returns:
        A Dataset with the dimensions ``model`` and ``layer``. Each variable has a ``<name>_status`` beside it. A model
        that cannot be measured has NaN, with the reason in ``model_status``; layers with weights that are not measured
        are in ``skipped_layers``, with the reason. If a model is random in evaluation mode, or its features depend on
        the other inputs of the batch, the status of its values says so; it is seeded by ``seed``, and the states of
        the global generators do not change.

        If targets are classes and the model has one output per class, ``measured_train_accuracy``,
        ``measured_test_accuracy`` and ``measured_validation_accuracy`` are counted during the passes over these splits,
        with the number of labels. They fill in ``train_accuracy``, ``test_accuracy`` and ``validation_accuracy`` of
        models that have none. If they differ from those of a model by more than their rounding plus three standard
        errors, ``model_status`` and a :class:`~genmeasures.errors.GenmeasuresWarning` say so.

    Raises:
        OptionError: an option is invalid, or a name is unknown.
        DataError: the data cannot be read, or differ from one reading to the next.
        ModelError: no model can be measured.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> inputs, classes = torch.randn(60, 4), torch.arange(60) % 3
        >>> ds = measure({"net": net}, (inputs[:40], classes[:40]), (inputs[40:], classes[40:]))
        >>> dict(ds.sizes)
        {'model': 1, 'layer': 2}
        >>> ds.roughness_status.values.tolist()
        [['ok', 'ok']]
    """
    if errors not in ("status", "raise"):
        raise OptionError(f"errors={errors!r} is unknown{nearest(str(errors), ('status', 'raise'))}")
    attrs: dict[str, Any] = {}
    if isinstance(models, Task):
        task_models = models.models()
        attrs = {"task": models.label, "metric": models.metric}
        given: dict[Split, Any] = {"train": train, "test": test, "validation": validation}
        if models.identity is not None and all(data is None for data in given.values()):
            attrs["task_id"] = models.identity  # else the content of the data identifies them
        offered = {split: models.data(split) for split in models.splits if given[split] is None}
        train, test, validation = ({**given, **offered}[split] for split in SPLITS)
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
        memory=memory,
        validation=validation,
    )
    with progress_bars(progress) as (on_model, on_batch), raising(errors == "raise"):
        ds = run.measure(attrs, on_model, on_batch)
    for note in model_notes(ds):
        warnings.warn(note, GenmeasuresWarning, stacklevel=2)
    return ds


def aggregate(ds: xr.Dataset, aggregator: str | Aggregator = "frobenius", **options: Any) -> xr.Dataset:
    """Reduce the layers of every measure to one number per model.

    Args:
        ds: a result of :func:`measure`.
        aggregator: "frobenius" (mean over the layers, weighted by the norms of their weights), "mean", "max", "last_k",
            "explicit", "single", or an object.
        options: options of the aggregator, if it is named.

    Returns:
        A Dataset with the dimension ``model``.

    Raises:
        OptionError: the aggregator or an option is unknown.

    Example:
        >>> import torch
        >>> inputs = torch.arange(40.0).sin().reshape(20, 2)
        >>> ds = measure([torch.nn.Linear(2, 4)], inputs, inputs, measures=["roughness"])
        >>> dict(aggregate(ds, "last_k", k=1).sizes)
        {'model': 1}
    """
    return _aggregate(ds, _component("aggregator", aggregator, Aggregator, **options))


def estimate(
    logits: Mapping[str, Any] | str | Path | Sequence[str | Path],
    validation: ArrayLike | None = None,
    target: ArrayLike | None = None,
    method: str | Sequence[str] = "atc",
    *,
    metric: Literal["accuracy", "dice"] | None = None,
    scale: bool = False,
    average: Literal["inputs", "pixels"] = "inputs",
    background: int | None = 0,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    errors: Literal["status", "raise"] = "status",
) -> xr.Dataset:
    """Estimate the accuracy of models on data without labels, in percent with intervals, from their logits.

    Every method reads the logits on labeled validation data, which the models were not trained on, and on the target
    data. Each is right under its own assumption alone: compare it with ``"validation"``, the accuracy on the validation
    data, which is what it has to beat.

    Args:
        logits: by model, a pair of arrays (validation logits, target logits), a mapping with these under "validation"
            and "target", or an ``.npz`` file; or one or several ``.npz`` files, or a folder of them, with models named
            like the files. Files have the arrays ``validation_logits``, ``target_logits`` and, if labels are not
            passed, ``validation_labels`` and ``target_labels``. Logits are (N, K), or (N, K, *S) with an output per
            pixel, of K ≥ 2 classes.
        validation: class numbers of the validation data, (N,) or (N, *S); a negative number means no label.
        target: class numbers of the target data, if known: the estimates do not read them, the result shows the true
            values beside the estimates.
        method: one or several of

            - "validation": accuracy on the validation data, as if there were no shift: the baseline;
            - "ac": average confidence;
            - "doc": validation accuracy minus the drop of the average confidence;
            - "atc": fraction of the outputs whose largest probability reaches a threshold that is fitted on the
              validation data; "atc_entropy": the same with the negative entropy;
            - "im": validation accuracy within 10 bins of confidence, weighted by the target outputs in each;
            - "cot": optimal transport between validation labels and target outputs;
            - "gde": mean agreement with the other models, which must be runs of one recipe; "ensemble": agreement with
              the mean probabilities of the other models; "aline": validation accuracy, moved along the line of the
              agreements of all pairs of models.

            Dice coefficients have "validation", "ac" (soft Dice), "doc" and "atc", calibrated by class.
        metric: "accuracy" of inputs or pixels, or "dice". None is "dice" for outputs per pixel.
        scale: whether logits are divided by a temperature that is fitted on the validation data.
        average: Dice coefficients are means over "inputs", or of all "pixels" together.
        background: the class that the mean of the Dice coefficients leaves out, None for none.
        confidence: confidence level of the intervals, between 0 and 1.
        resamples: number of bootstrap resamples of the inputs of both splits. Pixels of one input stay together. A
            temperature is that of all validation inputs.
        seed: of every random choice.
        errors: "status" turns the exception of a model or an estimate into a status; "raise" raises it.

    Returns:
        A Dataset with the dimensions ``model`` and ``estimator`` (the method), all values in percent: ``estimate`` with
        ``estimate_low`` and ``estimate_high`` (NaN without an interval), ``estimate_status``, and ``resampled``, the
        estimates of the resamples, which :func:`rank` compares. For Dice coefficients, ``estimate`` is the mean over
        classes, and ``dice``, ``dice_low`` and ``dice_high`` have the dimension ``class`` as well. The coordinates
        ``validation_accuracy`` and, with target labels, ``target_accuracy`` (``…_dice``) have the true values. A model
        whose logits cannot be used has NaN, with the reason in ``model_status``.

    Raises:
        OptionError: an option is unknown or out of range, or there are no logits.
        DataError: the logits of no model can be used.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(3, size=400)
        >>> sharp = 3.0 * np.eye(3)[labels] + rng.normal(size=(400, 3))
        >>> blurred = 1.5 * np.eye(3)[labels] + rng.normal(size=(400, 3))
        >>> ds = estimate({"net": (sharp, blurred)}, labels, target=labels, method=["validation", "atc"])
        >>> ds.estimate.values.round(1).tolist(), ds.target_accuracy.values.round(1).tolist()
        ([[97.8, 83.8]], [72.5])
        >>> bool((ds.estimate_low < ds.estimate).all())
        True
    """
    if errors not in ("status", "raise"):
        raise OptionError(f"errors={errors!r} is unknown{nearest(str(errors), ('status', 'raise'))}")
    if isinstance(logits, Task | nn.Module) or (
        isinstance(logits, Mapping) and any(isinstance(model, nn.Module) for model in logits.values())
    ):
        raise OptionError("estimate: expected the logits of models, got models: run them, and pass the logits")
    with raising(errors == "raise"):
        return estimate_outputs(
            *read_stored(logits, validation, target),
            [method] if isinstance(method, str) else list(method),
            metric=metric,
            scale=scale,
            average=average,
            background=background,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        )


def load_task(name: str, **options: Any) -> Task:
    """Load a set of trained models with their data.

    Args:
        name: name of the task.
        options: options of the task.

    Raises:
        OptionError: the name or an option is unknown.

    Example:
        >>> load_task("digits_cnn", limit=8).label
        'digits_cnn'
    """
    return _component("task", name, Task, **options)


def _named(models: Any) -> list[TaskModel]:
    if isinstance(models, nn.Module):
        raise ModelError("models is one module: pass a list of models, [model], or a dict of names and models")
    if not isinstance(models, Iterable) or isinstance(models, str):
        kind = type(models).__name__
        raise ModelError(f"models is of type {kind}, expected a list or dict of modules{not_a_module(models)}")
    if isinstance(models, Mapping):
        named = [(str(name), model) for name, model in models.items()]
    else:
        named = [(f"model_{number}", model) for number, model in enumerate(models)]
    for name, model in named:
        if not isinstance(model, nn.Module) and not _is_builder(model):
            kind = type(model).__name__
            raise ModelError(
                f"{name} is of type {kind}, expected a torch.nn.Module or a function without arguments that "
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


def _measures(measures: Any) -> list[Measure]:
    if isinstance(measures, Mapping):
        return [_component("measure", measure, Measure).called(name) for name, measure in measures.items()]
    listed = [measures] if isinstance(measures, str | Measure) else measures
    return [_component("measure", measure, Measure) for measure in listed]


def _component(kind: str, component: str | _C, base: type[_C], **options: Any) -> _C:
    if isinstance(component, str):
        return cast(_C, registry().make(kind, component, options))
    if not isinstance(component, base):
        cls: Any = component
        if isinstance(cls, type) and issubclass(cls, base):
            raise OptionError(f"{kind}: expected an object, got the class {cls.__name__}: write {cls.__name__}(…)")
        raise OptionError(f"{kind}: expected a name or an object of {base.__name__}, got {type(component).__name__}")
    if options:
        raise OptionError(f"{kind}: options ({', '.join(options)}) need the name of a {kind}, got an object")
    return component
