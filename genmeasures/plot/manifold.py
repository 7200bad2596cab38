"""The pixels of layers in their first principal components, colored by label."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from genmeasures.errors import ModelError, OptionError
from genmeasures.interfaces import Extractor, Labeler, is_count
from genmeasures.labelers import Histogram
from genmeasures.plot.colors import label_colors, legend_of
from genmeasures.plot.features import LayerFeatures, drawn_points, layer_features
from genmeasures.report.drawing import new_figure, note, plain

_COLUMNS = 6
"""Maximum number of layers side by side."""


def manifold(
    model: nn.Module | Callable[[], nn.Module],
    train: Any,
    *,
    layers: Sequence[str | int] | None = None,
    labeler: Labeler | None = None,
    dimensions: Literal[2, 3] = 3,
    extractor: str | Extractor = "receptive_field",
    points: int = 2500,
    seed: int = 0,
    **options: Any,
) -> Figure:
    """Draw the training pixels of layers in their first principal components, colored by label.

    Each layer has a panel, with its Davies–Bouldin index, in the order of the forward pass. The axes of a panel have
    no units: those of layers differ. Source: Rajagopal et al. 2021, figure 1.

    Args:
        model: the model, or a function that builds it.
        train: its training data, in any form of :func:`genmeasures.api.measure`.
        layers: names or indices of layers; None for all.
        labeler: labeler whose labels give the colors; None is the one that fits the targets. Without targets, use
            :class:`~genmeasures.labelers.KMeans`.
        dimensions: number of principal components, 3 or 2.
        extractor: extractor or its name, "receptive_field" for a point per pixel, "whole_tensor" for one per input.
        points: maximum number of points of a layer.
        seed: of every random choice.
        options: further options of :func:`genmeasures.api.measure`, such as ``device`` or ``batch_size``.

    Returns:
        The figure.

    Raises:
        OptionError: an option is invalid.
        DataError: the data cannot be read, or have no targets for the labeler.
        ModelError: the model cannot be measured, or no layer has labeled vectors.

    Example:
        >>> import torch
        >>> net, inputs = nn.Linear(2, 3), torch.arange(12.0).sin().reshape(6, 2)
        >>> figure = manifold(net, (inputs, torch.arange(6) % 2))
        >>> [ax.name for ax in figure.axes]
        ['3d']
    """
    if dimensions not in (2, 3):
        raise OptionError(f"dimensions must be 2 or 3, got {dimensions!r}")
    if not is_count(points):
        raise OptionError(f"points must be an integer ≥ 1, got {points!r}")
    everything = {"seed": seed, **options}
    found = layer_features(model, train, {"labels": labeler}, extractor, layers, everything, index=True)["labels"]
    known = [layer.projected for layer in found if layer.projected is not None]
    if not known:
        reasons = "; ".join(dict.fromkeys(layer.status for layer in found)) or "it has no layers that can be measured"
        raise ModelError(f"no layer of the model can be drawn: {reasons}")
    every = sorted({int(label) for layer in known for label in layer.labels.unique()})
    colors = label_colors(every, ordered=isinstance(known[0].labeler, Histogram))
    columns = min(len(found), _COLUMNS)
    rows = -(-len(found) // columns)
    figure = new_figure(2.3 * columns + 1.1, 2.5 * rows + 0.4)
    for place, layer in enumerate(found):
        projection: Any = "3d" if dimensions == 3 and layer.projected is not None else "rectilinear"
        ax: Any = figure.add_subplot(rows, columns, place + 1, projection=projection)
        _panel(ax, layer, dimensions, points, seed, colors)
    legend_of(figure, known[0].labeler, colors)
    return figure


def _panel(ax: Any, layer: LayerFeatures, dimensions: int, points: int, seed: int, colors: Any) -> None:
    """One layer."""
    index = "" if np.isnan(layer.davies_bouldin) else f"\nDavies–Bouldin {layer.davies_bouldin:.2f}"
    ax.set_title(textwrap.fill(plain(layer.name), 30) + index, fontsize=9, pad=0 if dimensions == 3 else 4)
    if layer.projected is None:
        note(ax, textwrap.fill(plain(layer.status), 28))
        return
    drawn, labels = drawn_points(layer.projected, points, seed)
    drawn = drawn[:, :dimensions]
    # A layer of two channels has two components.
    drawn = np.pad(drawn, ((0, 0), (0, dimensions - drawn.shape[1])))
    # All labels in one call: one after the other, the last would cover the others.
    shades = np.array([colors[label] for label in labels.tolist()])
    size = float(np.clip(3000 / len(drawn), 3, 14))
    depth = {"depthshade": False} if dimensions == 3 else {}
    ax.scatter(*drawn.T, s=size, c=shades, alpha=0.5, linewidths=0, **depth)
    if dimensions == 3:
        ax.set_box_aspect(None, zoom=1.15)
    for axis in (ax.xaxis, ax.yaxis, *([ax.zaxis] if dimensions == 3 else [])):
        axis.set_ticklabels([])
        axis.set_tick_params(length=0)
