"""What Keras layers do that no module of PyTorch does, for inputs (B, C, *S) whose order in Keras is (B, *S, C)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}

Padding = tuple[tuple[int, int], ...]
"""Before and after, for each spatial dimension."""


def same_padding(sizes: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> Padding:
    """Keras's "same": ⌈size/stride⌉ outputs, an odd pixel at the end. window: the effective one, dilation included."""
    made = []
    for size, wide, stride in zip(sizes, window, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + wide - size, 0)
        made.append((total // 2, total - total // 2))
    return tuple(made)


def output_sizes(
    sizes: Sequence[int], padding: Padding, window: Sequence[int], strides: Sequence[int]
) -> tuple[int, ...]:
    """Sizes of what a window gives; 0 or less where it does not fit."""
    return tuple(
        (size + sum(pad) - wide) // stride + 1
        for size, pad, wide, stride in zip(sizes, padding, window, strides, strict=True)
    )


def symmetric(padding: Padding) -> tuple[int, ...] | None:
    """The padding of each dimension where it is the same on both sides, else None."""
    return tuple(before for before, _ in padding) if all(before == after for before, after in padding) else None


class Pad(nn.Module):
    """Adds a value around (B, C, *S)."""

    def __init__(self, padding: Padding, value: float = 0.0) -> None:
        super().__init__()
        self.padding = [number for pair in reversed(padding) for number in pair]
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        padded: Tensor = nn.functional.pad(x, self.padding, value=self.value)
        return padded

    def extra_repr(self) -> str:
        return f"{self.padding}, value={self.value}"


class PaddedAverage(nn.Module):
    """Average pooling that leaves out padding, more of it at the end than at the beginning."""

    def __init__(self, window: tuple[int, ...], strides: tuple[int, ...], padding: Padding) -> None:
        super().__init__()
        self.pad = Pad(padding)
        self.pool: nn.Module = AVERAGE_POOL[len(window)](window, strides)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.pool(self.pad(torch.ones_like(x[:1, :1])))
        averaged: Tensor = self.pool(self.pad(x)) / inside
        return averaged


class Flatten(nn.Module):
    """(B, C, *S) to (B, ∏S·C), channels last as Keras has them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1).flatten(1)


class Reshape(nn.Module):
    """(B, C, *S) to the channels-first form of a Keras shape (*S', C')."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1).reshape(len(x), *self.shape).movedim(-1, 1)

    def extra_repr(self) -> str:
        return str(self.shape)


class GlobalAverage(nn.Module):
    """(B, C, *S) to the means (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


class GlobalMax(nn.Module):
    """(B, C, *S) to the largest values (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).amax(2)
