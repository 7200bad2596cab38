"""Curvature and Jacobian norms along trajectories, compared with autograd in double precision at every point."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from genmeasures_transitions import (
    Ellipse,
    Jacobians,
    Polyline,
    TransitionCount,
    changed_codes,
    ellipse_through,
    find_activations,
    path_profile,
)
from genmeasures_transitions.curvature import is_piecewise_linear
from genmeasures_transitions.drawing import draw_triples
from torch import Tensor, nn

from genmeasures.testing import model_data


def relu_net(seed: int = 0, last: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 9), nn.Hardtanh(-0.4, 0.3), nn.Linear(9, 4)]
    return nn.Sequential(*layers, *([] if last is None else [last])).eval()


def ellipse(seed: int = 1, size: int = 5) -> Ellipse:
    return ellipse_through(*(2 * torch.randn(3, size, generator=torch.Generator().manual_seed(seed))).unbind())


def jacobians(model: nn.Module, points: Tensor, head: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """float64 (k, n, d), one input at a time."""
    double = model.double()
    made = [torch.autograd.functional.jacobian(lambda x: head(double(x[None])[0]), x) for x in points.double()]
    model.float()
    return torch.stack(made).flatten(2)


def of(model: nn.Module) -> Jacobians:
    return Jacobians(model, torch.zeros(1, 5), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch", [1, 7, 300])
@pytest.mark.parametrize("coded", [True, False])
def test_against_autograd_at_every_point(batch: int, coded: bool) -> None:
    model, path, k = relu_net(), ellipse(), 200
    found = of(model)
    found.batch = batch
    activations = find_activations(model, torch.randn(3, 5))
    changed = changed_codes(model, activations, path, k, batch)
    profile = path_profile(model, path, k, found, changed if coded else None)
    matrices = jacobians(model, path.points(0, k, k))
    changes = (matrices - matrices.roll(-1, 0)).flatten(1).norm(dim=1)
    np.testing.assert_allclose(profile.changes, changes.numpy(), atol=1e-5)
    np.testing.assert_allclose(profile.logits, matrices.flatten(1).norm(dim=1).numpy(), rtol=1e-5)
    of_softmax = jacobians(model, path.points(0, k, k), lambda x: x.softmax(0))
    np.testing.assert_allclose(profile.softmax, of_softmax.flatten(1).norm(dim=1).numpy(), rtol=1e-4)
    assert profile.curvature == pytest.approx(0.5 * float(changes.sum()), rel=1e-5)
    assert profile.curvature > 0
    assert is_piecewise_linear(activations, [path], [changed], found)


def test_a_linear_network_has_no_curvature() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    profile = path_profile(model, ellipse(), 100, of(model))
    # Kernels may round the points of a batch differently: a few times 6e-8 of the norm in each of 100 steps.
    assert profile.curvature == pytest.approx(0, abs=100 * 3e-7 * float(profile.logits.max()))


def test_a_single_kink_in_closed_form() -> None:
    """f(x) = W relu(x₀): J jumps by W where the path crosses x₀ = 0, twice on a circle, and half of both is ‖W‖."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 3, bias=False)).eval()
    model[0].weight.data = torch.tensor([[1.0, 0.0]])
    model[2].weight.data = torch.tensor([[2.0], [3.0], [6.0]])
    circle = Ellipse(torch.zeros(2), torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0]))
    found = Jacobians(model, torch.zeros(1, 2), torch.Generator())
    for changed in (None, changed_codes(model, find_activations(model, torch.randn(3, 2)), circle, 51, 10)):
        assert path_profile(model, circle, 51, found, changed).curvature == pytest.approx(7)


def test_only_points_behind_a_changed_code_cost_a_jacobian() -> None:
    model, path = relu_net(), ellipse()
    found = of(model)
    counted: list[int] = []

    class Counting(Jacobians):
        def __call__(self, inputs: Tensor, softmax: bool = False) -> tuple[Tensor, Tensor]:
            counted.append(len(inputs))
            return super().__call__(inputs, softmax)

    counting = Counting(model, torch.zeros(1, 5), torch.Generator())
    changed = changed_codes(model, find_activations(model, torch.randn(3, 5)), path, 2000, 100)
    profile = path_profile(model, path, 2000, counting, changed)
    assert sum(counted) <= 1 + int((profile.changes > 0).sum()) + 1
    assert sum(counted) < 200
    assert profile.curvature == pytest.approx(path_profile(model, path, 2000, found).curvature, rel=1e-6)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LayerNorm(4)])
def test_what_bends_a_function_besides_its_activations_is_noticed(last: nn.Module) -> None:
    model = relu_net(last=last)
    activations = find_activations(model, torch.randn(3, 5))
    changed = changed_codes(model, activations, ellipse(), 200, 100)
    assert not is_piecewise_linear(activations, [ellipse()], [changed], of(model))


class Unnamed(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], wide: int = 6) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.before, self.function, self.after = nn.Linear(5, wide), function, nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.after(self.function(self.before(x)))
        return made


WITHOUT_CODE: list[Callable[[Tensor], Tensor]] = [
    lambda h: (h * h).sqrt(),
    lambda h: torch.hypot(h, torch.zeros_like(h)),
    lambda h: h * torch.copysign(torch.ones_like(h), h),
    lambda h: F.lp_pool1d(h[:, None], 2, 1)[:, 0],
    lambda h: h.norm(p=1, dim=1, keepdim=True).expand(-1, 6),
    lambda h: F.pairwise_distance(h, torch.zeros_like(h), p=1, keepdim=True).expand(-1, 6),
    lambda h: h * ~torch.signbit(h),
    torch.ops.aten.relu,
    lambda h: h + (h * h).sqrt() * (torch.arange(6) == 5),  # one unit bends the function
]


@pytest.mark.parametrize("place", range(len(WITHOUT_CODE)))
@pytest.mark.parametrize("coded", [False, True])
def test_curvature_of_functions_without_a_code(place: int, coded: bool) -> None:
    """Whatever the functions are, the Jacobian bends where autograd says that it does, beside coded ones as well."""
    function = WITHOUT_CODE[place]
    model = Unnamed(lambda h: function(h - 0.3) + h.relu() if coded else function(h)).eval()
    inputs, k = 2 * torch.randn(9, 5, generator=torch.Generator().manual_seed(1)), 40
    measure = TransitionCount(points=k, trajectories=2, curvature_points=k)
    values = measure.measure(model, [], model_data(inputs, None, seed=0))
    double = model.double()
    expected = []
    for triple in draw_triples(model_data(inputs, None, seed=0), 2, "any"):
        points = ellipse_through(*triple).points(0, k, k).double()
        by_output = torch.autograd.functional.jacobian(lambda x: double(x).sum(0), points)  # (outputs, k, 5)
        matrices = by_output.transpose(0, 1)
        expected.append(0.5 * float((matrices - matrices.roll(-1, 0)).flatten(1).norm(dim=1).sum()))
    assert max(expected) > 0.1
    assert values["path_curvature"].value == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_smooth_network_converges_to_the_integral() -> None:
    """On the segment from −1 to 1 and back, ½∮|f''| = ∫|f''| of tanh, which is 2 − 2 tanh'(1)."""
    segment = Polyline(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))
    found = Jacobians(nn.Tanh(), torch.zeros(1, 1, dtype=torch.float64), torch.Generator())
    expected = 2 * np.tanh(1.0) ** 2
    assert path_profile(nn.Tanh(), segment, 4000, found).curvature == pytest.approx(expected, rel=1e-6)


def test_many_outputs_are_estimated() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 30), nn.ReLU(), nn.Linear(30, 400)).eval()
    profile = path_profile(model, ellipse(), 60, of(model))
    assert profile.estimated
    matrices = jacobians(model, ellipse().points(0, 60, 60))
    changes = (matrices - matrices.roll(-1, 0)).flatten(1).norm(dim=1)
    assert profile.curvature == pytest.approx(0.5 * float(changes.sum()), rel=0.15)
    np.testing.assert_allclose(profile.logits, matrices.flatten(1).norm(dim=1).numpy(), rtol=0.5)
    of_softmax = jacobians(model, ellipse().points(0, 60, 60), lambda x: x.softmax(0)).flatten(1).norm(dim=1)
    assert isinstance(profile.softmax, np.ndarray)
    assert profile.softmax.mean() == pytest.approx(float(of_softmax.mean()), rel=0.15)


def test_dense_outputs_and_single_outputs_have_no_softmax() -> None:
    for model in (nn.Sequential(nn.Linear(5, 1)), nn.Unflatten(1, (1, 5))):
        profile = path_profile(model.eval(), ellipse(), 5, of(model))
        assert "at least two classes" in str(profile.softmax)
        assert (profile.logits > 0).all()


def test_a_model_that_overwrites_its_input() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu_(x)

    model = InPlace().eval()
    activations = find_activations(model, torch.randn(3, 5))
    changed = changed_codes(model, activations, ellipse(), 40, 30)
    whole = path_profile(model, ellipse(), 40, of(model))
    assert path_profile(model, ellipse(), 40, of(model), changed).curvature == pytest.approx(whole.curvature)
