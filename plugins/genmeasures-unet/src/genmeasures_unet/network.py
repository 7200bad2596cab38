"""A residual UNet for images and volumes of any size (Rajagopal et al. 2021, appendix A.2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmeasures.plugin import DataError, OptionError, is_count

_CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}

_DEEPEST = 12


class _Down(nn.Module):
    """Convolution of stride 2, group normalization and ReLU, added to the input at half its size."""

    def __init__(self, dimensions: int, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.conv = _CONVOLUTIONS[dimensions](channels, out_channels, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(groups, out_channels)
        self.activation = nn.ReLU()
        self.new_channels = out_channels - channels

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.activation(self.norm(self.conv(x)))
        # Every other position, and zero in the channels that the input does not have (He et al. 2016,
        # option A): a shortcut with weights would be one more layer to measure.
        shortcut = x[(slice(None), slice(None), *[slice(None, None, 2)] * (x.dim() - 2))]
        zeros = shortcut.new_zeros(len(x), self.new_channels, *shortcut.shape[2:])
        return made + torch.cat([shortcut, zeros], 1)


class _Up(nn.Module):
    """Transposed convolution of stride 2, group normalization and ReLU, added to the input at twice its size."""

    def __init__(self, dimensions: int, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.conv = _TRANSPOSED[dimensions](channels, out_channels, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(groups, out_channels)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor, size: list[int]) -> Tensor:
        """The spatial size is twice that of the input, or one less."""
        made: Tensor = self.activation(self.norm(self.conv(x, output_size=size)))
        folded = x.unflatten(1, (made.shape[1], -1)).mean(2)
        twice = nn.functional.interpolate(folded, scale_factor=2.0, mode="nearest")
        return made + twice[(slice(None), slice(None), *[slice(side) for side in size])]


class ResidualUNet(nn.Module):
    """Encoder and decoder of ``depth`` stages each, joined by skip connections, and a last convolution.

    Every stage is one 3×3(×3) convolution, of stride 2 in the encoder and transposed in the decoder,
    with group normalization, ReLU and a shortcut without weights around all three. So a network of
    the paper's depth 5 has 11 layers with weights, which are the 11 that are measured. Stage i of the
    encoder has ``width · 2^(i − 1)`` channels at 1/2^i of the resolution; sides that are not
    divisible by 2 are rounded up, and any size of image goes through.

    Args:
        dimensions: 2 for images, 3 for volumes.
        channels: of the input.
        out_channels: of the output, which is bare: logits, or values of a regression.
        width: channels of the first stage, divisible by ``groups``.
        depth: number of stages of the encoder, and of the decoder.
        groups: of the group normalization (paper: 4).

    Input float32 (B, channels, *S), output float32 (B, out_channels, *S). Initial weights are torch's
    own, from its global generator. Raises OptionError where an option is out of range.
    """

    def __init__(
        self,
        dimensions: int = 3,
        channels: int = 1,
        out_channels: int = 1,
        width: int = 8,
        depth: int = 5,
        groups: int = 4,
    ) -> None:
        super().__init__()
        if dimensions not in _CONVOLUTIONS:
            raise OptionError(f"ResidualUNet: dimensions={dimensions!r} must be 2 or 3")
        named = {"channels": channels, "out_channels": out_channels, "width": width, "depth": depth, "groups": groups}
        for name, value in named.items():
            if not is_count(value):
                raise OptionError(f"ResidualUNet: {name}={value!r} must be an integer from 1")
        if depth > _DEEPEST:
            raise OptionError(
                f"ResidualUNet: depth={depth} must be at most {_DEEPEST}: every stage doubles the channels"
            )
        if width % groups or width == groups:
            raise OptionError(f"ResidualUNet: width={width} must be a multiple of groups={groups}, and more than that")
        if channels > width:
            raise OptionError(f"ResidualUNet: width={width} must be at least the number of input channels, {channels}")
        self.dimensions = dimensions
        self.channels = channels
        widths = [width * 2**stage for stage in range(depth)]
        down_channels = [channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            _Down(dimensions, before, after, groups) for before, after in zip(down_channels, widths, strict=True)
        )
        # The deepest stage of the decoder has no skip connection yet, the others twice the channels.
        up_channels = [widths[-1], *(2 * w for w in reversed(widths[:-1]))]
        self.decoder = nn.ModuleList(
            _Up(dimensions, before, after, groups)
            for before, after in zip(up_channels, [*reversed(widths[:-1]), width], strict=True)
        )
        self.head = _CONVOLUTIONS[dimensions](width, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The output at the size of the input; raises DataError where the input has another shape than (B, C, *S)."""
        if x.dim() != self.dimensions + 2 or x.shape[1] != self.channels:
            raise DataError(
                f"ResidualUNet: the input has the shape {tuple(x.shape)}, expected is (batch, {self.channels}, "
                f"and {self.dimensions} spatial sides)"
            )
        sizes, passed = [], []
        for down in self.encoder:
            sizes.append(list(x.shape[2:]))
            x = down(x)
            passed.append(x)
        passed.pop()
        for up in self.decoder:
            x = up(x, sizes.pop())
            if passed:
                x = torch.cat([x, passed.pop()], 1)
        made: Tensor = self.head(x)
        return made


__all__ = ["ResidualUNet"]
