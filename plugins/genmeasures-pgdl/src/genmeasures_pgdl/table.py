"""The table of official scores, measures × tasks, for the terminal and in Markdown."""

from __future__ import annotations

import numpy as np
import pandas as pd
from rich.console import Console

from genmeasures.plugin import Column, print_table, shown

_TITLE = "PGDL score × 100 per task and on average, with 95% bootstrap intervals over tasks"


def render_scores(scores: pd.DataFrame, console: Console) -> None:
    """Print a table of scores. Tasks are left out from the right if the console is too narrow, the mean never.

    Args:
        scores: float64 (rows, tasks and ``mean``, ``low``, ``high``), as :func:`genmeasures.judging.score_table`
            returns them. NaN is printed as a dash.
        console: where to print.

    Example:
        >>> scores = pd.DataFrame({"task1": [25.22], "mean": [25.22], "low": [np.nan]}, index=["roughness"])
        >>> render_scores(scores.assign(high=np.nan), Console(width=200))  # doctest: +ELLIPSIS
        PGDL score × 100 per task and on average, with 95% bootstrap intervals over tasks
        ...
    """
    header, body = _cells(scores)
    # The last task has the highest number and is left out first.
    leave = [0, *range(1, len(header) - 1), 0]
    cells = [list(column) for column in zip(*body, strict=True)] if body else [[] for _ in header]
    columns = [
        Column(name, column, names=not index, leave=leave[index])
        for index, (name, column) in enumerate(zip(header, cells, strict=True))
    ]
    print_table(console, _TITLE, columns)


def markdown_scores(scores: pd.DataFrame) -> str:
    """The same table in Markdown.

    Args:
        scores: as in :func:`render_scores`.

    Returns:
        The lines of the table, each with a line end.

    Example:
        >>> scores = pd.DataFrame({"task1": [25.22], "mean": [25.22], "low": [np.nan]}, index=["roughness"])
        >>> print(markdown_scores(scores.assign(high=np.nan)), end="")
        | measure | task1 | mean |
        | --- | ---: | ---: |
        | roughness | 25.22 | 25.22 |
    """
    header, body = _cells(scores)
    rule = ["---", *["---:"] * (len(header) - 1)]
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in cells] for cells in (header, rule, *body))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped) + "\n"


def _cells(scores: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The header, and one list of cells per row."""
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


__all__ = ["markdown_scores", "render_scores"]
