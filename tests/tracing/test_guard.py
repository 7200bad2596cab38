"""A model is left as it was found, and one that cannot be measured is refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genmeasures.errors import ModelError
from genmeasures.tracing import tapped, trace
from genmeasures.tracing.guard import undisturbed

CPU, META = torch.device("cpu"), torch.device("meta")
INPUTS = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers in different modes, a frozen one, one weight used twice, gradients on some."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.Conv2d(3, 3, 1)
        self.drop = nn.Dropout(0.5)
        self.head, self.tied = nn.Linear(108, 4), nn.Linear(108, 4)
        self.tied.weight = self.head.weight
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("nothing", None)
        self.register_buffer("table", torch.arange(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.norm(self.conv(x)))) + self.frozen(x.sum(1, keepdim=True).expand(-1, 3, -1, -1))
        return self.head(x.flatten(1)) + self.tied(x.flatten(1))


def net() -> Net:
    model = Net()
    model(INPUTS).sum().backward()
    model.frozen.requires_grad_(False)
    model.head.weight.grad = None
    model.train()
    model.norm.eval()
    model.head.train(False)
    model.conv.register_forward_hook(lambda *_: None)
    model.norm.register_forward_pre_hook(lambda *_: None)
    return model


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that can be seen of a model, by value."""
    seen: dict[str, Any] = {
        "state": {name: (value.clone(), value.device) for name, value in model.state_dict().items()}
    }
    seen["names"] = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    seen["identities"] = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    seen["storage"] = [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]
    seen["requires_grad"] = [parameter.requires_grad for parameter in model.parameters()]
    seen["grads"] = [None if one.grad is None else (id(one.grad), one.grad.clone()) for one in model.parameters()]
    seen["modes"] = [module.training for module in model.modules()]
    seen["hooks"] = [(len(one._forward_hooks), len(one._forward_pre_hooks)) for one in model.modules()]
    seen["inference"] = [tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())]
    return seen


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        same_kind = type(left) is type(right) and len(left) == len(right)
        return same_kind and all(equal(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def differences(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    return [what for what in left if not equal(left[what], right[what])]


def measured(model: nn.Module) -> None:
    with (
        torch.inference_mode(),
        tapped(model, trace(model, INPUTS[:3], "activation").layers, lambda *_: None) as running,
    ):
        running.run(INPUTS)


def gradients(model: nn.Module) -> None:
    model(INPUTS.clone().requires_grad_()).square().sum().backward()


def frozen(model: nn.Module) -> None:
    model.requires_grad_(False)
    model.get_submodule("frozen").requires_grad_()


def statistics(model: nn.Module) -> None:
    model.get_submodule("norm").train()
    with torch.inference_mode():
        model(INPUTS)


def buffer_written(model: nn.Module) -> None:
    model.get_buffer("calls").add_(1)


def buffer_made_nan(model: nn.Module) -> None:
    model.get_buffer("calls").fill_(float("nan"))


def buffers_replaced(model: nn.Module) -> None:
    with torch.inference_mode():
        model.calls = torch.ones(2)
        model.register_buffer("more", torch.ones(3))
        model.register_buffer("nothing", torch.ones(3))
        model.table = None


def weight_replaced(model: nn.Module) -> None:
    model.get_submodule("conv").weight = nn.Parameter(torch.zeros(3, 2, 3, 3))


def modes(model: nn.Module) -> None:
    model.train()


USES = [
    measured,
    gradients,
    frozen,
    statistics,
    buffer_written,
    buffer_made_nan,
    buffers_replaced,
    weight_replaced,
    modes,
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before(use: Callable[[nn.Module], None], fails: bool) -> None:
    model = net()
    before = state(model)
    with contextlib.suppress(ZeroDivisionError), undisturbed(model, CPU):
        assert not any(module.training for module in model.modules())
        use(model)
        if fails:
            raise ZeroDivisionError
    assert differences(before, state(model)) == []
    # It still learns as before: from where its gradients were, and what was frozen does not.
    model.zero_grad()
    gradients(model)
    assert [parameter.grad is not None for parameter in model.parameters()] == before["requires_grad"]


@pytest.mark.parametrize("use", [use for use in USES if use is not measured])
def test_what_the_uses_do_can_be_seen(use: Callable[[nn.Module], None]) -> None:
    """The test above could fail: without the guard something is another."""
    model = net()
    before = state(model)
    use(model)
    assert differences(before, state(model)) != []


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_from_another_device(fails: bool) -> None:
    """The meta device holds no values: they are kept, not brought back."""
    model = net()
    before = state(model)
    with contextlib.suppress(ZeroDivisionError), undisturbed(model, META):
        assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {META}
        model(INPUTS.to(META))
        if fails:
            raise ZeroDivisionError
    assert differences(before, state(model)) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_on_two_devices_goes_back_to_both() -> None:
    model = net()
    model.head.to("cuda")
    before = state(model)
    with undisturbed(model, torch.device("cuda")):
        assert model(INPUTS.cuda()).is_cuda
    assert differences(before, state(model)) == []


class Fussy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def train(self, mode: bool = True) -> Fussy:
        self.first.train(mode)
        if not mode:
            raise ZeroDivisionError
        return self


def test_a_model_that_fails_on_the_way_into_evaluation_mode_is_as_before() -> None:
    model = Fussy()
    before = state(model)
    with pytest.raises(ZeroDivisionError), undisturbed(model, CPU):
        pass
    assert differences(before, state(model)) == []


def test_guards_can_be_nested() -> None:
    model = net()
    before = state(model)
    with undisturbed(model, CPU):
        evaluated = state(model)
        with undisturbed(model, META):
            model.train()
        assert differences(evaluated, state(model)) == []
    assert differences(before, state(model)) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["conv.weight", "norm.bias", "norm.running_var", "head.weight"])
def test_values_that_are_not_finite_are_refused_by_name(name: str, value: float) -> None:
    model = net()
    tensor = dict([*model.named_parameters(), *model.named_buffers()])[name]
    with torch.no_grad():
        tensor.view(-1)[0] = value
    before = [module.training for module in model.modules()]
    with pytest.raises(ModelError, match=rf"1 of {tensor.numel()} values of {name} are NaN or infinite"):
        undisturbed(model, CPU).__enter__()
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("make", [lambda: nn.LazyConv2d(3, 3), lambda: nn.Conv2d(2, 3, 3, device="meta")])
def test_values_that_are_not_there_are_refused_by_name(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), make())
    with pytest.raises(ModelError, match=r"^1\.weight is not initialised"), undisturbed(model, CPU):
        pass


def test_a_model_without_parameters_passes() -> None:
    with undisturbed(nn.Sequential(nn.ReLU(), nn.Flatten()), CPU):
        pass
