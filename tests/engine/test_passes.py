"""How often a model runs: once a pass over a split, for all measures and layers together, and once to be traced."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import genmeasures
from genmeasures.engine import fits as fits_module
from genmeasures.engine.layer import LayerState
from genmeasures.engine.memory import Memory
from genmeasures.errors import OptionError
from genmeasures.extractors import ReceptiveField, WholeTensor
from genmeasures.interfaces import Extractor, FeatureBatch, FeatureMeasure, Layer, Measure, Pass, Variable
from genmeasures.labelers import KMeans
from genmeasures.measures import Confidence, DaviesBouldin, Roughness

TRAIN, TEST, BATCH = 130, 70, 32
TRAIN_BATCHES, TEST_BATCHES = 5, 3


class Counted(nn.Module):
    """Counts the inputs of every call, in an object of the standard library: a list would be put back."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.calls = array("q")

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.net(x)


def reader(name_: str, *passes_: Pass, labeler_: Any = None) -> FeatureMeasure:
    """A measure that reads everything that it declares, and counts what it was given."""

    class Reader(FeatureMeasure):
        name = name_
        variables = (Variable(name_, "vectors seen in all passes", 0),)
        passes = passes_
        labeler = labeler_

        def start(self, layer: Layer, generator: torch.Generator) -> None:
            self._seen, self._pass = 0, 0

        def update(self, batch: FeatureBatch) -> None:
            one = self.passes[self._pass]
            assert batch.split == one.sample
            for field in one.fields - {"labels"}:
                assert len(getattr(batch, field)) == len(batch)
            if "labels" in one.fields:
                assert len(batch.labels(self.labeler)) == len(batch)
            self._seen += len(batch)

        def end_pass(self) -> None:
            self._pass += 1

        def compute(self) -> float:
            assert self._pass == len(self.passes)
            return float(self._seen)

    return Reader()


@pytest.fixture
def calls(digits_net: nn.Module, digits: Any) -> Callable[..., tuple[list[int], Any]]:
    """Inputs of every forward call of a run, and the run's result."""

    def run(*measures: str | Measure, **options: Any) -> tuple[list[int], Any]:
        net = Counted(copy.deepcopy(digits_net))
        (x, y), (x_test, y_test) = digits
        train, test = options.pop("train", (x[:TRAIN], y[:TRAIN])), (x_test[:TEST], y_test[:TEST])
        if measures:
            options["measures"] = measures
        ds = genmeasures.measure({"net": net}, train, test, batch_size=BATCH, **options)
        for name in ds.data_vars:
            if str(name).endswith("_status"):
                assert not any(s.startswith("failed") for s in ds[name].values.flat), ds[name].values
        return list(net.calls), ds

    return run


def passes(train: int, test: int) -> list[int]:
    """Sizes of the calls: two of three inputs to choose a layout, the traces of three and of two, and the passes."""
    calls = train * ([BATCH] * (TRAIN_BATCHES - 1) + [TRAIN - BATCH * (TRAIN_BATCHES - 1)])
    calls += test * ([BATCH] * (TEST_BATCHES - 1) + [TEST - BATCH * (TEST_BATCHES - 1)])
    return sorted([3, 3, 3, 2, *calls])


EVERYTHING = ("vectors", "projected", "patches", "labels")
TRAIN_ONLY = [
    Pass("train", "projected", "labels"),
    Pass("train", "vectors"),
    Pass("train", "vectors", "projected", "labels"),
]


def names(value: object) -> str:
    return "+".join(m.name for m in value) or "default" if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(
    ("measures", "train", "test"),
    [
        # The default three: one pass that fits everything, one for confidence and the first half of roughness,
        # whose second half reads patches that were kept.
        ((), 1, 1),
        ((DaviesBouldin(),), 1, 0),
        ((DaviesBouldin(KMeans()),), 1, 0),
        ((DaviesBouldin(space="patch"),), 1, 0),
        ((Roughness(),), 1, 1),
        # The patches' own projection is fitted in the pass that fits the pixels'.
        ((Roughness(input_pca=4),), 1, 1),
        ((Confidence(),), 1, 1),
        ((Confidence(split="train"),), 1, 0),
        # As many passes as the measure with most of them.
        ((Confidence(), DaviesBouldin()), 1, 1),
        ((Confidence(), DaviesBouldin(), Roughness(input_pca=4)), 1, 1),
        ((*[reader(f"r{i}", Pass("test", "vectors")) for i in range(3)], Roughness(), Confidence()), 1, 1),
        (tuple(reader(f"r{i}", *TRAIN_ONLY, labeler_=KMeans()) for i in range(5)), 1, 0),
        (tuple(reader(f"r{i}", Pass("test", *EVERYTHING), labeler_=KMeans(k=2 + i)) for i in range(5)), 1, 1),
        ((reader("needs no fit", Pass("test", "vectors", "patches")),), 0, 1),
        ((reader("targets", Pass("train", "vectors", "patches", "labels")),), 1, 0),
    ],
    ids=names,
)
def test_forward_calls(
    calls: Callable[..., tuple[list[int], Any]], measures: tuple[Measure, ...], train: int, test: int
) -> None:
    found, ds = calls(*measures)
    assert sorted(found) == passes(train, test)
    check_readers(ds, measures)


@pytest.mark.parametrize(
    ("measures", "train", "test"),
    [
        ((DaviesBouldin(space="pixel"),), 2, 0),
        ((Roughness(split="train"),), 2, 0),
        ((DaviesBouldin(space="patch"), Roughness(input_pca=4), Confidence()), 2, 1),
        ((reader("back and forth", *[Pass("test", "vectors"), Pass("train", "projected")] * 2),), 3, 2),
        (tuple(reader(f"r{i}", *[Pass("test", *EVERYTHING)] * 3, labeler_=KMeans()) for i in range(3)), 1, 3),
    ],
    ids=names,
)
def test_forward_calls_at_most(
    calls: Callable[..., tuple[list[int], Any]], measures: tuple[Measure, ...], train: int, test: int
) -> None:
    """One pass for every pass that is declared, and one that fits, however many measures declare it."""
    found, ds = calls(*measures)
    assert len(found) <= len(passes(train, test))
    check_readers(ds, measures)


def check_readers(ds: Any, measures: tuple[Measure, ...]) -> None:
    """Whether each of them saw the whole sample in every pass."""
    for measure in measures:
        if type(measure).__name__ == "Reader":
            seen = {"train": ds["vectors_train"].values, "test": ds["vectors_test"].values}
            expected = sum(seen[one.sample] for one in measure.passes)
            assert (ds[measure.name].values == expected).all()


def test_batches_come_in_order_after_the_trace(calls: Callable[..., tuple[list[int], Any]]) -> None:
    found, _ = calls()
    assert found == [3, 3, 3, 2, *[32] * 4, 2, *[32, 32, 6]]


@pytest.mark.parametrize("memory", [0, 40_000, 400_000])
def test_little_memory_costs_passes_and_changes_no_value(
    calls: Callable[..., tuple[list[int], Any]], memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With none at all: a pass for each layer to be fitted, and a second one over the test data."""
    _, expected = calls()
    monkeypatch.setattr("genmeasures.engine.memory.Memory.cache", memory)
    monkeypatch.setattr("genmeasures.engine.memory.Memory.record", memory)
    monkeypatch.setattr("genmeasures.engine.memory.Memory.chunk", 10_000)
    found, ds = calls()
    assert len(found) <= len(passes(4, 2))
    if memory == 0:
        assert sorted(found) == passes(4, 2)
    for name in ("davies_bouldin", "roughness", "confidence"):
        np.testing.assert_allclose(ds[name].values, expected[name].values, rtol=1e-6)


@pytest.mark.parametrize("extractor", [ReceptiveField(), WholeTensor()], ids=repr)
def test_a_small_budget_costs_passes_and_changes_no_value(
    calls: Callable[..., tuple[list[int], Any]], extractor: Extractor
) -> None:
    """As little as 64 KiB: batches are split, layers are recorded one by one, and nothing is cached."""
    every, expected = calls(extractor=extractor)
    found, ds = calls(extractor=extractor, memory=1 / 16)
    assert len(found) > 2 * len(every)
    assert max(found) < BATCH
    for name in ("davies_bouldin", "roughness", "confidence"):
        np.testing.assert_allclose(ds[name].values, expected[name].values, rtol=1e-4)


@pytest.mark.parametrize("memory", [0, -1, True, "much", float("nan"), float("inf")])
def test_a_budget_is_a_positive_number(digits_net: nn.Module, memory: Any) -> None:
    with pytest.raises(OptionError, match=r"memory must be a number of MiB > 0, got "):
        genmeasures.measure([digits_net], torch.zeros(4, 1, 8, 8), memory=memory)


def test_the_default_budget_is_divided_as_documented() -> None:
    memory = Memory()
    sizes = (memory.record, memory.cache, memory.activations, memory.chunk, 4 * memory.large_input)
    assert [size / 2**20 for size in sizes] == [1152, 768, 256, 8, 1]


@pytest.mark.parametrize(
    "passes_",
    [
        [Pass("test", "projected"), Pass("test", "projected", "labels")],
        [Pass("test", "projected"), Pass("test", "patches"), Pass("test", "projected", "labels")],
        [Pass("test", "vectors", "labels"), Pass("test", "patches"), Pass("test", "projected", "labels")],
    ],
)
@pytest.mark.parametrize("labeler", [KMeans(), None], ids=repr)
def test_a_later_pass_may_read_more_than_those_before_it(
    calls: Callable[..., tuple[list[int], Any]], passes_: list[Pass], labeler: Any
) -> None:
    """A field or labels that only a later pass reads are cached for it, or the model runs again."""
    measure = reader("r", *passes_, labeler_=labeler)
    _, ds = calls(measure)
    check_readers(ds, (measure,))


def test_whole_tensors_project_patches_in_the_pass_that_is_there(calls: Callable[..., tuple[list[int], Any]]) -> None:
    found, _ = calls(extractor=WholeTensor())
    assert len(found) <= len(passes(1, 2))


def test_one_layer_takes_no_more_passes_than_all(calls: Callable[..., tuple[list[int], Any]]) -> None:
    found, _ = calls(layers=["net.conv2"])
    assert sorted(found) == passes(1, 1)


def test_every_model_runs_as_often(digits_net: nn.Module, digits: Any) -> None:
    nets = {str(i): Counted(copy.deepcopy(digits_net)) for i in range(3)}
    genmeasures.measure(nets, *((x[:TEST], y[:TEST]) for x, y in digits), batch_size=BATCH)
    assert {len(net.calls) for net in nets.values()} == {4 + 2 * TEST_BATCHES}


def test_a_data_set_smaller_than_the_trace(calls: Callable[..., tuple[list[int], Any]], digits: Any) -> None:
    (x, y), _ = digits
    found, ds = calls(reader("one", Pass("train", "vectors")), train=(x[:2], y[:2]))
    assert found == [2, 2, 2, 1, 2]
    assert (ds["one"].values == ds["vectors_train"].values).all()


def test_inputs_are_read_once_a_pass(digits_net: nn.Module, digits: Any) -> None:
    """Besides once for their check, and the first batch for the trace."""
    (x, y), (x_test, y_test) = digits

    class Reads(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __init__(self) -> None:
            self.count = 0

        def __len__(self) -> int:
            return TEST

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            self.count += 1
            return torch.from_numpy(x_test[index]), int(y_test[index])

    test = Reads()
    genmeasures.measure({"net": digits_net}, (x[:TRAIN], y[:TRAIN]), test, batch_size=BATCH)
    assert test.count <= 3 * TEST + 2 * BATCH


def test_a_projection_that_serves_two_layers_changes_no_value(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs of the second convolution are the outputs of the first: one PCA is both theirs."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 20), nn.ReLU(),
        nn.Linear(20, 10),
    )  # fmt: skip
    (x, y), (x_test, y_test) = digits
    data = (x[:TRAIN], y[:TRAIN]), (x_test[:TEST], y_test[:TEST])
    fits: list[int] = []
    fit = fits_module.fit_pca
    monkeypatch.setattr(fits_module, "fit_pca", lambda *given: (fits.append(1), fit(*given))[1])
    shared = genmeasures.measure([net], *data, measures=["roughness"], extractor=WholeTensor())
    # Four layers; the first has patches of its own, as has that behind the flattening.
    assert len(fits) == 6
    monkeypatch.setattr(LayerState, "shares_patches", lambda *_: False)
    alone = genmeasures.measure([net], *data, measures=["roughness"], extractor=WholeTensor())
    assert len(fits) == 6 + 8
    for name in ("roughness", "roughness_projected"):
        np.testing.assert_allclose(shared[name].values, alone[name].values, rtol=1e-6)


@pytest.mark.parametrize(
    "extractor", [ReceptiveField(500), WholeTensor(20), WholeTensor(cap=3), WholeTensor()], ids=repr
)
def test_projections_are_shared_only_where_they_are_the_same(
    digits: Any, extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of patches larger than a pixel, nor those of layers whose samples are of other inputs."""
    torch.manual_seed(0)
    convolutions = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 8, 3)
    net = nn.Sequential(*(part for convolution in convolutions for part in (convolution, nn.ReLU())))
    (x, y), (x_test, y_test) = digits
    data = (x[:TRAIN], y[:TRAIN]), (x_test[:TEST], y_test[:TEST])
    roughness = Roughness(KMeans(k=2), input_pca=10)
    shared = genmeasures.measure([net], *data, measures=[roughness], extractor=extractor)
    monkeypatch.setattr(LayerState, "shares_patches", lambda *_: False)
    alone = genmeasures.measure([net], *data, measures=[roughness], extractor=extractor)
    np.testing.assert_array_equal(shared["roughness_status"].values, alone["roughness_status"].values)
    assert not any(status.startswith("failed") for status in alone["roughness_status"].values.flat)
    for name in ("roughness", "roughness_projected"):
        np.testing.assert_allclose(shared[name].values, alone[name].values, rtol=1e-6)
