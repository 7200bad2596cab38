"""Restoration of models, and errors that name what cannot be measured."""

from __future__ import annotations

import collections
import contextlib
import types
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import genmeasures
from genmeasures.errors import ModelError
from genmeasures.tracing import tapped, trace
from genmeasures.tracing.guard import undisturbed

CPU, META = torch.device("cpu"), torch.device("meta")
INPUTS = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers in different modes, a frozen layer, a tied weight, and gradients on some parameters."""

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
    """State of a model, by value."""
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
def test_the_model_is_restored(use: Callable[[nn.Module], None], fails: bool) -> None:
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
def test_the_uses_change_the_model(use: Callable[[nn.Module], None]) -> None:
    """Without the guard, the test above would fail."""
    model = net()
    before = state(model)
    use(model)
    assert differences(before, state(model)) != []


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_restored_from_another_device(fails: bool) -> None:
    """The meta device has no values, so the originals must be restored."""
    model = net()
    before = state(model)
    with contextlib.suppress(ZeroDivisionError), undisturbed(model, META):
        assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {META}
        model(INPUTS.to(META))
        if fails:
            raise ZeroDivisionError
    assert differences(before, state(model)) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_on_two_devices_is_restored_to_both() -> None:
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


def test_a_model_whose_eval_fails_is_restored() -> None:
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
def test_the_error_names_values_that_are_not_finite(name: str, value: float) -> None:
    model = net()
    tensor = dict([*model.named_parameters(), *model.named_buffers()])[name]
    with torch.no_grad():
        tensor.view(-1)[0] = value
    before = [module.training for module in model.modules()]
    with pytest.raises(ModelError, match=rf"1 of {tensor.numel()} values of {name} are NaN or infinite"):
        undisturbed(model, CPU).__enter__()
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("make", [lambda: nn.LazyConv2d(3, 3), lambda: nn.Conv2d(2, 3, 3, device="meta")])
def test_the_error_names_uninitialized_values(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), make())
    with pytest.raises(ModelError, match=r"^1\.weight is not initialized"), undisturbed(model, CPU):
        pass


def test_a_model_without_parameters_passes() -> None:
    with undisturbed(nn.Sequential(nn.ReLU(), nn.Flatten()), CPU):
        pass


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_other_buffers_may_be_infinite(value: float) -> None:
    model = net()
    model.calls.fill_(value)
    model.register_buffer("attn_mask", torch.full((3, 3), value).triu(1))
    with undisturbed(model, CPU):
        model(INPUTS)


@pytest.mark.parametrize("name", ["running_mean", "norm_running_std", "moving_variance"])
def test_running_statistics_are_recognized_by_name(name: str) -> None:
    model = net()
    model.head.register_buffer(name, torch.tensor([1.0, torch.inf]))
    with pytest.raises(ModelError, match=rf"1 of 2 values of head\.{name} are NaN or infinite"):
        undisturbed(model, CPU).__enter__()


# What modules keep of a forward pass -----------------------------------------------------------------------------


class Notes:
    """A plain object in an attribute of a module."""

    def __init__(self) -> None:
        self.cache: dict[int, Tensor] = {}
        self.count = 0


class Slots:
    __slots__ = ("count", "kept")

    def __init__(self) -> None:
        self.count = 0


class Keeps(nn.Module):
    """A layer of eight features that changes itself whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        self.keep(y)
        return y

    def keep(self, y: Tensor) -> None:
        raise NotImplementedError


class Attributes(Keeps):
    def __init__(self) -> None:
        super().__init__()
        self.flag, self.kept, self.notes, self.slots = False, None, Notes(), Slots()

    def keep(self, y: Tensor) -> None:
        self.flag, self.kept, self.more = True, y, y
        self.notes.cache[len(y)], self.notes.count = y, self.notes.count + 1
        self.slots.kept, self.slots.count = y, self.slots.count + 1


class Containers(Keeps):
    def __init__(self) -> None:
        super().__init__()
        self.list: list[Any] = [torch.zeros(2), {"a": [torch.zeros(2)]}]
        self.ordered = collections.OrderedDict(a=1, b=2)
        self.queue: collections.deque[Any] = collections.deque([1, 2], maxlen=2)
        self.set, self.space, self.pair = {1}, types.SimpleNamespace(x=None), (torch.zeros(2), [0])

    def keep(self, y: Tensor) -> None:
        self.list[0].add_(1)
        self.list[1]["a"].append(y)
        self.list[1]["a"][0].data.fill_(3)
        self.ordered.move_to_end("a")
        self.queue.append(y)
        self.set.add(2)
        self.space.x = y
        self.pair[0].fill_(1)
        self.pair[1].clear()


class States(Keeps):
    """Random generators and arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.numpy = torch.Generator().manual_seed(1), np.random.default_rng(1)
        self.array = np.zeros(3)

    def keep(self, y: Tensor) -> None:
        torch.rand(1, generator=self.generator)
        self.array += self.numpy.random()


class Parts(Keeps):
    """Registers parameters, buffers, modules and hooks, and removes some."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = nn.Linear(2, 2)
        self.handle = self.linear.register_forward_pre_hook(lambda *_: None)

    def keep(self, y: Tensor) -> None:
        if hasattr(self, "gone"):
            del self.gone
            self.handle.remove()
            self.register_buffer("table", torch.ones(2))
            self.register_parameter("scale", nn.Parameter(torch.ones(2)))
            self.extra = nn.Linear(2, 2)
            self.linear.register_forward_hook(lambda *_: None)
            self.linear.weight.register_hook(lambda grad: grad * 0)
            self.linear.bias.requires_grad_(False)
            self.linear.bias.note = "seen"  # type: ignore[attr-defined]


class Values(Keeps):
    """Parameters are set from the first batch, each in a different way."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Parameter(torch.ones(8)) for _ in range(4))
        self.unregistered = [nn.Linear(2, 2)]

    def keep(self, y: Tensor) -> None:
        self.one.data.copy_(y.detach().std(0))
        self.two.data = torch.zeros(4)
        with torch.no_grad():
            self.three.detach().numpy()[:] = 7
            self.four.mul_(1.5)
            self.unregistered[0].weight.zero_()


class Parametrizes(Keeps):
    """The class of a parametrized module changes."""

    def keep(self, y: Tensor) -> None:
        if not parametrize.is_parametrized(self.linear):
            parametrizations.weight_norm(self.linear)


class Shared(Keeps):
    """Stores state in its class."""

    tables: ClassVar[dict[int, Tensor]] = {}
    ready = False

    def keep(self, y: Tensor) -> None:
        Shared.tables[len(y)], Shared.ready = y, True


class Grows(Keeps):
    """In the forward pass, a buffer becomes part of the graph and parameters get gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def keep(self, y: Tensor) -> None:
        with torch.enable_grad():
            z = self.linear(torch.ones(1, 8)).square().sum()
            z.backward()
            self.mean = self.mean.mul_(0.9).add_(self.linear.weight.sum(0))


KEEPING = [Attributes, Containers, States, Parts, Values, Parametrizes, Shared, Grows]


def seen(value: Any, known: dict[int, Any]) -> Any:
    """Everything reachable from a value, with identities and contents, independent of the guard."""
    if value is None or isinstance(value, bool | int | float | str | type):
        return value
    if id(value) in known:
        return known[id(value)][0]
    known[id(value)] = (f"object {len(known)}", value)
    if isinstance(value, Tensor):
        own = (id(value), value.is_leaf, value.requires_grad, value.is_inference(), value.stride(), value.data_ptr())
        hooks = len(value._backward_hooks or ())
        return [
            own,
            hooks,
            value.detach().clone(),
            seen(value.grad if value.is_leaf else None, known),
            dict(vars(value)),
        ]
    if isinstance(value, dict):
        return [(str(key), seen(one, known)) for key, one in value.items()]
    if isinstance(value, list | tuple | collections.deque):
        return [type(value), *(seen(one, known) for one in value)]
    if isinstance(value, set):
        return sorted(value, key=str)
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Slots):
        return [value.count, seen(getattr(value, "kept", None), known)]
    parts: list[Any] = [type(value), seen(getattr(value, "__dict__", None), known)]
    if isinstance(value, Shared):
        parts.append([seen(dict(Shared.tables), known), Shared.ready])
    return parts


def wrapped(kind: type[Keeps]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), kind(), nn.Linear(8, 4))
    model(torch.ones(2, 8)).sum().backward() if kind is Values else None
    return model


ROWS = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", KEEPING)
def test_state_that_modules_keep_is_restored(kind: type[Keeps], error: type[BaseException] | None) -> None:
    model = wrapped(kind)
    model[1].linear.weight.grad = torch.ones(8, 8)
    before = seen(model, {})
    with contextlib.suppress(ZeroDivisionError, KeyboardInterrupt), undisturbed(model, CPU):
        model(ROWS)
        assert not equal(seen(model, {}), before)  # or nothing is told by what follows
        if error is not None:
            raise error
    assert equal(seen(model, {}), before)
    model.train()(ROWS)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("kind", [Attributes, Containers, Parts, Values, Shared])
def test_a_model_trains_after_it_was_measured(kind: type[Keeps], inference: bool) -> None:
    model = wrapped(kind)
    before = seen(model, {})
    with torch.inference_mode(inference):
        genmeasures.measure([model], (ROWS, torch.arange(24) % 3), (ROWS, torch.arange(24) % 3))
    assert equal(seen(model, {}), before)
    model.zero_grad()
    model(ROWS).square().sum().backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("kind", [Attributes, Containers])
def test_tensors_created_in_inference_mode_are_replaced_by_plain_copies(kind: type[Keeps]) -> None:
    with torch.inference_mode():
        model = wrapped(kind)
    before = seen(model, {})
    with undisturbed(model, CPU):
        assert not any(parameter.is_inference() for parameter in model.parameters())
        model(ROWS.clone().requires_grad_()).sum().backward()
    assert equal(seen(model, {}), before)


def test_memory_that_parameters_share_stays_shared() -> None:
    flat = torch.arange(20.0)
    model = nn.Linear(4, 4)
    model.weight.data, model.bias.data = flat[:16].view(4, 4), flat[16:]
    own = [parameter.data_ptr() for parameter in model.parameters()]
    small = nn.Parameter(torch.zeros(1000)[:2])
    model.register_parameter("small", small)
    with undisturbed(model, CPU):
        made = [model.weight.data_ptr(), model.bias.data_ptr()]
        assert made != own
        assert made[1] - made[0] == own[1] - own[0]
        assert small.untyped_storage().nbytes() == 8  # not all of the thousand
        torch.testing.assert_close(model.bias.detach(), flat[16:], rtol=0, atol=0)
    assert [model.weight.data_ptr(), model.bias.data_ptr()] == own


# Training mode, as modules reach it -------------------------------------------------------------------------------


class Adapter(nn.Linear):
    """Merges its adapter into the weight in evaluation mode, as LoRA layers do; unmerging rounds."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.low = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
        self.merged = False
        self.changes: list[bool] = []

    def train(self, mode: bool = True) -> Adapter:
        super().train(mode)
        self.changes.append(mode)
        if self.merged == mode:
            self.weight.data += -self.low if mode else self.low
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        made = super().forward(x)
        return made if self.merged else made + x @ self.low.T


class Frozen(nn.Sequential):
    """Keeps its normalization in evaluation mode."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8), nn.BatchNorm1d(8))

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self[1].eval()
        return self


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [Adapter, Frozen])
def test_modes_are_set_by_the_methods_of_the_modules(kind: type[nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(), nn.Linear(8, 2)).train(training)
    before = seen(model, {})
    expected = model(ROWS) if kind is Adapter else None
    with undisturbed(model, CPU):
        assert not any(module.training for module in model.modules())
        if isinstance(model[0], Adapter):
            assert model[0].merged
            torch.testing.assert_close(model(ROWS), expected)
    assert equal(seen(model, {}), before)


def test_training_mode_is_restored_by_the_methods_of_the_modules() -> None:
    """Side effects of a module's ``eval()`` are undone by its own ``train()``."""
    outside: list[bool] = []

    class Told(nn.Linear):
        def train(self, mode: bool = True) -> Told:
            super().train(mode)
            outside.append(mode)
            return self

    model = nn.Sequential(Told(2, 2))
    outside.clear()
    with undisturbed(model, CPU):
        assert outside == [False]
    assert outside == [False, True]
    model.eval()
    outside.clear()
    with undisturbed(model, CPU):  # as its owner put it into evaluation mode
        pass
    assert outside == []
