"""The clusters of a layer and the Gaussian mixtures of each, in two principal components."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from numpy.typing import NDArray
from torch import nn

from genmeasures.errors import OptionError, Undefined
from genmeasures.interfaces import Extractor, is_count
from genmeasures.labelers import KMeans
from genmeasures.plot.colors import label_colors, legend_of
from genmeasures.plot.features import Projected, drawn_points, layer_features
from genmeasures.registry import registry
from genmeasures.report.drawing import new_figure, note, plain
from genmeasures.statistics.mixture import Mixtures, fit_mixtures

_EDGE = 0.002
"""Fraction of points at either end of an axis that may lie outside of it."""


def clusters(
    model: nn.Module | Callable[[], nn.Module],
    train: Any,
    layer: str | int = -1,
    *,
    k: int | Sequence[int] = 5,
    components: int | Sequence[int] = 10,
    mixtures: int | Sequence[int] = 3,
    extractor: str | Extractor = "receptive_field",
    points: int = 2500,
    seed: int = 0,
    **options: Any,
) -> Figure:
    """Draw the k-means clusters of the training pixels of a layer, with the Gaussian mixture of each as ellipses.

    These are the clusters of ``roughness`` and ``confidence``, and the mixtures of ``confidence`` up to its random
    numbers. A row of panels for each number of principal components, a column for each k and number of Gaussians; all
    show the first two components. An ellipse is two standard deviations of one Gaussian, seen in these components.
    Source: Rajagopal et al. 2021, figures 8 and 10.

    Args:
        model: the model, or a function that builds it.
        train: its training data, in any form of :func:`genmeasures.api.measure`.
        layer: name or index of the layer, −1 for the last.
        k: number of clusters, one or several.
        components: number of principal components that are clustered, one or several; a layer with fewer channels has
            as many as channels.
        mixtures: number of Gaussians of each cluster, one or several; 0 draws none.
        extractor: extractor or its name; ``components`` replaces its own.
        points: maximum number of points drawn.
        seed: of every random choice.
        options: further options of :func:`genmeasures.api.measure`, such as ``device`` or ``batch_size``.

    Returns:
        The figure.

    Raises:
        OptionError: an option is invalid, or there is no such layer.
        DataError: the data cannot be read.
        ModelError: the model cannot be measured.

    Example:
        >>> net, inputs = nn.Linear(2, 3), torch.arange(40.0).sin().reshape(20, 2)
        >>> figure = clusters(net, (inputs,), k=(2, 3), mixtures=1)
        >>> [ax.get_title() for ax in figure.axes]
        ['d = 3, k = 2, m = 1', 'd = 3, k = 3, m = 1']
    """
    ks, sizes, gaussians = (
        _several(name, value, least)
        for name, value, least in (("k", k, 2), ("components", components, 2), ("mixtures", mixtures, 0))
    )
    if not is_count(points):
        raise OptionError(f"points must be an integer ≥ 1, got {points!r}")
    columns = list(itertools.product(ks, gaussians))
    figure = new_figure(3.4 * len(columns) + 1.2, 3.3 * len(sizes) + 0.5)
    axes = figure.subplots(len(sizes), len(columns), squeeze=False)
    name = ""
    for row, d in zip(axes, sizes, strict=True):
        labelers = {f"k{number}": KMeans(number) for number in ks}
        chosen = _with_components(extractor, d)
        found = layer_features(model, train, labelers, chosen, [layer], {"seed": seed, **options})
        for ax, (number, m) in zip(row, columns, strict=True):
            (drawn,) = found[f"k{number}"]
            name = drawn.name
            if drawn.projected is None:
                note(ax, plain(drawn.status))
            else:
                _panel(ax, drawn.projected, m, points, seed)
            width = d if drawn.projected is None else drawn.projected.points.shape[1]
            ax.set_title(f"d = {width}, k = {number}" + (f", m = {m}" if m else ""), fontsize=10)
    for ax in axes[-1]:
        ax.set_xlabel("first principal component")
    for ax in axes[:, 0]:
        ax.set_ylabel("second principal component")
    meaning = "d components, k clusters" + (", m Gaussians per cluster" if any(gaussians) else "")
    figure.suptitle(f"{plain(name)}: {meaning}", fontsize=11)
    legend_of(figure, KMeans(max(ks)), label_colors(range(max(ks))))
    return figure


def _panel(ax: Axes, features: Projected, m: int, points: int, seed: int) -> None:
    """The clusters of one setting."""
    colors = label_colors(range(int(features.labels.max()) + 1))
    drawn, labels = drawn_points(features, points, seed)
    drawn = np.pad(drawn, ((0, 0), (0, max(0, 2 - drawn.shape[1]))))[:, :2]
    size = float(np.clip(8000 / len(drawn), 4, 16))
    ax.scatter(
        drawn[:, 0], drawn[:, 1], s=size, c=[colors[label] for label in labels.tolist()], alpha=0.35, linewidths=0
    )
    if m and features.points.shape[1] > 1:
        try:
            fitted = fit_mixtures(features.points, features.labels, m, torch.Generator().manual_seed(seed))
        except Undefined as reason:
            ax.text(0.5, 0.02, plain(str(reason)), transform=ax.transAxes, ha="center", fontsize=8, color="0.4")
            return
        for number, cluster in enumerate(fitted.cluster.tolist()):
            ax.add_patch(_ellipse(fitted, number, colors[cluster]))
    low, high = np.quantile(features.points[:, :2].numpy(), [_EDGE, 1 - _EDGE], axis=0)
    margin = np.where(high > low, 0.08 * (high - low), 1.0)
    ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
    if len(low) > 1:
        ax.set_ylim(low[1] - margin[1], high[1] + margin[1])
    ax.grid(alpha=0.25, linewidth=0.5)


def covariance(mixtures: Mixtures, number: int) -> NDArray[np.float64]:
    """Covariance of one Gaussian in the first two dimensions.

    Args:
        mixtures: the mixtures of all clusters.
        number: index of the Gaussian.

    Returns:
        float64 (2, 2).

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]], dtype=torch.float64)
        >>> one = fit_mixtures(points.repeat(10, 1), torch.zeros(40).long(), 1, torch.Generator().manual_seed(0))
        >>> covariance(one, 0).diagonal().round(2).tolist()
        [4.0, 1.0]
    """
    root = torch.linalg.inv(mixtures.precisions[number])  # precisions hold U with U Uᵀ = Σ⁻¹
    block: NDArray[np.float64] = (root.T @ root)[:2, :2].numpy()
    return block


def _ellipse(mixtures: Mixtures, number: int, color: Any) -> Ellipse:
    """Two standard deviations to either side."""
    variances, axes = np.linalg.eigh(covariance(mixtures, number))
    width, height = 4 * np.sqrt(variances)
    angle = float(np.degrees(np.arctan2(axes[1, 0], axes[0, 0])))
    x, y = mixtures.means[number, :2].tolist()
    return Ellipse((x, y), width, height, angle=angle, facecolor="none", edgecolor=color, linewidth=1.5)


def _several(name: str, value: int | Sequence[int], least: int) -> list[int]:
    """The values of an option that takes one or several."""
    values = [value] if isinstance(value, int) else list(value)
    if not values or not all(is_count(each, least) for each in values):
        raise OptionError(f"{name} must be one or several integers ≥ {least}, got {value!r}")
    return values


def _with_components(extractor: str | Extractor, components: int) -> Extractor:
    """The extractor with another number of principal components."""
    made: Any = registry().make("extractor", extractor, {}) if isinstance(extractor, str) else extractor
    if not isinstance(made, Extractor):
        raise OptionError(f"extractor: expected a name or an object of Extractor, got {type(made).__name__}")
    return type(made)(**{**made.clone().options(), "components": components})
