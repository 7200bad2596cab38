"""Tables of judged measures, and readable lines about what has no value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from genmeasures.errors import shown
from genmeasures.judging.correlation import STATISTICS
from genmeasures.results.schema import STATUS, measure_variables

_EXAMPLES = 3
"""How many names a line lists before it stops."""
_WIDEST = 10_000
"""A console width, in characters, at which no table is wrapped."""
_GRID = {"pgdl": "PGDL", "granulated_kendall": "ψ"}
"""Scores on the grid of hyper-parameters that tables show, and how they call them."""
_REASONS = 5
"""How many reasons are told apart for one measure."""


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print one line as it stands, whatever names are in it: no markup, no emoji, control characters escaped."""
    console.print(Text(shown(line), style=style), soft_wrap=True)


def render_table(judged: pd.DataFrame, console: Console) -> None:
    """Print what :func:`genmeasures.judge` found: a table for each target, a row for each measure.

    A column ``layer`` appears where there are rows of single layers, and a column ``status``
    where a row is not "ok".
    """
    for target in judged["against"].unique():
        rows = judged[judged["against"] == target]
        header, body = _cells(rows)
        title = _title(rows, str(target))
        table = _table(title, header, body)
        if Measurement.get(console, console.options.update_width(_WIDEST), table).maximum > console.width:
            # Intervals go on a line of their own, rather than breaking wherever the terminal ends.
            table = _table(title, header, [[cell.replace(" [", "\n[") for cell in cells] for cells in body])
        console.print(table)


def markdown_table(judged: pd.DataFrame) -> str:
    """The same as :func:`render_table` in Markdown, one table with a column for the target.

    Returns an empty string where nothing was judged.
    """
    if judged.empty:
        return ""
    header, body = _cells(judged, target=True)
    rule = ["---" if name in ("measure", "against", "status") else "---:" for name in header]
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in cells] for cells in (header, rule, *body))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped) + "\n"


def failures(ds: xr.Dataset) -> list[str]:
    """Readable lines about models that failed, and about measures without a value; empty where all went well.

    Alike reasons, which differ in numbers alone, are grouped and counted: a few lines a measure at most.
    Reads a result with dims (model, layer), or an aggregated one.
    """
    models = ds["model"].values.astype(str)
    status = ds["model_status"].values.astype(str)
    failed = status != "ok"
    lines = []
    for alike in _alike(status[failed]):
        names = models[failed][alike]
        lines.append(f"{len(names)} of {len(models)} models failed ({_list(names)}){_reason(status[failed][alike])}")
    for name in measure_variables(ds):
        lines += _undefined(ds.isel(model=~failed), name)
    return [shown(line) for line in lines]


def _undefined(ds: xr.Dataset, name: str) -> list[str]:
    """Lines about the values of one measure that are undefined or failed, the most frequent reason first."""
    layered = "layer" in ds[name].dims
    statuses = ds[f"{name}{STATUS}"].transpose("model", ...).values.astype(str)
    places = np.argwhere(np.char.startswith(statuses, "undefined") | np.char.startswith(statuses, "failed"))
    without = statuses[tuple(places.T)]
    groups = sorted(_alike(without), key=len, reverse=True)
    models = ds["model"].values.astype(str)
    total = np.count_nonzero(statuses)
    lines = []
    for alike in groups[:_REASONS]:
        who = list(dict.fromkeys(models[places[alike, 0]]))
        line = f"{name}: no value for {len(alike)} of {total} {'layers' if layered else 'models'}"
        if layered:
            names = ds["layer_name"].transpose("model", "layer").values.astype(str)
            # In network order, whatever model shows a layer first.
            in_order = sorted(map(tuple, places[alike]), key=lambda found: found[1])
            where = list(dict.fromkeys(names[found] for found in in_order))
            line += f" (layers {_list(where)}; {len(who)} {'model' if len(who) == 1 else 'models'}: {_list(who)})"
        else:
            line += f" ({_list(who)})"
        lines.append(line + _reason(without[alike]))
    rest = groups[_REASONS:]
    if rest:
        lines.append(f"{name}: no value for {sum(map(len, rest))} more, for {len(rest)} other reasons")
    return lines


def _alike(statuses: NDArray[np.str_]) -> list[list[int]]:
    """Indices of statuses that differ in numbers alone, in the order in which they first appear."""
    groups: dict[str, list[int]] = {}
    for i, status in enumerate(statuses):
        groups.setdefault(re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", str(status)), []).append(i)
    return list(groups.values())


def _reason(alike: NDArray[np.str_]) -> str:
    """The first of some alike statuses on one line, without the word that the sentence before it says already."""
    text = " ".join(re.sub(r"^(undefined|failed):\s*", "", alike[0]).split())
    return f": {text}" if len(set(alike)) == 1 else f", for example: {text}"


def _list(names: Sequence[str] | NDArray[np.str_]) -> str:
    return ", ".join(names[:_EXAMPLES]) + (", …" if len(names) > _EXAMPLES else "")


def _table(title: str, header: list[str], body: list[list[str]]) -> Table:
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
    )
    for place, name in enumerate(header):
        words = name in ("measure", "status")
        # Where a terminal is too narrow the words are folded: numbers must not lose their ends.
        lines = [line for row in (header, *body) for line in row[place].splitlines()]
        least = None if words else max(map(len, lines))
        table.add_column(name, justify="left" if words else "right", overflow="fold", min_width=least)
    for cells in body:
        # Text, since a string with brackets would be read as markup.
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _title(rows: pd.DataFrame, target: str) -> str:
    attrs = rows.attrs
    parts = [f"Against {shown(target)}"]
    if "models" in attrs:
        parts.append(f"{attrs['models']} models")
    if "aggregator" in attrs:
        parts.append(str(attrs["aggregator"]))
    if "confidence" in attrs:
        parts.append(f"{attrs['confidence']:.0%} bootstrap intervals")
    return ", ".join(parts)


def _cells(rows: pd.DataFrame, target: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table, as text."""
    layers = bool(rows["layer"].notna().any())
    remarks = bool((rows["status"] != "ok").any())
    header = ["measure"] + ["layer"] * layers + ["against"] * target
    grid = [name for name in _GRID if name in rows and rows[name].notna().any()]
    header += [str(name).capitalize() for name in STATISTICS] + [_GRID[name] for name in grid]
    header += ["models"] + ["status"] * remarks
    body = []
    for _, row in rows.iterrows():
        cells = [shown(str(row["measure"]))]
        if layers:
            cells.append("" if pd.isna(row["layer"]) else str(row["layer"]))
        if target:
            cells.append(shown(str(row["against"])))
        cells += [_interval(row, name) for name in STATISTICS]
        cells += [_decimals(row[name]) if np.isfinite(row[name]) else "–" for name in grid]
        cells.append(f"{row['n']} of {row['n'] + row['excluded']}" if row["excluded"] else str(row["n"]))
        cells += [shown(str(row["status"]))] * remarks
        body.append(cells)
    return header, body


def _interval(row: pd.Series[Any], name: str) -> str:
    """``-0.71 [-0.80, -0.58]``, or a dash."""
    if not np.isfinite(row[name]):
        return "–"
    value, low, high = (_decimals(row[f"{name}{suffix}"]) for suffix in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]" if np.isfinite(row[f"{name}_low"]) else value


def _decimals(number: float) -> str:
    """Two decimals, and no −0.00."""
    return f"{round(number, 2) + 0.0:.2f}"
