"""Regions on segments and in planes, compared with breakpoints found layer by layer in NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from genmeasures_transitions import RegionCount, find_activations, line_regions, slice_through
from genmeasures_transitions.drawing import draw_triples
from torch import Tensor, nn

import genmeasures
from genmeasures.plugin import ModelData, OptionError, Undefined
from genmeasures.testing import model_data

Given = Callable[..., ModelData]


def relu_net(widths: list[int], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).double().eval()
    for parameter in model.parameters():
        parameter.data *= 2
    return model


def breakpoints(model: nn.Sequential, a: Tensor, b: Tensor) -> list[float]:
    """Breakpoints of a ReLU network on a segment: those of one layer after another, piece by piece.

    On a piece the inputs of a layer are known at both ends and linear between them, so that each unit has at most one
    zero in it, which cuts the piece in two.
    """
    ends = [0.0, 1.0]
    values = [a.numpy(), b.numpy()]
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            values = [weight @ value + bias for value in values]
            continue
        cut_ends, cut_values = [ends[0]], [values[0]]
        for left, right, low, high in zip(ends[:-1], ends[1:], values[:-1], values[1:], strict=True):
            crossing = low * high < 0
            parts = sorted(low[crossing] / (low[crossing] - high[crossing]))
            cut_ends += [left + part * (right - left) for part in parts] + [right]
            cut_values += [low + part * (high - low) for part in parts] + [high]
        ends, values = cut_ends, [np.maximum(value, 0) for value in cut_values]
    return ends[1:-1]


@pytest.mark.parametrize("widths", [[3, 8, 2], [4, 10, 10, 3], [2, 6, 6, 6, 6, 1], [30, 60, 60, 10]])
@pytest.mark.parametrize("seed", range(2))
def test_breakpoints_on_a_segment(widths: list[int], seed: int) -> None:
    model = relu_net(widths, seed)
    a, b = 3 * torch.randn(2, widths[0], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = breakpoints(model, a, b)
    assert len(expected) > 1
    found = find_activations(model, torch.stack([a, b]))
    for batch in (1, 3, 256):
        made = line_regions(model, found, a, b, torch.Generator().manual_seed(0), batch)
        np.testing.assert_allclose(made.starts, [0, *expected], atol=1e-9)
        assert made.exact


def test_regions_with_equal_jacobians_are_merged() -> None:
    """Units that the next layer does not read bound regions, but the function does not change there."""
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    model[0].weight.data = torch.ones(4, 1, dtype=torch.float64)
    model[0].bias.data = -torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    model[2].weight.data = torch.tensor([[1.0, 0.0, -1.0, 0.0]], dtype=torch.float64)
    a, b = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    made = line_regions(model, find_activations(model, torch.stack([a, b])), a, b, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(made.starts, [0, 0.2, 0.4, 0.6, 0.8], atol=1e-12)
    assert made.linear.tolist() == [0, 1, 1, 2, 2]


def test_activations_with_several_thresholds_on_a_segment() -> None:
    """f(x) = hardtanh(2x) + |x − 0.7| bends at −1/2, 1/2 and 0.7."""

    class Bent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.hardtanh(2 * x) + (x - 0.7).abs()

    a, b = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    found = find_activations(Bent(), torch.stack([a, b]))
    made = line_regions(Bent(), found, a, b, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(made.starts, [0, 0.25, 0.75, 0.85], atol=1e-12)


def test_a_softmax_is_not_linear_within_regions() -> None:
    model = nn.Sequential(*relu_net([3, 8, 2]), nn.Softmax(1)).eval()
    a, b = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = find_activations(model, torch.stack([a, b]))
    assert not line_regions(model, found, a, b, torch.Generator().manual_seed(0)).exact


def test_regions_of_a_plane() -> None:
    """Five lines in the plane: the signs of five affine functions at each point of the grid, in NumPy."""
    model = relu_net([2, 5, 3], 4).float()
    a, b, c = torch.tensor([[-3.0, -3.0], [3.0, -3.0], [-3.0, 3.0]])
    plane = slice_through(model, a, b, c, resolution=150, margin=0)
    weight, bias = model[0].weight.detach().double().numpy(), model[0].bias.detach().double().numpy()
    x, y = np.meshgrid(plane.x - 3, plane.y - 3)
    signs = np.stack([x, y], -1) @ weight.T + bias > 0
    known: dict[bytes, int] = {}
    expected = [known.setdefault(row.tobytes(), len(known)) for row in signs.reshape(-1, 5)]
    assert plane.regions.ravel().tolist() == expected
    # The Jacobian in a region is the product of the weights with the units that are off left out.
    units = signs.reshape(-1, 5)[:, None, :] * model[2].weight.detach().double().numpy()
    jacobians = (units @ weight).round(5).reshape(150 * 150, -1)
    assert len(np.unique(jacobians, axis=0)) == plane.linear.max() + 1


def test_regions_of_a_plane_that_are_merged() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    model[0].weight.data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    model[0].bias.data = torch.tensor([-0.3, -0.6, -0.5])
    model[2].weight.data = torch.tensor([[0.0, 1.0, 0.0]])
    a, b, c = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    plane = slice_through(model, a, b, c, resolution=21, margin=0)
    assert plane.regions.max() + 1 == 6
    assert plane.linear.tolist() == [[0] * 13 + [1] * 8] * 21 or plane.linear.tolist() == [[0] * 12 + [1] * 9] * 21


def test_values_of_the_measure() -> None:
    model = relu_net([4, 10, 10, 3]).float()
    inputs = 3 * torch.randn(20, 4, generator=torch.Generator().manual_seed(7))
    values = RegionCount(lines=5, resolution=16).measure(model, [], model_data(inputs, None, seed=3))
    assert set(values) == {variable.name for variable in RegionCount.variables}
    triples = draw_triples(model_data(inputs, None, seed=3), 5, "any")
    model.double()
    expected = [len(breakpoints(model, a.double(), b.double())) + 1 for a, b, _ in triples]
    assert values["region_count_each"].tolist() == expected
    assert values["region_count_line"].value == pytest.approx(np.mean(expected))
    assert values["region_count_line"].note == ""
    # Every unit is connected to the output, so that only units behind a layer that is off share a linear region.
    assert values["linear_region_count_line"].value <= np.mean(expected)
    assert values["region_bound_line"] == 20
    assert values["region_bound_plane"] == 200
    plane = slice_through(model, *(one.double() for one in triples[0]), resolution=16)
    np.testing.assert_array_equal(values["region_grid"], plane.regions)
    np.testing.assert_array_equal(values["region_grid_x"], plane.x)
    assert values["region_count_plane"].value == len(np.unique(plane.regions))
    assert values["region_count_plane"].note == "counted at 16 × 16 points"


def test_max_pooling_is_counted_at_points(cnn: nn.Module, given: Given) -> None:
    values = RegionCount(lines=2, resolution=0).measure(cnn, [], given())
    assert values["region_count_line"].note == "kinks of max_pool2d are not counted; counted at 4096 points"
    assert values["linear_region_count_line"].note == "counted at 4096 points"
    assert "resolution is 0" in str(values["region_grid"])
    triples = draw_triples(given(), 2, "any")
    for count, (a, b, _) in zip(values["region_count_each"], triples, strict=True):
        seen = []
        hook = cnn[2].register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].flatten(1) > 0))
        t = torch.linspace(0, 1, 4097)[:, None, None, None]
        with torch.no_grad():
            cnn(a + t * (b - a))
        hook.remove()
        # The units of the first layer alone: a lower bound.
        least = 1 + int((seen[0][1:] != seen[0][:-1]).any(1).sum())
        assert least <= count <= 4097


def test_linear_regions_at_points_include_those_of_pooling() -> None:
    """On any segment between two of these inputs, one unit goes off, the larger one changes, the other goes on."""

    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.max_pool1d(torch.relu(x)[:, None], 2)[:, 0]

    inputs = torch.tensor([[-1.0, 3.0], [3.0, -1.1]])
    data = model_data(inputs[[0, 1, 0]], None, seed=1)
    ((a, b, _),) = draw_triples(model_data(inputs[[0, 1, 0]], None, seed=1), 1, "any")
    assert not torch.equal(a, b)
    values = RegionCount(lines=1, resolution=0).measure(Pooled().eval(), [], data)
    assert values["region_count_line"].value == 3  # (off, on), (on, on), (on, off)
    assert values["linear_region_count_line"].value == 2  # x₁, x₀


def test_a_softmax_bends_the_function_everywhere() -> None:
    model = nn.Sequential(*relu_net([3, 8, 2]).float(), nn.Softmax(1)).eval()
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    values = RegionCount(lines=2, resolution=0).measure(model, [], model_data(x, None, seed=1))
    assert values["region_count_line"].note == "counted at 4096 points"
    assert "not piecewise linear" in str(values["linear_region_count_line"])


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LayerNorm(3), nn.MaxPool1d(3)])
def test_linear_regions_in_a_plane_need_a_piecewise_linear_function(last: nn.Module) -> None:
    """A piecewise linear one has them, of which test_values_of_the_measure has the numbers."""
    x = 3 * torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    layers = relu_net([4, 10, 3], seed=3).float()
    for model, defined in ((layers, True), (nn.Sequential(*layers, last).eval(), False)):
        values = RegionCount(lines=1, resolution=16).measure(model, [], model_data(x, None, seed=1))
        assert values["region_count_plane"].value > 3
        for name in ("linear_region_count_plane", "linear_region_grid"):
            assert isinstance(values[name], Undefined) != defined
            assert defined or "something besides the activations bends the function" in str(values[name])


def test_two_inputs_are_too_few() -> None:
    with pytest.raises(Undefined, match=r"^segments and their plane need three training inputs, got 2$"):
        RegionCount(lines=1).measure(relu_net([4, 6, 3]).float(), [], model_data(torch.randn(2, 4), None))


def test_results_have_the_grid() -> None:
    model, x = relu_net([4, 6, 3]).float(), torch.randn(9, 4)
    ds = genmeasures.measure({"net": model}, x, x, measures=[RegionCount(lines=2, resolution=12)])
    assert ds.region_grid.dims == ("model", "row", "column")
    assert ds.region_grid.shape == (1, 12, 12)
    assert ds.region_grid_corner.dims == ("model", "anchor", "axis")
    assert ds.region_count_plane_status.item() == "note: counted at 12 × 12 points"


@pytest.mark.parametrize("options", [{"lines": 0}, {"resolution": 1}, {"resolution": -1}, {"lines": 1.5}])
def test_options_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))} must be"):
        RegionCount(**options)
