"""What one step of one kernel costs, side by side and one at a time: ``python benchmarks/cost.py``.

The network is the paper's shallow CNN in the manner of VGG: convolutions 3×3 with 64, 64, 128 and 128
kernels, ReLU, a pool after every second, pictures 3×32×32. The slow loop is the plain way: each kernel
by itself, the whole network forward, and the gradient of the objective with respect to the input. Both
begin at the same noise and take the same steps, so that they must reach the same objective value.
Times are the best of several turns, in which the two take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from genmeasures_ars import ascend, fitting_batch, truncated
from torch import Tensor, nn

from genmeasures.tracing import TracedLayer, trace

STEPS = 5
SUBSET = 3
"""Kernels of each layer that the slow loop is timed on."""
TURNS = 3
STEP_SIZE = 0.1
TARGET = 10.0
MEMORY = 256 * 2**20


def shallow_cnn() -> nn.Sequential:
    """64, 64, 128 and 128 kernels, with random weights."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for given, made, pool in ((3, 64, False), (64, 64, True), (64, 128, False), (128, 128, True)):
        parts += [nn.Conv2d(given, made, 3, padding=1), nn.ReLU()]
        if pool:
            parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(128 * 64, 256), nn.ReLU(), nn.Linear(256, 10)).eval()


def slow(model: nn.Module, layer: nn.Module, noise: Tensor, kernel: int) -> float:
    """IAM for one kernel through the whole network; the objective after the last step."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _given, output: kept.append(output.relu()))
    x = noise[None].clone()
    try:
        for step in range(STEPS + 1):
            x.requires_grad_()
            model(x)
            means = kept.pop()[0].mean(dim=(1, 2))
            value = means[kernel] - (means.sum() - means[kernel]) / len(means)
            if step == STEPS:
                break
            (gradient,) = torch.autograd.grad(value, x)
            x = (x + STEP_SIZE * gradient / gradient.square().mean().sqrt()).detach()
    finally:
        handle.remove()
    return float(value.detach())


def fast(model: nn.Module, layer: TracedLayer, noise: Tensor) -> Tensor:
    """IAM for all kernels of a layer; the objectives (I,) after the last step."""
    values = []
    with truncated(model, layer) as run:
        kernels = torch.arange(layer.layer.channels, device=noise.device)
        batch = fitting_batch(run, noise[None], list(model.parameters()), MEMORY)
        for chunk in kernels.split(batch):
            start = noise.expand(len(chunk), *noise.shape)
            values.append(ascend(run, start, chunk, "iam", STEPS, STEP_SIZE, None).objective)
    return torch.cat(values)


def arithmetic(layers: Sequence[TracedLayer], measured: int) -> float:
    """By how much fewer multiplications the fast way makes, for the first ``measured`` of the layers.

    Forward and backward up to the layer, against forward through all layers and backward from the layer.
    """
    each = [layer.layer.channels * layer.layer.positions * layer.layer.patch_size for layer in layers]
    kernels = [layer.layer.channels for layer in layers[:measured]]
    upto = sum(number * sum(each[: place + 1]) for place, number in enumerate(kernels))
    return (sum(kernels) * sum(each) + upto) / (2 * upto)


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    model = shallow_cnn().to(device)
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    traced = trace(model, noise.expand(3, 3, 32, 32), "activation").layers
    layers = traced[:4]
    print(f"{torch.get_num_threads()} thread(s), {device}, {STEPS} steps, slow loop on {SUBSET} kernels a layer")
    naive = batched = 0.0
    worst = 0.0
    for layer in layers:
        chosen = torch.linspace(0, layer.layer.channels - 1, SUBSET).long().tolist()
        slowest, fastest = [], []
        for _ in range(TURNS):
            begin = clock(device)
            reached = [slow(model, layer.module, noise, kernel) for kernel in chosen]
            slowest.append((clock(device) - begin) / (SUBSET * (STEPS + 1)))
            begin = clock(device)
            values = fast(model, layer, noise)
            fastest.append((clock(device) - begin) / (layer.layer.channels * (STEPS + 1)))
        for kernel, value in zip(chosen, reached, strict=True):
            worst = max(worst, abs(float(values[kernel]) - value) / abs(value))
        one, other = min(slowest), min(fastest)
        naive, batched = naive + one * layer.layer.channels, batched + other * layer.layer.channels
        name = f"{layer.layer.channels} kernels ({layer.layer.name})"
        print(f"{name:>18}: {1e3 * one:7.2f} ms and {1e3 * other:7.3f} ms a kernel-step: {one / other:6.1f} times")
    print(f"objectives differ by {worst:.1e} of their value at most")
    print(f"multiplications alone would make it {arithmetic(traced, 4):.1f} times faster")
    ratio = naive / batched
    verdict = "met" if ratio >= TARGET and worst < 1e-3 else "NOT met"
    print(f"target: all kernels at least {TARGET:g} times faster at the same objective; figure: {ratio:.1f}; {verdict}")


if __name__ == "__main__":
    main()
