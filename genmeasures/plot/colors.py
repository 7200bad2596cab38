"""Colors of labels: a palette that the color-blind can tell apart, or a scale where labels are many or ordered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from genmeasures.interfaces import Labeler

PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"),
    *("#999999", "#8C510A"),
)
"""The colors of Okabe and Ito, with gray and brown."""
_NOUNS = {"class_label": "class", "downsampled": "class", "histogram": "bin", "kmeans": "cluster"}
"""What a label of a labeler is."""


def label_colors(labels: Sequence[int], ordered: bool = False) -> dict[int, tuple[float, float, float, float]]:
    """Colors of labels.

    Args:
        labels: the labels, ascending.
        ordered: whether their order means something; then, and where there are more than ten, colors form a scale.

    Example:
        >>> [round(channel, 2) for channel in label_colors([0, 1])[1]]
        [0.84, 0.37, 0.0, 1.0]
    """
    if not ordered and (not labels or max(labels) < len(PALETTE)):
        return {label: to_rgba(PALETTE[label]) for label in labels}
    places = np.linspace(0, 1, len(labels)) if len(labels) > 1 else np.zeros(len(labels))
    return {label: tuple(map(float, colormaps["viridis"](x))) for label, x in zip(labels, places, strict=True)}  # type: ignore[misc]


def legend_of(figure: Figure, labeler: Labeler, colors: dict[int, tuple[float, float, float, float]]) -> None:
    """Add a legend of labels to the right of all panels; of many labels only some are listed.

    Args:
        figure: the figure, with constrained layout.
        labeler: labeler of the labels, which tells what they are.
        colors: colors by label.

    Example:
        >>> from genmeasures.labelers import KMeans
        >>> from genmeasures.report.drawing import new_figure
        >>> figure = new_figure(3, 3)
        >>> legend_of(figure, KMeans(2), label_colors([0, 1]))
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['cluster 0', 'cluster 1']
    """
    labels = list(colors)
    listed = labels if len(labels) <= 12 else [labels[i] for i in _spread(len(labels), 8)]
    noun = _NOUNS.get(labeler.name, "label")
    handles = [Line2D([], [], marker="o", ls="", color=colors[label], label=f"{noun} {label}") for label in listed]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)


def _spread(count: int, chosen: int) -> NDArray[np.int64]:
    return np.linspace(0, count - 1, chosen).round().astype(np.int64)
