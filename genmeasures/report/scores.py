"""The table of the competition: measures × tasks, 100 × the official score."""

from __future__ import annotations

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from genmeasures.errors import shown


def render_scores(scores: pd.DataFrame, console: Console) -> None:
    """Print scores, float64 (rows, tasks and ``mean``, ``low``, ``high``); a dash where there is none."""
    header, body = _cells(scores)
    table = Table(title=Text(_TITLE, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for place, name in enumerate(header):
        table.add_column(Text(name), justify="right" if place else "left", overflow="fold", no_wrap=place > 0)
    for cells in body:
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def markdown_scores(scores: pd.DataFrame) -> str:
    """The same in Markdown."""
    header, body = _cells(scores)
    rule = ["---", *["---:"] * (len(header) - 1)]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in (header, rule, *body))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped) + "\n"


_TITLE = "PGDL score × 100, of a task and on average, with 95% bootstrap intervals over tasks"


def _cells(scores: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    tasks = [name for name in scores.columns if name not in ("mean", "low", "high")]
    header = ["measure", *(shown(str(task)) for task in tasks), "mean"]
    body = []
    for name, row in scores.iterrows():
        mean = _number(row["mean"])
        if np.isfinite(row["low"]):
            mean += f" [{row['low']:.2f}, {row['high']:.2f}]"
        body.append([shown(str(name)), *(_number(row[task]) for task in tasks), mean])
    return header, body


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "–"
