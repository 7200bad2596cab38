"""How the measures depend on their own settings: the paper's Table 2 and Figures 8 to 10.

Of one checkpoint, roughness (of raw patches, and of patches projected on as many components as pixels) and confidence
are measured with several numbers of principal components, clusters and mixture components, one changed at a time, and
written to ``hyperparameters.csv``. What is there is not measured again. ``--checkpoints 8`` measures as many epochs of
every objective, on fewer pixels, into ``hyperparameters_checkpoints.csv``, for the correlation with test IoU. Writes
``hyperparameters.md`` and PNGs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from figures import COLORS, MARKERS, new_figure, write
from genmeasures_unet import UNetSegmentation
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from networks import EXPERIMENT, network, read_task
from study import correlation
from threadpoolctl import threadpool_limits
from torch import nn

import genmeasures
from genmeasures import plot
from genmeasures.aggregators.means import weighted_mean
from genmeasures.extractors import ReceptiveField
from genmeasures.files import write_atomically
from genmeasures.labelers import KMeans
from genmeasures.measures import Confidence, Roughness

_ALL = 1_000_000
"""Components asked for where none are to be left out: the PCA takes as many as there are channels."""
_WIDE = 2000
"""Range of a measure beyond which its axis is logarithmic: mixtures of few pixels with many components."""
_KEY = ["objective", "seed", "epoch", "cap", "components", "k", "mixtures"]
_VALUES = {
    "roughness": "roughness",
    "roughness_projected": "roughness, projected",
    "confidence": "confidence",
    "confidence_published": "confidence, published",
}
"""Variables and how tables and figures call them."""
_NAMES = {"components": "principal components", "k": "clusters k", "mixtures": "mixture components m"}


@dataclass(frozen=True)
class Setting:
    """Settings of the measures; the defaults are the paper's."""

    components: str = "10"
    """Principal components of pixels, or "all"."""
    k: int = 5
    mixtures: int = 3

    @property
    def number(self) -> int:
        return _ALL if self.components == "all" else int(self.components)


VARIED: dict[str, list[Setting]] = {
    "components": [Setting(components=components) for components in ("3", "10", "64", "128", "all")],
    "k": [Setting(k=k) for k in (3, 5, 10)],
    "mixtures": [Setting(mixtures=mixtures) for mixtures in (1, 3, 6)],
}
"""What is changed, one setting at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a network with several settings of the measures.")
    parser.add_argument("--experiment", type=Path, default=EXPERIMENT, help="recipe whose networks are measured")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where tables and figures go")
    parser.add_argument("--objective", default="dice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epoch", type=int, help="default: the last")
    parser.add_argument("--layer", default="encoder.2.conv", help="layer of the images of clusters")
    parser.add_argument("--checkpoints", type=int, default=0, help="epochs of each objective to correlate with IoU")
    options = parser.parse_args()
    folder: Path = options.folder
    task = read_task(options.experiment)
    data = task.data("train"), task.data("test")
    epoch = options.epoch or task.epochs
    torch.set_num_threads(1)
    with threadpool_limits(1):
        one = [(options.objective, options.seed, epoch)]
        table = measured(task, data, one, 80_000, folder / "hyperparameters.csv")
        several = None
        if options.checkpoints:
            epochs = np.unique(np.geomspace(1, task.epochs, options.checkpoints).round().astype(int)).tolist()
            many = [(objective, options.seed, number) for objective in task.objectives for number in epochs]
            several = measured(task, data, many, 20_000, folder / "hyperparameters_checkpoints.csv")
        (folder / "hyperparameters.md").write_text(markdown(table, several), encoding="utf-8")
        draw_settings(table, folder / "hyperparameters.png")
        model, _ = network(task, *one[0])
        clusters = plot.clusters(model, data[0], options.layer, k=(3, 5, 10), components=(3, 10, _ALL), mixtures=0)
        write(clusters, folder / "clusters.png")
        mixtures = [setting.mixtures for setting in VARIED["mixtures"]]
        write(plot.clusters(model, data[0], options.layer, mixtures=mixtures), folder / "mixtures.png")


def settings() -> list[Setting]:
    """All settings, none twice."""
    return list(dict.fromkeys(setting for group in VARIED.values() for setting in group))


def measured(
    task: UNetSegmentation, data: tuple[Any, Any], checkpoints: Sequence[tuple[str, int, int]], cap: int, path: Path
) -> pd.DataFrame:
    """A row for each checkpoint (objective, seed, epoch), setting and layer: those in the file, and what is missing.

    ``cap`` is the number of pixels a layer. The file is written after each setting.
    """
    known = pd.read_csv(path, dtype={"components": str}) if path.is_file() else pd.DataFrame(columns=_KEY)
    warm = False
    for checkpoint in checkpoints:
        model: nn.Module | None = None
        for setting in settings():
            key = [*checkpoint, cap, setting.components, setting.k, setting.mixtures]
            if (known[_KEY] == key).all(axis=1).any():
                continue
            if model is None:
                model, scores = network(task, *checkpoint)
            if not warm:
                _measure(model, data, setting, cap)
                warm = True
            ds = _measure(model, data, setting, cap)
            layers = {name: ds[name].values[0] for name in ("layer_name", "channels", "weight_norm", *_VALUES)}
            made = pd.DataFrame({**dict(zip(_KEY, key, strict=True)), "layer": ds.layer.values + 1, **layers})
            made = made.assign(seconds=round(ds.attrs["seconds"], 3), test_iou=scores["test_iou"])
            known = made if known.empty else pd.concat([known, made], ignore_index=True)
            write_atomically(path, known.to_csv(index=False, float_format="%.10g").encode())
            print(f"{checkpoint}: {setting}: {ds.attrs['seconds']:.1f} s", flush=True)
    wanted = pd.DataFrame(checkpoints, columns=["objective", "seed", "epoch"]).assign(cap=cap)
    return known.merge(wanted, on=["objective", "seed", "epoch", "cap"])


def _measure(model: nn.Module, data: tuple[Any, Any], setting: Setting, cap: int) -> Any:
    # Patches that are projected on all of their components are raw patches.
    projected = 1 if setting.components == "all" else setting.number
    roughness = Roughness(KMeans(setting.k), input_pca=projected)
    measures = [roughness, Confidence(KMeans(setting.k), components=setting.mixtures)]
    extractor = ReceptiveField(cap=cap, components=setting.number)
    ds = genmeasures.measure({"network": model}, *data, measures=measures, extractor=extractor)
    if setting.components == "all":
        ds["roughness_projected"] = ds["roughness"]
    return ds


# Tables


def markdown(table: pd.DataFrame, several: pd.DataFrame | None) -> str:
    """Averages over the layers of one checkpoint, and correlations over several, in Markdown."""
    first = table.iloc[0]
    lines = [
        "# Settings of the measures",
        "",
        f"Written by `hyperparameters.py`. {first.objective}, seed {first.seed}, epoch {first.epoch}, test IoU "
        f"{first.test_iou:.3f}; up to {first.cap} pixels a layer; means over layers; one thread. What is not "
        "named is 10 principal components, 5 clusters, 3 mixture components.",
        "",
        f"|  |  | {' | '.join(_VALUES.values())} | seconds |",
        f"| --- | ---: {'| ---: ' * len(_VALUES)}| ---: |",
    ]
    for varied, group in VARIED.items():
        for setting in group:
            rows = _rows(table, setting)
            means = " | ".join(f"{rows[name].mean():.3f}" for name in _VALUES)
            seconds = f"{rows.seconds.iloc[0]:.1f}"
            lines.append(f"| {_NAMES[varied]} | {getattr(setting, varied)} | {means} | {seconds} |")
    if several is not None:
        count = len(several.drop_duplicates(["objective", "seed", "epoch"]))
        lines += [
            "",
            f"Pearson's correlation with test IoU over {count} checkpoints ({several.objective.nunique()} objectives, "
            f"epochs {', '.join(map(str, sorted(several.epoch.unique())))}), up to {several.cap.iloc[0]} pixels a "
            "layer, layers weighted by the Frobenius norm of the weights; in brackets 95 % of bootstrap resamples of "
            "models.",
            "",
            f"|  |  | {' | '.join(_VALUES.values())} |",
            f"| --- | ---: {'| ---: ' * len(_VALUES)}|",
        ]
        for varied, group in VARIED.items():
            for setting in group:
                cells = [_with_iou(several, setting, name) for name in _VALUES]
                lines.append(f"| {_NAMES[varied]} | {getattr(setting, varied)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _with_iou(several: pd.DataFrame, setting: Setting, measure: str) -> str:
    rows = _rows(several, setting)
    checkpoint = ["objective", "seed", "epoch"]
    wide = {name: rows.pivot(index=checkpoint, columns="layer", values=name) for name in (measure, "weight_norm")}
    x, _ = weighted_mean(wide[measure].to_numpy(), wide["weight_norm"].to_numpy())
    known = rows.groupby(checkpoint).test_iou.first().loc[wide[measure].index]
    runs = np.array([f"{objective} {seed}" for objective, seed, _ in known.index])
    found = correlation(x, known.to_numpy(), runs)
    return f"{found.pearson:.3f} [{found.models.low:.2f}, {found.models.high:.2f}]"


def _rows(table: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    of = (table.components == setting.components) & (table.k == setting.k) & (table.mixtures == setting.mixtures)
    return table[of]


# Figures


def draw_settings(table: pd.DataFrame, path: Path) -> None:
    """Roughness and confidence along the layers, and the time, for each setting (the paper's Figure 9)."""
    figure = new_figure(11.5, 14)
    axes = figure.subplots(len(_VALUES) + 1, len(VARIED), gridspec_kw={"height_ratios": [2] * len(_VALUES) + [1]})
    for column, (varied, group) in enumerate(VARIED.items()):
        names = [str(getattr(setting, varied)) for setting in group]
        for row, (measure, readable) in enumerate(_VALUES.items()):
            ax: Axes = axes[row, column]
            if varied == "mixtures" and measure.startswith("roughness"):
                ax.text(0.5, 0.5, "roughness has\nno mixtures", transform=ax.transAxes, ha="center", color="0.4")
                ax.set_axis_off()
                continue
            for setting, name, color, marker in zip(group, names, COLORS, MARKERS, strict=False):
                rows = _rows(table, setting).sort_values("layer")
                ax.plot(rows.layer, rows[measure], color=color, marker=marker, ms=4, lw=1.2, label=name)
            if np.ptp(table[measure]) > _WIDE and varied == "components":
                ax.set_yscale("symlog", linthresh=100)
            ax.set_ylabel(readable)
            ax.set_xlabel("layer")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
            ax.legend(title=_NAMES[varied], fontsize=8, title_fontsize=8, ncols=2)
            ax.grid(alpha=0.25, linewidth=0.5)
        seconds = [float(_rows(table, setting).seconds.iloc[0]) for setting in group]
        ax = axes[-1, column]
        bars = ax.barh(names, seconds, color=COLORS[: len(names)], height=0.65)
        ax.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        ax.set_xlim(0, 1.15 * max(seconds))
        ax.invert_yaxis()
        ax.set_xlabel("seconds on one thread, both measures")
        ax.set_ylabel(_NAMES[varied].replace(" components", "\ncomponents"))
    write(figure, path)


if __name__ == "__main__":
    main()
