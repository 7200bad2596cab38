"""Measures of the outputs of blocks, against hooks on the blocks, scikit-learn and plain NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.metrics import davies_bouldin_score
from torch import Tensor, nn

import genmeasures
from genmeasures.extractors import ReceptiveField, WholeTensor
from genmeasures.interfaces import FeatureBatch, FeatureMeasure, Layer, Pass, Variable
from genmeasures.labelers import ClassLabel
from genmeasures.measures import DaviesBouldin

pytestmark = pytest.mark.usefixtures("one_thread")


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm = nn.BatchNorm2d(outputs)
        self.project = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv2(F.relu(self.conv1(x))))
        out += self.project(x)
        return F.relu_(out)


class Dense(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, growth, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.tanh(self.conv(x))], 1)


class Net(nn.Module):
    """A residual and a dense block, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.residual, self.dense = Residual(2, 5, 2), Dense(5, 4)
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.dense(self.residual(x)).mean((2, 3)))


PLACES = {
    "residual.conv2": "residual", "residual.project": "residual", "dense.conv": "dense", "head": "head",
}  # fmt: skip
ALL = ["residual.conv1", *PLACES]


@pytest.fixture(scope="module")
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Net().eval()
    nn.init.uniform_(made.residual.norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return made


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return torch.randn((count, 2, 8, 6), generator=generator) + 0.3 * labels.view(-1, 1, 1, 1), labels


TRAIN, TEST = data(60, 0), data(45, 1)


def outputs(net: nn.Module, place: str, x: Tensor) -> NDArray[np.float64]:
    """The output of a submodule, by a hook; channels last."""
    kept: list[Tensor] = []
    handle = net.get_submodule(place).register_forward_hook(lambda *given: kept.append(given[-1].clone()))
    with torch.no_grad():
        net(x)
    handle.remove()
    return kept[0].double().movedim(1, -1).numpy()


def measured(net: nn.Module, extractor: Any, **options: Any) -> xr.Dataset:
    options.setdefault("measures", [DaviesBouldin(ClassLabel(), split="test")])
    return genmeasures.measure({"net": net}, TRAIN, TEST, extractor=extractor, errors="raise", **options)


@pytest.mark.parametrize("whole", [False, True])
def test_values_are_those_of_the_blocks(net: Net, whole: bool) -> None:
    extractor = (WholeTensor if whole else ReceptiveField)(components=4, tap="block")
    ds = measured(net, extractor).isel(model=0)
    assert ds.layer_name.values.tolist() == ["residual.conv1", *PLACES]
    for layer, place in PLACES.items():
        train, test = (outputs(net, place, x) for x in (TRAIN[0], TEST[0]))
        labels = TEST[1].numpy()
        if whole:
            fitted, scored = train.reshape(len(train), -1), test.reshape(len(test), -1)
        else:
            fitted, scored = train.reshape(-1, train.shape[-1]), test.reshape(-1, test.shape[-1])
            labels = np.repeat(labels, len(scored) // len(test))
        pca = PCA(min(4, fitted.shape[1]), svd_solver="full").fit(fitted)
        expected = davies_bouldin_score(pca.transform(scored), labels)
        index = ds.layer_name.values.tolist().index(layer)
        assert float(ds.davies_bouldin[index]) == pytest.approx(expected, rel=1e-5)
        assert float(ds.channels[index]) == test.shape[-1]
        assert float(ds.positions[index]) == test[0, ..., 0].size
    assert set(ds.davies_bouldin_status.values) == {"ok"}


class Grab(FeatureMeasure):
    """Keeps vectors, patches and labels by rank."""

    name = "grab"
    variables = (Variable("grab", "number of vectors", 0),)
    passes = (Pass("test", "vectors", "patches", "labels"),)
    kept: dict[str, list[Tensor]]

    labeler = ClassLabel()

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._layer, self._parts = layer, list[tuple[Tensor, ...]]()

    def update(self, batch: FeatureBatch) -> None:
        self._parts.append(
            tuple(x.clone() for x in (batch.rank, batch.vectors, batch.patches, batch.labels(self.labeler)))
        )

    def compute(self) -> float:
        rank, *parts = (torch.cat(part) for part in zip(*self._parts, strict=True))
        Grab.kept[self._layer.name] = [part[rank.argsort()] for part in parts]
        return float(len(rank))


@pytest.fixture
def grabbed() -> Iterator[dict[str, list[Tensor]]]:
    Grab.kept = {}
    yield Grab.kept
    Grab.kept = {}


def test_patches_stay_what_the_layer_read(net: Net, grabbed: dict[str, list[Tensor]]) -> None:
    """Position p of the block's output goes with the patch that the layer reads for its own position p."""
    extractor = ReceptiveField(cap=None)
    measured(net, extractor, measures=[Grab()])
    before = dict(grabbed)
    measured(net, ReceptiveField(cap=None, tap="block"), measures=[Grab()])
    for name in ALL:
        vectors, patches, labels = grabbed[name]
        torch.testing.assert_close(patches, before[name][1], rtol=0, atol=0)
        assert torch.equal(labels, before[name][2])
        assert len(vectors) == len(patches)
    # A projection of one pixel, and the vectors of the other layer that flows into the same sum.
    torch.testing.assert_close(grabbed["residual.conv2"][0], grabbed["residual.project"][0], rtol=0, atol=0)
    block = outputs(net, "dense", TEST[0]).reshape(-1, 9)
    found = grabbed["dense.conv"][0].double().numpy()
    np.testing.assert_allclose(found[np.lexsort(found.T)], block[np.lexsort(block.T)], rtol=0, atol=1e-6)


def test_the_status_says_what_is_read_before_a_join(net: Net) -> None:
    ds = measured(net, ReceptiveField()).isel(model=0)
    told = dict(zip(ds.layer_name.values.tolist(), ds.davies_bouldin_status.values.tolist(), strict=True))
    note = "note: the output is read before its {} with others (tap: block reads it after that)"
    assert told == {
        "residual.conv1": "ok", "residual.conv2": note.format("sum"), "residual.project": note.format("sum"),
        "dense.conv": note.format("concatenation"), "head": "ok",
    }  # fmt: skip
    for tap in ("linear", "block"):
        ds = measured(net, ReceptiveField(tap=tap))
        assert set(ds.davies_bouldin_status.values.flat) == {"ok"}


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"memory": 1}, {"tile": 4}, {"tile": (8, 3)}])
def test_values_depend_on_no_batch_memory_or_tile(net: Net, options: dict[str, Any]) -> None:
    """With every core measure, those with patches of a second pass among them."""
    every = {"measures": ["davies_bouldin", "roughness", "confidence"], "layers": [*ALL[:-1]]}
    expected = measured(net, ReceptiveField(tap="block"), **every)
    found = measured(net, ReceptiveField(tap="block"), **every, **options)
    for name in ("davies_bouldin", "roughness", "confidence"):
        assert np.isfinite(expected[name]).all()
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_whole_patches_share_the_projection_of_the_block_before(net: Net) -> None:
    """The patch of the dense layer is the output of the residual block: one projection serves both."""
    extractor = WholeTensor(components=4, tap="block")
    ds = measured(net, extractor, measures=["roughness"])
    alone = measured(net, extractor, measures=["roughness"], layers=["dense.conv"])
    found = ds.roughness.isel(model=0, layer=ALL.index("dense.conv"))
    assert float(found) == pytest.approx(alone.roughness.item(), rel=1e-5)
