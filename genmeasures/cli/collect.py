"""``genmeasures collect``: merge the result files of a folder, and compare them in one table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console

from genmeasures.api import aggregate, judge
from genmeasures.errors import GenmeasuresError, ResultError
from genmeasures.files import write_atomically
from genmeasures.report import print_line, render_table
from genmeasures.results import collect


def collect_command(folder: str, output: str | None) -> int:
    """Merge, save and judge; returns the exit status."""
    console = Console()
    target = Path(output) if output else Path(folder) / "collected"
    merged = collect(Path(folder), target)
    for line in (*merged.remarks, *merged.problems):
        print_line(console, line, "yellow")
    if not merged.files:
        what = "result that can be read" if merged.problems else "result file"
        raise ResultError(f"there is no {what} in {folder}")
    tables = []
    for path, ds in merged.files.items():
        print_line(console, f"{path}: {ds.sizes['model']} models, {merged.labels[path]}")
        try:
            judged = judge(aggregate(ds, "frobenius"))
        except GenmeasuresError as error:
            print_line(console, f"  not judged: {error}", "yellow")
            continue
        render_table(judged, console)
        tables.append(judged.assign(run=merged.labels[path]))
    if tables:
        path = target / "judged.csv"
        write_table(path, pd.concat(tables, ignore_index=True).to_csv(index=False))
        print_line(console, f"table: {path}")
    return 1 if merged.problems else 0


def write_table(path: Path, text: str) -> None:
    """Write a table in UTF-8. Raises ResultError naming a file that cannot be written."""
    try:
        # Names may hold lone surrogates, as those of files whose names are not UTF-8.
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ResultError(
            f"cannot write the table {path}: {error.strerror or error}; make room, or choose another output folder"
        ) from error
