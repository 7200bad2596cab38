"""PyTorch modules for Keras layers that PyTorch lacks.

Inputs are channels first, (B, C, *S), where Keras has channels last, (B, *S, C).
"""

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
"""Padding before and after the values of each spatial dimension."""


def same_padding(sizes: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> Padding:
    """Padding of Keras's ``padding="same"``: ⌈size/stride⌉ outputs, an odd element at the end.

    Args:
        sizes: spatial sizes of the input.
        window: spatial sizes of the window, dilation included.
        strides: strides of the window.

    Example:
        >>> same_padding((5, 4), (3, 2), (2, 1))
        ((1, 1), (0, 1))
    """
    padding = []
    for size, width, stride in zip(sizes, window, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + width - size, 0)
        padding.append((total // 2, total - total // 2))
    return tuple(padding)


def output_sizes(
    sizes: Sequence[int], padding: Padding, window: Sequence[int], strides: Sequence[int]
) -> tuple[int, ...]:
    """Spatial sizes of the output of a window; 0 or less where the window does not fit.

    Args:
        sizes: spatial sizes of the input.
        padding: padding of the input.
        window: spatial sizes of the window, dilation included.
        strides: strides of the window.

    Example:
        >>> output_sizes((5, 4), ((1, 1), (0, 1)), (3, 2), (2, 1))
        (3, 4)
    """
    return tuple(
        (size + sum(pad) - width) // stride + 1
        for size, pad, width, stride in zip(sizes, padding, window, strides, strict=True)
    )


def symmetric(padding: Padding) -> tuple[int, ...] | None:
    """The padding per dimension if it is the same on both sides, else None.

    Example:
        >>> symmetric(((1, 1), (2, 2)))
        (1, 2)
        >>> symmetric(((0, 1),)) is None
        True
    """
    return tuple(before for before, _ in padding) if all(before == after for before, after in padding) else None


class Pad(nn.Module):
    """Constant padding of the spatial dimensions of (B, C, *S).

    Example:
        >>> Pad(((1, 0),))(torch.ones(1, 1, 2))
        tensor([[[0., 1., 1.]]])
    """

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
    """Average pooling with asymmetric padding, which is excluded from the averages.

    Example:
        >>> PaddedAverage((2,), (1,), ((0, 1),))(torch.tensor([[[1.0, 3.0]]]))
        tensor([[[2., 3.]]])
    """

    def __init__(self, window: tuple[int, ...], strides: tuple[int, ...], padding: Padding) -> None:
        super().__init__()
        self.pad = Pad(padding)
        self.pool: nn.Module = AVERAGE_POOL[len(window)](window, strides)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.pool(self.pad(torch.ones_like(x[:1, :1])))
        averaged: Tensor = self.pool(self.pad(x)) / inside
        return averaged


class Flatten(nn.Module):
    """(B, C, *S) to (B, ∏S·C), flattened with channels last as in Keras.

    Example:
        >>> Flatten()(torch.tensor([[[1, 2], [3, 4]]]))
        tensor([[1, 3, 2, 4]])
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1).flatten(1)


class Reshape(nn.Module):
    """(B, C, *S) to (B, C', *S'), for a Keras shape (*S', C').

    Example:
        >>> Reshape((3, 2))(torch.zeros(1, 6)).shape
        torch.Size([1, 2, 3])
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1).reshape(len(x), *self.shape).movedim(-1, 1)

    def extra_repr(self) -> str:
        return str(self.shape)


class GlobalAverage(nn.Module):
    """(B, C, *S) to the averages (B, C).

    Example:
        >>> GlobalAverage()(torch.tensor([[[1.0, 3.0]]]))
        tensor([[2.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


class GlobalMax(nn.Module):
    """(B, C, *S) to the maxima (B, C).

    Example:
        >>> GlobalMax()(torch.tensor([[[1.0, 3.0]]]))
        tensor([[3.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).amax(2)
