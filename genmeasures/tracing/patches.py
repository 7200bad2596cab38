"""Reads patches from a layer's input: gathered, or summed and compared by convolutions that unfold nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from genmeasures.interfaces import PatchReader, PatchSet
from genmeasures.statistics.clusters import cluster_sums, expanded, is_far, nearly_zero, square_distances
from genmeasures.tracing.geometry import Geometry

_BLOCK_BYTES = 1 << 23
"""Patches gathered at a time: they stay in cache between gathering and use."""
_LANES = 8
"""Output channels of a convolution are padded to a multiple of this, for which there are fast kernels."""
_GATHER_COST = 32
"""Cost of gathering an element and using it, in multiplications of a convolution."""

_RUN = 1 << 14
"""Output positions whose patches are summed in float32 at a time, where single inputs or their slices are no larger."""

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class LayerReader(PatchReader):
    """Reads patches from the input tensor of one call of a layer."""

    def __init__(self, geometry: Geometry, layer_input: Tensor, channels_last: bool) -> None:
        self.geometry = geometry
        self.channels_last = channels_last
        self.input = layer_input

    def receptive_fields(self, rows: Tensor, positions: Tensor) -> PatchSet:
        return ReceptiveFields(self, rows, positions)

    def whole(self, rows: Tensor) -> PatchSet:
        return WholeInputs(self, rows)

    def gather(self, rows: Tensor, positions: Tensor) -> Tensor:
        """float32 (n, D): for inputs ``rows`` (n,) and output ``positions`` (n,), in the order (*kernel, C)."""
        channels = self.geometry.channels
        if self.channels_last:
            return self.input.reshape(len(self.input), -1, channels)[rows, positions].float()
        field = self.geometry.field(positions)
        zeros = (field < 0).flatten().nonzero()[:, 0]
        size = math.prod(self.geometry.input_spatial)
        # A pixel's channels are copied in one run: with channels innermost nothing has to be transposed.
        patches = self._pixels().index_select(0, (field.clamp_(min=0) + rows[:, None] * size).flatten())
        patches.index_fill_(0, zeros, 0.0)
        return patches.view(len(rows), -1).float()

    def _pixels(self) -> Tensor:
        """(B · positions, C): the input with channels innermost; a copy takes the input's place."""
        pixels = self.input.flatten(2).transpose(1, 2).contiguous()
        self.input = pixels.transpose(1, 2).unflatten(2, self.geometry.input_spatial)
        return pixels.flatten(0, 1)


class StoredPatches(PatchSet):
    """Patches that have been unfolded, float32 (n, D)."""

    def __init__(self, patches: Tensor) -> None:
        self._patches = patches

    def unfold(self) -> Tensor:
        return self._patches

    def select(self, rows: Tensor) -> PatchSet:
        return StoredPatches(self._patches[rows])

    def cluster_sums(self, labels: Tensor, k: int) -> Tensor:
        return cluster_sums(self._patches, labels, k)

    def square_distances(self, centroids: Tensor, labels: Tensor) -> Tensor:
        return square_distances(self._patches, centroids, labels)


class WholeInputs(PatchSet):
    """Whole inputs of a layer, flattened in the order (*spatial, channels)."""

    def __init__(self, reader: LayerReader, rows: Tensor) -> None:
        self._reader = reader
        self._rows = rows

    def unfold(self) -> Tensor:
        given = self._reader.input
        whole = (given if self._reader.channels_last else given.movedim(1, -1)).flatten(1)
        return (whole if len(self._rows) == len(whole) else whole.index_select(0, self._rows)).float()

    def select(self, rows: Tensor) -> PatchSet:
        return WholeInputs(self._reader, self._rows[rows])

    def cluster_sums(self, labels: Tensor, k: int) -> Tensor:
        return cluster_sums(self.unfold(), labels, k)

    def square_distances(self, centroids: Tensor, labels: Tensor) -> Tensor:
        return square_distances(self.unfold(), centroids, labels)


class ReceptiveFields(PatchSet):
    """Receptive fields of output positions (n,) of the inputs ``rows`` (n,), ascending.

    Where most positions of the inputs are among them, p·c of all of them is one convolution with
    the centroids as kernels, ‖p‖² a box filter over the pixels' square norms, and the sums by
    cluster are the weight gradient of that convolution; else the patches are gathered in blocks.
    """

    def __init__(self, reader: LayerReader, rows: Tensor, positions: Tensor) -> None:
        self._reader = reader
        self._rows = rows
        self._positions = positions

    def unfold(self) -> Tensor:
        return self._reader.gather(self._rows, self._positions)

    def select(self, rows: Tensor) -> PatchSet:
        return ReceptiveFields(self._reader, self._rows[rows], self._positions[rows])

    def cluster_sums(self, labels: Tensor, k: int) -> Tensor:
        if self._is_dense(k):
            return self._dense().cluster_sums(self._rows - self._first, self._positions, labels, k)
        sums = labels.new_zeros((k, self._reader.geometry.patch_size), dtype=torch.float64)
        for part, patches in self._blocks():
            cluster_sums(patches, labels[part], k, out=sums)
        return sums

    def square_distances(self, centroids: Tensor, labels: Tensor) -> Tensor:
        if not self._is_dense(len(centroids)):
            parts = [square_distances(patches, centroids, labels[part]) for part, patches in self._blocks()]
            return torch.cat(parts)
        made, near = self._dense().square_distances(self._rows - self._first, self._positions, centroids, labels)
        for rows in near.nonzero()[:, 0].split(self._block_rows) if bool(near.any()) else ():
            patches = self._reader.gather(self._rows[rows], self._positions[rows])
            made[rows] = square_distances(patches, centroids, labels[rows])
        return made

    @property
    def _first(self) -> int:
        return int(self._rows[0])

    @property
    def _block_rows(self) -> int:
        return max(1, _BLOCK_BYTES // (4 * self._reader.geometry.patch_size))

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self._rows), self._block_rows):
            part = slice(start, start + self._block_rows)
            yield part, self._reader.gather(self._rows[part], self._positions[part])

    def _is_dense(self, k: int) -> bool:
        geometry = self._reader.geometry
        if geometry.transposed or self._reader.channels_last or self._reader.input.dtype != torch.float32:
            return False
        inputs = int(self._rows[-1]) - self._first + 1
        everywhere = inputs * math.prod(geometry.output_spatial) * _lanes(k)
        return len(self._rows) * _GATHER_COST * 2 >= everywhere

    def _dense(self) -> _Dense:
        last = int(self._rows[-1])
        return _Dense(self._reader.geometry, self._reader.input[self._first : last + 1])


class _Dense:
    """All receptive fields of a stack of inputs (B, C, *S), by convolutions."""

    def __init__(self, geometry: Geometry, pixels: Tensor) -> None:
        self._geometry = geometry
        self._spatial = len(geometry.kernel)
        self._padding = geometry.before
        one = pixels[0].double().flatten(1)
        mean = one.mean(1)
        far = is_far(float(one.square().sum(0).mean()), float(mean.square().sum()))
        if far or geometry.padding_mode != "zeros" or not _pads_alike(geometry):
            pads = [pad for pair in zip(geometry.before[::-1], geometry.after[::-1], strict=True) for pad in pair]
            pixels = F.pad(pixels, pads, mode=_PAD_MODES[geometry.padding_mode])
            self._padding = (0,) * self._spatial
        # Zeros outside the input are moved too: what a patch holds is what is centered.
        self._origin = mean.to(pixels.dtype) if far else None
        self._pixels = pixels if self._origin is None else pixels - self._shaped(self._origin)

    def cluster_sums(self, rows: Tensor, positions: Tensor, labels: Tensor, k: int) -> Tensor:
        lanes = _lanes(k)
        positions_each = math.prod(self._geometry.output_spatial)
        member = self._pixels.new_zeros(len(self._pixels), positions_each, lanes)
        member[rows, positions, labels] = 1
        grad = member.transpose(1, 2).unflatten(2, self._geometry.output_spatial)
        sums = self._pixels.new_zeros((lanes, 2 * self._geometry.channels, *self._geometry.kernel), dtype=torch.float64)
        top = float(self._pixels.abs().max())
        for pixels, members, padding in self._runs(grad):
            sums += self._sums(_split(pixels, top, members[:, 0].numel()), members, padding)
        high, low = sums[:k].movedim(1, -1).chunk(2, -1)
        made: Tensor = (high + low).flatten(1)
        if self._origin is not None:
            made += torch.bincount(labels, minlength=k)[:, None] * self._tiled(self._origin)
        return made

    def _sums(self, pixels: Tensor, members: Tensor, padding: tuple[int, ...]) -> Tensor:
        """(lanes, C, *kernel): sums of the patches of pixels (B, C, *S) by members (B, lanes, *outputs)."""
        geometry = self._geometry
        kernels = pixels.new_empty(members.shape[1], pixels.shape[1], *geometry.kernel)
        _, sums, _ = torch.ops.aten.convolution_backward(
            members, pixels, kernels, None, geometry.stride, padding, geometry.dilation,
            False, [0] * self._spatial, 1, [False, True, False],
        )  # fmt: skip
        made: Tensor = sums
        return made

    def _runs(self, members: Tensor) -> Iterator[tuple[Tensor, Tensor, tuple[int, ...]]]:
        """Some inputs, or slices of one along its first axis, with their members and padding."""
        rows, each = members.shape[2], members[0, 0].numel()
        if each <= _RUN:
            for pixels, some in zip(self._pixels.split(_RUN // each), members.split(_RUN // each), strict=True):
                yield pixels, some, self._padding
            return
        geometry, padding = self._geometry, (0, *self._padding[1:])
        after = geometry.after[0] if self._padding[0] else 0
        padded = F.pad(self._pixels, (*[0, 0] * (self._spatial - 1), self._padding[0], after))
        stride, reach = geometry.stride[0], geometry.dilation[0] * (geometry.kernel[0] - 1) + 1
        size = max(1, _RUN * rows // each)
        for one in range(len(padded)):
            for start in range(0, rows, size):
                stop = min(start + size, rows)
                pixels = padded[one : one + 1, :, start * stride : (stop - 1) * stride + reach]
                yield pixels, members[one : one + 1, :, start:stop], padding

    def square_distances(
        self, rows: Tensor, positions: Tensor, centroids: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """float64 (n,), and bool (n,) where they are too small to come from an expansion."""
        rounded = centroids.to(self._pixels.dtype)
        if self._origin is not None:
            rounded = (centroids - self._tiled(self._origin)).to(self._pixels.dtype)
        kernels = self._pixels.new_zeros(_lanes(len(centroids)), self._geometry.channels, *self._geometry.kernel)
        kernels[: len(centroids)] = rounded.view(len(centroids), *self._geometry.kernel, -1).movedim(-1, 1)
        products = self._convolve(self._pixels, kernels).flatten(2)[rows, labels, positions]
        box = self._pixels.new_ones(1, 1, *self._geometry.kernel)
        norms = self._convolve(self._pixels.square().sum(1, keepdim=True), box).flatten(1)[rows, positions]
        made = expanded(norms, products, rounded, labels)
        return made, nearly_zero(made, norms)

    def _convolve(self, pixels: Tensor, kernels: Tensor) -> Tensor:
        convolution = _CONVOLUTIONS[self._spatial]
        return convolution(pixels, kernels, None, self._geometry.stride, self._padding, self._geometry.dilation)

    def _shaped(self, by_channel: Tensor) -> Tensor:
        return by_channel.view(-1, *(1,) * self._spatial)

    def _tiled(self, by_channel: Tensor) -> Tensor:
        """float64 (D,): a value a channel, at every element of the kernel."""
        return by_channel.double().repeat(math.prod(self._geometry.kernel))


def _split(pixels: Tensor, top: float, count: int) -> Tensor:
    """(B, 2 C, *S): pixels (B, C, *S), none above ``top``, rounded, and what that leaves of them.

    Sums in float32 of ``count`` rounded ones are exact, whatever their order, and what is left is so
    small that the rounding of its sum is below what float32 resolves of the pixels' mean. Where ``top``
    is 0 or next to it, nothing is rounded.
    """
    unit = 2.0 ** (math.frexp(top)[1] - 24 + (count - 1).bit_length()) if 1e-30 < top < math.inf else 1.0
    size = (len(pixels), 2 * pixels.shape[1], *pixels.shape[2:])
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(pixels.dim(), torch.contiguous_format)
    made = torch.empty(size, dtype=pixels.dtype, device=pixels.device, memory_format=layout)
    high, low = made.chunk(2, 1)
    torch.mul(pixels, 1 / unit, out=high).round_().mul_(unit)
    torch.sub(pixels, high, out=low)
    return made


def _pads_alike(geometry: Geometry) -> bool:
    """Whether padding both ends of each dimension like its beginning gives the layer's output."""
    ends = zip(geometry.before, geometry.after, geometry.stride, strict=True)
    return all(0 <= before - after < stride for before, after, stride in ends)


def _lanes(k: int) -> int:
    return -(-k // _LANES) * _LANES
