"""Small networks and data that the tests share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from genmeasures.plugin import DataError, Layer, ModelData
from genmeasures.tracing import TracedLayer, trace


def small(norm: bool = False, seed: int = 0) -> nn.Sequential:
    """Two convolutions (5 and 6 kernels), ReLU written in place, a linear layer; images (B, 2, 6, 6)."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = [nn.Conv2d(2, 5, 3, padding=1)]
    if norm:
        parts.append(nn.BatchNorm2d(5))
        parts[-1].running_mean.normal_()
    parts += [nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(6 * 9, 4)).eval()


def images(count: int = 40, seed: int = 1) -> tuple[Tensor, Tensor]:
    """float32 (N, 2, 6, 6) and classes int64 (N, 1) of 4."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 6, 6, generator=generator), torch.arange(count)[:, None] % 4


def data(inputs: Tensor, targets: Tensor | None, seed: int = 0, batch: int = 16) -> ModelData:
    """Both splits are the same inputs."""

    def batches(split: str):
        if split not in ("train", "test"):
            raise DataError(split)
        for start in range(0, len(inputs), batch):
            stop = start + batch
            yield inputs[start:stop], None if targets is None else targets[start:stop]

    return ModelData(
        batches=batches,
        sample=lambda split, count: (inputs[:count], None if targets is None else targets[:count]),
        order=lambda split: np.arange(len(inputs)),
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(seed),
    )


def traced(model: nn.Module, example: Tensor) -> list[TracedLayer]:
    return list(trace(model, example[:3], "activation").layers)


def layers(model: nn.Module, example: Tensor) -> list[Layer]:
    return [one.layer for one in traced(model, example)]
