"""Merging the result files of many runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import xarray as xr
import yaml

from genmeasures.errors import ResultError
from genmeasures.results.build import combine
from genmeasures.results.store import load, save


@dataclass
class Collected:
    """Merged files with their datasets and what sets each apart; problems name the files left out."""

    files: dict[Path, xr.Dataset] = field(default_factory=dict)
    labels: dict[Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def collect(folder: Path, output: Path) -> Collected:
    """Merge all results below a folder into one file in ``output`` for each way of measuring.

    Runs that differ only in their models, or their task, go together; runs with other measures,
    extractors, layers or seeds do not. Doing it again gives the same files. A file that cannot be
    read, or that holds a model measured the same way in a file before it, is left out and named
    in ``problems``. Raises ResultError if the folder does not exist.
    """
    if not folder.is_dir():
        raise ResultError(f"there is no folder {folder}")
    collected = Collected()
    groups: dict[str, list[tuple[Path, xr.Dataset]]] = {}
    for path in sorted(folder.rglob("*.nc")):
        # Files being written and kept parts of unfinished runs are none of ours.
        inside = path.relative_to(folder).parts
        if output in path.parents or any(part.endswith(".parts") or part.startswith(".") for part in inside):
            continue
        try:
            ds = load(path)
        except ResultError as error:
            collected.problems.append(f"{error}; left out")
            continue
        groups.setdefault(str(ds.attrs.get("settings", "")), []).append((path, ds))
    for settings, members in groups.items():
        kept: list[tuple[Path, xr.Dataset]] = []
        seen: dict[tuple[str, str], Path] = {}
        for path, ds in members:
            models = [(str(ds.attrs.get("task", "")), str(name)) for name in ds["model"].values]
            twice = [model for model in models if model in seen]
            if twice:
                more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
                collected.problems.append(
                    f"{path}: model {twice[0][1]}{more} already measured the same way in {seen[twice[0]]}; left out"
                )
                continue
            seen.update(dict.fromkeys(models, path))
            kept.append((path, ds))
        tasks = list(dict.fromkeys(str(ds.attrs.get("task", "")) for _, ds in kept))
        datasets = [_named(ds) if len(tasks) > 1 else ds for _, ds in kept]
        attrs = {**kept[0][1].attrs, "task": ", ".join(tasks), "sources": "\n".join(path.name for path, _ in kept)}
        attrs["seconds"] = sum(float(ds.attrs.get("seconds", 0.0)) for _, ds in kept)
        if len({ds.attrs.get("test_size") for _, ds in kept}) > 1:
            attrs.pop("test_size", None)
        merged = combine(datasets, attrs)
        name = hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()
        path = save(merged, output / f"collected-{name}.nc")
        collected.files[path] = merged
    known = {path: yaml.safe_load(str(ds.attrs.get("settings", ""))) or {} for path, ds in collected.files.items()}
    for path, settings_ in known.items():
        others = [other for other in known.values() if other is not settings_]
        telling = [key for key in settings_ if any(other.get(key) != settings_[key] for other in others)]
        collected.labels[path] = ", ".join(
            f"{key}={settings_[key]}" for key in telling or ["extractor"] if key in settings_
        )
    return collected


def _named(ds: xr.Dataset) -> xr.Dataset:
    """Models of several tasks are told apart by the task's name."""
    task = ds.attrs.get("task", "")
    return ds.assign_coords(model=("model", [f"{task}/{name}" for name in ds["model"].values]))
