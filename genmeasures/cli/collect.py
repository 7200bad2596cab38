"""``genmeasures collect``: merge the result files of a folder, and compare them in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from genmeasures.api import aggregate, judge
from genmeasures.errors import GenmeasuresError, ResultError
from genmeasures.report import make_console, print_json, print_line, render_table, write_table
from genmeasures.results import collect


def collect_command(folder: str, output: str | None, json: bool = False) -> int:
    """Merge, save and judge; returns the exit status. json: print one JSON object and nothing else."""
    console = make_console(quiet=json)
    target = Path(output) if output else Path(folder) / "collected"
    merged = collect(Path(folder), target)
    for line in (*merged.remarks, *merged.problems):
        print_line(console, line, "yellow")
    if not merged.files:
        what = "result that can be read" if merged.problems else "result file"
        raise ResultError(f"there is no {what} in {folder}")
    tables = []
    found: dict[str, Any] = {"remarks": merged.remarks, "problems": merged.problems, "files": []}
    for path, ds in merged.files.items():
        print_line(console, f"{path}: {ds.sizes['model']} models, {merged.labels[path]}")
        file = {"path": str(path), "models": ds.sizes["model"], "run": merged.labels[path]}
        found["files"].append(file)
        try:
            judged = judge(aggregate(ds, "frobenius"))
        except GenmeasuresError as error:
            print_line(console, f"  not judged: {error}", "yellow")
            file["not_judged"] = str(error)
            continue
        render_table(judged, console)
        tables.append(judged.assign(run=merged.labels[path]))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    if json:
        print_json({**found, "judged": table.astype(object).where(table.notna(), None).to_dict("records")})
    if tables:
        write_table(table, target / "judged.csv")
        print_line(console, f"table: {target / 'judged.csv'}")
    return 1 if merged.problems else 0
