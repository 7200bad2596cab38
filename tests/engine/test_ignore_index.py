"""Vectors without a label: left out of every measure that reads labels of targets, whatever way its passes take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.metrics import davies_bouldin_score
from torch import Tensor, nn

import genmeasures
from genmeasures.data import DataSource, read_alike
from genmeasures.errors import DataError
from genmeasures.extractors import ReceptiveField, WholeTensor
from genmeasures.interfaces import (
    FeatureBatch,
    FeatureMeasure,
    Labeler,
    Layer,
    Measure,
    Pass,
    Split,
    TargetLabeler,
    Variable,
)
from genmeasures.labelers import ClassLabel, Downsampled, Histogram
from genmeasures.measures import Confidence, DaviesBouldin, Roughness

VOID = 255
N, SIZE = 30, 12
X = torch.randn(N, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
MASKS = (X[:, 0] > 0).long() + (X[:, 1] > 0.5).long()
MASKS[:, :3] = VOID
MASKS[::4, :, 5:8] = VOID
MASKS[3] = VOID
CLASSES = torch.arange(N) % 3
CLASSES[::5] = VOID
KEPT = MASKS != VOID


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1))


def pixels(features: Tensor) -> np.ndarray[Any, Any]:
    return features.movedim(1, -1).flatten(0, -2).double().numpy()


@torch.no_grad()
def features_of(model: nn.Module, layer: int) -> Tensor:
    return model[: layer + 1](X) if layer else torch.relu(model[:1](X))  # type: ignore[index]


@torch.no_grad()
def patches_of(model: nn.Module, layer: int) -> np.ndarray[Any, Any]:
    given = X if layer == 0 else features_of(model, 0)
    return nn.functional.unfold(given, 3, padding=1).transpose(1, 2).flatten(0, 1).double().numpy()


def measured(measures: Any, labels: Tensor = MASKS, **options: Any) -> xr.Dataset:
    options = {"ignore_index": VOID, "batch_size": 7, **options}
    return genmeasures.measure({"net": net()}, (X, labels), (X, labels), measures=measures, **options)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("space", ["pixel", "patch", "pca"])
@pytest.mark.parametrize("tile", [None, 6])
def test_the_value_is_that_of_the_labeled_pixels(space: str, split: Split, tile: int | None) -> None:
    """Of sklearn on these alone. A projection to all dimensions changes no distance."""
    extractor = ReceptiveField(components=6)
    ds = measured([DaviesBouldin(space=space, split=split)], extractor=extractor, tile=tile)
    assert (ds.davies_bouldin_status.values == "ok").all()
    kept, labels = KEPT.flatten().numpy(), MASKS.flatten().numpy()
    for place, layer in enumerate((0, 2)):
        vectors = patches_of(net(), layer) if space == "patch" else pixels(features_of(net(), layer))
        expected = davies_bouldin_score(vectors[kept], labels[kept])
        assert float(ds.davies_bouldin[0, place]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("options", [{"cache": 0}, {"record": 0}, {"chunk": 5_000}])
def test_however_little_memory_there_is(options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    measures: list[Measure | str] = [
        DaviesBouldin(space="patch", split="test"), Roughness(Downsampled(), input_pca=3), Confidence(Downsampled()),
    ]  # fmt: skip
    expected = measured(measures)
    for name, value in options.items():
        monkeypatch.setattr(f"genmeasures.engine.memory.Memory.{name}", value)
    found = measured(measures)
    for name in ("davies_bouldin", "roughness", "confidence"):
        assert (expected[f"{name}_status"].values == "ok").all()
        np.testing.assert_allclose(found[name].values, expected[name].values, rtol=1e-6)


@pytest.mark.parametrize("extractor", [ReceptiveField(), WholeTensor()])
@pytest.mark.parametrize(
    "measure", [DaviesBouldin(space="pixel"), DaviesBouldin(space="patch"), Roughness(ClassLabel())]
)
def test_inputs_without_a_label_are_left_out(extractor: Any, measure: Measure) -> None:
    """As if the data had none of them, but for what is fitted on all."""
    kept = CLASSES != VOID
    ds = measured([measure], CLASSES, extractor=extractor)
    model = {"net": net()}
    alone = genmeasures.measure(
        model, (X[kept], CLASSES[kept]), (X[kept], CLASSES[kept]), measures=[measure], extractor=extractor
    )
    name = measure.variables[0].name
    assert (ds[f"{name}_status"].values == "ok").all()
    # Roughness under whole tensors is of patches projected by a PCA of all.
    if not (isinstance(extractor, WholeTensor) and name == "roughness"):
        np.testing.assert_allclose(ds[name].values, alone[name].values, rtol=1e-5)


def test_an_extra_class_would_have_changed_it() -> None:
    """Without the option the value is another, and the status says so."""
    option, without = measured([DaviesBouldin()]), measured([DaviesBouldin()], ignore_index=None)
    assert not np.allclose(option.davies_bouldin, without.davies_bouldin, rtol=1e-2)
    assert all("ignore_index=255 leaves it out" in status for status in without.davies_bouldin_status.values[0])


class Kinds(FeatureMeasure):
    """Sees how many vectors come in a pass with labels and in one without, and that all fields go together."""

    name = "kinds"
    variables = (Variable("labeled", "vectors with labels", 0), Variable("seen", "vectors", 0))

    def __init__(self, labeler: Labeler | None = None, split: Split = "train") -> None:
        self.labeler = labeler
        self.split = split
        self.patch_components = 2

    @property
    def passes(self) -> tuple[Pass, ...]:
        everything = ("vectors", "projected", "patches", "patch_set", "projected_patches")
        return (Pass(self.split, *everything, "labels"), Pass(self.split, *everything))  # type: ignore[arg-type]

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._pass, self._counts, self._ranks = 0, [0, 0], set[int]()

    def update(self, batch: FeatureBatch) -> None:
        assert self.labeler is not None
        self._counts[self._pass] += len(batch)
        assert torch.equal(batch.patches, batch.patch_set.unfold())
        for vectors in (batch.vectors, batch.projected, batch.patches, batch.projected_patches):
            assert len(vectors) == len(batch)
        if self._pass == 0:
            labels = batch.labels(self.labeler)
            assert len(labels) == len(batch) == len(batch.rank)
            assert bool((labels >= 0).all())
            ranks = set(batch.rank.tolist())
            assert not ranks & self._ranks
            self._ranks |= ranks

    def end_pass(self) -> None:
        self._pass += 1

    def compute(self) -> dict[str, float]:
        return {"labeled": float(self._counts[0]), "seen": float(self._counts[1])}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("tile", [None, 6])
@pytest.mark.parametrize("cap", [None, 1000])
def test_a_pass_without_labels_sees_all_vectors(split: Split, tile: int | None, cap: int | None) -> None:
    ds = measured([Kinds(split=split)], tile=tile, extractor=ReceptiveField(cap=cap))
    assert (ds.seen.values == (cap or N * SIZE**2)).all()
    if cap is None:
        assert (ds.labeled.values == int(KEPT.sum())).all()
    else:
        assert ((ds.labeled.values > 0) & (ds.labeled.values < cap)).all()


class Every(TargetLabeler):
    """A labeler of one's own that leaves out positions by itself."""

    name = "every"

    def __init__(self, third: int = 3) -> None:
        self.third = third

    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        labels = torch.arange(math.prod(spatial)).repeat(len(targets), 1) % 5
        labels[:, :: self.third] = -1
        return labels


def test_a_labeler_of_ones_own_may_leave_out_vectors() -> None:
    ds = measured([Kinds(Every())], torch.arange(N) % 2)
    assert (ds.labeled.values == N * SIZE**2 * 2 // 3).all()


def test_data_without_any_label_say_so() -> None:
    for labels in (torch.full_like(MASKS, VOID), torch.full_like(CLASSES, VOID)):
        ds = measured(["davies_bouldin", "roughness", Kinds()], labels)
        assert (ds.davies_bouldin_status.values == "undefined: no vector of the sample has a label").all()
        assert (ds.labeled_status.values == "undefined: no vector of the sample has a label").all()
        assert (ds.roughness_status.values == "ok").all()


def test_a_class_that_is_ignored_everywhere_is_none() -> None:
    two = torch.where(MASKS == 2, VOID, MASKS)
    ds = measured([DaviesBouldin(space="pixel")], two)
    kept = (two != VOID).flatten().numpy()
    vectors, labels = pixels(features_of(net(), 2)), two.flatten().numpy()
    assert float(ds.davies_bouldin[0, 1]) == pytest.approx(davies_bouldin_score(vectors[kept], labels[kept]), rel=1e-4)
    one = torch.where(MASKS >= 1, VOID, MASKS)
    ds = measured([DaviesBouldin()], one)
    assert all(
        status.startswith("undefined: expected at least 2 clusters in the sample, got 1")
        for status in ds.davies_bouldin_status.values[0]
    )


@pytest.mark.parametrize("value", [math.nan, -9999.0])
def test_places_without_a_continuous_target_are_left_out(value: float) -> None:
    heights = (X[:, 0] + X[:, 1]).clone()
    heights[:, :3] = value
    heights[7] = value
    ds = measured([DaviesBouldin(Histogram(6), space="pixel")], heights, ignore_index=value)
    assert (ds.davies_bouldin_status.values == "ok").all()
    kept = torch.ones_like(KEPT)
    kept[:, :3] = kept[7] = False
    seen = heights[kept].double().numpy()
    labels = np.digitize(seen, np.histogram_bin_edges(seen, 6)[1:-1])
    for place, layer in enumerate((0, 2)):
        vectors = pixels(features_of(net(), layer))[kept.flatten().numpy()]
        assert float(ds.davies_bouldin[0, place]) == pytest.approx(davies_bouldin_score(vectors, labels), rel=1e-4)


def test_rounding_to_a_class_that_is_ignored_is_refused() -> None:
    with pytest.raises(DataError, match="ignore_index=0 leaves it out: choose rounding='ceil' or 'majority'"):
        measured([DaviesBouldin(Downsampled("nearest"))], MASKS % VOID, ignore_index=0)
    assert (measured([DaviesBouldin(Downsampled("nearest"))]).davies_bouldin_status.values == "ok").all()


def test_neither_the_order_of_the_data_nor_the_batches_matter() -> None:
    measures = [DaviesBouldin(space="patch"), Confidence(Downsampled())]
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    expected = measured(measures)
    for batch in (1, 30):
        found = genmeasures.measure(
            {"net": net()}, (X[order], MASKS[order]), (X, MASKS), measures=measures, ignore_index=VOID, batch_size=batch
        )
        for name in ("davies_bouldin", "confidence"):
            np.testing.assert_allclose(found[name].values, expected[name].values, rtol=1e-6)


def test_labelers_are_shown_what_has_no_label() -> None:
    (train,) = read_alike({"train": DataSource((X, MASKS), "train", 8, VOID)}).values()
    shown = torch.cat([targets for _, targets in train if targets is not None])
    assert torch.equal(shown[:, 0], torch.where(KEPT, MASKS, -1))
