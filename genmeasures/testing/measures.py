"""What measures must do: nothing that should not matter changes a value, and bad input gives a status."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any
from unittest import SkipTest, mock

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from genmeasures.api import measure
from genmeasures.interfaces import Measure, ModelMeasure, Variable
from genmeasures.results import load, save
from genmeasures.testing import toys

_SAME = 1e-4
"""Relative difference that float32 features of other batch sizes explain."""


def _measured(component: Measure, net: nn.Module, train: toys.Arrays, test: toys.Arrays, **options: int) -> xr.Dataset:
    settings = {"batch_size": 16, "seed": 0, **options}
    return measure({"net": net}, train, test, measures=[component.clone()], **settings)  # type: ignore[arg-type]


def _data() -> tuple[toys.Arrays, toys.Arrays]:
    return toys.pictures(60, 1), toys.pictures(45, 2)


def _plain(component: Measure) -> xr.Dataset:
    return _measured(component, toys.network(), *_data())


def _summaries(component: Measure) -> list[Variable]:
    """The variables without a dimension of their own, which are compared."""
    return [variable for variable in component.variables if set(variable.dims) <= {"layer"}]


def _assert_same(component: Measure, one: xr.Dataset, other: xr.Dataset, what: str, tolerance: float = _SAME) -> None:
    summaries = _summaries(component)
    if not summaries:
        raise SkipTest("each of its variables has a dimension of its own, and these are not compared")
    for variable in summaries:
        left, right = one[variable.name].values.ravel(), other[variable.name].values.ravel()
        same = np.isclose(left, right, rtol=tolerance, atol=tolerance * 1e-3, equal_nan=True)
        assert same.all(), f"{variable.name} is {left[~same][0]} and, {what}, {right[~same][0]}"


def check_variables(component: Measure) -> None:
    """It declares variables with a long name, expected signs of −1, 0 or 1 with their sources, units and bounds."""
    assert component.variables, "variables is empty"
    for variable in component.variables:
        assert variable.name.isidentifier(), f"the variable {variable.name!r} is no identifier"
        assert variable.long_name, f"{variable.name} has no long_name"
        for target in ("accuracy", "gap"):
            sign, source = (getattr(variable, f"expected_{target}{end}") for end in ("", "_source"))
            assert sign in (-1, 0, 1), f"expected_{target} of {variable.name} is {sign!r}, not −1, 0 or 1"
            assert bool(sign) == bool(source), (
                f"expected_{target} of {variable.name} is {sign} and its source {source!r}: "
                f"a sign needs a source in expected_{target}_source, and 0 has none"
            )
        assert not (variable.auxiliary and (variable.expected_accuracy or variable.expected_gap)), (
            f"{variable.name} is auxiliary, and is not judged: it has no expected sign"
        )
        assert variable.bounds[0] < variable.bounds[1], f"the bounds of {variable.name} are {variable.bounds}"
        own = [dim for dim in variable.dims if dim != "layer"]
        assert len(own) <= 1, f"{variable.name} has two dimensions of its own: {own}"
        assert not own or variable.dims[-1] == own[0], f"layer comes first in the dimensions of {variable.name}"


def check_values(component: Measure) -> None:
    """On an ordinary network a layer at least has a value, and no status says that it failed."""
    ds = _plain(component)
    for variable in component.variables:
        values, status = ds[variable.name].values, ds[f"{variable.name}_status"].values.ravel()
        failed = [text for text in status if text.startswith("failed")]
        assert not failed, f"{variable.name}: {failed[0]}"
        assert not np.isinf(values).any(), f"{variable.name} is infinite"
        assert np.isfinite(values).any(), f"{variable.name} has no value: {status[0]}"


def check_bounds(component: Measure) -> None:
    """No value lies outside the bounds that its variable declares."""
    if all(variable.bounds == (-math.inf, math.inf) for variable in component.variables):
        raise SkipTest("none of its variables declares bounds")
    for seed in range(2):
        ds = _measured(component, toys.network(seed), *_data())
        for variable in component.variables:
            values = ds[variable.name].values
            values = values[np.isfinite(values)]
            low, high = variable.bounds
            outside = values[(values < low - 1e-9) | (values > high + 1e-9)]
            assert not len(outside), f"{variable.name} is {outside[0]}, declared between {low} and {high}"


def check_batch_size(component: Measure) -> None:
    """Splitting the data into other batches changes nothing."""
    _assert_same(
        component, _plain(component), _measured(component, toys.network(), *_data(), batch_size=7), "in sevens"
    )


def check_order(component: Measure) -> None:
    """Another order of the samples changes nothing."""
    generator = torch.Generator().manual_seed(5)
    shuffled = []
    for inputs, classes in _data():
        order = torch.randperm(len(inputs), generator=generator)
        shuffled.append((inputs[order], classes[order]))
    other = _measured(component, toys.network(), shuffled[0], shuffled[1])
    _assert_same(component, _plain(component), other, "with the samples in another order")


def check_seed(component: Measure) -> None:
    """One seed gives one value."""
    _assert_same(component, _plain(component), _plain(component), "with the same seed again", 1e-9)


def check_global_state(component: Measure) -> None:
    """It neither reads nor moves the global random state."""
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    np_state = _numpy_state()
    one = _plain(component)
    assert torch.equal(torch.random.get_rng_state(), state), "torch's global random state has moved"
    assert _numpy_state() == np_state, "NumPy's global random state has moved"
    torch.manual_seed(2)
    _assert_same(component, one, _plain(component), "under another global seed", 1e-9)
    torch.random.set_rng_state(state)


def _numpy_state() -> tuple[bytes, int]:
    """The keys of the global generator, and the position among them, which is all that most draws move."""
    state: dict[str, Any] = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return state["key"].tobytes(), int(state["pos"])


def check_scale(component: Measure) -> None:
    """Variables that are declared scale invariant do not change when all features are multiplied by 1024."""
    invariant = [variable.name for variable in _summaries(component) if variable.scale_invariant]
    if not invariant:
        raise SkipTest("none of its variables is declared scale invariant")
    one, other = _plain(component), _measured(component, toys.network(scale=1024.0), *_data())
    for name in invariant:
        # The patches of the first layer are the pictures themselves, which are the same.
        left, right = one[name].values, other[name].values
        assert np.allclose(left, right, rtol=_SAME, equal_nan=True), f"{name} is {left.ravel()}, scaled {right.ravel()}"


def check_model_is_left_alone(component: Measure) -> None:
    """The model's mode, hooks, parameters and buffers are as before."""
    if not isinstance(component, ModelMeasure):
        raise SkipTest("it is never given the model")
    faults: list[str] = []
    original = type(component).measure

    # The engine puts a model back as it was found: what the measure itself leaves is looked at before that.
    def watched(self: ModelMeasure, model: nn.Module, layers: Any, data: Any) -> Any:
        before = _left(model)
        values = original(self, model, layers, data)
        after = _left(model)
        faults.extend(fault for fault, kept in before.items() if not _unchanged(kept, after.get(fault)))
        return values

    with mock.patch.object(type(component), "measure", watched):
        _measured(component, toys.network(), *_data())
    assert not faults, faults[0]


def _left(model: nn.Module) -> dict[str, Any]:
    """What a measure must leave as it is, by what is said where it does not."""
    kept: dict[str, Any] = {f"{name} has changed": tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        kept[f"requires_grad of {name} has changed"] = parameter.requires_grad
    for name, module in model.named_modules():
        called = f"{type(module).__name__} {name}".strip()
        kept[f"the mode of {called} has changed"] = module.training
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        kept[f"a hook is left on {called}"] = [list(each) for each in hooks]
    return kept


def _unchanged(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return bool(one == other)


def check_data_is_left_alone(component: Measure) -> None:
    """Inputs and targets are not written to."""
    train, test = ((inputs.clone(), classes.clone()) for inputs, classes in _data())
    _measured(component, toys.network(), train, test)
    for (inputs, classes), (before, labels) in zip((train, test), _data(), strict=True):
        assert torch.equal(inputs, before), "inputs have changed"
        assert torch.equal(classes, labels), "targets have changed"


def check_degenerate_data(component: Measure) -> None:
    """Constant features, one class, or a single sample give a value or "undefined: …", never a crash or infinity."""
    train, test = _data()
    one_class = [(inputs, torch.zeros_like(classes)) for inputs, classes in (train, test)]
    single = [(inputs[:1], classes[:1]) for inputs, classes in (train, test)]
    cases = {
        "constant features": (toys.dead_network(), train, test),
        "one class": (toys.network(), one_class[0], one_class[1]),
        "a single sample": (toys.network(), single[0], single[1]),
    }
    for what, (net, fit, score) in cases.items():
        ds = _measured(component, net, fit, score)
        for variable in component.variables:
            values = ds[variable.name].values
            status = [str(text) for text in ds[f"{variable.name}_status"].values.ravel()]
            failed = [text for text in status if text.startswith("failed")]
            assert not failed, f"{what}: {variable.name}: {failed[0]}"
            assert not np.isinf(values).any(), f"{what}: {variable.name} is infinite"
            silent = [text for text in status if not text.startswith(("ok", "note: ", "undefined: "))]
            assert not silent, f"{what}: {variable.name} has the status {silent[0]!r}"


def check_nan(component: Measure) -> None:
    """NaN and infinite activations give a status, not a number."""
    train, test = _data()
    ds = _measured(component, toys.overflowing_network(), train, test)
    for variable in component.variables:
        values = ds[variable.name].values
        status = [str(text) for text in ds[f"{variable.name}_status"].values.ravel()]
        assert np.isnan(values).all(), f"{variable.name} is {values[np.isfinite(values)].ravel()[:1]}"
        assert all(text.startswith("undefined: ") for text in status), f"{variable.name}: {status[0]}"


def check_file(component: Measure) -> None:
    """Values and attributes survive a netCDF file."""
    ds = _plain(component)
    with tempfile.TemporaryDirectory() as folder:
        there = load(save(ds, Path(folder) / "result.nc"))
    for variable in component.variables:
        np.testing.assert_array_equal(there[variable.name].values, ds[variable.name].values)
        attrs = there[variable.name].attrs
        for key in ("long_name", "units", "expected_accuracy", "expected_gap", "auxiliary", "references"):
            assert attrs[key] == getattr(variable, key), f"{variable.name}: {key} is {attrs[key]!r} in the file"


CHECKS = (
    check_variables,
    check_values,
    check_bounds,
    check_batch_size,
    check_order,
    check_seed,
    check_global_state,
    check_scale,
    check_model_is_left_alone,
    check_data_is_left_alone,
    check_degenerate_data,
    check_nan,
    check_file,
)
