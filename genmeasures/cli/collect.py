"""``genmeasures collect``: merge the result files of a folder, and compare them in one table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console

from genmeasures.api import aggregate, judge
from genmeasures.errors import GenmeasuresError, ResultError
from genmeasures.report import render_table
from genmeasures.results import collect


def collect_command(folder: str, output: str | None) -> int:
    """Merge, save and judge; returns the exit status."""
    console = Console()
    target = Path(output) if output else Path(folder) / "collected"
    merged = collect(Path(folder), target)
    for problem in merged.problems:
        console.print(problem, style="yellow", markup=False, soft_wrap=True)
    if not merged.files:
        raise ResultError(f"there is no result file in {folder}")
    tables = []
    for path, ds in merged.files.items():
        console.print(f"{path}: {ds.sizes['model']} models, {merged.labels[path]}", markup=False, soft_wrap=True)
        try:
            judged = judge(aggregate(ds, "frobenius"))
        except GenmeasuresError as error:
            console.print(f"  not judged: {error}", style="yellow", markup=False, soft_wrap=True)
            continue
        render_table(judged, console)
        tables.append(judged.assign(run=merged.labels[path]))
    if tables:
        table = pd.concat(tables, ignore_index=True)
        table.to_csv(target / "judged.csv", index=False)
        console.print(f"table: {target / 'judged.csv'}", soft_wrap=True)
    return 1 if merged.problems else 0
