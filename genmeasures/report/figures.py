"""Figure of a result: measures against accuracy, and measures along the layers."""

from __future__ import annotations

import textwrap
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import pearsonr

from genmeasures.errors import ResultError
from genmeasures.judging.correlation import is_constant, pearson
from genmeasures.report.drawing import limit, new_figure, note, plain, write_figure
from genmeasures.results.schema import GAP, judged_variables

_NEUTRAL = (0.55, 0.55, 0.55, 1.0)
_LEVEL = 0.05
"""Significance level of a sign."""
_COLUMNS = 5
"""Maximum number of measures side by side."""


def plot_measures(ds: xr.Dataset, aggregated: xr.Dataset, path: str | PathLike[str]) -> None:
    """Write an image with two or three panels for each measure of a result, except auxiliary ones.

    Top: the aggregated measure (x) against the test metric (y), one point per model, with Pearson's correlation
    and its expected sign. Middle, where the generalization gap is known: the measure against the gap. Bottom: the
    measure along the layers, one line per model. Models are colored by the test metric, gray where it is unknown.
    A few distant outliers may lie outside of the axes; their number is stated.

    Args:
        ds: A result with the dimensions (model, layer).
        aggregated: The same result, aggregated to (model,).
        path: Path of a .png, .pdf or .svg; the folder must exist.

    Raises:
        ResultError: There is no measure to plot, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> ds = xr.Dataset({"m": ("model", [0.1, 0.2]), "m_status": ("model", ["ok", "ok"])})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_measures(ds, ds, f"{folder}/figure.png")
    """
    names = [name for name in judged_variables(aggregated) if name in ds]
    if not names:
        raise ResultError(f"cannot plot {fspath(path)}: the result has no measure variable")
    metric = str(ds.attrs.get("metric", "accuracy"))
    label = plain(f"test {'IoU' if metric == 'iou' else metric}")
    models = ds.sizes["model"]
    performance = (
        ds[f"test_{metric}"].values.astype(np.float64) if f"test_{metric}" in ds.coords else np.full(models, np.nan)
    )
    shades = _shades(performance)
    colors = np.array([shades.to_rgba(v) if np.isfinite(v) else _NEUTRAL for v in performance]).reshape(models, 4)

    targets = [("accuracy", label, performance)]
    gap = ds[GAP].values.astype(np.float64) if GAP in ds.coords else np.full(models, np.nan)
    if np.isfinite(gap).any():
        targets.append(("gap", "generalization gap", gap))
    bands = -(-len(names) // _COLUMNS)
    columns = -(-len(names) // bands)  # as even as possible: 8 are two bands of 4
    panels = len(targets) + 1
    figure = new_figure(3.5 * columns + 1.1, 3.4 * panels * bands)
    axes = figure.subplots(panels * bands, columns, squeeze=False)
    for index in range(bands * columns):
        band, column = divmod(index, columns)
        own = axes[panels * band : panels * (band + 1), column]
        if index >= len(names):
            for ax in own:
                ax.remove()
            continue
        name = names[index]
        title = textwrap.fill(plain(str(ds[name].attrs.get("long_name", name))), 32, break_on_hyphens=False)
        unit = plain(str(ds[name].attrs.get("units", "1")))
        quantity = title if unit in ("", "1") else f"{title} [{unit}]"
        for ax, (kind, readable, truth) in zip(own, targets, strict=False):
            expected = int(ds[name].attrs.get(f"expected_{kind}", 0))
            _scatter(ax, aggregated[name].values.astype(np.float64), truth, colors, readable, expected)
            ax.set_xlabel(quantity)
            if column == 0:
                ax.set_ylabel(readable)
        if "layer" in ds[name].dims:
            _lines(own[-1], ds[name].transpose("model", "layer"), colors)
            own[-1].set_ylabel(quantity)
        else:
            note(own[-1], "one value per model")
    if np.isfinite(performance).any():
        figure.colorbar(shades, ax=figure.axes, label=label, aspect=40 * bands, pad=0.015)
    write_figure(figure, Path(path))


def _shades(values: NDArray[np.float64]) -> ScalarMappable:
    """Color scale over the known values; equal values lie in its middle."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    if is_constant(np.array([low, high])):
        low, high = low - 0.01, high + 0.01
    return ScalarMappable(Normalize(low, high), "viridis")


def _scatter(
    ax: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    colors: NDArray[np.float64],
    target: str,
    expected: int,
) -> None:
    drawn = np.isfinite(x) & np.isfinite(y)
    if not drawn.any():
        note(ax, f"no {target} is known" if not np.isfinite(y).any() else "no model has a value")
        return
    x, y = x[drawn], y[drawn]
    ax.scatter(x, y, c=colors[drawn], s=22, alpha=0.85, linewidths=0.3, edgecolors="white")
    defined = not (is_constant(x) or is_constant(y))
    coefficient = float(pearson(x, y)) if defined else np.nan
    shown = "not defined" if np.isnan(coefficient) else f"{coefficient:.2f}".replace("-", "−")
    outside = limit(ax.set_xlim, x)
    counted = f"n = {len(x)}{f', {outside} outside' if outside else ''}"
    sign = {1: ", expected > 0", -1: ", expected < 0"}.get(expected, "")
    # Red where the correlation has the opposite sign and is significant.
    against = expected and coefficient * expected < 0 and float(pearsonr(x, y).pvalue) < _LEVEL
    color = "firebrick" if against else "black"
    ax.set_title(f"Pearson {shown} ({counted}){sign}", fontsize=10 if not sign else 9, color=color)
    ax.grid(alpha=0.25, linewidth=0.5)


def _lines(ax: Axes, values: xr.DataArray, colors: NDArray[np.float64]) -> None:
    numbers = np.where(np.isfinite(values.values), values.values, np.nan).astype(np.float64)
    if np.isnan(numbers).all():
        note(ax, "no layer has a value")
        return
    few = len(numbers) <= 10
    for line, color in zip(numbers, colors, strict=True):
        # Markers show layers between two missing values, where there is no line.
        ax.plot(
            values["layer"].values, line, color=color, linewidth=1.4 if few else 0.7, alpha=0.9 if few else 0.5,
            marker="o", markersize=3.0 if few else 1.4, markeredgewidth=0,
        )  # fmt: skip
    outside = limit(ax.set_ylim, numbers[~np.isnan(numbers)])
    if outside:
        ax.set_title(f"{outside} outside", fontsize=8, loc="right", color="0.35")
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(alpha=0.25, linewidth=0.5)
