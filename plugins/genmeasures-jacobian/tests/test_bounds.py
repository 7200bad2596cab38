"""Cross-entropy bounds, compared with manual calculations, and their order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from genmeasures_jacobian import JacobianNorm, approximation, exact_backward, lower_bound, upper_bound
from genmeasures_jacobian.jacobian import runner
from jacobian_networks import centered_squares, convolutional, data_of, images, jacobians, linear
from torch import Tensor, nn


def test_by_hand() -> None:
    # n = 5, M = 4, σ_y = ½: lower √5 · ¼, upper √8 · ¼, approximation 2/4 · ½ · √(25/4 + 3) = √37/8.
    loss = math.log(2)
    assert float(lower_bound(loss, 4, 5)) == pytest.approx(0.5590169944)
    assert float(upper_bound(loss, 4)) == pytest.approx(0.7071067812)
    assert float(approximation(loss, 4, 5)) == pytest.approx(0.7603453163)


def test_bounds_are_equal_for_two_classes() -> None:
    loss = np.linspace(0.01, 4, 9)
    np.testing.assert_allclose(lower_bound(loss, 3, 2), upper_bound(loss, 3))
    np.testing.assert_allclose(approximation(loss, 3, 2), math.sqrt(2) * upper_bound(loss, 3))


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_order(classes: int) -> None:
    loss = np.concatenate([np.logspace(-12, 1, 50), [50.0]])
    lower = lower_bound(loss, 2.5, classes)
    assert (lower <= upper_bound(loss, 2.5) * (1 + 1e-12)).all()
    assert (lower <= approximation(loss, 2.5, classes)).all()


def test_bounds_vanish_without_loss() -> None:
    assert lower_bound(0.0, 1, 10) == upper_bound(0.0, 1) == approximation(0.0, 1, 10) == 0
    assert float(lower_bound(1e-18, 1, 2)) == pytest.approx(math.sqrt(2) * 1e-18, abs=0)


@pytest.mark.parametrize("seed", range(2))
def test_bounds_hold_for_orthogonal_gradients_of_logits(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    orthogonal, _ = torch.linalg.qr(torch.randn(12, 6, generator=generator))
    weight = 3 * orthogonal.T
    inputs = torch.randn(40, 12, generator=generator)
    targets = torch.randint(6, (40,), generator=generator)
    run = runner(linear(weight))
    found = exact_backward(run, inputs, True, targets)
    square = float(found.centered.mean()) / 5
    assert square == pytest.approx(9, rel=1e-5)
    loss = torch.nn.functional.cross_entropy(run(inputs)[:, :, 0].double(), targets, reduction="none").detach().numpy()
    own, whole = found.target.sqrt().numpy(), found.jacobian[0].sqrt().numpy()
    assert (lower_bound(loss, square, 6) <= own * 1.0001).all()
    assert (own <= upper_bound(loss, square) * 1.0001).all()
    assert (lower_bound(loss, square, 6) <= whole * 1.0001).all()


def measured(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
    return dict(JacobianNorm().measure(model, [], data_of(inputs, targets[:, None])))


def simplex(classes: int, size: int, generator: torch.Generator) -> Tensor:
    """Gradients (classes, size) of equal distances from each other, about a common gradient."""
    directions, _ = torch.linalg.qr(torch.randn(size, classes, generator=generator))
    return 2.5 * (torch.eye(classes) - 1 / classes) @ directions.T + 3 * torch.randn(size, generator=generator)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_bounds_are_exact_for_gradients_shaped_like_a_simplex(classes: int) -> None:
    """However large the gradient that all logits have in common, which the Jacobian of the softmax does not see.

    The lower bound is reached where all other classes are equally probable, the upper one where one of them has all.
    """
    generator = torch.Generator().manual_seed(classes)
    weight = simplex(classes, 12, generator)
    logits = torch.full((6, classes), -200.0)
    logits[:3] = 0
    logits[:, 0] = torch.tensor([-1.0, 0.5, 2.0] * 2)
    logits[3:, 1] = 0
    inputs = (torch.linalg.pinv(weight - weight.mean(0)) @ (logits - logits.mean(1, keepdim=True)).T).T
    found = measured(linear(weight).double(), inputs.double(), torch.zeros(6, dtype=torch.long))
    # Gradients with 2.5 (e_j − 1/n): each of n has the square norm 2.5² (n − 1)/n.
    assert found["logit_gradient_square"] == pytest.approx(2.5**2, rel=1e-5)
    norm, lower, upper = (found[f"jacobian_norm_sample_{name}"] for name in ("target", "lower", "upper"))
    losses = -torch.log_softmax(logits.double(), 1)[:, 0].flip(0).numpy()
    np.testing.assert_allclose(found["jacobian_norm_sample_loss"], losses, rtol=1e-4)
    np.testing.assert_allclose(norm[3:], lower[3:], rtol=1e-5)  # the sample is in reverse order
    np.testing.assert_allclose(norm[:3], upper[:3], rtol=1e-5)
    assert found["jacobian_norm_below"] == found["jacobian_norm_above"] == 0
    assert found["jacobian_norm_sample_correct"].tolist() == [1, 1, 0, 1, 1, 0]


def test_two_classes_lie_on_their_bounds_whatever_their_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 9, generator=generator) + 5 * torch.randn(9, generator=generator)
    inputs, targets = torch.randn(30, 9, generator=generator), torch.randint(2, (30,), generator=generator)
    found = measured(linear(weight), inputs, targets)
    assert found["logit_gradient_square"] == pytest.approx(float((weight[0] - weight[1]).square().sum()) / 2, rel=1e-5)
    for bound in ("lower", "upper"):
        norm = found["jacobian_norm_sample_target"]
        np.testing.assert_allclose(norm, found[f"jacobian_norm_sample_{bound}"], rtol=1e-4)


def test_values_of_each_input_by_brute_force() -> None:
    model, inputs, classes = convolutional(), images(), torch.arange(12) % 5
    found = measured(model, inputs, classes)
    gradients, own = jacobians(model, inputs, False), jacobians(model, inputs, True)
    square = float(centered_squares(gradients).mean()) / 4
    assert found["logit_gradient_square"] == pytest.approx(square, rel=1e-4)
    norm = own[torch.arange(12), classes].square().sum(1).sqrt().numpy()
    np.testing.assert_allclose(found["jacobian_norm_sample_target"], norm[::-1], rtol=1e-4)
    probability = model(inputs).double().softmax(1)[torch.arange(12), classes].detach().numpy()
    lower = np.sqrt(5 / 4 * square) * probability * (1 - probability)
    upper = np.sqrt(2 * square) * probability * (1 - probability)
    np.testing.assert_allclose(found["jacobian_norm_sample_lower"], lower[::-1], rtol=1e-4)
    np.testing.assert_allclose(found["jacobian_norm_sample_upper"], upper[::-1], rtol=1e-4)
    assert found["jacobian_norm_below"] == pytest.approx((norm < lower).mean())
    assert found["jacobian_norm_above"] == pytest.approx((norm > upper).mean())
    assert found["jacobian_norm_below"] + found["jacobian_norm_above"] > 0
    correct = (model(inputs).argmax(1) == classes).double().numpy()
    assert found["jacobian_norm_sample_correct"].tolist() == correct[::-1].tolist()


def test_the_approximation_is_exact_for_equal_other_probabilities() -> None:
    weight = torch.eye(4)
    inputs = torch.tensor([[2.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    found = exact_backward(runner(linear(weight)), inputs, True)
    loss = -inputs.double().log_softmax(1)[:, 0].numpy()
    np.testing.assert_allclose(approximation(loss, 1, 4), found.jacobian[0].sqrt().numpy(), rtol=1e-6)
