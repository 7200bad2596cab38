"""Gaussian mixtures, compared with densities of SciPy and fits of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import nn

from genmeasures.errors import Undefined
from genmeasures.statistics.mixture import (
    Mixtures,
    components_for,
    fit_mixtures,
    fit_mixtures_apart,
    shrunk_covariance,
)

Floats = NDArray[np.float64]


def fit(points: Floats, labels: NDArray[np.int64], components: int = 3, seed: int = 0, **options: float) -> Mixtures:
    generator = torch.Generator().manual_seed(seed)
    return fit_mixtures(torch.from_numpy(points), torch.from_numpy(labels), components, generator, **options)


def covariances(mixtures: Mixtures) -> Floats:
    """(g, d, d): Σ from U Uᵀ = Σ⁻¹."""
    u = mixtures.precisions.numpy()
    return np.linalg.inv(u @ u.swapaxes(1, 2))


def own_log_likelihood(mixtures: Mixtures, points: Floats, labels: NDArray[np.int64]) -> Floats:
    """(n,): log density of every point in the mixture of its own cluster."""
    densities = mixtures.mixture_log_densities(torch.from_numpy(points)).numpy()
    own: Floats = densities[np.arange(len(points)), np.searchsorted(np.unique(labels), labels)]
    return own


@pytest.fixture(scope="module")
def features() -> tuple[Floats, NDArray[np.int64]]:
    """Ten principal components of 8000 receptive fields of 5 × 5 in digits, and their five clusters."""
    images = load_digits().images
    windows = np.lib.stride_tricks.sliding_window_view(images, (5, 5), axis=(1, 2)).reshape(-1, 25)
    chosen = windows[np.random.default_rng(0).choice(len(windows), 8000, replace=False)]
    points: Floats = PCA(10, svd_solver="full").fit_transform(chosen)
    return points, KMeans(5, n_init=3, random_state=0).fit(points).labels_.astype(np.int64)


@pytest.mark.parametrize("d", [1, 2, 10])
def test_log_densities_agree_with_scipy(d: int) -> None:
    rng = np.random.default_rng(d)
    g = 5
    means = rng.normal(0, 3, (g, d))
    roots = rng.normal(size=(g, d, d)) * 10.0 ** rng.integers(-2, 2, (g, 1, 1))
    sigma = roots @ roots.swapaxes(1, 2) + 1e-3 * np.eye(d)
    weights = np.array([0.2, 0.5, 0.3, 0.9, 0.1])
    precisions = np.linalg.inv(np.linalg.cholesky(sigma)).swapaxes(1, 2)
    cluster = np.array([1, 1, 1, 4, 4])
    mixtures = Mixtures(*map(torch.from_numpy, (cluster, np.log(weights), means, precisions.copy())), note="")
    points = rng.normal(0, 5, (300, d))
    expected = np.stack([multivariate_normal(m, s).logpdf(points) for m, s in zip(means, sigma, strict=True)], 1)
    found = mixtures.component_log_densities(torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    by_cluster = [logsumexp(expected[:, cluster == i] + np.log(weights[cluster == i]), axis=1) for i in (1, 4)]
    found = mixtures.mixture_log_densities(torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(found, np.stack(by_cluster, 1), rtol=1e-9)


def test_one_component_is_the_sample_mean_and_covariance(features: tuple[Floats, NDArray[np.int64]]) -> None:
    """The ridge is relative to the mean variance of all points, not of the cluster."""
    points, labels = features
    mixtures = fit(points, labels, components=1, regularization=1e-2)
    ridge = 1e-2 * points.var(0).mean()
    sigma = covariances(mixtures)
    assert mixtures.cluster.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(mixtures.log_weights.numpy(), 0, atol=1e-12)
    for label in range(5):
        members = points[labels == label]
        np.testing.assert_allclose(mixtures.means[label].numpy(), members.mean(0), rtol=1e-9)
        expected = np.cov(members.T, bias=True) + ridge * np.eye(10)
        np.testing.assert_allclose(sigma[label], expected, rtol=1e-8, atol=1e-10 * np.trace(expected))


@pytest.mark.parametrize("components", [1, 2, 3, 6])
@pytest.mark.parametrize("clusters", [5, 1])
def test_fits_are_as_likely_as_those_of_sklearn(
    features: tuple[Floats, NDArray[np.int64]], components: int, clusters: int
) -> None:
    """Mean log-likelihood of real features, less at most one percent, with the same regularization.

    One cluster of all 8000 points is more than the subsample on which a fit starts.
    """
    points, labels = features[0], np.minimum(features[1], clusters - 1)
    found = own_log_likelihood(fit(points, labels, components), points, labels)
    ridge = 1e-6 * points.var(0).mean()
    for label in range(clusters):
        members = points[labels == label]
        reference = GaussianMixture(components, reg_covar=ridge, tol=1e-3, random_state=0).fit(members).score(members)
        assert found[labels == label].mean() >= reference - 0.01 * abs(reference)


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc1", "fc2"])
def test_fits_of_network_features_are_as_likely_as_those_of_sklearn(
    digits_net: nn.Module, digits: Any, layer: str
) -> None:
    """Principal components of a trained layer's pixels; the mean over seeds, as there are many local optima."""
    outputs: list[torch.Tensor] = []
    handle = dict(digits_net.named_modules())[layer].register_forward_hook(lambda _, args, out: outputs.append(out))
    with torch.no_grad():
        digits_net(torch.from_numpy(digits[0][0]))
    handle.remove()
    output = outputs[0] if layer == "fc2" else outputs[0].relu()
    pixels = output.flatten(2).transpose(1, 2).flatten(0, 1) if output.dim() > 2 else output
    chosen = np.random.default_rng(0).permutation(len(pixels))[:6000]
    points: Floats = PCA(min(10, pixels.shape[1])).fit_transform(pixels.double().numpy()[chosen])
    labels = KMeans(5, n_init=3, random_state=0).fit(points).labels_.astype(np.int64)
    large = np.bincount(labels)[labels] >= 10 * (points.shape[1] + 1)  # others have shrunk covariances
    assert large.mean() > 0.3
    ridge = 1e-6 * points.var(0).mean()
    found = np.mean(
        [own_log_likelihood(fit(points, labels, 3, seed), points, labels)[large].mean() for seed in range(6)]
    )
    reference = 0.0
    for label in np.unique(labels[large]):
        members = points[labels == label]
        m = components_for(len(members), points.shape[1], 3)
        runs = [GaussianMixture(m, reg_covar=ridge, random_state=seed).fit(members) for seed in range(4)]
        reference += len(members) / large.sum() * np.mean([run.score(members) for run in runs])
    assert found >= reference - 0.01 * max(1, abs(reference))


def test_an_obvious_mixture_is_recovered() -> None:
    rng = np.random.default_rng(0)
    means, counts = np.array([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]]), [3000, 1000, 6000]
    points = np.concatenate([rng.normal(m, [1, 2], (n, 2)) for m, n in zip(means, counts, strict=True)])
    points = rng.permutation(points)
    mixtures = fit(points, np.zeros(len(points), np.int64))
    order = np.lexsort(mixtures.means.numpy().round().T)
    np.testing.assert_allclose(mixtures.log_weights.exp().numpy()[order], [0.3, 0.1, 0.6], atol=1e-6)
    np.testing.assert_allclose(mixtures.means.numpy()[order], means, atol=0.2)
    np.testing.assert_allclose(covariances(mixtures)[order], np.tile(np.diag([1.0, 4.0]), (3, 1, 1)), atol=0.4)


def test_dead_dimensions_and_equal_points_stay_defined() -> None:
    """The covariance of a cluster of equal points is the ridge."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 2, (400, 4)), np.tile([9.0, 9.0, 9.0, 9.0], (60, 1)), np.full((1, 4), -9.0)])
    points[:, 2] = 0
    points[:, 3] *= 1e-9
    labels = np.repeat([0, 1, 2], [400, 60, 1])
    mixtures = fit(points, labels)
    ridge = 1e-6 * points.var(0).mean()
    found = mixtures.mixture_log_densities(torch.from_numpy(points)).numpy()
    assert np.isfinite(found).all()
    peak = -0.5 * 4 * np.log(2 * np.pi * ridge)
    np.testing.assert_allclose(found[400:460, 1], peak, rtol=1e-6)
    # A single point has the covariance within the clusters, which is regularized before it shrinks and after.
    pooled = sum(points[labels == i].T @ (points[labels == i] - points[labels == i].mean(0)) for i in (0, 1)) / 458
    expected = multivariate_normal(points[460], pooled + 2 * ridge * np.eye(4)).logpdf(points[460])
    np.testing.assert_allclose(found[460, 2], expected, rtol=1e-6)
    inside = (mixtures.cluster == 0).numpy()
    np.testing.assert_allclose(covariances(mixtures)[inside][:, 2, 2], ridge, rtol=1e-6)


coordinates = st.integers(-2, 2).map(float)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 4).flatmap(
        lambda d: st.lists(
            st.tuples(st.lists(coordinates, min_size=d, max_size=d), st.integers(0, 3)), min_size=2, max_size=40
        )
    ),
    st.integers(1, 4),
)
def test_degenerate_clusters_never_break_a_fit(listed: list[tuple[list[float], int]], components: int) -> None:
    """Duplicates, flat clusters and single points, in every combination."""
    points, labels = np.array([p for p, _ in listed]), np.array([label for _, label in listed])
    if (points == points[0]).all():
        with pytest.raises(Undefined, match="constant features"):
            fit(points, labels, components)
        return
    mixtures = fit(points, labels, components)
    assert set(mixtures.cluster.tolist()) == set(labels.tolist())
    for label in set(labels.tolist()):
        weights = mixtures.log_weights[mixtures.cluster == label].exp()
        assert 1 <= len(weights) <= components_for(int((labels == label).sum()), points.shape[1], components)
        np.testing.assert_allclose(weights.sum().item(), 1, atol=1e-9)
    assert bool(torch.isfinite(mixtures.component_log_densities(torch.from_numpy(points))).all())


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**10, 1e-6, 3.7, 1e6])
def test_scaling_the_features_shifts_log_densities(features: tuple[Floats, NDArray[np.int64]], factor: float) -> None:
    """x → a·x shifts every log density by −d·log a: nothing in a fit has a scale of its own."""
    points, labels = features[0][:3000], features[1][:3000]
    plain = fit(points, labels).component_log_densities(torch.from_numpy(points)).numpy()
    scaled = fit(points * factor, labels).component_log_densities(torch.from_numpy(points * factor)).numpy()
    np.testing.assert_allclose(scaled, plain - 10 * np.log(factor), rtol=1e-6, atol=1e-6)


def test_densities_are_invariant_to_translation(features: tuple[Floats, NDArray[np.int64]]) -> None:
    points, labels = features[0][:3000], features[1][:3000]
    plain = fit(points, labels).component_log_densities(torch.from_numpy(points)).numpy()
    moved = fit(points + 1e4, labels).component_log_densities(torch.from_numpy(points + 1e4)).numpy()
    np.testing.assert_allclose(moved, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "d", "expected"), [(1, 3, 1), (39, 3, 1), (40, 3, 1), (79, 3, 1), (80, 3, 2), (119, 3, 2), (120, 3, 3)]
)
def test_small_clusters_get_fewer_components(size: int, d: int, expected: int) -> None:
    """10 · (d + 1) points for each; with fewer than that the only one has a shrunk covariance."""
    assert components_for(size, d, 3) == expected
    rng = np.random.default_rng(size)
    points = np.concatenate([rng.normal(size=(size, d)), rng.normal(50, 1, (500, d))])
    mixtures = fit(points, np.repeat([4, 7], [size, 500]))
    assert int((mixtures.cluster == 4).sum()) <= expected
    assert int((mixtures.cluster == 7).sum()) == 3
    if expected < 3:
        shrunk = "; covariance shrunk toward the pooled one for cluster 4" if size < 40 else ""
        assert mixtures.note == f"fewer than 3 mixture components for cluster 4 of {size} points{shrunk}"
    else:
        assert mixtures.note == ""


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_constant_data_is_undefined(value: float) -> None:
    with pytest.raises(Undefined, match="constant features"):
        fit(np.full((30, 4), value), np.arange(30) % 3)


def test_the_generator_determines_the_result(features: tuple[Floats, NDArray[np.int64]]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = fit(*features, seed=3), fit(*features, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.means, two.means)
    assert torch.equal(one.precisions, two.precisions)


@pytest.mark.parametrize(("size", "d"), [(2, 3), (5, 3), (30, 10), (8, 1)])
def test_shrinkage_is_that_of_oas_in_whitened_coordinates(size: int, d: int) -> None:
    """Equation 23 of Chen et al., written out for points whitened by the pooled covariance."""
    rng = np.random.default_rng(size)
    pooled = np.cov(rng.normal(size=(50, d)) @ rng.normal(size=(d, d)), rowvar=False).reshape(d, d)
    points = rng.multivariate_normal(np.zeros(d), 3 * pooled, size)
    root = np.linalg.cholesky(pooled)
    white = np.cov(np.linalg.solve(root, points.T), bias=True).reshape(d, d)
    trace, square = np.trace(white), np.trace(white @ white)
    spread = (size + 1 - 2 / d) * (square - trace**2 / d)
    rho = min(1, ((1 - 2 / d) * square + trace**2) / spread) if d > 1 else 1.0
    expected = root @ ((1 - rho) * white + rho * trace / d * np.eye(d)) @ root.T
    covariance = torch.from_numpy(np.cov(points.T, bias=True).reshape(d, d))
    found = shrunk_covariance(covariance, size, torch.from_numpy(pooled)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_few_vectors_do_not_leave_new_ones_hundreds_of_nats_outside() -> None:
    """198 vectors of 10 dimensions in five clusters: no further off than a Gaussian of all of them."""
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(198, 10)), rng.normal(size=(500, 10))
    labels = KMeans(5, n_init=3, random_state=0).fit(train).labels_.astype(np.int64)
    mixtures = fit(train, labels)
    found = mixtures.component_log_densities(torch.from_numpy(test)).amax(1).numpy()
    plain = multivariate_normal(train.mean(0), np.cov(train.T)).logpdf(test)
    assert found.mean() > plain.mean() - 5
    assert found.min() > plain.min() - 20
    assert "covariance shrunk" in mixtures.note


@pytest.mark.parametrize("d", [3, 60])
def test_features_computed_in_blocks_give_the_same_fit(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for many dimensions, of which not all products are kept."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(3 * i, 1 + i, (700, d)) for i in range(3)])
    labels = np.repeat([0, 0, 1], 700)
    whole = fit(points, labels, 1 if d > 50 else 3)
    monkeypatch.setattr("genmeasures.statistics.mixture._KEPT", 0)
    monkeypatch.setattr("genmeasures.statistics.mixture._AT_A_TIME", 5000)
    blocks = fit(points, labels, 1 if d > 50 else 3)
    np.testing.assert_allclose(blocks.means, whole.means, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(blocks.precisions, whole.precisions, rtol=1e-6, atol=1e-6)


def test_mixtures_apart_are_as_likely_as_each_alone(features: tuple[Floats, NDArray[np.int64]]) -> None:
    """Of all vectors, and of those that are not held back, which the others do not influence."""
    points, labels = features
    held_back = np.arange(len(points)) % 4 == 3
    turned = points @ np.linalg.qr(np.random.default_rng(1).normal(size=(10, 10)))[0]

    def both(held: Floats) -> tuple[Mixtures, Mixtures]:
        apart = torch.from_numpy(np.where(held_back[:, None], held, turned))
        generator = torch.Generator().manual_seed(0)
        given = (torch.from_numpy(points), torch.from_numpy(labels), apart, torch.from_numpy(held_back))
        return fit_mixtures_apart(*given, 3, generator)

    whole, rest = both(turned)
    for mixtures, x, y in ((whole, points, labels), (rest, turned[~held_back], labels[~held_back])):
        alone = own_log_likelihood(fit(x, y), x, y).mean()
        assert own_log_likelihood(mixtures, x, y).mean() >= alone - 0.01 * abs(alone)
    again = both(turned + 1e3)[1]
    assert torch.equal(again.means, rest.means)
    assert torch.equal(again.precisions, rest.precisions)
