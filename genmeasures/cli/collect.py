"""``genmeasures collect``: merge the result files of a folder, and compare them in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from genmeasures.api import aggregate, judge
from genmeasures.errors import GenmeasuresError, ResultError
from genmeasures.report import make_console, print_json, render_table, write_table
from genmeasures.results import collect


def collect_command(folder: str, output: str | None, json: bool = False) -> int:
    """Merge, save and judge; returns the exit status. json: print one JSON object and nothing else."""
    console = make_console(quiet=json)
    target = Path(output) if output else Path(folder) / "collected"
    merged = collect(Path(folder), target)
    for problem in merged.problems:
        console.print(problem, style="yellow", markup=False, soft_wrap=True)
    if not merged.files:
        raise ResultError(f"there is no result file in {folder}")
    tables = []
    found: dict[str, Any] = {"problems": merged.problems, "files": []}
    for path, ds in merged.files.items():
        console.print(f"{path}: {ds.sizes['model']} models, {merged.labels[path]}", markup=False, soft_wrap=True)
        file = {"path": str(path), "models": ds.sizes["model"], "run": merged.labels[path]}
        found["files"].append(file)
        try:
            judged = judge(aggregate(ds, "frobenius"))
        except GenmeasuresError as error:
            console.print(f"  not judged: {error}", style="yellow", markup=False, soft_wrap=True)
            file["not_judged"] = str(error)
            continue
        render_table(judged, console)
        tables.append(judged.assign(run=merged.labels[path]))
    if tables:
        table = pd.concat(tables, ignore_index=True)
        write_table(table, target / "judged.csv")
        console.print(f"table: {target / 'judged.csv'}", soft_wrap=True)
    if json:
        rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
        print_json({**found, "judged": rows.astype(object).where(rows.notna(), None).to_dict("records")})
    return 1 if merged.problems else 0
