"""The training pixels of every layer in three principal components, colored by label: ``manifolds.png``.

The paper's Figure 1, for an early and a late checkpoint of one training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from figures import COLORS, new_figure, write
from matplotlib.lines import Line2D
from networks import EXPERIMENT, features, network, read_task

_POINTS = 2500
"""Pixels drawn of each layer."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pixels of all layers in three principal components.")
    parser.add_argument("--experiment", type=Path, default=EXPERIMENT, help="recipe whose networks are drawn")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where the figure is written")
    parser.add_argument("--objective", default="dice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--early", type=int, default=1, help="epoch of the first network")
    parser.add_argument("--late", type=int, help="epoch of the second (default: the last)")
    options = parser.parse_args()
    task = read_task(options.experiment)
    train = task.data("train")
    drawn = []
    for epoch in (options.early, options.late or task.epochs):
        model, scores = network(task, options.objective, options.seed, epoch)
        kept, indices = features(model, train, components=10)
        title = f"{options.objective}, epoch {epoch}, test IoU {scores['test_iou']:.3f}"
        drawn.append((title, kept, indices))
    draw(drawn, options.folder / "manifolds.png")


def draw(drawn: list[tuple[str, Any, Any]], path: Path) -> None:
    """Two rows of panels a network: the encoder, and below it the decoder with the last convolution.

    drawn: for each network a title, what :func:`networks.features` kept, and the Davies–Bouldin indices.
    """
    names = list(drawn[0][1].projected)
    encoder = sum(name.startswith("encoder") for name in names)
    columns = max(encoder, len(names) - encoder)
    figure = new_figure(2.0 * columns, 4.9 * len(drawn))
    bands = figure.subfigures(len(drawn), 1, squeeze=False)[:, 0]
    for band, (title, kept, indices) in zip(bands, drawn, strict=True):
        band.suptitle(title, fontsize=12)
        for place, name in enumerate(names):
            row, column = (0, place) if place < encoder else (1, place - encoder)
            ax = band.add_subplot(2, columns, row * columns + column + 1, projection="3d")
            points, labels = kept.projected[name][:, :3].numpy(), kept.labels[name].numpy()
            points = np.pad(points, ((0, 0), (0, 3 - points.shape[1])))  # a layer of two channels has two components
            chosen = np.random.default_rng(0).permutation(len(points))[:_POINTS]
            for label in np.unique(labels):
                of = chosen[labels[chosen] == label]
                ax.scatter(*points[of].T, s=3, color=COLORS[int(label)], alpha=0.45, linewidths=0, depthshade=False)
            ax.set_title(f"{place + 1} {name.removesuffix('.conv')}\nDB {indices[place]:.2f}", fontsize=9, pad=0)
            ax.set_box_aspect(None, zoom=1.2)
            for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
                axis.set_ticklabels([])
                axis.set_tick_params(length=0)
    found = sorted({int(label) for _, kept, _ in drawn for labels in kept.labels.values() for label in labels.unique()})
    readable = {0: "background", 1: "foreground"} if len(found) <= 2 else {}
    handles = [
        Line2D([], [], marker="o", ls="", color=COLORS[label], label=readable.get(label, f"class {label}"))
        for label in found
    ]
    bands[0].legend(handles=handles, loc="upper right", frameon=False, fontsize=10)
    write(figure, path)


if __name__ == "__main__":
    main()
