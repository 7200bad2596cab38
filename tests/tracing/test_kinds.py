"""Kinds of models that are measured, and errors that say what to pass instead of others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

import genmeasures
from genmeasures.errors import ModelError
from genmeasures.tracing import trace

pytestmark = [pytest.mark.filterwarnings("ignore")]

X, Y = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 4)).eval()


def measured(models: Any) -> xr.Dataset:
    return genmeasures.measure(models, (X, Y), measures=["davies_bouldin"])


def exported() -> Any:
    return torch.export.export(network(), (X[:2],))


class Session:
    """An object with the methods of an ONNX Runtime session."""

    def run(self, names: Any, inputs: Any) -> list[Any]:
        return []


class Compiled:
    """A callable like a model that torch compiled ahead of time."""

    def __call__(self, x: Tensor) -> Tensor:
        return x


class NoForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


ORIGINAL = r"pass the torch\.nn\.Module that it was made from"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "scripted": (lambda: torch.jit.script(network()), f"a TorchScript module.*{ORIGINAL}"),
    "traced": (lambda: torch.jit.trace(network(), X[:2]), f"a TorchScript module.*{ORIGINAL}"),
    "frozen": (lambda: torch.jit.freeze(torch.jit.script(network())), f"a TorchScript module.*{ORIGINAL}"),
    "scripted function": (lambda: torch.jit.trace(torch.relu, X[:2]), f"ScriptFunction.*TorchScript.*{ORIGINAL}"),
    "exported": (exported, f"of type ExportedProgram, expected a torch.nn.Module .*torch.export.*{ORIGINAL}"),
    "exported module": (lambda: exported().module(), f"it is made from a torch.export program.*{ORIGINAL}"),
    "unflattened": (lambda: torch.export.unflatten(exported()), f"it is made from a torch.export program.*{ORIGINAL}"),
    "exported part": (
        lambda: nn.Sequential(exported().module(), nn.Linear(4, 2)),
        f"its part '0' is made from a torch.export program.*{ORIGINAL}",
    ),
    "session": (Session, f"of type Session.*its layers cannot be observed, {ORIGINAL}"),
    "compiled ahead of time": (Compiled, f"of type Compiled.*its layers cannot be observed, {ORIGINAL}"),
    "function": (lambda: lambda x: x, "of type function.*a function has no layers, pass the module"),
    "class": (lambda: nn.Flatten, "Flatten is a class, pass an instance"),
    "weights": (lambda: network().state_dict(), "weights without a model, build the model and load them"),
    "list of layers": (lambda: nn.ModuleList([nn.Linear(2, 2)]), "a ModuleList, which has no forward method.*pass"),
    "dict of layers": (lambda: nn.ModuleDict({"a": nn.Linear(2, 2)}), "a ModuleDict, which has no forward method"),
    "no forward": (NoForward, "a NoForward, which has no forward method"),
    "tensor": (lambda: X, "of type Tensor, expected a torch.nn.Module"),
    "name": (lambda: "resnet18", "of type str, expected a torch.nn.Module"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_error_says_what_to_pass_instead(kind: str) -> None:
    make, reason = REFUSED[kind]
    for models in ({"odd": make()}, [make()]):
        with pytest.raises(ModelError, match=reason) as caught:
            measured(models)
        assert "Error:" not in str(caught.value)
    assert any(name in str(caught.value) for name in ("model_0", "model model_0"))


def test_other_models_are_measured_despite_a_rejected_one() -> None:
    ds = measured({"good": network(), "script": torch.jit.script(network()), "none": NoForward()})
    status = [str(text) for text in ds.model_status.values]
    assert status[0] == "ok"
    assert status[1].startswith("failed: it is a TorchScript module")
    assert status[2].startswith("failed: it is a NoForward")
    assert np.isfinite(ds.davies_bouldin.values[0]).all()


@pytest.mark.parametrize("given", [exported, lambda: network, lambda: "nets.pt", lambda: 3])
def test_a_single_object_instead_of_models(given: Callable[[], Any]) -> None:
    with pytest.raises(ModelError, match=r"models is of type .*, expected a list or dict of modules"):
        measured(given())


def test_models_may_come_from_an_iterator() -> None:
    ds = measured(network() for _ in range(2))
    assert list(ds.model.values) == ["model_0", "model_1"]


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def called(model: nn.Module) -> nn.Module:
    class Called(nn.Module):
        """Has no forward method, but can be called."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def __call__(self, x: Tensor) -> Any:
            return self.inner(x)

    return Called()


MEASURED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": in_place,
    "compiled part": lambda model: nn.Sequential(torch.compile(model[:1], backend="eager"), *model[1:]),  # type: ignore[index, misc]
    "torch.fx": torch.fx.symbolic_trace,
    "torch.fx as a part": lambda model: nn.Sequential(torch.fx.symbolic_trace(model)),
    "DataParallel": nn.DataParallel,
    "__call__": called,
}


@pytest.mark.parametrize("kind", MEASURED)
def test_what_can_be_measured_has_the_values_of_the_model(kind: str) -> None:
    model = network()
    expected = measured([model])
    ds = measured([MEASURED[kind](copy.deepcopy(model))])
    assert ds.skipped_layers.values[0] == "{}"
    assert list(ds.layer_tap.values[0]) == ["Conv2d > relu", "Linear"]
    np.testing.assert_allclose(ds.davies_bouldin.values, expected.davies_bouldin.values, rtol=1e-6)
    assert set(ds.davies_bouldin_status.values.ravel()) == {"ok"}


def test_functions_of_a_graph_module_are_followed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x))).sigmoid()

    model = Net().eval()
    taps = [one.layer.tap for one in trace(model, X[:3], "activation").layers]
    assert taps == ["Conv2d > relu", "Conv2d > sigmoid"]
    assert [one.layer.tap for one in trace(torch.fx.symbolic_trace(model), X[:3], "activation").layers] == taps
