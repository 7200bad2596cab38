"""Scaling of the cost with the number of images, image size, channels, layers and models.

``python -m benchmarks.growth`` runs it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

import genmeasures
from benchmarks.models import tensors

_BASE = {"images": 1000, "size": 16, "channels": 32, "layers": 4, "models": 1}
_AXES = {
    "images": [250, 500, 1000, 2000, 4000, 8000],
    "size": [8, 16, 32, 64],
    "channels": [8, 16, 32, 64, 128],
    "layers": [1, 2, 4, 8, 16],
    "models": [1, 2, 4, 8],
}
_UNITS = {
    "images": "training and test images",
    "size": "width and height of an image",
    "channels": "channels of each layer",
    "layers": "convolutions",
    "models": "models",
}


def network(channels: int, layers: int) -> nn.Module:
    """3×3 convolutions with ReLU, all with the same index of channels."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for index in range(layers):
        convolution = nn.Conv2d(3 if index == 0 else channels, channels, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        parts += [convolution, nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def measured(images: int, size: int, channels: int, layers: int, models: int) -> dict[str, float]:
    """Seconds of the three measures, and of the forward passes alone."""
    nets = [network(channels, layers) for _ in range(models)]
    train, test = (tensors(images, (3, size, size), seed) for seed in (1, 2))
    begin = time.perf_counter()
    with torch.inference_mode():
        for net in nets:
            for inputs, _ in (train, test):
                for batch in inputs.split(64):
                    net(batch)
    bare = time.perf_counter() - begin
    begin = time.perf_counter()
    genmeasures.measure(nets, train, test, batch_size=64)
    return {"bare": bare, "seconds": time.perf_counter() - begin}


def figure(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Log-log plots, one panel per axis: seconds of the measures and of the forward passes alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels, axes = plt.subplots(1, len(results), figsize=(3.1 * len(results), 3.2), sharey=True, layout="constrained")
    for panel, (axis, points) in zip(axes, results.items(), strict=True):
        ticks = [int(value) for value in points]
        for name, label, style in (("seconds", "three measures", "o-"), ("bare", "bare forward passes", "s--")):
            panel.loglog(ticks, [point[name] for point in points.values()], style, label=label, markersize=4)
        panel.set_xlabel(_UNITS[axis])
        panel.set_xticks(ticks, [str(value) for value in ticks], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    axes[0].legend(frameon=False)
    panels.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", default="docs/growth.png")
    parser.add_argument("--output", default="benchmarks/growth.json")
    options = parser.parse_args()
    measured(**{**_BASE, "images": 100})
    results: dict[str, dict[str, dict[str, float]]] = {}
    for axis, values in _AXES.items():
        results[axis] = {}
        for value in values:
            results[axis][str(value)] = measured(**{**_BASE, axis: value})
            print(axis, value, results[axis][str(value)], file=sys.stderr)
    Path(options.output).write_text(json.dumps({"base": _BASE, "seconds": results}, indent=1) + "\n")
    figure(results, Path(options.figure))
    return 0


if __name__ == "__main__":
    sys.exit(main())
