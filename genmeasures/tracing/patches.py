"""Patches of a layer's input, gathered in blocks or reduced by convolutions without unfolding them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from genmeasures.interfaces import PatchReader, PatchSet
from genmeasures.statistics.clusters import (
    cluster_sums,
    distances_and_projections,
    expanded,
    is_far,
    nearly_zero,
    square_distances,
)
from genmeasures.statistics.pca import project
from genmeasures.tracing.geometry import Geometry

_BLOCK_BYTES = 1 << 23
"""Bytes of patches gathered per block, which stay in cache until they are used."""
_LANES = 8
"""Output channels of a convolution are padded to a multiple of this, for which there are fast kernels."""
_GATHER_COST = 32
"""Cost of gathering and using one element, in multiplications of a convolution."""

_RUN = 1 << 14
"""Output positions whose patches are summed in float32 at a time (at least one slice of one input)."""

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class LayerReader(PatchReader):
    """Reader of patches from the input of one call of a layer.

    Args:
        geometry: Geometry of the layer.
        layer_input: (B, C, *S), or (B, *S, C) if ``channels_last``.
        channels_last: Whether channels are the last dimension, as for linear layers.

    Example:
        >>> from torch import nn
        >>> from genmeasures.tracing.geometry import geometry_of
        >>> images = torch.arange(9.0).view(1, 1, 3, 3)
        >>> geometry = geometry_of(nn.Conv2d(1, 1, 2), (1, 1, 3, 3), (1, 1, 2, 2))
        >>> reader = LayerReader(geometry, images, channels_last=False)
        >>> reader.gather(torch.tensor([0, 0]), torch.tensor([0, 3]))  # first and last output position
        tensor([[0., 1., 3., 4.],
                [4., 5., 7., 8.]])
    """

    def __init__(self, geometry: Geometry, layer_input: Tensor, channels_last: bool) -> None:
        self.geometry = geometry
        self.channels_last = channels_last
        self.input = layer_input

    def receptive_fields(self, rows: Tensor, positions: Tensor) -> PatchSet:
        return ReceptiveFields(self, rows, positions)

    def whole(self, rows: Tensor) -> PatchSet:
        return WholeInputs(self, rows)

    def gather(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Gather the patches of some output positions.

        Args:
            rows: int64 (n,), indices of inputs in the batch.
            positions: int64 (n,), flattened output positions.

        Returns:
            float32 (n, D), each patch in the order (*kernel, C).
        """
        channels = self.geometry.channels
        if self.channels_last:
            return self.input.reshape(len(self.input), -1, channels)[rows, positions].float()
        field = self.geometry.field(positions)
        zeros = (field < 0).flatten().nonzero()[:, 0]
        size = math.prod(self.geometry.input_spatial)
        # With channels last, the channels of a pixel are copied at once and nothing has to be transposed.
        patches = self._pixels().index_select(0, (field.clamp_(min=0) + rows[:, None] * size).flatten())
        patches.index_fill_(0, zeros, 0.0)
        return patches.view(len(rows), -1).float()

    def _pixels(self) -> Tensor:
        """(B · positions, C): the input with channels last; a copy replaces the input."""
        pixels = self.input.flatten(2).transpose(1, 2).contiguous()
        self.input = pixels.transpose(1, 2).unflatten(2, self.geometry.input_spatial)
        return pixels.flatten(0, 1)


class StoredPatches(PatchSet):
    """Patches that are in memory.

    Args:
        patches: float32 (n, D).
        center: See :attr:`PatchSet.center`.

    Example:
        >>> StoredPatches(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).cluster_sums(torch.tensor([0, 0]), 1)
        tensor([[4., 6.]], dtype=torch.float64)
    """

    def __init__(self, patches: Tensor, center: slice | None = None) -> None:
        self._patches = patches
        self.center = center

    def unfold(self) -> Tensor:
        return self._patches

    def select(self, rows: Tensor) -> PatchSet:
        return StoredPatches(self._patches[rows], self.center)

    def cluster_sums(self, labels: Tensor, k: int) -> Tensor:
        return cluster_sums(self._patches, labels, k)

    def square_distances(self, centroids: Tensor, labels: Tensor) -> Tensor:
        return square_distances(self._patches, centroids, labels)

    def project(self, mean: Tensor, components: Tensor) -> Tensor:
        return project(self._patches, mean, components)

    def distances_and_projections(
        self, centroids: Tensor, labels: Tensor, mean: Tensor, components: Tensor
    ) -> tuple[Tensor, Tensor]:
        return distances_and_projections(self._patches, centroids, labels, mean, components)


class WholeInputs(PatchSet):
    """Whole inputs of a layer as patches, flattened in the order (*spatial, channels)."""

    center = slice(None)

    def __init__(self, reader: LayerReader, rows: Tensor) -> None:
        self._reader = reader
        self._rows = rows

    def unfold(self) -> Tensor:
        inputs = self._reader.input
        whole = (inputs if self._reader.channels_last else inputs.movedim(1, -1)).flatten(1)
        return (whole if len(self._rows) == len(whole) else whole.index_select(0, self._rows)).float()

    def select(self, rows: Tensor) -> PatchSet:
        return WholeInputs(self._reader, self._rows[rows])

    def cluster_sums(self, labels: Tensor, k: int) -> Tensor:
        return cluster_sums(self.unfold(), labels, k)

    def square_distances(self, centroids: Tensor, labels: Tensor) -> Tensor:
        return square_distances(self.unfold(), centroids, labels)

    def project(self, mean: Tensor, components: Tensor) -> Tensor:
        return project(self.unfold(), mean, components)

    def distances_and_projections(
        self, centroids: Tensor, labels: Tensor, mean: Tensor, components: Tensor
    ) -> tuple[Tensor, Tensor]:
        return distances_and_projections(self.unfold(), centroids, labels, mean, components)


class ReceptiveFields(PatchSet):
    """Receptive fields of output ``positions`` (n,) of the inputs ``rows`` (n,), in ascending order.

    If they cover most positions of the inputs, the products p·c are computed by a convolution with the
    centroids as kernels, ‖p‖² by a box filter over the squared norms of pixels, and the cluster sums
    as the weight gradient of that convolution. Projections are a convolution with the components as kernels.
    Else the patches are gathered in blocks.
    """

    def __init__(self, reader: LayerReader, rows: Tensor, positions: Tensor) -> None:
        self._reader = reader
        self._rows = rows
        self._positions = positions
        self.center = reader.geometry.center

    def unfold(self) -> Tensor:
        return self._reader.gather(self._rows, self._positions)

    def select(self, rows: Tensor) -> PatchSet:
        return ReceptiveFields(self._reader, self._rows[rows], self._positions[rows])

    def cluster_sums(self, labels: Tensor, k: int) -> Tensor:
        if self._is_dense(k):
            return self._dense.cluster_sums(self._rows - self._first, self._positions, labels, k)
        sums = labels.new_zeros((k, self._reader.geometry.patch_size), dtype=torch.float64)
        for part, patches in self._blocks():
            cluster_sums(patches, labels[part], k, out=sums)
        return sums

    def square_distances(self, centroids: Tensor, labels: Tensor) -> Tensor:
        mean = centroids.new_zeros(centroids.shape[1])
        return self.distances_and_projections(centroids, labels, mean, centroids[:0])[0]

    def distances_and_projections(
        self, centroids: Tensor, labels: Tensor, mean: Tensor, components: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not self._is_dense(len(centroids) + len(components)):
            parts = [
                distances_and_projections(patches, centroids, labels[part], mean, components)
                for part, patches in self._blocks()
            ]
            distances, projections = (torch.cat(part) for part in zip(*parts, strict=True))
            return distances, projections
        distances, near, projections = self._dense.distances_and_projections(
            self._rows - self._first, self._positions, centroids, labels, mean, components
        )
        for rows in near.nonzero()[:, 0].split(self._block_rows) if bool(near.any()) else ():
            patches = self._reader.gather(self._rows[rows], self._positions[rows])
            distances[rows] = square_distances(patches, centroids, labels[rows])
        return distances, projections

    def project(self, mean: Tensor, components: Tensor) -> Tensor:
        if self._is_dense(len(components)):
            return self._dense.project(self._rows - self._first, self._positions, mean, components)
        origin = mean.float()
        basis, offset = components.T.float(), (mean - origin) @ components.T
        return torch.cat([(patches.sub_(origin) @ basis).double() - offset for _, patches in self._blocks()])

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
        return len(self._rows) * (_GATHER_COST * 2 + k) > everywhere

    @cached_property
    def _dense(self) -> _Dense:
        last = int(self._rows[-1])
        return _Dense(self._reader.geometry, self._reader.input[self._first : last + 1])


class _Dense:
    """All receptive fields of inputs (B, C, *S), processed by convolutions."""

    def __init__(self, geometry: Geometry, pixels: Tensor) -> None:
        self._geometry = geometry
        self._spatial = len(geometry.kernel)
        self._padding = geometry.before
        first = pixels[0].double().flatten(1)
        mean = first.mean(1)
        far = is_far(float(first.square().sum(0).mean()), float(mean.square().sum()))
        if far or geometry.padding_mode != "zeros" or not _pads_alike(geometry):
            pads = [pad for pair in zip(geometry.before[::-1], geometry.after[::-1], strict=True) for pad in pair]
            pixels = F.pad(pixels, pads, mode=_PAD_MODES[geometry.padding_mode])
            self._padding = (0,) * self._spatial
        # The padding is shifted together with the input, so that whole patches are centered.
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
        total: Tensor = (high + low).flatten(1)
        if self._origin is not None:
            total += torch.bincount(labels, minlength=k)[:, None] * self._tiled(self._origin)
        return total

    def _sums(self, pixels: Tensor, members: Tensor, padding: tuple[int, ...]) -> Tensor:
        """(lanes, C, *kernel): sums of the patches of pixels (B, C, *S) by cluster membership (B, lanes, *outputs)."""
        geometry = self._geometry
        kernels = pixels.new_empty(members.shape[1], pixels.shape[1], *geometry.kernel)
        _, gradient, _ = torch.ops.aten.convolution_backward(
            members, pixels, kernels, None, geometry.stride, padding, geometry.dilation,
            False, [0] * self._spatial, 1, [False, True, False],
        )  # fmt: skip
        sums: Tensor = gradient
        return sums

    def _runs(self, members: Tensor) -> Iterator[tuple[Tensor, Tensor, tuple[int, ...]]]:
        """Groups of inputs, or slices of row input along its first spatial axis, with membership and padding."""
        rows, each = members.shape[2], members[0, 0].numel()
        if each <= _RUN:
            for pixels, group in zip(self._pixels.split(_RUN // each), members.split(_RUN // each), strict=True):
                yield pixels, group, self._padding
            return
        geometry, padding = self._geometry, (0, *self._padding[1:])
        after = geometry.after[0] if self._padding[0] else 0
        padded = F.pad(self._pixels, (*[0, 0] * (self._spatial - 1), self._padding[0], after))
        stride, reach = geometry.stride[0], geometry.dilation[0] * (geometry.kernel[0] - 1) + 1
        size = max(1, _RUN * rows // each)
        for row in range(len(padded)):
            for start in range(0, rows, size):
                stop = min(start + size, rows)
                pixels = padded[row : row + 1, :, start * stride : (stop - 1) * stride + reach]
                yield pixels, members[row : row + 1, :, start:stop], padding

    def distances_and_projections(
        self, rows: Tensor, positions: Tensor, centroids: Tensor, labels: Tensor, mean: Tensor, components: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """float64 (n,) squared distances, bool (n,) where they are too small for the expansion, and projections."""
        if self._origin is not None:
            centroids = centroids - self._tiled(self._origin)
        rounded = centroids.to(self._pixels.dtype)
        kernels = torch.cat([rounded, components.to(rounded.dtype)])
        products = self._convolve(self._pixels, self._kernels(kernels)).flatten(2)
        box = self._pixels.new_ones(1, 1, *self._geometry.kernel)
        norms = self._convolve(self._pixels.square().sum(1, keepdim=True), box).flatten(1)[rows, positions]
        distances = expanded(norms, products[rows, labels, positions], rounded, labels)
        of_components = products[:, len(centroids) : len(kernels)]
        projections = self._projections(of_components, rows, positions, mean, components)
        return distances, nearly_zero(distances, norms), projections

    def project(self, rows: Tensor, positions: Tensor, mean: Tensor, components: Tensor) -> Tensor:
        """float64 (n, d): patches minus their mean (D,), projected onto components (d, D)."""
        kernels = self._kernels(components.to(self._pixels.dtype))
        products = self._convolve(self._pixels, kernels)[:, : len(components)].flatten(2)
        return self._projections(products, rows, positions, mean, components)

    def _projections(
        self, products: Tensor, rows: Tensor, positions: Tensor, mean: Tensor, components: Tensor
    ) -> Tensor:
        """The projections of some patches, from the products (B, d, P) of all of them with the components."""
        offset = mean if self._origin is None else mean - self._tiled(self._origin)
        products = products.transpose(1, 2)
        every = len(rows) == products.shape[0] * products.shape[1]
        picked = products.flatten(0, 1) if every else products[rows, positions]
        return picked.double().sub_(components @ offset)

    def _kernels(self, patches: Tensor) -> Tensor:
        """(lanes, C, *kernel): patches (k, D) as the kernels of a convolution."""
        kernels = self._pixels.new_zeros(_lanes(len(patches)), self._geometry.channels, *self._geometry.kernel)
        kernels[: len(patches)] = patches.view(len(patches), *self._geometry.kernel, -1).movedim(-1, 1)
        return kernels

    def _convolve(self, pixels: Tensor, kernels: Tensor) -> Tensor:
        convolution = _CONVOLUTIONS[self._spatial]
        return convolution(pixels, kernels, None, self._geometry.stride, self._padding, self._geometry.dilation)

    def _shaped(self, by_channel: Tensor) -> Tensor:
        return by_channel.view(-1, *(1,) * self._spatial)

    def _tiled(self, by_channel: Tensor) -> Tensor:
        """float64 (D,): one value per channel, repeated for each kernel element."""
        return by_channel.double().repeat(math.prod(self._geometry.kernel))


def _split(pixels: Tensor, top: float, count: int) -> Tensor:
    """(B, 2 C, *S): pixels (B, C, *S) of magnitude at most ``top``, rounded, followed by the remainders.

    float32 sums of ``count`` rounded pixels are exact in any order. The remainders are so small that the
    rounding error of their sum is below the float32 resolution of the mean pixel. Nothing is rounded if
    ``top`` is 0 or close to it.
    """
    unit = 2.0 ** (math.frexp(top)[1] - 24 + (count - 1).bit_length()) if 1e-30 < top < math.inf else 1.0
    size = (len(pixels), 2 * pixels.shape[1], *pixels.shape[2:])
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(pixels.dim(), torch.contiguous_format)
    parts = torch.empty(size, dtype=pixels.dtype, device=pixels.device, memory_format=layout)
    high, low = parts.chunk(2, 1)
    torch.mul(pixels, 1 / unit, out=high).round_().mul_(unit)
    torch.sub(pixels, high, out=low)
    return parts


def _pads_alike(geometry: Geometry) -> bool:
    """Whether the layer's output results if both ends of each dimension are padded like its beginning."""
    ends = zip(geometry.before, geometry.after, geometry.stride, strict=True)
    return all(0 <= before - after < stride for before, after, stride in ends)


def _lanes(k: int) -> int:
    """k rounded up to a multiple of _LANES."""
    return -(-k // _LANES) * _LANES
