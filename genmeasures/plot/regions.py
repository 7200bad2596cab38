"""The activation regions in a plane of input space, with their boundaries."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from genmeasures.plot.colors import PALETTE
from genmeasures.plot.selection import OneModel, Source
from genmeasures.report.drawing import new_figure, plain

_SOURCE = Source("region_count")
_GOLDEN = 0.6180339887
"""Steps of this size along a scale keep the colors of consecutive numbers apart."""


def regions(ds: xr.Dataset, model: str | None = None, *, measure: str = "region_count") -> Figure:
    """Draw the activation regions in the plane through three training inputs, with their boundaries.

    Boundaries lie between points of a grid, and regions that are smaller than its cells can be missed. Colors only
    tell neighbors apart. Source: Novak et al. 2018, two-dimensional slices.

    Args:
        ds: a result with the measure ``region_count`` of genmeasures-transitions.
        model: name of the model; None for the first.
        measure: name of the measure in the result, if it has been renamed.

    Returns:
        The figure.

    Raises:
        OptionError: there is no such model.
        ResultError: the result lacks the variables, or they have no value.

    Example:
        >>> grid = {"region_grid": (("model", "row", "column"), [[[0.0, 1.0], [0.0, 1.0]]])}
        >>> grid |= {"region_grid_x": (("model", "column"), [[0.0, 2.0]])}
        >>> grid |= {"region_grid_y": (("model", "row"), [[0.0, 1.0]])}
        >>> corners = {"region_grid_corner": (("model", "anchor", "axis"), [[[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]]])}
        >>> figure = regions(xr.Dataset(grid | corners, {"model": ["net"]}))
        >>> figure.axes[0].get_title()
        '2 regions on a grid of 2 × 2'
    """
    one = OneModel(ds, model, _SOURCE, measure)
    numbers = one.require("region_grid")
    rows, columns = np.isfinite(numbers).any(1), np.isfinite(numbers).any(0)  # smaller grids are padded
    numbers = numbers[rows][:, columns]
    x, y = one.require("region_grid_x")[columns], one.require("region_grid_y")[rows]
    corners = one.require("region_grid_corner")
    shades = colormaps["YlGnBu"](0.05 + 0.45 * np.mod(_GOLDEN * numbers, 1.0))
    right, top = _edges(x), _edges(y)
    shape = float(np.clip((top[-1] - top[0]) / (right[-1] - right[0]), 0.3, 2.0))
    figure = new_figure(6.6, 5.6 * shape + 1.3)
    ax = figure.subplots()
    ax.imshow(
        shades, origin="lower", extent=(right[0], right[-1], top[0], top[-1]), interpolation="nearest", aspect="equal"
    )
    ax.add_collection(
        LineCollection(list(boundaries(numbers, x, y)), colors="0.2", linewidths=0.6, capstyle="projecting")
    )
    ax.scatter(
        corners[:, 0], corners[:, 1], color=PALETTE[1], marker="o", s=55, edgecolors="white", linewidths=1.3, zorder=3,
        label="training inputs",
    )  # fmt: skip
    ax.set_xlabel("distance from the first input, toward the second")
    ax.set_ylabel("distance from this line, toward the third")
    count = len(np.unique(numbers))
    # Where many points have a region of their own, the grid shows itself instead of the regions.
    fine = "\nmany are smaller than its cells: a larger measure.region_count.resolution shows more"
    title = f"{count} regions on a grid of {len(x)} × {len(y)}"
    ax.set_title(title + (fine if count > numbers.size / 4 and numbers.size > 64 else ""), fontsize=10)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    figure.suptitle(plain(one.name), fontsize=11)
    return figure


def boundaries(numbers: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The line segments between neighboring grid points of different regions.

    Args:
        numbers: float64 (ny, nx), number of the region of each grid point.
        x: float64 (nx,), equidistant and ascending.
        y: float64 (ny,), equidistant and ascending.

    Returns:
        float64 (segments, 2, 2): for each segment its two ends (x, y).

    Example:
        >>> boundaries(np.array([[0.0, 1.0]]), np.array([0.0, 1.0]), np.array([0.0])).tolist()
        [[[0.5, -0.5], [0.5, 0.5]]]
    """
    right, top = _edges(x), _edges(y)
    row, column = np.nonzero(numbers[:, 1:] != numbers[:, :-1])
    upright = np.stack([right[column + 1], top[row], right[column + 1], top[row + 1]], 1)
    row, column = np.nonzero(numbers[1:] != numbers[:-1])
    level = np.stack([right[column], top[row + 1], right[column + 1], top[row + 1]], 1)
    return np.concatenate([upright, level]).reshape(-1, 2, 2)


def _edges(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """The edges of the cells around equidistant places, one more than places."""
    step = places[1] - places[0] if len(places) > 1 else 1.0
    return np.append(places - step / 2, places[-1] + step / 2)
