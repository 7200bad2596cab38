"""Receptive fields: which input elements a layer reads to make one output pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor, nn

from genmeasures.interfaces import PatchReader

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MEASURED: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
MeasuredModule: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
)


@dataclass(frozen=True)
class Geometry:
    """Kernel arithmetic of one layer on inputs of one spatial size; one entry a spatial dimension.

    A linear layer has no kernel: its patch is the input vector at the same position.
    """

    channels: int
    """Input channels."""
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    """Padding before the first element of each dimension."""
    padding_mode: str
    transposed: bool
    input_spatial: tuple[int, ...]
    output_spatial: tuple[int, ...]

    @property
    def patch_size(self) -> int:
        """D: input channels times kernel elements."""
        return self.channels * math.prod(self.kernel)

    def read(self, dimension: int) -> Tensor:
        """int64 (output size, kernel size): input index read along a dimension, −1 where it reads a zero."""
        size, kernel = self.input_spatial[dimension], self.kernel[dimension]
        stride, dilation, before = self.stride[dimension], self.dilation[dimension], self.before[dimension]
        out = torch.arange(self.output_spatial[dimension])[:, None]
        tap = torch.arange(kernel)[None, :] * dilation
        if self.transposed:
            # Element i of the input is written to outputs i·stride − padding + tap: solved for i.
            place = out + before - tap
            index = torch.div(place, stride, rounding_mode="floor")
            inside = (place % stride == 0) & (index >= 0) & (index < size)
            return torch.where(inside, index, -1)
        index = out * stride - before + tap
        if self.padding_mode == "circular":
            return index % size
        if self.padding_mode == "replicate":
            return index.clamp(0, size - 1)
        if self.padding_mode == "reflect":
            index = index.abs()
            return torch.where(index >= size, 2 * (size - 1) - index, index)
        return torch.where((index >= 0) & (index < size), index, -1)

    @cached_property
    def field(self) -> Tensor:
        """int64 (P, K): flattened input positions read for each flattened output position, −1 for zeros."""
        index = torch.zeros(1, 1, dtype=torch.int64)
        inside = torch.ones(1, 1, dtype=torch.bool)
        for dimension, size in enumerate(self.input_spatial):
            read = self.read(dimension)
            index = (index[:, None, :, None] * size + read.clamp(min=0)[None, :, None, :]).flatten(2).flatten(0, 1)
            inside = (inside[:, None, :, None] & (read >= 0)[None, :, None, :]).flatten(2).flatten(0, 1)
        return torch.where(inside, index, -1)


def geometry_of(module: MeasuredModule, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Geometry:
    """The geometry of a layer called with an input (B, …) of that shape."""
    if isinstance(module, nn.Linear):
        spatial = input_shape[1:-1]
        ones = (1,) * len(spatial)
        return Geometry(module.in_features, ones, ones, ones, (0,) * len(spatial), "zeros", False, spatial, spatial)
    kernel, stride, dilation = tuple(module.kernel_size), tuple(module.stride), tuple(module.dilation)
    padding = module.padding
    if padding == "same":
        # PyTorch puts the odd element at the end.
        before = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    elif padding == "valid":
        before = (0,) * len(kernel)
    else:
        before = tuple(int(p) for p in padding)
    return Geometry(
        module.in_channels,
        kernel,
        stride,
        dilation,
        before,
        module.padding_mode,
        isinstance(module, TRANSPOSED),
        input_shape[2:],
        output_shape[2:],
    )


class LayerReader(PatchReader):
    """Reads patches from the input tensor of one call of a layer."""

    def __init__(self, geometry: Geometry, layer_input: Tensor, channels_last: bool) -> None:
        self._geometry = geometry
        self._channels_last = channels_last
        self.input = layer_input

    def gather(self, rows: Tensor, positions: Tensor) -> Tensor:
        """float32 (n, D): for inputs ``rows`` (n,) of the batch and output ``positions`` (n,), in weight order (C, *kernel)."""
        batch = len(self.input)
        if self._channels_last:
            flat = self.input.reshape(batch, -1, self._geometry.channels)
            return flat[rows, positions]
        flat = self.input.flatten(2) if self.input.dim() > 2 else self.input[:, :, None]
        field = self._geometry.field.to(positions.device)[positions]
        # Channels last makes every element of a receptive field one contiguous run of channels.
        pixels = flat.transpose(1, 2).reshape(-1, self._geometry.channels)
        index = field.clamp(min=0) + rows[:, None] * flat.shape[2]
        patches = pixels[index]
        patches.masked_fill_((field < 0)[:, :, None], 0.0)
        return patches.transpose(1, 2).reshape(len(rows), -1)
