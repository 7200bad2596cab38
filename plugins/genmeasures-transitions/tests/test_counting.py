"""Transitions and curvature, compared with manual calculations and with brute force."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from genmeasures_transitions import (
    Ellipse,
    Polyline,
    count_transitions,
    counting,
    ellipse_through,
    find_activations,
    path_turning,
)
from torch import Tensor, nn

from genmeasures.plugin import ModelError


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def circle(radius: float) -> Ellipse:
    return Ellipse(torch.zeros(2), torch.tensor([radius, 0.0]), torch.tensor([0.0, radius]))


def test_one_hidden_layer_on_a_circle() -> None:
    """A unit's boundary is a line at distance |b|/‖w‖ from the origin: the circle crosses it twice or never."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(50, 2, generator=generator), 2 * torch.randn(50, generator=generator)
    model = nn.Sequential(linear(weight.tolist(), bias.tolist()), nn.ReLU(), nn.Linear(50, 3))
    for radius in (0.3, 1.0, 2.0):
        crossed = int((bias.abs() < radius * weight.norm(dim=1)).sum())
        found = find_activations(model, torch.randn(3, 2))
        assert count_transitions(model, found, circle(radius), 20_000, 512)[:, 0].tolist() == [2 * crossed]


def test_two_hidden_layers_on_a_square_by_hand() -> None:
    """On the square (0,0) (4,0) (4,4) (0,4) the pre-activations are x − 1, y − 3 and relu(x − 1) − 2·relu(y − 3) − 0.5.

    x − 1 changes sign on the lower and upper edge, y − 3 on the left and right one. The third is
    positive on the lower edge from x = 1.5 on; on the right edge until 3 − 2(y − 3) = 0.5, never
    again on the upper edge, where relu(x − 1) − 2 ≤ 1 is above 0.5 for x > 3.5, so that it is
    positive there: the right edge ends with 3 − 2 − 0.5 > 0, and it goes out at x = 3.5 above.
    Between −1 and 1 the Hardtanh behind it is on its middle piece: its pre-activation runs from −0.5
    to 2.5, down to 0.5, down to −2.5 at x ≤ 1, and up to −0.5.
    """
    square = Polyline(torch.tensor([[0.0, 0.0], [4, 0], [4, 4], [0, 4]]))
    first = linear([[1.0, 0.0], [0.0, 1.0]], [-1.0, -3.0])
    second = linear([[1.0, -2.0]], [-0.5])
    relu = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
    found = find_activations(relu, torch.randn(3, 2))
    assert count_transitions(relu, found, square, 1001, 64)[:, 0].tolist() == [4, 2]
    hard = nn.Sequential(first, nn.ReLU(), second, nn.Hardtanh())
    found = find_activations(hard, torch.randn(3, 2))
    assert count_transitions(hard, found, square, 1001, 64)[:, 0].tolist() == [4, 4]


def test_a_jump_over_a_piece_counts_two() -> None:
    there_and_back = Polyline(torch.tensor([[-5.0], [5.0]]))
    model = nn.Sequential(linear([[1.0]]), nn.Hardtanh())
    found = find_activations(model, torch.randn(3, 1))
    assert count_transitions(model, found, there_and_back, 2, 1)[:, 0].tolist() == [4]


def brute_force(model: nn.Sequential, points: Tensor) -> list[int]:
    """Computed from all codes at once."""
    counts = []
    x = points
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.ReLU | nn.LeakyReLU):
                code = (x > 0).long()
            elif isinstance(module, nn.Hardtanh):
                code = (x > module.min_val).long() + (x > module.max_val).long()
            else:
                x = module(x)
                continue
            counts.append(int((code - code.roll(-1, 0)).abs().sum()))
            x = module(x)
    return counts


@pytest.mark.parametrize("points", [3, 100, 501])
def test_streaming_against_brute_force(cnn: nn.Sequential, points: int) -> None:
    path = ellipse_through(*torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)).unbind())
    expected = brute_force(cnn, path.points(0, points, points))
    found = find_activations(cnn, torch.randn(3, 1, 8, 8))
    assert points == 3 or min(expected) > 0
    for batch in (1, 2, 7, 100, 501, 1000):
        assert count_transitions(cnn, found, path, points, batch)[:, 0].tolist() == expected
    laid_out = cnn.to(memory_format=torch.channels_last)
    assert count_transitions(laid_out, found, path, points, 64)[:, 0].tolist() == expected


def test_codes_as_tensors_on_other_devices(cnn: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes are tensors there, and counts are read only at the end."""

    def tensors(pre: Tensor, thresholds: tuple[float, ...]) -> list[Tensor]:
        return [pre > threshold for threshold in thresholds]

    path = ellipse_through(*torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)).unbind())
    found = find_activations(cnn, torch.randn(3, 1, 8, 8))
    expected = count_transitions(cnn, found, path, 100, 16)[:, 0].tolist()
    monkeypatch.setattr(counting, "codes", tensors)
    assert count_transitions(cnn, found, path, 100, 16)[:, 0].tolist() == expected


def test_other_activations_in_a_later_batch_are_an_error() -> None:
    class Fickle(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return F.relu(x) if self.calls < 4 else x

    model = Fickle().eval()
    found = find_activations(model, torch.randn(3, 2))
    with pytest.raises(ModelError, match="other activations"):
        count_transitions(model, found, circle(1), 10, 2)


@pytest.mark.parametrize("radius", [0.1, 50.0])
def test_turning_of_a_linear_model_on_a_circle(radius: float) -> None:
    """f' = Wτ turns with the unit tangent τ by 2π/k a point; of an isometry W: ½·k·2·sin(π/k), about π."""
    weight = torch.linalg.qr(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))[0]
    model = linear(weight.tolist())
    for k in (3, 64, 4096):
        for batch in (1000, 17):
            assert path_turning(model, circle(radius), k, batch) == pytest.approx(k * math.sin(math.pi / k), rel=1e-4)


def test_turning_of_a_linear_model_on_a_polyline() -> None:
    """f' is constant on an edge, so that only the turns at the corners remain, √2 each on a square."""
    square = Polyline(torch.tensor([[0.0, 0.0], [2, 0], [2, 2], [0, 2]]))
    model = linear([[3.0, 0.0], [0.0, 3.0]], [1.0, 2.0])
    assert path_turning(model, square, 40, 7) == pytest.approx(0.5 * 4 * 3 * math.sqrt(2), rel=1e-5)


def test_turning_at_a_kink() -> None:
    """On a line back and forth the slope is 1 or 0 behind a ReLU, −1 or 0 on the way back: 1, 1 and twice nothing."""
    there_and_back = Polyline(torch.tensor([[-1.0], [1.0]]))
    # 0 → 1 in the middle, 1 → −1 at the end, −1 → 0 in the middle, 0 → 0 at the beginning.
    assert path_turning(nn.ReLU(), there_and_back, 1000, 64) == pytest.approx(0.5 * 4)


def test_a_transformer() -> None:
    """Its fused kernels hide the activations, and have no forward derivative."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(40, 3)).eval()
    path = ellipse_through(*torch.randn(3, 5, 8).unbind())
    found = find_activations(model, torch.randn(3, 5, 8))
    assert [activation.shape for activation in found] == [(5, 16)]
    assert count_transitions(model, found, path, 200, 64).sum() > 0
    assert path_turning(model, path, 50, 20) > 0


def test_turning_of_a_constant_output() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 2)

    assert path_turning(Constant(), circle(1), 10, 4) == 0


def test_turning_matches_double_precision(cnn: nn.Sequential) -> None:
    """Rounding errors of float32 do not accumulate over many points."""
    path = ellipse_through(*torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)).unbind())

    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return cnn(x.double())

    single = path_turning(cnn, path, 2**12, 256)
    cnn.double()
    assert single == pytest.approx(path_turning(Double(), path, 2**12, 256), rel=1e-3)


def test_parts_of_a_trajectory(cnn: nn.Sequential) -> None:
    """Step i of k is in part ⌊i · parts/k⌋, and each part is counted from all codes at once."""
    path = ellipse_through(*torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)).unbind())
    found = find_activations(cnn, torch.randn(3, 1, 8, 8))
    with torch.no_grad():
        code = (cnn[1](cnn[0](path.points(0, 101, 101))) > 0).long().flatten(1)
    steps = (code - code.roll(-1, 0)).abs().sum(1)
    for parts in (1, 2, 7, 100, 101):
        expected = [0] * parts
        for step, count in enumerate(steps.tolist()):
            expected[step * parts // 101] += count
        for batch in (1, 2, 10, 101, 500):
            assert count_transitions(cnn, found, path, 101, batch, parts)[0].tolist() == expected
