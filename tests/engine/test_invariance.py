"""What may change no value: batch size, order, threads, other measures, other models, labels that are not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import genmeasures
from genmeasures.data import DataSource
from genmeasures.engine import prepare_data
from genmeasures.extractors import ReceptiveField, WholeTensor
from genmeasures.interfaces import Extractor, FeatureBatch, FeatureMeasure, Layer, Pass, Variable
from genmeasures.labelers import KMeans
from genmeasures.measures import Confidence, DaviesBouldin, Roughness

VALUES = ("davies_bouldin", "roughness", "roughness_projected", "confidence", "confidence_unweighted")
ROUNDING = 1e-6
"""Relative difference allowed between runs whose operations differ. Forward passes of another batch size or thread
count round differently in float32 (1e-7 relative); so do distances where other measures decide what is kept between
passes. No other vector in the sample or in a cluster could hide in it."""
EXTRACTORS: dict[str, Extractor] = {
    "receptive_field": ReceptiveField(cap=3000, fit_cap=1500),
    "whole_tensor": WholeTensor(cap=200, components=5),
}
"""Caps below the number of pixels and inputs, so that a sample is drawn."""


class Noise(FeatureMeasure):
    """Draws random numbers, its own and the process's, and sees everything twice."""

    name = "noise"
    variables = (Variable("noise", "noise", 0),)
    passes = (Pass("test", "vectors"), Pass("train", "patches", "projected"), Pass("test", "patches", "labels"))

    def __init__(self) -> None:
        self.labeler = KMeans(k=3)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._sum = float(torch.rand(7, generator=generator).sum()) + float(torch.rand(3).sum())

    def update(self, batch: FeatureBatch) -> None:
        self._sum += float(torch.rand(1))

    def compute(self) -> float:
        return self._sum


@pytest.fixture(scope="module", params=EXTRACTORS)
def measured(request: pytest.FixtureRequest, digits_net: nn.Module, digits: Any) -> Callable[..., xr.Dataset]:
    def measure(train: Any = None, test: Any = None, net: nn.Module | None = None, **options: Any) -> xr.Dataset:
        return genmeasures.measure(
            options.pop("models", {"net": net or digits_net}),
            digits[0] if train is None else train,
            digits[1] if test is None else test,
            extractor=EXTRACTORS[request.param],
            **{"batch_size": 64, **options},
        )

    return measure


@pytest.fixture(scope="module")
def plain(measured: Callable[..., xr.Dataset]) -> xr.Dataset:
    ds = measured()
    for name in VALUES:
        assert np.isfinite(ds[name].values).all()
    return ds


def assert_close(found: xr.Dataset, expected: xr.Dataset, names: tuple[str, ...] = VALUES) -> None:
    for name in names:
        np.testing.assert_allclose(found[name].values, expected[name].values, rtol=ROUNDING)


def assert_same(found: xr.Dataset, expected: xr.Dataset, names: tuple[str, ...] = VALUES) -> None:
    """For runs that execute the same operations in the same order: equal to the bit."""
    for name in names:
        np.testing.assert_array_equal(found[name].values, expected[name].values)


@pytest.mark.parametrize("batch_size", [1, 7, 499, 10_000])
def test_batch_size(measured: Callable[..., xr.Dataset], plain: xr.Dataset, batch_size: int) -> None:
    assert_close(measured(batch_size=batch_size), plain)


@pytest.mark.parametrize("seed", range(3))
def test_order_of_samples(measured: Callable[..., xr.Dataset], plain: xr.Dataset, digits: Any, seed: int) -> None:
    shuffled = []
    for x, y in digits:
        order = np.random.default_rng(seed).permutation(len(x))
        shuffled.append((x[order], y[order]))
    assert_close(measured(*shuffled), plain)


def test_order_of_equal_samples(measured: Callable[..., xr.Dataset], digits: Any) -> None:
    """Augmentation by copies: the same image many times."""
    (x, y), test = digits
    twice = np.repeat(np.arange(200), 1 + np.arange(200) % 3)
    order = np.random.default_rng(0).permutation(len(twice))
    expected = measured((x[twice], y[twice]), test)
    assert_close(measured((x[twice[order]], y[twice[order]]), test), expected)


def test_kind_of_data(measured: Callable[..., xr.Dataset], plain: xr.Dataset, digits: Any) -> None:
    tensors = [tuple(map(torch.from_numpy, split)) for split in digits]
    datasets = [TensorDataset(*split) for split in tensors]
    assert_same(measured(*tensors), plain)
    assert_same(measured(*datasets), plain)
    assert_close(measured(*(DataLoader(data, batch_size=50, shuffle=True) for data in datasets)), plain)


def test_order_of_models(measured: Callable[..., xr.Dataset], plain: xr.Dataset, make_net: Any) -> None:
    nets = {"net": make_net(), "b": make_net(1), "untrained": make_net(2, 0)}
    one = measured(models=nets)
    two = measured(models=dict(reversed(nets.items())))
    assert list(two["model"].values) == ["untrained", "b", "net"]
    assert_same(two.sel(model=one["model"]), one)
    assert_same(one.sel(model=["net"]), plain)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_number_of_threads(measured: Callable[..., xr.Dataset], plain: xr.Dataset, count: int) -> None:
    torch.set_num_threads(count)
    assert_close(measured(), plain)


def test_added_measures(measured: Callable[..., xr.Dataset], plain: xr.Dataset) -> None:
    more = measured(measures=[Noise(), "davies_bouldin", "confidence", "roughness"])
    assert_close(more, plain)
    for name, alone in (("davies_bouldin", DaviesBouldin()), ("roughness", Roughness()), ("confidence", Confidence())):
        assert_close(measured(measures=[alone]), plain, tuple(value for value in VALUES if value.startswith(name)))


def test_chosen_layers(measured: Callable[..., xr.Dataset], plain: xr.Dataset) -> None:
    """A layer's value is its own, but for its place among all measured layers, which its random numbers come from."""
    few = measured(layers=["conv1", "conv2"])
    assert_close(few, plain.isel(layer=[0, 1]))
    assert list(few["layer_name"].values[0]) == ["conv1", "conv2"]
    later = measured(layers=["fc1"], measures=["davies_bouldin"])
    assert_close(later, plain.isel(layer=[2]), ("davies_bouldin",))


def test_labels(measured: Callable[..., xr.Dataset], plain: xr.Dataset, digits: Any) -> None:
    """Roughness and confidence read no ground truth."""
    names = VALUES[1:]
    (x_train, y_train), (x_test, y_test) = digits
    measures = ["roughness", "confidence"]
    without = measured(x_train, x_test, measures=measures)
    assert_close(without, plain, names)
    assert_same(measured((x_train,), (x_test,), measures=measures), without, names)
    assert_same(measured((x_train, y_train[::-1].copy()), (x_test, 9 - y_test)), plain, names)


def test_training_mode_and_gradients(measured: Callable[..., xr.Dataset], plain: xr.Dataset, make_net: Any) -> None:
    net = make_net().train()
    net.fc1.weight.requires_grad_(False)
    net(torch.zeros(2, 1, 8, 8)).sum().backward()
    before = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert_same(measured(net=net), plain)
    assert net.training
    assert net.conv1.training
    assert {name: parameter.grad for name, parameter in net.named_parameters()} == before


def test_the_same_seed_gives_the_same_bits(measured: Callable[..., xr.Dataset], plain: xr.Dataset) -> None:
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002 -- the global state is what is tested
    before = torch.get_rng_state()
    assert_same(measured(), plain)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_another_sample(measured: Callable[..., xr.Dataset], plain: xr.Dataset) -> None:
    other = measured(seed=1)
    for name in VALUES:
        assert (other[name].values[:, :2] != plain[name].values[:, :2]).all()


@pytest.mark.parametrize("name", EXTRACTORS)
@pytest.mark.parametrize("positions", [1, 16, 64])
def test_samples_of_two_seeds_differ(digits: Any, name: str, positions: int) -> None:
    source = {"train": DataSource(digits[0], "train", 64)}

    def drawn(seed: int) -> set[tuple[int, int]]:
        sample = prepare_data(source, [], EXTRACTORS[name], seed).sample("train", positions)
        inputs, drawn_at, _ = sample.part(0, 500)
        return set(zip(inputs.tolist(), drawn_at.tolist(), strict=True))

    total = 500 * (positions if name == "receptive_field" else 1)
    cap = {"receptive_field": 3000, "whole_tensor": 200}[name]
    one, two = drawn(0), drawn(1)
    assert drawn(0) == one
    assert len(one) == len(two) == min(cap, total)
    share = len(one) / total
    # Of two independent samples as many are common as chance has it.
    np.testing.assert_allclose(len(one & two) / len(one), share, atol=0.05)


@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_any_order_and_batch_size_of_few_samples(data: st.DataObject, make_net: Any, digits: Any) -> None:
    """Small samples, where one vector more or less would show."""
    (x, y), (x_test, _) = digits
    order = data.draw(st.permutations(range(40)))
    batch_size = data.draw(st.integers(1, 41))
    options: dict[str, Any] = {"measures": ["davies_bouldin", "roughness"], "extractor": ReceptiveField(cap=150)}
    net = make_net(steps=20)
    expected = genmeasures.measure({"net": net}, (x[:40], y[:40]), x_test[:40], **options)
    found = genmeasures.measure(
        {"net": net}, (x[:40][order], y[:40][order]), x_test[:40][order], batch_size=batch_size, **options
    )
    assert_close(found, expected, VALUES[:3])
