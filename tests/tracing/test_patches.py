"""Sums and distances of patches by convolutions and by gathering, compared with unfolding in float64."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genmeasures.tracing import LayerReader, StoredPatches, geometry_of, patches

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def layers(draw: st.DrawFn) -> tuple[Any, Tensor]:
    """A convolution with any kernel, stride, dilation, padding and groups, and an input for it."""
    dims = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    dilation = [draw(st.integers(1, 2)) for _ in range(dims)]
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    same = draw(st.booleans())
    stride = [1] * dims if same else [draw(st.integers(1, 3)) for _ in range(dims)]
    padding = "same" if same else [draw(st.integers(0, 2 if mode == "zeros" else 1)) for _ in range(dims)]
    sizes = [d * (k - 1) + draw(st.integers(3, 6)) for k, d in zip(kernel, dilation, strict=True)]
    channels = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, channels]))
    conv = CONVOLUTIONS[dims](channels, 2 * channels, kernel, stride, padding, dilation, groups, padding_mode=mode)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    offset = draw(st.sampled_from([0.0, 1e4])) * torch.rand(channels, *(1,) * dims, generator=generator)
    inputs = torch.randn(draw(st.integers(1, 4)), channels, *sizes, generator=generator) + offset
    return conv, inputs


def unfolded(conv: Any, inputs: Tensor) -> Tensor:
    """float64 (B · P, D) in the order (*kernel, channels), element by element with one-hot kernels."""
    channels = inputs.shape[1]
    elements = channels * int(np.prod(conv.kernel_size))
    probe = CONVOLUTIONS[inputs.dim() - 2](
        channels, elements, conv.kernel_size, conv.stride, conv.padding, conv.dilation, bias=False,
        padding_mode=conv.padding_mode, dtype=torch.float64,
    )  # fmt: skip
    with torch.no_grad():
        one_hot = torch.eye(elements, dtype=torch.float64).view(elements, *conv.kernel_size, channels)
        probe.weight.copy_(one_hot.movedim(-1, 1))
        return probe(inputs.double()).flatten(2).transpose(1, 2).flatten(0, 1)


def fields(conv: Any, inputs: Tensor, chosen: Tensor) -> Any:
    """The receptive fields of some positions of some inputs."""
    with torch.no_grad():
        shape = tuple(conv(inputs).shape)
    positions = int(np.prod(shape[2:]))
    layout = {3: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}[inputs.dim()]
    given_ = inputs.contiguous(memory_format=layout)
    reader = LayerReader(geometry_of(conv, tuple(inputs.shape), shape), given_, False)
    return reader.receptive_fields(chosen // positions, chosen % positions)


def expansion(size: int) -> float:
    """Relative error of a distance by ‖p‖² − 2 p·c + ‖c‖² in float32, of patches of that length.

    Products of D numbers round like √D · 6e-8, in another order on another processor. A squared distance above
    1/100 of ‖p‖², as all are that come from the expansion, loses up to two digits more.
    """
    return max(1e-5, 100 * 6e-8 * size**0.5)


def check(conv: Any, inputs: Tensor, k: int, share: float, seed: int, cost: float) -> None:
    rng = np.random.default_rng(seed)
    reference = unfolded(conv, inputs)
    chosen = torch.from_numpy(np.sort(rng.permutation(len(reference))[: max(1, int(share * len(reference)))]))
    labels = torch.from_numpy(rng.integers(k, size=len(chosen)))
    reference = reference[chosen]
    with mock.patch.object(patches, "_GATHER_COST", cost):
        found = fields(conv, inputs, chosen)
        sums = found.cluster_sums(labels, k)
        expected = torch.zeros_like(sums).index_add_(0, labels, reference)
        # Centroids are what the sums are for: these must be right to a fraction of the spread of the patches.
        counts = labels.bincount(minlength=k).clamp(min=1)[:, None]
        spread = float((reference - reference.mean(0)).square().sum(1).mean().sqrt()) + 1e-12
        # A patch of padding alone is as far from the other pixels, whose mean is subtracted, as these are from zero.
        rounding = 1e-7 * float(inputs.abs().max())
        np.testing.assert_allclose((sums / counts).numpy(), (expected / counts).numpy(), atol=1e-5 * spread + rounding)
        centroids = expected / counts
        distances = found.square_distances(centroids, labels).sqrt()
        direct = (reference - centroids[labels]).square().sum(1).sqrt()
        # What float32 resolves of the inputs bounds what can be known of a distance.
        tolerance = 1e-6 * spread + 2 * rounding * reference.shape[1] ** 0.5
        rtol = expansion(reference.shape[1])
        np.testing.assert_allclose(distances.numpy(), direct.numpy(), rtol=rtol, atol=tolerance)
        mean = reference.mean(0)
        components = torch.from_numpy(np.linalg.qr(rng.normal(size=(reference.shape[1], k)))[0].T.copy())
        projected = found.project(mean, components)
        np.testing.assert_allclose(projected, (reference - mean) @ components.T, atol=3 * tolerance)
        squares, projected = found.distances_and_projections(centroids, labels, mean, components)
        np.testing.assert_allclose(squares.sqrt().numpy(), direct.numpy(), rtol=rtol, atol=tolerance)
        np.testing.assert_allclose(projected, (reference - mean) @ components.T, atol=3 * tolerance)
    torch.testing.assert_close(found.unfold().double(), reference, rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=150)
@given(layers(), st.integers(1, 11), st.floats(0.05, 1), st.integers(0, 1000))
def test_convolutions_agree_with_unfolding(layer: Any, k: int, share: float, seed: int) -> None:
    check(*layer, k, share, seed, cost=1e9)


@settings(deadline=None, max_examples=60)
@given(layers(), st.integers(1, 11), st.floats(0.05, 1), st.integers(0, 1000))
def test_gathering_agrees_with_unfolding(layer: Any, k: int, share: float, seed: int) -> None:
    with mock.patch.object(patches, "_BLOCK_BYTES", 500):
        check(*layer, k, share, seed, cost=0)


@pytest.mark.parametrize("cost", [0, 1e9])
def test_far_from_the_origin(cost: float) -> None:
    """Mean 1e4 and spread 1, for which float32 products lose all digits of a distance; also with zero padding."""
    torch.manual_seed(0)
    for padding in (0, 1):
        check(nn.Conv2d(16, 3, 3, padding=padding), 1e4 + torch.randn(6, 16, 12, 12), 5, 1.0, 0, cost)


@pytest.mark.parametrize("cost", [0, 1e9])
def test_clusters_much_tighter_than_their_distances(cost: float) -> None:
    """Distances within clusters are a millionth of the norms of patches: an expansion would return noise only."""
    torch.manual_seed(0)
    level = torch.randn(8, 4, 1, 1).expand(-1, -1, 9, 9)
    inputs = level + 1e-6 * torch.randn(8, 4, 9, 9)
    conv = nn.Conv2d(4, 2, 3)
    reference = unfolded(conv, inputs)
    labels = torch.arange(8).repeat_interleave(49)
    centroids = reference.view(8, 49, -1).mean(1)
    with mock.patch.object(patches, "_GATHER_COST", cost):
        found = fields(conv, inputs, torch.arange(8 * 49)).square_distances(centroids, labels).sqrt()
    direct = (reference - centroids[labels]).square().sum(1).sqrt()
    # Inputs of size one resolve 6e-8, about a centroid rounded as much.
    np.testing.assert_allclose(found.view(8, 49).mean(1).numpy(), direct.view(8, 49).mean(1).numpy(), rtol=5e-3)


@pytest.mark.parametrize("run", [50, 1 << 14])
@pytest.mark.parametrize("shape", [(20, 4, 66, 66), (2, 4, 200, 200), (3, 3, 34, 30, 28)])
def test_a_background_of_little_noise(shape: tuple[int, ...], run: int) -> None:
    """Nine tenths of the patches lie within 1e-5 of each other: convolutions alone would lose their centroid."""
    torch.manual_seed(0)
    batch, channels, *sides = shape
    wide = (torch.arange(batch) % 10 == 0).view(-1, *[1] * (len(sides) + 1))
    level = torch.tensor([0.7, 1.0, -0.7, 0.3])[:channels].view(-1, *[1] * len(sides))
    inputs = torch.where(wide, torch.randn(shape), level + 1e-5 * torch.randn(shape))
    conv = (nn.Conv2d if len(sides) == 2 else nn.Conv3d)(channels, 3, 3)
    positions = math.prod(side - 2 for side in sides)
    labels = wide.flatten().long().repeat_interleave(positions)
    found = fields(conv, inputs, torch.arange(batch * positions))
    assert found._is_dense(2)
    with mock.patch.object(patches, "_RUN", run):
        sums = found.cluster_sums(labels, 2)
    members = [found.unfold()[labels == label].double() for label in (0, 1)]
    for label, one in enumerate(members):
        # An entry of the input has a rounding of 3e-8.
        np.testing.assert_allclose((sums[label] / len(one)).numpy(), one.mean(0).numpy(), rtol=0, atol=2e-8)
    centroids = torch.stack([one.mean(0) for one in members])
    distances = found.square_distances(centroids, labels).sqrt()
    for label, one in enumerate(members):
        expected = float((one - centroids[label]).square().sum(1).sqrt().mean())
        assert float(distances[labels == label].mean()) == pytest.approx(expected, rel=1e-6)


def test_more_clusters_than_products_are_computed_with() -> None:
    """1,500 clusters of 1,800 patches, gathered in blocks."""
    torch.manual_seed(0)
    conv, inputs = nn.Conv2d(3, 2, 3), torch.randn(8, 3, 17, 17)
    with mock.patch.object(patches, "_BLOCK_BYTES", 20_000):
        check(conv, inputs, 1500, 1.0, 0, 0)


@pytest.mark.parametrize("kind", ["fields", "whole", "stored"])
def test_some_of_the_patches(kind: str) -> None:
    torch.manual_seed(0)
    conv, inputs = nn.Conv2d(3, 2, 3, padding=1), torch.randn(6, 3, 5, 5)
    rows = torch.tensor([0, 3, 4])
    if kind == "fields":
        rows = torch.arange(0, 150, 7)
        given_ = fields(conv, inputs, torch.arange(150))
    elif kind == "whole":
        shape = tuple(inputs.shape)
        reader = LayerReader(geometry_of(conv, shape, (6, 2, 5, 5)), inputs, False)
        given_ = reader.whole(torch.arange(6))
    else:
        given_ = StoredPatches(torch.randn(6, 7))
    some, expected = given_.select(rows), given_.unfold()[rows]
    assert torch.equal(some.unfold(), expected)
    labels = torch.arange(len(rows)) % 2
    sums = torch.zeros(2, expected.shape[1], dtype=torch.float64).index_add_(0, labels, expected.double())
    np.testing.assert_allclose(some.cluster_sums(labels, 2).numpy(), sums.numpy(), rtol=1e-5, atol=1e-5)
    compare(given_, given_.unfold().double())


def read_by(conv: nn.ConvTranspose2d, image: Tensor, row: int, column: int) -> Tensor:
    """(KH · KW · C,): what an output pixel reads of an image (C, H, W), by the definition of the convolution."""
    (stride, _), (padding, _), (dilation, _) = conv.stride, conv.padding, conv.dilation
    parts = []
    for k, j in np.ndindex(*conv.kernel_size):
        places = [place + padding - dilation * element for place, element in ((row, k), (column, j))]
        read = all(place % stride == 0 and 0 <= place // stride < image.shape[1] for place in places)
        parts.append(image[:, places[0] // stride, places[1] // stride] if read else torch.zeros(len(image)))
    return torch.cat(parts)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [(3, 2, 1, 1), (2, 2, 0, 1), (3, 1, 1, 2)])
def test_transposed_convolutions(kernel: int, stride: int, padding: int, dilation: int, offset: float) -> None:
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(3, 2, kernel, stride, padding, dilation=dilation)
    inputs = torch.randn(4, 3, 5, 5) + offset
    height, width = conv(inputs).shape[2:]
    found = fields(conv, inputs, torch.arange(4 * height * width))
    reference = torch.stack(
        [read_by(conv, image, i, j) for image in inputs for i in range(height) for j in range(width)]
    ).double()
    assert torch.equal(found.unfold().double(), reference)
    # Centered, the weight is what a layer computes of these patches.
    weight = conv.weight.detach().double().permute(1, 2, 3, 0).flatten(1)
    output = conv.double()(inputs.double()).detach() - conv.bias.detach().double().view(-1, 1, 1)
    np.testing.assert_allclose(reference @ weight.T, output.permute(0, 2, 3, 1).flatten(0, 2), rtol=1e-9, atol=1e-9)
    compare(found, reference)


@pytest.mark.parametrize("shape", [(60, 7), (5, 12, 7)])
def test_linear_layers(shape: tuple[int, ...]) -> None:
    """A patch of a linear layer is what it reads for one pixel."""
    torch.manual_seed(0)
    linear, inputs = nn.Linear(7, 2), torch.randn(shape)
    geometry = geometry_of(linear, shape, tuple(linear(inputs).shape))
    each = math.prod(shape[1:-1])
    chosen = torch.arange(60)
    found = LayerReader(geometry, inputs, True).receptive_fields(chosen // each, chosen % each)
    compare(found, inputs.reshape(60, 7).double())


def compare(found: Any, reference: Tensor) -> None:
    """Distances and projections of patches, one by one and together, with those of float64 patches (n, D)."""
    labels = torch.arange(len(reference)) % 4
    counts = labels.bincount()[:, None]
    centroids = torch.zeros(4, reference.shape[1], dtype=torch.float64).index_add_(0, labels, reference) / counts
    torch.testing.assert_close(found.cluster_sums(labels, 4) / counts, centroids, rtol=1e-7, atol=1e-7)
    mean, components = reference.mean(0), torch.linalg.qr(torch.randn(reference.shape[1], 3).double())[0].T
    distances = (reference - centroids[labels]).square().sum(1)
    projections = (reference - mean) @ components.T
    scale = float(distances.max())
    together = found.distances_and_projections(centroids, labels, mean, components)
    for squares in (found.square_distances(centroids, labels), together[0]):
        torch.testing.assert_close(squares, distances, rtol=1e-5, atol=1e-6 * scale)
    for projected in (found.project(mean, components), together[1]):
        torch.testing.assert_close(projected, projections, rtol=1e-5, atol=1e-6 * scale**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stored_patches(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    vectors, labels = torch.randn(50, 7).to(dtype), torch.randint(3, (50,))
    stored = StoredPatches(vectors)
    expected = torch.stack([vectors[labels == i].double().sum(0) for i in range(3)])
    torch.testing.assert_close(stored.cluster_sums(labels, 3), expected, rtol=1e-5, atol=1e-5)
    distances = (vectors.double() - expected[labels]).square().sum(1)
    torch.testing.assert_close(stored.square_distances(expected, labels), distances, rtol=1e-5, atol=1e-5)
    compare(stored, vectors.double())
    assert stored.unfold() is vectors


def test_few_positions_are_gathered_and_many_are_convolved() -> None:
    conv, inputs = nn.Conv2d(8, 8, 3, padding=1), torch.randn(4, 8, 32, 32)
    for count, dense in ((40, False), (4096, True)):
        chosen = torch.arange(0, 4096, 4096 // count)
        found = fields(conv, inputs, chosen)
        with mock.patch.object(patches, "_Dense", wraps=patches._Dense) as made:
            found.cluster_sums(torch.zeros_like(chosen), 5)
        assert made.called == dense
