"""What ARS's ascents cost, side by side and kernel by kernel: ``python benchmarks/cost.py`` (some five minutes).

The network is the paper's shallow CNN in the manner of VGG: convolutions 3×3 with 64, 64, 128 and 128
kernels, ReLU, a pool after every second, images 3×32×32. The slow loop is the plain way: each kernel
by itself, the whole network forward, 1500 steps of one length along the gradient of the objective with
respect to the input; it is run for a few kernels of each layer, and counted for all. The fast way is
that of the measure, for all kernels. It counts only where it ends at an objective as high.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from genmeasures_ars import ascend, fitting_batch, strides, truncated
from torch import Tensor, nn

from genmeasures.plugin import TracedLayer, trace

STEPS = 1500
STEP_SIZE = 0.1
GROWTH = 0.04
SUBSET = 3
"""Kernels of each layer that the slow loop is run for."""
TARGET = 10.0
AS_HIGH = 0.99
"""What the objectives of a layer's kernels, summed, must reach of the slow loop's."""
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


def slow(model: nn.Module, layer: nn.Module, noise: Tensor, kernel: int, steps: int) -> float:
    """IAM for one kernel through the whole network; the objective after the last step."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _given, output: kept.append(output.relu()))
    x = noise[None].clone()
    try:
        for step in range(steps + 1):
            x.requires_grad_()
            model(x)
            means = kept.pop()[0].mean(dim=(1, 2))
            value = means[kernel] - (means.sum() - means[kernel]) / len(means)
            if step == steps:
                break
            (gradient,) = torch.autograd.grad(value, x)
            x = (x + STEP_SIZE * gradient / gradient.square().mean().sqrt()).detach()
    finally:
        handle.remove()
    return float(value.detach())


def fast(model: nn.Module, layer: TracedLayer, noise: Tensor, lengths: Sequence[float]) -> Tensor:
    """IAM for all kernels of a layer: the objectives (I,)."""
    made = []
    with truncated(model, layer) as run:
        kernels = torch.arange(layer.layer.channels, device=noise.device)
        batch = fitting_batch(run, noise[None], list(model.parameters()), MEMORY)
        for chunk in kernels.split(batch):
            start = noise.expand(len(chunk), *noise.shape)
            made.append(ascend(run, start, chunk, "iam", lengths))
    return torch.cat([one.objective for one in made])


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    device, steps = torch.device(options.device), options.steps
    model = shallow_cnn().to(device)
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    layers = trace(model, noise.expand(3, 3, 32, 32), "activation").layers[:4]
    lengths = strides(steps, STEP_SIZE, GROWTH)
    print(f"{torch.get_num_threads()} thread(s), {device}, {steps} steps or {len(lengths)} strides, both the same way")
    naive = whole = 0.0
    lowest = float("inf")
    for layer in layers:
        number = layer.layer.channels
        chosen = torch.linspace(0, number - 1, SUBSET).long().tolist()
        begin = clock(device)
        reached = sum(slow(model, layer.module, noise, kernel, steps) for kernel in chosen)
        one = (clock(device) - begin) / SUBSET * number
        begin = clock(device)
        values = fast(model, layer, noise, lengths)
        other = clock(device) - begin
        as_high = float(values[chosen].sum()) / reached
        lowest = min(lowest, as_high)
        naive, whole = naive + one, whole + other
        print(
            f"{number} kernels ({layer.layer.name}): {one:.0f} s and {other:.1f} s, {one / other:.0f} times faster, "
            f"objectives {as_high:.3f} of the slow loop's",
            flush=True,
        )
    ratio = naive / whole
    verdict = "met" if ratio >= TARGET and lowest >= AS_HIGH else "NOT met"
    print(f"target: at least {TARGET:g} times faster at an objective as high; figure: {ratio:.1f}; {verdict}")


if __name__ == "__main__":
    main()
