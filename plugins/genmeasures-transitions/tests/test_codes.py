"""Activation codes, their thresholds, and the layers that activations follow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from genmeasures_transitions import find_activations
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
    (lambda x: x.clamp(min=0), "clamp"),
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
