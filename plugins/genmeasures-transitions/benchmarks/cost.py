"""What counting transitions costs, as a ratio to the bare forward pass over the same points, inside one run.

``OMP_NUM_THREADS=1 python benchmarks/cost.py``. The bare pass is given its points ready made, and
the batch size at which it is fastest; counting makes its points itself. The two are timed in turn,
and the figure is the median of their ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from genmeasures_transitions import batch_size, count_transitions, curvature, ellipse_through, find_activations
from torch import nn

POINTS = 2**12
ROUNDS = 9
_LONG = 0.4
"""Seconds from which one timing is long enough."""
TARGET = 1.3


def models() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """A small network of convolutions and one without, each with the shape of an input."""
    torch.manual_seed(0)
    cnn = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    mlp = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    return {"CNN 32×32": (cnn.eval(), (3, 32, 32)), "MLP 784-256-256": (mlp.eval(), (1, 28, 28))}


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """How long one call takes, of several in a row."""
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


def main() -> None:
    """Print a line for each model: target, figure, verdict."""
    for name, (model, shape) in models().items():
        path = ellipse_through(*torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)).unbind())
        example = path.points(0, 3, POINTS)
        activations = find_activations(model, example)
        batch = batch_size(activations, example)
        points = path.points(0, POINTS, POINTS)

        def bare(rows: int, model: nn.Module = model, points: torch.Tensor = points) -> None:
            with torch.inference_mode():
                for start in range(0, POINTS, rows):
                    model(points[start : start + rows])

        def ours() -> None:
            count_transitions(model, activations, path, POINTS, batch)  # noqa: B023

        ours()
        times = max(1, round(_LONG / seconds(ours)))
        trials = {
            rows: seconds(lambda rows=rows: bare(rows), 2 * times) for rows in (32, 64, 128, 256, 512, 1024, batch)
        }
        best = min(trials, key=lambda rows: trials[rows])
        rounds = [(seconds(ours, times), seconds(lambda: bare(best), times)) for _ in range(ROUNDS)]  # noqa: B023
        ratio = statistics.median(counting / passing for counting, passing in rounds)
        counting, passing = (statistics.median(column) for column in zip(*rounds, strict=True))
        bent = seconds(lambda: curvature(model, path, POINTS // 4, batch)) * 4  # noqa: B023
        print(
            f"{name}: target ≤ {TARGET}, figure {ratio:.2f}, {'met' if ratio <= TARGET else 'MISSED'} "
            f"(counting {1e3 * counting:.0f} ms at batch {batch}, bare {1e3 * passing:.0f} ms at batch {best}); "
            f"curvature at as many points {bent / passing:.1f}"
        )


if __name__ == "__main__":
    main()
