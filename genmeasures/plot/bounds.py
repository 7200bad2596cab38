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
        >>> values = {f"jacobian_norm_sample{end}": (("model", "sample"), [row]) for end, row in by_input.items()}
        >>> means = {"logit_gradient_square": 1.0, "jacobian_norm_lower": 0.1, "jacobian_norm_upper": 0.1}
        >>> ds = xr.Dataset(values | {name: ("model", [mean]) for name, mean in means.items()}, {"model": ["net"]})
        >>> [ax.get_ylabel() for ax in bounds(ds).axes]
        ['norm of the row of the true class', 'norm of the Jacobian']
    """
    one = OneModel(ds, model, _SOURCE, measure)
    loss = one.require("jacobian_norm_sample_loss")
    correct = one.require("jacobian_norm_sample_correct")
    row, whole = one.require("jacobian_norm_sample_target"), one.require("jacobian_norm_sample")
    positive = np.concatenate([loss[loss > 0], [np.inf]]).min(), np.nanmax(loss)
    if not np.isfinite(positive[0]):
        raise ResultError(f"the model {one.name!r} has no input with a cross-entropy above 0")
    grid = np.geomspace(*positive, 400)
    square = one.number("logit_gradient_square")
    classes = _classes(one)
    lower, upper, approximation = curves(grid, square, classes)
    figure = new_figure(9.6, 4.6)
    left, right = figure.subplots(1, 2)
    _points(left, loss, row, correct)
    _points(right, loss, whole, correct)
    below = {"color": "black", "linestyle": "-", "linewidth": 1.3, "label": "lower bound"}
    for ax in (left, right):
        ax.plot(grid, lower, **below)
    left.plot(grid, upper, color="black", linestyle="--", linewidth=1.3, label="upper bound")
    right.plot(grid, approximation, color=PALETTE[2], linestyle="-.", linewidth=1.5, label="approximation")
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


def _classes(one: OneModel) -> float:
    """The number of classes n, from the means of the bounds: their ratio is √(n/(2(n − 1))); NaN if both are 0."""
    lower, upper = one.number("jacobian_norm_lower"), one.number("jacobian_norm_upper")
    twice = 2 * (lower / upper) ** 2 if upper > 0 else np.nan
    return float(np.round(twice / (twice - 1)))


def curves(
    loss: NDArray[np.float64], square: float, classes: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The bounds on the norm of the true class's row, and the approximation of the whole norm (Novak et al. 2018).

    Args:
        loss: float64 (m,), cross-entropies.
        square: M, the mean square norm of a centered logit gradient.
        classes: number of classes n.

    Returns:
        Lower bound, upper bound and approximation, float64 (m,) each.

    Example:
        >>> [curve.round(3).tolist() for curve in curves(np.array([np.log(2)]), 2.0, 2)]
        [[0.5], [0.5], [0.707]]
    """
    right = np.exp(-loss)  # probability of the true class
    wrong = -np.expm1(-loss)
    lower = np.sqrt(classes * square / (classes - 1)) * right * wrong
    upper = np.sqrt(2 * square) * right * wrong
    return lower, upper, np.sqrt(square) / (classes - 1) * wrong * np.sqrt(classes**2 * right**2 + classes - 2)
