"""Networks and images of the benchmarks. Random weights and smooth random images cost as much as trained weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


def vgg() -> nn.Module:
    """VGG with ReLU and the layers 64, 64, M, 128, 128, M, 256, 256, M, 512, 512 (M: max pooling)."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
        else:
            convolution = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


class _Block(nn.Module):
    """Two 3×3×3 convolutions with group normalization and a residual connection; the first may halve the size."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(inside, outside, 3, stride, 1)
        self.norm = nn.GroupNorm(4, outside)
        self.second = nn.Conv3d(outside, outside, 3, 1, 1)
        self.norm2 = nn.GroupNorm(4, outside)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return torch.relu(x + self.norm2(self.second(x)))


class UNet3D(nn.Module):
    """3D residual UNet with 3×3×3 kernels and stride 2 downwards, transposed convolutions upwards."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter = _Block(1, width, 1)
        self.down = nn.ModuleList(_Block(width * 2**i, width * 2 ** (i + 1), 2) for i in range(3))
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(width * 2 ** (i + 1), width * 2**i, 3, 2, 1, 1) for i in reversed(range(3))
        )
        self.merge = nn.ModuleList(_Block(width * 2 ** (i + 1), width * 2**i, 1) for i in reversed(range(3)))
        self.leave = nn.Conv3d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), torch.relu(up(x))], 1))
        out: Tensor = self.leave(x)
        return out


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Smooth random images with classes, generated from their index on access: none is held in memory."""

    def __init__(self, count: int, shape: tuple[int, ...], seed: int) -> None:
        self._count, self._shape, self._seed = count, shape, seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index >= self._count:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        coarse = torch.randn(1, self._shape[0], *(max(2, size // 8) for size in self._shape[1:]), generator=generator)
        mode = "trilinear" if len(self._shape) == 4 else "bilinear"
        smooth = nn.functional.interpolate(coarse, size=self._shape[1:], mode=mode)[0]
        return smooth + 0.1 * torch.randn(self._shape, generator=generator), torch.tensor(index % 10)


def tensors(count: int, shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """All images and classes at once."""
    samples = [Images(count, shape, seed)[index] for index in range(count)]
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])
