"""The measure as the engine calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from genmeasures_transitions import (
    RegionCount,
    TransitionCount,
    count_transitions,
    ellipse_through,
    find_activations,
    genmeasures_register,
)
from genmeasures_transitions import measure as measure_module
from genmeasures_transitions.drawing import draw_random, draw_triples
from torch import Tensor, nn

from genmeasures.plugin import ModelData, OptionError, Undefined
from genmeasures.testing import layers_of, model_data

Given = Callable[..., ModelData]
FEW: dict[str, Any] = {"points": 60, "trajectories": 3, "curvature_points": 20}


OPTIONS: list[dict[str, Any]] = [
    {"trajectory": "random_ellipse"},
    {"trajectory": "translations"},
    {"classes": "any"},
    {"classes": "same"},
    {"classes": "different"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_values_and_their_independence_of_batches(cnn: nn.Module, given: Given, options: dict[str, Any]) -> None:
    layers = layers_of(cnn, torch.randn(3, 1, 8, 8))
    measure = TransitionCount(**options, **FEW)
    values = measure.measure(cnn, layers, given(7))
    assert set(values) == {variable.name for variable in measure.variables}
    per_trajectory = values["transition_count_trajectory"]
    assert isinstance(per_trajectory, np.ndarray)
    assert per_trajectory.dtype == np.float64
    assert per_trajectory.shape == (3,)
    assert values["transition_count"].value == pytest.approx(per_trajectory.mean())
    assert values["transition_count"].value > 0
    assert values["transition_count"].note == "kinks of max_pool2d are not counted"
    assert values["path_curvature"].value > 0
    assert values["path_turning"] > 0
    by_layer = values["transition_count_layer"]
    assert len(by_layer) == len(layers) == 4
    assert isinstance(by_layer[3], Undefined)
    assert "no activation" in str(by_layer[3])
    assert sum(by_layer[:3]) == pytest.approx(values["transition_count"].value)
    for batch in (1, 40):
        again = measure.measure(cnn, layers, given(batch))
        assert again["transition_count_trajectory"].tolist() == per_trajectory.tolist()
        # The statistics that random inputs follow are summed from other batches.
        assert again["path_curvature"].value == pytest.approx(values["path_curvature"].value, rel=1e-6)


def test_the_values_are_those_of_the_drawn_trajectories(cnn: nn.Module, given: Given) -> None:
    values = TransitionCount(**FEW).measure(cnn, [], given())
    found = find_activations(cnn, torch.randn(3, 1, 8, 8))
    expected = [
        count_transitions(cnn, found, ellipse_through(*triple), 60, 32).sum()
        for triple in draw_triples(given(), 3, "any")
    ]
    assert values["transition_count_trajectory"].tolist() == expected


def test_classes_of_triples(images: tuple[Tensor, Tensor], given: Given) -> None:
    def classes(triple: tuple[Tensor, ...]) -> list[int]:
        return [int(images[1][int((images[0] == one).flatten(1).all(1).nonzero())]) for one in triple]

    assert all(len(set(classes(triple))) == 1 for triple in draw_triples(given(), 20, "same"))
    assert all(len(set(classes(triple))) == 3 for triple in draw_triples(given(), 20, "different"))
    for kind in ("same", "different", "any"):
        for a, b, c in draw_triples(given(), 20, kind):
            assert not any(torch.equal(one, other) for one, other in ((a, b), (b, c), (a, c)))


def test_inputs_without_a_label_belong_to_no_class(images: tuple[Tensor, Tensor], given: Given) -> None:
    inputs, labels = images
    unlabeled = torch.where(labels == 2, -1, labels)
    known = inputs[labels != 2]
    for kind in ("same", "different"):
        for triple in draw_triples(given(targets=unlabeled), 20, kind):
            assert all(bool((known == one).flatten(1).all(1).any()) for one in triple)
    unlabeled[2:] = -1
    with pytest.raises(Undefined, match="three training inputs with a label, got 2"):
        draw_triples(given(targets=unlabeled), 1, "same")
    assert len(draw_triples(given(targets=unlabeled), 3, "any")) == 3


def test_values_depend_on_targets_unless_classes_is_any() -> None:
    assert TransitionCount().from_targets() == ()
    assert len(TransitionCount(classes="same").from_targets()) == len(TransitionCount.variables)


def test_random_ellipses_have_the_moments_of_the_data(given: Given) -> None:
    data = given(inputs=3 + 2 * torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0)), targets=None)
    drawn = torch.stack([torch.stack(triple) for triple in draw_random(data, 30)])
    assert float(drawn.mean()) == pytest.approx(3, abs=0.1)
    assert float(drawn.std()) == pytest.approx(2, abs=0.1)


def test_global_generator_is_unchanged(cnn: nn.Module, given: Given) -> None:
    state = torch.random.get_rng_state()
    for options in OPTIONS:
        TransitionCount(**options, **FEW).measure(cnn, [], given())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_model_is_unchanged(cnn: nn.Module, given: Given) -> None:
    before = {name: value.clone() for name, value in cnn.state_dict().items()}
    layers = layers_of(cnn, torch.randn(3, 1, 8, 8))
    TransitionCount(**FEW).measure(cnn, layers, given())
    assert all(torch.equal(value, before[name]) for name, value in cnn.state_dict().items())
    for module in cnn.modules():
        assert not module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(parameter.grad is None and parameter.requires_grad for parameter in cnn.parameters())
    cnn(torch.randn(2, 1, 8, 8)).sum().backward()  # nothing was left that only inference may use


@pytest.mark.parametrize(
    ("options", "inputs", "targets", "reason"),
    [
        ({}, torch.randn(2, 1, 8, 8), None, "an ellipse needs three training inputs, got 2"),
        ({}, torch.ones(9, 1, 8, 8), None, "constant"),
        (
            {"classes": "same"},
            torch.randn(6, 1, 8, 8),
            torch.arange(6) // 2,
            "class with three training inputs, and there is none",
        ),
        ({"classes": "different"}, torch.randn(6, 1, 8, 8), torch.arange(6) % 2, "three in the training data, got 2"),
        ({"classes": "same"}, torch.randn(6, 1, 8, 8), None, "triples by class need"),
        ({"classes": "same"}, torch.randn(6, 1, 8, 8), torch.randn(6), "triples by class need"),
        ({"trajectory": "random_ellipse"}, torch.ones(9, 1, 8, 8), None, "constant"),
        ({"trajectory": "translations"}, torch.ones(9, 1, 8, 8), None, "constant"),
        ({"trajectory": "translations"}, torch.randn(2, 1, 8, 8), None, "test inputs, got 2"),
        ({"trajectory": "translations"}, torch.randn(9, 64), None, "flat"),
        ({}, torch.ones(9, 1, 8, 8).long(), None, "floating-point inputs, got torch.int64"),
    ],
)
def test_degenerate_data(
    cnn: nn.Module, given: Given, options: dict[str, Any], inputs: Tensor, targets: Tensor | None, reason: str
) -> None:
    with pytest.raises(Undefined, match=reason):
        TransitionCount(**options, **FEW).measure(cnn, [], given(4, inputs, targets))


def test_a_smooth_activation(given: Given) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU()).eval()
    values = TransitionCount(**FEW).measure(model, [], given())
    for name in ("transition_count", "transition_count_layer", "transition_count_trajectory", "transition_density"):
        assert "gelu has no activation code" in str(values[name])
    assert values["path_curvature"].value > 0


def test_a_function_without_a_name_that_bends_is_noted(given: Given) -> None:
    class Sneaky(nn.Module):
        def __init__(self, part: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.part = nn.Linear(64, 6), part

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x.flatten(1))
            return h.relu() + self.part * ((h - 0.4) ** 2).sqrt()

    for part, note in ((0.0, ""), (1.0, "something else bends the function, which is not counted")):
        values = TransitionCount(**FEW).measure(Sneaky(part).eval(), [], given())
        assert values["transition_count"].note == note
        assert values["path_curvature"].note == ""


def test_counts_of_an_output_that_cannot_be_differentiated(given: Given) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.relu(x), x

    values = TransitionCount(**FEW).measure(Two().eval(), [], given())
    assert values["transition_count"].value > 0
    assert isinstance(values["path_curvature"], Undefined)


def test_curvature_can_be_left_out(cnn: nn.Module, given: Given) -> None:
    values = TransitionCount(points=30, trajectories=2, curvature_points=0).measure(cnn, [], given())
    assert isinstance(values["path_curvature"], Undefined)
    assert values["transition_count"].value > 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"trajectory": "circle"}, "trajectory='circle'"),
        ({"classes": "one"}, "classes='one'"),
        ({"classes": "same", "trajectory": "translations"}, "classes='same'"),
        ({"points": 2}, "points must be"),
        ({"points": 10.0}, "points must be"),
        ({"trajectories": 0}, "trajectories must be"),
        ({"curvature_points": 2}, "curvature_points must be"),
        ({"curvature_points": False}, "curvature_points must be"),
        ({"curvature_points": True}, "curvature_points must be"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        TransitionCount(**options)


def test_the_hooks() -> None:
    registered: list[type[Any]] = []
    genmeasures_register(registered.append)
    assert registered == [TransitionCount, RegionCount]


def test_defaults() -> None:
    """The Hydra config is derived from them, and names of result files from the config."""
    defaults = {
        "trajectory": "training_ellipse",
        "classes": "any",
        "points": 4096,
        "trajectories": 10,
        "curvature_points": 256,
    }
    assert TransitionCount().options() == defaults
    assert TransitionCount(**defaults).clone().options() == defaults


def test_profiles_along_trajectories(cnn: nn.Module, given: Given) -> None:
    few = {**FEW, "points": 200}
    values = TransitionCount(**few).measure(cnn, [], given())
    triples = draw_triples(given(), 3, "any")
    found = find_activations(cnn, torch.randn(3, 1, 8, 8))
    for row, triple in enumerate(triples):
        path = ellipse_through(*triple)
        np.testing.assert_allclose(values["trajectory_position"][row], path.length * np.arange(20) / 20)
        for anchor, point in zip(values["trajectory_anchor"][row], triple, strict=True):
            ends = path.points(0, 10**5, 10**5).flatten(1) - point.flatten()
            nearest = int(ends.norm(dim=1).argmin())
            assert anchor == pytest.approx(nearest * path.length / 10**5, abs=path.length / 10**4)
        density = values["transition_density"][row]
        steps = count_transitions(cnn, found, path, 200, 64, 20).sum(0)
        np.testing.assert_allclose(density, steps / (path.length / 20))
        assert density.sum() * path.length / 20 == pytest.approx(values["transition_count_trajectory"][row])
        for name, head in (("jacobian_profile", torch.softmax), ("jacobian_profile_logits", lambda x, _: x)):
            point = path.points(7, 8, 20)[0]
            jacobian = torch.autograd.functional.jacobian(lambda x, head=head: head(cnn(x[None]), 1), point)
            assert values[name][row, 7] == pytest.approx(float(jacobian.norm()), rel=1e-4)


def test_a_profile_with_more_points_than_the_count(cnn: nn.Module, given: Given) -> None:
    values = TransitionCount(points=10, trajectories=2, curvature_points=12).measure(cnn, [], given())
    assert "points must be at least curvature_points, got 10 and 12" in str(values["transition_density"])
    assert values["jacobian_profile"].shape == (2, 12)


def test_long_trajectories_are_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, neighbors flicker across the boundaries: the exact count is that of the zeros of each unit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 2)).eval()
    model[0].bias.data = -1000 * model[0].weight.detach().sum(1)
    inputs = torch.randn(12, 20) + 1000  # float32 resolves them to 6e-5
    exact = []
    weight, bias = (parameter.detach().double().numpy() for parameter in model[0].parameters())
    for triple in draw_triples(model_data(inputs, None, seed=0), 4, "any"):
        a, b, c = (one.double().numpy() for one in triple)
        center, u, v = (a + b + c) / 3, a - (a + b + c) / 3, (b - c) / 3**0.5
        # w·z + bias = offset + p cos t + q sin t has two zeros if p² + q² exceeds offset², else none.
        offset, p, q = weight @ center + bias, weight @ u, weight @ v
        exact.append(2.0 * int((p**2 + q**2 > offset**2).sum()))

    def counts() -> dict[str, Any]:
        measure = TransitionCount(points=2**15, trajectories=4, curvature_points=0)
        return dict(measure.measure(model, [], model_data(inputs, None, seed=0)))

    assert counts()["transition_count"].value > 1.02 * np.mean(exact)
    monkeypatch.setattr(measure_module, "LONG", 2**15)
    assert counts()["transition_count_trajectory"].tolist() == exact
    assert model[0].weight.dtype == torch.float32

    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x[:, :2] @ torch.eye(2))

    few = TransitionCount(points=2**15, trajectories=1, curvature_points=0)
    found = few.measure(Single().eval(), [], model_data(torch.randn(12, 20), None, seed=0))
    assert found["transition_count"].note == "computed in float32, since the model does not run in float64"
