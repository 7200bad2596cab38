"""Cost of exact Jacobian norms, in plain backward passes and compared with a loop: ``python benchmarks/cost.py``.

All variants are timed in turns within one run, so that the ratios do not depend on the load of the machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from genmeasures_jacobian import JacobianNorm, LayerJacobian, exact_backward
from genmeasures_jacobian.inputs import frozen
from genmeasures_jacobian.jacobian import runner
from torch import Tensor, nn

from genmeasures.plugin import ModelData, trace

_CLASSES = 10


def dense(size: int, depth: int, width: int) -> nn.Module:
    """A fully connected network like those of Novak et al."""
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Flatten()]
    for layer in range(depth):
        parts += [nn.Linear(width if layer else size, width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, _CLASSES)).eval()


def network(side: int, channels: int, *widths: int) -> nn.Module:
    """A small VGG for square images, with two convolutions of each width."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for width in widths:
        for _ in range(2):
            parts += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        parts.append(nn.MaxPool2d(2))
    parts += [nn.Flatten(), nn.Linear(channels * (side >> len(widths)) ** 2, 128), nn.ReLU(), nn.Linear(128, _CLASSES)]
    return nn.Sequential(*parts).eval()


def seconds(tasks: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Median seconds of each task, after one turn to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(turns + 1):
        for name, task in tasks.items():
            begin = time.perf_counter()
            task()
            if turn:
                taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    networks = {
        "MLP 5 × 200, 28×28": (dense(784, 5, 200), (1, 28, 28)),
        "CNN 16, 32, 8×8": (network(8, 1, 16, 32), (1, 8, 8)),
        "CNN 16, 32, 3×32×32": (network(32, 3, 16, 32), (3, 32, 32)),
        "VGG 32, 64, 128, 3×32×32": (network(32, 3, 32, 64, 128), (3, 32, 32)),
    }
    print(
        f"batch of {options.batch}, {_CLASSES} outputs, {torch.get_num_threads()} threads; medians of {options.turns}"
    )
    lines: list[str] = []
    met = True
    for name, (model, shape) in networks.items():
        took = costs(model, shape, options.batch, options.turns)
        print(f"{name}, seconds: " + ", ".join(f"{what} {value:.4f}" for what, value in took.items()))
        figures = [
            ("exact norms, in outputs × plain backward passes", 1.3, took["exact"] / took["plain"] / _CLASSES, False),
            (
                "the whole measure, in outputs × plain backward passes",
                1.3,
                took["measure"] / took["plain"] / _CLASSES,
                False,
            ),
            ("times faster than a loop of autograd.functional.jacobian", 5, took["loop"] / took["exact"], True),
        ]
        for what, limit, figure, at_least in figures:
            fine = figure >= limit if at_least else figure <= limit
            met &= fine
            target = f"{'≥' if at_least else '≤'} {limit}"
            lines.append(f"| {name}: {what} | {target} | {figure:.2f} | {'met' if fine else 'missed'} |")
    print("| quantity | target | measured | verdict |\n| --- | --- | ---: | --- |", *lines, sep="\n")
    return 0 if met else 1


def costs(model: nn.Module, shape: tuple[int, ...], batch: int, turns: int) -> dict[str, float]:
    """Seconds of each variant for one network."""
    inputs = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(batch) % _CLASSES
    run = runner(model)
    loss = nn.functional.cross_entropy(model(inputs), targets)
    parameters = list(model.parameters())
    leaf = inputs.clone().requires_grad_()
    with frozen(model):
        by_input = nn.functional.cross_entropy(model(leaf), targets)

    def exact() -> object:
        with frozen(model):
            return exact_backward(run, inputs, True, targets)

    def probabilities(x: Tensor) -> Tensor:
        softmax: Tensor = model(x[None])[0].softmax(0)
        return softmax

    def loop() -> object:
        return [torch.autograd.functional.jacobian(probabilities, x).norm() for x in inputs]

    def batches(split: str) -> Iterator[tuple[Tensor, Tensor | None]]:
        yield inputs, targets[:, None]

    def sample(split: str, count: int | None) -> tuple[Tensor, Tensor | None]:
        return inputs[:count], targets[:count, None]

    def data() -> ModelData:
        return ModelData(
            batches=batches,
            sample=sample,
            order=lambda split: np.arange(batch),
            device=torch.device("cpu"),
            generator=torch.Generator().manual_seed(0),
        )

    layers = [layer.layer for layer in trace(model, inputs[:3], "activation").layers]
    tasks = {
        "forward": lambda: run(inputs),
        "plain": lambda: torch.autograd.grad(loss, parameters, retain_graph=True),
        "to the input": lambda: torch.autograd.grad(by_input, leaf, retain_graph=True),
        "exact": exact,
        "measure": lambda: JacobianNorm(method="exact").measure(model, [], data()),
        "hutchinson, 16 projections": lambda: JacobianNorm(method="hutchinson", projections=16).measure(
            model, [], data()
        ),
        "all layers, 16 projections": lambda: LayerJacobian(projections=16).measure(model, layers, data()),
        "loop": loop,
    }
    return seconds(tasks, turns)


if __name__ == "__main__":
    sys.exit(main())
