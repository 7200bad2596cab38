"""Selections of layers, against Python's slices and fnmatch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

import genmeasures
from genmeasures.engine.selection import selected
from genmeasures.errors import OptionError
from genmeasures.plugin import Layer, ModelData, ModelMeasure, Variable

NAMES = ["features.0", "features.3", "features.3#2", "features.10.conv", "classifier.1", "classifier.4"]
bounds = st.none() | st.integers(-9, 9)


@given(count=st.integers(1, 7), start=bounds, stop=bounds, step=bounds, short=st.booleans(), listed=st.booleans())
def test_ranges_are_pythons_slices(
    count: int, start: int | None, stop: int | None, step: int | None, short: bool, listed: bool
) -> None:
    text = ":".join("" if bound is None else str(bound) for bound in (start, stop, step))
    if short and step is None:
        text = text[:-1]
    names = [f"layer{index}" for index in range(count)]
    wanted = [text] if listed else text
    if step == 0 or not range(count)[start:stop:step]:
        with pytest.raises(OptionError, match=re.escape(repr(text))):
            selected(names, wanted)
    else:
        assert selected(names, wanted) == sorted(range(count)[start:stop:step])


@given(st.lists(st.integers(-6, 5) | st.sampled_from([*NAMES, "features.*", "1:3", "-2:", "::2", "*1*"]), min_size=1))
def test_a_list_chooses_what_its_parts_choose(parts: Sequence[str | int]) -> None:
    """In the order of the forward pass, each once, whatever the order of the parts."""
    each = {index for part in parts for index in selected(NAMES, [part])}
    assert selected(NAMES, parts) == sorted(each) == selected(NAMES, parts[::-1])


@pytest.mark.parametrize(
    ("wanted", "indices"),
    [
        ("features.*", [0, 1, 2, 3]), ("*.conv", [3]), ("features.[03]", [0, 1]), ("features.?", [0, 1]),
        ("features.3*", [1, 2]), ("*", [0, 1, 2, 3, 4, 5]), ("classifier.4", [5]), (["-1:", "features.0"], [0, 5]),
        (None, [0, 1, 2, 3, 4, 5]), (" 1 : 3 ".replace(" ", ""), [1, 2]), (":", [0, 1, 2, 3, 4, 5]), ("::-5", [0, 5]),
    ],
)  # fmt: skip
def test_what_is_chosen(wanted: Any, indices: list[int]) -> None:
    assert selected(NAMES, wanted) == indices


def test_a_name_is_a_name_first() -> None:
    assert selected(["1:2", "x*", "xy", "-1:", "0"], "1:2") == [0]
    assert selected(["1:2", "x*", "xy", "-1:", "0"], ["x*", "-1:"]) == [1, 3]
    assert selected(["a", "0"], "0") == [1]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("conv*", "no layer matches 'conv*': the model has features.0, features.3, features.3#2, features.10.conv, "),
        ("Features.*", "no layer matches 'Features.*'"),
        ("6:", "no layer is in the range '6:': the model has 6, with indices from -6 to 5 (0 is 'features.0', -1 is "),
        (["0:2", "7:9"], "no layer is in the range '7:9'"),
        ("::0", "layers: the step of the range '::0' is 0"),
        ("feature", "there is no layer 'feature' to measure (did you mean 'features.3'? known: classifier.1, "),
        ([131], "there is no layer 131 to measure: the model has 6, with indices from -6 to 5 (0 is 'features.0', -1 "
                "is 'classifier.4'); in YAML, 2:11 without quotes is the number 131: write \"2:11\""),
        ("", "there is no layer '' to measure"),
    ],
)  # fmt: skip
def test_what_matches_nothing_names_the_layers(wanted: Any, said: str) -> None:
    with pytest.raises(OptionError) as raised:
        selected(NAMES, wanted)
    assert said in str(raised.value)


def test_yaml_reads_a_range_without_quotes_as_a_number() -> None:
    """The reason for the hint."""
    assert OmegaConf.create("layers: 2:11").layers == 131
    assert OmegaConf.create('layers: "2:11"').layers == "2:11"


def nets() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    deep = nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(4, 4), nn.ReLU())], nn.Linear(4, 2)).eval()
    return {"narrow": narrow, "deep": deep}


DATA = (torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3)


def test_one_setting_serves_models_of_different_depth() -> None:
    ds = genmeasures.measure(nets(), DATA, DATA, measures=["davies_bouldin"], layers="-2:")
    assert [list(filter(None, row)) for row in ds.layer_name.values] == [["0", "2"], ["6", "8"]]
    assert set(ds.davies_bouldin_status.values.flat) == {"ok"}
    ds = genmeasures.measure(nets(), DATA, DATA, measures=["davies_bouldin"], layers=["2:4", "0"])
    assert "no layer is in the range '2:4': the model has 2" in ds.model_status.sel(model="narrow").item()
    assert list(ds.layer_name.sel(model="deep").values) == ["0", "4", "6"]
    assert ds.model_status.sel(model="deep").item() == "ok"


class Norm(ModelMeasure):
    name = "norm"
    variables = (Variable("norm", "norm of the weight"),)

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> dict[str, Any]:
        return {"norm": [float(data.weight(layer).norm()) for layer in layers]}


def test_a_model_that_is_not_run() -> None:
    ds = genmeasures.measure(nets(), measures=[Norm()], layers="[28]")
    assert [list(filter(None, row)) for row in ds.layer_name.values] == [["2"], ["2", "8"]]
