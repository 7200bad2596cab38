"""Cost of counting transitions, relative to a plain forward pass over the same points.

Run it with ``OMP_NUM_THREADS=1 python benchmarks/cost.py``. The plain pass has its points in memory, and the batch size
at which it is fastest; counting includes the computation of the points. The two are timed in turns, and the result is
the median of their ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from genmeasures_transitions import batch_size, count_transitions, ellipse_through, find_activations, path_turning
from torch import nn

POINTS = 2**12
ROUNDS = 9
_LONG = 0.4
"""Minimum seconds of one timing."""
TARGET = 1.3


def models() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """A small CNN and an MLP, each with the shape of an input."""
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
    """Seconds per call, averaged over several calls."""
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


def main() -> None:
    """Print target, result and verdict for each model."""
    for name, (model, shape) in models().items():
        path = ellipse_through(*torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)).unbind())
        example = path.points(0, 3, POINTS)
        activations = find_activations(model, example)
        batch = batch_size(activations, example)
        points = path.points(0, POINTS, POINTS)

        def plain(rows: int, model: nn.Module = model, points: torch.Tensor = points) -> None:
            with torch.inference_mode():
                for start in range(0, POINTS, rows):
                    model(points[start : start + rows])

        def ours() -> None:
            count_transitions(model, activations, path, POINTS, batch)  # noqa: B023

        ours()
        times = max(1, round(_LONG / seconds(ours)))
        trials = {
            rows: seconds(lambda rows=rows: plain(rows), 2 * times) for rows in (32, 64, 128, 256, 512, 1024, batch)
        }
        best = min(trials, key=lambda rows: trials[rows])
        rounds = [(seconds(ours, times), seconds(lambda: plain(best), times)) for _ in range(ROUNDS)]  # noqa: B023
        ratio = statistics.median(counting / passing for counting, passing in rounds)
        counting, passing = (statistics.median(column) for column in zip(*rounds, strict=True))
        slopes = seconds(lambda: path_turning(model, path, POINTS // 4, batch)) * 4  # noqa: B023
        print(
            f"{name}: target ≤ {TARGET}, measured {ratio:.2f}, {'met' if ratio <= TARGET else 'MISSED'} "
            f"(counting {1e3 * counting:.0f} ms at batch {batch}, plain {1e3 * passing:.0f} ms at batch {best}); "
            f"turning at as many points: {slopes / passing:.1f} plain passes"
        )


if __name__ == "__main__":
    main()
