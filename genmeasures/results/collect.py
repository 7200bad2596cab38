"""Merging the result files of many runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from genmeasures.errors import ResultError
from genmeasures.files import remove_stale_temporaries, write_atomically
from genmeasures.results.build import combine
from genmeasures.results.models import ModelResults, distinct_names, models_of
from genmeasures.results.runs import differing, run_settings
from genmeasures.results.schema import (
    MODEL_NAME,
    MODEL_TASK,
    MODEL_TASK_ID,
    SOURCES,
    hparams_of,
    is_merged,
    measure_variables,
)
from genmeasures.results.store import load, save

_HOUR = 60 * 60
_EXAMPLES = 3
"""How many names a line lists before it stops."""


@dataclass
class Collected:
    """Merged files with their datasets and what sets each apart, and the files that they were made of.

    problems: lines on files and values that are missing from the merged files. remarks: lines on
    what was left out because it is there already.
    """

    files: dict[Path, xr.Dataset] = field(default_factory=dict)
    labels: dict[Path, str] = field(default_factory=dict)
    runs: dict[Path, xr.Dataset] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def collect(folder: Path, output: Path) -> Collected:
    """Merge all results below a folder into one file in ``output`` for each way of measuring.

    Runs that differ only in their models, or their task, go together; runs with other measures,
    extractors, layers or seeds do not. Doing it again gives the same files.

    A model is the same in two files if its task, its name and its content are, where a result
    does not tell its content if all its values are: it is taken from the first file in which it
    did not fail. Models of one name that are not the same are all kept, with the label of their
    task before the name, or a short hash of their content after it where the labels are equal too.

    Merged files in the folder are left out, unless there are no others: then they are the data.
    What killed processes have left in the folder is removed.

    Args:
        folder: where to look for result files, and below.
        output: a folder for the merged files; it is made if it is not there.

    Returns:
        The merged files. A file that cannot be read is left out and named in ``problems``.

    Raises:
        ResultError: the folder does not exist, or a merged file cannot be written.
    """
    if not folder.is_dir():
        raise ResultError(f"there is no folder {folder}")
    collected = Collected()
    remove_stale_temporaries(output)
    files = _read(_result_files(folder, collected.problems), collected.problems)
    originals = [file for file in files if not is_merged(file.ds)]
    groups: dict[str, list[_File]] = {}
    for file in originals or files:
        groups.setdefault(file.way, []).append(file)
    collected.runs = {file.path: file.ds for file in originals or files}
    for way, members in groups.items():
        name = hashlib.blake2b(way.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        merged = _merged(members, folder, collected)
        if merged is not None:
            path = output / f"collected-{name}.nc"
            collected.files[path] = merged
    if originals:
        _say_left_out([file for file in files if file not in originals], originals, collected)
    for path, ds in collected.files.items():
        save(ds, path)
    collected.labels = _labels(collected.files)
    return collected


@dataclass(frozen=True, eq=False)
class _File:
    """A result file and what is read of it."""

    path: Path
    ds: xr.Dataset
    models: list[ModelResults]

    @property
    def way(self) -> str:
        """How the models were measured: results in which it is the same go together."""
        return str(self.ds.attrs.get("settings", ""))


def _read(paths: Iterable[Path], problems: list[str]) -> list[_File]:
    """All files that hold a result; the others are named in ``problems``."""
    files = []
    for path in paths:
        try:
            ds = load(path)
            files.append(_File(path, ds, models_of(path, ds)))
        except ResultError as error:
            problems.append(f"{error}; left out")
        except Exception as error:  # whoever wrote it can have put anything into it
            problems.append(f"cannot read the result {path}: {type(error).__name__}: {error}; left out")
    return files


def _result_files(folder: Path, problems: list[str]) -> list[Path]:
    """All files named as results are, but for hidden ones and kept parts of unfinished runs."""
    found = []

    def unreadable(error: OSError) -> None:
        problems.append(f"cannot look into {error.filename}: {error.strerror}; left out")

    for place, folders, files in os.walk(folder, onerror=unreadable):
        remove_stale_temporaries(Path(place))
        for parts in (Path(place, name) for name in folders if name.endswith(".parts")):
            remove_stale_temporaries(parts)
            with contextlib.suppress(OSError):  # it is not empty, or somebody else's
                # A run makes the folder again when it has something to keep there.
                if time.time() - parts.stat().st_mtime > _HOUR:
                    parts.rmdir()
        folders[:] = [name for name in folders if not name.startswith(".") and not name.endswith(".parts")]
        found += [Path(place, name) for name in files if name.endswith(".nc") and not name.startswith(".")]
    return sorted(found)


def _merged(members: Sequence[_File], folder: Path, collected: Collected) -> xr.Dataset | None:
    """One dataset of all models of some files that were measured in one way; None where that is impossible."""
    fitting = []
    for file in members:
        other = _other_quantity(members[0].ds, file.ds)
        if other:
            collected.problems.append(f"{file.path}: {other} than in {members[0].path}: measure again; left out")
        else:
            fitting.append(file)
    kept = _each_once([model for file in fitting for model in file.models], collected)
    names = dict(zip(kept, distinct_names(kept), strict=True))
    used = [file for file in fitting if any(model in names for model in file.models)]
    known = {
        "task": ", ".join(dict.fromkeys(model.task for model in kept)),
        "hparams": json.dumps(list(dict.fromkeys(name for file in used for name in hparams_of(file.ds)))),
        SOURCES: json.dumps([file.path.relative_to(folder).as_posix() for file in used]),
    }
    try:
        datasets = [_part(file, names) for file in used]
        return combine(datasets, {**_attrs(datasets), **known})
    except Exception as error:  # files with a right checksum that no run wrote can differ in any way
        paths = ", ".join(str(file.path) for file in used)
        collected.problems.append(f"cannot merge {paths}: {type(error).__name__}: {error}; left out")
        return None


def _part(file: _File, names: Mapping[ModelResults, str]) -> xr.Dataset:
    """The models of a file that have a name in the merged one, under that name."""
    models = [model for model in file.models if model in names]
    known = {
        "model": [names[model] for model in models],
        MODEL_NAME: [model.name for model in models],
        MODEL_TASK: [model.task for model in models],
        MODEL_TASK_ID: [model.task_id for model in models],
    }
    coords = {name: ("model", np.array(values, dtype=object)) for name, values in known.items()}
    seconds = float(file.ds.attrs.get("seconds", 0.0)) * len(models) / len(file.models)
    chosen = file.ds.isel(model=[model.place for model in models])
    return chosen.assign_coords(coords).assign_attrs(seconds=seconds)


def _each_once(models: Sequence[ModelResults], collected: Collected) -> list[ModelResults]:
    """The models without those that are there before, which are named in ``collected``."""
    by_name: dict[str, list[ModelResults]] = {}
    left_out: dict[tuple[Path, Path, str], list[str]] = {}
    for model in models:
        alike = by_name.setdefault(model.name, [])
        place = next((i for i, other in enumerate(alike) if model.is_same(other)), None)
        if place is None:
            alike.append(model)
            continue
        out, there = model, alike[place]
        if model.measured and not there.measured:
            alike[place], out, there = model, there, model
        why = "failed" if there.measured and not out.measured else "" if out.has_values_of(there) else "differs"
        left_out.setdefault((out.path, there.path, why), []).append(out.name)
    for (path, other, why), names in left_out.items():
        who = f"{path}: model {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
        if why == "differs":
            told = f"{who} already measured the same way in {other}, with other values; left out"
            collected.problems.append(told)
        elif why == "failed":
            collected.remarks.append(f"{who} failed and was measured in {other}; left out")
        else:
            collected.remarks.append(f"{who} already measured the same way in {other}; left out")
    kept = {model for alike in by_name.values() for model in alike}
    return [model for model in models if model in kept]


def _other_quantity(first: xr.Dataset, ds: xr.Dataset) -> str:
    """How a measure differs from that of the same name in another result; empty where none does."""
    for name in measure_variables(ds):
        for attr in ("units", "expected_accuracy", "expected_gap"):
            if name in first and first[name].attrs.get(attr) != ds[name].attrs.get(attr):
                return f"{name} has other {attr}"
    return ""


def _attrs(datasets: Sequence[xr.Dataset]) -> dict[str, Any]:
    """The attributes that all of some results share, how long they took, and when the last was made."""
    first, *others = [ds.attrs for ds in datasets]
    attrs = {
        name: value
        for name, value in first.items()
        if all(name in other and np.array_equal(other[name], value) for other in others)
    }
    created = [str(ds.attrs["created"]) for ds in datasets if "created" in ds.attrs]
    attrs |= {"created": max(created)} if created else {}
    return {**attrs, "seconds": sum(ds.attrs["seconds"] for ds in datasets)}


def _say_left_out(merged: Sequence[_File], originals: Sequence[_File], collected: Collected) -> None:
    """Name the merged files that were left out, and the models that only they hold."""
    there: dict[tuple[str, str], list[ModelResults]] = {}
    for file in originals:
        for model in file.models:
            there.setdefault((file.way, model.name), []).append(model)
    written = {path.resolve() for path in collected.files}
    for file in merged:
        alone = [
            model.name
            for model in file.models
            if not any(model.is_same(other) for other in there.get((file.way, model.name), ()))
        ]
        names = ", ".join(alone[:_EXAMPLES]) + (", …" if len(alone) > _EXAMPLES else "")
        told = f"{len(alone)} {'model' if len(alone) == 1 else 'models'} ({names}) of which there is no other result"
        remedy = "to have them merged, collect a folder of merged files alone"
        if file.path.resolve() not in written:
            collected.remarks.append(f"{file.path}: a merged file, left out{f', with {told}: {remedy}' * bool(alone)}")
        elif alone:  # it will be written anew
            aside = _set_aside(file.path)
            collected.remarks.append(f"{file.path}: held {told}, and is kept as {aside}: {remedy}")


def _set_aside(path: Path) -> Path:
    """Copy a file under a name that tells its content; returns the copy's path."""
    try:
        content = path.read_bytes()
        copy = path.with_name(f"{path.name}.{hashlib.blake2b(content, digest_size=4).hexdigest()}.old")
        write_atomically(copy, content)
    except OSError as error:
        raise ResultError(
            f"cannot copy {path}, which holds models of which there is no other result: {error.strerror or error}"
        ) from error
    return copy


def _labels(files: Mapping[Path, xr.Dataset]) -> dict[Path, str]:
    """What tells merged files apart: the settings in which they differ."""
    settings = {path: run_settings(ds) for path, ds in files.items()}
    telling = differing(list(settings.values())) or ["extractor"]
    return {path: ", ".join(f"{name}={own[name]}" for name in telling if name in own) for path, own in settings.items()}
