"""Tables of judged measures, and readable lines about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from genmeasures.errors import ResultError
from genmeasures.files import write_atomically
from genmeasures.report.console import Column, print_line, print_table
from genmeasures.results.summary import listed


def render_table(judged: pd.DataFrame, console: Console) -> None:
    """Print what :func:`genmeasures.judge` found: a table for each target, a row for each measure, and remarks.

    A column ``layer`` appears where there are rows of single layers. Under a table stand, each for all
    measures that it holds for: what is undefined or has a remark and why, models that were left out, scores
    of the grid that are missing or were made without an expected sign, and what "expected" means.
    """
    for target in judged["against"].unique():
        rows = judged[judged["against"] == target]
        columns = _columns(rows)
        print_table(console, _title(rows, str(target)), columns)
        for line in _remarks(rows):
            print_line(console, line, wrap=True)
        console.print()


def markdown_table(judged: pd.DataFrame) -> str:
    """The same as :func:`render_table` in Markdown, one table with columns for the target and the status.

    Returns an empty string where nothing was judged.
    """
    if judged.empty:
        return ""
    columns = _columns(judged, target=True)
    if (judged["status"] != "ok").any():
        columns.append(Column("status", judged["status"].astype(str).tolist(), names=True))
    header = [column.name for column in columns]
    rule = ["---" if column.names else "---:" for column in columns]
    body = zip(*(column.texts for column in columns), strict=True)
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in cells] for cells in (header, rule, *body))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped) + "\n"


def write_table(judged: pd.DataFrame, path: Path) -> None:
    """Write a table as a CSV file in UTF-8, all columns and all digits, but no index.

    Raises ResultError naming a file that cannot be written.
    """
    write_text(judged.to_csv(index=False), path)


def write_text(table: str, path: Path) -> None:
    """Write a table that is a text already, in UTF-8. Raises ResultError naming a file that cannot be written."""
    try:
        # Names may hold lone surrogates, as those of files whose names are not UTF-8.
        write_atomically(path, table.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ResultError(
            f"cannot write the table {path}: {error.strerror or error}; make room, or choose another output folder"
        ) from error


def _title(rows: pd.DataFrame, target: str) -> str:
    attrs = rows.attrs
    parts = [f"Against {target}"]
    if "given" in attrs:
        parts[0] += f", given {attrs['given']}"
    if "models" in attrs:
        parts.append(f"{attrs['models']} models")
    if "groups" in attrs:
        parts.append(f"resampled by {attrs['groups']}")
    if "aggregator" in attrs:
        parts.append(str(attrs["aggregator"]))
    if "confidence" in attrs:
        parts.append(f"{attrs['confidence']:.0%} bootstrap intervals")
    return ", ".join(parts)


def _columns(rows: pd.DataFrame, target: bool = False) -> list[Column]:
    """The columns of a table, as text."""
    made = [Column("measure", rows["measure"].astype(str).tolist(), names=True)]
    if rows["layer"].notna().any():
        made.append(Column("layer", ["" if pd.isna(layer) else str(layer) for layer in rows["layer"]]))
    if target:
        made.append(Column("against", rows["against"].astype(str).tolist(), names=True))
    if (rows["expected"] != 0).any():
        made.append(Column("expected", [_expected(row) for _, row in rows.iterrows()], leave=3))
    for name, leave in (("pearson", 1), ("spearman", 4), ("kendall", 6)):
        # Partial coefficients have no Kendall.
        if name == "pearson" or rows[name].notna().any() or rows["pearson"].isna().all():
            cells = [_interval(row, name) for _, row in rows.iterrows()]
            made.append(Column(name.capitalize(), cells, leave=leave))
    gridded = rows["grid_status"].astype(str) != ""
    if gridded.any():
        cells = [_decimals(value) if np.isfinite(value) else "–" for value in rows["pgdl"]]
        made.append(Column("PGDL", cells, leave=2))
        made.append(Column("ψ", [_psi(row) for _, row in rows.iterrows()], leave=5))
    counts = [f"{n} of {n + lost}" if lost else str(n) for n, lost in zip(rows["n"], rows["excluded"], strict=True)]
    made.append(Column("models", counts, leave=2))
    return made


def _remarks(rows: pd.DataFrame) -> list[str]:
    """Lines under a table; measures with the same remark share one."""
    lines = []
    for status, names in _by_text(rows, "status"):
        if status != "ok":
            lines.append(f"{status} ({names})")
    for lost, names in _by_text(rows, "excluded_models"):
        lines.append(f"left out, without a value: {lost} ({names})")
    for status, names in _by_text(rows, "grid_status"):
        if status != "ok":
            lines.append(f"scores on the grid: {status} ({names})")
    scored = rows[(rows["grid_status"].astype(str) != "") & (rows["expected"] == 0)]
    if len(scored):
        names = listed(list(dict.fromkeys(scored["measure"].astype(str))))
        lines.append(f"scores on the grid: of the values as they are, since no sign with the gap is stated ({names})")
    if (rows["expected"] != 0).any():
        lines.append(
            "expected: the sign that the measure's source states; whether Spearman has it: yes or no where it is told "
            "from 0, open where it is not"
        )
    return lines


def _by_text(rows: pd.DataFrame, column: str) -> list[tuple[str, str]]:
    """The texts of a column that are not empty, and the measures that have each."""
    found: dict[str, list[str]] = {}
    for text, measure in zip(rows[column].astype(str), rows["measure"].astype(str), strict=True):
        if text:
            found.setdefault(" ".join(text.split()), []).append(measure)
    return [(text, listed(list(dict.fromkeys(names)))) for text, names in found.items()]


def _expected(row: pd.Series[Any]) -> str:
    """``− yes``, or nothing where no sign is expected."""
    sign = {1: "+", -1: "−"}.get(int(row["expected"]), "")
    return f"{sign} {row['agrees']}".strip()


def _interval(row: pd.Series[Any], name: str) -> str:
    """``-0.71 [-0.80, -0.58]``, ``-0.71 (p 0.03)`` where there is no interval, or a dash."""
    if not np.isfinite(row[name]):
        return "–"
    value, low, high = (_decimals(row[f"{name}{suffix}"]) for suffix in ("", "_low", "_high"))
    if np.isfinite(row[f"{name}_low"]):
        return f"{value}\n[{low}, {high}]"
    return f"{value}\n(p {_p(row[f'{name}_p'])})" if np.isfinite(row[f"{name}_p"]) else value


def _psi(row: pd.Series[Any]) -> str:
    """ψ with its interval, or with how many pairs it is from."""
    name = "granulated_kendall"
    if not np.isfinite(row[name]):
        return "–"
    value, low, high = (_decimals(row[f"{name}{suffix}"]) for suffix in ("", "_low", "_high"))
    if np.isfinite(row[f"{name}_low"]):
        return f"{value}\n[{low}, {high}]"
    return f"{value}\n({row[f'{name}_pairs']:.0f} pairs)"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _decimals(number: float) -> str:
    """Two decimals, and no −0.00."""
    return f"{round(number, 2) + 0.0:.2f}"
