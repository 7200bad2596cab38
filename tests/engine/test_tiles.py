"""Inputs run by tiles have the values of inputs run at once, and take the memory of a tile.

Features by tiles and at once differ by rounding alone. Where a test compares measures, networks compute in double
precision (:class:`Double`): torch's own group normalization of float32 is off by some 1e-5 on the volumes of these
tests, more than tiles are, whose statistics are summed in float64; and what k-means and mixtures make of a
difference in one feature is not bounded by it.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
import yaml
from genmeasures_unet import ResidualUNet
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import parametrizations

import genmeasures
from genmeasures.engine.tiling.normalization import moments
from genmeasures.engine.tiling.survey import Survey, sketched_trace, survey
from genmeasures.engine.tiling.tiles import Site, sampled, spans, tiles
from genmeasures.errors import ModelError, OptionError
from genmeasures.extractors import ReceptiveField
from genmeasures.extractors.samples import Every
from genmeasures.interfaces import FeatureBatch, FeatureMeasure, Layer, ModelMeasure, Pass, Variable
from genmeasures.labelers import KMeans
from genmeasures.measures import Confidence, DaviesBouldin, Roughness
from genmeasures.tracing import Sketch, trace

pytestmark = pytest.mark.usefixtures("one_thread")

VALUES = ("davies_bouldin", "roughness", "roughness_projected", "confidence", "confidence_unweighted")


class Grab(FeatureMeasure):
    """Keeps what it is given, by rank."""

    name = "grab"
    variables = (Variable("grab", "number of vectors", 0),)
    passes = (Pass("train", "vectors", "patches", "labels"),)

    def __init__(self, kept: Any = None, labeler: Any = None) -> None:
        self.kept = kept
        self.labeler = labeler

    def prepare(self, extractor: Any) -> None:
        self.passes = (Pass("train", "vectors", "patches", *(["labels"] if self.labeler is not None else [])),)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._layer = layer
        self._parts: list[tuple[Tensor, ...]] = []

    def update(self, batch: FeatureBatch) -> None:
        labels = batch.rank if self.labeler is None else batch.labels(self.labeler)
        parts = (batch.rank, batch.vectors, batch.patches, labels)
        self._parts.append(tuple(part.clone() for part in parts))

    def compute(self) -> float:
        rank, *parts = (torch.cat(part) for part in zip(*self._parts, strict=True))
        assert torch.equal(rank.sort()[0], torch.arange(len(rank)))  # every vector once
        self.kept.append((self._layer, *(part[rank.argsort()] for part in parts)))
        return float(len(rank))


class Kept(list[Any]):
    """A list that every copy of a measure shares."""

    def __copy__(self) -> Kept:
        return self

    def __deepcopy__(self, memo: Any) -> Kept:
        return self

    def __repr__(self) -> str:
        return "Kept()"


class Double(nn.Module):
    """Computes in double precision."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.double()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.net(x.double())
        return made


class Normalized(nn.Sequential):
    """Convolutions of kernel 3, each with a normalization and ReLU, as layers of a sequence."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*itertools.chain.from_iterable((layer, nn.ReLU()) for layer in layers))


class Pooled(nn.Module):
    """Max pooling, batch normalization, upsampling to the size of the skip connection."""

    def __init__(self, mode: str, dimensions: int = 2) -> None:
        super().__init__()
        conv: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
        norm: Any = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dimensions]
        self.one, self.two, self.three = conv(2, 4, 3, padding=1), conv(4, 6, 3, padding=1), conv(10, 3, 3, padding=1)
        self.norm = norm(4)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)
        self.pool: Any = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[dimensions]
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.one(x)))
        low = torch.relu(self.two(self.pool(x, 2, ceil_mode=self.mode == "nearest")))
        high = (
            F.interpolate(low, size=x.shape[2:], mode="nearest")
            if self.mode == "nearest"
            else F.interpolate(low, scale_factor=2, mode=self.mode, align_corners=False)
        )
        made: Tensor = self.three(torch.cat([x, high], 1))
        return made


class Twice(nn.Module):
    """A convolution that runs twice, with a normalization that is a function, on signals."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Conv1d(2, 4, 5, 3, 2), nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(2):
            x = torch.relu_(F.group_norm(self.conv(x), 2))
        made: Tensor = self.last(x)
        return made


class Patchwise(nn.Module):
    """Patches of 4 × 4, then a linear layer a pixel with channels last, as in ConvNeXt; twice as large at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.depth = nn.Conv2d(2, 8, 4, 4), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.wide, self.slim = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.up, self.head = nn.PixelShuffle(2), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        x = x + self.slim(F.gelu(self.wide(y))).permute(0, 3, 1, 2)
        for _ in range(2):
            x = self.up(x)
            x = x.repeat(1, 4, 1, 1)
        made: Tensor = self.head(self.up(x))
        return made


class Joined(nn.Module):
    """A pixel's branch joined with one of large kernels, which decides what a tile must read."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.first, self.point, self.wide = conv(2, 4), conv(4, 4, kernel=1, padding=0), conv(4, 4, kernel=7, padding=3)
        self.norm, self.after, self.last = nn.GroupNorm(2, 4), nn.GroupNorm(2, channels), conv(channels, 2, stride=2)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        joined = self.join(self.point(x), torch.relu_(self.norm(self.wide(x))))
        made: Tensor = self.last(torch.relu(self.after(joined)))
        return made


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, options.pop("kernel", 3), **{"padding": 1, **options})


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "unet of images": (lambda: ResidualUNet(2, 2, 3, width=8, depth=2), (2, 44, 37), 12),
    "unet of volumes": (lambda: ResidualUNet(3, 2, 3, width=8, depth=1), (2, 21, 26, 18), (4, 6, 18)),
    "dilated, instance norm": (
        lambda: Normalized(
            conv(2, 4),
            nn.InstanceNorm2d(4, affine=True),
            conv(4, 4, dilation=3, padding=3),
            nn.InstanceNorm2d(4),
            conv(4, 3, kernel=(5, 1), padding=(2, 0)),
        ),
        (2, 40, 31),
        6,
    ),
    "max pooling, linear": (lambda: Pooled("bilinear"), (2, 32, 38), (5, 8)),
    "max pooling, nearest": (lambda: Pooled("nearest"), (2, 31, 37), 7),
    "max pooling of volumes": (lambda: Pooled("trilinear", 3), (2, 20, 16, 14), 4),
    "no padding": (
        lambda: Normalized(conv(2, 4, padding=0, stride=2), nn.GroupNorm(2, 4), conv(4, 4, padding=0), conv(4, 3)),
        (2, 45, 38),
        6,
    ),
    "more padding": (
        lambda: Normalized(conv(2, 4, padding=3), nn.GroupNorm(2, 4), conv(4, 4, padding=2), conv(4, 3)),
        (2, 33, 30),
        6,
    ),
    "cropped by a transposed convolution": (
        lambda: Normalized(conv(2, 4, stride=2), nn.ConvTranspose2d(4, 4, 2, 2, 1), nn.GroupNorm(2, 4), conv(4, 3)),
        (2, 36, 40),
        6,
    ),
    "reflected and replicated": (
        lambda: Normalized(
            conv(2, 4, padding_mode="reflect"), nn.GroupNorm(1, 4), conv(4, 3, padding=2, padding_mode="replicate")
        ),
        (2, 29, 30),
        5,
    ),
    "weight norm": (
        lambda: Normalized(parametrizations.weight_norm(conv(2, 4)), nn.GroupNorm(2, 4), conv(4, 3, padding="same")),
        (2, 29, 30),
        5,
    ),
    "a kernel that reads nothing but padding of a thin input": (
        lambda: Normalized(conv(2, 4, padding=0), conv(4, 4, kernel=4, stride=3, dilation=2, padding=3)),
        (2, 40, 60),
        9,
    ),
    "called twice": (Twice, (2, 101), 7),
    "patchwise": (Patchwise, (2, 48, 40), 8),
    "sum": (lambda: Joined(Tensor.add_, 4), (2, 40, 35), 8),
    "concatenation": (lambda: Joined(lambda one, other: torch.cat([other, one], 1), 8), (2, 40, 35), 8),
}


def made(name: str) -> tuple[nn.Module, tuple[int, ...], Any]:
    make, shape, tile = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval(), shape, tile


def inputs(shape: tuple[int, ...], count: int = 2, seed: int = 0) -> Tensor:
    """Noise that is brighter and smoother to one side."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((count, *shape), generator=generator)
    return noise + torch.linspace(0, 3, shape[-1]) + noise.mean(-1, keepdim=True)


def features(
    net: nn.Module,
    x: Any,
    tile: Any,
    cap: int | None = None,
    labeler: Any = None,
    tap: str = "activation",
    **options: Any,
) -> Kept:
    kept, extractor = Kept(), ReceptiveField(cap=cap, tap=tap)
    ds = genmeasures.measure({"net": net}, x, measures=[Grab(kept, labeler)], extractor=extractor, tile=tile, **options)
    assert all(status == "ok" or "is read before its" in status for status in ds["grab_status"].values.flat)
    return kept


def assert_alike(found: Kept, expected: Kept, tolerance: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for (layer, *some), (same, *others) in zip(found, expected, strict=True):
        assert replace(layer, weight_norm=0) == replace(same, weight_norm=0)
        assert layer.weight_norm == pytest.approx(same.weight_norm, rel=1e-12)  # summed in the order of the memory
        for one, other in zip(some, others, strict=True):
            limit = tolerance * float(other.abs().max())
            torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=limit)


def surveyed(net: nn.Module, shape: tuple[int, ...], tile: Any) -> Survey | None:
    sketch, device = Sketch(net, torch.device("cpu")), torch.device("cpu")
    traced = sketched_trace(net, sketch, (2, *shape), "activation")
    sizes = (tile,) * (len(shape) - 1) if isinstance(tile, int) else tile
    return survey(net, sketch, traced.layers, inputs(shape, 1), sizes, device, torch.contiguous_format)


# Features ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_features_are_those_of_the_whole(name: str) -> None:
    net, shape, tile = made(name)
    x = inputs(shape)
    expected = features(net, x, None)
    assert_alike(features(net, x, tile), expected)
    # More than one tile, for the last layer too.
    found = surveyed(net, shape, tile)
    assert found is not None
    last = found.sites[len(expected) - 1]
    axes = zip(shape[1:], found.cores, found.steps, last.before, last.after, found.least, strict=True)
    assert max(len(spans(*axis)) for axis in axes) > 1


@pytest.mark.parametrize("name", ["unet of images", "unet of volumes", "called twice", "patchwise"])
@pytest.mark.parametrize("cap", [50, 1500])
def test_sampled_features_are_those_of_the_whole(name: str, cap: int) -> None:
    net, shape, tile = made(name)
    x = inputs(shape, 3)
    assert_alike(features(net, x, tile, cap), features(net, x, None, cap))


@pytest.mark.parametrize("tile", [1, 4, 9, (8, 44), (44, 5), 16, 100])
def test_any_size_of_tiles(tile: Any) -> None:
    net, shape, _ = made("unet of images")
    x = inputs(shape)
    assert_alike(features(net, x, tile, 500), features(net, x, None, 500))


@pytest.mark.parametrize("name", ["unet of images", "unet of volumes", "sum", "concatenation"])
@pytest.mark.parametrize("cap", [None, 400])
def test_outputs_of_blocks_are_those_of_the_whole(name: str, cap: int | None) -> None:
    """Sums and concatenations read more of the input than the layers that flow into them."""
    net, shape, tile = made(name)
    x = inputs(shape)
    expected = features(net, x, None, cap, tap="block")
    assert any(layer.joins in layer.tap.split(" > ") for layer, *_ in expected)
    assert_alike(features(net, x, tile, cap, tap="block"), expected)


def test_linear_taps_are_before_the_normalization() -> None:
    net, shape, tile = made("unet of images")
    x = inputs(shape)
    kept = [Kept(), Kept()]
    for one, size in zip(kept, (None, tile), strict=True):
        extractor = ReceptiveField(cap=500, tap="linear")
        genmeasures.measure({"net": net}, x, measures=[Grab(one)], extractor=extractor, tile=size)
    assert_alike(kept[1], kept[0])


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """A convolution, something in the midst, and another convolution, of any kernel, stride, dilation and padding."""

    def convolution(inputs: int, outputs: int) -> nn.Module:
        kernel, dilation, stride = (draw(st.integers(1, most)) for most in (4, 2, 3))
        padding = draw(st.integers(0, dilation * (kernel - 1)))
        return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation)

    def transposed(channels: int) -> nn.Module:
        kernel, stride = draw(st.integers(2, 4)), draw(st.integers(1, 2))
        return nn.ConvTranspose2d(channels, channels, kernel, stride, draw(st.integers(0, (kernel - stride) // 2)))

    norms = [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.BatchNorm2d(4), nn.Identity()]
    between = [nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1), nn.Upsample(scale_factor=2), nn.ELU()]
    middle = draw(st.sampled_from([*between, transposed(4)])) if draw(st.booleans()) else nn.Identity()
    return nn.Sequential(
        convolution(1, 4), draw(st.sampled_from(norms)), nn.ReLU(), middle, convolution(4, 4),
        draw(st.sampled_from(norms[:2])), nn.LeakyReLU(), convolution(4, 2),
    )  # fmt: skip


@settings(deadline=None, max_examples=10)
@given(
    net=networks(),
    shape=st.tuples(st.integers(40, 60), st.integers(40, 60)),
    tile=st.tuples(st.integers(8, 30), st.integers(8, 30)),
    seed=st.integers(0, 9),
)
def test_any_network(net: nn.Module, shape: tuple[int, int], tile: tuple[int, int], seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in net.parameters():
            nn.init.normal_(parameter, 0, 0.3)
    x = inputs((1, *shape), 2, seed)
    try:
        net(x)
    except (RuntimeError, ValueError):
        assume(False)  # an image too small for its kernels, or a single pixel for its instance norm
    net = Double(net)
    assert_alike(features(net, x, tile), features(net, x, None))


def test_sizes_that_are_tried_leave_no_message(caplog: pytest.LogCaptureFixture) -> None:
    """Of a pooling that takes no input as small as the first one tried."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), nn.MaxPool2d(6, stride=1), nn.Conv2d(4, 4, 3))
    torch_log = logging.getLogger("torch._subclasses.fake_tensor")
    torch_log.addHandler(caplog.handler)  # torch's loggers do not hand on what they are told
    try:
        features(net, inputs((1, 60, 60), 2), 8)
    finally:
        torch_log.removeHandler(caplog.handler)
    assert [record for record in caplog.records if record.name.startswith("torch")] == []
    assert not torch_log.disabled


def test_dense_targets_label_the_positions_of_the_whole() -> None:
    net, shape, tile = made("unet of images")
    x = inputs(shape, 3)
    masks = (x.mean(1) > 1).long() + (x.mean(1) > 2)
    labeler = genmeasures.labelers.Downsampled()
    found, expected = (features(net, (x, masks), size, 700, labeler) for size in (tile, None))
    assert_alike(found, expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[3], other[3])
    assert len(expected[0][3].unique()) == 3


class GrabAgain(Grab):
    """Sees the same vectors in a second pass, and keeps these."""

    name = "grab_again"
    variables = (Variable("grab_again", "number of vectors", 0),)

    def prepare(self, extractor: Any) -> None:
        self.passes = (Pass("test", "patches"), Pass("test", "patches"))

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        super().start(layer, generator)
        self._again = False

    def update(self, batch: FeatureBatch) -> None:
        if self._again:
            self._parts.append((batch.rank.clone(), batch.patches.clone()))

    def end_pass(self) -> None:
        self._again = True


def test_vectors_kept_for_a_second_pass_have_their_ranks() -> None:
    """A tile's vectors come in another order than the sample's."""
    net, shape, tile = made("unet of images")
    x = inputs(shape, 3)
    kept = [Kept(), Kept()]
    for one, size in zip(kept, (None, tile), strict=True):
        extractor = ReceptiveField(cap=300)
        ds = genmeasures.measure({"net": net}, test=x, measures=[GrabAgain(one)], extractor=extractor, tile=size)
        assert all(status == "ok" or "is read before its" in status for status in ds["grab_again_status"].values.flat)
    assert_alike(kept[1], kept[0])


# Measures ----------------------------------------------------------------------------------------------------


def data(shape: tuple[int, ...]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    splits = []
    for seed in range(2):
        x = inputs(shape, 2, seed)
        splits.append((x, (x.mean(1) > 1.5).long()))
    return splits[0], splits[1]


def measured(net: nn.Module, shape: tuple[int, ...], **options: Any) -> xr.Dataset:
    return genmeasures.measure({"net": net}, *data(shape), **{"extractor": EXTRACTORS["sampled"], **options})


EXTRACTORS = {
    "sampled": ReceptiveField(cap=900, components=4),
    "sampled twice": ReceptiveField(cap=1200, components=4, fit_cap=500),
    "all": ReceptiveField(cap=None, components=4),
}


def assert_same(found: xr.Dataset, expected: xr.Dataset, rtol: float) -> None:
    for name in VALUES:
        assert all(status.startswith(("ok", "note: ")) for status in expected[f"{name}_status"].values.flat)
        np.testing.assert_array_equal(found[f"{name}_status"].values, expected[f"{name}_status"].values)
        np.testing.assert_allclose(found[name].values, expected[name].values, rtol=rtol)
    for name in ("layer_name", "vectors_train", "vectors_test"):
        np.testing.assert_array_equal(found[name].values, expected[name].values)
    # Summed in the order of the memory, which need not be that of the whole.
    np.testing.assert_allclose(found["weight_norm"].values, expected["weight_norm"].values, rtol=1e-12)


@pytest.mark.parametrize("name", ["unet of images", "unet of volumes", "dilated, instance norm"])
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_measures_are_those_of_the_whole(name: str, extractor: str) -> None:
    net, shape, tile = made(name)
    net = Double(net)
    options = {"extractor": EXTRACTORS[extractor]}
    assert_same(measured(net, shape, tile=tile, **options), measured(net, shape, **options), 1e-6)


@pytest.mark.parametrize("name", ["max pooling, nearest", "max pooling, linear", "no padding", "called twice"])
def test_measures_of_single_precision(name: str) -> None:
    """Features differ in their last bits. Clusters lie apart: a distance of centroids that is a fortieth of their
    spreads, as with labels that say nothing, has two digits less than the features. So have log densities, where
    a direction has little variance."""
    net, shape, tile = made(name)
    measures = [DaviesBouldin(KMeans()), Roughness(), Confidence()]
    options: dict[str, Any] = {"extractor": EXTRACTORS["sampled"], "measures": measures}
    found, expected = measured(net, shape, tile=tile, **options), measured(net, shape, **options)
    assert_same(found, expected, 1e-4)
    for value in VALUES[:3]:
        np.testing.assert_allclose(found[value].values, expected[value].values, rtol=1e-6)


@pytest.mark.parametrize("cap", [None, 8000])
def test_a_background_of_little_noise(cap: int | None) -> None:
    """Nine tenths of an image are alike to a thousandth: sums in float32 would shift their centroid by as much."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()).eval()
    splits = []
    for _ in range(2):
        x = torch.tensor([0.7, -1.3]).view(2, 1, 1) + 1e-3 * torch.randn(3, 2, 96, 96)
        x[:, :, 10:42, 20:52] += 1 + torch.randn(3, 2, 32, 32)
        splits.append(x)
    options: dict[str, Any] = {"measures": [DaviesBouldin(KMeans()), Roughness()], "extractor": ReceptiveField(cap=cap)}
    found, expected = (genmeasures.measure([net], *splits, tile=tile, **options) for tile in (40, None))
    for name in VALUES[:3]:
        assert set(expected[f"{name}_status"].values.flat) == {"ok"}
        np.testing.assert_allclose(found[name].values, expected[name].values, rtol=1e-6)


def test_other_passes_and_labelers() -> None:
    net, shape, tile = made("unet of images")
    net = Double(net)
    measures = [DaviesBouldin(KMeans(k=3), space="patch"), Roughness(input_pca=4), Confidence(split="train")]
    assert_same(measured(net, shape, measures=measures, tile=tile), measured(net, shape, measures=measures), 1e-6)


@pytest.mark.parametrize("memory", [0, 200_000])
def test_what_is_kept_for_a_second_pass_changes_no_value(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, shape, tile = made("unet of images")
    net = Double(net)
    expected = measured(net, shape)
    monkeypatch.setattr("genmeasures.engine.memory.Memory.cache", memory)
    monkeypatch.setattr("genmeasures.engine.memory.Memory.record", memory)
    monkeypatch.setattr("genmeasures.engine.memory.Memory.chunk", 10_000)
    assert_same(measured(net, shape, tile=tile), expected, 1e-6)


@pytest.mark.parametrize("direction", ["pullback", "pushforward"])
@pytest.mark.parametrize("name", ["davies_bouldin", "silhouette"])
def test_other_directions_and_indices(direction: str, name: str) -> None:
    """Pixels at the centers of patches are those of the whole; they are labeled by clusters of the same ones."""
    net, shape, tile = made("dilated, instance norm")
    measures = [Roughness(input_pca=3, direction=direction, index=name)]
    options: dict[str, Any] = {"measures": measures}
    expected = measured(Double(net), shape, **options)
    found = measured(Double(net), shape, tile=tile, **options)
    for value in ("roughness", "roughness_projected"):
        assert all(status.startswith(("ok", "note: ")) for status in expected[f"{value}_status"].values.flat)
        np.testing.assert_allclose(found[value].values, expected[value].values, rtol=1e-6)


def test_batch_size_and_order_change_no_value() -> None:
    net, shape, tile = made("unet of images")
    net = Double(net)
    (x, y), test = data(shape)
    options: dict[str, Any] = {"extractor": EXTRACTORS["sampled"], "tile": tile}
    expected = genmeasures.measure({"net": net}, (x, y), test, **options)
    found = genmeasures.measure({"net": net}, (x.flip(0), y.flip(0)), test, batch_size=1, **options)
    assert_same(found, expected, 1e-9)


# What cannot be measured in tiles ------------------------------------------------------------------------------


class Coordinates(nn.Module):
    """Adds where a pixel lies."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.linspace(0, 1, x.shape[-1], device=x.device)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.key(x).flatten(2)
        weights = torch.softmax(keys.transpose(1, 2) @ keys, 2)
        return (self.value(x).flatten(2) @ weights).view_as(x)


class Squeeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


class Manual(nn.Module):
    """A normalization that is written out, of which nobody knows that it is one."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)


GLOBAL: dict[str, tuple[list[nn.Module], str]] = {
    "a linear layer of all positions": ([nn.Flatten(), nn.Linear(4 * 32 * 32, 3)], "3 takes inputs of one size only"),
    "global pooling": ([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)], "4 has an output of size"),
    "a gate": ([Squeeze(), nn.Conv2d(4, 2, 1)], r"2.gate has an output of size \(1, 1\)"),
    "attention": ([Attention(), nn.Conv2d(4, 2, 1)], "3 depends on the input at any distance"),
    "statistics of its own": ([Manual(), nn.Conv2d(4, 2, 1)], "3 depends on the input at any distance"),
    "a circle": ([nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular")], "2 depends on the input at any distance"),
    "statistics of the batch": (
        [nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 2, 1)], "3 depends on the input at any distance",
    ),
    "a normalization of one size": ([nn.LayerNorm((32, 32)), nn.Conv2d(4, 2, 1)], "2 takes inputs of one size only"),
    "coordinates": ([Coordinates(), nn.Conv2d(4, 2, 1)], "3 has other values in a tile than in the whole"),
    "corners": (
        [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(4, 2, 1)],
        "3 has other values in a tile than in the whole",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GLOBAL)
def test_a_layer_that_depends_on_everything_is_named(name: str) -> None:
    torch.manual_seed(0)
    layers, reason = GLOBAL[name]
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.AvgPool2d(3, 1, 1), *layers).eval()
    x = inputs((2, 32, 32), 1)
    with pytest.raises(ModelError, match=rf"^model net: {reason}.*it cannot be measured in tiles"):
        features(net, x, 8)
    # The layers before it can be, and with a tile as large as the input all.
    assert_alike(features(net, x, 8, layers=["0"]), features(net, x, None, layers=["0"]))
    assert_alike(features(net, x, 32), features(net, x, None))


class Ramp(nn.Module):
    """Multiplies by where a pixel lies: nothing of it shows where everything is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.linspace(0, 1, x.shape[-1], device=x.device)


def test_a_first_input_without_content_hides_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), Ramp(), nn.Conv2d(4, 2, 1, bias=False)).eval()
    x = inputs((1, 32, 32), 3)
    x[0] = 0
    with pytest.raises(ModelError, match="2 has other values in a tile than in the whole"):
        features(net, x, 8)


def test_a_reach_as_large_as_the_input_makes_one_tile() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Conv2d(2, 2, 3, padding=8, dilation=8) for _ in range(3)])
    x = inputs((2, 30, 90))
    found = surveyed(net, (2, 30, 90), 10)
    assert found is not None
    assert [len(spans(30, 10, 1, site.before[0], site.after[0])) for site in found.sites] == [3, 1, 1]
    assert_alike(features(net, x, 10), features(net, x, None))
    assert surveyed(nn.Sequential(nn.Conv2d(2, 2, 33, padding=16)), (2, 30, 30), 10) is None


def test_numbers_that_are_none() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        net[0].bias.fill_(torch.finfo(torch.float32).max)
        net[2].weight.fill_(torch.finfo(torch.float32).max)
    ds = genmeasures.measure({"net": net}, inputs((2, 30, 30)), measures=[Grab(Kept())], tile=8)
    assert list(ds["grab_status"].values[0])[1] == "undefined: NaN or infinite activations"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tile": 0}, "tile must be an integer ≥ 1, a list of integers ≥ 1 or null, got 0"),
        ({"tile": True}, "tile must be an integer"),
        ({"tile": 2.5}, "tile must be an integer"),
        ({"tile": "many"}, "tile must be an integer"),
        ({"tile": []}, "tile must be an integer"),
        ({"tile": [8, 0]}, "tile must be an integer"),
        ({"tile": [8, 8, 8]}, r"tile=\[8, 8, 8\]: inputs of shape \(2, 44, 37\) have 2 spatial axes"),
        ({"tile": 8, "extractor": "whole_tensor"}, "tile: whole_tensor makes vectors of .*choose .*receptive_field"),
    ],
)
def test_options_that_do_not_fit(options: Any, reason: str) -> None:
    net, shape, _ = made("unet of images")
    with pytest.raises(OptionError, match=reason):
        measured(net, shape, **options)


def test_inputs_without_axes() -> None:
    with pytest.raises(OptionError, match=r"inputs of shape \(5,\) have 0 spatial axes"):
        genmeasures.measure([nn.Linear(5, 2)], torch.randn(9, 5), measures=[Grab(Kept())], tile=8)


def test_model_measures_say_why_not() -> None:
    class Norm(ModelMeasure):
        name = "norm"
        variables = (Variable("norm", "of the output", 0, dims=()),)

        def measure(self, model: nn.Module, layers: Any, data: Any) -> Any:
            return {"norm": float(model(data.sample("test", 1)[0]).detach().norm())}

    net, shape, tile = made("unet of images")
    ds = measured(net, shape, measures=["roughness", Norm()], tile=tile)
    assert ds["norm_status"].values[0] == "failed: norm runs the model on whole inputs, which tile rules out"
    assert np.isfinite(ds["roughness"].values).all()
    assert measured(net, shape, measures=[Norm()], tile=100)["norm_status"].values[0] == "ok"


# What is left behind --------------------------------------------------------------------------------------------


def test_no_activation_is_larger_than_a_tile() -> None:
    net = ResidualUNet(2, 1, 1, width=8, depth=2).eval()
    sizes = {"tiles": 0, "whole": 0}
    seen = "tiles"

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if not isinstance(output, FakeTensor):
            sizes[seen] = max(sizes[seen], output.numel())

    for module in net.modules():
        module.register_forward_hook(hook)
    x = inputs((1, 256, 192), 1)
    features(net, x, 48, 200)
    seen = "whole"
    features(net, x, None, 200)
    assert sizes["whole"] == 8 * 256 * 192
    assert sizes["tiles"] <= 8 * (48 + 8 + 8) ** 2


def test_memory_does_not_grow_with_the_input() -> None:
    """No tensor that any function makes, but for copies of the input itself."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and not isinstance(result, FakeTensor):
                storage = result.untyped_storage()
                if storage.data_ptr() != x.untyped_storage().data_ptr() and result.dtype == torch.float32:
                    largest = max(largest, storage.nbytes() // 4)
            return result

    net = ResidualUNet(2, 1, 1, width=8, depth=2).eval()
    x = inputs((1, 320, 320), 1)
    with Watch():
        features(net, x, 16, 200)
    assert x.numel() <= largest <= 1.2 * x.numel()


def test_the_model_is_left_as_it_was() -> None:
    class Caching(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net
            self.calls = 0
            self.shape: tuple[int, ...] = ()

        def forward(self, x: Tensor) -> Tensor:
            self.calls, self.shape = self.calls + 1, tuple(x.shape)
            self.kept = x
            return self.net(x)

    inner, shape, tile = made("unet of images")
    net = Caching(inner).train()
    net.net.head.eval()
    net.net.head.weight.requires_grad_(False)

    def state() -> Any:
        return [
            (name, module.training, set(vars(module)), {k: len(v) for k, v in vars(module).items() if "hooks" in k})
            for name, module in net.named_modules()
        ]

    net(inputs(shape))
    before, weights, tensors = state(), copy.deepcopy(net.state_dict()), dict(net.named_parameters())
    features(net, inputs(shape), tile, 300)
    assert state() == before
    assert not isinstance(net.kept, FakeTensor)
    for name, parameter in net.named_parameters():
        assert parameter is tensors[name]
        assert parameter.requires_grad == (name != "net.head.weight")
        assert torch.equal(parameter, weights[name])
        assert parameter.stride() == weights[name].stride()


def test_a_sketch_is_traced_as_the_model_is() -> None:
    for name in NETS:
        net, shape, _ = made(name)
        x = inputs(shape, 3)
        for tap in ("activation", "linear"):
            assert sketched_trace(net, Sketch(net, torch.device("cpu")), tuple(x.shape), tap) == trace(net, x, tap)


def test_results_say_how_they_were_made(tmp_path: Path) -> None:
    """Like the batch size: in the configuration, not among the settings that values depend on."""
    net, shape, tile = made("unet of images")
    ds = measured(net, shape, tile=tile, measures=["davies_bouldin"], keep=tmp_path)
    assert yaml.safe_load(ds.attrs["config"])["tile"] == tile
    assert "tile" not in yaml.safe_load(ds.attrs["settings"])
    assert len(list(tmp_path.iterdir())) == 1
    measured(net, shape, tile=tile, measures=["davies_bouldin"], keep=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    # No value depends on it, so another size takes what was kept.
    again = measured(net, shape, tile=[4, 4], measures=["davies_bouldin"], keep=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(again["davies_bouldin"], ds["davies_bouldin"])


# Arithmetic -----------------------------------------------------------------------------------------------------


@given(
    size=st.integers(1, 200),
    core=st.integers(1, 60),
    step=st.sampled_from([1, 2, 3, 8]),
    before=st.integers(0, 40),
    after=st.integers(0, 40),
    least=st.integers(1, 90),
)
def test_cores_cover_an_axis_once(size: int, core: int, step: int, before: int, after: int, least: int) -> None:
    found = spans(size, core, step, before, after, least)
    assert [element for span in found for element in range(span.low, span.high)] == list(range(size))
    for span in found:
        assert span.start == 0 or (span.start % step == 0 and span.start <= span.low - before)
        assert span.stop == size or (span.stop % step == 0 and span.stop >= span.high + after)
        assert 0 <= span.start < span.stop <= size
        assert span.stop - span.start >= min(size, least)
        assert span.stop - span.start <= max(core + before + after + 3 * step, least + 2 * step) or len(found) == 1


@settings(deadline=None)  # the first example sets up what the others find there
@given(
    positions=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    stride=st.sampled_from([Fraction(1), Fraction(2), Fraction(4), Fraction(1, 2)]),
    core=st.integers(1, 20),
    drawn=st.booleans(),
)
def test_every_sampled_vector_is_in_one_tile(positions: list[int], stride: Fraction, core: int, drawn: bool) -> None:
    size = [max(1, int(count * stride)) for count in positions]
    site = Site("layer", tuple(positions), (stride,) * len(size), (0,) * len(size), (0,) * len(size))
    count = int(np.prod(positions))
    keys = np.arange(1, 4, dtype=np.uint64)
    sample = ReceptiveField(cap=3 * count - 2 if drawn and count > 1 else None).sample(count, keys, 0)
    assert isinstance(sample, Every) != (drawn and count > 1)
    step = max(1, stride.numerator)
    found = [sampled(sample, 1, site, tile) for tile in tiles([spans(length, core, step, 0, 0) for length in size])]
    places, ranks = (np.concatenate(parts) for parts in zip(*found, strict=True))
    _, expected, expected_ranks = sample.part(1, 2)
    order = np.argsort(places)
    np.testing.assert_array_equal(places[order], expected)
    np.testing.assert_array_equal(ranks[order], expected_ranks)


@given(cut=st.integers(0, 30), scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3))
def test_moments_of_parts_are_those_of_the_whole(cut: int, scale: float, shift: float) -> None:
    values = torch.randn(2, 6, 30, 4, generator=torch.Generator().manual_seed(cut), dtype=torch.float64) * scale + shift
    found = moments(values[:, :, :cut], 3).merged(moments(values[:, :, cut:], 3))
    rows = values.reshape(2, 3, -1).numpy()
    assert found.count == rows.shape[2]
    np.testing.assert_allclose(found.mean, rows.mean(2), rtol=1e-10, atol=1e-12 * scale)
    np.testing.assert_allclose(found.squares / found.count, rows.var(2), rtol=1e-9)
