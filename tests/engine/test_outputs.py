"""Measures of outputs: fed in the passes that are made anyway, and equal to what the outputs give by themselves."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import genmeasures
import genmeasures.run
from genmeasures.errors import ComponentError, DataError, Undefined
from genmeasures.extractors import ReceptiveField
from genmeasures.interfaces import OutputBatch, Split, TaskKind
from genmeasures.measures import Confidence
from genmeasures.plugin import FeatureMeasure, InputMean, ModelMeasure, OutputMeasure, Pass, Variable, evaluate, require

SMALL = ReceptiveField(cap=100, fit_cap=100)
CLASSES = 4


class Loss(OutputMeasure):
    """Mean negative log-likelihood, per input or pixel with a label."""

    name = "loss"
    variables = Variable("loss", "mean negative log-likelihood", bounds=(0, math.inf), dims=()).with_error()

    def __init__(self, split: Split = "test") -> None:
        self.split = split

    @property
    def splits(self) -> tuple[Split, ...]:
        return (self.split,)

    def start(self, generator: torch.Generator) -> None:
        self._mean = InputMean()

    def update(self, batch: OutputBatch) -> None:
        rows = batch.labeled
        losses = -rows.log_probabilities.gather(1, rows.labels[:, None])[:, 0]
        self._mean.add(rows.inputs, losses)

    def compute(self) -> Any:
        return self._mean.values("loss")


class Collected(OutputMeasure):
    """All outputs of a split, by rank, and how many splits were seen."""

    name = "collected"
    variables = (
        Variable("collected", "outputs by the rank of the input", dims=("input", "output")),
        Variable("collected_count", "outputs that were seen", dims=()),
    )
    splits: Any = ("test",)

    def start(self, generator: torch.Generator) -> None:
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._count = 0

    def update(self, batch: OutputBatch) -> None:
        assert batch.outputs.dtype == torch.float32
        self._count += len(batch)
        if batch.split == self.splits[0]:
            self._rows.append((batch.inputs.clone(), batch.outputs.reshape(len(batch), -1).clone()))

    def compute(self) -> Any:
        inputs, outputs = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
        return {"collected": outputs[inputs.argsort()].double().numpy(), "collected_count": self._count}


class Everywhere(Collected):
    splits = ("validation", "train", "test")


class Net(nn.Module):
    """A small network that counts the inputs of its calls, in an object of the standard library."""

    def __init__(self, answer: Callable[[Tensor], Any] = lambda scores: scores, outputs: int = CLASSES) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, outputs)
        self.answer = answer
        self.calls = array("q")

    def forward(self, x: Tensor) -> Any:
        self.calls.append(len(x))
        return self.answer(self.fc2(torch.relu(self.fc1(x))))

    def scores(self, x: Any) -> Tensor:
        with torch.no_grad():
            return self.fc2(torch.relu(self.fc1(torch.as_tensor(x))))  # type: ignore[no-any-return]


Arrays = tuple[Any, Any]


def arrays(count: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 6)).astype("f4"), rng.integers(0, CLASSES, count)


TRAIN, TEST, VALIDATION = arrays(50, 0), arrays(33, 1), arrays(41, 2)
ALL = {"train": TRAIN, "test": TEST, "validation": VALIDATION}


def measured(net: nn.Module | None = None, *measures: Any, **options: Any) -> xr.Dataset:
    settings_ = {**ALL, "extractor": SMALL, "batch_size": 16, "measures": list(measures), **options}
    return genmeasures.measure({"net": net or Net()}, **settings_)


def status(ds: xr.Dataset, name: str) -> str:
    return str(ds[f"{name}_status"].values[0])


# Passes ---------------------------------------------------------------------------------------------------------


def runs(*measures: Any, **options: Any) -> list[int]:
    """Inputs of the forward calls, sorted: batches of the passes, and those of the trace."""
    net = Net()
    ds = measured(net, *measures, **options)
    for name in ("loss_status", "collected_count_status"):
        if name in ds:
            assert str(ds[name].values[0]) == "ok", ds[name].values
    return sorted(net.calls)


PASS = {"train": [16, 16, 16, 2], "test": [16, 16, 1], "validation": [16, 16, 9]}


@pytest.mark.parametrize(
    ("measures", "options"),
    [
        (["davies_bouldin", "roughness", "confidence", Confidence(split="validation").called("held")], {}),
        (["davies_bouldin", "roughness", "confidence", Confidence(split="validation").called("held")], {"layers": [0]}),
        (
            ["davies_bouldin", "roughness", "confidence", Confidence(split="validation").called("held")],
            {"memory": 1 / 1024},  # layers are recorded in passes of their own, and nothing is cached
        ),
    ],
    ids=["plain", "first layer", "little memory"],
)
def test_no_pass_is_added_where_one_is_made(measures: list[Any], options: dict[str, Any]) -> None:
    alone = runs(*measures, **options)
    others = [Loss(split).called(f"loss_of_{split}") for split in ("train", "test", "validation")]
    assert runs(*measures, *others, Everywhere(), Loss(), **options) == alone


class FailsOnTheLast(FeatureMeasure):
    name = "fails_on_the_last"
    variables = (Variable("fails_on_the_last", "1 where the layer has a value"),)
    passes = (Pass("test", "vectors"),)

    def start(self, layer: Any, generator: torch.Generator) -> None:
        require(layer.name != "fc2", self, "this layer fails")

    def update(self, batch: Any) -> None:
        pass

    def compute(self) -> float:
        return 1.0


def test_a_pass_that_would_end_early_goes_on_to_the_outputs() -> None:
    """No measure waits for the last layer, so that the pass over the test data would stop after the first."""
    alone = runs(FailsOnTheLast())
    assert runs(FailsOnTheLast(), Loss(), Collected()) == alone


class Largest(ModelMeasure):
    """Reads weights alone, so that no pass is made for it."""

    name = "largest"
    variables = (Variable("largest", "largest weight"),)

    def measure(self, model: nn.Module, layers: Any, data: Any) -> Any:
        return {"largest": [float(data.weight(layer).abs().max()) for layer in layers]}


@pytest.mark.parametrize(
    ("splits", "feature_measures", "added"),
    [
        (("test",), [], ["test"]),
        (("validation",), ["davies_bouldin"], ["validation"]),
        (("train", "test"), ["davies_bouldin"], ["test"]),
        (("test", "train", "validation"), [], ["train", "test", "validation"]),
    ],
)
def test_one_pass_is_made_where_there_is_none(splits: Any, feature_measures: list[Any], added: list[str]) -> None:
    several = type("Several", (Everywhere,), {"splits": splits})
    alone = runs(Largest(), *feature_measures)
    more = [count for split in added for count in PASS[split]]
    assert runs(Largest(), *feature_measures, several(), Loss(splits[0])) == sorted([*alone, *more])


def test_without_training_data_it_is_the_pass_that_fits() -> None:
    measures = ["roughness", Loss()]
    assert runs(*measures, train=None) == runs("roughness", train=None)


def test_accuracy_is_counted_in_its_pass() -> None:
    net = Net()
    ds = measured(net, Loss("validation"))
    predicted = net.scores(VALIDATION[0]).argmax(1)
    assert float(ds["measured_validation_accuracy"][0]) == accuracy_score(VALIDATION[1], predicted)
    assert np.isnan(ds["measured_test_accuracy"].values).all()
    assert np.isnan(ds["measured_train_accuracy"].values).all()


# Values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test", "validation"])
def test_the_value_is_that_of_scikit_learn(split: Split) -> None:
    net = Net()
    ds = measured(net, Loss(split))
    x, y = ALL[split]
    probabilities = np.exp(log_softmax(net.scores(x).double().numpy(), 1))
    assert float(ds["loss"][0]) == pytest.approx(log_loss(y, probabilities, labels=range(CLASSES)), rel=1e-6)
    losses = -np.log(probabilities[np.arange(len(y)), y])
    assert float(ds["loss_error"][0]) == pytest.approx(losses.std(ddof=1) / len(y) ** 0.5, rel=1e-5)
    assert ds["loss"].dims == ("model",)


def test_stored_outputs_have_the_value_of_the_run() -> None:
    net = Net()
    ds = measured(net, Loss(), Loss("validation").called("held"))
    stored = {split: (net.scores(x).numpy(), y) for split, (x, y) in ALL.items()}
    for measure, name in ((Loss(), "loss"), (Loss("validation").called("held"), "held")):
        outcome = evaluate(measure, stored)[name]  # type: ignore[arg-type]
        assert outcome.status == "ok"
        assert outcome.value == pytest.approx(float(ds[name][0]), rel=1e-6)


def loader(data: Arrays, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*map(torch.as_tensor, data)), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 7},
        {"batch_size": 1000},
        {"memory": 1 / 64},
        {"test": loader(TEST, batch_size=5, num_workers=2)},
        {"test": (TEST[0][::-1].copy(), TEST[1][::-1].copy())},
    ],
    ids=["small batches", "one batch", "little memory", "workers", "reversed"],
)
def test_values_do_not_depend_on_batches_workers_and_order(options: dict[str, Any]) -> None:
    plain, other = (measured(None, Loss(), Collected(), **given) for given in ({}, options))
    for name in ("loss", "loss_error", "collected"):
        np.testing.assert_allclose(other[name].values, plain[name].values, rtol=1e-5, atol=1e-7)


def test_ranks_are_the_same_for_all_models_and_differ_for_copies() -> None:
    """So that outputs of several models can be compared input by input."""
    x, y = TEST
    doubled = np.concatenate([x, x[:5]]), np.concatenate([y, y[:5]])
    identity = Net(lambda scores: scores)
    ds = measured(identity, Collected(), test=doubled)
    outputs = identity.scores(doubled[0]).numpy()
    found = ds["collected"].values[0]
    assert found.shape == (38, CLASSES)
    np.testing.assert_allclose(np.sort(found, 0), np.sort(outputs, 0), rtol=1e-5)


def test_large_offsets_do_not_destroy_precision() -> None:
    """Logits of a million and a spread of one: the softmax is that of the spread, as float32 holds it."""
    spread = np.random.default_rng(0).integers(-16, 16, (40, CLASSES)) / 8
    labels = np.arange(40) % CLASSES
    plain, moved = (evaluate(Loss(), {"test": (spread + shift, labels)})["loss"].value for shift in (0, 1e6))
    assert moved == pytest.approx(plain, rel=1e-12)
    assert plain == pytest.approx(log_loss(labels, np.exp(log_softmax(spread, 1))), rel=1e-12)


def test_a_variable_may_have_dimensions_of_its_own() -> None:
    """Padded where models differ in their size."""
    nets = {"four": Net(), "six": Net(outputs=6)}
    ds = genmeasures.measure(nets, test=TEST, measures=[Collected()], extractor=SMALL)
    assert ds["collected"].dims == ("model", "input", "output")
    assert ds["collected"].shape == (2, 33, 6)
    assert np.isnan(ds["collected"].values[0, :, 4:]).all()
    assert ds["collected_status"].values.tolist() == ["ok", "ok"]


def test_it_is_aggregated_and_judged_as_any_value_of_a_model() -> None:
    nets = {f"net_{scale}": Net(lambda scores, scale=scale: scores * scale) for scale in range(1, 5)}
    ds = genmeasures.measure(nets, **ALL, measures=[Loss(), "roughness"], extractor=SMALL)
    aggregated = genmeasures.aggregate(ds)
    np.testing.assert_array_equal(aggregated["loss"].values, ds["loss"].values)
    table = genmeasures.judge(aggregated, {"scale": [1, 2, 3, 4]})
    assert "loss" in set(table["measure"])
    assert "loss_error" not in set(table["measure"])


def test_several_settings_in_one_run() -> None:
    ds = measured(None, measures={"on_test": Loss(), "held": Loss("validation")})
    assert float(ds["on_test"][0]) != float(ds["held"][0])
    assert {"held_error", "held_status"} <= set(ds.variables)


def test_one_seed_gives_one_value() -> None:
    class Dice(Loss):
        def compute(self) -> Any:
            return {"loss": float(self._number), "loss_error": 0.0}

        def start(self, generator: torch.Generator) -> None:
            super().start(generator)
            self._number = torch.rand((), generator=generator, device="cpu")

    values = [float(measured(None, Dice(), seed=seed)["loss"][0]) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert evaluate(Dice(), {"test": (2 * np.eye(3), np.arange(3))})["loss"].value == values[0]


# Dense outputs and regression -----------------------------------------------------------------------------------


class Painter(nn.Module):
    """Three scores per pixel."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


def test_dense_outputs_have_a_value_per_pixel_with_a_label() -> None:
    rng = np.random.default_rng(0)
    x, masks = rng.normal(size=(12, 1, 9, 7)).astype("f4"), rng.integers(0, 3, (12, 9, 7))
    masks[3, 2:5] = 99
    masks[5] = 99
    net = Painter()
    options = {"train": None, "validation": None, "ignore_index": 99}
    ds = measured(net, Loss(), test=(x, masks), **options)
    with torch.no_grad():
        logits = net(torch.from_numpy(x)).double().permute(0, 2, 3, 1).numpy()
    known = masks != 99
    expected = log_loss(masks[known], np.exp(log_softmax(logits[known], 1)))
    assert float(ds["loss"][0]) == pytest.approx(expected, rel=1e-6)
    small = measured(net, Loss(), test=(x, masks), batch_size=5, **options)
    np.testing.assert_allclose(small["loss_error"].values, ds["loss_error"].values, rtol=1e-6)
    # The error is one over inputs: pixels of an image depend on each other.
    losses = -log_softmax(logits, -1)
    picked = np.take_along_axis(losses, np.where(known, masks, 0)[..., None], -1)[..., 0] * known
    sums, counts = picked.sum((1, 2))[known.any((1, 2))], known.sum((1, 2))[known.any((1, 2))]
    residuals = sums - expected * counts
    error = math.sqrt(11 / 10 * (residuals**2).sum()) / counts.sum()
    assert float(ds["loss_error"][0]) == pytest.approx(error, rel=1e-5)


class SquaredError(OutputMeasure):
    """Mean squared error of targets that are not NaN."""

    name = "squared_error"
    variables = (Variable("squared_error", "mean squared error", bounds=(0, math.inf), dims=()),)
    splits = ("test",)

    def start(self, generator: torch.Generator) -> None:
        self._mean = InputMean()

    def update(self, batch: OutputBatch) -> None:
        rows = batch.labeled
        assert rows.targets is not None
        assert batch.kind == "regression"
        self._mean.add(rows.inputs, (rows.outputs.double() - rows.targets.double()).square().mean(1))

    def compute(self) -> Any:
        return self._mean.mean()


@pytest.mark.parametrize(
    "answer",
    [lambda scores: scores[:, 0], lambda scores: scores[:, :1], lambda scores: scores[:, :2]],
    ids=["(n,)", "(n, 1)", "(n, 2)"],
)
def test_regression(answer: Callable[[Tensor], Tensor]) -> None:
    net = Net(answer)
    outputs = answer(net.scores(TEST[0]))
    targets = outputs.numpy() + np.linspace(-1, 2, len(outputs), dtype="f4").reshape(-1, *[1] * (outputs.dim() - 1))
    labels = targets.copy()
    labels[4] = 77.5
    ds = measured(net, SquaredError(), Loss(), train=None, validation=None, test=(TEST[0], labels), ignore_index=77.5)
    keep = np.arange(len(labels)) != 4
    expected = np.square(targets.astype("f8") - outputs.double().numpy())[keep].mean()
    assert float(ds["squared_error"][0]) == pytest.approx(expected, rel=1e-5)
    assert status(ds, "loss") == "undefined: the targets are not class numbers, so that the outputs are no logits"
    stored = np.where(keep.reshape(-1, *[1] * (outputs.dim() - 1)), targets, np.nan)
    assert evaluate(SquaredError(), {"test": (outputs, stored)})["squared_error"].value == pytest.approx(expected)


# Outputs that have no value -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda s: s * torch.where(s > s.max() - 0.01, math.nan, 1.0), "NaN or infinite outputs"),
        (lambda s: s * torch.where(s > s.max() - 0.01, math.inf, 1.0), "NaN or infinite outputs"),
        (lambda s: (s, s), "the model does not return a tensor"),
        (lambda s: None, "the model does not return a tensor"),
        (lambda s: s.argmax(1), "the outputs are not floating-point numbers"),
        (lambda s: s.sum(), "the model does not return one output per input"),
        (lambda s: s[:-1], "the model does not return one output per input"),
    ],
    ids=["nan", "infinity", "tuple", "nothing", "integers", "a number", "too few"],
)
def test_outputs_without_a_value(answer: Callable[[Tensor], Any], reason: str) -> None:
    ds = measured(Net(answer), Loss(), Collected(), "roughness")
    for name in ("loss", "loss_error", "collected", "collected_count"):
        assert np.isnan(ds[name].values).all()
        assert status(ds, name) == f"undefined: {reason}"
    assert np.isfinite(ds["roughness"].values).all()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda s: s[:, 0], "outputs of shape (n, 1) are not one per class of 4"),
        (lambda s: s[:, :3], "outputs of shape (n, 3) are not one per class of 4"),
        (lambda s: s[:, :, None], "outputs of shape (n, 4, 1) do not match targets of shape (n, 1)"),
        (
            lambda s: s.softmax(1),
            "the outputs are probabilities (≥ 0 with sum 1), and the measure reads logits: measure the model without "
            "its softmax",
        ),
    ],
    ids=["flat", "too few", "space", "probabilities"],
)
def test_outputs_that_are_no_logits(answer: Callable[[Tensor], Any], reason: str) -> None:
    """They have no loss, and a measure that reads them as they are has a value."""
    ds = measured(Net(answer), Loss(), Collected())
    assert status(ds, "loss") == f"undefined: {reason}"
    assert status(ds, "collected_count") == "ok"


@pytest.mark.parametrize(
    "answer",
    [
        lambda scores: {"logits": scores},
        lambda scores: SimpleNamespace(logits=scores),
        lambda scores: scores.double(),
        lambda scores: scores.clone().requires_grad_(),
        lambda scores: torch.cat([scores, scores.new_full((len(scores), 3), -60.0)], 1),
    ],
    ids=["mapping", "attribute", "double", "gradients", "more classes"],
)
def test_outputs_that_are_logits(answer: Callable[[Tensor], Any]) -> None:
    ds, plain = measured(Net(answer), Loss()), measured(None, Loss())
    np.testing.assert_allclose(ds["loss"].values, plain["loss"].values, rtol=1e-6)


def test_probabilities_have_predictions() -> None:
    class Errors(Loss):
        def update(self, batch: OutputBatch) -> None:
            rows = batch.labeled
            self._mean.add(rows.inputs, (rows.predictions != rows.labels).double())

    net = Net(lambda scores: scores.softmax(1))
    wrong = 1 - accuracy_score(TEST[1], net.scores(TEST[0]).argmax(1))
    assert float(measured(net, Errors())["loss"][0]) == pytest.approx(wrong, rel=1e-12)


def test_some_batches_may_look_like_probabilities() -> None:
    """Whether outputs are probabilities is decided by all of a split, not by a batch."""
    logits = np.random.default_rng(0).normal(size=(40, 2))
    logits[7] = 0.25, 0.75
    for rows in (slice(0, 40), slice(7, 8)):
        outcome = evaluate(Loss(), {"test": (logits[rows], np.zeros(40, int)[rows])})["loss"]
        assert outcome.status.startswith("undefined: the outputs are probabilities") == (rows.start == 7)


# Targets --------------------------------------------------------------------------------------------------------


def test_missing_targets() -> None:
    ds = measured(None, Loss(), Collected(), test=(TEST[0],))
    assert status(ds, "loss") == "undefined: the test data have no targets"
    assert status(ds, "collected_count") == "ok"


def test_missing_labels() -> None:
    x, y = TEST
    labels = np.where(np.arange(len(y)) % 3 == 0, 255, y)
    net = Net()
    ds = measured(net, Loss(), test=(x, labels), ignore_index=255)
    known = labels != 255
    expected = log_loss(y[known], np.exp(log_softmax(net.scores(x).double().numpy()[known], 1)), labels=range(CLASSES))
    assert float(ds["loss"][0]) == pytest.approx(expected, rel=1e-6)
    # The mistake that the −1 of a missing label invites: the last class.
    logits = log_softmax(net.scores(x).double().numpy(), 1)
    mistaken = -logits[np.arange(len(y)), np.where(known, y, -1)].mean()
    assert abs(float(ds["loss"][0]) - mistaken) > 1e-3


def test_a_split_that_is_missing() -> None:
    ds = measured(None, Loss("validation"), "roughness", validation=None)
    assert status(ds, "loss") == "undefined: loss needs validation data, and none are given"
    with pytest.raises(DataError, match="loss needs validation data, and none are given"):
        measured(None, Loss("validation"), validation=None)
    with pytest.raises(DataError, match="there are no data"):
        genmeasures.measure([Net()], measures=[Loss()])


def test_the_status_notes_how_targets_were_read() -> None:
    ds = measured(None, Loss(), Collected(), test=(TEST[0], np.eye(CLASSES)[TEST[1]]))
    assert status(ds, "loss") == "note: one-hot targets were read as class numbers"
    assert status(ds, "collected_count") == "ok"  # it reads no targets
    np.testing.assert_array_equal(ds["loss"].values, measured(None, Loss())["loss"].values)


def test_the_kind_of_the_task_is_known_without_targets_of_the_split() -> None:
    seen: list[tuple[str, TaskKind, int]] = []

    class Kinds(Collected):
        splits = ("train", "test")

        def update(self, batch: OutputBatch) -> None:
            super().update(batch)
            seen.append((batch.split, batch.kind, batch.classes))

    measured(None, Kinds(), test=(TEST[0],), batch_size=100)
    assert sorted(seen) == [("test", "classification", CLASSES), ("train", "classification", CLASSES)]
    seen.clear()
    measured(None, Kinds(), train=(TRAIN[0],), test=(TEST[0],), validation=None, batch_size=100)
    assert {(kind, classes) for _, kind, classes in seen} == {("unknown", 0)}


# Failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["start", "update", "compute"])
def test_a_measure_that_fails_does_not_stop_the_others(method: str) -> None:
    def fail(self: Any, *given: Any) -> Any:
        raise RuntimeError("broken")

    failing = type(
        "Failing", (Loss,), {"name": "failing", method: fail, "variables": (Variable("failing", "x", dims=()),)}
    )
    ds = measured(None, failing(), Loss(), "roughness")
    assert status(ds, "failing") == "failed: RuntimeError: broken"
    assert status(ds, "loss") == "ok"
    assert np.isfinite(ds["roughness"].values).all()
    with pytest.raises(RuntimeError, match="broken"):
        measured(None, failing(), errors="raise")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"loss": Undefined("no reason at all"), "loss_error": 1.0}, "undefined: no reason at all"),
        ({"loss": math.nan, "loss_error": 1.0}, "undefined: the measure returned nan"),
        ({"los": 1.0, "loss_error": 1.0}, "failed: compute returned a value for 'los', which is not a variable"),
        (1.0, "failed: compute returned an object of type float, expected a dict of values"),
        ({"loss": np.ones(3), "loss_error": 1.0}, "failed: the measure returned a NumPy array of shape (3,), expected"),
    ],
)
def test_values_that_are_none(value: Any, expected: str) -> None:
    wrong = type("Wrong", (Loss,), {"compute": lambda self: value})
    assert status(measured(None, wrong()), "loss").startswith(expected)


def test_tiles_have_no_whole_outputs() -> None:
    x = np.random.default_rng(0).normal(size=(6, 1, 16, 16)).astype("f4")
    ds = measured(Painter(), Loss(), "roughness", tile=4, train=None, validation=None, test=x)
    assert status(ds, "loss") == "undefined: loss reads outputs for whole inputs, which tile rules out"
    assert np.isfinite(ds["roughness"].values).all()


def test_a_random_model_says_so() -> None:
    ds = measured(Net(lambda scores: nn.functional.dropout(scores)), Loss())
    assert status(ds, "loss").startswith("note: ")
    assert "random" in status(ds, "loss")
    assert np.isfinite(ds["loss"].values).all()


# Kept results ---------------------------------------------------------------------------------------------------


def test_kept_results_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count: list[int] = []
    measure = genmeasures.run.measure_model
    monkeypatch.setattr("genmeasures.run.measure_model", lambda *given: (count.append(1), measure(*given))[1])
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    first = measured(net, Loss(), Collected(), keep=tmp_path)
    again = measured(net, Loss(), Collected(), keep=tmp_path)
    assert len(count) == 1
    for name in ("loss", "loss_status", "collected", "collected_count"):
        np.testing.assert_array_equal(again[name].values, first[name].values)
    other = measured(net, Loss("train"), Collected(), keep=tmp_path)
    assert len(count) == 2
    assert float(other["loss"][0]) != float(first["loss"][0])


# Written wrongly ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"splits": "test"}, r"Mine: splits must be a tuple of names, got 'test': write splits = \(\"test\",\)"),
        ({"splits": ()}, "Mine: splits must be a tuple of names"),
        ({"splits": ("tset",)}, r"Mine: there is no split 'tset' \(did you mean 'test'\?"),
        ({"splits": lambda self: ("test",)}, "Mine: splits is a method: write @property above it"),
        ({"variables": (Variable("mine", "x"),)}, r"the variable 'mine' has the dimension layer, .* write dims=\(\)"),
    ],
)
def test_what_is_refused_at_the_class(attributes: dict[str, Any], message: str) -> None:
    given = {"name": "mine", "variables": (Variable("mine", "x", dims=()),), "splits": ("test",), **attributes}
    with pytest.raises(ComponentError, match=message):
        type("Mine", (OutputMeasure,), given)


def test_splits_of_a_property_are_checked_before_a_model_runs() -> None:
    late = type("Late", (Loss,), {"splits": property(lambda self: ("tset",))})
    net = Net()
    with pytest.raises(ComponentError, match="Late: there is no split 'tset'"):
        measured(net, late())
    assert not net.calls


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"tset": np.eye(3)}, "there is no split 'tset'"),
        ({"test": (np.eye(3), np.arange(2))}, r"targets of shape \(2,\) do not match outputs of \(3, 3\)"),
        ({"test": (np.eye(3), np.zeros((3, 2, 2)))}, "do not match outputs"),
        ({"test": (np.eye(3),)}, r"a tuple \(outputs, targets\), got 1 parts"),
        ({"test": np.zeros((0, 3))}, r"expected an array of shape \(N, …\), got \(0, 3\)"),
    ],
)
def test_stored_outputs_that_do_not_match(outputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(Loss(), outputs)


def test_stored_outputs_of_a_split_that_is_missing() -> None:
    outcome = evaluate(Loss("validation"), {"test": np.eye(3)})["loss"]
    assert outcome.status == "undefined: loss needs outputs on validation data, and none are given"


# Batches --------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 5),
    classes=st.integers(2, 4),
    space=st.lists(st.integers(1, 3), max_size=3),
    seed=st.integers(0, 99),
)
def test_rows_are_those_of_a_loop(count: int, classes: int, space: list[int], seed: int) -> None:
    """One row per pixel, in the order of the inputs and of their pixels; those with a label alone."""
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(count, classes, *space)).astype("f4")
    targets = rng.integers(-1, classes, (count, 1, *space))
    ranks = rng.permutation(count)
    batch = OutputBatch("test", *map(torch.from_numpy, (ranks, outputs, targets)), "classification", classes)
    everything = [
        (int(ranks[i]), outputs[(i, slice(None), *place)].tolist(), int(targets[(i, 0, *place)]))
        for i in range(count)
        for place in np.ndindex(*space)
    ]
    for part, expected in ((batch.flat, everything), (batch.labeled, [row for row in everything if row[2] >= 0])):
        assert part.targets is not None
        found = zip(part.inputs.tolist(), part.outputs.tolist(), part.labels.tolist(), strict=True)
        assert [*found] == expected
        assert part.log_probabilities.dtype == torch.float64
        np.testing.assert_allclose(part.log_probabilities, log_softmax(part.outputs.double().numpy(), 1), atol=1e-12)
        assert part.predictions.tolist() == [int(np.argmax(row[1])) for row in expected]
    assert batch.labels.shape == (count, *space)


def test_log_probabilities_keep_their_digits_where_the_largest_one_is_1() -> None:
    batch = OutputBatch("test", torch.arange(2), torch.tensor([[0.0, 50.0], [1e6, 1e6 + 50]]))
    np.testing.assert_allclose(batch.log_probabilities, [[-50, -np.exp(-50)]] * 2, rtol=1e-12)


def test_what_is_derived_is_computed_once() -> None:
    """For all measures of a run."""
    batch = OutputBatch("test", torch.arange(2), torch.eye(2), torch.tensor([[0], [-1]]), "classification", 2)
    assert batch.flat is batch
    assert batch.log_probabilities is batch.log_probabilities
    assert batch.labeled is batch.labeled
    assert batch.labeled.predictions is batch.labeled.predictions
