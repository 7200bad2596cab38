"""The conformance suite: all built-in components pass it, and each check catches a component broken on purpose."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest
import torch
from torch import Tensor

from genmeasures.extractors import ReceptiveField, WholeTensor
from genmeasures.extractors.samples import Drawn
from genmeasures.interfaces import FeatureLabeler, Labeler, TargetLabeler
from genmeasures.plugin import (
    Aggregator,
    Component,
    FeatureBatch,
    FeatureMeasure,
    InputMean,
    ModelMeasure,
    OutputBatch,
    OutputMeasure,
    Pass,
    Undefined,
    Variable,
)
from genmeasures.registry import Registry, registry
from genmeasures.testing import checks_for, parametrize_with_checks, run_checks, suite
from genmeasures.testing import components as component_checks
from genmeasures.testing.suite import name_of

_NEEDED = {"explicit": {"weights": [1.0, 2.0, 1.0, 1.0]}, "single": {"layer": "conv2"}}
BUILTIN = [
    registry().make(kind, component.name, _NEEDED.get(component.name, {}))
    for kind, component in registry().plugins[0].components
    if kind != "task"
]


@parametrize_with_checks(BUILTIN)
def test_built_in_components_conform(component: Component, check: Callable[[Any], None]) -> None:
    check(component)


class Mean(FeatureMeasure):
    """The mean of all features, as it should be."""

    name = "mean_feature"
    variables: Any = (Variable("mean_feature", "mean of the features", 0, bounds=(-1e3, 1e3)),)
    passes = (Pass("test", "vectors"),)

    def start(self, layer: Any, generator: torch.Generator) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, batch: FeatureBatch) -> None:
        self.sum += float(batch.vectors.sum(dtype=torch.float64))
        self.count += batch.vectors.numel()

    def compute(self) -> Any:
        if not self.count:
            raise Undefined("no vectors in the sample")
        return self.sum / self.count


class BadName(Mean):
    name = "Mean Feature"


class Forgets(Mean):
    def __init__(self, power: int = 1) -> None:
        self._power = power


class TakesAnything(Mean):
    def __init__(self, **options: Any) -> None:
        self.options_given = options


class Misspelt(Mean):
    def endpass(self) -> None:
        self.count += 1


class Doubles(Mean):
    def __init__(self, power: int = 1) -> None:
        self.power = power * 2


class Itself(Mean):
    def clone(self) -> Any:
        return self


class NoCopy(Mean):
    def __init__(self) -> None:
        self.function = lambda x: x


class LosesOnCopy(Mean):
    def __init__(self, power: int = 1) -> None:
        self.power = power

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.power = state["power"] + 1


class Nameless(Mean):
    variables = (Variable("mean_feature", "", 0),)


class Fails(Mean):
    def compute(self) -> Any:
        raise RuntimeError("broken")


class Endless(Mean):
    def compute(self) -> Any:
        return float("nan")


class OutOfBounds(Mean):
    variables = (Variable("mean_feature", "mean of the features", 0, bounds=(-3, -2)),)


class MeanOfBatches(Mean):
    def update(self, batch: FeatureBatch) -> None:
        self.sum += float(batch.vectors.mean())
        self.count += 1


class Last(Mean):
    """The last vector's mean, as it comes."""

    def update(self, batch: FeatureBatch) -> None:
        self.sum, self.count = float(batch.vectors[-1].mean()), 1


class Clock(Mean):
    calls = 0

    def compute(self) -> Any:
        Clock.calls += 1
        return super().compute() + Clock.calls


class Dice(Mean):
    def compute(self) -> Any:
        return super().compute() + float(torch.rand(()))


class NotInvariant(Mean):
    variables = (Variable("mean_feature", "mean of the features", 0, scale_invariant=True),)


class Trains(ModelMeasure):
    name = "trains"
    variables = (Variable("trains", "loss after a step", 0, dims=()),)

    def measure(self, model: Any, layers: Any, data: Any) -> Any:
        inputs, targets = data.sample("test", None)
        loss = torch.nn.functional.cross_entropy(model(inputs), targets[:, 0])
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        return {"trains": float(loss.detach())}


class WritesData(ModelMeasure):
    name = "writes_data"
    variables = (Variable("writes_data", "number of targets", 0, dims=()),)

    def measure(self, model: Any, layers: Any, data: Any) -> Any:
        return {"writes_data": float(sum(len(targets.zero_()) for _, targets in data.batches("test")))}


class NumpyDice(Mean):
    def compute(self) -> Any:
        return super().compute() + float(np.random.rand())  # noqa: NPY002


class LeavesHook(ModelMeasure):
    name = "leaves_hook"
    variables = (Variable("leaves_hook", "number of layers", 0, dims=()),)

    def measure(self, model: Any, layers: Any, data: Any) -> Any:
        model.register_forward_hook(lambda *_: None)
        return {"leaves_hook": float(len(layers))}


class Divides(Mean):
    """A ratio that fails where every feature is zero."""

    def compute(self) -> Any:
        return 1 / self.sum


class NanIsZero(Mean):
    passes = (Pass("test"),)

    def update(self, batch: FeatureBatch) -> None:
        self.count += 1


class ForChannels(Mean):
    """Takes a vector for one pixel."""

    def start(self, layer: Any, generator: torch.Generator) -> None:
        super().start(layer, generator)
        self.pixel = torch.zeros(layer.channels)

    def update(self, batch: FeatureBatch) -> None:
        super().update(batch)
        self.pixel += batch.vectors.sum(0)


class InPlace(Mean):
    """Changes nothing of a ReLU's output, but writes all the same."""

    def update(self, batch: FeatureBatch) -> None:
        batch.vectors.clamp_(min=-1e9)
        super().update(batch)


class NumpyView(Mean):
    """What torch does not see."""

    def update(self, batch: FeatureBatch) -> None:
        batch.vectors.numpy()[0] = 1
        super().update(batch)


class WritesLabels(Mean):
    passes = (Pass("test", "vectors", "labels"),)

    def update(self, batch: FeatureBatch) -> None:
        assert self.labeler is not None
        batch.labels(self.labeler).data[0] = 7
        super().update(batch)


class WritesRank(Mean):
    def update(self, batch: FeatureBatch) -> None:
        batch.rank.sub_(1)
        super().update(batch)


class WritesPatches(Mean):
    passes = (Pass("test", "vectors", "patches"),)

    def update(self, batch: FeatureBatch) -> None:
        batch.patches.mul_(2)
        super().update(batch)


class WritesLater(Mean):
    """Keeps what it should copy."""

    def update(self, batch: FeatureBatch) -> None:
        self.kept = batch.vectors
        super().update(batch)

    def compute(self) -> Any:
        self.kept.zero_()
        return super().compute()


class LeavesMode(ModelMeasure):
    name = "leaves_mode"
    variables = (Variable("leaves_mode", "number of layers", dims=()),)

    def measure(self, model: Any, layers: Any, data: Any) -> Any:
        self.leave(model)
        return {"leaves_mode": float(len(layers))}

    def leave(self, model: Any) -> None:
        model[1].train()


class LeavesBuffers(LeavesMode):
    def leave(self, model: Any) -> None:
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 1


class Freezes(LeavesMode):
    def leave(self, model: Any) -> None:
        model.requires_grad_(False)


class SaysNothing(Mean):
    def compute(self) -> Any:
        if not self.sum:
            raise Undefined
        return super().compute()


class WeightNorm(ModelMeasure):
    """Reads no data, as it should be."""

    name = "norm_of_weights"
    variables = (Variable("norm_of_weights", "Frobenius norm of the weight", bounds=(0, float("inf"))),)

    def measure(self, model: Any, layers: Any, data: Any) -> Any:
        return {"norm_of_weights": [float(torch.linalg.vector_norm(data.weight(layer))) for layer in layers]}


class RunsAlone(WeightNorm):
    """Makes its own inputs, and a number of what overflows."""

    def measure(self, model: Any, layers: Any, data: Any) -> Any:
        made = torch.nan_to_num(model(torch.ones(1, 2, 8, 8)), 0.0, 0.0, 0.0)
        return {"norm_of_weights": [float(made.detach().sum())] * len(layers)}


class NoLabels(FeatureLabeler):
    name = "no_labels"

    def fit(self, projected: Tensor, generator: torch.Generator) -> None:
        self.least = float(projected.min())

    def label(self, projected: Tensor) -> Tensor:
        return projected[:, 0] > self.least  # bool


class TakesNothing(TargetLabeler):
    name = "takes_nothing"

    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        raise Undefined("these are no targets of mine")


class NoKind(Labeler):
    name = "no_kind"


class OwnTargets(TargetLabeler):
    """Writes to the targets that it labels."""

    name = "own_targets"

    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        if targets.is_floating_point():
            raise Undefined("continuous")
        return targets.zero_().flatten(1)[:, :1]


class ByBatch(NoLabels):
    def label(self, projected: Tensor) -> Tensor:
        return projected[:, 0].argsort()


class ByChance(NoLabels):
    def label(self, projected: Tensor) -> Tensor:
        return torch.randint(5, (len(projected),))


class NoMinusOne(TargetLabeler):
    name = "no_minus_one"

    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        if targets.is_floating_point() or targets.dim() > 2:
            raise Undefined("classes only")
        return targets.clamp(min=0)


class Everywhere(NoMinusOne):
    """Labels nothing where anything has no label."""

    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        return super().label(targets, spatial) * 0 - int((targets < 0).any())


class FourColumns(NoLabels):
    name = "four_columns"

    def label(self, projected: Tensor) -> Tensor:
        return super().label(projected.unflatten(1, (4, 1))[..., 0]).long()


class Untapped(ReceptiveField):
    name = "untapped"

    def __init__(self) -> None:
        super().__init__()
        self.tap = "relu"


class Constant(WholeTensor):
    name = "constant"

    def vectors(self, *given: Any) -> Any:
        return torch.zeros_like(super().vectors(*given))


class WritesOutput(WholeTensor):
    name = "writes_output"

    def vectors(self, output: Tensor, rows: Tensor, positions: Tensor) -> Any:
        made = super().vectors(output, rows, positions)
        output.zero_()
        return made


class Twice(ReceptiveField):
    name = "twice"

    def sample(self, *given: Any) -> Any:
        inputs, positions, rank = super().sample(*given).part(0, 1 << 20)
        return Drawn(np.repeat(inputs, 2), np.repeat(positions, 2), np.arange(2 * len(rank)))


class InOrder(WholeTensor):
    name = "in_order"

    def sample(self, positions: int, keys: Any, seed: int, fit: bool = False) -> Any:
        n = len(keys)
        return Drawn(np.arange(n), np.zeros(n, dtype=np.int64), np.arange(n))


class TooMany(WholeTensor):
    name = "too_many"

    def __init__(self) -> None:
        super().__init__(fit_cap=3)

    def sample(self, positions: int, keys: Any, seed: int, fit: bool = False) -> Any:
        return super().sample(positions, keys, seed)


class OutOfOrder(WholeTensor):
    name = "out_of_order"

    def sample(self, *given: Any) -> Any:
        inputs, positions, rank = super().sample(*given).part(0, 1 << 20)
        return Drawn(inputs[::-1], positions[::-1], rank[::-1])


class Half(WholeTensor):
    name = "half"

    def vectors(self, *given: Any) -> Any:
        return super().vectors(*given).half()


class Spread(OutputMeasure):
    """The mean largest probability, as it should be."""

    name = "spread"
    variables = Variable("spread", "mean largest probability", bounds=(0, 1), dims=()).with_error()
    splits = ("test", "validation")

    def start(self, generator: torch.Generator) -> None:
        self.mean = InputMean()

    def update(self, batch: OutputBatch) -> None:
        if batch.split == "test":
            rows = batch.flat
            self.mean.add(rows.inputs, rows.log_probabilities.amax(1).exp())

    def compute(self) -> Any:
        return self.mean.values("spread")


class FewErrors(Spread):
    """A value for networks with few errors alone."""

    most = 0.1

    def start(self, generator: torch.Generator) -> None:
        super().start(generator)
        self.errors = InputMean()

    def update(self, batch: OutputBatch) -> None:
        super().update(batch)
        rows = batch.labeled
        self.errors.add(rows.inputs, (rows.predictions != rows.labels).double())

    def compute(self) -> Any:
        if not self.errors.mean() <= self.most:
            raise Undefined("too many errors")
        return super().compute()


class NoErrors(FewErrors):
    most = -1.0


class WritesOutputs(Spread):
    def update(self, batch: OutputBatch) -> None:
        super().update(batch)
        batch.outputs.mul_(1)


class WritesProbabilities(Spread):
    def start(self, generator: torch.Generator) -> None:
        super().start(generator)
        self.kept: Any = []

    def update(self, batch: OutputBatch) -> None:
        super().update(batch)
        self.kept.append(batch.log_probabilities)

    def compute(self) -> Any:
        for tensor in self.kept:
            tensor.exp_()
        return super().compute()


class CountsRuns(Spread):
    """Another value each time."""

    runs = 0

    def start(self, generator: torch.Generator) -> None:
        super().start(generator)
        CountsRuns.runs += 1

    def compute(self) -> Any:
        return {"spread": 1 / (1 + CountsRuns.runs), "spread_error": 0.0}


class OnlyFlat(Spread):
    def update(self, batch: OutputBatch) -> None:
        if batch.split == "test":
            self.mean.add(batch.inputs, batch.log_probabilities.amax(1).exp())


class MeanOfOutputBatches(Spread):
    def update(self, batch: OutputBatch) -> None:
        if batch.split == "test":
            value = batch.outputs.double().mean()
            self.mean.add(batch.inputs[:1], value[None].abs().clamp(max=1))


class Plain(Aggregator):
    name = "plain"

    def reduce(self, values: Any, weight_norms: Any, layer_names: Any) -> Any:
        return np.nanmean(values, 1), (~np.isnan(values)).sum(1)


class WrongShape(Plain):
    def reduce(self, values: Any, weight_norms: Any, layer_names: Any) -> Any:
        return values, (~np.isnan(values)).sum(1)


class Ranks(Plain):
    def reduce(self, values: Any, weight_norms: Any, layer_names: Any) -> Any:
        number, used = super().reduce(values, weight_norms, layer_names)
        return number - number.mean(), used


class Writes(Plain):
    def reduce(self, values: Any, weight_norms: Any, layer_names: Any) -> Any:
        number, used = super().reduce(values, weight_norms, layer_names)
        values[:] = 0
        return number, used


class Zero(Plain):
    def reduce(self, values: Any, weight_norms: Any, layer_names: Any) -> Any:
        return np.nansum(values, 1), (~np.isnan(values)).sum(1)


class OneArray(Plain):
    def reduce(self, values: Any, weight_norms: Any, layer_names: Any) -> Any:
        return super().reduce(values, weight_norms, layer_names)[0]


class Renames(Plain):
    def reduce(self, values: Any, weight_norms: Any, layer_names: Any) -> Any:
        layer_names[0, 0] = ""
        return super().reduce(values, weight_norms, layer_names)


class NoName(Plain):
    name = ""


class NoText(Mean):
    """Units that netCDF gives back as a list."""

    variables = (Variable("mean_feature", "mean of the features", 0, units=("a", "b")),)  # type: ignore[arg-type]


BROKEN: Sequence[tuple[str, type[Component], str]] = [
    ("name", BadName, "name is 'Mean Feature'"),
    ("options_are_stored", Forgets, "takes 'power' but does not store it as self.power"),
    ("options_are_stored", TakesAnything, r"__init__ takes \*\*options"),
    ("methods", Misspelt, "it has a method 'endpass', which is never called: did you mean 'end_pass'"),
    ("clone", Doubles, r"the clone is Doubles\(power=4\), the original Doubles\(power=2\)"),
    ("clone", Itself, r"clone\(\) returns the component itself"),
    ("copy_and_pickle", NoCopy, "it cannot be pickled: "),
    ("copy_and_pickle", LosesOnCopy, r"the copy is LosesOnCopy\(power=2\), the original LosesOnCopy\(power=1\)"),
    ("variables", Nameless, "mean_feature has no long_name"),
    ("values", Fails, "mean_feature: failed: RuntimeError: broken"),
    ("values", Endless, "mean_feature has no value: undefined: the measure returned nan"),
    ("bounds", OutOfBounds, r"mean_feature is 0\.6\d+, declared between -3 and -2"),
    ("batch_size", MeanOfBatches, r"mean_feature is 0\.6\d+ and, in batches of 7, 0\.6"),
    ("order", Last, r"mean_feature is 0\.\d+ and, with the samples in another order, 0\."),
    ("seed", Clock, r"mean_feature is \d+\.\d+ and, with the same seed again, \d+\."),
    ("global_state", Dice, "torch's global random state has moved"),
    ("global_state", NumpyDice, "NumPy's global random state has moved"),
    ("scale", NotInvariant, r"mean_feature is \[0\.6.*, scaled \[ *64\d\."),
    ("extractors", ForChannels, "with the extractor whole_tensor: mean_feature: failed: RuntimeError: "),
    ("batches_are_left_alone", InPlace, r"update writes into batch\.vectors, .*copy it first, batch\.vectors\.clone"),
    ("batches_are_left_alone", NumpyView, r"update writes into batch\.vectors, "),
    ("batches_are_left_alone", WritesLabels, r"update writes into batch\.labels\(self\.labeler\), "),
    ("batches_are_left_alone", WritesRank, r"update writes into batch\.rank, "),
    ("batches_are_left_alone", WritesPatches, r"update writes into batch\.patches, "),
    ("batches_are_left_alone", WritesLater, r"compute writes into batch\.vectors, "),
    ("batches_are_left_alone", WritesOutputs, r"update writes into batch\.outputs, .*batch\.outputs\.clone"),
    ("batches_are_left_alone", WritesProbabilities, r"compute writes into batch\.log_probabilities, "),
    ("stored_outputs", CountsRuns, r"spread is 0\.\d+ in a run, and 0\.\d+ on its stored outputs"),
    ("values", NoErrors, "spread has no value: undefined: too many errors"),
    ("other_outputs", OnlyFlat, "dense outputs: spread: failed: RuntimeError: "),
    ("other_outputs", MeanOfOutputBatches, r"spread is 0\.\d+ and, dense outputs in batches of 7, 0\.\d+"),
    ("model_is_left_alone", Trains, r"changes the model: 0\.weight has changed \(and 2 more\)"),
    ("model_is_left_alone", LeavesHook, "a hook was added to Sequential"),
    ("model_is_left_alone", LeavesMode, "the mode of ReLU 1 has changed"),
    ("model_is_left_alone", LeavesBuffers, r"1\.running_mean has changed"),
    ("model_is_left_alone", Freezes, r"requires_grad of 0\.weight has changed"),
    ("degenerate_data", SaysNothing, r"constant features: mean_feature has the status .*raise Undefined\('why"),
    ("nan", RunsAlone, r"norm_of_weights is \[0\.\]"),
    ("attributes", Untapped, "tap is 'relu': write self.tap = "),
    ("attributes", NoName, "name is '': write name = "),
    ("measures", Constant, "the measure davies_bouldin: davies_bouldin has no value: undefined: "),
    ("vectors", WritesOutput, "it writes into the layer's output: copy it first"),
    ("no_label", NoMinusOne, r"targets torch\.int64 \(12, 1\): an input without a label is labeled 0, not −1"),
    ("no_label", Everywhere, "an input with labels is labeled -1"),
    ("run", FourColumns, "davies_bouldin: failed: RuntimeError: "),
    ("reduce", OneArray, r"expected \(values, numbers of layers used\), got a ndarray"),
    ("reduce", Renames, "the names of the layers have changed"),
    ("data_is_left_alone", WritesData, "targets have changed"),
    ("degenerate_data", Divides, "constant features: mean_feature: failed: ZeroDivisionError"),
    ("nan", NanIsZero, r"mean_feature is \[0\.\]"),
    ("file", NoText, r"mean_feature: units is \['a', 'b'\] in the file"),
    ("labels", NoLabels, "expected labels of type int64, got torch.bool"),
    ("labels", TakesNothing, "it takes neither classes, nor masks, nor continuous targets"),
    ("attributes", NoKind, "NoKind is neither a TargetLabeler nor a FeatureLabeler: subclass one"),
    ("labels", NoKind, "it is neither a TargetLabeler nor a FeatureLabeler"),
    ("label_batches", ByBatch, "labels differ in batches of 7"),
    ("label_seed", ByChance, "two fits with one seed give different labels"),
    ("label_seed", OwnTargets, "the targets have changed"),
    ("sample", Twice, "a vector is listed twice"),
    ("sample", OutOfOrder, "the vectors are not sorted by input"),
    ("sample_order", InOrder, "the sample depends on the order of the data"),
    ("fit_sample", TooMany, "fit_cap is 3, and 4 vectors are drawn to fit on"),
    ("vectors", Half, "expected vectors of type float32, got torch.float16"),
    ("reduce", WrongShape, r"expected two arrays of shape \(3,\), got \(3, 4\) and \(3,\)"),
    ("reduce", Writes, "the values have changed"),
    ("models_by_themselves", Ranks, r"model 0: 0\.\d+ among others, 0\.0 alone"),
    ("missing_layers", Zero, r"expected NaN for layers without a value, got \[0\. 0\. 0\.\]"),
]
IDS = [f"{name}-{broken.__name__}" for name, broken, _ in BROKEN]


def test_a_sound_measure_passes() -> None:
    found = {one.name: one for one in run_checks(Mean())}
    assert [name for name, one in found.items() if one.status == "failed"] == []
    skipped = {name: one.message for name, one in found.items() if one.status == "skipped"}
    assert skipped == {
        "config": "it is not registered under its name, so it needs no config",
        "scale": "none of its variables is declared scale invariant",
        "model_is_left_alone": "it does not read the model",
    }
    assert all(one.message == "" for one in found.values() if one.status == "passed")


def test_a_measure_of_outputs_passes() -> None:
    found = {one.name: one for one in run_checks(Spread())}
    assert [f"{name}: {one.message}" for name, one in found.items() if one.status == "failed"] == []
    assert {name: one.message for name, one in found.items() if one.status == "skipped"} == {
        "config": "it is not registered under its name, so it needs no config",
        "scale": "none of its variables is declared scale invariant",
        "extractors": "it reads no vectors of an extractor",
        "model_is_left_alone": "it does not read the model",
    }


def test_a_measure_of_networks_with_few_errors_passes() -> None:
    """The network of the checks has many errors, and none where its predictions are the targets."""
    assert [f"{one.name}: {one.message}" for one in run_checks(FewErrors()) if one.status == "failed"] == []


def test_a_measure_of_weights_alone_passes() -> None:
    assert [f"{one.name}: {one.message}" for one in run_checks(WeightNorm()) if one.status == "failed"] == []


def test_a_component_without_a_name_is_told_so_by_every_check() -> None:
    """And not by the AttributeError of the first line that reads it."""

    class Nameless(FeatureMeasure):
        variables = Mean.variables
        passes = Mean.passes
        start, update, compute = Mean.start, Mean.update, Mean.compute

    found = {one.name: one.message for one in run_checks(Nameless()) if one.status == "failed"}
    assert found["attributes"] == 'Nameless has no name: write name = "my_component" in the class'
    assert found["values"].endswith(found["attributes"])


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize(("name", "broken", "message"), BROKEN, ids=IDS)
def test_each_check_catches_what_it_is_for(name: str, broken: type[Component], message: str) -> None:
    component = broken()
    np.random.seed(0)  # noqa: NPY002
    np.random.rand()  # noqa: NPY002 – the first draw of a seed renews the keys, others do not
    (check,) = (check for check in checks_for(component) if name_of(check) == name)
    with pytest.raises(AssertionError, match=message):
        check(component)


@pytest.mark.parametrize("case", [WritesData, Trains, OwnTargets], ids=lambda case: case.__name__)
def test_a_run_of_all_checks_reports_it(case: type[Component]) -> None:
    """Also after the checks before it, whose data or model a component that writes to them could have spoiled."""
    ((name, message),) = ((name, message) for name, broken, message in BROKEN if broken is case)
    (found,) = (one for one in run_checks(case()) if one.name == name)
    assert found.status == "failed"
    assert re.search(message, found.message)
    assert found.asked.endswith(".")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "Configured is defined within a function"),
        ("derived", ""),
        (
            "_target_: configured_here.Configured\nsize: 1\n",
            r"the config of configured sets size, which the class has no options for",
        ),
        ("_target_: configured_here.Configured\npower: 2\n", r"makes Configured\(power=2\), expected the defaults"),
        (
            "_target_: configured_here.Configured\npower: 1\n",
            "the first line of configured.yaml must be '# @package meas",
        ),
        (
            "# @package measure.configurd\n_target_: configured_here.Configured\npower: 1\n",
            "the first line of configured.yaml must be '# @package measure.configured'",
        ),
        ("_target_: builtins.dict\npower: 1\n", r"the config of configured makes a dict"),
        ("_target_: configured_here.Configured\npower: ???\n", "skipped"),
        ("_target_: configured_here.Configured\npower: 1\n", ""),
    ],
)
def test_the_config_is_checked(
    config: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Configured(Mean):
        name = "configured"

        def __init__(self, power: int = 1) -> None:
            self.power = power

    module = ModuleType("configured_here")
    module.Configured = Configured  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "configured_here", module)
    folder = tmp_path / f"conf_{tmp_path.name}" / "measure"  # a name for each case: a package is imported once
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    if config == "derived":
        Configured.__module__, Configured.__qualname__ = "configured_here", "Configured"
    elif config is not None:
        first = "" if message.startswith("the first line") else "# @package measure.configured\n"
        (folder / "configured.yaml").write_text(first + config)

    class Known(Registry):
        def config_packages(self) -> list[str]:
            return [folder.parent.name]

    known = Known()
    known._classes["measure"]["configured"] = Configured
    monkeypatch.setattr(component_checks, "registry", lambda: known)
    check = component_checks.check_config
    if message == "skipped":
        with pytest.raises(SkipTest, match="its config has options that the user must set"):
            check(Configured())
    elif message:
        with pytest.raises(AssertionError, match=message):
            check(Configured())
    else:
        check(Configured())


def test_no_check_is_without_its_broken_component() -> None:
    """The config's are in a test of their own, for they need files."""
    checks = {
        name_of(check) for component in [*BUILTIN, Mean(), Spread(), NoLabels()] for check in checks_for(component)
    }
    assert checks - {name for name, *_ in BROKEN} == {"config"}


@pytest.mark.parametrize(
    ("signs", "message"),
    [
        ({"expected_gap": 1}, "a sign needs a source in expected_gap_source"),
        ({"expected_accuracy_source": "A 2020"}, "and 0 has none"),
        ({"expected_gap": -1, "expected_gap_source": "A 2020", "auxiliary": True}, "auxiliary, and is not judged"),
    ],
)
def test_expected_signs_are_sound(signs: dict[str, Any], message: str) -> None:
    class Signed(Mean):
        variables = (Variable("mean_feature", "mean of the features", **signs),)

    check = next(check for check in checks_for(Signed()) if name_of(check) == "variables")
    with pytest.raises(AssertionError, match=message):
        check(Signed())


# Checks that do not apply, and failures without a word ------------------------------------------------------


class OwnDimension(ModelMeasure):
    name = "own_dimension"
    variables = (Variable("own_dimension", "a value per input", 0, dims=("sample",)),)

    def measure(self, model: Any, layers: Any, data: Any) -> Any:
        inputs, _ = data.sample("test", None)
        return {"own_dimension": model(inputs).detach().sum(1).double().numpy()}


class NoCap(WholeTensor):
    name = "no_cap"

    def __init__(self) -> None:
        super().__init__(fit_cap=10**9)


@pytest.mark.parametrize(
    ("component", "name", "reason"),
    [
        (Mean(), "config", "it is not registered under its name"),
        (Mean(), "scale", "none of its variables is declared scale invariant"),
        (NotInvariant(), "bounds", "none of its variables declares bounds"),
        (WeightNorm(), "nan", "it reads weights alone"),
        (WeightNorm(), "extractors", "it reads no vectors of an extractor"),
        (WeightNorm(), "batches_are_left_alone", "it is given no batches"),
        (NoLabels(), "no_label", "it does not read the targets"),
        (OwnDimension(), "order", "all of its variables have an additional dimension"),
        (OwnDimension(), "batch_size", "all of its variables have an additional dimension"),
        (NoCap(), "fit_sample", "fit_cap is 1000000000, more than the 200000 inputs that are tried"),
    ],
    ids=lambda one: getattr(one, "name", one),
)
def test_a_check_that_does_not_apply_is_skipped(component: Component, name: str, reason: str) -> None:
    (check,) = (check for check in checks_for(component) if name_of(check) == name)
    with pytest.raises(SkipTest, match=f"^{re.escape(reason)}"):
        check(component)


def test_built_in_components_skip_no_more_than_they_must() -> None:
    skipped = set()
    for component in BUILTIN:
        for check in checks_for(component):
            if name_of(check) in ("config", "bounds", "scale", "fit_sample"):
                try:
                    check(component)
                except SkipTest:
                    skipped.add((component.name, name_of(check)))
    assert skipped == {
        ("explicit", "config"),
        ("single", "config"),
    }


def test_pytest_reports_it_as_skipped(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = (component_checks.check_config, component_checks.check_name)
    monkeypatch.setattr(suite, "_CHECKS", ((Component, checks),))
    pytester.makepyfile(
        """
        from genmeasures.measures import Confidence
        from genmeasures.testing import parametrize_with_checks

        class Other(Confidence):
            pass

        @parametrize_with_checks([Other()])
        def test_conforms(component, check):
            check(component)
        """
    )
    done = pytester.runpytest_inprocess("-rs", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=1, skipped=1)
    done.stdout.fnmatch_lines(["*it is not registered under its name, so it needs no config*"])


def silent(component: Component) -> None:
    """It says nothing."""
    assert not component.name


def silent_error(component: Component) -> None:
    """It says nothing either."""
    raise ValueError


def test_a_failure_without_a_message_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "_CHECKS", ((Component, (silent, silent_error)),))
    one, other = run_checks(Mean())
    assert one.status == other.status == "failed"
    assert "assert" in one.message
    assert other.message.startswith("ValueError at ")
    assert other.message.endswith(": raise ValueError")
