"""The conformance suite: all built-in components pass it, and each check catches a component broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genmeasures.extractors import ReceptiveField, WholeTensor
from genmeasures.extractors.samples import Drawn
from genmeasures.interfaces import FeatureLabeler
from genmeasures.plugin import (
    Aggregator,
    Component,
    FeatureBatch,
    FeatureMeasure,
    ModelMeasure,
    Pass,
    Undefined,
    Variable,
)
from genmeasures.registry import registry
from genmeasures.testing import checks_for, parametrize_with_checks, run_checks
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


class Doubles(Mean):
    def __init__(self, power: int = 1) -> None:
        self.power = power * 2


class NoCopy(Mean):
    def __init__(self) -> None:
        self.function = lambda x: x


class Nameless(Mean):
    variables = (Variable("mean_feature", "", 0),)


class Fails(Mean):
    def compute(self) -> Any:
        raise RuntimeError("broken")


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


class Divides(Mean):
    """A ratio that fails where every feature is zero."""

    def compute(self) -> Any:
        return 1 / self.sum


class NanIsZero(Mean):
    passes = (Pass("test"),)

    def update(self, batch: FeatureBatch) -> None:
        self.count += 1


class NoLabels(FeatureLabeler):
    name = "no_labels"

    def fit(self, projected: Tensor, generator: torch.Generator) -> None:
        self.least = float(projected.min())

    def label(self, projected: Tensor) -> Tensor:
        return projected[:, 0] > self.least  # bool


class ByBatch(NoLabels):
    def label(self, projected: Tensor) -> Tensor:
        return projected[:, 0].argsort()


class ByChance(NoLabels):
    def label(self, projected: Tensor) -> Tensor:
        return torch.randint(5, (len(projected),))


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


class Half(WholeTensor):
    name = "half"

    def vectors(self, *given: Any) -> Any:
        return super().vectors(*given).half()


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


class Zero(Plain):
    def reduce(self, values: Any, weight_norms: Any, layer_names: Any) -> Any:
        return np.nansum(values, 1), (~np.isnan(values)).sum(1)


BROKEN: Sequence[tuple[str, type[Component]]] = [
    ("name", BadName),
    ("options_are_stored", Forgets),
    ("clone", Doubles),
    ("copy_and_pickle", NoCopy),
    ("variables", Nameless),
    ("values", Fails),
    ("bounds", OutOfBounds),
    ("batch_size", MeanOfBatches),
    ("order", Last),
    ("seed", Clock),
    ("global_state", Dice),
    ("scale", NotInvariant),
    ("model_is_left_alone", Trains),
    ("data_is_left_alone", WritesData),
    ("degenerate_data", Divides),
    ("nan", NanIsZero),
    ("labels", NoLabels),
    ("label_batches", ByBatch),
    ("label_seed", ByChance),
    ("sample", Twice),
    ("sample_order", InOrder),
    ("fit_sample", TooMany),
    ("vectors", Half),
    ("reduce", WrongShape),
    ("models_by_themselves", Ranks),
    ("missing_layers", Zero),
]


def test_a_sound_measure_passes() -> None:
    assert [name for name, _, problem in run_checks(Mean()) if problem] == []


@pytest.mark.parametrize(("name", "broken"), BROKEN, ids=[name for name, _ in BROKEN])
def test_each_check_catches_what_it_is_for(name: str, broken: type[Component]) -> None:
    component = broken()
    check = next(check for check in checks_for(component) if name_of(check) == name)
    with pytest.raises((AssertionError, Exception)):
        check(component)


def test_no_check_is_without_its_broken_component() -> None:
    """But for two that need files: a config that differs, and attributes that netCDF loses."""
    checks = {name_of(check) for component in [*BUILTIN, Mean(), NoLabels()] for check in checks_for(component)}
    assert checks - {name for name, _ in BROKEN} == {"config", "file"}


@pytest.mark.parametrize(
    ("signs", "message"),
    [
        ({"expected_accuracy": 2, "expected_accuracy_source": "A 2020"}, "is 2, not −1, 0 or 1"),
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
