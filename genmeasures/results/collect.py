"""Merging of the result files of many runs."""

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
from genmeasures.results.combine import combine
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
"""Number of names that a line lists."""


@dataclass
class Collected:
    """Merged result files, and the files that they were merged from."""

    files: dict[Path, xr.Dataset] = field(default_factory=dict)
    """Merged datasets by path."""
    labels: dict[Path, str] = field(default_factory=dict)
    """Settings in which each merged file differs from the others."""
    runs: dict[Path, xr.Dataset] = field(default_factory=dict)
    """Datasets that were read, by path."""
    problems: list[str] = field(default_factory=list)
    """Lines on files and values that are missing from the merged files."""
    remarks: list[str] = field(default_factory=list)
    """Lines on duplicates that were left out."""


def collect(folder: Path, output: Path) -> Collected:
    """Merge all results below a folder into one file per combination of settings.

    Runs that differ only in their models or their task are merged; runs with different measures, extractors, layers
    or seeds are not. Merging again gives the same files.

    Two results are of the same model if task, name and hash are equal; without a hash, if all values are equal. The
    model is taken from the first file in which it did not fail. Different models with equal names are all kept, with
    the label of their task as prefix, or a short hash as suffix where the labels are equal too.

    Merged files in the folder are left out, unless there are only merged files. Temporary files that killed processes
    left in the folder are removed.

    Args:
        folder: Folder that is searched for result files recursively.
        output: Folder for the merged files, which is created if it does not exist.

    Returns:
        The merged files. A file that cannot be read is left out and named in ``problems``.

    Raises:
        ResultError: The folder does not exist, or a merged file cannot be written.

    Example:
        >>> import tempfile
        >>> from genmeasures.results import SCHEMA_VERSION
        >>> coords = {"model": ["net"], "model_status": ("model", ["ok"])}
        >>> ds = xr.Dataset(coords=coords, attrs={"schema_version": SCHEMA_VERSION, "task": "digits", "seconds": 1.0})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save(ds, Path(folder, "runs", "a.nc"))
        ...     collected = collect(Path(folder, "runs"), Path(folder, "merged"))
        >>> [merged.model.item() for merged in collected.files.values()], collected.problems
        (['net'], [])
    """
    if not folder.is_dir():
        raise ResultError(f"the folder {folder} does not exist")
    collected = Collected()
    remove_stale_temporaries(output)
    files = _read(_result_files(folder, collected.problems), collected.problems)
    originals = [file for file in files if not is_merged(file.ds)]
    groups: dict[str, list[_File]] = {}
    for file in originals or files:
        groups.setdefault(file.settings, []).append(file)
    collected.runs = {file.path: file.ds for file in originals or files}
    for settings, members in groups.items():
        name = hashlib.blake2b(settings.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        merged = _merged(members, folder, collected)
        if merged is not None:
            path = output / f"collected-{name}.nc"
            collected.files[path] = merged
    if originals:
        _report_left_out([file for file in files if file not in originals], originals, collected)
    for path, ds in collected.files.items():
        save(ds, path)
    collected.labels = _labels(collected.files)
    return collected


@dataclass(frozen=True, eq=False)
class _File:
    """A result file, its dataset and its models."""

    path: Path
    ds: xr.Dataset
    models: list[ModelResults]

    @property
    def settings(self) -> str:
        """Settings of the run: results with equal settings are merged."""
        return str(self.ds.attrs.get("settings", ""))


def _read(paths: Iterable[Path], problems: list[str]) -> list[_File]:
    """The files that are results; the others are named in ``problems``."""
    files = []
    for path in paths:
        try:
            ds = load(path)
            files.append(_File(path, ds, models_of(path, ds)))
        except ResultError as error:
            problems.append(f"{error}; left out")
        except Exception as error:  # files of other programs can raise errors of any type
            problems.append(f"cannot read the result {path}: {type(error).__name__}: {error}; left out")
    return files


def _result_files(folder: Path, problems: list[str]) -> list[Path]:
    """Paths of all result files, except for hidden ones and parts of unfinished runs."""
    paths = []

    def unreadable(error: OSError) -> None:
        problems.append(f"cannot read the folder {error.filename}: {error.strerror}; left out")

    for root, folders, files in os.walk(folder, onerror=unreadable):
        remove_stale_temporaries(Path(root))
        for parts in (Path(root, name) for name in folders if name.endswith(".parts")):
            remove_stale_temporaries(parts)
            with contextlib.suppress(OSError):  # it is not empty, or belongs to another user
                # A run creates the folder again when it stores a part.
                if time.time() - parts.stat().st_mtime > _HOUR:
                    parts.rmdir()
        folders[:] = [name for name in folders if not name.startswith(".") and not name.endswith(".parts")]
        paths += [Path(root, name) for name in files if name.endswith(".nc") and not name.startswith(".")]
    return sorted(paths)


def _merged(members: Sequence[_File], folder: Path, collected: Collected) -> xr.Dataset | None:
    """One dataset of all models of files with equal settings; None where that is impossible."""
    fitting = []
    for file in members:
        other = _other_quantity(members[0].ds, file.ds)
        if other:
            collected.problems.append(f"{file.path}: {other} from {members[0].path}: measure again; left out")
        else:
            fitting.append(file)
    kept = _distinct([model for file in fitting for model in file.models], collected)
    names = dict(zip(kept, distinct_names(kept), strict=True))
    used = [file for file in fitting if any(model in names for model in file.models)]
    attrs = {
        "task": ", ".join(dict.fromkeys(model.task for model in kept)),
        "hparams": json.dumps(list(dict.fromkeys(name for file in used for name in hparams_of(file.ds)))),
        SOURCES: json.dumps([file.path.relative_to(folder).as_posix() for file in used]),
    }
    try:
        datasets = [_part(file, names) for file in used]
        return combine(datasets, {**_attrs(datasets), **attrs})
    except Exception as error:  # files with a valid checksum that no run wrote can raise errors of any type
        paths = ", ".join(str(file.path) for file in used)
        collected.problems.append(f"cannot merge {paths}: {type(error).__name__}: {error}; left out")
        return None


def _part(file: _File, names: Mapping[ModelResults, str]) -> xr.Dataset:
    """The models of a file that are kept, under their names in the merged file."""
    models = [model for model in file.models if model in names]
    coordinates = {
        "model": [names[model] for model in models],
        MODEL_NAME: [model.name for model in models],
        MODEL_TASK: [model.task for model in models],
        MODEL_TASK_ID: [model.task_id for model in models],
    }
    coords = {name: ("model", np.array(values, dtype=object)) for name, values in coordinates.items()}
    seconds = float(file.ds.attrs.get("seconds", 0.0)) * len(models) / len(file.models)
    kept = file.ds.isel(model=[model.index for model in models])
    return kept.assign_coords(coords).assign_attrs(seconds=seconds)


def _distinct(models: Sequence[ModelResults], collected: Collected) -> list[ModelResults]:
    """The models without duplicates, which are named in ``collected``."""
    by_name: dict[str, list[ModelResults]] = {}
    left_out: dict[tuple[Path, Path, str], list[str]] = {}
    for model in models:
        namesakes = by_name.setdefault(model.name, [])
        index = next((i for i, other in enumerate(namesakes) if model.is_same(other)), None)
        if index is None:
            namesakes.append(model)
            continue
        duplicate, original = model, namesakes[index]
        if model.measured and not original.measured:
            namesakes[index], duplicate, original = model, original, model
        failed = original.measured and not duplicate.measured
        reason = "failed" if failed else "" if duplicate.has_values_of(original) else "differs"
        left_out.setdefault((duplicate.path, original.path, reason), []).append(duplicate.name)
    for (path, other, reason), names in left_out.items():
        subject = f"{path}: model {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
        if reason == "differs":
            collected.problems.append(
                f"{subject} already measured with the same settings in {other}, with different values; left out"
            )
        elif reason == "failed":
            collected.remarks.append(f"{subject} failed and was measured in {other}; left out")
        else:
            collected.remarks.append(f"{subject} already measured with the same settings in {other}; left out")
    kept = {model for namesakes in by_name.values() for model in namesakes}
    return [model for model in models if model in kept]


def _other_quantity(first: xr.Dataset, ds: xr.Dataset) -> str:
    """How a measure differs from the one of the same name in another result; "" where none does."""
    for name in measure_variables(ds):
        for attr in ("units", "expected_accuracy", "expected_gap"):
            if name in first and first[name].attrs.get(attr) != ds[name].attrs.get(attr):
                return f"{name} differs in {attr}"
    return ""


def _attrs(datasets: Sequence[xr.Dataset]) -> dict[str, Any]:
    """Attributes that are equal in all results, the sum of their seconds, and the latest time of creation."""
    first, *others = [ds.attrs for ds in datasets]
    attrs = {
        name: value
        for name, value in first.items()
        if all(name in other and np.array_equal(other[name], value) for other in others)
    }
    created = [str(ds.attrs["created"]) for ds in datasets if "created" in ds.attrs]
    attrs |= {"created": max(created)} if created else {}
    return {**attrs, "seconds": sum(ds.attrs["seconds"] for ds in datasets)}


def _report_left_out(merged: Sequence[_File], originals: Sequence[_File], collected: Collected) -> None:
    """Report the merged files that were left out, and the models that only they contain."""
    known: dict[tuple[str, str], list[ModelResults]] = {}
    for file in originals:
        for model in file.models:
            known.setdefault((file.settings, model.name), []).append(model)
    written = {path.resolve() for path in collected.files}
    for file in merged:
        unique = [
            model.name
            for model in file.models
            if not any(model.is_same(other) for other in known.get((file.settings, model.name), ()))
        ]
        names = ", ".join(unique[:_EXAMPLES]) + (", …" if len(unique) > _EXAMPLES else "")
        models = f"{len(unique)} {'model' if len(unique) == 1 else 'models'} ({names}) without another result"
        remedy = "to merge them, collect a folder that contains only merged files"
        if file.path.resolve() not in written:
            detail = f", with {models}: {remedy}" if unique else ""
            collected.remarks.append(f"{file.path}: a merged file, left out{detail}")
        elif unique:  # the file will be overwritten
            copy = _copy_aside(file.path)
            collected.remarks.append(f"{file.path}: contained {models}, and is kept as {copy}: {remedy}")


def _copy_aside(path: Path) -> Path:
    """Copy a file under a name with the hash of its content; returns the path of the copy."""
    try:
        content = path.read_bytes()
        copy = path.with_name(f"{path.name}.{hashlib.blake2b(content, digest_size=4).hexdigest()}.old")
        write_atomically(copy, content)
    except OSError as error:
        raise ResultError(
            f"cannot copy {path}, which contains models without another result: {error.strerror or error}"
        ) from error
    return copy


def _labels(files: Mapping[Path, xr.Dataset]) -> dict[Path, str]:
    """Settings in which merged files differ."""
    settings = {path: run_settings(ds) for path, ds in files.items()}
    names = differing(list(settings.values())) or ["extractor"]
    return {path: ", ".join(f"{name}={own[name]}" for name in names if name in own) for path, own in settings.items()}
