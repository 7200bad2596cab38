"""The closing report of ``experiment=pgdl``: official scores of all results in a folder, beside published ones."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import xarray as xr
from hydra.utils import instantiate
from omegaconf import DictConfig

from genmeasures import aggregate, judge
from genmeasures.plugin import (
    Aggregator,
    GenmeasuresError,
    ResultError,
    is_merged,
    load_result,
    make_console,
    print_line,
    published_scores,
    score_table,
    settings_of,
    write_table,
    write_text,
)
from genmeasures_pgdl.table import markdown_scores, render_scores

SECONDS_PER_MODEL = 300
"""Time limit of the competition in seconds; it is pooled over the models of a task."""


def show_scores(config: DictConfig) -> None:
    """Print the scores of all results in the output folder, and write them to ``pgdl.csv`` and ``pgdl.md`` there.

    Args:
        config: the configuration of the run, of which ``output`` and ``aggregator`` are used.

    Example:
        >>> import tempfile
        >>> aggregator = {"_target_": "genmeasures.aggregators.Frobenius"}
        >>> with tempfile.TemporaryDirectory() as folder:  # without results, nothing is printed
        ...     show_scores(DictConfig({"output": folder, "aggregator": aggregator}))
    """
    console = make_console()
    folder = Path(config.output)
    scores, remarks = official_scores(folder, instantiate(config.aggregator, _convert_="all"))
    for remark in remarks:
        print_line(console, remark)
    if scores.empty:
        return
    published = published_scores([str(name) for name in scores.columns])
    table = score_table(pd.concat([scores, published]))
    render_scores(table, console)
    try:
        write_table(table.reset_index(), folder / "pgdl.csv")
        write_text(markdown_scores(table), folder / "pgdl.md")
    except ResultError as error:  # the scores are printed already, and the results are saved
        print_line(console, str(error), "yellow")
        return
    print_line(console, f"table: {folder / 'pgdl.csv'}, {folder / 'pgdl.md'}")


def official_scores(folder: Path, aggregator: Aggregator) -> tuple[pd.DataFrame, list[str]]:
    """Official score × 100 of every measure and task, from the result files in a folder.

    Measures are judged against the generalization gap. If the folder holds results of several settings (seeds,
    extractors, …), each measure has one row per setting, and the settings are part of the row's name.

    Args:
        folder: folder with result files (``*.nc``); subfolders are not searched.
        aggregator: reduces the values of the layers to one number per model.

    Returns:
        A table float64 (measures, tasks), NaN where there is no score, and remarks to print: the time per model of
        each task, the reason for each missing score, and the files that are left out.

    Example:
        >>> import tempfile
        >>> from genmeasures.plugin import Frobenius
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scores, remarks = official_scores(Path(folder), Frobenius())
        >>> scores.empty, remarks
        (True, [])
    """
    by_setting: dict[str, dict[str, dict[str, float]]] = {}
    remarks = []
    for path in sorted(folder.glob("*.nc")):
        try:
            ds = load_result(path)
            judged = judge(aggregate(ds, aggregator), "generalization_gap", resamples=1)
        except GenmeasuresError as error:
            remarks.append(f"{path} is left out: {error}")
            continue
        if is_merged(ds):
            remarks.append(f"{path} is left out: it is merged from other results")
            continue
        task = str(ds.attrs.get("task", path.stem))
        seconds = float(ds.attrs.get("seconds", 0.0)) / ds.sizes["model"]
        remarks.append(f"{task}: {seconds:.1f} s per model, the limit of the competition is {SECONDS_PER_MODEL} s")
        by_measure = by_setting.setdefault(_setting(ds), {})
        if any(task in tasks for tasks in by_measure.values()):
            remarks.append(f"{path} is left out: another file has results of {task} with the same settings")
            continue
        for _, row in judged.iterrows():
            by_measure.setdefault(str(row["measure"]), {})[task] = float(row["pgdl"])
            if math.isnan(row["pgdl"]):
                reason = row["grid_status"] or "the hyperparameters are not known"
                remarks.append(f"{task}, {row['measure']}: {reason}")
    rows = {
        name if len(by_setting) == 1 else f"{name}, {setting}": scores
        for setting, by_measure in by_setting.items()
        for name, scores in by_measure.items()
    }
    frame = pd.DataFrame.from_dict(rows, orient="index", dtype="float64")
    frame.index.name = "measure"
    return frame, list(dict.fromkeys(remarks))


def _setting(ds: xr.Dataset) -> str:
    """Settings of a result except its measures: results with equal settings share a row."""
    settings = settings_of(ds).items()
    return ", ".join(f"{key}={value}" for key, value in settings if key != "measures" and value is not None)


__all__ = ["SECONDS_PER_MODEL", "official_scores", "show_scores"]
