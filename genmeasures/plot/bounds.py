"""Jacobian norm against the cross-entropy of each input, with the bounds."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from genmeasures.errors import ResultError
from genmeasures.plot.colors import PALETTE
from genmeasures.plot.selection import OneModel, Source
from genmeasures.report.drawing import new_figure, plain

_SOURCE = Source("jacobian_norm")
_GROUPS = ((1.0, "correct", PALETTE[0], "o"), (0.0, "wrong", PALETTE[1], "^"))


def bounds(ds: xr.Dataset, model: str | None = None, *, measure: str = "jacobian_norm") -> Figure:
    """Draw the Jacobian norm of each input against its cross-entropy, correct and wrong predictions apart.

    Left, the norm of the row of the true class with its lower and upper bound; right, the norm of the whole Jacobian
    with the lower bound and the approximation. Axes are logarithmic; inputs with a value of 0 lie outside, and are
    counted. Source: Novak et al. 2018, "Cross-Entropy Loss and Jacobian Norm".

    Args:
        ds: a result with the measure ``jacobian_norm`` of genmeasures-jacobian, of a classifier with true classes.
        model: name of the model; None for the first.
        measure: name of the measure in the result, if it has been renamed.

    Returns:
        The figure.

    Raises:
        OptionError: there is no such model.
        ResultError: the result lacks the variables, or they have no value.

    Example:
        >>> by_input = {"": [0.2, 0.3], "_target": [0.1, 0.2], "_loss": [0.1, 2.0], "_correct": [1.0, 0.0]}
        >>> by_input |= {"_lower": [0.1, 0.1], "_upper": [0.1, 0.1], "_approximation": [0.1, 0.9]}
        >>> values = {f"jacobian_norm_sample{end}": (("model", "sample"), [row]) for end, row in by_input.items()}
        >>> ds = xr.Dataset(values, {"model": ["net"]})
        >>> [ax.get_ylabel() for ax in bounds(ds).axes]
        ['norm of the row of the true class', 'norm of the Jacobian']
    """
    one = OneModel(ds, model, _SOURCE, measure)
    loss = one.require("jacobian_norm_sample_loss")
    correct = one.require("jacobian_norm_sample_correct")
    row, whole = one.require("jacobian_norm_sample_target"), one.require("jacobian_norm_sample")
    drawn = np.flatnonzero(loss > 0)
    if not len(drawn):
        raise ResultError(f"the model {one.name!r} has no input with a cross-entropy above 0")
    order = drawn[np.argsort(loss[drawn])]
    lower, upper, approximation = (
        one.require(f"jacobian_norm_sample_{name}")[order] for name in ("lower", "upper", "approximation")
    )
    figure = new_figure(9.6, 4.6)
    left, right = figure.subplots(1, 2)
    _points(left, loss, row, correct)
    _points(right, loss, whole, correct)
    below = {"color": "black", "linestyle": "-", "linewidth": 1.3, "label": "lower bound"}
    for ax in (left, right):
        ax.plot(loss[order], lower, **below)
    left.plot(loss[order], upper, color="black", linestyle="--", linewidth=1.3, label="upper bound")
    right.plot(loss[order], approximation, color=PALETTE[2], linestyle="-.", linewidth=1.5, label="approximation")
    left.set_ylabel("norm of the row of the true class")
    right.set_ylabel("norm of the Jacobian")
    shares = [
        f"{100 * one.number(name):.1f} % {where}"
        for name, where in (("jacobian_norm_below", "below"), ("jacobian_norm_above", "above"))
        if one.has(name)
    ]
    left.set_title(", ".join(shares) + " the bounds" if shares else "", fontsize=9, loc="left")
    for ax in (left, right):
        ax.set_xlabel("cross-entropy [nats]")
        ax.legend(fontsize=8, loc="lower center")
    figure.suptitle(plain(one.name), fontsize=11)
    return figure


def _points(ax: Axes, loss: NDArray[np.float64], norm: NDArray[np.float64], correct: NDArray[np.float64]) -> None:
    """The inputs, correct and wrong predictions apart."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    drawn = (loss > 0) & (norm > 0)
    for value, name, color, marker in _GROUPS:
        of = drawn & (correct == value)
        label = f"{name} ({int((correct == value).sum())})"
        ax.scatter(loss[of], norm[of], s=9, c=color, marker=marker, alpha=0.5, linewidths=0, label=label)
    outside = int((np.isfinite(loss) & np.isfinite(norm) & ~drawn).sum())
    if outside:
        ax.set_title(f"{outside} outside", fontsize=8, loc="right", color="0.35")
    if drawn.any():
        # The bounds of large losses would take the whole axis.
        ax.set_ylim(0.5 * norm[drawn].min(), 2 * norm[drawn].max())
    ax.grid(alpha=0.25, linewidth=0.5)
