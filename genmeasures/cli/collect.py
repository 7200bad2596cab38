"""Command ``genmeasures collect``: merged result files of a folder, and one table of the runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from rich.console import Console

from genmeasures.api import aggregate, judge
from genmeasures.cli.check import options_of
from genmeasures.errors import GenmeasuresError, OptionError, ResultError
from genmeasures.registry import registry
from genmeasures.report import (
    JudgedRun,
    by_run,
    make_console,
    print_json,
    print_line,
    render_by_run,
    render_index,
    render_table,
    write_table,
)
from genmeasures.results import Collected, collect, differing, run_settings
from genmeasures.results.schema import MODEL_TASK

_IN_FULL = 3
"""Maximum number of settings whose whole tables are printed; those of more are in files."""


def collect_command(
    folder: str,
    output: str | None,
    json: bool = False,
    aggregator: Sequence[str] = ("frobenius",),
    against: Sequence[str] | None = None,
) -> int:
    """Merge result files, save them, and judge the measures.

    Args:
        folder: Folder with result files.
        output: Folder for the merged files; None is ``FOLDER/collected``.
        json: Print one JSON object and nothing else.
        aggregator: Name of the aggregator, and its options as OPTION=VALUE.
        against: Names of metrics that measures are judged against; None takes the test metric and the generalization
            gap.

    Returns:
        The exit status, 0.

    Raises:
        ResultError: If no result file can be read.

    Example:
        >>> collect_command("no_such_folder", None)
        Traceback (most recent call last):
            ...
        genmeasures.errors.ResultError: the folder no_such_folder does not exist
    """
    console = make_console(quiet=json)
    reducer: Any = registry().make("aggregator", aggregator[0], options_of(aggregator[1:]))
    target = Path(output) if output else Path(folder) / "collected"
    merged = collect(Path(folder), target)
    for line in (*merged.remarks, *merged.problems):
        print_line(console, line, "yellow")
    if not merged.files:
        what = "result that can be read" if merged.problems else "result file"
        raise ResultError(f"there is no {what} in {folder}")
    index = _index(merged.runs, Path(folder))
    render_index(index, console)
    runs, tables, files, unknown = _judged(merged, reducer, against, console)
    compared = by_run(runs)
    if len(merged.files) > 1:
        render_by_run(compared, repr(reducer), console)
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    if json:
        report = {"remarks": merged.remarks, "problems": merged.problems, "files": files}
        print_json({**report, "runs": _records(index), "by_run": _records(compared), "judged": _records(table)})
    written = {"runs.csv": index, "by_run.csv": compared, "judged.csv": table}
    for name, frame in written.items():
        if len(frame):
            write_table(frame, target / name)
    print_line(console, f"tables: {', '.join(str(target / name) for name, frame in written.items() if len(frame))}")
    if unknown and not tables:
        raise unknown[0]
    return 1 if merged.problems else 0


def _judged(
    merged: Collected, reducer: Any, against: Sequence[str] | None, console: Console
) -> tuple[list[JudgedRun], list[pd.DataFrame], list[dict[str, Any]], list[OptionError]]:
    """Judge the merged files; returns runs, tables, a description of each file, and errors for unknown names."""
    runs, tables, files = [], [], []
    unknown: list[OptionError] = []
    for path, ds in merged.files.items():
        file: dict[str, Any] = {"path": str(path), "models": ds.sizes["model"], "run": merged.labels[path]}
        files.append(file)
        summary = f"{path}: {ds.sizes['model']} models, {merged.labels[path]}"
        try:
            judged = judge(aggregate(ds, reducer), against)
        except GenmeasuresError as error:
            print_line(console, summary)
            print_line(console, f"  not judged: {error}", "yellow")
            file["not_judged"] = str(error)
            if isinstance(error, OptionError):
                unknown.append(error)
            continue
        if len(merged.files) <= _IN_FULL:
            print_line(console, summary)
            render_table(judged, console)
        task = {"task": ", ".join(sorted(set(ds[MODEL_TASK].values.astype(str))))} if MODEL_TASK in ds.coords else {}
        runs.append(JudgedRun({**task, **_named(run_settings(ds))}, ds.sizes["model"], judged))
        tables.append(judged.assign(run=merged.labels[path]))
    return runs, tables, files, unknown


def _index(runs: dict[Path, xr.Dataset], folder: Path) -> pd.DataFrame:
    """One row per result file, with the settings in which the files differ; ``run`` is the hash in its name."""
    settings = [_named(run_settings(ds)) for ds in runs.values()]
    names = differing(settings)
    rows = [
        {
            "run": _hash_of(path),
            "task": str(ds.attrs.get("task", "")),
            "models": ds.sizes["model"],
            **{name: own.get(name, "") for name in names},
            "file": path.relative_to(folder).as_posix(),
        }
        for (path, ds), own in zip(runs.items(), settings, strict=True)
    ]
    return pd.DataFrame(rows)


def _hash_of(path: Path) -> str:
    """Identifier of a result file: the hash at the end of its name, or the name where there is none."""
    match = re.search(r"-([0-9a-f]{12})$", path.stem)
    return match[1] if match else path.stem


def _named(settings: dict[str, str]) -> dict[str, str]:
    """The settings with components by the names that users give: receptive_field."""
    names = {kind.__name__: kind.name for info in registry().plugins for _, kind in info.components}
    return {key: names.get(value, value) for key, value in settings.items()}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(k): v for k, v in row.items()}
        for row in table.astype(object).where(table.notna(), None).to_dict("records")
    ]
