"""Command ``genmeasures run``: a run composed by Hydra, measured, judged, printed and saved."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import xarray as xr
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.utils import get_class
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from genmeasures.aggregators import Frobenius
from genmeasures.api import aggregate, judge
from genmeasures.callbacks import AT_END
from genmeasures.checks import check_seed
from genmeasures.cli.complaints import message_for, unread
from genmeasures.cli.components import make_component
from genmeasures.cli.interrupts import left_to_parent, on_interrupt, shield_workers
from genmeasures.cli.naming import result_path, shown_overrides
from genmeasures.cli.overrides import PATHS, flags_first, readable, text_of
from genmeasures.cli.search_path import CONFIGS, SearchPath
from genmeasures.errors import GenmeasuresError, ModelError, OptionError, ResultError, one_line, shown
from genmeasures.failures import debugging
from genmeasures.files import remove_stale_temporaries
from genmeasures.interfaces import Aggregator, Extractor, Measure, Task
from genmeasures.kept import NEW, Account
from genmeasures.progress import progress_bars
from genmeasures.report import (
    failures,
    make_console,
    model_notes,
    mostly_failed,
    plot_measures,
    print_line,
    render_table,
    skipped,
    write_table,
)
from genmeasures.results import load, save
from genmeasures.run import Run

log = logging.getLogger(__name__)

_FULL = "HYDRA_FULL_ERROR"
"""Environment variable of Hydra; "1" lets exceptions through."""

_WITHOUT_VALUES = ("output", "force", "figures", "against", "aggregator", "batch_size", "tile", "memory", "device")
"""Settings that do not change values, and so not the name of the result; the kind of device does."""

_SETTINGS = ("task", "extractor", "measure", "seed", "ignore_index", "layers", *_WITHOUT_VALUES)
"""All settings of a run."""

_UNFINISHED: list[Path] = []
"""Folders of the models that the current run has measured, for the message after an interruption."""

_DRIVING: list[bool] = []
"""Not empty in the process in which the command was started."""


class Shield(Callback):
    """Hydra callback for multiruns whose jobs run in other processes."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Shield the workers. Hydra's basic launcher has none."""
        if "BasicLauncher" not in str(config.hydra.launcher.get("_target_")):
            shield_workers()


def run_command(arguments: Sequence[str]) -> int:
    """Run with Hydra overrides.

    Args:
        arguments: Overrides and flags of Hydra, as typed after ``genmeasures run``.

    Returns:
        The exit status.

    Example:
        >>> run_command(["output=/dev/null"])  # with a message on standard error
        1
    """
    Plugins.instance().register(SearchPath)
    AT_END.clear()
    _UNFINISHED.clear()
    overrides: list[str] = []
    before, full, reports = sys.argv, os.environ.get(_FULL), logging.raiseExceptions
    _DRIVING.append(True)
    # A log file on a full disk must not print a traceback for every line.
    logging.raiseExceptions = False
    try:
        overrides = readable(flags_first(arguments))
        output = text_of(overrides, "output", "results")
        on_interrupt(lambda: _kept_so_far(Path(output)))
        _check_output(Path(output))
        sys.argv = ["genmeasures", *overrides]
        # Hydra then raises exceptions instead of printing a traceback and exiting.
        os.environ[_FULL] = "1"
        hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name="run")(job)()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        line = message_for(error, overrides)
        if line is None or full == "1" or debugging():
            raise
        print(line, file=sys.stderr)
        status = 1
    finally:
        sys.argv = before
        logging.raiseExceptions = reports
        _DRIVING.pop()
        if full is None:
            os.environ.pop(_FULL, None)
        else:
            os.environ[_FULL] = full
    for last in AT_END:
        last()
    return status


def _kept_so_far(output: Path) -> str:
    """What is kept of interrupted runs, for the message."""
    folders = _UNFINISHED or sorted(output.glob("*.parts"))
    count = sum(len(list(folder.glob("*.nc"))) for folder in folders)
    if not count:
        return "no model was measured completely; the same command starts again"
    where = folders[0] if len(folders) == 1 else output
    return f"{count} measured {'model is' if count == 1 else 'models are'} kept in {where}; the same command resumes"


def _check_output(output: Path) -> None:
    """Raise OptionError if the output folder cannot be written: Hydra makes its log folder before the run starts."""
    there = next((folder for folder in (output, *output.parents) if folder.exists()), Path())
    if not there.is_dir():
        raise OptionError(f"output={output}: {there} is a file: choose another output folder")
    if not os.access(there, os.W_OK):
        raise OptionError(f"output={output}: {there} is not writable: choose another output folder")


def job(config: DictConfig) -> None:
    """One run. Errors of genmeasures end it without a traceback, and the other jobs of a multirun continue.

    Args:
        config: the composed configuration of the run.

    Raises:
        CompactHydraException: the run failed with an error of genmeasures.

    Example:
        >>> job(OmegaConf.create({"sead": 1}))
        Traceback (most recent call last):
            ...
        hydra.errors.CompactHydraException: error: sead: unknown setting, which nothing reads ...
    """
    if not _DRIVING:
        left_to_parent()
    try:
        _job(config)
    except GenmeasuresError as error:
        if debugging():
            raise
        log.error("%s", error)
        raise CompactHydraException(f"error: {error}") from error


def _job(config: DictConfig) -> None:
    _check_settings(config)
    task = make_component(config, "task", Task)
    extractor = make_component(config, "extractor", Extractor)
    aggregator = make_component(config, "aggregator", Aggregator)
    measures = [
        make_component(config.measure, str(name), Measure, "measure.").called(str(name)) for name in config.measure
    ]
    path = result_path(Path(config.output), task.label, extractor.name, _overrides(task), digest(config))
    keep = path.with_suffix(".parts")
    console = make_console()
    earlier = _earlier(path, console)
    _tidy(path.parent)
    if config.force:
        earlier = None
        _remove(keep)
    run = _run(config, task, extractor, measures, keep)
    attrs = {"task": task.label, "metric": task.metric, "config": OmegaConf.to_yaml(config, resolve=True)}
    if task.identity is not None:
        attrs["task_id"] = task.identity
    ds, problem = _measured(run, attrs, earlier, path, keep, console)
    _report(config, ds, aggregator, path, problem, console)


def _check_settings(config: DictConfig) -> None:
    """Check the settings that are not options of components, before networks are trained."""
    if unknown := unread(config, _SETTINGS):
        raise OptionError(unknown)
    for name in ("force", "figures"):
        if not isinstance(config[name], bool):
            raise OptionError(f"{name} must be true or false, got {config[name]!r}")
    check_seed(config.seed)
    if not config.get("measure"):
        raise OptionError("measure: at least one measure is needed, such as measure=[roughness]")


def _run(config: DictConfig, task: Task, extractor: Extractor, measures: Sequence[Measure], keep: Path) -> Run:
    return Run(
        task.models(),
        task.data("train"),
        task.data("test"),
        measures,
        extractor,
        layers=list(config.layers) if isinstance(config.layers, ListConfig) else config.layers,
        seed=config.seed,
        device=config.device or "cpu",
        batch_size=config.batch_size,
        keep=keep,
        tile=list(config.tile) if isinstance(config.tile, ListConfig) else config.tile,
        ignore_index=task.ignore_index if config.ignore_index is None else config.ignore_index,
        memory=config.memory,
        validation=task.data("validation") if "validation" in task.splits else None,
    )


def _measured(
    run: Run, attrs: dict[str, Any], earlier: xr.Dataset | None, path: Path, keep: Path, console: Console
) -> tuple[xr.Dataset, ResultError | None]:
    """The result, and the error with which it could not be saved."""
    _UNFINISHED[:] = [keep]
    try:
        with progress_bars(None) as (on_model, on_batch):
            ds = run.measure(attrs, on_model, on_batch, earlier)
        problem = None
        if earlier is not None and len(run.account.taken) == len(ds["model"]) and ds.equals(earlier):
            print_line(console, f"The result exists already (force=true measures again): {path}")
        else:
            for line in _account(run.account, keep if earlier is None else path, earlier is not None):
                print_line(console, line)
            problem = _saved(ds, path)
            if problem is None:
                for file in path.parent.glob(f"{glob.escape(path.stem)}*"):  # of the previous result
                    if file.name.endswith((".png", "-judged.csv")):
                        file.unlink(missing_ok=True)
        if problem is None:
            _remove(keep)
    finally:
        _remove_empty(keep)
    return ds, problem


def _report(
    config: DictConfig,
    ds: xr.Dataset,
    aggregator: Aggregator,
    path: Path,
    problem: ResultError | None,
    console: Console,
) -> None:
    """Print what failed and the judged table, then write the table and the figure beside the result."""
    aggregated = aggregate(ds, aggregator)
    for line in failures(ds):
        print_line(console, line, "yellow")
    for line in skipped(ds):
        print_line(console, line)
    judged = _judged(aggregated, config, console)
    for line in model_notes(ds):
        print_line(console, line, "yellow")
    if problem is not None:
        keep = path.with_suffix(".parts")
        kept = len(list(keep.glob("*.nc")))
        raise ResultError(
            f"{problem}; the values above are not saved; {kept} of {len(ds['model'])} models are kept in {keep}"
        )
    print_line(console, f"result: {path}")
    stem = f"{path.stem}{_aggregated_by(aggregator)}"  # values do not depend on it: one file serves all aggregators
    if judged is not None:
        write_table(judged, path.with_name(f"{stem}-judged.csv"))
    if config.figures:
        figure = path.with_name(f"{stem}.png")
        try:
            plot_measures(ds, aggregated, figure)
        except OSError as error:
            raise ResultError(f"cannot write the figure {figure}: {error.strerror or error}") from error
        print_line(console, f"figure: {figure}")
    if failed := mostly_failed(ds):
        raise ModelError(failed)


def _judged(aggregated: xr.Dataset, config: DictConfig, console: Console) -> pd.DataFrame | None:
    """The judged table, which is printed; None if the measures cannot be judged."""
    against = config.against if config.against is None or isinstance(config.against, str) else list(config.against)
    try:
        judged = judge(aggregated, against)
        render_table(judged, console)
    except OptionError:
        raise  # the user has named something that does not exist
    except GenmeasuresError as error:
        print_line(console, f"The measures are not judged: {error}", "yellow")
        return None
    return judged


def _aggregated_by(aggregator: Aggregator) -> str:
    """Part of the names of tables and figures for an aggregator other than the default: ``-last_k-k=2``."""
    if repr(aggregator) == repr(Frobenius()):
        return ""
    options = {name: getattr(aggregator, name) for name in aggregator.option_names()}
    written = "-".join([aggregator.name, *(f"{name}={value}" for name, value in options.items())])
    return "-" + re.sub(r"[^\w.=-]+", "_", written)[:60]


def _earlier(path: Path, console: Console) -> xr.Dataset | None:
    """The result of an earlier run, None if there is none that can be read."""
    if not path.is_file():
        return None
    try:
        return load(path)
    except ResultError as error:
        print_line(console, f"The result is measured again: {one_line(str(error))}", "yellow")
        return None


def _account(account: Account, source: Path, renewed: bool) -> list[str]:
    """One line on what was reused and what was measured; none if nothing had been kept."""
    count = len(account.taken) + len(account.measured) + len(account.failed)
    if not account.taken and not account.removed and set(account.measured.values()) <= {NEW}:
        return []
    parts = [f"{len(account.taken)} of {count} models reused from {source}"]
    for reason in dict.fromkeys(account.measured.values()):
        names = [name for name, why in account.measured.items() if why == reason]
        parts.append(f"{len(names)} measured ({reason}): {_list(names)}")
    if account.failed:
        parts.append(f"{len(account.failed)} failed: {_list(account.failed)}")
    if account.removed:
        parts.append(f"{len(account.removed)} left out (no longer in the task): {_list(account.removed)}")
    if len(parts) == 1 and renewed:
        parts.append("their hyperparameters, metrics and order are updated")
    return ["; ".join(parts)]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(shown, names[:5])) + more


def _saved(ds: xr.Dataset, path: Path) -> ResultError | None:
    """Write the result; an error is returned, so that the values can be shown first."""
    try:
        save(ds, path)
    except ResultError as error:
        return error
    return None


def _overrides(task: Task) -> list[str]:
    """Overrides of the command line that the name of the result shows."""
    if not HydraConfig.initialized():
        return []
    hidden = {f"task.{name}" for name in task.incidental}
    overrides = HydraConfig.get().overrides.task
    typed = [override for override in overrides if override.lstrip("+~").partition("=")[0] not in hidden]
    return shown_overrides(typed, _WITHOUT_VALUES)


def digest(config: DictConfig) -> str:
    """Return a hash of everything in the configuration that the values depend on, and of the path of the models.

    Example:
        >>> a, b = ({"task": {"limit": limit}, "output": output} for limit, output in ((2, "x"), (2, "y")))
        >>> digest(OmegaConf.create(a)) == digest(OmegaConf.create(b))
        True
    """
    settings: Any = OmegaConf.to_container(config, resolve=True)
    kept = {key: value for key, value in settings.items() if key not in _WITHOUT_VALUES}
    kept["device"] = str(settings.get("device") or "cpu").partition(":")[0]
    task = dict(kept.get("task") or {})
    for name in getattr(get_class(task["_target_"]), "incidental", ()) if "_target_" in task else ():
        task.pop(name, None)
    for name in PATHS:
        if isinstance(task.get(name), str):
            task[name] = str(Path(task[name]).expanduser().resolve())
    text = OmegaConf.to_yaml(OmegaConf.create({**kept, "task": task}), sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def _tidy(output: Path) -> None:
    """Remove what killed runs have left: unfinished files, and empty folders."""
    remove_stale_temporaries(output)
    for folder in output.glob("*.parts"):
        remove_stale_temporaries(folder)
        _remove_empty(folder)


def _remove(folder: Path) -> None:
    for part in folder.glob("*.nc"):
        part.unlink(missing_ok=True)
    _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it does not exist, or is not empty
        folder.rmdir()
