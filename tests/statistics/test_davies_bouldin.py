"""Streaming Davies–Bouldin index, compared with scikit-learn."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

from genmeasures.errors import Undefined
from genmeasures.statistics.clusters import cluster_sums, square_distances
from genmeasures.statistics.davies_bouldin import ClusterSums, davies_bouldin
from genmeasures.statistics.silhouette import silhouette

Vectors = NDArray[np.floating]
Labels = NDArray[np.int64]


def streamed(
    vectors: Vectors, labels: Labels, spread: str = "mean", batch: int = 10_000, seed: int | None = None
) -> float:
    """The index from batches, with the vectors in a different order in each of the two passes."""
    rng = np.random.default_rng(seed)

    def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
        order = np.arange(len(vectors)) if seed is None else rng.permutation(len(vectors))
        parts = [order[start : start + batch] for start in range(0, len(order), batch)]
        return [(torch.from_numpy(vectors[part]), torch.from_numpy(labels[part])) for part in parts]

    first = ClusterSums()
    for part in batches():
        first.add(*part)
    second = first.result()
    for part in batches():
        second.add(*part)
    return second.davies_bouldin(spread)


def brute_force(vectors: Vectors, labels: Labels, spread: str) -> float:
    groups = [vectors[labels == label].astype(np.float64) for label in np.unique(labels)]
    centroids = [group.mean(0) for group in groups]
    spreads = []
    for group, centroid in zip(groups, centroids, strict=True):
        distances = np.array([np.sqrt(((row - centroid) ** 2).sum()) for row in group])
        spreads.append(distances.mean() if spread == "mean" else np.sqrt((distances**2).mean()))
    worst = [
        max(
            (spreads[i] + spreads[j]) / np.linalg.norm(centroids[i] - centroids[j])
            for j in range(len(groups))
            if j != i
        )
        for i in range(len(groups))
    ]
    return float(np.mean(worst))


@pytest.mark.parametrize("distance", [1.0, 5.0, 9.0, 1e3])
def test_vectors_at_their_centroid_have_distance_zero(distance: float) -> None:
    """float32: expanded into products, the distance would be the root of what the products lose, or of less than 0."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3, 60)).astype(np.float32) + np.float32(distance / 60**0.5)
    labels = torch.from_numpy(rng.integers(3, size=400))
    near = 1e-5 * rng.normal(size=(400, 60)).astype(np.float32) * (np.arange(400) % 2)[:, None]
    vectors = torch.from_numpy(points)[labels] + torch.from_numpy(near).float()
    centroids = torch.from_numpy(points).double()
    expected = (vectors.double() - centroids[labels]).square().sum(1).numpy()
    found = square_distances(vectors, centroids, labels).numpy()
    # Half of them are exactly 0; of the others float32 resolves differences to its rounding of the coordinates.
    assert (found[::2] == 0).all()
    resolved = 60**0.5 * np.finfo(np.float32).eps * float(vectors.abs().max())
    np.testing.assert_allclose(np.sqrt(found), np.sqrt(expected), rtol=1e-3, atol=resolved)


def background(n: int, d: int, tight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 (n, d), nine tenths of them within ``tight`` of one point, and which are not."""
    rng = np.random.default_rng(0)
    labels = (rng.random(n) > 0.89).astype(np.int64)
    noise = rng.normal(size=(n, d)) * np.where(labels == 0, tight, 1.0)[:, None]
    return torch.from_numpy((rng.normal(size=(2, d))[labels] + noise).astype(np.float32)), torch.from_numpy(labels)


@pytest.mark.parametrize("k", [2, 1500])
def test_sums_are_exact(k: int) -> None:
    vectors, labels = background(60_000, 5, 1e-3)
    if k > 2:
        labels = torch.arange(len(labels)) % k
    found = cluster_sums(vectors, labels, k)
    for label in (0, 1, k - 1):
        expected = [math.fsum(column) for column in vectors[labels == label].T.tolist()]
        np.testing.assert_allclose(found[label].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("tight", [1e-1, 1e-3, 1e-5])
def test_a_tight_cluster_among_a_wide_one(tight: float) -> None:
    """Its spread is small compared with the norm of its vectors, and even smaller compared with their sum."""
    vectors, labels = background(60_000, 10, tight)
    sums = ClusterSums()
    sums.add(vectors, labels)
    spreads = sums.result()
    spreads.add(vectors, labels)
    members = [vectors[labels == label].double().numpy() for label in (0, 1)]
    centroids = np.stack([one.mean(0) for one in members])
    expected = [np.linalg.norm(one - center, axis=1).mean() for one, center in zip(members, centroids, strict=True)]
    index = sum(expected) / np.linalg.norm(centroids[0] - centroids[1])
    np.testing.assert_allclose(spreads.davies_bouldin("mean"), index, rtol=1e-7)
    np.testing.assert_allclose((spreads._distance / spreads._counts).numpy(), expected, rtol=1e-7)


def sample(n: int, d: int, k: int, offset: float = 0.0, seed: int = 0) -> tuple[NDArray[np.float64], Labels]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    labels[:2] = [0, k - 1]
    return rng.normal(offset, 1, (n, d)) + 0.5 * rng.normal(size=(k, d))[labels], labels


def test_worked_by_hand() -> None:
    """Two clusters of spread 1 and a third of spread 0, at distances 4, 3 and 5."""
    centroids = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    spreads = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    # First: max(2/4, 1/3); second: max(2/4, 1/5); third: max(1/3, 1/5).
    assert davies_bouldin(centroids, spreads) == pytest.approx((0.5 + 0.5 + 1 / 3) / 3, rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_more_clusters_than_are_compared_by_differences(dtype: type[np.floating], offset: float) -> None:
    """1,500 clusters, in which some centroids lie a thousandth of the others' distances apart."""
    vectors, labels = sample(6000, 5, 1500, seed=3)
    vectors = (vectors + offset).astype(dtype)
    vectors[labels == 7] = vectors[labels == 8].mean(0) + 1e-3
    expected = brute_force_of_many(vectors, labels)
    # A batch of fewer clusters adds float32 up in float32; distances by products are good to 1e-11.
    tolerance = 1e-9 if dtype == np.float64 else 1e-6
    np.testing.assert_allclose(streamed(vectors, labels, batch=700, seed=1), expected, rtol=tolerance)


def brute_force_of_many(vectors: Vectors, labels: Labels) -> float:
    """The same as ``brute_force``, with the pairs of centroids compared all at once, by differences."""
    groups = [vectors[labels == label].astype(np.float64) for label in np.unique(labels)]
    centroids = np.array([group.mean(0) for group in groups])
    spreads = np.array(
        [np.linalg.norm(group - own, axis=1).mean() for group, own in zip(groups, centroids, strict=True)]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (spreads[:, None] + spreads) / squareform(pdist(centroids))
    np.fill_diagonal(ratio, 0)
    return float(ratio.max(1).mean())


def test_many_clusters_with_one_centroid_are_undefined() -> None:
    vectors, labels = sample(4000, 3, 1200, seed=1)
    vectors[labels == 5] = vectors[labels == 900] = 0.25
    with pytest.raises(Undefined, match="same centroid"):
        streamed(vectors, labels)


def test_memory_of_many_clusters_is_proportional_to_their_centroids() -> None:
    """3,000 clusters: five matrices of their pairs would take 340 MiB, one-hot labels of the vectors 230 MiB."""
    code = """
import resource, torch
from genmeasures.statistics.davies_bouldin import ClusterSums
vectors, labels = torch.randn(10_000, 8).double(), torch.arange(10_000) % 3_000
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small = ClusterSums()
small.add(vectors[:3000], labels[:3000] % 1200)
spreads = small.result()
spreads.add(vectors[:3000], labels[:3000] % 1200)
spreads.davies_bouldin("mean")
before = peak()
first = ClusterSums()
first.add(vectors, labels)
second = first.result()
second.add(vectors, labels)
second.davies_bouldin("mean")
print((peak() - before) // 1024)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 150  # MiB


@settings(deadline=None, max_examples=80)
@given(
    st.integers(3, 80), st.integers(1, 12), st.integers(2, 7), st.sampled_from([0.0, 1e4]), st.integers(1, 90),
    st.integers(0, 10_000),
)  # fmt: skip
def test_any_stream_agrees_with_sklearn(n: int, d: int, k: int, offset: float, batch: int, seed: int) -> None:
    vectors, labels = sample(n, d, k, offset, seed)
    assume(2 <= len(np.unique(labels)) < n)
    found = streamed(vectors, labels, "mean", batch, seed)
    # Here and there centroids are rounded to float64, to 1e-12 at 1e4: the distance of two of them is known to a
    # few times as much. (In exact arithmetic, of 3,000 such streams, the error is at most 1.1 times eps·|c|/d.)
    eps = np.finfo(np.float64).eps
    centroids = np.array([vectors[labels == label].mean(0) for label in np.unique(labels)])
    closest = pdist(centroids).min()
    rounding = 8 * eps * np.linalg.norm(centroids, axis=1).max() / closest
    np.testing.assert_allclose(found, brute_force(vectors, labels, "mean"), rtol=1e-12 + rounding)
    # scikit-learn's squared distances come from products: they are good to eps·|c|², as seen from the offset.
    products = 8 * eps * np.square(centroids - offset).sum(1).max() / closest**2
    expected = davies_bouldin_score(vectors - offset, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-6 + rounding + products)


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 60), st.integers(1, 6), st.integers(2, 5), st.integers(1, 70), st.integers(0, 10_000))
def test_the_rms_variant_agrees_with_brute_force(n: int, d: int, k: int, batch: int, seed: int) -> None:
    vectors, labels = sample(n, d, k, seed=seed)
    found = streamed(vectors, labels, "rms", batch, seed)
    np.testing.assert_allclose(found, brute_force(vectors, labels, "rms"), rtol=1e-9, atol=1e-12)
    assert found >= streamed(vectors, labels, "mean") * (1 - 1e-12) - 1e-12


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_the_index_is_invariant_to_translation_rotation_and_scale(seed: int, scale: float, shift: float) -> None:
    vectors, labels = sample(50, 4, 3, seed=seed)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]
    found = streamed(vectors @ turn * scale + shift, labels)
    np.testing.assert_allclose(found, streamed(vectors, labels), rtol=1e-7)


@pytest.mark.parametrize("spread", ["mean", "rms"])
@pytest.mark.parametrize(("n", "d"), [(3000, 5), (500, 2000)])
def test_float32_far_from_the_origin_loses_nothing(spread: str, n: int, d: int) -> None:
    """Mean 1e4, spread 1: squares are 1e8 where float32 has seven digits. The reference is of the same float32 data."""
    vectors, labels = sample(n, d, 4, offset=1e4)
    data = vectors.astype(np.float32)
    expected = brute_force(data, labels, spread)
    np.testing.assert_allclose(streamed(data, labels, spread, 64, seed=1), expected, rtol=1e-5)
    # The first batch holds one cluster alone, far from the others.
    order = np.argsort(labels, kind="stable")
    data[labels == 3] += 100
    expected = brute_force(data, labels, spread)
    np.testing.assert_allclose(streamed(data[order[::-1]], labels[order[::-1]], spread, 50), expected, rtol=1e-5)


@pytest.mark.parametrize("spread", ["mean", "rms"])
def test_empty_clusters_are_left_out(spread: str) -> None:
    vectors, labels = sample(60, 3, 4)
    spaced = np.array([2, 3, 9, 40])[labels]
    np.testing.assert_allclose(streamed(vectors, spaced, spread, 7), streamed(vectors, labels, spread, 7), rtol=1e-12)


def test_empty_batches_are_ignored() -> None:
    vectors, labels = (torch.from_numpy(array) for array in sample(40, 3, 3))
    first = ClusterSums()
    for rows in (slice(0, 0), slice(0, 25), slice(25, 25), slice(25, None)):
        first.add(vectors[rows], labels[rows])
    second = first.result()
    for rows in (slice(0, 0), slice(0, None)):
        second.add(vectors[rows], labels[rows])
    np.testing.assert_allclose(second.davies_bouldin("mean"), davies_bouldin_score(vectors, labels), rtol=1e-9)


def test_a_sample_in_one_cluster_is_undefined() -> None:
    vectors, _ = sample(20, 3, 2)
    with pytest.raises(Undefined, match="at least 2 clusters in the sample, got 1"):
        streamed(vectors, np.full(20, 5))


def test_a_sample_without_vectors_is_undefined() -> None:
    with pytest.raises(Undefined, match="no vectors"):
        streamed(np.zeros((0, 3)), np.zeros(0, np.int64))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 + 1 / 3])
def test_clusters_of_the_same_constant_are_undefined(dtype: type[np.floating], value: float) -> None:
    with pytest.raises(Undefined, match="same centroid"):
        streamed(np.full((30, 4), value, dtype), np.arange(30) % 3, batch=7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(5))
def test_centroids_that_differ_by_rounding_alone_coincide(dtype: type[np.floating], seed: int) -> None:
    """Both clusters have the same members: the index is infinite, not 1e16."""
    half = np.random.default_rng(seed).normal(3, 1, (50, 4)).astype(dtype)
    vectors = np.concatenate([half, np.random.default_rng(seed + 1).permutation(half)])
    with pytest.raises(Undefined, match="same centroid"):
        streamed(vectors, np.repeat([0, 1], 50), batch=7)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(2, 6), st.sampled_from([torch.float32, torch.float64]))
def test_other_indices_are_those_of_sklearn(seed: int, k: int, dtype: torch.dtype) -> None:
    """A cluster of a single vector, labels with gaps, batches, and any scale."""
    rng = np.random.default_rng(seed)
    labels = np.append(rng.integers(k, size=60), k) * 3 - 1
    vectors = rng.normal(size=(61, 4)) + labels[:, None] % 5
    points, marks = torch.from_numpy(vectors).to(dtype), torch.from_numpy(labels)
    first = ClusterSums()
    for part in range(0, 61, 17):
        first.add(points[part : part + 17], marks[part : part + 17])
    second = first.result()
    second.add(points, marks)
    expected = calinski_harabasz_score(points.numpy(), labels)
    np.testing.assert_allclose(second.calinski_harabasz(), expected, rtol=1e-5)
    expected = silhouette_score(points.double().numpy(), labels)
    np.testing.assert_allclose(silhouette(points, marks), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(silhouette(points * 1024, marks), silhouette(points, marks), rtol=1e-9, atol=1e-12)


def test_other_indices_without_a_value() -> None:
    one, pair = torch.zeros(3, dtype=torch.int64), torch.tensor([0, 0, 1])
    points = torch.tensor([[0.0], [0.0], [1.0]])
    first = ClusterSums()
    first.add(points, pair)
    second = first.result()
    second.add(points, pair)
    with pytest.raises(Undefined, match="vectors of each cluster are equal"):
        second.calinski_harabasz()
    with pytest.raises(Undefined, match="at least 2 clusters"):
        silhouette(points, one)
    with pytest.raises(Undefined, match="single vector"):
        silhouette(points, torch.arange(3))
