"""What is refused where a component is written, and not in the middle of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import genmeasures
from genmeasures.errors import ComponentError, GenmeasuresError
from genmeasures.extractors import ReceptiveField
from genmeasures.measures import DaviesBouldin
from genmeasures.plugin import FeatureMeasure, ModelMeasure, Pass, TargetLabeler, Variable

GOOD = Variable("mine", "what it is")


def defined(base: type = FeatureMeasure, **attributes: Any) -> type[Any]:
    return type("Mine", (base,), {"name": "mine", **attributes})


@pytest.mark.parametrize("base", [FeatureMeasure, ModelMeasure])
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            GOOD,
            r'Mine: variables must be a tuple, got one Variable: write .* = \(Variable\("name", .*with a comma',
        ),
        ([GOOD], r"Mine: variables must be a tuple, got a list: write variables = \(Variable\("),
        ("mine", "Mine: variables must be a tuple, got a str"),
        ({"mine": GOOD}, "Mine: variables must be a tuple, got a dict"),
        (None, "Mine: variables must be a tuple, got a NoneType"),
        ((GOOD, "other"), r"Mine: variables\[1\] must be a Variable, got 'other': write Variable\("),
        (("mine",), r"Mine: variables\[0\] must be a Variable, got 'mine'"),
        ((), "Mine: variables is empty: a measure writes at least one"),
        ((GOOD, Variable("other", "x"), GOOD), "Mine: duplicate variable 'mine': give each variable a name of its own"),
    ],
)
def test_variables_that_are_none(base: type, variables: Any, message: str) -> None:
    with pytest.raises(ComponentError, match=message):
        defined(base, variables=variables)
    defined(base, variables=(GOOD,))


@pytest.mark.parametrize("dims", [(), ("layer", "kernel"), ("sample",)])
def test_a_measure_of_features_has_a_value_a_layer(dims: Any) -> None:
    with pytest.raises(ComponentError, match=r"the dims of the variable 'mine' must be .* leave dims out, or subclass"):
        defined(variables=(Variable("mine", "what it is", dims=dims),))
    defined(ModelMeasure, variables=(Variable("mine", "what it is", dims=dims),))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("tset", "vectors"),
            r"there is no sample 'tset' \(did you mean 'test'\? known: fit, test, train, validation\)",
        ),
        (("holdout",), "there is no sample 'holdout'"),
        (("test", "vector"), r"Pass\('test', 'vector'\): there is no field 'vector' \(did you mean 'vectors'"),
        (
            ("test", "vectors", "patch"),
            r"did you mean 'patches'\? known: labels, patch_projection, patch_set, patches, proj",
        ),
        (("test", "projectd"), "did you mean 'projected'"),
        (
            ("test", ["vectors", "labels"]),
            r"is not the name of a field: list names, as in Pass\(\"test\", \"vectors\"\)",
        ),
        (((GOOD,), "vectors"), "is not the name of a sample"),
    ],
)
def test_a_pass_of_what_there_is_not(given: Any, message: str) -> None:
    with pytest.raises(ComponentError, match=message):
        Pass(*given)


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (
            Pass("test", "vectors"),
            r"passes must be a tuple, got one Pass: write .* = \(Pass\(\"test\", .* with a comma",
        ),
        ([Pass("test", "vectors")], "passes must be a tuple, got a list"),
        ("test", "passes must be a tuple, got a str"),
        (("test", "vectors"), r"passes\[0\] must be a Pass, got 'test': write Pass\(\"test\", \"vectors\"\)"),
    ],
)
def test_passes_that_are_none(passes: Any, message: str) -> None:
    """At the class; those of a property before any model runs."""
    with pytest.raises(ComponentError, match=f"Mine: {message}"):
        defined(variables=(GOOD,), passes=passes)
    none = {name: lambda self, *given: None for name in ("start", "update", "compute")}
    late = defined(variables=(GOOD,), passes=property(lambda self: passes), **none)
    with pytest.raises(ComponentError, match=f"Mine: {message}"):
        genmeasures.measure([torch.nn.Linear(2, 2)], torch.zeros(4, 2), measures=[late()])


def test_an_option_in_the_place_of_the_extractor_is_refused() -> None:
    def init(self: Any, extractor: str = "x") -> None:
        self.extractor = extractor

    with pytest.raises(ComponentError, match=r"Mine: the option 'extractor' is .*: rename it"):
        defined(variables=(GOOD,), __init__=init)


def test_what_a_subclass_inherits_is_not_asked_for_again() -> None:
    base = defined(variables=(GOOD,), passes=(Pass("test"),))
    assert type("Other", (base,), {}).variables == (GOOD,)
    assert issubclass(ComponentError, GenmeasuresError)
    assert issubclass(ComponentError, TypeError)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("components", None, "Own has no components: write self.components = 10 in __init__"),
        ("tap", None, r"Own has no tap: write self.tap = \"activation\""),
        ("fit_cap", None, "Own has no fit_cap: write self.fit_cap = 80_000 in __init__"),
        ("components", 0, "Own: components is 0: write"),
        ("tap", "relu", "Own: tap is 'relu': write"),
        ("fit_cap", 1e4, r"Own: fit_cap is 10000\.0: write"),
    ],
)
def test_an_extractor_that_lacks_an_attribute(attribute: str, value: Any, message: str) -> None:
    class Own(ReceptiveField):
        name = "own"

        def __init__(self) -> None:
            super().__init__()
            delattr(self, attribute)
            if value is not None:
                setattr(self, attribute, value)

    with pytest.raises(ComponentError, match=message):
        genmeasures.measure([torch.nn.Linear(2, 2)], torch.zeros(4, 2), extractor=Own(), measures=["confidence"])


def test_a_measure_without_a_name_or_variables() -> None:
    class Nameless(ModelMeasure):
        def measure(self, model: Any, layers: Any, data: Any) -> Any:
            return {"mine": np.nan}

    net = torch.nn.Linear(2, 2)
    with pytest.raises(ComponentError, match="Nameless has no name: write name = "):
        genmeasures.measure([net], torch.zeros(4, 2), measures=[Nameless()])
    Nameless.name = "nameless"
    with pytest.raises(ComponentError, match="Nameless has no variables: write variables = "):
        genmeasures.measure([net], torch.zeros(4, 2), measures=[Nameless()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "name must not be empty"),
        ({"name": 3}, "name must be a string, got 3"),
        ({"long_name": None}, "long_name must be a string, got None"),
        (
            {"expected_accuracy": "A 2020"},
            "expected_accuracy must be −1, 0 or 1, got 'A 2020': a reference goes into expected_a",
        ),
        ({"expected_gap": 2}, "expected_gap must be −1, 0 or 1, got 2"),
        ({"expected_gap_source": 1}, "expected_gap_source must be a string, got 1"),
        ({"bounds": 1}, r"bounds must be a pair of numbers, bounds=\(0, 1\), got 1"),
        ({"bounds": (0, None)}, r"bounds must be a pair of numbers.* got \(0, None\)"),
        ({"bounds": (0, 1, 2)}, r"bounds must be a pair of numbers.* got \(0, 1, 2\)"),
        ({"dims": "layer"}, r"dims must be a tuple of names, dims=\(\"layer\",\), got 'layer'"),
        ({"dims": ["layer"]}, "dims must be a tuple of names"),
        ({"dims": ("layers",)}, "did you mean 'layer'"),
        ({"dims": ("kernel", "layer")}, "layer must be the first of the dims"),
        ({"dims": ("model", "layer")}, "every variable has the dimension model|layer must be the first"),
        ({"dims": ("model",)}, "every variable has the dimension model"),
        ({"dims": ("row", "row")}, "dims must be distinct names"),
    ],
)
def test_a_variable_of_what_it_cannot_be(arguments: Any, message: str) -> None:
    with pytest.raises(ComponentError, match=message):
        Variable(**{"name": "mine", "long_name": "what it is", **arguments})


def test_an_option_that_is_not_stored_is_told_by_name() -> None:
    def init(self: Any, power: float = 1.0) -> None:
        self._power = power

    measure = defined(ModelMeasure, variables=(GOOD,), __init__=init, measure=lambda *given: {"mine": [1.0]})()
    net = torch.nn.Linear(2, 2)
    with pytest.raises(
        ComponentError, match=r"Mine: __init__ takes 'power' but does not store it: write self\.power = "
    ):
        genmeasures.measure([net], torch.zeros(4, 2), measures=[measure])


def test_passes_without_property() -> None:
    with pytest.raises(ComponentError, match="Mine: passes is a method: write @property above it"):
        defined(variables=(GOOD,), passes=lambda self: (Pass("test"),))


def test_a_class_in_the_place_of_an_object() -> None:
    with pytest.raises(
        GenmeasuresError, match=r"measure: expected an object, got the class DaviesBouldin: write DaviesBouldin\(…\)"
    ):
        genmeasures.measure([torch.nn.Linear(2, 2)], torch.zeros(4, 2), measures=[DaviesBouldin])  # type: ignore[list-item]


@pytest.mark.parametrize("method", ["observe", "fit"])
def test_a_target_labeler_that_is_fitted_declares_it(method: str) -> None:
    """Else nothing would call what it has written."""
    attributes = {"name": "mine", method: lambda self, given: None}
    with pytest.raises(ComponentError, match="Mine has observe or fit, which nothing calls: write needs_fit = True"):
        type("Mine", (TargetLabeler,), attributes)
    type("Mine", (TargetLabeler,), {**attributes, "needs_fit": True})


def test_labels_have_the_size_of_what_a_vector_is_made_from() -> None:
    class Whole(ReceptiveField):
        whole_output = True

    assert ReceptiveField().label_size((3, 5)) == (3, 5)
    assert Whole().label_size((3, 5)) == ()
