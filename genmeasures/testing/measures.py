"""Checks of measures: values that do not depend on what should not matter, and a status for bad input."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from unittest import SkipTest, mock

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from genmeasures.api import measure
from genmeasures.data import DataSource
from genmeasures.engine.outputs import evaluate
from genmeasures.errors import Undefined
from genmeasures.extractors import ReceptiveField
from genmeasures.extractors.samples import places
from genmeasures.interfaces import (
    SPLITS,
    FeatureBatch,
    FeatureMeasure,
    Measure,
    ModelData,
    ModelMeasure,
    OutputBatch,
    OutputMeasure,
    Pass,
    Split,
    Variable,
)
from genmeasures.registry import registry
from genmeasures.results import load, save
from genmeasures.testing import toys
from genmeasures.testing.statuses import assert_sound, statuses

_Data: TypeAlias = Sequence[tuple[Tensor, ...]]

_SAME = 1e-4
"""Relative difference that float32 features of other batch sizes explain."""


def _measured(component: Measure, net: nn.Module, data: _Data, **options: Any) -> xr.Dataset:
    settings = {"batch_size": 16, "seed": 0, **options}
    train, test, validation = data
    return measure({"net": net}, train, test, validation=validation, measures=[component.clone()], **settings)


def _data() -> _Data:
    """Training, test and validation data."""
    return [toys.images(60, 1), toys.images(45, 2), toys.images(50, 3)]


def _plain(component: Measure) -> xr.Dataset:
    return _measured(component, toys.network(), _data())


def _summaries(component: Measure) -> list[Variable]:
    """The variables without an additional dimension, which are compared."""
    return [variable for variable in component.variables if set(variable.dims) <= {"layer"}]


def _assert_same(
    component: Measure, first: xr.Dataset, second: xr.Dataset, what: str, tolerance: float = _SAME
) -> None:
    summaries = _summaries(component)
    if not summaries:
        raise SkipTest("all of its variables have an additional dimension, and these are not compared")
    for variable in summaries:
        left, right = first[variable.name].values.ravel(), second[variable.name].values.ravel()
        same = np.isclose(left, right, rtol=tolerance, atol=tolerance * 1e-3, equal_nan=True)
        assert same.all(), f"{variable.name} is {left[~same][0]} and, {what}, {right[~same][0]}"


def check_variables(component: Measure) -> None:
    """It declares variables with a long name, expected signs of −1, 0 or 1 with their sources, units and bounds."""
    assert component.variables, "variables is empty"
    for variable in component.variables:
        assert variable.name.isidentifier(), f"the variable {variable.name!r} is not an identifier"
        assert variable.long_name, f"{variable.name} has no long_name"
        for target in ("accuracy", "gap"):
            sign, source = (getattr(variable, f"expected_{target}{end}") for end in ("", "_source"))
            assert sign in (-1, 0, 1), f"expected_{target} of {variable.name} must be −1, 0 or 1, got {sign!r}"
            assert bool(sign) == bool(source), (
                f"expected_{target} of {variable.name} is {sign} and its source {source!r}: "
                f"a sign needs a source in expected_{target}_source, and 0 has none"
            )
        assert not (variable.auxiliary and (variable.expected_accuracy or variable.expected_gap)), (
            f"{variable.name} is auxiliary, and is not judged: it has no expected sign"
        )
        assert variable.bounds[0] < variable.bounds[1], f"the bounds of {variable.name} are {variable.bounds}"


def check_values(component: Measure) -> None:
    """On an ordinary network at least one layer has a value, and no status says that it failed."""
    ds = _plain(component)
    missing = [variable for variable in component.variables if not np.isfinite(ds[variable.name].values).any()]
    for variable in component.variables:
        assert_sound(ds, variable)
    if missing and isinstance(component, OutputMeasure):
        # Some values are defined for networks with few errors alone.
        ds = _measured(component, toys.network(), _predicted(_data()))
        missing = [variable for variable in missing if not np.isfinite(ds[variable.name].values).any()]
    for variable in missing:
        raise AssertionError(f"{variable.name} has no value: {statuses(ds, variable)[0]}")


def _predicted(data: _Data) -> _Data:
    """The data with the classes that :func:`toys.network` predicts as targets."""
    net = toys.network().eval()
    with torch.no_grad():
        return [(inputs, net(inputs).argmax(1)) for inputs, *_ in data]


def check_extractors(component: Measure) -> None:
    """It has values with every built-in extractor, the same in batches of another size."""
    if not isinstance(component, FeatureMeasure):
        raise SkipTest("it reads no vectors of an extractor")
    for name in [entry.name for kind, entry in registry().plugins[0].components if kind == "extractor"]:
        ds = _measured(component, toys.network(), _data(), extractor=name)
        for variable in component.variables:
            assert_sound(ds, variable, f"with the extractor {name}: ")
        other = _measured(component, toys.network(), _data(), extractor=name, batch_size=7)
        _assert_same(component, ds, other, f"with the extractor {name} in batches of 7")


def check_bounds(component: Measure) -> None:
    """No value lies outside the bounds that its variable declares."""
    if all(variable.bounds == (-math.inf, math.inf) for variable in component.variables):
        raise SkipTest("none of its variables declares bounds")
    for seed in range(2):
        ds = _measured(component, toys.network(seed), _data())
        for variable in component.variables:
            _assert_within_bounds(ds, variable)


def _assert_within_bounds(ds: xr.Dataset, variable: Variable, what: str = "") -> None:
    values = ds[variable.name].values
    values = values[np.isfinite(values)]
    low, high = variable.bounds
    outside = values[(values < low - 1e-9) | (values > high + 1e-9)]
    assert not len(outside), f"{what}{variable.name} is {outside[0]}, declared between {low} and {high}"


def check_batch_size(component: Measure) -> None:
    """Splitting the data into other batches changes nothing."""
    _assert_same(
        component, _plain(component), _measured(component, toys.network(), _data(), batch_size=7), "in batches of 7"
    )


def check_order(component: Measure) -> None:
    """Another order of the samples changes nothing."""
    generator = torch.Generator().manual_seed(5)
    shuffled = []
    for inputs, classes in _data():
        order = torch.randperm(len(inputs), generator=generator)
        shuffled.append((inputs[order], classes[order]))
    other = _measured(component, toys.network(), shuffled)
    _assert_same(component, _plain(component), other, "with the samples in another order")


def check_seed(component: Measure) -> None:
    """One seed gives one value."""
    _assert_same(component, _plain(component), _plain(component), "with the same seed again", 1e-9)


def check_global_state(component: Measure) -> None:
    """It neither reads nor moves the global random state."""
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    np_state = _numpy_state()
    before = _plain(component)
    assert torch.equal(torch.random.get_rng_state(), state), "torch's global random state has moved"
    assert _numpy_state() == np_state, "NumPy's global random state has moved"
    torch.manual_seed(2)
    _assert_same(component, before, _plain(component), "under another global seed", 1e-9)
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
    one, other = _plain(component), _measured(component, toys.network(scale=1024.0), _data())
    for name in invariant:
        # The patches of the first layer are the images themselves, which are the same.
        left, right = one[name].values, other[name].values
        assert np.allclose(left, right, rtol=_SAME, equal_nan=True), f"{name} is {left.ravel()}, scaled {right.ravel()}"


def check_batches_are_left_alone(component: Measure) -> None:
    """It does not write into what a batch gives it, which other measures read too."""
    faults: list[str] = []
    if isinstance(component, OutputMeasure):
        _watch_outputs(component, faults)
        assert not faults, faults[0]
        return
    if not isinstance(component, FeatureMeasure):
        raise SkipTest("it is given no batches of features or outputs")
    seen: dict[int, list[_Given]] = {}
    """By measure (one per layer), what earlier batches gave it: it may have kept it."""
    kind, read_by = type(component), FeatureBatch.read_by

    @contextlib.contextmanager
    def watched(batch: FeatureBatch, measure: FeatureMeasure, one: Pass) -> Iterator[None]:
        with read_by(batch, measure, one):
            given = seen.setdefault(id(measure), [])
            given += _given(batch, measure, one)
            with _unwritten(given, "update", faults):
                yield

    def after(method: str) -> Any:
        original = getattr(kind, method)

        def made(self: FeatureMeasure) -> Any:
            with _unwritten(seen.get(id(self), []), method, faults):
                return original(self)

        return mock.patch.object(kind, method, made)

    with mock.patch.object(FeatureBatch, "read_by", watched), after("end_pass"), after("compute"):
        _plain(component)
    assert not faults, faults[0]


def _watch_outputs(component: OutputMeasure, faults: list[str]) -> None:
    """Run a measure of outputs, and record what it writes to: in ``update``, or later."""
    kind, given = type(component), list[_Given]()
    update, compute = kind.update, kind.compute

    def updated(self: OutputMeasure, batch: OutputBatch) -> None:
        for field in ("outputs", "inputs", "targets", "log_probabilities", "predictions"):
            with contextlib.suppress(Undefined):
                if isinstance(tensor := getattr(batch, field), Tensor):
                    given.append(_Given(field, lambda tensor=tensor: tensor, tensor))
        with _unwritten(given, "update", faults):
            update(self, batch)

    def computed(self: OutputMeasure) -> Any:
        with _unwritten(given, "compute", faults):
            return compute(self)

    with mock.patch.object(kind, "update", updated), mock.patch.object(kind, "compute", computed):
        _plain(component)


class _Given:
    """A tensor that a batch gave a measure, to be compared with what it is later."""

    def __init__(self, field: str, read: Any, tensor: Tensor) -> None:
        self.field = field
        self._read = read
        self._tensor = tensor
        self.note()

    def note(self) -> None:
        """Record the contents and the version counter: not every write changes the contents."""
        self._before, self._version = self._read().clone(), self._tensor._version

    def written(self) -> bool:
        """Whether it was written to since. A NumPy view of it, and ``.data``, are not counted as writes."""
        return self._tensor._version != self._version or not torch.equal(self._read(), self._before)


def _given(batch: FeatureBatch, measure: FeatureMeasure, one: Pass) -> list[_Given]:
    made = [_Given("rank", lambda: batch.rank, batch.rank)]
    for field in sorted(one.fields):
        with contextlib.suppress(Exception):  # what cannot be computed fails in the measure too, if it reads it
            if field == "labels":
                assert measure.labeler is not None
                tensor = batch.labels(measure.labeler)
                made.append(_Given("labels(self.labeler)", lambda tensor=tensor: tensor, tensor))
            elif field == "patch_set":
                patches = batch.patch_set
                made.append(_Given("patch_set.unfold()", patches.unfold, patches.unfold()))
            else:
                tensor = getattr(batch, field)
                made.append(_Given(field, lambda tensor=tensor: tensor, tensor))
    return made


@contextlib.contextmanager
def _unwritten(tensors: list[_Given], method: str, faults: list[str]) -> Iterator[None]:
    for tensor in tensors:
        tensor.note()
    yield
    faults.extend(
        f"{method} writes into batch.{tensor.field}, which other measures read too: copy it first, "
        f"batch.{tensor.field}.clone()"
        for tensor in tensors
        if tensor.written()
    )


def check_model_is_left_alone(component: Measure) -> None:
    """The model's parameters, buffers, modes, hooks and requires_grad are as before."""
    if not isinstance(component, ModelMeasure):
        raise SkipTest("it does not read the model")
    # Every run checks this, restores the model, and reports it.
    left = "did not leave the model as it was: "
    for ds in (_plain(component), _measured(component, toys.normalized_network(), _data())):
        for variable in component.variables:
            for status in statuses(ds, variable):
                assert left not in status, f"it changes the model: {status.partition(left)[2]}"


def check_data_is_left_alone(component: Measure) -> None:
    """Inputs and targets are not written to."""
    data = [(inputs.clone(), classes.clone()) for inputs, classes in _data()]
    _measured(component, toys.network(), data)
    for (inputs, classes), (before, labels) in zip(data, _data(), strict=True):
        assert torch.equal(inputs, before), "inputs have changed"
        assert torch.equal(classes, labels), "targets have changed"


def check_degenerate_data(component: Measure) -> None:
    """Constant features, one class, or a single sample give a value or "undefined: …", never a crash or infinity."""
    data = _data()
    cases: dict[str, tuple[nn.Module, _Data]] = {
        "constant features": (toys.dead_network(), data),
        "constant features with rounding": (toys.constant_network(), data),
        "one class": (toys.network(), [(inputs, torch.zeros_like(classes)) for inputs, classes in data]),
        "a single sample": (toys.network(), [(inputs[:1], classes[:1]) for inputs, classes in data]),
    }
    for what, (net, given) in cases.items():
        _assert_valid(component, _measured(component, net, given), f"{what}: ")


def _assert_valid(component: Measure, ds: xr.Dataset, what: str) -> None:
    """Values within their bounds, or a reason."""
    for variable in component.variables:
        assert_sound(ds, variable, what)
        _assert_within_bounds(ds, variable, what)


def check_nan(component: Measure) -> None:
    """NaN and infinite activations give a status with a reason, not a number."""
    if not _reads_data(component):
        raise SkipTest("it reads weights alone, and these are finite")
    ds = _measured(component, toys.overflowing_network(), _data())
    for variable in component.variables:
        values = ds[variable.name].values
        assert_sound(ds, variable)
        assert np.isnan(values).all(), f"{variable.name} is {values[np.isfinite(values)].ravel()[:1]}"


def _reads_data(component: Measure) -> bool:
    """Whether a measure reads data, or runs the model on data of its own."""
    if isinstance(component, OutputMeasure):
        return True
    if isinstance(component, FeatureMeasure):
        prepared = component.clone()
        prepared.extractor = ReceptiveField()
        prepared.prepare(prepared.extractor)
        return bool(prepared.passes)
    assert isinstance(component, ModelMeasure)
    read: list[str] = []
    original = type(component).measure

    def watched(self: ModelMeasure, model: nn.Module, layers: Any, data: ModelData) -> Any:
        def run(*_: object) -> None:
            read.append("model")

        def noted(function: Any) -> Any:
            def made(*given: Any) -> Any:
                read.append("data")
                return function(*given)

            return made

        watching = replace(data, batches=noted(data.batches), sample=noted(data.sample))
        handles = [module.register_forward_pre_hook(run) for module in model.modules()]
        try:
            return original(self, model, layers, watching)
        finally:
            for handle in handles:
                handle.remove()

    with mock.patch.object(type(component), "measure", watched):
        _plain(component)
    return bool(read)


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


# Measures of outputs ---------------------------------------------------------------------------------------------


def check_stored_outputs(component: OutputMeasure) -> None:
    """On stored outputs it has the values that it has in a run."""
    ds, net = _plain(component), toys.network().eval()
    stored: dict[Split, tuple[Tensor, Tensor]] = {}
    for split, (inputs, classes) in zip(SPLITS, _data(), strict=True):
        order = torch.from_numpy(np.argsort(places(DataSource((inputs, classes), split, 16).scan().keys)))
        with torch.no_grad():
            stored[split] = net(inputs[order]), classes[order]
    outcomes = evaluate(component, stored)
    for variable in component.variables:
        run, found = ds[variable.name].values[0], outcomes[variable.name].value
        padded = np.full_like(run, np.nan)
        padded[tuple(map(slice, np.shape(found)))] = found
        assert np.allclose(run, padded, rtol=_SAME, atol=_SAME * 1e-3, equal_nan=True), (
            f"{variable.name} is {run} in a run, and {found} on its stored outputs"
        )


def check_other_outputs(component: OutputMeasure) -> None:
    """Dense outputs, regression, and data without targets give a value or "undefined: …", whatever the batches."""
    data = _data()
    cases: dict[str, tuple[nn.Module, _Data]] = {
        "dense outputs": (toys.dense_network(), [(inputs, toys.masks(inputs)) for inputs, _ in data]),
        "regression": (toys.network(), [(inputs, inputs.flatten(2).mean(2)[:, :1]) for inputs, _ in data]),
        "no targets": (toys.network(), [(inputs,) for inputs, _ in data]),
    }
    for what, (net, given) in cases.items():
        ds = _measured(component, net, given)
        _assert_valid(component, ds, f"{what}: ")
        if _summaries(component):
            _assert_same(component, ds, _measured(component, net, given, batch_size=7), f"{what} in batches of 7")


OUTPUT_CHECKS = (check_stored_outputs, check_other_outputs)
CHECKS = (
    check_variables,
    check_values,
    check_extractors,
    check_bounds,
    check_batch_size,
    check_order,
    check_seed,
    check_global_state,
    check_scale,
    check_batches_are_left_alone,
    check_model_is_left_alone,
    check_data_is_left_alone,
    check_degenerate_data,
    check_nan,
    check_file,
)
