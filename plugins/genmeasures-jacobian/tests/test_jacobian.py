"""Exact and estimated norms, compared with closed forms and torch.autograd.functional."""

from __future__ import annotations

import math

import pytest
import torch
from genmeasures_jacobian import Softmax, exact_backward, exact_forward, hutchinson, norms
from genmeasures_jacobian.inputs import fitting_rows
from genmeasures_jacobian.jacobian import runner
from genmeasures_jacobian.projections import signs
from jacobian_networks import centered_squares, convolutional, dense, images, jacobians, linear
from torch import Tensor, nn

from genmeasures.plugin import ModelError, Undefined


def squares(jacobian: Tensor) -> Tensor:
    return jacobian.square().sum((1, 2))


@pytest.mark.parametrize("exact", [exact_backward, exact_forward])
def test_linear_model_in_closed_form(exact: type) -> None:
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]])
    inputs = torch.tensor([[0.3, -0.2], [1.0, 0.7]])
    targets = torch.tensor([2, 0])
    found = exact(runner(linear(weight)), inputs, True, targets)
    for row, one in enumerate(inputs.double()):
        p = torch.softmax(weight.double() @ one, 0)
        by_hand = (torch.diag(p) - torch.outer(p, p)) @ weight.double()
        assert float(found.jacobian[0, row]) == pytest.approx(float(by_hand.square().sum()), rel=1e-5)
        assert float(found.target[row]) == pytest.approx(float(by_hand[targets[row]].square().sum()), rel=1e-5)
        assert float(found.centered[0, row]) == pytest.approx(float(centered_squares(weight[None])), rel=1e-6)
    of_logits = exact(runner(linear(weight)), inputs, False, targets)
    assert of_logits.jacobian[0].tolist() == pytest.approx([15.25, 15.25])
    assert of_logits.target.tolist() == pytest.approx([1.0, 5.0])


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("network", [convolutional, dense])
def test_backward_and_forward_agree_with_autograd(network: type, softmax: bool) -> None:
    model, inputs = network(), images(4)
    expected = jacobians(model, inputs, softmax)
    backward = exact_backward(runner(model), inputs, softmax)
    forward = exact_forward(runner(model), inputs, softmax, rows=40)
    torch.testing.assert_close(backward.jacobian[0], squares(expected), rtol=1e-4, atol=0)
    torch.testing.assert_close(forward.jacobian[0], squares(expected), rtol=1e-4, atol=0)
    by_position = jacobians(model, inputs, False).unflatten(1, (backward.output.shape[1], -1))
    expected = sum(centered_squares(by_position[:, :, position]) for position in range(by_position.shape[2]))
    torch.testing.assert_close(backward.centered[0], expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(forward.centered, backward.centered, rtol=1e-4, atol=0)


def test_rows_of_true_classes_agree_with_autograd() -> None:
    model, inputs = convolutional(), images(6)
    targets = torch.tensor([0, 1, 2, 3, 4, 2])
    expected = jacobians(model, inputs, True)[torch.arange(6), targets].square().sum(1)
    seeds = range(6)
    for found in (
        exact_backward(runner(model), inputs, True, targets),
        exact_forward(runner(model), inputs, True, targets, rows=7),
        hutchinson(runner(model), inputs, True, seeds, 2, targets),
    ):
        torch.testing.assert_close(found.target, expected, rtol=1e-4, atol=0)


def test_jacobian_of_a_confident_network() -> None:
    # At 1 − σ ≈ e^{−40} the softmax is constant in float32. With p = (1 − ε, ε): J = ε [[1, −1], [−1, 1]] W.
    weight = torch.tensor([[40.0, 1.0], [0.0, 2.0]])
    inputs = torch.tensor([[1.0, 0.0]])
    difference = weight[0] - weight[1]
    expected = 2 * math.exp(-40) ** 2 * float(difference.square().sum())
    run = runner(linear(weight))
    # abs=0: the absolute 1e-12 that approx allows otherwise is far more than what is expected, 1e-32.
    assert float(exact_backward(run, inputs, True).jacobian) == pytest.approx(expected, rel=1e-5, abs=0)
    assert float(exact_forward(run, inputs, True).jacobian) == pytest.approx(expected, rel=1e-5, abs=0)
    assert float(hutchinson(run, inputs, True, [0], 1024).jacobian.mean()) == pytest.approx(expected, rel=0.1, abs=0)
    loss = Softmax((inputs @ weight.T)[:, :, None]).cross_entropy(torch.tensor([0]))
    assert float(loss) == pytest.approx(math.exp(-40), rel=1e-12, abs=0)


def test_cross_entropy() -> None:
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * 3
    targets = torch.arange(20) % 4
    expected = nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(Softmax(logits[:, :, None]).cross_entropy(targets), expected)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("network", [convolutional, dense])
def test_estimates_are_unbiased_with_the_stated_error(network: type, softmax: bool) -> None:
    model, inputs = network(), images(3)
    expected = squares(jacobians(model, inputs, softmax))
    found = hutchinson(runner(model), inputs, softmax, range(3), 500).jacobian
    error = found.std(0) / math.sqrt(500)
    assert ((found.mean(0) - expected).abs() < 4 * error).all()
    assert (error < 0.1 * expected).all()


def test_norms_from_few_projections_have_little_bias() -> None:
    # Rank one: the worst case, ‖vᵀJ‖² = (v·u)² with a relative variance near 2.
    vectors = signs([5], 16 * 4000, 64)[:, 0].double().view(16, 4000, 64)
    projected = vectors.sum(2).square() / 64
    found, error = norms(projected)
    assert float(projected.mean()) == pytest.approx(1, abs=0.02)
    assert float(projected.mean(0).sqrt().mean()) < 0.99
    assert float(found.mean()) == pytest.approx(1, abs=0.006)
    assert float(error.square().mean().sqrt()) == pytest.approx(float(found.std()), rel=0.15)


def test_norms_of_zeros_are_zero() -> None:
    found, error = norms(torch.zeros(4, 2, dtype=torch.float64))
    assert found.tolist() == error.tolist() == [0, 0]


def test_signs_do_not_depend_on_the_batch() -> None:
    together = signs([7, 8, 9], 3, 13)
    assert together.shape == (3, 3, 13)
    assert set(together.unique().tolist()) == {-1, 1}
    assert torch.equal(together[:, 1:2], signs([8], 3, 13))
    assert not torch.equal(together[:, 0], together[:, 1])


def test_outputs_that_cannot_be_differentiated() -> None:
    inputs = torch.randn(3, 4)

    class Tuple(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x,)

    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean()

    with pytest.raises(ModelError, match="must be one floating-point tensor, got tuple"):
        exact_backward(runner(Tuple()), inputs, True)
    with pytest.raises(ModelError, match="first dimension of the output of the model must be the batch"):
        exact_backward(runner(Pooled()), inputs, True)
    for exact in (exact_backward, exact_forward):
        with pytest.raises(Undefined, match="no gradient"):
            exact(runner(Detached()), inputs, True)


class Own(nn.Module):
    """Detaches its input and builds a graph from another leaf, as models of forces do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return self.first(x.detach().requires_grad_()).tanh()


def test_a_graph_that_does_not_reach_the_input_is_undefined() -> None:
    inputs, run = torch.randn(3, 4), runner(Own())
    with pytest.raises(Undefined, match="no gradient"):
        exact_backward(run, inputs, True)
    with pytest.raises(Undefined, match="no gradient"):
        hutchinson(run, inputs, True, range(3), 4)


def test_models_that_call_torch_func_are_differentiated() -> None:
    """Their memory is not known from saved tensors, so that batches have one input. Compared with the closed form."""

    class Slope(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = torch.func.grad(lambda x: x.square().square().sum())(x)
            return made

    inputs = torch.randn(3, 4)
    assert fitting_rows(Slope(), Slope(), inputs, 256) == 1
    found = exact_backward(runner(Slope()), inputs, False).jacobian[0]
    torch.testing.assert_close(found, (12 * inputs.double().square()).square().sum(1), rtol=1e-5, atol=0)
