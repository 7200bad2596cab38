"""Bins of continuous targets, against NumPy and scikit-learn."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import sklearn.cluster
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import genmeasures
from genmeasures.errors import DataError, OptionError
from genmeasures.labelers import Histogram, histogram


def fitted(labeler: Histogram, *batches: Tensor, seed: int = 0) -> Histogram:
    for batch in batches:
        labeler.observe(batch)
    labeler.fit(torch.Generator().manual_seed(seed))
    return labeler


def bins(values: NDArray[Any], edges: NDArray[Any]) -> NDArray[np.int64]:
    """The bin of each value, written out: the last edge that it reaches; the outermost for those outside."""
    return np.clip((values[..., None] >= edges).sum(-1) - 1, 0, len(edges) - 2)


numbers = st.one_of(st.floats(-1e6, 1e6, width=32), st.integers(-4, 4).map(lambda n: n / 2))
samples = st.lists(numbers, min_size=2, max_size=60).map(lambda values: np.array(values, dtype=np.float32))


@settings(max_examples=150, deadline=None)
@given(samples, samples, st.integers(2, 12))
def test_uniform_edges_are_numpys(train: NDArray[Any], test: NDArray[Any], count: int) -> None:
    labeler = fitted(Histogram(count, "uniform"), torch.from_numpy(train)[:, None])
    edges = np.histogram_bin_edges(train.astype(np.float64), count)
    for values in (train, test):
        labels = labeler.label(torch.from_numpy(values)[:, None], ())
        assert labels.shape == (len(values), 1)
        assert labels.dtype == torch.int64
        np.testing.assert_array_equal(labels[:, 0], bins(values.astype(np.float64), edges))


@settings(max_examples=150, deadline=None)
@given(samples, samples, st.integers(2, 12))
def test_quantile_edges_are_numpys(train: NDArray[Any], test: NDArray[Any], count: int) -> None:
    labeler = fitted(Histogram(count, "quantile"), torch.from_numpy(train)[:, None])
    # Equal quantiles make one edge; below the first and above the last all is open.
    inner = np.unique(np.quantile(train.astype(np.float64), np.arange(1, count) / count))
    edges = np.concatenate([[-np.inf], inner, [np.inf]])
    for values in (train, test):
        labels = labeler.label(torch.from_numpy(values)[:, None], ())
        np.testing.assert_array_equal(labels[:, 0], bins(values.astype(np.float64), edges))


def test_values_counted_in_bins_are_numpys_histogram() -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    labels = fitted(Histogram(), torch.from_numpy(values)[:, None]).label(torch.from_numpy(values)[:, None], ())
    counts, _ = np.histogram(values.astype(np.float64), 10)
    np.testing.assert_array_equal(np.bincount(labels[:, 0], minlength=10), counts)


def test_quantile_bins_hold_as_many_each() -> None:
    values = torch.from_numpy(np.random.default_rng(0).gumbel(size=(1000, 1)))
    labels = fitted(Histogram(8, "quantile"), values).label(values, ())
    assert np.bincount(labels[:, 0]).tolist() == [125] * 8


@pytest.mark.parametrize("edges", ["uniform", "quantile"])
def test_values_outside_go_to_the_outermost_bins(edges: str) -> None:
    labeler = fitted(Histogram(4, edges), torch.linspace(0, 1, 101)[:, None])
    assert labeler.label(torch.tensor([[-5.0], [-1e30], [5.0], [1e30]]), ())[:, 0].tolist() == [0, 0, 3, 3]


@pytest.mark.parametrize("edges", ["uniform", "quantile"])
def test_whole_numbers_are_targets_too(edges: str) -> None:
    targets = torch.arange(10)[:, None]
    assert fitted(Histogram(10, edges), targets).label(targets, ())[:, 0].tolist() == list(range(10))


@pytest.mark.parametrize("edges", ["uniform", "quantile"])
def test_one_value_is_one_bin(edges: str) -> None:
    targets = torch.full((6, 1), 2.5)
    assert len(fitted(Histogram(10, edges), targets).label(targets, ()).unique()) == 1


@pytest.mark.parametrize("edges", ["uniform", "quantile"])
@pytest.mark.parametrize(("shape", "size"), [((8, 6), (4, 3)), ((6,), (2,)), ((4, 4, 2), (2, 1, 2))])
def test_dense_targets_are_averaged_before_they_are_binned(
    edges: str, shape: tuple[int, ...], size: tuple[int, ...]
) -> None:
    values = np.random.default_rng(0).normal(size=(20, *shape))
    blocks = values.reshape(20, *[n for s, full in zip(size, shape, strict=True) for n in (s, full // s)])
    means = blocks.mean(tuple(range(2, blocks.ndim, 2))).reshape(20, -1)
    labeler = fitted(Histogram(5, edges), torch.from_numpy(values)[:, None])
    found = np.histogram_bin_edges(values, 5)[1:-1] if edges == "uniform" else np.quantile(values, [0.2, 0.4, 0.6, 0.8])
    expected = bins(means, np.concatenate([[-np.inf], found, [np.inf]]))
    np.testing.assert_array_equal(labeler.label(torch.from_numpy(values)[:, None], size), expected)
    whole = bins(values.reshape(20, -1).mean(1, keepdims=True), np.concatenate([[-np.inf], found, [np.inf]]))
    np.testing.assert_array_equal(labeler.label(torch.from_numpy(values)[:, None], ()), whole)


@pytest.mark.parametrize("dense", [False, True])
def test_vectors_are_quantized_like_scikit_learn_does(dense: bool) -> None:
    points, blobs = make_blobs(600, 3, centers=6, cluster_std=0.3, center_box=(-20, 20), random_state=3)
    reference = sklearn.cluster.KMeans(6, n_init=10, random_state=0).fit(points)
    targets = torch.from_numpy(points)
    if dense:
        targets = targets.view(6, 100, 3).transpose(1, 2).reshape(6, 3, 10, 10)
    labeler = fitted(Histogram(6), targets[:2], targets[2:])
    labels = labeler.label(targets, (10, 10) if dense else ()).flatten()
    assert adjusted_rand_score(labels, blobs) == 1.0
    assert adjusted_rand_score(labels, reference.labels_) == 1.0
    new = np.random.default_rng(0).uniform(-20, 20, (400, 3))
    assert adjusted_rand_score(labeler.label(torch.from_numpy(new), ()).flatten(), reference.predict(new)) == 1.0


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([(1,), (1, 5, 4), (2,), (2, 6)]), st.sampled_from(["uniform", "quantile"]))
def test_neither_the_order_nor_the_split_of_the_data_matters(
    data: st.DataObject, shape: tuple[int, ...], edges: str
) -> None:
    values = torch.randn(24, *shape, generator=torch.Generator().manual_seed(0))
    expected = fitted(Histogram(4, edges), values).label(values, shape[1:])
    order = torch.tensor(data.draw(st.permutations(range(24))))
    width = data.draw(st.integers(1, 24))
    other = fitted(Histogram(4, edges), *values[order].split(width))
    assert torch.equal(other.label(values, shape[1:]), expected)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([1, 2]), st.integers(30, 400))
def test_nor_where_not_all_values_are_kept(data: st.DataObject, channels: int, most: int) -> None:
    values = torch.randn(24, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    order = torch.tensor(data.draw(st.permutations(range(24))))
    width = data.draw(st.integers(1, 24))
    with mock.patch.object(histogram, "_MOST_VALUES", most):
        expected = fitted(Histogram(4, "quantile"), values).label(values, (8, 8))
        other = fitted(Histogram(4, "quantile"), *values[order].split(width)).label(values, (8, 8))
    assert torch.equal(other, expected)


def test_values_kept_stand_for_all_positions() -> None:
    """A target that depends on its column alone, in images whose width is a power of two."""
    values = torch.linspace(0, 1, 256, dtype=torch.float64).expand(16, 1, 256, 256).contiguous()
    with mock.patch.object(histogram, "_MOST_VALUES", 1 << 14):
        labeler = fitted(Histogram(4, "quantile"), *values.split(4))
    shares = np.bincount(labeler.label(values[:1], (256, 256)).flatten(), minlength=4) / 256**2
    # 1024 positions are kept, the same in each image: three standard errors of a quartile.
    np.testing.assert_allclose(shares, 0.25, atol=3 * (0.25 * 0.75 / 1024) ** 0.5 * 2**0.5)


def test_memory_is_that_of_the_values_kept() -> None:
    labeler = Histogram(4, "quantile")
    for _ in range(8):
        labeler.observe(torch.zeros(4, 1, 300, 300))
    held = sum(one.untyped_storage().nbytes() for one in labeler._seen)
    assert held == 8 * 4 * histogram._VALUES_PER_INPUT * 8


def test_a_labeler_without_training_targets_says_so() -> None:
    for labeler in (Histogram(), fitted(Histogram()), fitted(Histogram(4, "quantile"))):
        with pytest.raises(DataError, match="fitted on the training targets, none of which has a label"):
            labeler.label(torch.zeros(3, 1), ())


@pytest.mark.parametrize("channels", [1, 2])
def test_a_layer_of_other_dimensions_is_refused(channels: int) -> None:
    values = torch.randn(6, channels, 4, 4)
    labeler = fitted(Histogram(3), values)
    with pytest.raises(DataError, match="2 spatial dimensions cannot label a layer with 1"):
        labeler.label(values, (4,))


def test_a_copy_has_no_edges() -> None:
    labeler = fitted(Histogram(7, "quantile"), torch.randn(20, 1)).clone()
    assert labeler.options() == {"bins": 7, "edges": "quantile"}
    with pytest.raises(DataError, match="none of which has a label"):
        labeler.label(torch.zeros(3, 1), ())


@pytest.mark.parametrize("options", [{"bins": 1}, {"bins": 2.5}, {"edges": "quantiles"}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"Histogram: {next(iter(options))}"):
        Histogram(**options)


# Places without a label.


def holes(values: NDArray[Any], share: float = 0.4, seed: int = 1) -> NDArray[Any]:
    """The same values (N, C, *S) with NaN in all channels of some places."""
    missing = np.random.default_rng(seed).random((len(values), 1, *values.shape[2:])) < share
    return np.where(missing, np.nan, values)


@pytest.mark.parametrize("edges", ["uniform", "quantile"])
@pytest.mark.parametrize(("shape", "size"), [((8, 6), (4, 3)), ((6,), (2,)), ((4, 4, 2), (2, 1, 2)), ((8, 6), ())])
def test_averages_and_edges_are_of_the_labeled_places(
    edges: str, shape: tuple[int, ...], size: tuple[int, ...]
) -> None:
    values = holes(np.random.default_rng(0).normal(size=(20, 1, *shape)))
    values[3] = np.nan
    cells = size or (1,) * len(shape)
    blocks = values.reshape(20, *[n for s, full in zip(cells, shape, strict=True) for n in (s, full // s)])
    axes = tuple(range(2, blocks.ndim, 2))
    seen = (~np.isnan(blocks)).sum(axes)
    means = (np.nansum(blocks, axes) / np.maximum(seen, 1)).reshape(20, -1)
    known = values[~np.isnan(values)]
    labeler = fitted(Histogram(5, edges), *torch.from_numpy(values).split(3))
    found = np.histogram_bin_edges(known, 5)[1:-1] if edges == "uniform" else np.quantile(known, [0.2, 0.4, 0.6, 0.8])
    expected = np.where(seen.reshape(20, -1) > 0, bins(means, np.concatenate([[-np.inf], found, [np.inf]])), -1)
    assert (expected[3] == -1).all()
    np.testing.assert_array_equal(labeler.label(torch.from_numpy(values), size), expected)


@pytest.mark.parametrize("dense", [False, True])
def test_vectors_without_a_label_are_not_quantized(dense: bool) -> None:
    points, blobs = make_blobs(600, 3, centers=6, cluster_std=0.3, center_box=(-20, 20), random_state=3)
    targets = torch.from_numpy(points)
    targets = targets.view(6, 100, 3).transpose(1, 2).reshape(6, 3, 10, 10) if dense else targets
    targets = torch.from_numpy(holes(targets.numpy()))
    labels = fitted(Histogram(6), targets[:2], targets[2:]).label(targets, (10, 10) if dense else ()).flatten()
    missing = torch.isnan(targets[:, 0]).flatten()
    assert bool((labels[missing] == -1).all())
    assert adjusted_rand_score(labels[~missing], blobs[~missing.numpy()]) == 1.0


def test_integers_without_a_label_are_not_binned() -> None:
    targets = torch.arange(-1, 10)[:, None]
    assert fitted(Histogram(10), targets).label(targets, ())[:, 0].tolist() == list(range(-1, 10))


@pytest.mark.parametrize("edges", ["uniform", "quantile"])
@pytest.mark.parametrize("channels", [1, 2])
def test_training_targets_without_any_label_are_refused(edges: str, channels: int) -> None:
    targets = torch.full((6, channels), float("nan"))
    with pytest.raises(DataError, match="none of which has a label"):
        fitted(Histogram(4, edges), targets).label(targets, ())


def nearly_empty(counts: NDArray[np.int64]) -> int:
    """Bins with less than a tenth of an equal share."""
    return sum(count < counts.sum() / len(counts) / 10 for count in counts.tolist())


def test_heavy_tails_get_quantiles() -> None:
    """4,822 of 5,000 log-normal values in one of ten uniform bins, nine of which would be nearly empty."""
    values = np.exp(2 * np.random.default_rng(0).normal(size=5000))
    targets = torch.from_numpy(values)[:, None]
    uniform = np.histogram(values, 10)[0]
    assert uniform.max() > 4800
    labeler = fitted(Histogram(), targets)
    assert labeler.note.startswith(
        f"quantiles as edges of the 10 bins, {nearly_empty(uniform)} of which would be nearly"
    )
    assert labeler.label(targets, ()).flatten().bincount().tolist() == [500] * 10


def test_a_bin_with_nearly_all_targets_is_noted() -> None:
    """Nine in ten targets are 0, so that quantiles fill no more bins than uniform edges."""
    generator = np.random.default_rng(0)
    values = np.where(generator.random(5000) < 0.9, 0, np.exp(3 * generator.normal(size=5000)))
    targets = torch.from_numpy(values)[:, None]
    uniform = np.histogram(values, 10)[0]
    labeler = fitted(Histogram(), targets)
    assert labeler.label(targets, ()).flatten().bincount(minlength=10).tolist() == uniform.tolist()
    share = 100 * uniform.max() / 5000
    assert share > 99
    assert labeler.note == (
        f"one of the 10 bins has {share:.1f}% of the training targets, {nearly_empty(uniform)} are nearly empty, and "
        "quantiles as edges leave no fewer so"
    )


def test_few_distinct_targets_are_not_crowded() -> None:
    """The other bins of a mask are empty, but each of its two values has its own."""
    assert not fitted(Histogram(), torch.tensor([0.0, 1.0]).repeat_interleave(50)[:, None]).note


@settings(max_examples=150, deadline=None)
@given(samples, st.integers(2, 12))
def test_edges_are_uniform_unless_quantiles_fill_more_bins(train: NDArray[Any], count: int) -> None:
    targets = torch.from_numpy(train)[:, None]
    uniform, quantile, auto = (fitted(Histogram(count, edges), targets) for edges in ("uniform", "quantile", "auto"))
    empty = [
        nearly_empty(labeler.label(targets, ()).flatten().bincount(minlength=count).numpy())
        for labeler in (uniform, quantile)
    ]
    taken = quantile if 2 * empty[0] > count and empty[1] < empty[0] else uniform
    assert torch.equal(auto.label(targets, ()), taken.label(targets, ()))
    filled = len(uniform.label(targets, ()).unique())
    crowded = 2 * empty[0] > count and len(np.unique(train.astype(np.float64))) > filled
    assert bool(auto.note) == (taken is quantile or crowded)
    assert not uniform.note
    assert not quantile.note


def test_the_status_notes_quantiles() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=generator)
    targets = (3 * x[:, 0]).exp()
    net = torch.nn.Linear(3, 4)
    ds = genmeasures.measure([net], (x, targets), measures=["davies_bouldin"])
    assert "quantiles as edges of the 10 bins" in ds.davies_bouldin_status.item()
