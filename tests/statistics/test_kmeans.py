"""k-means, compared with scikit-learn, and invariants of its solutions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, make_blobs
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from genmeasures.statistics import kmeans as kmeans_module
from genmeasures.statistics.kmeans import Clusters, assign, kmeans

Points = NDArray[np.float64]


def cluster(points: Points, k: int, seed: int = 0, **options: int) -> Clusters:
    return kmeans(torch.from_numpy(points), k, torch.Generator().manual_seed(seed), **options)


def inertia_of(points: Points, found: Clusters) -> float:
    return float(((points - found.centers.numpy()[found.labels.numpy()]) ** 2).sum())


def blobs(seed: int, n: int = 300, k: int = 5, d: int = 4) -> Points:
    """Clusters of spread 0.3 whose centers lie at least 10 apart: the solution is unique."""
    centers = np.random.default_rng(seed).permutation(np.eye(max(k, d))[:k, :d] * 30 + np.arange(k)[:, None] * 10)
    points: Points = make_blobs(n, centers=centers, cluster_std=0.3, random_state=seed)[0]
    return points


@pytest.fixture(scope="module")
def digit_patches() -> Points:
    """12 000 receptive fields of 3 × 3 in digits, more than the subsample of the restarts."""
    images = load_digits().images
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2)).reshape(-1, 9)
    chosen: Points = windows[np.random.default_rng(0).choice(len(windows), 12_000, replace=False)]
    return chosen.astype(np.float64)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_separated_blobs_are_found_as_by_sklearn(seed: int, offset: float) -> None:
    points = blobs(seed) + offset
    found = cluster(points, 5, seed)
    reference = KMeans(5, n_init=10, random_state=seed).fit(points - offset)
    np.testing.assert_allclose(found.inertia, reference.inertia_, rtol=1e-6)
    np.testing.assert_allclose(found.inertia, inertia_of(points, found), rtol=1e-6)
    assert adjusted_rand_score(found.labels, reference.labels_) == 1


def test_several_restarts_are_refined_on_all_points(digit_patches: Points, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best on the subsample need not be the best on all points."""
    monkeypatch.setattr(kmeans_module, "_SUBSAMPLE", 300)
    monkeypatch.setattr(kmeans_module, "_LARGER", 400)
    ends: list[float] = []
    lloyd = kmeans_module._lloyd

    def noting(*given: object) -> Clusters:
        made: Clusters = lloyd(*given)  # type: ignore[arg-type]
        ends.append(made.inertia)
        return made

    monkeypatch.setattr(kmeans_module, "_lloyd", noting)
    found = [cluster(digit_patches, 9, seed).inertia for seed in range(4)]
    assert len(ends) == 12
    runs = [ends[start : start + 3] for start in range(0, 12, 3)]
    assert found == [min(run) for run in runs]
    assert any(run[0] > min(run) for run in runs)


def test_blobs_beyond_the_subsample_are_found_too() -> None:
    """One blob in a hundred is rare enough that a start can miss it."""
    rare = np.concatenate([blobs(0, 9900), np.random.default_rng(1).normal(-100, 0.3, (100, 4))])
    found = cluster(rare, 6)
    reference = KMeans(6, n_init=10, random_state=0).fit(rare)
    np.testing.assert_allclose(found.inertia, reference.inertia_, rtol=1e-6)


@pytest.mark.parametrize("k", [2, 5, 10])
@pytest.mark.parametrize("seed", range(3))
def test_real_digits_are_clustered_as_well_as_by_ten_starts_of_sklearn(k: int, seed: int) -> None:
    points = PCA(10, svd_solver="full").fit_transform(load_digits().data)
    reference = KMeans(k, n_init=10, random_state=seed, tol=0).fit(points)
    assert cluster(points, k, seed).inertia <= reference.inertia_ * 1.001


@pytest.mark.parametrize("seed", range(2))
def test_real_patches_beyond_the_subsample_are_clustered_as_well(digit_patches: Points, seed: int) -> None:
    reference = KMeans(5, n_init=10, random_state=seed, tol=0).fit(digit_patches)
    assert cluster(digit_patches, 5, seed).inertia <= reference.inertia_ * 1.001


def check_solution(points: Points, k: int, found: Clusters) -> None:
    """Check for a fixed point of Lloyd's iterations with all labels used and the correct inertia."""
    centers, labels = found.centers.numpy(), found.labels.numpy()
    distinct = len(np.unique(points, axis=0))
    assert 1 <= len(centers) <= min(k, distinct)
    assert set(labels) == set(range(len(centers)))
    scale = float(((points - points.mean(0)) ** 2).sum())
    np.testing.assert_allclose(found.inertia, inertia_of(points, found), rtol=1e-9, atol=1e-12 * scale)
    for label, center in enumerate(centers):
        np.testing.assert_allclose(center, points[labels == label].mean(0), rtol=1e-9, atol=1e-9)
    square = ((points[:, None] - centers) ** 2).sum(2)
    own = square[np.arange(len(points)), labels]
    np.testing.assert_allclose(own, square.min(1), rtol=1e-9, atol=1e-9 * (1 + scale))


coordinates = st.integers(-4, 4).map(float)
point_sets = st.integers(1, 3).flatmap(
    lambda d: st.lists(st.lists(coordinates, min_size=d, max_size=d), min_size=1, max_size=30)
)


@settings(deadline=None, max_examples=150)
@given(point_sets, st.integers(1, 8), st.integers(0, 20))
def test_every_solution_is_a_fixed_point(listed: list[list[float]], k: int, seed: int) -> None:
    """Few coordinates: many duplicates, ties, and fewer distinct points than clusters."""
    points = np.array(listed)
    check_solution(points, k, cluster(points, k, seed))


@settings(deadline=None, max_examples=100)
@given(point_sets, st.integers(1, 8), st.integers(1, 4), st.integers(0, 20))
def test_labels_belong_to_centers_when_iterations_run_out(
    listed: list[list[float]], k: int, iterations: int, seed: int
) -> None:
    """The mixtures start from k-means that is cut short."""
    points = np.array(listed)
    found = cluster(points, k, seed, restarts=1, iterations=iterations)
    assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < len(found.centers) <= k
    np.testing.assert_allclose(found.inertia, inertia_of(points, found), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_distinct_points_fewer_than_clusters_are_clusters(k: int) -> None:
    distinct = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    points = np.repeat(distinct, [4, 1, 9], axis=0)
    found = cluster(points, k)
    assert len(found.centers) == min(k, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of fewer distinct points, and keeps empty clusters
        reference = KMeans(k, n_init=10, random_state=0).fit(points)
    np.testing.assert_allclose(found.inertia, reference.inertia_, atol=1e-9)


def test_equal_points_are_one_cluster() -> None:
    found = cluster(np.full((50, 3), 0.1), 5)
    assert len(found.centers) == 1
    assert found.inertia == 0
    np.testing.assert_allclose(found.centers.numpy(), 0.1, rtol=1e-12)


def test_one_cluster_is_the_mean() -> None:
    points = np.random.default_rng(0).normal(3, 1, (40, 2))
    found = cluster(points, 1)
    np.testing.assert_allclose(found.centers.numpy()[0], points.mean(0), rtol=1e-12)


@pytest.mark.parametrize("times", [2, 20])
def test_duplicates_multiply_the_inertia_and_do_not_move_centers(times: int) -> None:
    points = blobs(3)
    once, repeated = cluster(points, 5), cluster(np.tile(points, (times, 1)), 5)
    np.testing.assert_allclose(repeated.inertia, times * once.inertia, rtol=1e-9)
    in_order = [found.centers.numpy()[found.centers.numpy()[:, 0].argsort()] for found in (once, repeated)]
    np.testing.assert_allclose(in_order[1], in_order[0], rtol=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.floats(-1e4, 1e4), st.floats(1e-3, 1e3))
def test_order_translation_and_scale_of_the_points_do_not_matter(seed: int, shift: float, scale: float) -> None:
    """If the solution is unique, for any starting points."""
    points = blobs(seed % 7, 120)
    order = np.random.default_rng(seed).permutation(len(points))
    once, moved = cluster(points, 5, seed), cluster(points[order] * scale + shift, 5, seed)
    assert adjusted_rand_score(once.labels.numpy()[order], moved.labels) == 1
    np.testing.assert_allclose(moved.inertia, once.inertia * scale**2, rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 8))
def test_assignment_is_to_the_nearest_center(seed: int, k: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    points, centers = rng.normal(5, 1, (60, d)), rng.normal(5, 1, (k, d))
    expected = ((points[:, None] - centers) ** 2).sum(2).argmin(1)
    np.testing.assert_array_equal(assign(torch.from_numpy(points), torch.from_numpy(centers)), expected)


def test_the_generator_determines_the_result() -> None:
    points = np.random.default_rng(0).normal(size=(4000, 3))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = cluster(points, 8, seed=4), cluster(points, 8, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(one.centers, two.centers)
