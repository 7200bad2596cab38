"""Activation codes, their thresholds, and the layers that activations follow."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from genmeasures_transitions import Ellipse, count_transitions, ellipse_through, find_activations, survey
from genmeasures_transitions.counting import codes
from torch import Tensor, nn

from genmeasures.plugin import Undefined
from genmeasures.testing import layers_of


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before = nn.Linear(3, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.before(x))


SLOPE = torch.tensor(0.2)
CODED: list[tuple[Callable[[Tensor], Tensor], tuple[float, ...]]] = [
    (nn.ReLU(), (0,)),
    (nn.ReLU(inplace=True), (0,)),
    (F.relu, (0,)),
    (F.relu_, (0,)),
    (torch.relu, (0,)),
    (torch.relu_, (0,)),
    (lambda x: x.relu(), (0,)),
    (lambda x: x.relu_(), (0,)),
    (lambda x: torch.relu(input=x), (0,)),
    (nn.LeakyReLU(0.3), (0,)),
    (nn.LeakyReLU(0.3, inplace=True), (0,)),
    (F.leaky_relu, (0,)),
    (F.leaky_relu_, (0,)),
    (nn.PReLU(), (0,)),
    (lambda x: F.prelu(x, SLOPE), (0,)),
    (lambda x: x.prelu(SLOPE), (0,)),
    (nn.ReLU6(), (0, 6)),
    (nn.ReLU6(inplace=True), (0, 6)),
    (F.relu6, (0, 6)),
    (nn.Hardtanh(), (-1, 1)),
    (nn.Hardtanh(-2, 3, inplace=True), (-2, 3)),
    (F.hardtanh, (-1, 1)),
    (lambda x: F.hardtanh(x, -0.5, 0.5), (-0.5, 0.5)),
    (lambda x: F.hardtanh(x, max_val=4), (-1, 4)),
    (lambda x: F.hardtanh_(x, -2.0, 2.0), (-2, 2)),
    (nn.Hardsigmoid(), (-3, 3)),
    (nn.Hardsigmoid(inplace=True), (-3, 3)),
    (F.hardsigmoid, (-3, 3)),
    (lambda x: x.clamp(min=0), (0,)),
    (lambda x: x.clamp_(-1, 2), (-1, 2)),
    (lambda x: torch.clamp(x, max=torch.tensor(0.5)), (0.5,)),
    (lambda x: torch.clip(x, -1, None), (-1,)),
    (lambda x: x.clip_(min=-2.0, max=math.inf), (-2,)),
    (lambda x: x.clamp_min(0.5), (0.5,)),
    (lambda x: torch.clamp_max_(x, max=0.5), (0.5,)),
    (nn.Threshold(0.1, 20), (0.1,)),
    (nn.Threshold(0.25, 0.25, inplace=True), (0.25,)),
    (lambda x: F.threshold(x, 0.3, 0.0), (0.3,)),
    (nn.Hardshrink(), (-0.5, 0.5)),
    (lambda x: F.hardshrink(x, lambd=0.2), (-0.2, 0.2)),
    (lambda x: x.hardshrink(0.3), (-0.3, 0.3)),
    (nn.Softshrink(0.7), (-0.7, 0.7)),
    (F.softshrink, (-0.5, 0.5)),
    (torch.ops.aten.relu, (0,)),
    (torch.ops.aten.hardtanh_.default, (-1, 1)),
    (lambda x: torch.ops.aten.max.other(x, torch.zeros(4)), (0,)),
    (torch.abs, (0,)),
    (abs, (0,)),
    (lambda x: x.abs_(), (0,)),
    (lambda x: torch.maximum(x, torch.zeros(())), (0,)),
    (lambda x: torch.maximum(torch.full((4,), 0.2), x), (0,)),
    (lambda x: torch.max(x, torch.zeros(1)), (0,)),
    (lambda x: x.minimum(torch.ones(4)), (0,)),
    (lambda x: torch.minimum(x, x.flip(1)), (0,)),
]


@pytest.mark.parametrize("place", range(len(CODED)))
def test_activations_with_a_code(place: int) -> None:
    function, thresholds = CODED[place]
    model = Calls(function).eval()
    layers = layers_of(model, torch.randn(3, 3))
    (activation,) = find_activations(model, torch.randn(3, 3), layers)
    assert activation.thresholds == thresholds
    assert activation.shape == (4,)
    assert activation.layer == 0


def test_the_code_is_the_number_of_the_linear_piece() -> None:
    x = torch.tensor([[-4.0, -2.0, -0.5, 0.5, 2.0, 4.0, 7.0]])
    for function, pieces in (
        (F.relu, [0, 0, 0, 1, 1, 1, 1]),
        (F.relu6, [0, 0, 0, 1, 1, 1, 2]),
        (F.hardtanh, [0, 0, 1, 1, 2, 2, 2]),
        (F.hardsigmoid, [0, 1, 1, 1, 1, 2, 2]),
    ):
        (activation,) = find_activations(Calls(function).eval(), torch.randn(3, 3))
        assert sum(code.astype(int) for code in codes(x, activation.thresholds)).tolist() == [pieces]


def test_codes_in_any_memory_format_and_dtype() -> None:
    x = torch.randn(4, 3, 5, 2)
    plain = codes(x, (0.0,))[0]
    assert (codes(x.to(memory_format=torch.channels_last), (0.0,))[0] == plain.transpose(0, 2, 3, 1)).all()
    assert torch.equal(codes(x.bfloat16(), (0.0,))[0], torch.from_numpy(plain))


PIECES: list[tuple[Callable[[Tensor], Tensor], list[float]]] = [
    (lambda x: x.clamp(-0.3, 0.6), [-0.3, 0.6]),
    (lambda x: torch.clamp(x, min=0.1), [0.1]),
    (lambda x: F.threshold(x, 0.2, -1.0), [0.2]),
    (lambda x: F.hardshrink(x, 0.4), [-0.4, 0.4]),
    (lambda x: F.softshrink(x, 0.4), [-0.4, 0.4]),
    (torch.abs, [0]),
    (lambda x: torch.maximum(x, torch.tensor(0.3)), [0.3]),
    (lambda x: torch.min(torch.tensor([-0.2]), x), [-0.2]),
]


@pytest.mark.parametrize("place", range(len(PIECES)))
def test_transitions_are_the_kinks_of_the_function_of_each_unit(place: int) -> None:
    """The kinks are found from second differences of the outputs of the units on a fine path, not from thresholds."""
    function, kinks = PIECES[place]
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(3, 6).double()
    layer.weight.data = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    layer.bias.data = torch.randn(6, generator=generator, dtype=torch.float64) * 0.2

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return function(self.layer(x))

    path = ellipse_through(*torch.randn(3, 3, generator=generator, dtype=torch.float64).unbind())
    model = Model().eval()
    points = path.points(0, 20000, 20000)
    with torch.no_grad():
        before, after = layer(points).numpy(), model(points).numpy()
    slopes = (np.roll(after, -1, 0) - after) / (np.roll(before, -1, 0) - before)
    # Within a step from a kink to the next one the slope is that of a piece; at a kink it takes two jumps or a step.
    jumps = np.abs(slopes - np.roll(slopes, 1, 0)) > 1e-3
    expected = int((jumps & ~np.roll(jumps, 1, 0)).sum())
    assert expected > len(kinks)
    assert count_transitions(model, find_activations(model, points[::2500]), path, 20000, 500).tolist() == [[expected]]


KINKS: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda x: F.max_pool1d(x, 2), "max_pool1d"),
    (lambda x: x + x.sign(), "sign"),
    (torch.round, "round"),
    (lambda x: torch.where(x > 0, x, x.new_zeros(())), "gt, where"),
    (lambda x: x * (x >= 0), "ge"),
    (lambda x: x.masked_fill(x < 0, 0.0), "lt, masked_fill"),
    (lambda x: x.max(1, keepdim=True).values, "max"),
    (lambda x: x.amax(1, keepdim=True), "amax"),
    (lambda x: x.sort(1).values, "sort"),
    (lambda x: torch.clamp(x, min=torch.zeros(4)), "clamp"),
    (lambda x: x.norm(p=1, dim=1, keepdim=True), "norm"),
    (lambda x: torch.linalg.vector_norm(x, math.inf, dim=1, keepdim=True), "vector_norm"),
    (lambda x: F.normalize(x, 1), "normalize"),
    (lambda x: F.pairwise_distance(x, torch.ones(4), 1, keepdim=True), "pairwise_distance"),
    (lambda x: torch.cdist(torch.eye(4), x, p=1).T, "cdist"),
    (lambda x: F.lp_pool1d(x[:, None], 2, 2)[:, 0], "lp_pool1d"),
    (lambda x: x.renorm(2, 0, 0.1), "renorm"),
    (lambda x: x * torch.signbit(x), "signbit"),
    (lambda x: torch.copysign(torch.ones(()), other=x), "copysign"),
    (lambda x: x.nanmedian(1, keepdim=True).values, "nanmedian"),
    (lambda x: x + x // 1, "floordiv"),
    (lambda x: x + torch.ops.aten.sign(x), "sign"),
    (lambda x: torch.ops.aten.max.dim(x, 1, True)[0], "max"),
]


def test_norms_of_order_two_have_no_kinks() -> None:
    model = Calls(lambda x: F.relu(F.normalize(x) + x.norm(dim=1, keepdim=True) + torch.cdist(x, torch.eye(4)))).eval()
    assert survey(model, torch.randn(8, 3)).note == ""


@pytest.mark.parametrize("place", range(len(KINKS)))
def test_kinks_without_a_code_are_named(place: int) -> None:
    function, names = KINKS[place]
    torch.manual_seed(0)
    model = nn.Sequential(Calls(function), nn.ReLU()).eval()
    found = survey(model, torch.randn(8, 3))
    assert found.note == f"kinks of {names} are not counted"
    assert [activation.name for activation in found.coded] == ["relu"]


def test_what_does_not_depend_on_the_input_has_no_kinks() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)
            self.scale = nn.Parameter(torch.tensor(-0.5))

        def forward(self, x: Tensor) -> Tensor:
            scale = self.scale.clamp(min=0.1) * torch.relu(torch.tensor([1.0, -1.0, 2.0, 3.0]))
            mask = (torch.arange(4) > 1).expand(len(x), 4)
            return F.relu(self.layer(x).masked_fill(mask, 0.0)) * scale

    torch.manual_seed(0)
    model = Masked().eval()
    found = survey(model, torch.randn(8, 3), layers_of(model, torch.randn(3, 3)))
    assert found.note == ""
    assert [activation.thresholds for activation in found.coded] == [(), (), (0.0,)]
    circle = Ellipse(torch.zeros(3), torch.tensor([99.0, 0.0, 0.0]), torch.tensor([0.0, 99.0, 0.0]))
    counts = count_transitions(model, found.coded, circle, 100, 32)[:, 0]
    assert counts[:2].tolist() == [0, 0]
    assert counts[2] == 4  # both units that no mask hides are positive on one half of a large circle


SMOOTH: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (nn.Sigmoid(), "sigmoid"),
    (torch.sigmoid, "sigmoid"),
    (lambda x: x.sigmoid(), "sigmoid"),
    (nn.Tanh(), "tanh"),
    (lambda x: x.tanh_(), "tanh"),
    (nn.GELU(), "gelu"),
    (nn.SiLU(), "silu"),
    (nn.Mish(), "mish"),
    (nn.ELU(), "elu"),
    (nn.SELU(), "selu"),
    (nn.CELU(), "celu"),
    (nn.Softplus(), "softplus"),
    (nn.Hardswish(), "hardswish"),
    (nn.RReLU(), "rrelu"),
]


@pytest.mark.parametrize("place", range(len(SMOOTH)))
def test_activations_without_a_code_are_named(place: int) -> None:
    function, name = SMOOTH[place]
    model = nn.Sequential(Calls(function), nn.ReLU()).eval()
    with pytest.raises(Undefined, match=f"{name} has no activation code"):
        find_activations(model, torch.randn(3, 3))


def test_recurrent_layers_have_no_code() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.lstm(x)[0])

    with pytest.raises(Undefined, match="lstm"):
        find_activations(Last().eval(), torch.randn(3, 5, 3))


def test_a_model_without_activations() -> None:
    with pytest.raises(Undefined, match="no activation"):
        find_activations(nn.Linear(3, 3), torch.randn(3, 3))


def test_the_batch_must_come_first() -> None:
    model = Calls(lambda x: F.relu(x.T).T).eval()
    with pytest.raises(Undefined, match="first dimension"):
        find_activations(model, torch.randn(4, 3))


class Block(nn.Module):
    """A residual block that adds in place, and a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.two = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.norm(self.one(x))), training=self.training)
        out = self.two(x)
        out += x
        out = F.relu(out)
        return F.relu6(self.one(out))


def test_attribution_to_the_layer_that_an_activation_follows() -> None:
    model = Block().eval()
    layers = layers_of(model, torch.randn(3, 3))
    assert [layer.name for layer in layers] == ["one", "two", "one#2"]
    assert [found.layer for found in find_activations(model, torch.randn(3, 3), layers)] == [0, None, 2]
    assert [found.layer for found in find_activations(model, torch.randn(3, 3), layers[2:])] == [None, None, 0]


def test_a_second_activation_follows_no_layer() -> None:
    for inplace in (False, True):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace), nn.Hardtanh(inplace=inplace))
        layers = layers_of(model, torch.randn(3, 3))
        assert [found.layer for found in find_activations(model, torch.randn(3, 3), layers)] == [0, None]
