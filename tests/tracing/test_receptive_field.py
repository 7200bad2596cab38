"""Patches contain what the layer reads: weight times patch plus bias is its output, at all positions.

Inputs and weights are small integers and the layers run in float64, so both sides are exact.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genmeasures.tracing import LayerReader, geometry_of, trace
from genmeasures.tracing.geometry import follows_geometry

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH = 2
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
many = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


def whole(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).double()


def filled(layer: nn.Module) -> Any:
    """The layer with integer parameters, in float64."""
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = whole(tuple(parameter.shape), seed)
    return layer.eval()


def from_patches(layer: Any, inputs: Tensor, output: Tensor) -> Tensor:
    """The layer's output (B, P, O) by multiplying every patch with the weight, written out without groups."""
    linear, transposed = isinstance(layer, nn.Linear), "Transpose" in type(layer).__name__
    geometry = geometry_of(layer, tuple(inputs.shape), tuple(output.shape))
    positions = output[0].numel() // (output.shape[-1] if linear else output.shape[1])
    reader = LayerReader(geometry, inputs, linear)
    rows, places = torch.meshgrid(torch.arange(BATCH), torch.arange(positions), indexing="ij")
    # Not in order, as a sample is not.
    shuffled = torch.randperm(BATCH * positions, generator=torch.Generator().manual_seed(0))
    patches = torch.empty(BATCH * positions, geometry.patch_size, dtype=torch.float64)
    gathered = reader.gather(rows.flatten()[shuffled], places.flatten()[shuffled])
    assert gathered.dtype == torch.float32
    assert gathered.shape == patches.shape
    patches[shuffled] = gathered.double()
    patches = patches.view(BATCH, positions, -1)
    if linear:
        made = patches @ layer.weight.T
    else:
        inside, outside = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        weight = torch.zeros(layer.out_channels, layer.in_channels, *layer.kernel_size, dtype=torch.float64)
        for group in range(layer.groups):
            to, of = slice(group * outside, (group + 1) * outside), slice(group * inside, (group + 1) * inside)
            weight[to, of] = layer.weight[of].transpose(0, 1) if transposed else layer.weight[to]
        made = patches @ weight.movedim(1, -1).flatten(1).T
    return made if layer.bias is None else made + layer.bias


def by_position(layer: nn.Module, output: Tensor) -> Tensor:
    """The output as (B, P, O)."""
    if isinstance(layer, nn.Linear):
        return output.reshape(BATCH, -1, output.shape[-1])
    return output.flatten(2).transpose(1, 2)


def per_dimension(dimensions: int, low: int, high: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(low, high)] * dimensions)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Any, Tensor]:
    dimensions = draw(st.integers(1, 3))
    longest = {1: 9, 2: 7, 3: 5}[dimensions]
    kernel, dilation = draw(per_dimension(dimensions, 1, 4)), draw(per_dimension(dimensions, 1, 3))
    size = draw(per_dimension(dimensions, 1, longest))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), per_dimension(dimensions, 0, 4)))
    stride = (1,) * dimensions if padding == "same" else draw(per_dimension(dimensions, 1, 4))
    for s, k, d, i in zip(size, kernel, dilation, range(dimensions), strict=True):
        reach = d * (k - 1)
        widest = -(-reach // 2) if padding == "same" else 0 if padding == "valid" else padding[i]
        assume(mode != "reflect" or widest < s)
        assume(mode != "circular" or widest <= s)
        assume(padding == "same" or s + 2 * widest > reach)
    groups = draw(st.integers(1, 3))
    inside, outside = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    layer = CONVOLUTIONS[dimensions](
        inside, outside, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()), padding_mode=mode
    )
    return filled(layer), whole((BATCH, inside, *size), 7)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> tuple[Any, Tensor]:
    dimensions = draw(st.integers(1, 3))
    kernel, dilation = draw(per_dimension(dimensions, 1, 4)), draw(per_dimension(dimensions, 1, 3))
    stride, padding = draw(per_dimension(dimensions, 1, 4)), draw(per_dimension(dimensions, 0, 4))
    size = draw(per_dimension(dimensions, 1, {1: 7, 2: 4, 3: 3}[dimensions]))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    for i in range(dimensions):
        reach = dilation[i] * (kernel[i] - 1)
        assume((size[i] - 1) * stride[i] - 2 * padding[i] + reach + extra[i] >= 0)
    groups = draw(st.integers(1, 3))
    inside, outside = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    bias = draw(st.booleans())
    layer = TRANSPOSED[dimensions](inside, outside, kernel, stride, padding, extra, groups, bias, dilation)
    return filled(layer), whole((BATCH, inside, *size), 7)


@many
@given(convolutions())
def test_convolution_reads_its_patches(case: tuple[Any, Tensor]) -> None:
    layer, inputs = case
    output = layer(inputs)
    assert follows_geometry(layer, tuple(inputs.shape), tuple(output.shape))
    assert torch.equal(from_patches(layer, inputs, output), by_position(layer, output))


@many
@given(transposed_convolutions())
def test_transposed_convolution_reads_its_patches(case: tuple[Any, Tensor]) -> None:
    layer, inputs = case
    output = layer(inputs)
    assert follows_geometry(layer, tuple(inputs.shape), tuple(output.shape))
    assert torch.equal(from_patches(layer, inputs, output), by_position(layer, output))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), max_size=3), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_linear_layer_reads_its_input_vectors(extra: list[int], inside: int, outside: int, bias: bool) -> None:
    layer = filled(nn.Linear(inside, outside, bias))
    inputs = whole((BATCH, *extra, inside), 7)
    output = layer(inputs)
    assert torch.equal(from_patches(layer, inputs, output), by_position(layer, output))


@pytest.mark.parametrize("kernel", [2, 4])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_same_padding_of_even_kernels(kernel: int, dilation: int, mode: str) -> None:
    layer = filled(nn.Conv2d(2, 3, kernel, padding="same", dilation=dilation, padding_mode=mode))
    inputs = whole((BATCH, 2, 9, 10), 7)
    output = layer(inputs)
    assert output.shape[2:] == inputs.shape[2:]
    assert torch.equal(from_patches(layer, inputs, output), by_position(layer, output))


@pytest.mark.parametrize("size", [7, 8])
def test_transposed_convolution_with_the_size_given_in_the_call(size: int) -> None:
    layer = filled(nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1))
    inputs = whole((BATCH, 2, 4), 7)
    output = layer(inputs, output_size=[size])
    assert output.shape[2] == size
    assert torch.equal(from_patches(layer, inputs, output), by_position(layer, output))


def test_channels_are_innermost_in_a_patch() -> None:
    inputs = torch.arange(2 * 2 * 3 * 3, dtype=torch.float32).view(2, 2, 3, 3)
    geometry = geometry_of(nn.Conv2d(2, 1, 2), (2, 2, 3, 3), (2, 1, 2, 2))
    patch = LayerReader(geometry, inputs, False).gather(torch.tensor([1]), torch.tensor([3]))
    assert patch.tolist() == [[22, 31, 23, 32, 25, 34, 26, 35]]


def test_zeros_are_read_outside_the_image() -> None:
    inputs = torch.arange(1.0, 5.0).view(1, 1, 2, 2)
    geometry = geometry_of(nn.Conv2d(1, 1, 3, padding=1), (1, 1, 2, 2), (1, 1, 2, 2))
    patch = LayerReader(geometry, inputs, False).gather(torch.tensor([0]), torch.tensor([0]))
    assert patch.tolist() == [[0, 0, 0, 0, 1, 2, 0, 3, 4]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_patches_are_float32(dtype: torch.dtype) -> None:
    inputs = whole((2, 3, 5), 7)
    geometry = geometry_of(nn.Conv1d(3, 1, 2), (2, 3, 5), (2, 1, 4))
    patches = LayerReader(geometry, inputs.to(dtype), False).gather(torch.tensor([0, 1]), torch.tensor([3, 0]))
    assert patches.dtype == torch.float32
    assert torch.equal(patches.double(), torch.stack([inputs[0, :, 3:5].T.flatten(), inputs[1, :, 0:2].T.flatten()]))


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided"])
def test_memory_layout_does_not_matter(layout: str) -> None:
    layer = filled(nn.Conv2d(3, 2, 3, padding=1))
    inputs = whole((BATCH, 3, 6, 5), 7)
    if layout == "channels last":
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        inputs = inputs.transpose(2, 3)[:, :, ::2]
        assert not inputs.is_contiguous()
    before = inputs.clone()
    output = layer(inputs)
    assert torch.equal(from_patches(layer, inputs, output), by_position(layer, output))
    assert torch.equal(inputs, before)


def test_memory_depends_on_the_sample_and_not_on_the_layer() -> None:
    """A layer with 10⁹ positions and 27 kernel elements: the fields of all positions would take 200 GB."""
    shape = (1, 1, 1000, 1000, 1000)
    geometry = geometry_of(nn.Conv3d(1, 1, 3, padding=1), shape, shape)
    place = 500 * 1000 * 1000 + 500 * 1000 + 500
    field = geometry.field(torch.tensor([place, 0]))
    steps = torch.tensor([-1, 0, 1])
    expected = (place + steps[:, None, None] * 1_000_000 + steps[None, :, None] * 1000 + steps).flatten()
    assert torch.equal(field[0], expected)
    assert int((field[1] >= 0).sum()) == 8


class Padded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


class WithCoordinates(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, torch.ones_like(x[:, :1])], 1))


@pytest.mark.parametrize(("layer", "ahead"), [(Padded(2, 3, 3), 2), (WithCoordinates(3, 2, 3), 2)])
def test_a_layer_that_pads_or_extends_its_input_itself_is_skipped(layer: nn.Conv2d, ahead: int) -> None:
    model = nn.Sequential(nn.Conv2d(1, ahead, 1), layer)
    traced = trace(model, torch.randn(3, 1, 6, 6), "activation")
    assert [one.layer.name for one in traced.layers] == ["0"]
    [(name, reason)] = traced.skipped
    assert name == "1"
    assert "does not follow from its input" in reason


class Ternary(nn.Conv2d):
    """Reads its input like any convolution; only its weight differs."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self._conv_forward(x, self.weight.sign(), self.bias))


def test_a_layer_of_a_subclass_that_reads_like_its_base_is_measured() -> None:
    traced = trace(nn.Sequential(Ternary(1, 2, 3, padding=1)), torch.randn(3, 1, 6, 6), "activation")
    assert [one.layer.kind for one in traced.layers] == ["Ternary"]
    assert traced.skipped == ()


def test_described_sizes_are_those_of_the_tensors() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=2, groups=2),
        nn.ConvTranspose2d(6, 2, 4, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(2 * 10 * 14, 5, bias=False),
    )
    layers = [one.layer for one in trace(model, torch.randn(3, 4, 9, 12), "linear").layers]
    assert [one.spatial for one in layers] == [(4, 6), (10, 14), ()]
    assert [one.positions for one in layers] == [24, 140, 1]
    assert [one.channels for one in layers] == [6, 2, 5]
    assert [one.patch_size for one in layers] == [4 * 6, 6 * 16, 280]
    assert [one.input_size for one in layers] == [4 * 9 * 12, 6 * 4 * 6, 280]
    assert [one.kind for one in layers] == ["Conv2d", "ConvTranspose2d", "Linear"]
    expected = [layer.weight.detach().double().square().sum().sqrt().item() for layer in (model[0], model[1], model[3])]
    assert [one.weight_norm for one in layers] == pytest.approx(expected, rel=1e-12)
