"""Tables of judged measures, with remarks."""

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
    """Print the table of :func:`genmeasures.judge`: one table per target, one row per measure, with remarks.

    A column ``layer`` is present if there are rows for single layers. The remarks under a table list undefined
    values and notes with their reasons, excluded models, scores on the grid that are undefined or have no expected
    sign, and the meaning of "expected", each with the measures concerned.

    Args:
        judged: Table of :func:`genmeasures.judge`.
        console: The console.

    Example:
        >>> from genmeasures.judging import judge
        >>> import xarray as xr
        >>> ds = xr.Dataset({"m": ("model", np.arange(9.0)), "m_status": ("model", ["ok"] * 9)})
        >>> render_table(judge(ds, {"z": np.arange(9.0)}), Console(quiet=True))
    """
    for target in judged["against"].unique():
        rows = judged[judged["against"] == target]
        columns = _columns(rows)
        print_table(console, _title(rows, str(target)), columns)
        for line in _remarks(rows):
            print_line(console, line, wrap=True)
        console.print()


def markdown_table(judged: pd.DataFrame) -> str:
    """The table of :func:`genmeasures.judge` in Markdown, with columns for the target and the status.

    Args:
        judged: Table of :func:`genmeasures.judge`.

    Returns:
        The Markdown text; "" for a table without rows.

    Example:
        >>> markdown_table(pd.DataFrame())
        ''
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
    """Write a table as a CSV file in UTF-8, with all columns and digits, without the index.

    Args:
        judged: The table.
        path: Path of the file.

    Raises:
        ResultError: The file, which is named, cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_table(pd.DataFrame({"pearson": [0.5]}), Path(folder, "table.csv"))
        ...     Path(folder, "table.csv").read_text().split()
        ['pearson', '0.5']
    """
    write_text(judged.to_csv(index=False), path)


def write_text(table: str, path: Path) -> None:
    """Write a table that is already a text, in UTF-8.

    Args:
        table: The text.
        path: Path of the file.

    Raises:
        ResultError: The file, which is named, cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text("| measure |", Path(folder, "table.md"))
        ...     Path(folder, "table.md").read_text()
        '| measure |'
    """
    try:
        # Names may contain lone surrogates, such as those of files whose names are not UTF-8.
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
    columns = [Column("measure", rows["measure"].astype(str).tolist(), names=True)]
    if rows["layer"].notna().any():
        columns.append(Column("layer", ["" if pd.isna(layer) else str(layer) for layer in rows["layer"]]))
    if target:
        columns.append(Column("against", rows["against"].astype(str).tolist(), names=True))
    if (rows["expected"] != 0).any():
        columns.append(Column("expected", [_expected(row) for _, row in rows.iterrows()], leave=3))
    for name, leave in (("pearson", 1), ("spearman", 4), ("kendall", 6)):
        # There is no partial Kendall coefficient.
        if name == "pearson" or rows[name].notna().any() or rows["pearson"].isna().all():
            cells = [_interval(row, name) for _, row in rows.iterrows()]
            columns.append(Column(name.capitalize(), cells, leave=leave))
    gridded = rows["grid_status"].astype(str) != ""
    if gridded.any():
        cells = [_decimals(value) if np.isfinite(value) else "–" for value in rows["pgdl"]]
        columns.append(Column("PGDL", cells, leave=2))
        columns.append(Column("ψ", [_psi(row) for _, row in rows.iterrows()], leave=5))
    counts = [f"{n} of {n + lost}" if lost else str(n) for n, lost in zip(rows["n"], rows["excluded"], strict=True)]
    columns.append(Column("models", counts, leave=2))
    return columns


def _remarks(rows: pd.DataFrame) -> list[str]:
    """Lines under a table, one per remark, with the measures concerned."""
    lines = []
    for status, names in _by_text(rows, "status"):
        if status != "ok":
            lines.append(f"{status} ({names})")
    for excluded, names in _by_text(rows, "excluded_models"):
        lines.append(f"excluded, without a value: {excluded} ({names})")
    for status, names in _by_text(rows, "grid_status"):
        if status != "ok":
            lines.append(f"scores on the grid: {status} ({names})")
    scored = rows[(rows["grid_status"].astype(str) != "") & (rows["expected"] == 0)]
    if len(scored):
        names = listed(list(dict.fromkeys(scored["measure"].astype(str))))
        lines.append(f"scores on the grid: not negated, as no expected sign with the gap is stated ({names})")
    if (rows["expected"] != 0).any():
        lines.append(
            "expected: the sign that the source of the measure states, and whether Spearman's coefficient has it: yes "
            "or no where it differs significantly from 0, else open"
        )
    return lines


def _by_text(rows: pd.DataFrame, column: str) -> list[tuple[str, str]]:
    """The texts of a column that are not empty, each with its measures."""
    measures_of: dict[str, list[str]] = {}
    for text, measure in zip(rows[column].astype(str), rows["measure"].astype(str), strict=True):
        if text:
            measures_of.setdefault(" ".join(text.split()), []).append(measure)
    return [(text, listed(list(dict.fromkeys(names)))) for text, names in measures_of.items()]


def _expected(row: pd.Series[Any]) -> str:
    """``− yes``, or "" where no sign is expected."""
    sign = {1: "+", -1: "−"}.get(int(row["expected"]), "")
    return f"{sign} {row['agrees']}".strip()


def _interval(row: pd.Series[Any], name: str) -> str:
    """``-0.71 [-0.80, -0.58]``; ``-0.71 (p 0.03)`` without an interval; or a dash."""
    if not np.isfinite(row[name]):
        return "–"
    value, low, high = (_decimals(row[f"{name}{suffix}"]) for suffix in ("", "_low", "_high"))
    if np.isfinite(row[f"{name}_low"]):
        return f"{value}\n[{low}, {high}]"
    return f"{value}\n(p {_p(row[f'{name}_p'])})" if np.isfinite(row[f"{name}_p"]) else value


def _psi(row: pd.Series[Any]) -> str:
    """ψ with its interval, or with the number of pairs behind it."""
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
    """Two decimals, without −0.00."""
    return f"{round(number, 2) + 0.0:.2f}"
