"""``genmeasures run``: Hydra composes a run, the run is measured, judged, shown and kept."""

from __future__ import annotations

import hashlib
import importlib.resources
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException, InstantiationException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from genmeasures.api import aggregate, judge
from genmeasures.errors import GenmeasuresError, ModelError, OptionError, nearest
from genmeasures.interfaces import Aggregator, Component, Extractor, Measure, Task
from genmeasures.registry import registry
from genmeasures.report import (
    failures,
    make_console,
    mostly_failed,
    plot_measures,
    render_table,
    skipped,
    write_table,
)
from genmeasures.results import load, save
from genmeasures.running import Run

log = logging.getLogger(__name__)

_PRESENTATION = ("output", "force", "figures", "against", "aggregator")
"""Settings that change no measured value, and so not the name of the result."""

AT_END: list[Callable[[], None]] = []
"""What a multirun does last, also where one of its jobs has failed: Hydra's own callback is then left out."""


class _SearchPath(SearchPathPlugin):
    """Adds the configs of plugins, and conf/ of the working folder with its experiments."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for package in registry().config_packages():
            if package != "genmeasures.conf":
                search_path.append("genmeasures-plugin", f"pkg://{package}")
        folder = Path.cwd() / "conf"
        if folder.is_dir():
            search_path.append("working-folder", f"file://{folder}")


def run_command(overrides: Sequence[str]) -> int:
    """Run with Hydra overrides; returns the exit status."""
    Plugins.instance().register(_SearchPath)
    AT_END.clear()
    before = sys.argv
    sys.argv = ["genmeasures", *overrides]
    try:
        _check_output(overrides)
        hydra.main(version_base="1.3", config_path="pkg://genmeasures.conf", config_name="run")(job)()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        if status:
            _suggest(overrides)
        return status
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        sys.argv = before
        for last in AT_END:
            last()
    return 0


def _check_output(overrides: Sequence[str]) -> None:
    """Hydra makes its log folder before anything of ours runs, and shows a traceback where it cannot."""
    given = [value for key, _, value in (override.partition("=") for override in overrides) if key == "output"]
    output = Path(given[-1] if given else "results")
    there = next((folder for folder in (output, *output.parents) if folder.exists()), Path())
    if not there.is_dir():
        raise OptionError(f"output={output}: {there} is a file: choose another output folder")
    if not os.access(there, os.W_OK):
        raise OptionError(f"output={output}: {there} cannot be written: choose another output folder")


def _suggest(overrides: Sequence[str]) -> None:
    """Of a name in a list, Hydra says that it is not there, but not which ones are."""
    for override in overrides:
        group, _, value = override.lstrip("+").partition("=")
        names = _choices(group) if re.fullmatch(r"\w+", group) else []
        for name in re.findall(r"[\w.-]+", value) if names and value.startswith("[") else []:
            if name not in names:
                print(f"error: there is no {group} {name!r}{nearest(name, names)}", file=sys.stderr)


def _choices(group: str) -> list[str]:
    """What can be chosen of a config group: the files of all packages and of the working folder."""
    folders = [importlib.resources.files(package) / group for package in registry().config_packages()]
    folders.append(Path.cwd() / "conf" / group)
    files = [file.name for folder in folders if folder.is_dir() for file in folder.iterdir()]
    return [name.removesuffix(".yaml") for name in files if name.endswith(".yaml")]


def job(config: DictConfig) -> None:
    """One run. Errors of ours end without a traceback, and the other jobs of a multirun go on."""
    try:
        _job(config)
    except GenmeasuresError as error:
        log.error("%s", error)
        raise CompactHydraException(f"error: {error}") from error


def _job(config: DictConfig) -> None:
    task = _make(config, "task", Task)
    extractor = _make(config, "extractor", Extractor)
    aggregator = _make(config, "aggregator", Aggregator)
    if not config.get("measure"):
        raise OptionError("measure: choose at least one, measure=[roughness] for example")
    measures = [_make(config.measure, str(name), Measure, "measure.") for name in config.measure]
    path = Path(config.output) / f"{_slug(task.label)}-{digest(config)}.nc"
    console = make_console()
    there = load(path) if path.is_file() and not config.force else None
    # Models that failed are tried again: their files may have been mended since.
    if there is not None and bool((there["model_status"] == "ok").all()):
        console.print(f"The result is already there (force=true measures again): {path}", soft_wrap=True)
        ds = there
    else:
        keep = path.with_suffix(".parts")
        run = Run(
            task.models(),
            task.data("train"),
            task.data("test"),
            measures,
            extractor,
            layers=None if config.layers is None else list(config.layers),
            seed=config.seed,
            device=config.device or "cpu",
            batch_size=config.batch_size,
            keep=keep,
            tile=list(config.tile) if isinstance(config.tile, ListConfig) else config.tile,
        )
        if config.force:
            _remove(keep)
        attrs = {"task": task.label, "metric": task.metric, "config": OmegaConf.to_yaml(config, resolve=True)}
        with _progress() as progress:
            ds = _measure(run, attrs, progress)
        save(ds, path)
        if bool((ds["model_status"] == "ok").all()):
            _remove(keep)
    aggregated = aggregate(ds, aggregator)
    for line in failures(ds):
        console.print(line, style="yellow", markup=False)
    for line in skipped(ds):
        console.print(line, markup=False)
    try:
        against = config.against if config.against is None or isinstance(config.against, str) else list(config.against)
        judged = judge(aggregated, against)
        render_table(judged, console)
        write_table(judged, path.with_name(f"{path.stem}-judged.csv"))
    except OptionError:
        raise  # the user has named what is not there
    except GenmeasuresError as error:
        console.print(f"The measures are not judged: {error}", style="yellow", markup=False)
    console.print(f"result: {path}", soft_wrap=True)
    if config.figures:
        plot_measures(ds, aggregated, path.with_suffix(".png"))
        console.print(f"figure: {path.with_suffix('.png')}", soft_wrap=True)
    if failed := mostly_failed(ds):
        raise ModelError(failed)


def digest(config: DictConfig) -> str:
    """A name for everything in the configuration that the values depend on."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    kept = OmegaConf.create({key: value for key, value in settings.items() if key not in _PRESENTATION})
    return hashlib.blake2b(OmegaConf.to_yaml(kept, sort_keys=True).encode(), digest_size=6).hexdigest()


def _make(config: DictConfig, key: str, base: type[Any], prefix: str = "") -> Any:
    """The component that a part of the configuration describes, its options checked by name first."""
    node = config.get(key)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise OptionError(f"{prefix}{key}: no component is configured")
    try:
        component = get_class(node["_target_"])
    except Exception as error:
        raise OptionError(f"{prefix}{key}: {node['_target_']} cannot be imported: {error}") from error
    if not issubclass(component, base):
        raise OptionError(f"{prefix}{key}: {node['_target_']} is no {base.__name__}")
    for option in map(str, node):
        if OmegaConf.is_missing(node, option):
            raise OptionError(f"{prefix}{key}.{option}: a value is needed, {prefix}{key}.{option}=…")
    if issubclass(component, Component):
        known = component.option_names()
        for option in map(str, node):
            if option not in known and not option.startswith("_"):
                raise OptionError(f"{prefix}{key}.{option}: there is no such option{nearest(option, known)}")
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, GenmeasuresError):
            raise type(cause)(f"{prefix}{key}: {cause!s}") from error
        raise OptionError(f"{prefix}{key}: {error}") from error


def _measure(run: Run, attrs: dict[str, Any], progress: Progress) -> Any:
    models = progress.add_task("models", total=None)
    passes = progress.add_task("", total=None)

    def on_model(name: str, number: int, count: int) -> None:
        progress.update(models, total=count, completed=number, description=f"model {name}")

    def on_batch(split: str, done: int, total: int) -> None:
        progress.update(passes, total=total, completed=done, description=f"  {split} data")

    ds = run.measure(attrs, on_model, on_batch)
    progress.update(models, completed=progress.tasks[0].total)
    progress.remove_task(passes)
    return ds


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _remove(folder: Path) -> None:
    for part in folder.glob("*.nc"):
        part.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _slug(text: str) -> str:
    return re.sub(r"[^\w-]+", "_", text)
