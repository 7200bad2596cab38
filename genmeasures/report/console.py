"""Console output of commands, and tables that fit any width."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from genmeasures.errors import shown

_WIDEST = 10_000
"""Width of an unlimited console; rich needs a number."""
_NAMES = (40, 24, 16, 12)
"""Widths at which names are folded, in this order, before a column is left out."""


@dataclass(frozen=True)
class Column:
    """A column of a table, with its header and its cells; "\\n" marks where a cell may be split into two lines."""

    name: str
    cells: Sequence[str]
    names: bool = False
    """Whether the cells are names, which may be folded; numbers are never folded or truncated."""
    leave: int = 0
    """Priority for leaving out the column in a narrow console, highest first; 0 is never left out."""

    @property
    def texts(self) -> list[str]:
        """The cells, escaped; line breaks are kept except in names."""
        return [shown(cell) if self.names else "\n".join(map(shown, cell.split("\n"))) for cell in self.cells]


def make_console(quiet: bool = False) -> Console:
    """Console of the width of the terminal or of ``COLUMNS``; of unlimited width if the output is redirected.

    Args:
        quiet: Whether to print nothing.

    Returns:
        The console.

    Example:
        >>> make_console(quiet=True).quiet
        True
    """
    free = not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdigit()
    return Console(width=_WIDEST if free else None, quiet=quiet)


def print_json(content: object) -> None:
    """Print JSON to standard output.

    Args:
        content: Content of JSON types; NaN and infinity must be None.

    Raises:
        ValueError: The content contains NaN or infinity.

    Example:
        >>> print_json({"models": 3})
        {
          "models": 3
        }
    """
    # ASCII only: names can contain characters that the encoding of the output lacks.
    sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


def print_line(console: Console, line: str, style: str = "", wrap: bool = False) -> None:
    """Print one line literally: without markup or emoji, and with control characters escaped.

    Args:
        console: The console.
        line: The line.
        style: Style of rich, such as "bold".
        wrap: Whether to wrap the line between words at the width of the console.

    Example:
        >>> print_line(Console(), "[bold] is not markup")
        [bold] is not markup
    """
    console.print(Text(shown(line), style=style), soft_wrap=not wrap)


def print_table(console: Console, title: str, columns: Sequence[Column]) -> None:
    """Print a table that fits the console.

    If necessary, intervals move to a second line, then names are folded at underscores, dots and similar characters,
    then columns are left out and named under the table.

    Args:
        console: The console.
        title: Title above the table.
        columns: The columns.

    Example:
        >>> print_table(Console(quiet=True), "Runs", [Column("run", ["a", "b"], names=True)])
    """
    kept = list(columns)
    left_out: list[str] = []
    while True:
        for names in (None, *_NAMES):
            for split in (False, True):
                table = _table(title, kept, names, split)
                if Measurement.get(console, console.options.update_width(_WIDEST), table).maximum <= console.width:
                    return _print(console, table, title, left_out)
        dropped = max(kept, key=lambda column: column.leave)
        if dropped.leave == 0:
            # Not even the names fit: let the terminal wrap the lines, so that nothing is lost.
            console = Console(file=console.file, width=_WIDEST, quiet=console.quiet)
            return _print(console, table, title, left_out)
        kept.remove(dropped)
        left_out.append(dropped.name)


def _print(console: Console, table: Table, title: str, left_out: Sequence[str]) -> None:
    print_line(console, title, "bold", wrap=True)
    console.print(table)
    if left_out:
        line = f"columns left out: {', '.join(left_out)} (a wider terminal shows them, and so does a file)"
        print_line(console, line, "yellow", wrap=True)


def _table(title: str, columns: Sequence[Column], names: int | None, split: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    cells = []
    for column in columns:
        lines = [cell if split else cell.replace("\n", " ") for cell in column.texts]
        if column.names and names is not None:
            lines = [fold(line, names) for line in lines]
        cells.append(lines)
        table.add_column(
            Text(shown(column.name)), justify="left" if column.names else "right", no_wrap=True, overflow="fold"
        )
    for row in zip(*cells, strict=True):
        # Text, since a string with brackets would be read as markup.
        table.add_row(*(Text(cell) for cell in row))
    return table


def fold(text: str, width: int) -> str:
    """Break a text into lines after underscores, dots, dashes, slashes, commas and spaces.

    Args:
        text: The text.
        width: Maximum number of characters per line.

    Returns:
        The text with line breaks.

    Example:
        >>> fold("confidence_unweighted", 12)
        'confidence_\\nunweighted'
    """
    lines = [""]
    for part in re.findall(r"[^\s_./,()=-]*(?:[\s_./,()=-]|$)", text):
        if len(lines[-1]) + len(part.rstrip()) > width and lines[-1]:
            lines.append("")
        while len(part.rstrip()) > width:
            lines[-1] = part[:width]
            part = part[width:]
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines if line.strip())
