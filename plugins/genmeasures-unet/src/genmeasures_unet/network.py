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
        features: Tensor = self.activation(self.norm(self.conv(x)))
        # Every other position, and zeros in the channels that the input lacks (He et al. 2016, option A): a shortcut
        # with weights would be another layer to measure.
        shortcut = x[(slice(None), slice(None), *[slice(None, None, 2)] * (x.dim() - 2))]
        zeros = shortcut.new_zeros(len(x), self.new_channels, *shortcut.shape[2:])
        return features + torch.cat([shortcut, zeros], 1)


class _Up(nn.Module):
    """Transposed convolution of stride 2, group normalization and ReLU, added to the input at twice its size."""

    def __init__(self, dimensions: int, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.conv = _TRANSPOSED[dimensions](channels, out_channels, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(groups, out_channels)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor, size: list[int]) -> Tensor:
        """``size`` is twice the spatial size of the input, or one less."""
        features: Tensor = self.activation(self.norm(self.conv(x, output_size=size)))
        folded = x.unflatten(1, (features.shape[1], -1)).mean(2)
        twice = nn.functional.interpolate(folded, scale_factor=2.0, mode="nearest")
        return features + twice[(slice(None), slice(None), *[slice(side) for side in size])]


class ResidualUNet(nn.Module):
    """Residual UNet: encoder and decoder with skip connections, and a final convolution.

    Each stage is one 3×3(×3) convolution (stride 2 in the encoder, transposed in the decoder) with group
    normalization and ReLU, and a shortcut without weights around all three. A network of the paper's depth 5 has 11
    layers with weights, the 11 that the paper measures. Stage i of the encoder has ``width · 2^(i − 1)`` channels at
    1/2^i of the resolution. Odd sides are rounded up, so that inputs of any size are accepted.

    The input is float32 (B, ``channels``, ``*S``) and the output float32 (B, ``out_channels``, ``*S``). Weights are
    initialized by torch's defaults, from its global generator.

    Args:
        dimensions: 2 for images, 3 for volumes.
        channels: number of input channels.
        out_channels: number of output channels, without an activation: logits, or the values of a regression.
        width: channels of the first stage, a multiple of ``groups``.
        depth: number of stages in the encoder, and in the decoder.
        groups: groups of the group normalization (4 in the paper).

    Raises:
        OptionError: an option is out of range.

    Example:
        >>> network = ResidualUNet(dimensions=2, depth=2)
        >>> network(torch.zeros(1, 1, 20, 17)).shape
        torch.Size([1, 1, 20, 17])
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
            raise OptionError(f"ResidualUNet: dimensions must be 2 or 3, got {dimensions!r}")
        named = {"channels": channels, "out_channels": out_channels, "width": width, "depth": depth, "groups": groups}
        for name, value in named.items():
            if not is_count(value):
                raise OptionError(f"ResidualUNet: {name} must be a positive integer, got {value!r}")
        if depth > _DEEPEST:
            raise OptionError(
                f"ResidualUNet: depth must be at most {_DEEPEST}, since each stage doubles the channels, got {depth}"
            )
        if width % groups or width == groups:
            raise OptionError(f"ResidualUNet: width must be a multiple of groups={groups} and larger, got {width}")
        if channels > width:
            raise OptionError(f"ResidualUNet: width must be at least channels={channels}, got {width}")
        self.dimensions = dimensions
        self.channels = channels
        widths = [width * 2**stage for stage in range(depth)]
        down_channels = [channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            _Down(dimensions, before, after, groups) for before, after in zip(down_channels, widths, strict=True)
        )
        # The deepest stage of the decoder has no skip connection; the others have twice the channels.
        up_channels = [widths[-1], *(2 * w for w in reversed(widths[:-1]))]
        self.decoder = nn.ModuleList(
            _Up(dimensions, before, after, groups)
            for before, after in zip(up_channels, [*reversed(widths[:-1]), width], strict=True)
        )
        self.head = _CONVOLUTIONS[dimensions](width, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output, at the size of the input.

        Args:
            x: float32 (B, ``channels``, ``*S``).

        Returns:
            float32 (B, ``out_channels``, ``*S``).

        Raises:
            DataError: ``x`` has another shape.
        """
        if x.dim() != self.dimensions + 2 or x.shape[1] != self.channels:
            raise DataError(
                f"ResidualUNet: expected an input of shape (batch, {self.channels}, {self.dimensions} spatial sides), "
                f"got {tuple(x.shape)}"
            )
        sizes, skips = [], []
        for down in self.encoder:
            sizes.append(list(x.shape[2:]))
            x = down(x)
            skips.append(x)
        skips.pop()
        for up in self.decoder:
            x = up(x, sizes.pop())
            if skips:
                x = torch.cat([x, skips.pop()], 1)
        output: Tensor = self.head(x)
        return output


__all__ = ["ResidualUNet"]
