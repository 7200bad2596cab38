"""Accuracy counted in the passes: what scikit-learn says of the model's outputs, at no cost, or nothing at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.metrics import accuracy_score
from torch import Tensor, nn

import genmeasures
from genmeasures.errors import GenmeasuresWarning
from genmeasures.extractors import ReceptiveField
from genmeasures.interfaces import Layer, ModelData, ModelMeasure, Variable

SMALL = ReceptiveField(cap=200, fit_cap=200)


def measured(model: nn.Module, train: Any, test: Any, **options: Any) -> xr.Dataset:
    return genmeasures.measure(
        {"net": model}, train, test, **{"extractor": SMALL, "measures": ["roughness"], **options}
    )


def accuracy(ds: xr.Dataset, split: str = "test") -> float:
    return float(ds[f"measured_{split}_accuracy"][0])


@pytest.mark.parametrize("options", [{}, {"batch_size": 7}, {"layers": ["conv2"]}, {"measures": ["davies_bouldin"]}])
def test_accuracy_is_that_of_scikit_learn(digits_net: nn.Module, digits: Any, options: dict[str, Any]) -> None:
    (x, y), (x_test, y_test) = digits
    ds = measured(digits_net, (x, y), (x_test, y_test), **options)
    with torch.no_grad():
        expected = [
            accuracy_score(labels, digits_net(torch.from_numpy(inputs)).argmax(1)) for inputs, labels in (digits)
        ]
    assert accuracy(ds, "train") == expected[0]
    assert float(ds["measured_train_labels"][0]) == len(x)
    if options.get("measures") == ["davies_bouldin"]:  # which makes no pass over test data
        assert np.isnan(accuracy(ds))
        assert "test_accuracy" not in ds.coords
        return
    assert accuracy(ds) == expected[1] == float(ds["test_accuracy"][0])
    assert float(ds["generalization_gap"][0]) == pytest.approx(expected[0] - expected[1])
    assert ds["model_status"].values[0] == "ok"


class Counting(nn.Module):
    """Counts the inputs that go through its first and through its last layer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.counts = {"first": 0, "last": 0}
        net.conv1.register_forward_hook(lambda module, given, out: self.add("first", out))  # type: ignore[operator, union-attr]
        net.fc2.register_forward_hook(lambda module, given, out: self.add("last", out))  # type: ignore[operator, union-attr]

    def add(self, place: str, out: Tensor) -> None:
        self.counts[place] += len(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("measure", ["roughness", "confidence", "davies_bouldin"])
def test_no_input_runs_once_more_for_it(make_net: Callable[..., nn.Module], digits: Any, measure: str) -> None:
    counts = []
    for targets in (digits[0][1], digits[0][1].astype(np.float32) + 0.25):  # of the second no accuracy can be counted
        net = Counting(make_net())
        ds = measured(net, (digits[0][0], targets), digits[1], measures=[measure])
        counts.append(net.counts)
        assert np.isfinite(accuracy(ds, "train")) == (len(counts) == 1)
    assert counts[0] == counts[1]


def test_it_counts_once_where_layers_go_in_groups_and_passes_are_made_again(
    digits_net: nn.Module, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer is recorded in a pass of its own, and nothing is kept for the second pass over the test data."""
    plain = measured(digits_net, *digits)
    monkeypatch.setattr("genmeasures.engine.memory.Memory.record", 1)
    monkeypatch.setattr("genmeasures.engine.memory.Memory.cache", -1)
    ds = measured(digits_net, *digits)
    for split, (x, _) in zip(("train", "test"), digits, strict=True):
        assert accuracy(ds, split) == accuracy(plain, split)
        assert int(ds[f"measured_{split}_labels"][0]) == len(x)


def test_inputs_without_a_label_do_not_count(digits_net: nn.Module, digits: Any) -> None:
    (x, y), (x_test, y_test) = digits
    labels = np.where(np.arange(len(y_test)) % 3 == 0, 255, y_test)
    ds = measured(digits_net, (x, y), (x_test, labels), ignore_index=255)
    with torch.no_grad():
        predicted = digits_net(torch.from_numpy(x_test)).argmax(1).numpy()
    known = labels != 255
    assert accuracy(ds) == accuracy_score(y_test[known], predicted[known])
    assert int(ds["measured_test_labels"][0]) == known.sum()


def test_one_hot_targets(digits_net: nn.Module, digits: Any) -> None:
    (x, y), (x_test, y_test) = digits
    ds = measured(digits_net, (x, np.eye(10)[y]), (x_test, np.eye(10)[y_test]))
    plain = measured(digits_net, (x, y), (x_test, y_test))
    assert accuracy(ds) == accuracy(plain)


class Painter(nn.Module):
    """Three scores a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


def test_every_pixel_with_a_label_counts() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 1, 9, 7)).astype(np.float32)
    masks = rng.integers(0, 3, size=(12, 9, 7))
    masks[3, 2:5] = 99
    torch.manual_seed(0)
    net = Painter().eval()
    ds = measured(net, (x, masks), (x, masks), ignore_index=99)
    with torch.no_grad():
        predicted = net(torch.from_numpy(x)).argmax(1).numpy()
    known = masks != 99
    assert accuracy(ds) == pytest.approx(accuracy_score(masks[known], predicted[known]), rel=1e-12)
    assert int(ds["measured_test_labels"][0]) == known.sum()
    tiled = measured(net, (x, masks), (x, masks), ignore_index=99, tile=4)
    assert np.isnan(accuracy(tiled))


class Answering(nn.Module):
    """A network whose outputs are what ``answer`` makes of its ten scores."""

    def __init__(self, net: nn.Module, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net = net
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.net(x))


@pytest.mark.parametrize(
    "answer",
    [
        lambda scores: {"logits": scores},
        lambda scores: SimpleNamespace(logits=scores),
        lambda scores: scores.softmax(1),
        lambda scores: scores.half(),
        lambda scores: torch.cat([scores, scores[:, : 990 % 10] - 99, scores.new_full((len(scores), 990), -99)], 1),
    ],
    ids=["mapping", "attribute", "probabilities", "half", "1000 classes"],
)
def test_outputs_that_are_scores(answer: Callable[[Tensor], Any], digits_net: nn.Module, digits: Any) -> None:
    ds = measured(Answering(digits_net, answer), *digits)
    plain = measured(digits_net, *digits)
    assert accuracy(ds) == pytest.approx(accuracy(plain), abs=0.004)  # float16 may decide a tie otherwise
    assert accuracy(ds, "train") == pytest.approx(accuracy(plain, "train"), abs=0.004)


@pytest.mark.parametrize(
    "answer",
    [
        lambda scores: scores[:, 0],
        lambda scores: scores[:, :1],
        lambda scores: scores[:, :9],
        lambda scores: (scores, scores),
        lambda scores: {"out": scores},
        lambda scores: scores[:, :, None],
        lambda scores: scores.argmax(1),
        lambda scores: torch.nn.functional.one_hot(scores.argmax(1), 10),
        lambda scores: torch.cat([scores.new_zeros(len(scores), 20), scores], 1),
        lambda scores: scores * torch.where(scores > scores.mean(), float("nan"), 1.0),
        lambda scores: None,
    ],
    ids=[
        "flat",
        "one logit",
        "too few",
        "tuple",
        "other mapping",
        "space",
        "index",
        "integers",
        "embedding",
        "nan",
        "none",
    ],
)
def test_outputs_that_are_no_scores_give_no_number(
    answer: Callable[[Tensor], Any], digits_net: nn.Module, digits: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", GenmeasuresWarning)
        ds = measured(Answering(digits_net, answer), *digits)
    assert np.isnan(accuracy(ds))
    assert np.isnan(accuracy(ds, "train"))
    assert "test_accuracy" not in ds.coords
    assert np.isfinite(ds["roughness"].values).all()


@pytest.mark.parametrize(
    "targets",
    [
        lambda y: None,
        lambda y: y * 0.1,
        lambda y: np.zeros_like(y),
        lambda y: np.eye(10)[y] + np.eye(10)[(y + 1) % 10],
        lambda y: y + 10**9,
    ],
    ids=["none", "regression", "one class", "multi-hot", "huge"],
)
def test_targets_that_are_no_classes_give_no_number(
    targets: Callable[[Any], Any], digits_net: nn.Module, digits: Any
) -> None:
    (x, y), (x_test, y_test) = digits
    ds = measured(digits_net, (x, targets(y)), (x_test, targets(y_test)))
    assert np.isnan(accuracy(ds))
    assert np.isfinite(ds["roughness"].values).all()


class Largest(ModelMeasure):
    """Reads weights alone."""

    name = "largest"
    variables = (Variable("largest", "largest weight", dims=("layer",)),)

    def measure(self, model: nn.Module, layers: Any, data: ModelData) -> dict[str, Any]:
        of: list[Layer] = list(layers)
        return {"largest": [float(model.get_submodule(layer.name).weight.detach().abs().max()) for layer in of]}


def test_measures_of_weights_make_no_pass_for_it(make_net: Callable[..., nn.Module], digits: Any) -> None:
    net = Counting(make_net())
    ds = measured(net, *digits, measures=[Largest()])
    assert np.isnan([accuracy(ds), accuracy(ds, "train")]).all()
    assert net.counts["last"] < 20  # the trace's examples


def test_a_failed_layer_leaves_the_accuracy(make_net: Callable[..., nn.Module], digits: Any) -> None:
    """The layers that are left are read to the last one, and so is the output."""
    net = make_net()
    with torch.no_grad():
        net.conv1.weight[0] = 3e38  # type: ignore[union-attr, operator, index]
        net.conv2.weight[:, 0] = 0  # type: ignore[union-attr, operator, index]
    ds = measured(net, *digits)
    assert str(ds["roughness_status"].values[0, 0]).startswith("undefined: NaN or infinite")
    with torch.no_grad():
        outputs = net(torch.from_numpy(digits[1][0]))
    if bool(torch.isnan(outputs).any()):
        assert np.isnan(accuracy(ds))
    else:
        assert accuracy(ds) == accuracy_score(digits[1][1], outputs.argmax(1))


def test_a_wrong_normalization_is_warned_of(digits_net: nn.Module, digits: Any) -> None:
    """The claim is right, the inputs are scaled otherwise."""
    (x, y), (x_test, y_test) = digits
    with torch.no_grad():
        claims = {
            f"{split}_accuracy": round(accuracy_score(labels, digits_net(torch.from_numpy(inputs)).argmax(1)), 3)
            for split, (inputs, labels) in (("train", digits[0]), ("test", digits[1]))
        }
    task = Claiming(digits_net, claims, ((x, y), (x_test, y_test)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GenmeasuresWarning)
        assert genmeasures.measure(task, extractor=SMALL)["model_status"].values[0] == "ok"
    wrong = Claiming(digits_net, claims, ((16 * x - 8, y), (16 * x_test - 8, y_test)))
    with pytest.warns(GenmeasuresWarning) as said:
        ds = genmeasures.measure(wrong, extractor=SMALL)
    told = [str(one.message) for one in said]
    assert [text.partition(" is ")[0] for text in told] == [
        "1 of 1 models (net): train accuracy",
        "1 of 1 models (net): test accuracy",
    ]
    assert f"claimed {claims['test_accuracy']:.4g}: check data, normalization" in told[1]
    assert str(ds["model_status"].values[0]).startswith("note: train accuracy is 0.")
    assert float(ds["test_accuracy"][0]) == claims["test_accuracy"]
    assert np.isfinite(genmeasures.aggregate(ds)["roughness"].values).all()


class Claiming(genmeasures.interfaces.Task):
    """One network with what is claimed of it."""

    name = "claiming"

    def __init__(self, net: Any, claims: Any, data: Any) -> None:
        self.net, self.claims, self.data_of = net, claims, dict(zip(("train", "test"), data, strict=True))

    def options(self) -> dict[str, Any]:
        return {}

    def models(self) -> Any:
        return [genmeasures.interfaces.TaskModel("net", lambda: self.net, metrics=self.claims)]

    def data(self, split: Any) -> Any:
        return self.data_of[split]


def test_classes_that_do_not_begin_at_0_are_told(
    digits_net: nn.Module, digits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (x, y), _ = digits
    found = measured(digits_net, (x, y + 1), (x, y + 1))
    assert np.isnan(accuracy(found))
    assert "labels go up to 10, and the model has 10 outputs: are the classes numbered from 0?" in caplog.text
