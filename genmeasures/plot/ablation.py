"""Accuracy as the kernels of a layer are silenced, with the scores that order them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from genmeasures.plot.colors import PALETTE
from genmeasures.plot.selection import OneModel, Source
from genmeasures.report.drawing import new_figure, plain

_SOURCE = Source("cumulative_ablation")
_ORDERS = {"ascending": (PALETTE[0], "-"), "descending": (PALETTE[1], "-"), "random": (PALETTE[2], "--")}
_SCORES = {"ClassSelectivity": ("class_selectivity_kernel", "class selectivity"), "ARS": ("ars_kernel", "ARS")}
"""Variable and name of the scores, by the measure that the ablation names."""
_COLUMNS = 4
"""Maximum number of layers side by side."""


def ablation(
    ds: xr.Dataset,
    model: str | None = None,
    *,
    layers: Sequence[str | int] | None = None,
    measure: str = "cumulative_ablation",
) -> Figure:
    """Draw the accuracy as the kernels of a layer are silenced one after another, a panel for each layer.

    The curves are in ascending, descending and random order of the score. Where the result has the scores too,
    ``ars_kernel`` or ``class_selectivity_kernel``, bars show them in ascending order.

    Args:
        ds: a result with the measure ``cumulative_ablation`` of genmeasures-ars.
        model: name of the model; None for the first.
        layers: names or indices of layers; None for all with a value.
        measure: name of the measure in the result, if it has been renamed.

    Returns:
        The figure.

    Raises:
        OptionError: there is no such model or layer.
        ResultError: the result lacks the variables, or they have no value.

    Example:
        >>> curves = {f"ablation_{order}": (("model", "layer", "kernel"), [[[0.6, 0.1]]]) for order in _ORDERS}
        >>> names = {"model": ["net"], "layer_name": (("model", "layer"), [["conv"]])}
        >>> figure = ablation(xr.Dataset({**curves, "ablation_none": ("model", [0.9])}, names))
        >>> figure.axes[0].lines[0].get_ydata().tolist()
        [0.9, 0.6, 0.1]
    """
    one = OneModel(ds, model, _SOURCE, measure)
    whole = float(one.require("ablation_none"))
    chosen = one.layer_indices("ablation_ascending", layers)
    curves = {order: one.array(f"ablation_{order}").transpose("layer", "kernel").values for order in _ORDERS}
    scores, score = _scores(ds, one)
    columns = min(len(chosen), _COLUMNS)
    rows = -(-len(chosen) // columns)
    figure = new_figure(3.4 * columns + 1.3, 2.8 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for ax in axes.flat[len(chosen) :]:
        ax.remove()
    for place, (ax, layer) in enumerate(zip(axes.flat, chosen, strict=False)):
        last = place % columns == columns - 1 or place == len(chosen) - 1
        bars = None if scores is None else scores[layer]
        _panel(ax, {order: curve[layer] for order, curve in curves.items()}, whole, bars, score if last else "")
        ax.set_title(textwrap.fill(plain(one.layers[layer]), 40), fontsize=10)
        ax.set_xlabel("kernels silenced")
        if place % columns == 0:
            ax.set_ylabel("accuracy")
    lines = [*axes.flat[0].lines]
    patches = [] if scores is None else [Patch(color="0.85", label=f"{score} of each kernel")]
    figure.legend(handles=[*lines, *patches], loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(plain(one.name), fontsize=11)
    return figure


def _panel(
    ax: Axes,
    curves: dict[str, NDArray[np.float64]],
    whole: float,
    scores: NDArray[np.float64] | None,
    score: str,
) -> None:
    """One layer: curves over the number of silenced kernels, and bars on an axis of their own at the right."""
    for order, curve in curves.items():
        known = curve[np.isfinite(curve)]  # shorter layers are padded
        color, style = _ORDERS[order]
        ax.plot(range(len(known) + 1), [whole, *known], style, color=color, linewidth=1.5, label=f"{order} order")
    ax.set_ylim(0, 1.02)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.grid(alpha=0.25, linewidth=0.5)
    if scores is None:
        return
    known = np.sort(scores[np.isfinite(scores)])
    right = ax.twinx()
    right.bar(np.arange(1, len(known) + 1), known, width=0.9, color="0.85", zorder=0)
    # The curves belong above the bars, whose axis is the later one.
    ax.set_zorder(right.get_zorder() + 1)
    ax.patch.set_visible(False)
    right.set_ylim(0, 1.02)
    if score:
        right.set_ylabel(score)
    else:
        right.set_yticklabels([])


def _scores(ds: xr.Dataset, one: OneModel) -> tuple[NDArray[np.float64] | None, str]:
    """The scores (layer, kernel) that order the kernels, and what they are; None if the result does not have them."""
    described = one.described("ablation_ascending")
    name, score = next((of for kind, of in _SCORES.items() if f"score={kind}(" in described), _SCORES["ARS"])
    if name not in ds:
        return None, score
    return ds[name].sel(model=one.name).transpose("layer", "kernel").values, score
