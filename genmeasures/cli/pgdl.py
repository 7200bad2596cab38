"""A multirun over all PGDL tasks of a folder: a callback of Hydra for ``experiment=pgdl``."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from genmeasures.api import aggregate, judge
from genmeasures.cli.run import AT_END
from genmeasures.errors import GenmeasuresError, ResultError
from genmeasures.interfaces import Aggregator
from genmeasures.judging import published_scores, score_table
from genmeasures.report import make_console, markdown_scores, print_line, render_scores, write_table, write_text
from genmeasures.results import is_merged, load, settings_of
from genmeasures.tasks.cache import cache_folder
from genmeasures.tasks.pgdl.folders import find_tasks

SECONDS_A_MODEL = 300
"""The competition's limit, pooled over the models of a task."""


class AllTasks(Callback):
    """Sweeps over the tasks below ``task.path``, and ends in one table of official scores."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Makes ``task.which`` a sweep, unless the user has chosen tasks."""
        AT_END.append(functools.partial(show_scores, config))
        if any(one.lstrip("+").startswith("task.which=") for one in config.hydra.overrides.task):
            return
        if OmegaConf.is_missing(config.task, "path"):
            return  # the job says so; of an error here Hydra would make a warning
        try:
            tasks = find_tasks(Path(config.task.path), cache_folder(config.task.cache, "pgdl"))
        except GenmeasuresError:
            return  # the job has the same
        with read_write(config), open_dict(config):
            names = ",".join("'" + name.replace("'", "\\'") + "'" for name in tasks)
            config.hydra.sweeper.params = {**(config.hydra.sweeper.params or {}), "task.which": names}


def show_scores(config: DictConfig) -> None:
    """Show the scores of what the output folder now holds, and write them to ``pgdl.csv`` and ``pgdl.md`` there."""
    console = make_console()
    folder = Path(config.output)
    scores, lines = official_scores(folder, instantiate(config.aggregator, _convert_="all"))
    for line in lines:
        print_line(console, line)
    if scores.empty:
        return
    beside = published_scores([str(name) for name in scores.columns])
    table = score_table(pd.concat([scores, beside]))
    render_scores(table, console)
    try:
        write_table(table.reset_index(), folder / "pgdl.csv")
        write_text(markdown_scores(table), folder / "pgdl.md")
    except ResultError as error:  # the scores are on the screen, and the results in the folder
        print_line(console, str(error), "yellow")
        return
    print_line(console, f"table: {folder / 'pgdl.csv'}, {folder / 'pgdl.md'}")


def official_scores(folder: Path, aggregator: Aggregator) -> tuple[pd.DataFrame, list[str]]:
    """100 × the official score of every result in a folder, (measures, tasks), and remarks.

    Rows of results that were measured in different ways carry the way's settings. Remarks name the
    time that a task took, and what has no score and why.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    lines = []
    for path in sorted(folder.glob("*.nc")):
        try:
            ds = load(path)
            judged = judge(aggregate(ds, aggregator), "generalization_gap", resamples=1)
        except GenmeasuresError as error:
            lines.append(f"{path} is left out: {error}")
            continue
        if is_merged(ds):
            lines.append(f"{path} is left out: it is merged from other results")
            continue
        task = str(ds.attrs.get("task", path.stem))
        seconds = float(ds.attrs.get("seconds", 0.0)) / ds.sizes["model"]
        lines.append(f"{task}: {seconds:.1f} s a model, of the competition's {SECONDS_A_MODEL}")
        way = found.setdefault(_way(ds), {})
        if any(task in tasks for tasks in way.values()):
            lines.append(f"{path} is left out: {task} was measured in the same way before")
            continue
        for _, row in judged.iterrows():
            way.setdefault(str(row["measure"]), {})[task] = float(row["pgdl"])
            if math.isnan(row["pgdl"]):
                reason = row["grid_status"] or "the hyperparameters are not known"
                lines.append(f"{task}, {row['measure']}: {reason}")
    rows = {
        name if len(found) == 1 else f"{name}, {way}": scores
        for way, measures in found.items()
        for name, scores in measures.items()
    }
    frame = pd.DataFrame.from_dict(rows, orient="index", dtype="float64")
    frame.index.name = "measure"
    return frame, list(dict.fromkeys(lines))


def _way(ds: xr.Dataset) -> str:
    """How a result was measured, but for its measures: two with the same can stand in one row."""
    settings = settings_of(ds).items()
    return ", ".join(f"{key}={value}" for key, value in settings if key != "measures" and value is not None)
