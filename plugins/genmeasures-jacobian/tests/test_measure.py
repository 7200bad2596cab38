"""The measures as the engine calls them."""

from __future__ import annotations

from typing import Any

import genmeasures_jacobian
import numpy as np
import pytest
import torch
from genmeasures_jacobian import JacobianNorm, LayerJacobian, Reinitialization
from genmeasures_jacobian.bounds import lower_bound, upper_bound
from genmeasures_jacobian.layers import pull, push, traced_layers
from jacobian_networks import centered_squares, convolutional, data_of, dense, images, jacobians, linear
from torch import Tensor, nn

import genmeasures
from genmeasures.plugin import ModelData, ModelError, OptionError, Undefined, Value
from genmeasures.testing import layers_of, parametrize_with_checks

CLASSES = (torch.arange(12) % 5)[:, None]
ROUNDING = 1e-5
"""Relative difference allowed where other operations lead to the same float32 gradients: other batches, other
requests beside, inference mode."""


def measured(model: nn.Module, data: ModelData, **options: Any) -> dict[str, Any]:
    return dict(JacobianNorm(**options).measure(model, [], data))


def number(value: float | Value) -> float:
    return value.value if isinstance(value, Value) else value


class NoForward(torch.autograd.Function):
    """The sine, without a forward derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = NoForward.apply(x)
        return made


def test_exact_values() -> None:
    model, inputs = convolutional(), images()
    jacobian = jacobians(model, inputs, True)
    found = measured(model, data_of(inputs, CLASSES))
    assert set(found) == {variable.name for variable in JacobianNorm.variables}
    expected = jacobian.square().sum((1, 2)).sqrt()
    np.testing.assert_allclose(found["jacobian_norm_sample"], expected.flip(0).numpy(), rtol=1e-4)
    assert found["jacobian_norm_sample"].dtype == np.float64
    assert found["jacobian_norm"].value == pytest.approx(float(expected.mean()), rel=1e-4)
    assert found["jacobian_norm"].note == ""
    assert found["jacobian_norm_error"] == 0
    own = jacobian[torch.arange(12), CLASSES[:, 0]].square().sum(1).sqrt()
    assert found["jacobian_norm_target"] == pytest.approx(float(own.mean()), rel=1e-4)
    square = centered_squares(jacobians(model, inputs, False)).mean() / 4
    assert found["logit_gradient_square"] == pytest.approx(float(square), rel=1e-4)
    loss = nn.functional.cross_entropy(model(inputs).double(), CLASSES[:, 0], reduction="none")
    np.testing.assert_allclose(found["jacobian_norm_sample_loss"], loss.detach().flip(0).numpy(), rtol=1e-5)
    assert found["jacobian_norm_sample_index"].tolist() == list(range(11, -1, -1))
    assert 0 < found["jacobian_norm_lower"] < found["jacobian_norm_upper"]
    assert found["jacobian_norm_lower"] < found["jacobian_norm_approximation"]


def test_estimates_are_within_their_error() -> None:
    model, inputs = convolutional(), images()
    exact = measured(model, data_of(inputs, CLASSES))
    found = measured(model, data_of(inputs, CLASSES), method="hutchinson", projections=256)
    error = found["jacobian_norm_error"]
    assert 0 < error < 0.05 * exact["jacobian_norm"].value
    assert abs(found["jacobian_norm"].value - exact["jacobian_norm"].value) < 4 * error
    assert found["jacobian_norm_target"] == pytest.approx(exact["jacobian_norm_target"], rel=1e-4)
    assert found["logit_gradient_square"] == pytest.approx(exact["logit_gradient_square"], rel=0.15)


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
@pytest.mark.parametrize("samples", [None, 7])
def test_values_do_not_depend_on_the_batches(method: str, samples: int | None) -> None:
    model, inputs = convolutional(), images()
    one, other = (measured(model, data_of(inputs, CLASSES, batch), method=method, samples=samples) for batch in (12, 5))
    for name, value in one.items():  # equal bits: the measure makes batches of its own, whatever those of the data
        np.testing.assert_array_equal(number(value), number(other[name]))
    small = measured(model, data_of(inputs, CLASSES), method=method, samples=samples, memory=1)
    np.testing.assert_allclose(number(small["jacobian_norm"]), number(one["jacobian_norm"]), rtol=ROUNDING)


def test_projections_depend_on_the_seed() -> None:
    model, inputs = convolutional(), images()
    first, again, other = (
        measured(model, data_of(inputs, seed=seed), method="hutchinson")["jacobian_norm"].value for seed in (0, 0, 1)
    )
    assert first == again != other


@parametrize_with_checks(
    [
        JacobianNorm(samples=20),
        JacobianNorm(method="hutchinson", projections=4, samples=20),
        LayerJacobian(projections=4, samples=20),
    ]
)
def test_conforms(component: Any, check: Any) -> None:
    check(component)


def test_all_variables_in_a_run() -> None:
    model, inputs = convolutional(), images()
    ds = genmeasures.measure({"net": model}, test=(inputs, CLASSES[:, 0]), measures=[JacobianNorm()])
    jacobian = jacobians(model, inputs, True).square().sum((1, 2)).sqrt()
    assert float(ds.jacobian_norm[0]) == pytest.approx(float(jacobian.mean()), rel=1e-4)
    index = ds.jacobian_norm_sample_index.values[0].astype(int)
    assert sorted(index) == list(range(12))
    np.testing.assert_allclose(ds.jacobian_norm_sample.values[0], jacobian.numpy()[index], rtol=1e-4)
    without = genmeasures.measure({"net": model}, test=(inputs,), measures=[JacobianNorm()])
    np.testing.assert_allclose(without.jacobian_norm.values, ds.jacobian_norm.values, rtol=ROUNDING)
    for name in ("jacobian_norm_upper", "jacobian_norm_sample_loss"):
        assert without[name].isnull().all()
        assert str(without[f"{name}_status"].values[0]) == (
            "undefined: the cross-entropy bounds need targets, and the data have none"
        )


@pytest.mark.parametrize("softmax", [True, False])
def test_dense_outputs(softmax: bool) -> None:
    model, inputs = dense(), images(4)
    output = "softmax" if softmax else "logits"
    expected = float(jacobians(model, inputs, softmax).square().sum((1, 2)).sqrt().mean())
    masks = torch.zeros(4, 1, 6, 6, dtype=torch.long)
    exact = measured(model, data_of(inputs, masks), output=output, method="exact")
    assert exact["jacobian_norm"].value == pytest.approx(expected, rel=1e-4)
    mean = measured(model, data_of(inputs, masks), output=output, method="exact", reduction="mean")
    assert mean["jacobian_norm"].value == pytest.approx(expected / 6, rel=1e-4)
    found = measured(model, data_of(inputs, masks), output=output, method="hutchinson", projections=200)
    assert abs(found["jacobian_norm"].value - expected) < 4 * found["jacobian_norm_error"]
    with pytest.raises(Undefined, match="got dense outputs" if softmax else "output=softmax"):
        raise exact["jacobian_norm_upper"]


def test_auto_estimates_if_inputs_and_outputs_are_large() -> None:
    inputs = images(3, 12)
    assert measured(dense(), data_of(inputs))["jacobian_norm_error"] > 0
    assert measured(dense(), data_of(images(3)))["jacobian_norm_error"] == 0  # 72 elements of input, 108 of output


def test_backward_passes_for_a_function_without_forward_derivative() -> None:
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(3, 8), Sine(), nn.Linear(8, 5)).eval()
    expected = jacobians(model, inputs, True).square().sum((1, 2)).sqrt().mean()
    assert measured(model, data_of(inputs))["jacobian_norm"].value == pytest.approx(float(expected), rel=1e-4)


def test_model_is_unchanged() -> None:
    model, inputs = convolutional(), images()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    given = inputs.clone()
    for options in ({}, {"method": "hutchinson"}):
        measured(model, data_of(inputs, CLASSES), **options)
    LayerJacobian(projections=2).measure(model, layers_of(model, inputs[:3]), data_of(inputs))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 7
    assert [p.grad is None for p in model.parameters()] == [True] * 4 + [False] + [True] * 3
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(inputs, given)
    assert not inputs.requires_grad


def test_values_within_no_grad_and_inference_mode() -> None:
    model, inputs = convolutional(), images()
    expected = measured(model, data_of(inputs))["jacobian_norm"].value
    with torch.no_grad():
        assert measured(model, data_of(inputs))["jacobian_norm"].value == expected
    with torch.inference_mode():
        assert measured(model, data_of(inputs))["jacobian_norm"].value == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (None, "the data have none"),
        (torch.zeros(12, 1), "got float32 targets"),
        (torch.zeros(12, 2, dtype=torch.long), r"of shape \(2,\)"),
        (torch.full((12, 1), 5), "classes from 0 to 4, got 5 to 5"),
    ],
)
def test_without_classes_only_the_bounds_are_undefined(targets: Tensor | None, reason: str) -> None:
    found = measured(convolutional(), data_of(images(), targets))
    assert found["jacobian_norm"].value > 0
    for name in ("lower", "upper", "approximation", "target", "sample_loss"):
        with pytest.raises(Undefined, match=reason):
            raise found[f"jacobian_norm_{name}"]


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_inputs_without_a_label_are_left_out_of_the_bounds(method: str) -> None:
    model, inputs = convolutional(), images()
    some = CLASSES.clone()
    some[::4] = -1
    whole, found = (measured(model, data_of(inputs, classes), method=method) for classes in (CLASSES, some))
    unlabeled = np.isnan(found["jacobian_norm_sample_loss"])
    assert unlabeled.sum() == 3
    loss = whole["jacobian_norm_sample_loss"]
    np.testing.assert_array_equal(found["jacobian_norm_sample_loss"][~unlabeled], loss[~unlabeled])
    np.testing.assert_array_equal(found["jacobian_norm_sample"], whole["jacobian_norm_sample"])
    square = found["logit_gradient_square"]
    assert found["jacobian_norm_lower"] == pytest.approx(lower_bound(loss[~unlabeled], square, 5).mean(), rel=1e-12)
    assert found["jacobian_norm_upper"] == pytest.approx(upper_bound(loss[~unlabeled], square).mean(), rel=1e-12)
    if method == "exact":
        known = some[:, 0] >= 0
        alone = measured(model, data_of(inputs[known], some[known]), method=method)
        assert found["jacobian_norm_target"] == pytest.approx(alone["jacobian_norm_target"], rel=1e-5)
    none = measured(model, data_of(inputs, torch.full_like(CLASSES, -1)))["jacobian_norm_target"]
    with pytest.raises(Undefined, match="labels, and no input has a label"):
        raise none


def test_degenerate_inputs_and_outputs() -> None:
    inputs = torch.randn(4, 3)
    with pytest.raises(Undefined, match="constant"):
        measured(nn.Linear(3, 1), data_of(inputs))
    assert measured(nn.Linear(3, 1), data_of(inputs), output="logits")["jacobian_norm"].value > 0
    with pytest.raises(Undefined, match="no gradient"):
        measured(nn.Embedding(5, 3), data_of(torch.ones(4, 2, dtype=torch.long)))
    with pytest.raises(Undefined, match="4 of 4 inputs is not finite"):
        measured(linear(torch.tensor([[1e38, 1e38, 1e38], [-1e38, 0, 0]])), data_of(inputs * 1e5), output="softmax")
    found = measured(nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), data_of(inputs))
    assert "already probabilities" in found["jacobian_norm"].note
    assert measured(linear(torch.zeros(2, 3)), data_of(inputs), method="hutchinson")["jacobian_norm"].value == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "probabilities"}, "JacobianNorm: output='probabilities'"),
        ({"method": "hutch"}, "method='hutch' is unknown .did you mean 'hutchinson'"),
        ({"reduction": "max"}, "reduction='max'"),
        ({"projections": 1}, "projections must be an integer ≥ 2, got 1"),
        ({"samples": 0}, "samples must be an integer ≥ 1, or None for all inputs, got 0"),
        ({"split": "valid"}, "split='valid'"),
        ({"memory": 0.5}, "memory must be an integer ≥ 1 .MiB., got 0.5"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        JacobianNorm(**options)


def layer_norms(model: nn.Sequential, ends: list[int], inputs: Tensor) -> list[float]:
    """E‖∂x_ℓ/∂x‖_F of the model cut off after each of these modules."""
    return [float(jacobians(model[:end], inputs, False).square().sum((1, 2)).sqrt().mean()) for end in ends]


@pytest.mark.parametrize(("tap", "ends"), [("activation", [3, 6, 8]), ("linear", [1, 5, 8])])
def test_layers(tap: str, ends: list[int]) -> None:
    model, inputs = convolutional(), images()
    layers = layers_of(model, inputs[:3], tap)
    expected = layer_norms(model, ends, inputs)
    found = LayerJacobian(projections=64).measure(model, layers, data_of(inputs))
    for value, error, true in zip(found["layer_jacobian"], found["layer_jacobian_error"], expected, strict=True):
        assert 0 < error < 0.1 * true
        assert abs(value - true) < 4 * error


def test_forward_and_backward_estimates_of_layers_agree() -> None:
    model, inputs = convolutional(), images(3)
    traced = traced_layers(model, layers_of(model, inputs), inputs)
    expected = torch.stack([jacobians(model[:end], inputs, False).square().sum((1, 2)) for end in (3, 6, 8)])
    pushed = push(model, traced, inputs, range(3), 300, 60)
    for p in model.parameters():
        p.requires_grad_(False)
    pulled = pull(model, traced, inputs, range(3), 300)
    for squares in (pushed, pulled):
        assert squares.shape == (300, 3, 3)
        error = squares.std(0) / 300**0.5
        assert ((squares.mean(0) - expected).abs() < 4.5 * error).all()


def test_layers_have_independent_signs() -> None:
    """Two layers with the same Jacobian: with the same signs, their errors would be equal."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(6))
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    for p in model.parameters():
        p.requires_grad_(False)
    squares = pull(model, traced_layers(model, layers_of(model, inputs), inputs), inputs, range(4), 8)
    assert (squares[:, 0] - squares[:, 1]).abs().max() > 0.1 * squares.max()


def test_layers_of_a_network_without_forward_derivatives() -> None:
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(3, 8), Sine(), nn.Linear(8, 5)).eval()
    found = LayerJacobian(projections=64).measure(model, layers_of(model, inputs), data_of(inputs))
    expected = layer_norms(model, [1, 3], inputs)
    assert found["layer_jacobian"] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("samples", [None, 7])
def test_layers_do_not_depend_on_the_batches(samples: int | None) -> None:
    model, inputs = convolutional(), images()
    layers = layers_of(model, inputs[:3])
    one, other = (
        LayerJacobian(samples=samples).measure(model, layers, data_of(inputs, None, batch)) for batch in (12, 5)
    )
    assert one == other  # equal bits: the measure makes batches of its own, whatever those of the data
    small = LayerJacobian(samples=samples, memory=1).measure(model, layers, data_of(inputs))
    assert small["layer_jacobian"] == pytest.approx(one["layer_jacobian"], rel=ROUNDING)


def test_a_layer_that_does_not_depend_on_the_input_is_undefined() -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.a(x) + self.b(x.detach() * 0)
            return made

    model, inputs = Blind().eval(), torch.randn(4, 3)
    found = LayerJacobian().measure(model, layers_of(model, inputs), data_of(inputs))
    assert found["layer_jacobian"][0] > 0
    assert isinstance(found["layer_jacobian"][1], Undefined)


def test_layers_that_the_model_does_not_have() -> None:
    inputs = images(3)
    with pytest.raises(ModelError, match="no layer"):
        LayerJacobian().measure(dense(), layers_of(convolutional(), inputs), data_of(inputs))
    with pytest.raises(OptionError, match="LayerJacobian: projections"):
        LayerJacobian(projections=0)


def test_layers_in_a_run() -> None:
    inputs = images()
    ds = genmeasures.measure({"net": convolutional()}, test=(inputs, CLASSES[:, 0]), measures=[LayerJacobian()])
    expected = layer_norms(convolutional(), [3, 6, 8], inputs)
    np.testing.assert_allclose(ds.layer_jacobian.values[0], expected, rtol=0.15)
    assert (ds.layer_jacobian_status == "ok").all()


@pytest.mark.parametrize(
    ("measure", "defaults"),
    [
        (
            JacobianNorm,
            {
                "output": "softmax",
                "method": "auto",
                "reduction": "sum",
                "projections": 32,
                "samples": 1000,
                "split": "test",
                "memory": 256,
            },
        ),
        (LayerJacobian, {"projections": 16, "samples": 256, "split": "test", "memory": 256}),
    ],
)
def test_defaults(measure: type[JacobianNorm | LayerJacobian], defaults: dict[str, Any]) -> None:
    """The Hydra config is derived from them, and names of result files from the config."""
    assert measure().options() == defaults
    assert measure(**defaults).clone().options() == defaults


def test_the_measures_are_registered() -> None:
    registered: list[type] = []
    genmeasures_jacobian.genmeasures_register(registered.append)
    assert registered == [JacobianNorm, LayerJacobian, Reinitialization]
