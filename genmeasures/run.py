"""A run: the models of a task measured one after the other, each stored as soon as it is measured."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import yaml
from torch import nn

from genmeasures.checks import check_layers, check_names, check_seed
from genmeasures.contexts import settled
from genmeasures.data import DataSource, check_ignore_index, read_alike
from genmeasures.devices import usable_device
from genmeasures.engine import (
    DEFAULT_MEMORY,
    Memory,
    ModelResult,
    PreparedData,
    Progress,
    measure_model,
    prepare_data,
    prepare_measures,
)
from genmeasures.engine.selection import LayerChoice
from genmeasures.errors import DataError, GenmeasuresError, ModelError, OptionError, one_line, shown
from genmeasures.failures import status_of, traceback_of
from genmeasures.files import remove_stale_temporaries
from genmeasures.identity import (
    Unidentified,
    component_identity,
    data_identity,
    has_address,
    model_identity,
    versions_identity,
)
from genmeasures.interfaces import (
    Component,
    Extractor,
    FeatureMeasure,
    Measure,
    ModelFacts,
    ModelMeasure,
    OutputMeasure,
    Split,
    TaskModel,
    check_attributes,
    is_count,
)
from genmeasures.kept import Account, Kept, ModelKey, keyed, shortage
from genmeasures.notes import remarks
from genmeasures.registry import registry
from genmeasures.results import SCHEMA_VERSION, combine, model_dataset, with_accuracies, writable
from genmeasures.results.schema import with_note
from genmeasures.results.summary import kind_of, listed
from genmeasures.tracing.kinds import not_a_module

log = logging.getLogger(__name__)

_PACKAGES = ("genmeasures", "torch", "numpy", "scipy", "scikit-learn", "xarray", "hydra-core", "pluggy")


@dataclass
class _Prepared:
    """What all models with the same training data share."""

    train: Any
    """Keeps the object alive whose id identifies it."""
    data: PreparedData
    measures: list[Measure]
    content: str
    """Hash of the training and test data, which identify a task whether it has validation data or not."""
    validation: str
    """Hash of the validation data, "" without them."""
    settings: str = ""
    """Hash of the components and their options."""
    distributions: frozenset[str] = frozenset()
    problem: str = ""
    """Why there is no hash."""


class Run:
    """Models, data and settings of a run.

    Args:
        models: in the order of the result.
        train: training data, anything that :class:`~genmeasures.data.DataSource` takes, or None. If a model has
            ``train`` of its own, it replaces these.
        test: test data, likewise.
        measures: the measures.
        extractor: the extractor.
        layers: the layers to measure, by name, glob, index or range; None for all.
        seed: of every random choice.
        device: None measures each model where it is.
        batch_size: inputs per batch.
        keep: a folder that stores the result of each model as soon as it is measured; a later run reuses it if all that
            its values depend on is the same. None stores nothing.
        tile: size of the tiles in which inputs run, of all spatial axes or of each; None runs whole inputs.
        ignore_index: the target that means "no label".
        memory: MiB for activations and for what is kept between passes.
        validation: labeled data like the training data that no model was trained on, likewise.

    Raises:
        OptionError: a setting is invalid.
        ModelError: there are no models, or names are duplicate.

    Example:
        >>> from genmeasures.extractors import ReceptiveField
        >>> from genmeasures.measures import Roughness
        >>> data = torch.arange(40.0).sin().reshape(20, 2)
        >>> run = Run(
        ...     [TaskModel("net", lambda: nn.Linear(2, 4))], data, data, [Roughness()], ReceptiveField(),
        ...     layers=None, seed=0, device="cpu", batch_size=10, keep=None,
        ... )
        >>> run.measure({}).roughness_status.values.tolist()
        [['ok']]
    """

    def __init__(
        self,
        models: Sequence[TaskModel],
        train: Any,
        test: Any,
        measures: Sequence[Measure],
        extractor: Extractor,
        *,
        layers: LayerChoice | None,
        seed: int,
        device: str | torch.device | None,
        batch_size: int,
        keep: Path | None,
        tile: int | Sequence[int] | None = None,
        ignore_index: float | None = None,
        memory: float = DEFAULT_MEMORY,
        validation: Any = None,
    ) -> None:
        if not models:
            raise ModelError("there are no models to measure")
        for component in (extractor, *measures):
            check_attributes(component)
        names = [model.name for model in models]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ModelError(f"duplicate model names: {shown(', '.join(duplicates))}")
        if not measures:
            raise OptionError("there are no measures to compute")
        check_names(measures, models)
        check_layers(layers)
        if not is_count(batch_size):
            raise OptionError(f"batch_size must be an integer ≥ 1, got {batch_size!r}")
        check_seed(seed)
        check_ignore_index(ignore_index)
        if tile is not None:
            sizes = [tile] if isinstance(tile, int) else tile
            if not isinstance(sizes, Sequence) or not sizes or not all(map(is_count, sizes)):
                raise OptionError(f"tile must be an integer ≥ 1, a list of integers ≥ 1 or null, got {tile!r}")
            if extractor.whole_output:
                raise OptionError(
                    f"tile: {extractor.name} makes vectors of the whole output of a layer, which tiles never hold; "
                    "choose the extractor receptive_field, or leave tile out"
                )
        self._models = models
        self._measures = measures
        self._extractor = extractor
        self._layers = [layers] if isinstance(layers, str) else layers
        self._seed = seed
        self._device = None if device is None else usable_device(device)
        self._batch_size = batch_size
        self._keep = None if keep is None else writable(keep)
        self._train = train
        # In tiles, inputs run one by one: no more of them need to be in memory.
        self._read = batch_size if tile is None else 1
        self._tile = tile if tile is None or isinstance(tile, int) else list(tile)
        self._ignore_index = ignore_index
        self._memory = Memory(memory)
        self._test = None if test is None else DataSource(test, "test", self._read, ignore_index)
        self._validation = (
            None if validation is None else DataSource(validation, "validation", self._read, ignore_index)
        )
        self._prepared: dict[int | None, _Prepared] = {}
        self._kept = Kept(self._keep, None)
        self._problems: set[str] = set()
        self._lacks: set[str] = set()
        self._failures: dict[str, list[str]] = {}
        """Names of models that failed, by kind of failure."""

    @property
    def account(self) -> Account:
        """Which models have been measured so far, and which have been reused."""
        return self._kept.account

    @settled()
    def measure(
        self,
        attrs: Mapping[str, Any],
        on_model: Callable[[str, int, int], None] | None = None,
        on_batch: Progress | None = None,
        earlier: xr.Dataset | None = None,
    ) -> xr.Dataset:
        """Measure all models.

        A model that cannot be measured is logged and recorded.

        Args:
            attrs: attributes of the result; ``task`` and ``task_id`` for the models of a task.
            on_model: called with the name of a model, its index and the number of models when it begins.
            on_batch: called with the split, the number of inputs done, and the total.
            earlier: an earlier result, whose values are reused for models if nothing that they depend on has changed.

        Returns:
            The dataset, as of :func:`genmeasures.measure`.

        Raises:
            GenmeasuresError: no model can be measured.
        """
        datasets: list[xr.Dataset] = []
        errors: list[GenmeasuresError] = []
        for model in self._models:
            # Data, options and names are checked for all before any model runs.
            self._prepare(model)
            model_dataset(model, "not measured yet", self._measures)
        if self._keep is not None:
            remove_stale_temporaries(self._keep)
        self._failures.clear()
        self._kept = Kept(self._keep, earlier)
        self._kept.leave_out([model.name for model in self._models])
        for number, model in enumerate(self._models):
            if on_model is not None:
                on_model(model.name, number, len(self._models))
            began = time.perf_counter()
            try:
                datasets.append(self._measure_one(model, on_batch))
            except Exception as caught:  # whatever stops one model, the others continue
                trace = traceback_of(caught)
                status = status_of(caught, f"model {model.name}").partition(": ")[2]
                named = status.startswith((f"model {model.name}: ", f"model {model.name!r}: "))
                message = status if named else f"model {shown(model.name)}: {status}"
                self._report(message, model.name)
                kind = type(caught) if isinstance(caught, GenmeasuresError) else ModelError
                errors.append(kind(message))
                if trace:  # the only trace of it if no other model can be measured
                    errors[-1].add_note(trace)
                datasets.append(keyed(model_dataset(model, status, self._measures), ModelKey()))
                self.account.failed.append(model.name)
            self._log(model.name, time.perf_counter() - began, datasets[-1])
        self._report_alike()
        self._report_unkept()
        if len(errors) == len(self._models):
            if len(errors) == 1:
                raise errors[0]
            raise self._none_measured(errors) from errors[0]
        seconds = sum(float(ds.attrs.get("seconds", 0.0)) for ds in datasets)
        described = {**self._provenance(), "seconds": seconds, **attrs, **self._task(attrs)}
        return with_accuracies(combine(datasets, described))

    def _none_measured(self, errors: Sequence[GenmeasuresError]) -> GenmeasuresError:
        kinds = len(self._failures)
        why = "for the same reason" if kinds == 1 else f"for {kinds} different reasons"
        return type(errors[0])(f"none of {len(errors)} models could be measured, {why}; {errors[0]}")

    def _report(self, message: str, name: str) -> None:
        """Log why a model failed: at once for the first failure of a kind, the others are counted."""
        alike = self._failures.setdefault(kind_of(message, name), [])
        alike.append(name)
        log.log(logging.DEBUG if len(alike) > 1 else logging.WARNING, "%s", one_line(message))

    def _report_alike(self) -> None:
        for first, *others in self._failures.values():
            if others:
                count = f"{len(others)} more model{'' if len(others) == 1 else 's'}"
                log.warning("%s failed as %s did: %s", count, shown(first), shown(listed(others)))

    def _measure_one(self, task_model: TaskModel, on_batch: Progress | None) -> xr.Dataset:
        began = time.perf_counter()
        prepared = self._prepare(task_model)
        data, measures = prepared.data, prepared.measures
        try:
            with remarks() as notes:
                model = task_model.build()
        except GenmeasuresError:
            raise
        except Exception as error:  # a task's own code can fail in any way
            raise ModelError(f"building it failed: {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"expected a torch.nn.Module, got an object of type {type(model).__name__}{not_a_module(model)}"
            )
        device = self._device or next((p.device for p in model.parameters()), torch.device("cpu"))
        key = self._key(model, task_model, prepared, device)
        kept = self._kept.take(task_model, key, measures)
        if kept is not None:
            return _remarked(kept, "ok", notes)
        why = self._kept.why(task_model.name, key)
        tile = self._tile_of(data)
        facts = _facts(task_model)
        result: ModelResult = measure_model(
            model, data, measures, device, self._layers, on_batch, tile, facts, self._memory
        )
        key = key.of_values(result.by_batch, result.reproducible)
        bare = model_dataset(TaskModel(task_model.name, task_model.build), result, measures)
        values = keyed(bare, key).assign_attrs(seconds=time.perf_counter() - began)
        dataset = keyed(model_dataset(task_model, result, measures), key).assign_attrs(values.attrs)
        self.account.measured[task_model.name] = why
        if short := shortage(dataset):
            # The values so far are valid but incomplete: the next run measures the model again.
            log.warning("model %s: %s", shown(task_model.name), one_line(short))
            dataset["model_status"] = ("model", np.array([short], dtype=object))
            return keyed(dataset, ModelKey(key.content))
        self._kept.keep(task_model, values, key)
        return _remarked(dataset, "ok", notes)

    def _log(self, name: str, seconds: float, ds: xr.Dataset) -> None:
        """Log one line per model, at level INFO."""
        status = str(ds["model_status"].values[0]).partition(":")[0]
        taken = " (reused)" if name in self.account.taken else ""
        log.info("model %s: %s%s, %.2f s, layers: %d", shown(name), status, taken, seconds, ds.sizes["layer"])

    def _report_unkept(self) -> None:
        unkept = self.account.unkept
        if unkept:
            log.warning(
                "the results of %d of %d models could not be stored in %s, and are in the result of this run alone: %s",
                len(unkept), len(self._models), self._keep, one_line(next(iter(unkept.values()))),
            )  # fmt: skip

    def _key(self, model: nn.Module, task_model: TaskModel, prepared: _Prepared, device: torch.device) -> ModelKey:
        """Key of all that the values of a model depend on, without batches, tiles, hyperparameters and metrics."""
        try:
            identity = model_identity(model)
        except Unidentified as error:
            return self._unknown(str(error))
        if prepared.problem:
            return self._unknown(prepared.problem)
        # Measures of models and of outputs do not run by tiles: with tiles they have no values.
        whole = ModelMeasure | OutputMeasure
        tiled = self._tile is not None and any(isinstance(measure, whole) for measure in self._measures)
        versions = versions_identity(identity.distributions | prepared.distributions)
        layers = None if self._layers is None else sorted(set(self._layers), key=repr)
        # The model creates tensors of the default type.
        parts: list[object] = [
            prepared.settings,
            versions,
            layers,
            self._seed,
            device.type,
            str(torch.get_default_dtype()),
            tiled,
        ]
        if prepared.validation:
            parts.append(prepared.validation)
        if any(isinstance(measure, ModelMeasure) and measure.reads_facts for measure in self._measures):
            facts = _facts(task_model)
            parts.append([facts.name, sorted(facts.hparams.items()), sorted(facts.metrics.items())])
        digest = hashlib.blake2b(
            repr([identity.weights, identity.code, prepared.content, *parts]).encode(), digest_size=12
        )
        # The budget decides how many inputs run together.
        batches = (self._read, self._tile, *([] if self._memory == Memory() else [self._memory.mib]))
        return ModelKey.of(identity.weights, identity.code, prepared.content, digest.hexdigest(), batches)

    def _unknown(self, problem: str) -> ModelKey:
        if self._keep is not None and problem not in self._problems:
            self._problems.add(problem)
            log.warning("nothing is stored: %s", one_line(problem))
        return ModelKey(problem=problem)

    def _prepare(self, model: TaskModel) -> _Prepared:
        key = None if model.train is None else id(model.train)
        if key not in self._prepared:
            train = self._train if model.train is None else model.train
            sources = self._sources(train)
            measures, lacking = self._measures_for(sources)
            data = prepare_data(sources, measures, self._extractor, self._seed, lacking)
            self._tile_of(data)
            fresh = _Prepared(train, data, measures, *_data_identities(sources))
            try:
                fresh.settings, fresh.distributions = self._settings(measures)
            except Unidentified as error:
                fresh.problem = str(error)
            self._prepared[key] = fresh
        return self._prepared[key]

    def _measures_for(self, sources: Mapping[Split, DataSource]) -> tuple[list[Measure], dict[str, str]]:
        try:
            measures, lacking = prepare_measures(self._measures, self._extractor, sources)
        except DataError as error:
            if sources:
                raise
            raise DataError(f"there are no data: pass train, test or both ({error})") from error
        for measure in measures:
            lacks = lacking.get(repr(measure))
            if lacks and (message := f"{measure.name} has no values: it {lacks}") not in self._lacks:
                self._lacks.add(message)
                log.warning("%s", message)
        return measures, lacking

    def _sources(self, train: Any) -> dict[Split, DataSource]:
        sources: dict[Split, DataSource] = {}
        if train is not None:
            sources["train"] = DataSource(train, "train", self._read, self._ignore_index)
        if self._test is not None:
            sources["test"] = self._test
        if self._validation is not None:
            sources["validation"] = self._validation
        return read_alike(sources)

    def _settings(self, measures: Sequence[Measure]) -> tuple[str, frozenset[str]]:
        """Identity of the components with their options and versions of their plugins, and their distributions."""
        components: list[Component] = [self._extractor, *measures]
        labelers = [m.labeler for m in measures if isinstance(m, FeatureMeasure) and m.labeler is not None]
        kinds = {kind for component in (*components, *labelers) for kind in type(component).__mro__}
        plugins = [plugin for plugin in registry().plugins if any(kind in kinds for _, kind in plugin.components)]
        identity, distributions = component_identity(components)
        # The version of the core is part of the key of every model.
        plugin_versions = sorted(f"{p.distribution} {p.version}" for p in plugins if p.distribution != "genmeasures")
        return repr([identity, plugin_versions, [measure.described() for measure in measures]]), distributions

    def _task(self, attrs: Mapping[str, Any]) -> dict[str, str]:
        """Name of the task in results, and the identity by which results are collected."""
        identity = attrs.get("task_id")
        if not identity or has_address(str(identity)):
            prepared = self._prepared.get(None)
            identity = _data_identities(self._sources(self._train))[0] if prepared is None else prepared.content
        return {"task": str(attrs.get("task", "models")), "task_id": str(identity)}

    def _tile_of(self, data: PreparedData) -> tuple[int, ...] | None:
        """The size of a tile along each spatial axis of the inputs."""
        if self._tile is None or not data.sources:
            return None
        shape = next(iter(data.sources.values())).scan().input_shape
        axes = len(shape) - 1
        sizes = (self._tile,) * axes if isinstance(self._tile, int) else tuple(self._tile)
        if not axes or len(sizes) != axes:
            raise OptionError(f"tile={self._tile!r}: inputs of shape {shape} have {axes} spatial axes")
        return sizes

    def _provenance(self) -> dict[str, Any]:
        hparams = list(dict.fromkeys(name for model in self._models for name in model.hparams))
        metrics = list(dict.fromkeys(name for model in self._models for name in model.metrics))
        metric = next((name.removeprefix("test_") for name in metrics if name.startswith("test_")), "accuracy")
        settings = {
            "measures": [measure.described() for measure in self._measures],
            "extractor": repr(self._extractor),
            "layers": None if self._layers is None else list(self._layers),
            "seed": self._seed,
            **({} if self._ignore_index is None else {"ignore_index": self._ignore_index}),
        }
        return {
            "title": "generalization measures",
            "schema_version": SCHEMA_VERSION,
            "metric": metric,
            "hparams": json.dumps(hparams),
            "extractor": repr(self._extractor),
            "seed": self._seed,
            "device": str(self._device or "as given"),
            **({} if self._test is None else {"test_size": len(self._test.scan())}),
            "classes": max((prepared.data.classes for prepared in self._prepared.values()), default=0),
            "versions": json.dumps(versions()),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "settings": yaml.safe_dump(settings, sort_keys=False),
            "config": yaml.safe_dump(
                {**settings, "batch_size": self._batch_size, "tile": self._tile, "memory": self._memory.mib},
                sort_keys=False,
            ),
        }


def _data_identities(sources: Mapping[Split, DataSource]) -> tuple[str, str]:
    """Hash of the training and test data, and of the validation data, "" without them."""
    others = dict(sources)
    validation = others.pop("validation", None)
    return data_identity(others), "" if validation is None else data_identity({"validation": validation})


def _facts(model: TaskModel) -> ModelFacts:
    return ModelFacts(model.name, model.hparams, model.metrics)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on.

    Example:
        >>> "torch" in versions()
        True
    """
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def _remarked(ds: xr.Dataset, status: str, notes: Sequence[str]) -> xr.Dataset:
    """The dataset of one model with notes in its status."""
    for note in dict.fromkeys(notes):
        status = with_note(status, note.replace("; ", ", "))
    return ds.assign_coords(model_status=("model", np.array([status], dtype=object)))
