"""The figures of the study that are drawn from its result files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from study import EXTRACTORS, FAMILIES, MAIN, MEASURES, TARGETS, Floats, Study, correlation

import genmeasures
from genmeasures.aggregators import Frobenius, LastK
from genmeasures.judging import pearson

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's colors, which the color-blind can tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P")
_OUTLIERS = 0.05
"""Share of values at either end that may be left outside of the axes."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, at 150 dots an inch."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def write(figure: Figure, path: Path) -> None:
    """As PNG, without the version of what wrote it, so that the same figure is the same file."""
    figure.savefig(path, format="png", metadata={"Software": None})


def scatter(study: Study, path: Path) -> None:
    """Each measure (columns) by each extractor (rows) against the target, colored by it (the paper's Figure 3)."""
    target = study.targets[0]
    y = study.values(target)
    shades = _shades(y)
    figure = new_figure(3.6 * len(MAIN), 0.6 + 3.4 * len(study.extractors))
    axes = figure.subplots(len(study.extractors), len(MAIN), squeeze=False, sharey=True)
    groups = study.labels(study.groups[0])
    markers = dict(zip(dict.fromkeys(groups), MARKERS, strict=False))
    for row, (extractor, readable) in zip(axes, study.extractors.items(), strict=True):
        for ax, measure in zip(row, MAIN, strict=True):
            x = study.reduced(extractor, measure)
            for group, marker in markers.items():
                chosen = (groups == group) & np.isfinite(x) & np.isfinite(y)
                colors = shades.to_rgba(y[chosen])
                ax.scatter(x[chosen], y[chosen], c=colors, marker=marker, s=26, linewidths=0.4, edgecolors="0.25")
            found = correlation(x, y, study.runs)
            outside = _limit(ax, x[np.isfinite(x)], along="x")
            ax.set_title(f"Pearson {_text(found.pearson)}" + (f" ({outside} outside)" if outside else ""), fontsize=10)
            ax.set_xlabel(f"{MEASURES[measure]}, {readable}")
            ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
            ax.grid(alpha=0.25, linewidth=0.5)
        row[0].set_ylabel(TARGETS[target])
    figure.colorbar(shades, ax=axes, label=TARGETS[target], aspect=40, pad=0.015)
    _legend(figure, [Line2D([], [], marker=m, color="0.4", ls="", label=name) for name, m in markers.items()])
    write(figure, path)


def layers(study: Study, path: Path) -> None:
    """Each measure along the layers, a line a model, colored by the main target (the paper's Figure 4)."""
    target = study.targets[0]
    y = study.values(target)
    shades = _shades(y)
    figure = new_figure(3.6 * len(MAIN), 0.6 + 3.4 * len(study.extractors))
    axes = figure.subplots(len(study.extractors), len(MAIN), squeeze=False, sharex=True)
    places = np.arange(1, len(study.layers) + 1)
    # Good and bad models alternate in what is drawn last.
    order = np.random.default_rng(0).permutation(len(y))
    for row, (extractor, readable) in zip(axes, study.extractors.items(), strict=True):
        for ax, measure in zip(row, MAIN, strict=True):
            values = study.by_layer(extractor, measure)
            for model in order[np.isfinite(y[order])]:
                color = shades.to_rgba(y[model])
                ax.plot(places, values[model], color=color, lw=0.8, alpha=0.6, marker="o", ms=2.2, mew=0)
            outside = _limit(ax, values[np.isfinite(values)], along="y")
            ax.set_title(f"{readable}" + (f" ({outside} outside)" if outside else ""), fontsize=10)
            ax.set_ylabel(MEASURES[measure])
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=len(places) + 1))
            ax.grid(alpha=0.25, linewidth=0.5)
    for ax in axes[-1]:
        ax.set_xlabel("layer")
    figure.colorbar(shades, ax=axes, label=TARGETS[target], aspect=40, pad=0.015)
    write(figure, path)


def training(study: Study, path: Path) -> None:
    """The main target over the epochs, for each group, with the same of training cases."""
    target = study.targets[0]
    metric = target.removeprefix("test_")
    known = [name for name in (target, f"train_{metric}") if name in study.any.coords]
    styles = dict(zip(known, ((COLORS[0], "-", "test"), (COLORS[1], "--", "training")), strict=False))
    figure = new_figure(11.5, 3.6)
    groups = study.labels(study.groups[0])
    names = list(dict.fromkeys(groups))
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    epoch = study.values("epoch")
    for ax, group in zip(axes, names, strict=True):
        for name, (color, style, _) in styles.items():
            for run in sorted(set(study.runs[groups == group])):
                chosen = np.flatnonzero(study.runs == run)
                chosen = chosen[np.argsort(epoch[chosen])]
                ax.plot(epoch[chosen], study.values(name)[chosen], color=color, ls=style, lw=1.3, alpha=0.85)
        ax.set_title(group, fontsize=10)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        ax.grid(alpha=0.25, linewidth=0.5)
    axes[0].set_ylabel(TARGETS[target].removeprefix("test "))
    handles = [Line2D([], [], color=c, ls=style, label=f"{label} cases") for c, style, label in styles.values()]
    _legend(figure, handles)
    write(figure, path)


def layer_correlations(study: Study, path: Path) -> None:
    """Pearson's correlation of each layer with the main target, with 95 % intervals."""
    target = study.targets[0]
    y = study.values(target)
    figure = new_figure(3.6 * len(MAIN), 4.2)
    axes = figure.subplots(1, len(MAIN), squeeze=False, sharey=True)[0]
    for ax, measure in zip(axes, MAIN, strict=True):
        ax.axhline(0, color="0.5", lw=0.8)
        for side, (extractor, color, marker) in enumerate(zip(study.extractors, COLORS, MARKERS, strict=False)):
            values = study.by_layer(extractor, measure)
            found = [correlation(values[:, place], y, study.runs) for place in range(values.shape[1])]
            places = np.arange(1, len(found) + 1) + (side - 0.5) * 0.24
            ax.vlines(places, [c.runs.low for c in found], [c.runs.high for c in found], color=color, lw=1, alpha=0.4)
            ax.vlines(places, [c.models.low for c in found], [c.models.high for c in found], color=color, lw=2.6)
            ax.plot(places, [c.pearson for c in found], marker, color=color, mec="white", mew=0.6, ms=6, zorder=3)
        ax.set_title(MEASURES[measure], fontsize=10)
        ax.set_xlabel("layer")
        ax.set_ylim(-1.03, 1.03)
        ax.set_xticks(np.arange(1, len(study.layers) + 1))
        ax.grid(alpha=0.25, linewidth=0.5)
    axes[0].set_ylabel(f"Pearson with {TARGETS[target]}")
    handles = [
        Line2D([], [], marker=m, color=c, lw=2.6, mec="white", label=readable)
        for readable, c, m in zip(study.extractors.values(), COLORS, MARKERS, strict=False)
    ]
    handles += [Line2D([], [], color="0.4", lw=2.6, label="95 % over models")]
    handles += [Line2D([], [], color="0.4", lw=1, alpha=0.6, label="95 % over trainings")]
    _legend(figure, handles)
    write(figure, path)


def classifiers(results: Mapping[tuple[str, str], xr.Dataset], path: Path) -> None:
    """The paper's Figures 6 and 7, for each family of networks in the format of PGDL.

    By column: the Davies–Bouldin index of whole tensors averaged over the last three layers against test accuracy,
    the same along the layers, and both for the confidence of receptive fields, averaged over all layers.
    """
    figure = new_figure(14.5, 3.6 * len(FAMILIES))
    axes = figure.subplots(len(FAMILIES), 4, squeeze=False)
    shown = (("whole_tensor", "davies_bouldin", LastK(3)), ("receptive_field", "confidence", Frobenius()))
    for row, (family, readable) in zip(axes, FAMILIES.items(), strict=True):
        for place, (extractor, measure, aggregator) in enumerate(shown):
            ds = results[family, extractor]
            accuracy = np.asarray(ds["test_accuracy"].values, dtype=np.float64)
            shades = _shades(accuracy)
            averaged = np.asarray(genmeasures.aggregate(ds, aggregator)[measure].values, dtype=np.float64)
            left, right = row[2 * place : 2 * place + 2]
            left.scatter(averaged, accuracy, c=shades.to_rgba(accuracy), s=26, linewidths=0.4, edgecolors="0.25")
            left.set_title(f"{readable}: Pearson {_text(float(pearson(averaged, accuracy)))}", fontsize=10)
            which = "last three layers" if place == 0 else "all layers"
            left.set_xlabel(f"{MEASURES[measure]}, {EXTRACTORS[extractor]}, {which}")
            left.set_ylabel("test accuracy")
            values = np.asarray(ds[measure].transpose("model", "layer").values, dtype=np.float64)
            for model, of_model in enumerate(values):
                color = shades.to_rgba(accuracy[model])
                right.plot(np.arange(1, len(of_model) + 1), of_model, color=color, lw=0.9, marker="o", ms=2.5, mew=0)
            right.set_xlabel("layer")
            right.set_ylabel(MEASURES[measure])
            right.xaxis.set_major_locator(MaxNLocator(integer=True))
            for ax in (left, right):
                ax.grid(alpha=0.25, linewidth=0.5)
            figure.colorbar(shades, ax=right, label="test accuracy")
    write(figure, path)


def _shades(values: Floats) -> ScalarMappable:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return ScalarMappable(Normalize(low, high if high > low else low + 0.01), "viridis")


def _limit(ax: Axes, values: Floats, along: str) -> int:
    """Keep few far values from squeezing the rest together; how many lie outside of the axes then."""
    if not len(values):
        return 0
    low, high = np.quantile(values, [_OUTLIERS, 1 - _OUTLIERS], method="nearest")
    reach = 1.5 * (high - low)
    inside = values[(values >= low - reach) & (values <= high + reach)]
    if reach <= 0 or len(inside) == len(values):
        return 0
    margin = 0.05 * float(inside.max() - inside.min())
    (ax.set_xlim if along == "x" else ax.set_ylim)(inside.min() - margin, inside.max() + margin)
    return len(values) - len(inside)


def _legend(figure: Figure, handles: list[Any]) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)


def _text(coefficient: float) -> str:
    return "not defined" if math.isnan(coefficient) else f"{coefficient:.3f}".replace("-", "−")
