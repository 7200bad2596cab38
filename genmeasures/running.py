"""A run: every model of a task measured in turn, each kept as soon as it is there."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import logging
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
import yaml
from torch import nn

import genmeasures
from genmeasures.contexts import settled
from genmeasures.data import DataSource, check_ignore_index, read_alike
from genmeasures.engine import ModelResult, PreparedData, Progress, measure_model, prepare_data, prepare_measures
from genmeasures.errors import DataError, GenmeasuresError, ModelError, OptionError, ResultError
from genmeasures.failures import debugging
from genmeasures.interfaces import Extractor, Measure, Split, TaskModel, is_count
from genmeasures.results import SCHEMA_VERSION, combine, load, model_dataset, save, writable
from genmeasures.tracing.kinds import not_a_module

log = logging.getLogger(__name__)

_PACKAGES = ("genmeasures", "torch", "numpy", "scipy", "scikit-learn", "xarray", "hydra-core", "pluggy")


class Run:
    """The settings of a run, and the models measured with them.

    models: in the order of the result. train, test: anything that
    :class:`~genmeasures.data.DataSource` takes, or None; a model's own ``train`` takes the place
    of ``train``. device: None measures each model where it is. keep: a folder that keeps each
    model's result as soon as it is there, and from which a later run with the same settings,
    data and weights takes it. tile: size of the tiles by which inputs are run, of all spatial axes
    or of each; None runs them whole. ignore_index: the target that means "no label".
    """

    def __init__(
        self,
        models: Sequence[TaskModel],
        train: Any,
        test: Any,
        measures: Sequence[Measure],
        extractor: Extractor,
        *,
        layers: Sequence[str] | None,
        seed: int,
        device: str | torch.device | None,
        batch_size: int,
        keep: Path | None,
        tile: int | Sequence[int] | None = None,
        ignore_index: float | None = None,
    ) -> None:
        if not models:
            raise ModelError("there are no models to measure")
        names = [model.name for model in models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ModelError(f"models with the same name: {', '.join(twice)}")
        variables = [variable.name for measure in measures for variable in measure.variables]
        repeated = sorted({name for name in variables if variables.count(name) > 1})
        if repeated:
            raise OptionError(f"two measures write the variable {repeated[0]!r}: give them in runs of their own")
        if not measures:
            raise OptionError("there are no measures to compute")
        if not is_count(batch_size):
            raise OptionError(f"batch_size must be a whole number ≥ 1, not {batch_size!r}")
        if not is_count(seed, 0):
            raise OptionError(f"seed must be a whole number ≥ 0, not {seed!r}")
        check_ignore_index(ignore_index)
        if tile is not None:
            sizes = [tile] if isinstance(tile, int) else tile
            if not isinstance(sizes, Sequence) or not sizes or not all(map(is_count, sizes)):
                raise OptionError(f"tile must be a whole number ≥ 1, a list of them or null, not {tile!r}")
            if extractor.label_size((2,)) != (2,):
                raise OptionError(
                    f"tile: {extractor.name} makes vectors of a layer's whole output, which tiles never hold; "
                    "choose the extractor receptive_field, or leave tile out"
                )
        self._models = models
        self._measures = measures
        self._extractor = extractor
        self._layers = layers
        self._seed = seed
        self._device = _device(device)
        self._batch_size = batch_size
        self._keep = None if keep is None else writable(keep)
        self._train = train
        # By tiles inputs are run one by one: no more of them need to be in memory.
        self._read = batch_size if tile is None else 1
        self._tile = tile if tile is None or isinstance(tile, int) else list(tile)
        self._ignore_index = ignore_index
        self._test = None if test is None else DataSource(test, "test", self._read, ignore_index)
        self._prepared: dict[int | None, tuple[Any, PreparedData, list[Measure]]] = {}

    @settled()
    def measure(
        self,
        attrs: Mapping[str, Any],
        on_model: Callable[[str, int, int], None] | None = None,
        on_batch: Progress | None = None,
    ) -> xr.Dataset:
        """Measure all models; ``on_model`` is called with a name, its number and their count as each begins.

        A model that cannot be measured is logged and recorded; if none can, its error is raised.
        """
        datasets: list[xr.Dataset] = []
        errors: list[GenmeasuresError] = []
        for model in self._models:
            # Data, options and names are checked for all before any model runs.
            self._prepare(model)
            model_dataset(model, "not measured yet", self._measures)
        for number, model in enumerate(self._models):
            if on_model is not None:
                on_model(model.name, number, len(self._models))
            try:
                datasets.append(self._measure_one(model, on_batch))
            except Exception as caught:  # whatever stops one model, those measured are kept and the others go on
                if debugging():
                    raise
                error = (
                    caught if isinstance(caught, GenmeasuresError) else ModelError(f"{type(caught).__name__}: {caught}")
                )
                log.debug("model %s failed", model.name, exc_info=caught)
                named = str(error).startswith((f"model {model.name}: ", f"model {model.name!r}: "))
                message = str(error) if named else f"model {model.name}: {error}"
                log.warning("%s", message)
                errors.append(type(error)(message))
                datasets.append(model_dataset(model, str(error), self._measures))
        if len(errors) == len(self._models):
            raise (
                errors[0]
                if len(errors) == 1
                else type(errors[0])(f"none of {len(errors)} models could be measured; {errors[0]}")
            )
        seconds = sum(float(ds.attrs.get("seconds", 0.0)) for ds in datasets)
        return combine(datasets, {**self._provenance(), "seconds": seconds, **attrs})

    def _measure_one(self, task_model: TaskModel, on_batch: Progress | None) -> xr.Dataset:
        began = time.perf_counter()
        data, measures = self._prepare(task_model)
        try:
            model = task_model.build()
        except GenmeasuresError:
            raise
        except Exception as error:  # a task's own code can fail in any way
            raise ModelError(f"it cannot be built: {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise ModelError(f"a model is a torch.nn.Module, not {type(model).__name__}{not_a_module(model)}")
        part = self._part(task_model, model, data, measures)
        if part is not None and part.is_file():
            try:
                kept = load(part)
                log.info("model %s: taken from %s", task_model.name, part)
                return kept
            except ResultError as error:
                log.warning("%s; the model is measured again", error)
        device = self._device or next((p.device for p in model.parameters()), torch.device("cpu"))
        tile = self._tile_of(data)
        result: ModelResult = measure_model(model, data, measures, device, self._layers, on_batch, tile)
        made = model_dataset(task_model, result, measures).assign_attrs(seconds=time.perf_counter() - began)
        if part is not None:
            try:
                save(made.assign_attrs(schema_version=SCHEMA_VERSION), part)
            except ResultError as error:
                log.warning("%s; the model's result is kept in memory only", error)
        return made

    def _prepare(self, model: TaskModel) -> tuple[PreparedData, list[Measure]]:
        key = None if model.train is None else id(model.train)
        if key not in self._prepared:
            train = self._train if model.train is None else model.train
            sources: dict[Split, DataSource] = {}
            if train is not None:
                sources["train"] = DataSource(train, "train", self._read, self._ignore_index)
            if self._test is not None:
                sources["test"] = self._test
            if not sources:
                raise DataError("there are no data: give train, test or both")
            sources = read_alike(sources)
            measures = prepare_measures(self._measures, self._extractor, sources)
            data = prepare_data(sources, measures, self._extractor, self._seed)
            self._tile_of(data)
            self._prepared[key] = (train, data, measures)
        _, data, measures = self._prepared[key]
        return data, measures

    def _tile_of(self, data: PreparedData) -> tuple[int, ...] | None:
        """The size of a tile along each spatial axis of the inputs."""
        if self._tile is None:
            return None
        shape = next(iter(data.sources.values())).scan().input_shape
        axes = len(shape) - 1
        sizes = (self._tile,) * axes if isinstance(self._tile, int) else tuple(self._tile)
        if not axes or len(sizes) != axes:
            raise OptionError(f"tile={self._tile!r}: inputs of shape {shape} have {axes} spatial axes")
        return sizes

    def _part(
        self, model: TaskModel, module: nn.Module, data: PreparedData, measures: Sequence[Measure]
    ) -> Path | None:
        """Where the model's result is kept: named by everything that it depends on."""
        if self._keep is None:
            return None
        digest = hashlib.blake2b(digest_size=12)
        settings = [genmeasures.__version__, SCHEMA_VERSION, measures, self._extractor, self._layers, self._seed]
        known = [model.name, dict(model.hparams), dict(model.metrics), self._batch_size, self._tile, module]
        digest.update(repr([*settings, *known]).encode())
        for split, source in data.sources.items():
            digest.update(split.encode() + source.scan().contents.tobytes())
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            if isinstance(tensor, torch.Tensor):
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        safe = re.sub(r"[^\w.-]+", "_", model.name)[:60]
        return self._keep / f"{safe}-{digest.hexdigest()}.nc"

    def _provenance(self) -> dict[str, Any]:
        hparams = list(dict.fromkeys(name for model in self._models for name in model.hparams))
        metrics = list(dict.fromkeys(name for model in self._models for name in model.metrics))
        metric = next((name.removeprefix("test_") for name in metrics if name.startswith("test_")), "accuracy")
        settings = {
            "measures": [repr(measure) for measure in self._measures],
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
            "versions": json.dumps(versions()),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "settings": yaml.safe_dump(settings, sort_keys=False),
            "config": yaml.safe_dump({**settings, "batch_size": self._batch_size, "tile": self._tile}, sort_keys=False),
        }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def _device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        made = torch.device(device)
        torch.empty(0, device=made)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return made
