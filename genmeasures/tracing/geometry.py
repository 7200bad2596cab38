"""Receptive fields: the input elements that a layer reads for each output position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MEASURED: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
MeasuredModule: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
)


@dataclass(frozen=True)
class Geometry:
    """Kernel arithmetic of a layer for one spatial input size; tuples have one entry per spatial dimension.

    A linear layer has no kernel: its patch is the input vector at the same position.

    Example:
        >>> geometry = geometry_of(nn.Conv2d(3, 8, 3, padding=1), (1, 3, 4, 4), (1, 8, 4, 4))
        >>> geometry.patch_size
        27
        >>> geometry.read(0)  # rows read by each output row, -1 for padding
        tensor([[-1,  0,  1],
                [ 0,  1,  2],
                [ 1,  2,  3],
                [ 2,  3, -1]])
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
        """Length D of a patch: input channels times kernel elements."""
        return self.channels * math.prod(self.kernel)

    @property
    def center(self) -> slice | None:
        """Where in a patch, in the order (*kernel, C), the pixel at its center is.

        None for kernels of even size, and for transposed convolutions, which read zeros between the pixels.
        """
        if self.transposed or any(size % 2 == 0 for size in self.kernel):
            return None
        start = math.prod(self.kernel) // 2 * self.channels
        return slice(start, start + self.channels)

    @property
    def after(self) -> tuple[int, ...]:
        """Padding after the last element of each dimension that a convolution reads, at least 0."""
        sizes = zip(self.output_spatial, self.stride, self.kernel, self.dilation, strict=True)
        reach = [(out - 1) * stride + dilation * (kernel - 1) + 1 for out, stride, kernel, dilation in sizes]
        return tuple(
            max(0, end - before - size)
            for end, before, size in zip(reach, self.before, self.input_spatial, strict=True)
        )

    def read(self, dimension: int) -> Tensor:
        """Return the input indices that are read along one dimension.

        Args:
            dimension: Index of the spatial dimension.

        Returns:
            int64 (output size, kernel size), −1 where a zero of the padding is read.
        """
        size, kernel = self.input_spatial[dimension], self.kernel[dimension]
        stride, dilation, before = self.stride[dimension], self.dilation[dimension], self.before[dimension]
        out = torch.arange(self.output_spatial[dimension], device="cpu")[:, None]
        offset = torch.arange(kernel, device="cpu")[None, :] * dilation
        if self.transposed:
            # Input element i is added to outputs i · stride − padding + offset, which is solved for i.
            numerator = out + before - offset
            index = torch.div(numerator, stride, rounding_mode="floor")
            inside = (numerator % stride == 0) & (index >= 0) & (index < size)
            return torch.where(inside, index, -1)
        index = out * stride - before + offset
        if self.padding_mode == "circular":
            return index % size
        if self.padding_mode == "replicate":
            return index.clamp(0, size - 1)
        if self.padding_mode == "reflect":
            index = index.abs()
            return torch.where(index >= size, 2 * (size - 1) - index, index)
        return torch.where((index >= 0) & (index < size), index, -1)

    @cached_property
    def _tables(self) -> tuple[Tensor, ...]:
        """Indices of :meth:`read` for each dimension, times the stride of the dimension in the flattened input."""
        tables = []
        for dimension in range(len(self.input_spatial)):
            read = self.read(dimension)
            # A zero in one dimension outweighs the other dimensions: the sum is negative wherever a zero is read.
            tables.append(
                torch.where(
                    read < 0, -math.prod(self.input_spatial), read * math.prod(self.input_spatial[dimension + 1 :])
                )
            )
        return tuple(tables)

    def field(self, positions: Tensor) -> Tensor:
        """Return the input positions that are read for some output positions.

        They are computed from a small table per dimension, because a table of all positions would be K times as
        large as the output of the layer.

        Args:
            positions: int64 (n,), flattened output positions.

        Returns:
            int64 (n, K) for K kernel elements: flattened input positions, negative where a zero is read.
        """
        index = positions.new_zeros(len(positions), 1)
        for dimension, table in enumerate(self._tables):
            coordinate = positions // math.prod(self.output_spatial[dimension + 1 :]) % self.output_spatial[dimension]
            index = (index[:, :, None] + table.to(positions.device)[coordinate][:, None, :]).flatten(1)
        return index


def geometry_of(module: MeasuredModule, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Geometry:
    """Compute the geometry of a layer from the shapes of one call.

    Args:
        module: The layer.
        input_shape: Shape of its input (B, …).
        output_shape: Shape of its output (B, …).

    Example:
        >>> geometry_of(nn.Linear(5, 2), (1, 5), (1, 2)).patch_size
        5
    """
    if isinstance(module, nn.Linear):
        spatial = input_shape[1:-1]
        ones = (1,) * len(spatial)
        return Geometry(module.in_features, ones, ones, ones, (0,) * len(spatial), "zeros", False, spatial, spatial)
    kernel, stride, dilation = tuple(module.kernel_size), tuple(module.stride), tuple(module.dilation)
    padding = module.padding
    if padding == "same":
        # If the total padding is odd, PyTorch adds the extra element at the end.
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


def follows_geometry(module: MeasuredModule, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> bool:
    """Whether the output has the shape that follows from the layer's options and its input.

    This is false for subclasses that pad, crop or add channels in their own forward method.

    Args:
        module: The layer.
        input_shape: Shape of its input (B, …).
        output_shape: Shape of its output (B, …).

    Example:
        >>> conv = nn.Conv2d(1, 2, 3)
        >>> follows_geometry(conv, (1, 1, 8, 8), (1, 2, 6, 6)), follows_geometry(conv, (1, 1, 8, 8), (1, 2, 8, 8))
        (True, False)
    """
    if isinstance(module, nn.Linear):
        return input_shape[-1] == module.in_features and output_shape == (*input_shape[:-1], module.out_features)
    if len(input_shape) != len(module.kernel_size) + 2 or len(output_shape) != len(input_shape):
        return False
    if input_shape[1] != module.in_channels or output_shape[1] != module.out_channels:
        return False
    padding = (0,) * len(module.kernel_size) if isinstance(module.padding, str) else module.padding
    options = zip(module.kernel_size, module.stride, module.dilation, padding, strict=True)
    for size, out, (kernel, stride, dilation, pad) in zip(input_shape[2:], output_shape[2:], options, strict=True):
        reach = dilation * (kernel - 1)
        if isinstance(module, TRANSPOSED):
            least = (size - 1) * stride - 2 * pad + reach + 1
            fits = least <= out < least + max(stride, dilation)  # output_padding, or output_size in the call
        elif module.padding == "same":
            fits = out == size
        else:
            fits = out == (size + 2 * pad - reach - 1) // stride + 1
        if not fits:
            return False
    return True
