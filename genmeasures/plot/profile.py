"""Jacobian norm and transitions along a trajectory in input space."""

from __future__ import annotations

import re

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from genmeasures.errors import OptionError
from genmeasures.plot.colors import PALETTE
from genmeasures.plot.selection import OneModel, Source
from genmeasures.report.drawing import new_figure, note, plain

_SOURCE = Source("transition_count")
_ANCHORS = {
    "training_ellipse": "training inputs",
    "random_ellipse": "random inputs",
    "translations": "the test image",
}
"""What a trajectory passes through, by its kind."""


def profile(
    ds: xr.Dataset, model: str | None = None, *, trajectory: int = 0, measure: str = "transition_count"
) -> Figure:
    """Draw the Jacobian norm and the density of transitions along one closed trajectory in input space.

    Vertical lines are the inputs that the trajectory passes through, horizontal ones the means. Both curves are
    expected to be low near training inputs. Source: Novak et al. 2018, section 4.1.

    Args:
        ds: a result with the measure ``transition_count`` of genmeasures-transitions.
        model: name of the model; None for the first.
        trajectory: index of the trajectory.
        measure: name of the measure in the result, if it has been renamed.

    Returns:
        The figure.

    Raises:
        OptionError: there is no such model or trajectory.
        ResultError: the result lacks the variables, or they have no value.

    Example:
        >>> along, at = ("model", "trajectory", "point"), ("model", "trajectory", "anchor")
        >>> values = {"trajectory_position": (along, [[[0.0, 1.0, 2.0, 3.0]]]), "trajectory_anchor": (at, [[[1.0]]])}
        >>> curves = {name: (along, [[[1.0, 0.5, 1.0, 2.0]]]) for name in ("jacobian_profile", "transition_density")}
        >>> figure = profile(xr.Dataset(values | curves, {"model": ["net"]}))
        >>> figure.axes[0].lines[0].get_xdata().tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    one = OneModel(ds, model, _SOURCE, measure)
    position = one.require("trajectory_position")
    paths = int(np.isfinite(position).any(1).sum())
    if isinstance(trajectory, bool) or not isinstance(trajectory, int) or not 0 <= trajectory < paths:
        raise OptionError(f"trajectory must be an index from 0 to {paths - 1}, got {trajectory!r}")
    along = position[trajectory]
    along = along[np.isfinite(along)]  # points are padded where models have fewer
    ends = np.append(along, along[1] * len(along))  # the points are equidistant, and the last is next to the first
    anchors = one.array("trajectory_anchor").values[trajectory]
    figure = new_figure(7.5, 5.2)
    axes = figure.subplots(2, 1, sharex=True)
    for ax, variable, label, color, style in (
        (axes[0], "jacobian_profile", "Jacobian norm\nof the softmax", PALETTE[0], "default"),
        (axes[1], "transition_density", "transitions per\nunit of arc length", PALETTE[1], "steps-post"),
    ):
        values = one.array(variable).values[trajectory][: len(along)]
        if not np.isfinite(values).any():
            note(ax, plain(one.status(variable)))
            continue
        _curve(ax, ends, values, color, style)
        ax.set_ylabel(label)
        for number, place in enumerate(anchors[np.isfinite(anchors)]):
            shown = _anchors(one) if number == 0 else None
            ax.axvline(place, color="black", linestyle=":", linewidth=1.4, label=shown)
    axes[1].set_xlabel("arc length [distance of inputs]")
    axes[1].set_xlim(-0.01 * ends[-1], 1.01 * ends[-1])
    handles, labels = next((ax.get_legend_handles_labels() for ax in axes if ax.lines), ([], []))
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(f"{plain(one.name)}, trajectory {trajectory}", fontsize=11)
    return figure


def _curve(ax: Axes, ends: NDArray[np.float64], values: NDArray[np.float64], color: str, style: str) -> None:
    """A closed curve, which ends where it begins, with its mean."""
    ax.plot(ends, np.append(values, values[0]), color=color, linewidth=1.3, drawstyle=style)
    ax.axhline(float(np.nanmean(values)), color="0.35", linestyle="--", linewidth=1.0, label="mean")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.25, linewidth=0.5)


def _anchors(one: OneModel) -> str:
    """What the vertical lines are, as the result states the options of the measure."""
    stated = re.search(r"trajectory='(\w+)'", one.described("trajectory_position"))
    return _ANCHORS.get(stated[1] if stated else "", "inputs")
