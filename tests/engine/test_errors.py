"""Whatever is wrong ends in an error or a status that names the culprit, and takes nothing else with it."""

from __future__ import annotations

import copy
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import genmeasures
from genmeasures.errors import DataError, ModelError, OptionError, ResultError, Undefined
from genmeasures.extractors import ReceptiveField, WholeTensor
from genmeasures.interfaces import (
    FeatureBatch,
    FeatureLabeler,
    FeatureMeasure,
    Layer,
    Measure,
    ModelData,
    ModelMeasure,
    Pass,
    TargetLabeler,
    Task,
    TaskModel,
    Value,
    Variable,
)
from genmeasures.labelers import ClassLabel, KMeans
from genmeasures.measures import Confidence, DaviesBouldin, Roughness
from genmeasures.run import Run
from genmeasures.tasks.weights import load_weights

VALUES = ("davies_bouldin", "roughness", "confidence", "confidence_unweighted")
ROUNDING = 1e-6
"""Relative difference allowed where other measures run beside: they decide what is kept between passes, so the same
float32 distances come from other operations (a convolution, or patches gathered before), which differ by about 1e-8."""
SMALL = ReceptiveField(cap=600)


@pytest.fixture
def net(digits_net: nn.Module) -> nn.Module:
    return copy.deepcopy(digits_net)


@pytest.fixture
def measured(digits: Any) -> Callable[..., xr.Dataset]:
    """A run on little data, with the usual measures unless others are given."""
    (x, y), (x_test, y_test) = digits

    def measure(
        models: Any, train: Any = (x[:80], y[:80]), test: Any = (x_test[:60], y_test[:60]), **options: Any
    ) -> Any:
        return genmeasures.measure(models, train, test, **{"extractor": SMALL, "batch_size": 32, **options})

    return measure


def check_others(ds: xr.Dataset, failed: str, reason: str) -> None:
    """One model failed with a reason that its status gives; the others have their values."""
    status = dict(zip(ds["model"].values, ds["model_status"].values, strict=True))
    assert status.pop(failed).startswith("failed: ")
    assert reason in str(ds["model_status"].sel(model=failed).values)
    assert not any(one.startswith("failed") for one in status.values())
    for name in VALUES:
        assert np.isnan(ds[name].sel(model=failed).values).all()
        assert np.isfinite(ds[name].sel(model=list(status)).values).all()


# Models -----------------------------------------------------------------------------------------------------


class Checkpointed(Task):
    """Checkpoints of one architecture."""

    name = "checkpointed"

    def __init__(self, folder: Path, architecture: Any, splits: Any) -> None:
        self.folder, self.architecture, self.splits = folder, architecture, splits

    def models(self) -> Sequence[TaskModel]:
        def build(path: Path) -> Callable[[], nn.Module]:
            def load() -> nn.Module:
                return load_weights(lambda: copy.deepcopy(self.architecture), path)

            return load

        names = ("first", "broken", "last")
        return [TaskModel(name, build(self.folder / f"{name}.pt"), metrics={"test_accuracy": 0.5}) for name in names]

    def data(self, split: Any) -> Any:
        return self.splits[split]


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "text", "of another shape"])
def test_a_checkpoint_that_cannot_be_read_is_left_out(net: nn.Module, digits: Any, tmp_path: Path, damage: str) -> None:
    for name in ("first", "broken", "last"):
        torch.save(net.state_dict(), tmp_path / f"{name}.pt")
    broken = tmp_path / "broken.pt"
    if damage == "missing":
        broken.unlink()
    elif damage == "truncated":
        broken.write_bytes(broken.read_bytes()[:-2000])
    elif damage == "empty":
        broken.write_bytes(b"")
    elif damage == "text":
        broken.write_text("not a checkpoint")
    else:
        torch.save({**net.state_dict(), "fc2.bias": torch.zeros(11)}, broken)
    (x, y), (x_test, y_test) = digits
    task = Checkpointed(tmp_path, net, {"train": (x[:80], y[:80]), "test": (x_test[:60], y_test[:60])})
    ds = genmeasures.measure(task, extractor=SMALL)
    check_others(ds, "broken", "broken.pt")
    assert list(ds["test_accuracy"].values) == [0.5] * 3


@pytest.mark.parametrize("error", [FileNotFoundError, KeyError, ZeroDivisionError])
def test_a_model_that_cannot_be_built(net: nn.Module, digits: Any, error: type[Exception]) -> None:
    def build() -> nn.Module:
        raise error("by my own fault")

    class Built(Task):
        name = "built"

        def models(self) -> Sequence[TaskModel]:
            return [TaskModel("a", lambda: net), TaskModel("b", build), TaskModel("c", lambda: "no model")]  # type: ignore[return-value, arg-type]

        def data(self, split: Any) -> Any:
            return digits[0][0][:80], digits[0][1][:80]

    ds = genmeasures.measure(Built(), extractor=SMALL)
    assert error.__name__ in str(ds["model_status"].values[1])
    assert "by my own fault" in str(ds["model_status"].values[1])
    assert "got an object of type str" in str(ds["model_status"].values[2])
    assert np.isfinite(ds["roughness"].values[0]).all()


@pytest.mark.parametrize("name", ["a", "1", "of", "model"])
def test_the_name_of_a_model_stands_in_its_error(measured: Callable[..., xr.Dataset], name: str) -> None:
    with pytest.raises(ModelError, match=f"^model {name}: no layer can be measured"):
        measured({name: nn.Flatten()})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("parameter", ["conv2.weight", "fc1.bias"])
def test_weights_that_are_not_finite(
    net: nn.Module, measured: Callable[..., xr.Dataset], value: float, parameter: str
) -> None:
    bad = copy.deepcopy(net)
    bad.get_parameter(parameter).data.view(-1)[3] = value
    ds = measured({"a": net, "bad": bad, "z": net})
    check_others(ds, "bad", f"1 of {bad.get_parameter(parameter).numel()} values of {parameter} are NaN or infinite")
    with pytest.raises(ModelError, match=rf"bad.*{parameter}"):
        measured({"bad": bad})


def test_running_statistics_that_are_not_finite(measured: Callable[..., xr.Dataset], net: nn.Module) -> None:
    bad = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    bad[1].running_var[2] = float("nan")
    check_others(measured({"a": net, "bad": bad, "z": net}), "bad", "1.running_var")


def test_activations_that_overflow(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    """Finite weights, infinite features from the second layer on: the first layer is measured all the same."""
    bad = copy.deepcopy(net)
    with torch.no_grad():
        bad.conv1.weight.mul_(1e25)
        bad.conv2.weight.mul_(1e25)
    ds = measured({"a": net, "bad": bad, "z": net})
    for name in VALUES:
        assert np.isfinite(ds[name].sel(model=["a", "z"]).values).all()
        assert np.isnan(ds[name].sel(model="bad").values[1:]).all()
        for status in ds[f"{name}_status"].sel(model="bad").values[1:]:
            assert status.startswith("undefined: ")
            assert "NaN or infinite activations" in status
    found = ds["davies_bouldin"].sel(model="bad").values[0]
    np.testing.assert_allclose(found, ds["davies_bouldin"].sel(model="a").values[0], rtol=0.2)


class Largest(FeatureMeasure):
    """The largest activation."""

    name = "largest"
    variables = (Variable("largest", "largest activation", 0),)
    passes = (Pass("test", "vectors"),)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._largest = 0.0

    def update(self, batch: FeatureBatch) -> None:
        self._largest = max(self._largest, float(batch.vectors.abs().max()))

    def compute(self) -> float:
        return self._largest


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_finite_activations_whose_sum_overflows_are_no_infinity(sign: float) -> None:
    """Each is a float32, 500 of them together are none."""
    net = nn.Sequential(nn.Linear(4, 8, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(sign * 5e37)
    x = torch.ones(60, 4)
    assert not torch.isfinite(net(x).sum())
    ds = genmeasures.measure({"net": net}, test=x, measures=[Largest()])
    assert ds["largest_status"].values.tolist() == [["ok"]]
    np.testing.assert_allclose(ds["largest"].values, [[2e38]], rtol=1e-6)


def test_activations_that_are_nan_for_one_test_input_only(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)

        def forward(self, x: Tensor) -> Tensor:
            # NaN for darker inputs than any in the training data.
            return self.fc((self.conv1(x).relu() * (x.sum((1, 2, 3), keepdim=True) - 1).sqrt()).flatten(1))

    bad = Rooted()
    x = np.full((60, 1, 8, 8), 0.5, np.float32) * np.random.default_rng(0).uniform(0.5, 1, (60, 1, 8, 8)).astype(
        np.float32
    )
    x_dark = x.copy()
    x_dark[31] = 0
    ds = measured({"bad": bad}, (x, np.arange(60) % 3), (x_dark, np.arange(60) % 3))
    assert np.isfinite(ds["davies_bouldin"].values).all()
    assert list(ds["roughness_status"].values[0, :1]) == ["ok"]
    assert "NaN or infinite" in ds["confidence_status"].values[0, 1]


class Refusing(nn.Module):
    """Fails in the course of a run: on every batch that holds a certain input."""

    def __init__(self, net: nn.Module, error: Exception) -> None:
        super().__init__()
        self.net, self.error, self.batches = net, error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += 1
        if self.batches > 4:
            raise self.error
        return self.net(x)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("out of luck"),
        ValueError("out of luck"),
        ZeroDivisionError("out of luck"),
        AttributeError("out of luck"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_model_that_fails_half_way(net: nn.Module, measured: Callable[..., xr.Dataset], error: Exception) -> None:
    ds = measured({"a": net, "bad": Refusing(net, error), "z": net})
    check_others(ds, "bad", "out of luck")
    assert list(ds["layer_name"].sel(model="z").values) == ["conv1", "conv2", "fc1", "fc2"]


def test_out_of_memory_takes_no_other_model(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    ds = measured({"a": net, "bad": Refusing(net, torch.OutOfMemoryError("no memory left")), "z": net})
    check_others(ds, "bad", "no memory left")


def test_an_interrupt_is_no_failure_of_a_model(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured({"a": net, "bad": Refusing(net, KeyboardInterrupt())})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((60, 3, 8, 8), "rejects a batch of shape"), ((60, 1, 12, 12), "rejects a batch"), ((60, 64), "rejects a batch")],
)
def test_data_of_a_shape_that_a_model_refuses(
    net: nn.Module, measured: Callable[..., xr.Dataset], shape: tuple[int, ...], reason: str
) -> None:
    data = (np.random.default_rng(0).random(shape, np.float32), np.arange(60) % 5)
    with pytest.raises(ModelError, match=rf"net.*{reason}.*{shape[1]}"):
        measured({"net": net}, data, data)
    # A model that takes them is measured beside those that do not.
    taking = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape[1:])), 20), nn.ReLU(), nn.Linear(20, 5))
    check_others(measured({"taking": taking, "net": net}, data, data), "net", reason)


def test_models_without_a_measurable_layer(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    empty = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
    ds = measured({"a": net, "empty": empty})
    check_others(ds, "empty", "no layer can be measured")
    assert "AvgPool2d" in str(ds["model_status"].sel(model="empty").values)
    recurrent = nn.Sequential(nn.Flatten(2), nn.Flatten(1, 1), nn.RNN(64, 4))
    with pytest.raises(ModelError, match="none of 2 models could be measured"):
        measured({"empty": empty, "also empty": recurrent})


@pytest.mark.parametrize("given", [[1, 2], {"a": "net.pth"}, [nn.ReLU]])
def test_what_is_no_model(given: Any, measured: Callable[..., xr.Dataset]) -> None:
    with pytest.raises(ModelError, match=r"(model_0|a) is of type"):
        measured(given)


def test_no_models_at_all(measured: Callable[..., xr.Dataset]) -> None:
    with pytest.raises(ModelError, match="no models"):
        measured([])


def test_lazy_models_say_what_to_do(measured: Callable[..., xr.Dataset]) -> None:
    with pytest.raises(ModelError, match=r"0\.weight is not initialized.*lazy"):
        measured({"lazy": nn.Sequential(nn.LazyConv2d(3, 3), nn.Flatten())})


def test_models_of_one_name(net: nn.Module) -> None:
    models = [TaskModel("twice", lambda: net), TaskModel("twice", lambda: net)]
    with pytest.raises(ModelError, match="duplicate model names: twice"):
        Run(models, None, None, [], SMALL, layers=None, seed=0, device=None, batch_size=1, keep=None)


# Data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("split", ["train", "test"])
def test_inputs_that_are_not_finite(
    net: nn.Module, measured: Callable[..., xr.Dataset], digits: Any, value: float, split: str
) -> None:
    x, y = digits[0][0][:70].copy(), digits[0][1][:70]
    x[41, 0, 3, 3] = value
    with pytest.raises(DataError, match=f"{split} data: the input of sample 41 is NaN or infinite"):
        measured({"net": net}, **{split: (x, y)})


X = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
Y = np.arange(20) % 4


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        ((X[:0], Y[:0]), "train data: the data set is empty"),
        (torch.utils.data.TensorDataset(torch.zeros(0, 1, 8, 8), torch.zeros(0)), "train data: the data set is empty"),
        ((X, Y[:19]), "train data: 19 targets for 20 inputs"),
        ((X, 3), "train data: a single target for 20 inputs"),
        ((X, np.array(["cat"] * 20)), "train data: the targets must be an array of numbers"),
        ((X, np.where(Y == 3, -1, Y)), r"train data: the label of sample 3 is negative \(-1\)"),
        ((X, np.where(Y == 3, np.nan, Y).astype(np.float32)), "train data: the target of sample 3 is NaN"),
        ((X, np.zeros((20, 5), np.int64)), "train data"),
        (((X * 255).astype(np.uint8), Y), "train data: inputs are uint8"),
        ((X[:, 0, 0, 0], Y), r"train data: inputs must be of shape \(N, …\)"),
        ("cifar10", "train data: expected a tuple of arrays"),
        ((X, Y, Y), "train data: expected a tuple of arrays"),
        ([np.zeros((3, 3)), None], "train and test data: inputs differ in shape"),
    ],
)
def test_data_that_cannot_be_used(net: nn.Module, measured: Callable[..., xr.Dataset], train: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        measured({"net": net}, train)


def test_no_data_at_all(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    with pytest.raises(DataError, match=r"no data|needs train data"):
        measured({"net": net}, None, None)


def test_one_class_only(net: nn.Module, measured: Callable[..., xr.Dataset], digits: Any) -> None:
    x = digits[0][0][:80]
    ds = measured({"net": net}, (x, np.full(80, 7)))
    assert np.isnan(ds["davies_bouldin"].values).all()
    assert set(ds["davies_bouldin_status"].values.flat) == {
        "undefined: expected at least 2 clusters in the sample, got 1"
    }
    for name in VALUES[1:]:
        assert np.isfinite(ds[name].values).all()


def test_labels_of_any_range_are_names(net: nn.Module, measured: Callable[..., xr.Dataset], digits: Any) -> None:
    (x, y), _ = digits
    plain = measured({"net": net}, (x[:80], y[:80]), measures=["davies_bouldin"])
    spaced = measured({"net": net}, (x[:80], y[:80] * 13 + 5), measures=["davies_bouldin"])
    np.testing.assert_allclose(spaced["davies_bouldin"].values, plain["davies_bouldin"].values, rtol=1e-6)


def test_huge_class_numbers_take_no_memory(net: nn.Module, measured: Callable[..., xr.Dataset], digits: Any) -> None:
    """Identifiers as labels: a table of all numbers up to the largest would take terabytes."""
    (x, y), _ = digits
    plain = measured({"net": net}, (x[:80], y[:80]), measures=["davies_bouldin"])
    spaced = measured({"net": net}, (x[:80], y[:80] + 10**12), measures=["davies_bouldin"])
    np.testing.assert_allclose(spaced["davies_bouldin"].values, plain["davies_bouldin"].values, rtol=1e-6)


def test_a_dead_layer(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    """Weights of 0 and a bias of −1 before a ReLU: every vector is 0, as is every patch of the next layer."""
    dead = copy.deepcopy(net)
    with torch.no_grad():
        dead.fc1.weight.zero_()
        dead.fc1.bias.fill_(-1)
    ds = measured({"dead": dead, "net": net})
    fine = ds.sel(model="net")
    for name in VALUES:
        assert np.isfinite(fine[name].values).all()
        found, status = ds[name].sel(model="dead").values, ds[f"{name}_status"].sel(model="dead").values
        np.testing.assert_array_equal(np.isnan(found), [False, False, True, True])
        for text in status[2:]:
            assert text.startswith("undefined: constant features")
    np.testing.assert_allclose(ds["weight_norm"].sel(model="dead").values[2], 0)
    aggregated = genmeasures.aggregate(ds)
    assert np.isfinite(aggregated["roughness"].values).all()
    assert aggregated["roughness_layers_used"].sel(model="dead") == 2


def test_a_dead_channel_is_no_dead_layer(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    with torch.no_grad():
        net.conv1.weight[1:6].zero_()
        net.conv1.bias[1:6] = -1
    ds = measured({"net": net})
    for name in VALUES:
        assert np.isfinite(ds[name].values).all()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_fewer_samples_than_clusters(
    net: nn.Module, measured: Callable[..., xr.Dataset], digits: Any, count: int
) -> None:
    x = digits[0][0]
    ds = measured({"net": net}, (x[:count], np.arange(count)), extractor=WholeTensor())
    for name in VALUES[1:]:
        assert np.isnan(ds[name].values).all()
        for status in ds[f"{name}_status"].values.flat:
            assert status.startswith("undefined: ")
            assert str(count) in re.findall(r"\d+", status) or "constant" in status
    # The classes are there all the same, from two inputs on.
    assert np.isfinite(ds["davies_bouldin"].values).all() == (count > 1)


def test_fewer_different_vectors_than_clusters(
    net: nn.Module, measured: Callable[..., xr.Dataset], digits: Any
) -> None:
    """Three images, many times: constant pixels, three vectors a position at the most."""
    (x, _), _ = digits
    three = np.repeat(x[:3], 20, axis=0)
    ds = measured({"net": net}, (three, np.repeat([0, 1, 2], 20)), extractor=WholeTensor())
    for name in VALUES[1:]:
        for status in ds[f"{name}_status"].values.flat:
            assert status == "undefined: the training vectors take 3 different values, too few for 5 clusters"


def test_a_single_test_sample(net: nn.Module, measured: Callable[..., xr.Dataset], digits: Any) -> None:
    (x, y), _ = digits
    ds = measured({"net": net}, test=(x[:1], y[:1]))
    assert np.isfinite(ds["confidence"].values).all()
    # A linear layer makes one vector of it.
    assert (
        ds["roughness_status"].values[0, 2].startswith("undefined: expected at least 2 clusters in the sample, got 1")
    )


def test_random_augmentation_is_noticed(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    class Noisy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.rand(1, 8, 8), index % 3

    with pytest.raises(DataError, match="train data: sample 0 differs from one reading to the next"):
        measured({"net": net}, Noisy())


# Names and options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"measures": ["roughnes"]}, r"there is no measure 'roughnes' \(did you mean 'roughness'\?"),
        ({"measures": "davis_bouldin"}, "did you mean 'davies_bouldin'"),
        ({"extractor": "receptivefield"}, "did you mean 'receptive_field'"),
        ({"layers": ["conv3"]}, r"there is no layer 'conv3' to measure \(did you mean 'conv[12]'"),
        ({"measures": [DaviesBouldin]}, r"measure: expected an object, got the class DaviesBouldin"),
        ({"extractor": Roughness()}, "extractor: expected a name or an object of Extractor, got Roughness"),
        ({"measures": []}, "no measures"),
        ({"measures": ["roughness", Roughness(spread="rms")]}, "duplicate variable 'roughness'"),
        ({"batch_size": 0}, "batch_size must be an integer ≥ 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer ≥ 1, got 2.5"),
        ({"device": "cudda"}, "device='cudda' cannot be used"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used"),
        ({"seed": "x"}, "seed"),
        ({"seed": -1}, "seed"),
    ],
)
def test_unknown_names_and_options_of_a_run(
    net: nn.Module, measured: Callable[..., xr.Dataset], options: Any, reason: str
) -> None:
    with pytest.raises(OptionError, match=reason):
        measured({"net": net}, **options)


def test_a_layer_that_only_some_models_have(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    other = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))
    check_others(measured({"net": net, "other": other}, layers=["fc1"]), "other", "there is no layer 'fc1'")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: KMeans(k=1), "KMeans: k must be an integer ≥ 2, got 1"),
        (lambda: KMeans(k=2.5), "KMeans: k must"),
        (lambda: KMeans(k=True), "KMeans: k must"),
        (lambda: KMeans(restarts=0), "KMeans: restarts must"),
        (lambda: DaviesBouldin(space="pixels"), "DaviesBouldin: space='pixels' is unknown.*did you mean 'pixel'"),
        (lambda: DaviesBouldin(spread="median"), "DaviesBouldin: spread='median' is unknown"),
        (lambda: DaviesBouldin(split="valid"), "DaviesBouldin: split='valid' is unknown"),
        (lambda: Roughness(input_pca=0), "Roughness: input_pca must"),
        (lambda: Roughness(input_pca=2.5), "Roughness: input_pca must"),
        (lambda: Roughness(input_pca=True), "Roughness: input_pca must"),
        (lambda: Roughness(input_pca="all"), "Roughness: input_pca must"),
        (lambda: Roughness(input_pca=None), "Roughness: input_pca must"),
        (lambda: Roughness(direction="push"), "Roughness: direction='push' is unknown"),
        (lambda: Roughness(index="rand"), "Roughness: index='rand' is unknown"),
        (lambda: Roughness(ClassLabel(), direction="pushforward"), "needs a labeler of features"),
        (lambda: Roughness(spread="RMS"), "Roughness: spread='RMS' is unknown.*did you mean 'rms'|known: mean, rms"),
        *(
            (partial(Roughness, index=index, spread="rms"), f"spread='rms' applies to .* alone, got index='{index}'")
            for index in ("silhouette", "calinski_harabasz")
        ),
        (lambda: Confidence(components=0), "Confidence: components must"),
        (lambda: Confidence(density="exp"), "Confidence: density='exp' is unknown"),
        (lambda: Confidence(over="mixtures"), "Confidence: over='mixtures' is unknown.*did you mean 'mixture'"),
        (lambda: ReceptiveField(cap=0), "ReceptiveField: cap must"),
        (lambda: ReceptiveField(components=-1), "ReceptiveField: components must"),
        (lambda: ReceptiveField(tap="relu"), "ReceptiveField: tap='relu' is unknown"),
        (lambda: WholeTensor(cap="all"), "WholeTensor: cap must"),
        (lambda: DaviesBouldin(labeler="kmeans"), "labeler"),
        (lambda: Roughness(labeler=5), "labeler"),
        (lambda: Confidence(labeler=KMeans), "labeler"),
    ],
)
def test_options_out_of_range(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        make()


@pytest.mark.parametrize("place", ["below a file", "a file"])
def test_a_folder_that_cannot_be_written(
    net: nn.Module, measured: Callable[..., xr.Dataset], tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    keep = tmp_path / "file" / "results" if place == "below a file" else tmp_path / "file"
    with pytest.raises(ResultError, match=r"cannot write in .*file.*choose another folder"):
        measured({"net": net}, keep=keep)


def test_a_full_disk_loses_nothing_measured(
    net: nn.Module, measured: Callable[..., xr.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise ResultError("cannot write the result: No space left on device")

    monkeypatch.setattr("genmeasures.kept.save", full)
    kept = measured({"net": net}, keep=tmp_path)
    np.testing.assert_array_equal(kept.roughness, measured({"net": net}).roughness)


# Measures and labelers of others ----------------------------------------------------------------------------


class Faulty(FeatureMeasure):
    """Divides by zero in one of its methods, on one layer."""

    name = "faulty"
    variables = (Variable("faulty", "faulty", 0), Variable("faulty_too", "faulty as well", 0))
    passes = (Pass("test", "vectors"), Pass("test", "vectors"))

    def __init__(self, where: str, layer: str = "conv2") -> None:
        self.where, self.layer = where, layer

    def _fault(self, where: str) -> None:
        if self._layer.name == self.layer and where == self.where:
            raise ZeroDivisionError("by my own fault")

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._layer = layer
        self._fault("start")

    def update(self, batch: FeatureBatch) -> None:
        self._fault("update")

    def end_pass(self) -> None:
        self._fault("end_pass")

    def compute(self) -> Mapping[str, float]:
        self._fault("compute")
        return {"faulty": 1.0, "faulty_too": 2.0}


@pytest.mark.parametrize("where", ["start", "update", "end_pass", "compute"])
def test_a_measure_that_fails_on_one_layer(net: nn.Module, measured: Callable[..., xr.Dataset], where: str) -> None:
    plain = measured({"net": net})
    ds = measured({"net": net}, measures=["davies_bouldin", Faulty(where), "roughness", "confidence"])
    for name, value in (("faulty", 1.0), ("faulty_too", 2.0)):
        np.testing.assert_array_equal(ds[name].values, [[value, np.nan, value, value]])
        expected = ["ok", "failed: ZeroDivisionError: by my own fault", "ok", "ok"]
        assert list(ds[f"{name}_status"].values[0]) == expected
    for name in VALUES:
        np.testing.assert_allclose(ds[name].values, plain[name].values, rtol=ROUNDING)


@pytest.mark.parametrize("where", ["update", "end_pass"])
def test_a_measure_that_has_failed_sees_nothing_more(
    net: nn.Module, measured: Callable[..., xr.Dataset], where: str
) -> None:
    """Nor does a later failure take the place of the first, which tells what is wrong."""

    class Counts(FeatureMeasure):
        name = "counts"
        variables = (Variable("counts", "number of calls", 0),)
        passes = (Pass("test", "vectors"), Pass("test", "vectors"))

        def start(self, layer: Layer, generator: torch.Generator) -> None:
            self._calls = {"update": 0, "end_pass": 0}

        def _called(self, name: str) -> None:
            self._calls[name] += 1
            if name == where or self._calls[where]:
                raise ValueError(f"{name} {self._calls[name]}")

        def update(self, batch: FeatureBatch) -> None:
            self._called("update")

        def end_pass(self) -> None:
            self._called("end_pass")

        def compute(self) -> float:
            return 0.0

    ds = measured({"net": net}, measures=[Counts(), "roughness"], batch_size=7)
    assert set(ds["counts_status"].values.flat) == {f"failed: ValueError: {where} 1"}


def returning(value: Any) -> Measure:
    class Returning(FeatureMeasure):
        name = "returning"
        variables = (Variable("returning", "what it is told to", 0),)
        passes = (Pass("test", "vectors"),)

        def start(self, layer: Layer, generator: torch.Generator) -> None:
            pass

        def update(self, batch: FeatureBatch) -> None:
            pass

        def compute(self) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

    return Returning()


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (float("inf"), "undefined: the measure returned inf"),
        (float("-inf"), "undefined: the measure returned -inf"),
        (float("nan"), "undefined: the measure returned nan"),
        (torch.tensor(float("inf")), "undefined: the measure returned inf"),
        (Value(float("inf"), "a remark"), "undefined: the measure returned inf"),
        (Undefined("for a reason"), "undefined: for a reason"),
        (DataError("for a reason"), "failed: for a reason"),
        (None, "failed: the measure returned None, expected a number"),
        ("much", "failed: the measure returned an object of type str, expected a number"),
        ({"other": 1.0}, "failed: compute returned a value for 'other', which is not a variable of the measure"),
        (np.ones(2), "failed: the measure returned a NumPy array of shape (2,), expected a number"),
        (Value([1.0]), "failed: the measure returned an object of type list, expected a number"),  # type: ignore[arg-type]
        ({}, "failed: compute returned no value for returning"),
        (torch.zeros(2), "failed: the measure returned an object of type Tensor, expected a number"),
        (MemoryError("gone"), "failed: resources: MemoryError: gone"),
    ],
    ids=repr,
)
def test_a_measure_that_returns_no_number(
    net: nn.Module, measured: Callable[..., xr.Dataset], value: Any, status: str
) -> None:
    ds = measured({"net": net}, measures=["davies_bouldin", returning(value)])
    assert np.isnan(ds["returning"].values).all()
    assert all(found.startswith(status) for found in ds["returning_status"].values.flat)
    assert np.isfinite(ds["davies_bouldin"].values).all()


@pytest.mark.parametrize(("value", "number"), [(3, 3.0), (np.float32(2.5), 2.5), (torch.tensor(1.5), 1.5), (True, 1.0)])
def test_numbers_of_other_types_are_numbers(
    net: nn.Module, measured: Callable[..., xr.Dataset], value: Any, number: float
) -> None:
    ds = measured({"net": net}, measures=[returning(value)])
    assert (ds["returning"].values == number).all()
    ds = measured({"net": net}, measures=[returning(Value(value, "mind this"))])
    assert set(ds["returning_status"].values.flat) == {"note: mind this"}


def test_a_field_that_was_not_declared_is_named(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    class Greedy(FeatureMeasure):
        name = "greedy"
        variables = (Variable("greedy", "greedy", 0),)
        passes = (Pass("train", "projected"), Pass("train", "projected"))

        def start(self, layer: Layer, generator: torch.Generator) -> None:
            self._sum = 0.0

        def update(self, batch: FeatureBatch) -> None:
            self._sum += float(batch.patches.sum())

        def compute(self) -> float:
            return self._sum

    ds = measured({"net": net}, measures=[Greedy(), "davies_bouldin"])
    for status in ds["greedy_status"].values.flat:
        assert "'patches' was not declared" in status
    assert np.isfinite(ds["davies_bouldin"].values).all()


class BrokenLabeler(FeatureLabeler):
    """Fails to fit or to label."""

    name = "broken"

    def __init__(self, where: str) -> None:
        self.where = where

    def fit(self, projected: Tensor, generator: torch.Generator) -> None:
        if self.where == "fit":
            raise ZeroDivisionError("my own fault")

    def label(self, projected: Tensor) -> Tensor:
        if self.where == "label":
            raise ZeroDivisionError("my own fault")
        return torch.arange(len(projected)) % 3


class BrokenTargets(TargetLabeler):
    """Fails when the data are labeled."""

    name = "broken_targets"

    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        if len(spatial) == 2 and spatial[0] == 4:
            raise ZeroDivisionError("my own fault")
        return targets


@pytest.mark.parametrize("labeler", [BrokenLabeler("fit"), BrokenLabeler("label"), BrokenTargets()], ids=repr)
@pytest.mark.parametrize("space", ["pca", "patch"])
def test_a_labeler_that_fails(net: nn.Module, measured: Callable[..., xr.Dataset], labeler: Any, space: str) -> None:
    """The measures that use it have no value, and the others do."""
    ds = measured({"net": net}, measures=[DaviesBouldin(labeler, space=space), "roughness", "confidence"])
    failed = [False, True, False, False] if isinstance(labeler, BrokenTargets) else [True] * 4
    np.testing.assert_array_equal(np.isnan(ds["davies_bouldin"].values[0]), failed)
    for status, is_failed in zip(ds["davies_bouldin_status"].values[0], failed, strict=True):
        assert (status == "failed: ZeroDivisionError: my own fault") == is_failed
    for name in VALUES[1:]:
        assert np.isfinite(ds[name].values).all()


def test_a_labeler_that_does_not_fit_the_targets(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    data = (X, np.random.default_rng(0).random(20).astype(np.float32))
    with pytest.raises(DataError, match=r"davies_bouldin.*class labels need integer targets"):
        measured({"net": net}, data, measures=[DaviesBouldin(ClassLabel())])


# Model measures ---------------------------------------------------------------------------------------------


class Spectral(ModelMeasure):
    """The spectral norm of each layer's weight, their product, and the model's accuracy."""

    name = "spectral"
    variables = (
        Variable("spectral", "spectral norm", -1),
        Variable("product", "product of spectral norms", -1, dims=()),
        Variable("correct", "share of right predictions", 1, dims=()),
    )

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        assert not model.training
        if self.fault == "raise":
            raise ZeroDivisionError("by my own fault")
        weights = [model.get_submodule(layer.name).weight.detach().flatten(1) for layer in layers]
        norms = [float(torch.linalg.matrix_norm(weight, 2)) for weight in weights]
        right = count = 0
        for x, y in data.batches("train" if self.fault == "other split" else "test"):
            with torch.no_grad():
                right += int((model(x).argmax(1) == y[:, 0]).sum())
            count += len(x)
        values: dict[str, Any] = {
            "spectral": norms,
            "product": Value(np.prod(norms), "large"),
            "correct": right / count,
        }
        if self.fault == "too few":
            values["spectral"] = norms[1:]
        if self.fault == "missing":
            del values["product"]
        if self.fault == "infinite":
            values["spectral"][2] = float("inf")
            values["product"] = float("inf")
        return values


def test_a_model_measure(net: nn.Module, measured: Callable[..., xr.Dataset], digits: Any, make_net: Any) -> None:
    nets = {"net": net, "other": make_net(1), "shallow": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}
    ds = measured(nets, measures=["davies_bouldin", Spectral()])
    _, (x_test, y_test) = digits
    for name, model in nets.items():
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        norms = [np.linalg.svd(layer.weight.detach().flatten(1), compute_uv=False)[0] for layer in layers]
        found = ds.sel(model=name)
        np.testing.assert_allclose(found["spectral"].values[: len(norms)], norms, rtol=1e-5)
        assert np.isnan(found["spectral"].values[len(norms) :]).all()
        np.testing.assert_allclose(found["product"], np.prod(norms), rtol=1e-5)
        with torch.no_grad():
            predicted = model(torch.from_numpy(x_test[:60])).argmax(1).numpy()
        np.testing.assert_allclose(found["correct"], (predicted == y_test[:60]).mean())
        assert found["product_status"] == "note: large"
    assert ds["product"].dims == ("model",)
    plain = measured(nets, measures=["davies_bouldin"])
    np.testing.assert_allclose(ds["davies_bouldin"].values, plain["davies_bouldin"].values, rtol=ROUNDING)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("raise", "failed: ZeroDivisionError: by my own fault"),
        ("too few", "failed: spectral has 3 values, expected 4, one per layer"),
        (
            "missing",
            "failed: measure returned no value for product; return Undefined('why') where there is none",
        ),
        ("other split", "undefined: spectral needs train data, and none are given"),
    ],
)
def test_a_model_measure_that_fails(
    net: nn.Module, measured: Callable[..., xr.Dataset], fault: str, status: str
) -> None:
    options: dict[str, Any] = {"train": None} if fault == "other split" else {}
    other = Confidence(split="train") if fault != "other split" else Faulty("nowhere")
    ds = measured({"net": net, "again": net}, measures=[Spectral(fault), other], **options)
    assert list(ds["model_status"].values) == ["ok", "ok"]
    for variable in Spectral.variables:
        assert np.isnan(ds[variable.name].values).all()
        assert set(ds[f"{variable.name}_status"].values.flat) == {status}
    assert np.isfinite(ds[other.variables[0].name].values).all()


def test_a_model_measure_with_infinite_values(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    ds = measured({"net": net}, measures=[Spectral("infinite")])
    np.testing.assert_array_equal(np.isnan(ds["spectral"].values[0]), [False, False, True, False])
    assert ds["spectral_status"].values[0, 2] == "undefined: the measure returned inf"
    assert ds["product_status"].values[0] == "undefined: the measure returned inf"
    assert ds["correct_status"].values[0] == "ok"


def test_a_model_measure_may_use_gradients(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    class InputGradient(ModelMeasure):
        name = "input_gradient"
        variables = (Variable("input_gradient", "mean norm of ∂ logits / ∂ x", -1, dims=()),)

        def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, float]:
            x, _ = next(iter(data.batches("test")))
            x = x.clone().requires_grad_()
            model(x).sum().backward()
            assert x.grad is not None
            return {"input_gradient": float(x.grad.flatten(1).norm(dim=1).mean())}

    ds = measured({"net": net}, measures=["roughness", InputGradient()])
    assert ds["input_gradient"].values[0] > 0


def test_a_model_is_left_as_it_was_by_a_measure_that_fails(net: nn.Module, measured: Callable[..., xr.Dataset]) -> None:
    class Vandal(ModelMeasure):
        name = "vandal"
        variables = (Variable("vandal", "vandal", 0, dims=()),)

        def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, float]:
            model.train()
            raise ValueError

    net.train()
    net.fc1.eval()
    hooks = [len(module._forward_hooks) for module in net.modules()]
    measured({"net": net}, measures=[Vandal(), "roughness", Faulty("update")])
    assert net.training
    assert not net.fc1.training
    assert [len(module._forward_hooks) for module in net.modules()] == hooks


# Kept results -----------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Counts its calls in an object of the standard library: a number would be put back."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, array("q")

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.net(x)


@pytest.fixture
def counting(make_net: Any) -> Iterator[dict[str, Counting]]:
    return {"a": Counting(make_net(0, 20)), "b": Counting(make_net(1, 20))}


def counts(models: Mapping[str, Counting]) -> list[bool]:
    """Which models ran since the last time."""
    ran = [len(model.calls) > 0 for model in models.values()]
    for model in models.values():
        del model.calls[:]
    return ran


def test_kept_results_are_taken(
    counting: dict[str, Counting], measured: Callable[..., xr.Dataset], tmp_path: Path
) -> None:
    first = measured(counting, keep=tmp_path / "kept")
    assert counts(counting) == [True, True]
    assert len(list((tmp_path / "kept").iterdir())) == 2
    second = measured(counting, keep=str(tmp_path / "kept"))
    assert counts(counting) == [False, False]
    xr.testing.assert_identical(second.drop_attrs(deep=False), first.drop_attrs(deep=False))


def test_a_run_broken_off_goes_on(
    counting: dict[str, Counting], measured: Callable[..., xr.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(counting["b"], "forward", forward)
        with pytest.raises(KeyboardInterrupt):
            measured(counting, keep=tmp_path)
    counts(counting)
    ds = measured(counting, keep=tmp_path)
    assert counts(counting) == [False, True]
    assert (ds["model_status"] == "ok").all()


def test_failed_models_are_tried_again(
    counting: dict[str, Counting], measured: Callable[..., xr.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(x: Tensor) -> Tensor:
        raise RuntimeError("today only")

    with monkeypatch.context() as patch:
        patch.setattr(counting["b"], "forward", forward)
        check_others(measured(counting, keep=tmp_path), "b", "today only")
    assert (measured(counting, keep=tmp_path)["model_status"] == "ok").all()


def test_other_settings_are_measured_anew(
    counting: dict[str, Counting], measured: Callable[..., xr.Dataset], tmp_path: Path
) -> None:
    one = {"a": counting["a"]}
    measured(one, measures=["roughness"], keep=tmp_path)
    settings: list[dict[str, Any]] = [
        {"seed": 1},
        {"layers": ["net.conv1"]},
        {"measures": ["davies_bouldin"]},
        {"measures": [Roughness(spread="rms")]},
        {"measures": [Roughness(KMeans(k=4))]},
        {"extractor": ReceptiveField(cap=601)},
        {"extractor": WholeTensor(cap=600)},
    ]
    for options in settings:
        counts(one)
        measured(one, **{"measures": ["roughness"], **options}, keep=tmp_path)
        assert counts(one) == [True], options
    for options in settings:
        measured(one, **{"measures": ["roughness"], **options}, keep=tmp_path)
        assert counts(one) == [False], options


def test_another_weight_or_input_is_measured_anew(
    counting: dict[str, Counting], measured: Callable[..., xr.Dataset], tmp_path: Path, digits: Any
) -> None:
    (x, y), (x_test, y_test) = digits
    plain = measured(counting, measures=["davies_bouldin"], keep=tmp_path)
    counts(counting)
    with torch.no_grad():
        counting["b"].net.fc2.bias[0] += 1e-6
    measured(counting, measures=["davies_bouldin"], keep=tmp_path)
    assert counts(counting) == [False, True]
    changed = x_test[:60].copy()
    changed[7, 0, 0, 0] += 1e-6
    measured(counting, test=(changed, y_test[:60]), measures=["davies_bouldin"], keep=tmp_path)
    assert counts(counting) == [True, True]
    # Targets are data too: without this, new labels would be given the old labels' index.
    ds = measured(counting, train=(x[:80], (y[:80] + 1) // 2), measures=["davies_bouldin"], keep=tmp_path)
    assert counts(counting) == [True, True]
    assert (ds["davies_bouldin"].values != plain["davies_bouldin"].values).all()


def test_what_changes_no_value_is_taken(
    counting: dict[str, Counting], measured: Callable[..., xr.Dataset], tmp_path: Path
) -> None:
    """Other models beside it, and the mode it is in."""
    measured(counting, keep=tmp_path)
    counts(counting)
    counting["a"].train()
    measured({"a": counting["a"]}, keep=tmp_path)
    assert counts(counting) == [False, False]


@pytest.mark.parametrize("damage", ["empty", "truncated", "another netCDF file"])
def test_a_damaged_kept_result_is_measured_again(
    counting: dict[str, Counting], measured: Callable[..., xr.Dataset], tmp_path: Path, damage: str
) -> None:
    first = measured(counting, keep=tmp_path)
    counts(counting)
    (part,) = tmp_path.glob("b-*.nc")
    if damage == "another netCDF file":
        xr.Dataset({"x": ("y", [1.0])}).to_netcdf(part, engine="h5netcdf")
    else:
        part.write_bytes(part.read_bytes()[:-500] if damage == "truncated" else b"")
    second = measured(counting, keep=tmp_path)
    assert counts(counting) == [False, True]
    for name in VALUES:
        np.testing.assert_array_equal(second[name].values, first[name].values)
    measured(counting, keep=tmp_path)
    assert counts(counting) == [False, False]
