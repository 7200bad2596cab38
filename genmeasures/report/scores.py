"""The table of the competition: measures × tasks, 100 × the official score."""

from __future__ import annotations

import numpy as np
import pandas as pd
from rich.console import Console

from genmeasures.errors import shown
from genmeasures.report.console import Column, print_table


def render_scores(scores: pd.DataFrame, console: Console) -> None:
    """Print scores, float64 (rows, tasks and ``mean``, ``low``, ``high``); a dash where there is none."""
    header, body = _cells(scores)
    # Where there is no room the last tasks are left out first; the mean stays.
    leave = [0, *range(1, len(header) - 1), 0]
    cells = [list(column) for column in zip(*body, strict=True)] if body else [[] for _ in header]
    columns = [
        Column(name, of, names=not place, leave=leave[place])
        for place, (name, of) in enumerate(zip(header, cells, strict=True))
    ]
    print_table(console, _TITLE, columns)


def markdown_scores(scores: pd.DataFrame) -> str:
    """The same in Markdown."""
    header, body = _cells(scores)
    rule = ["---", *["---:"] * (len(header) - 1)]
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in cells] for cells in (header, rule, *body))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped) + "\n"


_TITLE = "PGDL score × 100, of a task and on average, with 95% bootstrap intervals over tasks"


def _cells(scores: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    tasks = [name for name in scores.columns if name not in ("mean", "low", "high")]
    header = ["measure", *(shown(str(task)) for task in tasks), "mean"]
    body = []
    for name, row in scores.iterrows():
        mean = _number(row["mean"])
        if np.isfinite(row["low"]):
            mean += f"\n[{row['low']:.2f}, {row['high']:.2f}]"
        body.append([shown(str(name)), *(_number(row[task]) for task in tasks), mean])
    return header, body


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "–"
