"""The console that commands print to, and tables that are right at any width."""

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
"""Characters of a line that nobody limits: rich knows no other way to say so."""
_NAMES = (40, 24, 16, 12)
"""Widths at which names are folded, one after another, before a column is left out."""


@dataclass(frozen=True)
class Column:
    """A column of a table: its header and its cells as text, "\\n" where a cell may take two lines."""

    name: str
    cells: Sequence[str]
    names: bool = False
    """Whether the cells are names, which may be folded. Numbers are never folded nor cut."""
    leave: int = 0
    """Where there is no room, columns with the highest number are left out first; those with 0 stay."""

    @property
    def texts(self) -> list[str]:
        """The cells, escaped: their lines are kept, but for those of names."""
        return [shown(cell) if self.names else "\n".join(map(shown, cell.split("\n"))) for cell in self.cells]


def make_console(quiet: bool = False) -> Console:
    """A console as wide as the terminal, or as ``COLUMNS`` says; what goes elsewhere has lines of any length."""
    free = not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdigit()
    return Console(width=_WIDEST if free else None, quiet=quiet)


def print_json(content: object) -> None:
    """Print JSON to standard output, for machines. Numbers that are no numbers must be None."""
    # In ASCII: names can hold characters that the output's encoding lacks.
    sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


def print_line(console: Console, line: str, style: str = "", wrap: bool = False) -> None:
    """Print one line as it stands, whatever names are in it: no markup, no emoji, control characters escaped.

    wrap: break it between words where the console ends.
    """
    console.print(Text(shown(line), style=style), soft_wrap=not wrap)


def print_table(console: Console, title: str, columns: Sequence[Column]) -> None:
    """Print a table that fits the console.

    Where it does not, intervals go on lines of their own, then names are folded at underscores, dots and
    the like, then columns are left out, and a line under the table names them.
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
            # Not even the names fit: the terminal breaks the lines, and nothing is lost.
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
    """Break a text into lines of at most ``width``, after underscores, dots, dashes, slashes, commas and spaces.

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
