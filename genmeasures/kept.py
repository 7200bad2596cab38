"""What earlier runs have left of single models: which of it still holds, taking it, and keeping more."""

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
from genmeasures.results.schema import MODEL_CONTENT, MODEL_KEY

log = logging.getLogger(__name__)

NEW = "new"
"""Why a model was measured of which nothing was there."""

_PARTS = ("weights", "code", "data")
"""What the hashes in a content, one after the other, are of."""

_SLUG_BYTES = 80


@dataclass(frozen=True)
class ModelKey:
    """What a model's values depend on, as the coordinates of results say it."""

    content: str = ""
    key: str = ""
    batched: str = ""
    """The key of values that depend on the batches too, as those of random models do."""
    problem: str = ""
    """Why it is not known."""

    @staticmethod
    def of(weights: str, code: str, data: str, key: str, batches: object) -> ModelKey:
        """The key of a model that could be hashed; batches: how its inputs are put together, by its repr."""
        batched = hashlib.blake2b(f"{key} {batches!r}".encode(), digest_size=len(key) // 2).hexdigest()
        return ModelKey("-".join((weights, code, data)), key, batched)

    def of_values(self, by_batch: bool, reproducible: bool) -> ModelKey:
        """The key of values that were measured; none where another run gives other values."""
        if not reproducible:
            return ModelKey(self.content)
        return replace(self, key=self.batched) if by_batch else self


@dataclass
class Account:
    """Where the values of a run come from, model by model."""

    taken: list[str] = field(default_factory=list)
    """Models whose values were there."""
    measured: dict[str, str] = field(default_factory=dict)
    """Models that were measured, each with the reason why what was there does not hold: "weights changed"."""
    failed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    """Models of the earlier result that the task has no more."""
    unkept: dict[str, str] = field(default_factory=dict)
    """Models whose values could not be kept, each with the reason."""


class Kept:
    """Results of models in a folder of parts and in the result of an earlier run.

    folder: where parts are looked for and kept, None to keep none. earlier: a result with dims (model, layer),
    None where there is none.
    """

    def __init__(self, folder: Path | None, earlier: xr.Dataset | None) -> None:
        self.account = Account()
        self._folder = folder
        self._earlier = earlier
        self._rows: dict[str, int] = {}
        """Rows of the earlier result by key."""
        if earlier is not None:
            for row, (key, status) in enumerate(
                zip(_texts(earlier, MODEL_KEY), _texts(earlier, "model_status"), strict=True)
            ):
                if key and not status.startswith("failed"):
                    self._rows[key] = row

    def take(self, model: TaskModel, key: ModelKey, measures: Sequence[Measure]) -> xr.Dataset | None:
        """The values that were kept under the key, with what is now known of the model; None if there are none."""
        for one in (key, key.of_values(by_batch=True, reproducible=True)):
            found = self._from_earlier(one.key) if one.key else None
            if found is None and one.key:
                found = self._from_folder(model.name, one.key)
            if found is not None and not (debugging() and _has_failed(found)):  # else what failed is to be seen
                return self._described(found, model, one, measures)
        return None

    def _described(
        self, found: xr.Dataset, model: TaskModel, key: ModelKey, measures: Sequence[Measure]
    ) -> xr.Dataset | None:
        try:
            made = described(found, model, key, measures)
        except Exception as error:  # a file that has all its bytes can still be of something else
            log.warning("model %s: what is kept of it cannot be used; it is measured again: %s", model.name, error)
            return None
        self.account.taken.append(model.name)
        return made

    def _from_earlier(self, key: str) -> xr.Dataset | None:
        if self._earlier is None or key not in self._rows:
            return None
        one = self._earlier.isel(model=[self._rows[key]])
        named = np.flatnonzero(one["layer_name"].values[0].astype(str) != "")
        one = one.isel(layer=slice(0, int(named[-1]) + 1 if len(named) else 0))
        seconds = float(self._earlier.attrs.get("seconds", 0.0)) / self._earlier.sizes["model"]
        return one.drop_attrs(deep=False).assign_attrs(seconds=seconds)

    def _from_folder(self, name: str, key: str) -> xr.Dataset | None:
        if self._folder is None:
            return None
        own = self._path(name, key)
        # A model that was given another name is still the same.
        for path in [own] if own.is_file() else sorted(self._folder.glob(f"*-{key}.nc")):
            try:
                found = load(path)
                if found.sizes.get("model") != 1 or _texts(found, MODEL_KEY) != [key]:
                    raise ResultError(f"{path} is not the result of this model")
            except ResultError as error:
                log.warning("%s; the model is measured again", error)
                continue
            log.debug("model %s: taken from %s", name, path)
            return found
        return None

    def keep(self, model: TaskModel, made: xr.Dataset, key: ModelKey) -> None:
        """Write a model's values to the folder of parts. What is not written is counted, and the run goes on."""
        if self._folder is None or not key.key:
            return
        try:
            save(made.assign_attrs(schema_version=SCHEMA_VERSION), self._path(model.name, key.key))
        except Exception as error:
            status = status_of(error, f"keeping the result of model {model.name}")
            self.account.unkept[model.name] = status.removeprefix(RESOURCE_STATUS).removeprefix("failed: ")

    def why(self, name: str, key: ModelKey) -> str:
        """Why the values of the earlier result do not hold for a model."""
        names = [] if self._earlier is None else _texts(self._earlier, "model")
        if self._earlier is None or name not in names:
            return NEW
        row = names.index(name)
        if _texts(self._earlier, "model_status")[row].startswith("failed"):
            return "not measured before"
        if key.problem:
            return "it cannot be told whether it changed"
        before, now = _texts(self._earlier, MODEL_CONTENT)[row].split("-"), key.content.split("-")
        if len(before) != len(_PARTS):
            return "it is not known how it was measured before"
        changed = [part for part, one, other in zip(_PARTS, before, now, strict=True) if one != other]
        if not changed:
            return "other versions of the software, or other batches"
        return f"{' and '.join(changed)} changed"

    def leave_out(self, names: Sequence[str]) -> None:
        """Note which models of the earlier result are not among ``names``."""
        if self._earlier is not None:
            self.account.removed = [name for name in _texts(self._earlier, "model") if name not in names]

    def _path(self, name: str, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{slug(name)}-{key}.nc"


def described(values: xr.Dataset, model: TaskModel, key: ModelKey, measures: Sequence[Measure]) -> xr.Dataset:
    """The values of one model with its name, hyperparameters, metrics and key as they are now."""
    like = model_dataset(model, "", measures)
    bare = model_dataset(TaskModel(model.name, model.build), "", measures)
    wanted = {name for name in bare.variables if bare[name].dims != ("model",)} | set(bare.data_vars)
    if lacking := wanted - set(values.variables):
        raise GenmeasuresError(f"it lacks {', '.join(sorted(map(str, lacking)))}")
    known = [name for name in values.coords if values[name].dims == ("model",) and name not in bare.coords]
    fresh = {name: like[name].variable for name in like.coords if name == "model" or name not in bare.coords}
    return keyed(values.drop_vars(known).assign_coords(fresh), key)


def keyed(ds: xr.Dataset, key: ModelKey) -> xr.Dataset:
    """The dataset of one model with its key in the coordinates."""
    texts = {
        name: np.array([text], dtype=object) for name, text in ((MODEL_CONTENT, key.content), (MODEL_KEY, key.key))
    }
    return ds.assign_coords({name: ("model", text) for name, text in texts.items()})


def _has_failed(made: xr.Dataset) -> bool:
    """Whether a measure has failed on any layer."""
    statuses = (made[str(name)].values.ravel() for name in made.data_vars if str(name).endswith(STATUS))
    return any(str(status).startswith("failed") for found in statuses for status in found)


def shortage(ds: xr.Dataset) -> str:
    """The first status of a dataset that tells of a shortage of memory or the like; "" where there is none."""
    for name in ds.data_vars:
        if str(name).endswith(STATUS):
            for status in ds[name].values.astype(str).ravel():
                if status.startswith(RESOURCE_STATUS):
                    return str(status)
    return ""


def slug(text: str) -> str:
    """A text as the beginning of a file name: letters, digits, ``_``, ``.`` and ``-``, at most 80 bytes.

    Example:
        >>> slug("net 1/é")
        'net_1_é'
    """
    safe = re.sub(r"[^\w.-]+", "_", text.encode("utf-8", "replace").decode())
    return safe.encode()[:_SLUG_BYTES].decode("utf-8", "ignore")


def _texts(ds: xr.Dataset, name: str) -> list[str]:
    """A coordinate of the models as texts, each "" where there is no such coordinate."""
    return [str(text) for text in ds[name].values] if name in ds.coords else [""] * ds.sizes["model"]


__all__ = ["NEW", "Account", "Kept", "ModelKey", "described", "keyed", "shortage", "slug"]
