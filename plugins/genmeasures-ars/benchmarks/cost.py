"""Cost of the ascents of ARS, batched and kernel by kernel: ``python benchmarks/cost.py`` (about five minutes).

The network is the paper's shallow VGG-like CNN: 3×3 convolutions with 64, 64, 128 and 128 kernels, ReLU, max pooling
after every second convolution, images 3×32×32. The baseline treats each kernel separately: forward passes of the whole
network, and 1500 steps of equal length along the gradient of the objective with respect to the input. It is run for a
few kernels of each layer, and the time is extrapolated to all. The measure runs all kernels. The speedup counts only if
the measure reaches an equally high objective.
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
"""Number of kernels per layer that the baseline runs."""
TARGET = 10.0
AS_HIGH = 0.99
"""Minimum ratio of the summed objectives of a layer to those of the baseline."""
MEMORY = 256 * 2**20


def shallow_cnn() -> nn.Sequential:
    """A CNN with 64, 64, 128 and 128 kernels and random weights."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for channels, kernels, pool in ((3, 64, False), (64, 64, True), (64, 128, False), (128, 128, True)):
        parts += [nn.Conv2d(channels, kernels, 3, padding=1), nn.ReLU()]
        if pool:
            parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(128 * 64, 256), nn.ReLU(), nn.Linear(256, 10)).eval()


def baseline(model: nn.Module, layer: nn.Module, noise: Tensor, kernel: int, steps: int) -> float:
    """The objective of IAM for one kernel after the last step, with passes of the whole network."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _args, output: kept.append(output.relu()))
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


def batched(model: nn.Module, layer: TracedLayer, noise: Tensor, lengths: Sequence[float]) -> Tensor:
    """The objectives (I,) of IAM for all kernels of a layer."""
    ascents = []
    with truncated(model, layer) as run:
        kernels = torch.arange(layer.layer.channels, device=noise.device)
        batch = fitting_batch(run, noise[None], list(model.parameters()), MEMORY)
        for chunk in kernels.split(batch):
            start = noise.expand(len(chunk), *noise.shape)
            ascents.append(ascend(run, start, chunk, "iam", lengths))
    return torch.cat([ascent.objective for ascent in ascents])


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
    print(f"{torch.get_num_threads()} thread(s), {device}, {steps} steps or {len(lengths)} strides of the same path")
    slow = fast = 0.0
    lowest = float("inf")
    for layer in layers:
        number = layer.layer.channels
        chosen = torch.linspace(0, number - 1, SUBSET).long().tolist()
        begin = clock(device)
        reached = sum(baseline(model, layer.module, noise, kernel, steps) for kernel in chosen)
        before = (clock(device) - begin) / SUBSET * number
        begin = clock(device)
        values = batched(model, layer, noise, lengths)
        after = clock(device) - begin
        as_high = float(values[chosen].sum()) / reached
        lowest = min(lowest, as_high)
        slow, fast = slow + before, fast + after
        print(
            f"{number} kernels ({layer.layer.name}): {before:.0f} s and {after:.1f} s, {before / after:.0f} times "
            f"faster, objectives {as_high:.3f} of the baseline's",
            flush=True,
        )
    ratio = slow / fast
    verdict = "met" if ratio >= TARGET and lowest >= AS_HIGH else "NOT met"
    print(f"target: at least {TARGET:g} times faster at an equally high objective; measured: {ratio:.1f}; {verdict}")


if __name__ == "__main__":
    main()
