"""Stored results of single models: validation, reuse in later runs, and storage."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import xarray as xr

from genmeasures.errors import GenmeasuresError, ResultError
from genmeasures.failures import RESOURCE_STATUS, debugging, status_of
from genmeasures.interfaces import Measure, TaskModel
from genmeasures.results import SCHEMA_VERSION, STATUS, load, model_dataset, save
from genmeasures.results.schema import MEASURED, MODEL_CONTENT, MODEL_KEY

log = logging.getLogger(__name__)

NEW = "new"
"""Reason why a model without an earlier result was measured."""

_PARTS = ("weights", "code", "data")
"""Parts that the hashes in :attr:`ModelKey.content` identify, in order."""

_SLUG_BYTES = 80
"""Maximum length of a :func:`slug`."""


@dataclass(frozen=True)
class ModelKey:
    """Identifies everything that the values of a model depend on.

    Example:
        >>> key = ModelKey.of("w", "c", "d", key="0123", batches=32)
        >>> key.content, key.key
        ('w-c-d', '0123')
        >>> key.of_values(by_batch=False, reproducible=False).key  # values that no other run can reuse
        ''
    """

    content: str = ""
    """Hashes of weights, code and data, separated by hyphens."""
    key: str = ""
    """Hash of everything that values depend on; "" if it is not known."""
    batched: str = ""
    """Key of values that also depend on the batches, such as those of random models."""
    problem: str = ""
    """Reason why the key is not known."""

    @staticmethod
    def of(weights: str, code: str, data: str, key: str, batches: object) -> ModelKey:
        """Make the key of a model.

        Args:
            weights: Hash of its weights.
            code: Hash of its code.
            data: Hash of its data.
            key: Hash of everything that values depend on.
            batches: Description of the batches, whose ``repr`` is hashed.
        """
        batched = hashlib.blake2b(f"{key} {batches!r}".encode(), digest_size=len(key) // 2).hexdigest()
        return ModelKey("-".join((weights, code, data)), key, batched)

    def of_values(self, by_batch: bool, reproducible: bool) -> ModelKey:
        """Return the key under which measured values are stored.

        Args:
            by_batch: Whether the values depend on the batches.
            reproducible: Whether another run gives the same values; else the key is "".
        """
        if not reproducible:
            return ModelKey(self.content)
        return replace(self, key=self.batched) if by_batch else self


@dataclass
class Account:
    """Summary of a run: which models were measured, and which values were reused.

    Example:
        >>> Account(taken=["net_0"], measured={"net_1": "weights changed"}).failed
        []
    """

    taken: list[str] = field(default_factory=list)
    """Models whose stored values were reused."""
    measured: dict[str, str] = field(default_factory=dict)
    """Models that were measured, with the reason why no stored values were reused: "weights changed"."""
    failed: list[str] = field(default_factory=list)
    """Models that could not be measured."""
    removed: list[str] = field(default_factory=list)
    """Models of the earlier result that are no longer in the task."""
    unkept: dict[str, str] = field(default_factory=dict)
    """Models whose values could not be stored, with the reason."""


class Kept:
    """Stored results of models: a folder with one file per model, and the result of an earlier run.

    Args:
        folder: Folder in which results are looked up and stored; None to store nothing.
        earlier: Result with dims (model, layer), None if there is none.

    Example:
        >>> from torch import nn
        >>> kept = Kept(folder=None, earlier=None)
        >>> key = ModelKey.of("w", "c", "d", key="0123", batches=32)
        >>> kept.take(TaskModel("net_0", lambda: nn.Linear(2, 2)), key, measures=[]) is None
        True
        >>> kept.why("net_0", key)
        'new'
    """

    def __init__(self, folder: Path | None, earlier: xr.Dataset | None) -> None:
        self.account = Account()
        self._folder = folder
        self._earlier = earlier
        self._rows: dict[str, int] = {}
        """Row of each key in the earlier result."""
        if earlier is not None:
            for row, (key, status) in enumerate(
                zip(_texts(earlier, MODEL_KEY), _texts(earlier, "model_status"), strict=True)
            ):
                if key and not status.startswith("failed"):
                    self._rows[key] = row

    def take(self, model: TaskModel, key: ModelKey, measures: Sequence[Measure]) -> xr.Dataset | None:
        """Return the stored values of a model.

        Args:
            model: The model, whose name, hyperparameters and metrics replace the stored ones.
            key: Key of its values.
            measures: Measures of the run.

        Returns:
            Values of the model with dims (model, layer), None if none are stored.
        """
        for candidate in (key, key.of_values(by_batch=True, reproducible=True)):
            stored = self._from_earlier(candidate.key) if candidate.key else None
            if stored is None and candidate.key:
                stored = self._from_folder(model.name, candidate.key)
            if stored is not None and not (debugging() and _has_failed(stored)):  # when debugging, failures run again
                return self._described(stored, model, candidate, measures)
        return None

    def _described(
        self, stored: xr.Dataset, model: TaskModel, key: ModelKey, measures: Sequence[Measure]
    ) -> xr.Dataset | None:
        """Stored values with the present description of the model; None if they do not match the measures."""
        try:
            values = described(stored, model, key, measures)
        except Exception as error:  # an intact file can still have other contents
            log.warning("model %s: its stored result cannot be used, it is measured again: %s", model.name, error)
            return None
        self.account.taken.append(model.name)
        return values

    def _from_earlier(self, key: str) -> xr.Dataset | None:
        """Values in the result of the earlier run."""
        if self._earlier is None or key not in self._rows:
            return None
        values = self._earlier.isel(model=[self._rows[key]])
        named = np.flatnonzero(values["layer_name"].values[0].astype(str) != "")
        values = values.isel(layer=slice(0, int(named[-1]) + 1 if len(named) else 0))
        seconds = float(self._earlier.attrs.get("seconds", 0.0)) / self._earlier.sizes["model"]
        return values.drop_attrs(deep=False).assign_attrs(seconds=seconds)

    def _from_folder(self, name: str, key: str) -> xr.Dataset | None:
        """Values in the folder of results."""
        if self._folder is None:
            return None
        expected = self._path(name, key)
        # A renamed model is still the same.
        for path in [expected] if expected.is_file() else sorted(self._folder.glob(f"*-{key}.nc")):
            try:
                stored = load(path)
                if stored.sizes.get("model") != 1 or _texts(stored, MODEL_KEY) != [key]:
                    raise ResultError(f"{path} is not the result of this model")
            except ResultError as error:
                log.warning("%s; the model is measured again", error)
                continue
            log.debug("model %s: taken from %s", name, path)
            return stored
        return None

    def keep(self, model: TaskModel, values: xr.Dataset, key: ModelKey) -> None:
        """Write the values of a model to the folder.

        An error does not stop the run; it is recorded in ``account.unkept``.

        Args:
            model: The model.
            values: Its values, with dims (model, layer).
            key: Key of the values; nothing is written without one.
        """
        if self._folder is None or not key.key:
            return
        try:
            save(values.assign_attrs(schema_version=SCHEMA_VERSION), self._path(model.name, key.key))
        except Exception as error:
            status = status_of(error, f"keeping the result of model {model.name}")
            self.account.unkept[model.name] = status.removeprefix(RESOURCE_STATUS).removeprefix("failed: ")

    def why(self, name: str, key: ModelKey) -> str:
        """Return the reason why the values in the earlier result cannot be reused for a model.

        Args:
            name: Name of the model.
            key: Its present key.

        Returns:
            Reason such as "weights changed", or :data:`NEW`.
        """
        names = [] if self._earlier is None else _texts(self._earlier, "model")
        if self._earlier is None or name not in names:
            return NEW
        row = names.index(name)
        if _texts(self._earlier, "model_status")[row].startswith("failed"):
            return "not measured before"
        if key.problem:
            return "it is not known whether it changed"
        before, now = _texts(self._earlier, MODEL_CONTENT)[row].split("-"), key.content.split("-")
        if len(before) != len(_PARTS):
            return "it is not known how it was measured before"
        changed = [part for part, old, new in zip(_PARTS, before, now, strict=True) if old != new]
        if not changed:
            return "other versions of the software, other batches, or other validation data"
        return f"{' and '.join(changed)} changed"

    def leave_out(self, names: Sequence[str]) -> None:
        """Record which models of the earlier result are not among ``names``."""
        if self._earlier is not None:
            self.account.removed = [name for name in _texts(self._earlier, "model") if name not in names]

    def _path(self, name: str, key: str) -> Path:
        """File of a model's values."""
        assert self._folder is not None
        return self._folder / f"{slug(name)}-{key}.nc"


def described(values: xr.Dataset, model: TaskModel, key: ModelKey, measures: Sequence[Measure]) -> xr.Dataset:
    """Replace the name, hyperparameters, metrics and key in the values of one model.

    Args:
        values: Values of one model, with dims (model, layer).
        model: The model with its present name, hyperparameters and metrics.
        key: Key of the values.
        measures: Measures whose variables the values must have.

    Raises:
        GenmeasuresError: Variables are missing.

    Example:
        >>> from torch import nn
        >>> stored = model_dataset(TaskModel("net_0", lambda: nn.Linear(2, 2)), "", measures=[])
        >>> renamed = TaskModel("net_1", lambda: nn.Linear(2, 2), metrics={"test_accuracy": 0.9})
        >>> ds = described(stored, renamed, ModelKey("w-c-d", "0123"), measures=[])
        >>> ds.model.item(), ds.test_accuracy.item()
        ('net_1', 0.9)
    """
    present = model_dataset(model, "", measures)
    bare = model_dataset(TaskModel(model.name, model.build), "", measures)
    required = {name for name in bare.variables if bare[name].dims != ("model",)} | set(bare.data_vars)
    if missing := required - set(values.variables):
        raise GenmeasuresError(f"it does not have the variables {', '.join(sorted(map(str, missing)))}")
    stale = [
        name for name in values.coords if values[name].dims == ("model",) and name not in {*bare.coords, *MEASURED}
    ]
    fresh = {name: present[name].variable for name in present.coords if name == "model" or name not in bare.coords}
    return keyed(values.drop_vars(stale).assign_coords(fresh), key)


def keyed(ds: xr.Dataset, key: ModelKey) -> xr.Dataset:
    """Add a key to the coordinates of a dataset of one model.

    Args:
        ds: Dataset with one model.
        key: Key of its values.

    Example:
        >>> ds = xr.Dataset(coords={"model": ["net_0"]})
        >>> keyed(ds, ModelKey("w-c-d", "0123")).coords[MODEL_KEY].item()
        '0123'
    """
    texts = {
        name: np.array([text], dtype=object) for name, text in ((MODEL_CONTENT, key.content), (MODEL_KEY, key.key))
    }
    return ds.assign_coords({name: ("model", text) for name, text in texts.items()})


def _has_failed(ds: xr.Dataset) -> bool:
    """Whether a measure has failed on any layer."""
    arrays = (ds[str(name)].values.ravel() for name in ds.data_vars if str(name).endswith(STATUS))
    return any(str(status).startswith("failed") for statuses in arrays for status in statuses)


def shortage(ds: xr.Dataset) -> str:
    """Return the first status in a dataset that reports a resource shortage.

    Args:
        ds: Dataset with status variables.

    Returns:
        The status, "" if there is none.

    Example:
        >>> shortage(xr.Dataset({"confidence_status": ("layer", ["ok", "failed: resources: out of memory"])}))
        'failed: resources: out of memory'
    """
    for name in ds.data_vars:
        if str(name).endswith(STATUS):
            for status in ds[name].values.astype(str).ravel():
                if status.startswith(RESOURCE_STATUS):
                    return str(status)
    return ""


def slug(text: str) -> str:
    """Convert text to the beginning of a file name: letters, digits, ``_``, ``.`` and ``-``, at most 80 bytes.

    Example:
        >>> slug("net 1/é")
        'net_1_é'
    """
    safe = re.sub(r"[^\w.-]+", "_", text.encode("utf-8", "replace").decode())
    return safe.encode()[:_SLUG_BYTES].decode("utf-8", "ignore")


def _texts(ds: xr.Dataset, name: str) -> list[str]:
    """A coordinate along ``model`` as strings, "" for each model if there is no such coordinate."""
    return [str(text) for text in ds[name].values] if name in ds.coords else [""] * ds.sizes["model"]


__all__ = ["NEW", "Account", "Kept", "ModelKey", "described", "keyed", "shortage", "slug"]
