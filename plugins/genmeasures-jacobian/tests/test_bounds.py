"""Cross-entropy bounds, compared with manual calculations, and their order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from genmeasures_jacobian import approximation, exact_backward, lower_bound, upper_bound
from genmeasures_jacobian.jacobian import runner
from jacobian_networks import linear


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
    square = float(found.logits.mean()) / 6
    assert square == pytest.approx(9, rel=1e-5)
    loss = torch.nn.functional.cross_entropy(run(inputs)[:, :, 0].double(), targets, reduction="none").detach().numpy()
    own, whole = found.target.sqrt().numpy(), found.jacobian[0].sqrt().numpy()
    assert (lower_bound(loss, square, 6) <= own * 1.0001).all()
    assert (own <= upper_bound(loss, square) * 1.0001).all()
    assert (lower_bound(loss, square, 6) <= whole * 1.0001).all()


def test_the_approximation_is_exact_for_equal_other_probabilities() -> None:
    weight = torch.eye(4)
    inputs = torch.tensor([[2.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    found = exact_backward(runner(linear(weight)), inputs, True)
    loss = -inputs.double().log_softmax(1)[:, 0].numpy()
    np.testing.assert_allclose(approximation(loss, 1, 4), found.jacobian[0].sqrt().numpy(), rtol=1e-6)
