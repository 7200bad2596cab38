"""Ablation, compared with a copy whose weights are zero."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ars_networks import data, images, small, traced
from genmeasures_ars import accuracy_curve, kernel_order, largest_gap
from torch import Tensor, nn

from genmeasures.plugin import DataError, OptionError, Undefined


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("place", [0, 1])
def test_against_zeroed_weights(norm: bool, place: int) -> None:
    model = small(norm)
    x, y = images(60)
    layer = traced(model, x)[place]
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(layer.layer.channels, generator=generator).numpy() for _ in range(2)]
    curves = accuracy_curve(model, layer, orders, data(x, y).batches("test"))
    for order, curve in zip(orders, curves, strict=True):
        pruned = copy.deepcopy(model)
        where = dict(pruned.named_modules())
        for count in range(len(order) + 1):
            if count:
                kernel = int(order[count - 1])
                following = where[str(int(layer.layer.name) + 1)]
                for module in (where[layer.layer.name], following):
                    for parameter in module.parameters():
                        with torch.no_grad():
                            parameter[kernel] = 0
            expected = float((pruned(x).argmax(1) == y[:, 0]).double().mean())
            assert curve[count] == pytest.approx(expected)


def test_orders() -> None:
    scores = [0.3, np.nan, 0.1, 0.3]
    assert kernel_order(scores, "ascending").tolist() == [2, 0, 3, 1]
    assert kernel_order(scores, "descending").tolist() == [1, 3, 0, 2]
    one, other = (kernel_order(range(50), "random", torch.Generator().manual_seed(4)) for _ in range(2))
    assert one.tolist() == other.tolist()
    assert sorted(one) == list(range(50))
    with pytest.raises(OptionError, match="order must be one of ascending, descending, random, got 'up'"):
        kernel_order(scores, "up")
    with pytest.raises(OptionError, match="generator"):
        kernel_order(scores, "random")


def test_gap() -> None:
    assert largest_gap([0.9, 0.2, 0.1], [0.9, 0.8, 0.1]) == pytest.approx(0.6)
    assert largest_gap([0.9, 0.8, 0.1], [0.9, 0.2, 0.1]) == 0


def test_a_model_that_is_not_a_classifier() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()).eval()
    x, y = images(6)
    with pytest.raises(DataError, match="classifier"):
        accuracy_curve(model, traced(model, x)[0], [[0, 1, 2]], data(x, y).batches("test"))


@pytest.mark.parametrize("outputs", [1, 2])
def test_fewer_outputs_than_classes_have_no_accuracy(outputs: int) -> None:
    """The largest of one logit is always the first, which would be a constant guess."""
    x, y = images(12)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, outputs)
    ).eval()
    y = torch.arange(12)[:, None] % (outputs + 1)
    with pytest.raises(Undefined, match=rf"one output per class.* got outputs of shape \({outputs},\)"):
        accuracy_curve(model, traced(model, x)[0], [range(3)], data(x, y).batches("test"))


def test_without_classes() -> None:
    x, y = images(6)
    model = small()
    for targets in (None, y.float(), y.repeat(1, 2)):
        with pytest.raises(DataError, match="cumulative ablation needs"):
            accuracy_curve(model, traced(model, x)[0], [range(5)], data(x, targets).batches("test"))


def test_inputs_without_a_label_do_not_count() -> None:
    model = small(False)
    x, y = images(60)
    y[::3] = -1
    layer = traced(model, x)[0]
    orders = [np.arange(layer.layer.channels)]
    known = y[:, 0] >= 0
    curves = accuracy_curve(model, layer, orders, data(x, y).batches("test"))
    expected = accuracy_curve(model, layer, orders, data(x[known], y[known]).batches("test"))
    np.testing.assert_allclose(curves, expected, rtol=1e-12)
    with pytest.raises(Undefined, match="no inputs with a label"):
        accuracy_curve(model, layer, orders, data(x, torch.full_like(y, -1)).batches("test"))


def test_a_model_that_differentiates_in_its_forward_pass() -> None:
    """Its gradients are of what the layers made: it would not do to write over that."""

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (made,) = torch.autograd.grad(self.conv(x).tanh().sum(), x)
            return made.flatten(1)

    model, (x, y) = Slope().eval(), images(6)
    with pytest.raises(Undefined, match="computes gradients within its forward pass"):
        accuracy_curve(model, traced(model, x)[0], [range(3)], data(x, y).batches("test"))
