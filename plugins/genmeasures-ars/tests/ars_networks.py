"""Small networks and data that the tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmeasures.plugin import Layer, ModelData, TracedLayer, trace
from genmeasures.testing import layers_of, model_data


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
    return model_data(inputs, targets, batch_size=batch, seed=seed)


def traced(model: nn.Module, example: Tensor) -> list[TracedLayer]:
    return list(trace(model, example[:3], "activation").layers)


def layers(model: nn.Module, example: Tensor) -> list[Layer]:
    return layers_of(model, example[:3])
