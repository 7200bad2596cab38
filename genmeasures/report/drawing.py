"""What all figures share: an empty figure, texts without math, limits, notes, and writing."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from genmeasures.errors import ResultError, nearest, shown
from genmeasures.files import write_atomically

FORMATS = ("png", "pdf", "svg")
"""Formats of figures, by the end of the name of a file."""
_OUTLIERS = 0.02
"""Fraction of values at either end that may lie outside of the axes."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure with constrained layout, outside of pyplot and its global state.

    Args:
        width: width in inches.
        height: height in inches.

    Example:
        >>> new_figure(4, 3).axes
        []
    """
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """A text in which matplotlib finds no math, with control characters escaped.

    Example:
        >>> print(plain("$x$"))
        \\$x\\$
    """
    return shown(text).replace("$", r"\$")


def note(ax: Axes, text: str) -> None:
    """Fill a panel with a text instead of a plot.

    Args:
        ax: the panel, without data.
        text: the text, in one or more lines.

    Example:
        >>> note(new_figure(2, 2).subplots(), "no layer has a value")
    """
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="0.4")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color("0.85")


def limit(set_limits: Callable[[float, float], object], values: NDArray[np.float64]) -> int:
    """Limit an axis if a few distant values would dominate it.

    Args:
        set_limits: ``ax.set_xlim`` or ``ax.set_ylim``.
        values: float64 (n,), finite.

    Returns:
        How many values lie outside of the limits.

    Example:
        >>> ax = new_figure(2, 2).subplots()
        >>> limit(ax.set_xlim, np.append(np.linspace(0, 1, 99), 1e6))
        1
    """
    low, high = np.quantile(values, [_OUTLIERS, 1 - _OUTLIERS], method="nearest")
    reach = 1.5 * (high - low)
    if reach <= 0 or (values.min() >= low - reach and values.max() <= high + reach):
        return 0
    inside = values[(values >= low - reach) & (values <= high + reach)]
    margin = 0.05 * (inside.max() - inside.min())
    set_limits(float(inside.min() - margin), float(inside.max() + margin))
    return len(values) - len(inside)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format that the end of the name tells; the same figure gives the same file.

    Args:
        figure: the figure.
        path: path of a .png, .pdf or .svg, in a folder that exists.

    Raises:
        ResultError: the format is unknown, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_figure(new_figure(2, 2), Path(folder) / "figure.svg")
    """
    form = path.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise ResultError(f"cannot write the figure {path}: no format .{form}{nearest(form, FORMATS)}")
    # Neither the version of matplotlib nor the time belongs to the figure.
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[form]
    try:
        image = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "genmeasures"}):  # else the ids are random
            figure.savefig(image, format=form, metadata=metadata)
        write_atomically(path, image.getvalue())
    except OSError as error:
        raise ResultError(f"cannot write the figure {path}: {error.strerror or error}") from error
