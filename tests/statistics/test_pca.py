"""PCA, compared with scikit-learn, which decomposes the float64 data matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from genmeasures.errors import Undefined
from genmeasures.statistics import pca
from genmeasures.statistics.pca import fit_leading, fit_pca


def vectors(n: int, k: int, offset: float = 0.0, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    """float32 (n, k) whose dimensions have different variances and are correlated."""
    rng = np.random.default_rng(seed)
    r = min(k, 60) if rank is None else rank
    mixing = 1.1 ** -np.arange(r)[:, None] * rng.normal(size=(r, k)) / np.sqrt(r)
    return torch.from_numpy((rng.normal(size=(n, r)) @ mixing + offset).astype(np.float32))


CASES = {
    "primal": (200, 12, 5, 0.0),
    "primal, more rows than one block": (9000, 6, 3, 0.0),
    "dual": (20, 300, 7, 0.0),
    "dual, more columns than one block": (15, 20_000, 5, 0.0),
    "n = k": (30, 30, 10, 0.0),
    "all components": (60, 30, 30, 0.0),
    "mean 1e4, spread 1": (500, 8, 4, 1e4),
    "dual, mean 1e4, spread 1": (20, 100, 4, 1e4),
    "d > k": (50, 4, 10, 0.0),
    "d > n - 1": (5, 100, 10, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_components_variances_and_projections_agree_with_sklearn(case: str) -> None:
    n, k, d, offset = CASES[case]
    x = vectors(n, k, offset)
    found = fit_pca(x, d)[0]
    expected_d = min(d, k, n - 1)
    reference = PCA(expected_d, svd_solver="full").fit(x.double().numpy())

    assert found.components.shape == (expected_d, k)
    assert found.components.dtype == found.mean.dtype == found.variance.dtype == torch.float64
    np.testing.assert_allclose(found.mean.numpy(), reference.mean_, rtol=1e-12)
    rounding = 1e-14 * found.total_variance  # of a symmetric eigenproblem: relative to the largest eigenvalue
    np.testing.assert_allclose(found.variance.numpy(), reference.explained_variance_, rtol=1e-9, atol=rounding)
    np.testing.assert_allclose(found.total_variance, x.double().var(0).sum().item(), rtol=1e-9)
    sign = np.sign((found.components.numpy() * reference.components_).sum(1))
    np.testing.assert_allclose(found.components.numpy(), sign[:, None] * reference.components_, atol=1e-8)

    fresh = vectors(17, k, offset, seed=1)
    projected = reference.transform(fresh.double().numpy()) * sign
    np.testing.assert_allclose(found.project(fresh).numpy(), projected, atol=1e-8 * np.abs(projected).max() + 1e-9)


@pytest.mark.parametrize(("n", "k"), [(100, 20), (15, 80)])
def test_directions_without_variance_complete_the_basis(n: int, k: int) -> None:
    """Five components of data of rank 3, as of a layer with dead channels."""
    x = vectors(n, k, rank=3)
    x[:, 5:] = 0  # exactly of rank ≤ 5 with zero dimensions, and in float32 as well
    x[:, 3:5] = 0
    found = fit_pca(x, 5)[0]
    reference = PCA(3, svd_solver="full").fit(x.double().numpy())
    np.testing.assert_allclose(found.variance[:3].numpy(), reference.explained_variance_, rtol=1e-9)
    assert float(found.variance[3:].max()) <= 1e-12 * found.total_variance
    np.testing.assert_allclose((found.components @ found.components.T).numpy(), np.eye(5), atol=1e-9)
    projected = found.project(x)
    assert float(projected[:, 3:].abs().max()) <= 1e-7 * float(projected.abs().max())
    np.testing.assert_allclose(
        np.abs(projected[:, :3].numpy()), np.abs(reference.transform(x.double().numpy())), atol=1e-9
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.integers(1, 40), st.integers(1, 45), st.sampled_from([0.0, 100.0]), st.integers(0, 99))
def test_projections_are_uncorrelated_and_lose_no_more_than_they_must(
    n: int, k: int, d: int, offset: float, seed: int
) -> None:
    x = vectors(n, k, offset, seed=seed)
    found = fit_pca(x, d)[0]
    projected = found.project(x)
    covariance = (projected.T @ projected / (n - 1)).numpy()
    scale = found.total_variance
    np.testing.assert_allclose(projected.mean(0).numpy(), 0, atol=1e-9 * scale**0.5)
    np.testing.assert_allclose(covariance, np.diag(found.variance.numpy()), atol=1e-9 * scale)
    identity = np.eye(len(found.components))
    np.testing.assert_allclose((found.components @ found.components.T).numpy(), identity, atol=1e-7)
    assert (np.diff(found.variance.numpy()) <= 1e-12 * scale).all()
    largest = found.components.gather(1, found.components.abs().argmax(1, keepdim=True))
    assert bool((largest > 0).all())
    if d >= min(k, n - 1):  # nothing is left out: distances stay
        np.testing.assert_allclose(
            torch.cdist(projected, projected).numpy(),
            torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").numpy(),
            atol=1e-6 * scale**0.5,
        )


def test_long_vectors_need_no_square_matrix_of_their_length() -> None:
    """400 000 × 400 000 in float64 would take 1.2 TB."""
    x = torch.zeros(6, 400_000)
    x[:, ::7] = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 57143)).astype(np.float32))
    found = fit_pca(x, 3)[0]
    gram = (x.double() - x.double().mean(0)) @ (x.double() - x.double().mean(0)).T
    np.testing.assert_allclose(found.variance.numpy(), np.linalg.eigvalsh(gram.numpy())[::-1][:3] / 5, rtol=1e-9)


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        (torch.ones(1, 5), "at least 2 vectors for a PCA, got 1"),
        (torch.full((7, 5), 0.1), "constant features"),
        (torch.full((7, 5), 1e4) + torch.arange(5) / 3, "constant features"),
        (torch.full((3, 50), 0.3), "constant features"),
        (torch.zeros(0, 5), "at least 2 vectors for a PCA, got 0"),
    ],
)
def test_samples_without_variance_are_undefined(given_: torch.Tensor, reason: str) -> None:
    with pytest.raises(Undefined, match=reason):
        fit_pca(given_, 3)


def test_the_sample_is_not_changed() -> None:
    x = vectors(50, 6, 3.0)
    before: NDArray[np.float32] = x.numpy().copy()
    fit_pca(x, 3)[0].project(x)
    np.testing.assert_array_equal(x.numpy(), before)


@pytest.fixture
def iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of any size are fitted as large ones are, and nothing else would do."""
    monkeypatch.setattr(pca, "_EXACT", 20)
    monkeypatch.setattr(pca, "_primal", None)
    monkeypatch.setattr(pca, "_dual", None)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize(("n", "k"), [(600, 250), (120, 900)])
@pytest.mark.usefixtures("iterated")
def test_large_samples_are_fitted_by_iteration(n: int, k: int, offset: float) -> None:
    x = vectors(n, k, offset)
    found = fit_pca(x, 7)[0]
    reference = PCA(7, svd_solver="full").fit(x.double().numpy())
    np.testing.assert_allclose(found.variance.numpy(), reference.explained_variance_, rtol=1e-12)
    np.testing.assert_allclose(found.total_variance, x.double().var(0).sum().item(), rtol=1e-12)
    sign = np.sign((found.components.numpy() * reference.components_).sum(1))
    # Residuals of 1e-9 of the largest eigenvalue, over gaps of a tenth of it.
    np.testing.assert_allclose(found.components.numpy(), sign[:, None] * reference.components_, atol=1e-7)


@pytest.mark.usefixtures("iterated")
def test_iteration_completes_the_basis_and_is_reproducible() -> None:
    x = vectors(300, 80, rank=3)
    x[:, 5:] = 0
    first, second = fit_pca(x, 6)[0], fit_pca(x, 6)[0]
    np.testing.assert_allclose((first.components @ first.components.T).numpy(), np.eye(6), atol=1e-9)
    assert float(first.variance[5:].max()) <= 1e-12 * first.total_variance
    assert torch.equal(first.components, second.components)


def test_samples_on_which_iteration_does_not_converge_are_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = vectors(300, 80)
    exact = fit_pca(x, 6)[0]
    monkeypatch.setattr(pca, "_EXACT", 20)
    monkeypatch.setattr(pca, "_STEPS", 1)
    assert torch.equal(fit_pca(x, 6)[0].components, exact.components)


@pytest.mark.usefixtures("iterated")
def test_iteration_on_constant_features_is_undefined() -> None:
    with pytest.raises(Undefined, match="constant features"):
        fit_pca(torch.full((50, 30), 0.1), 3)


@pytest.mark.parametrize("shape", [(1000, 400), (600, 1500), (1000, 576)])
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (100.0, 1.0), (0.0, 1e-6), (0.0, 1e-20)])
def test_leading_components_are_those_of_sklearn(shape: tuple[int, int], offset: float, scale: float) -> None:
    """Residuals of 1e-5 of the largest eigenvalue lose its square, and turn what they span by a little more."""
    rng = np.random.default_rng(0)
    spectrum = 1 / np.arange(1, shape[1] + 1)
    vectors = ((rng.normal(size=shape) * spectrum + offset) @ np.linalg.qr(rng.normal(size=(shape[1],) * 2))[0]) * scale
    vectors = vectors.astype(np.float32)
    found = fit_leading(torch.from_numpy(vectors), 10)
    exact = PCA(10, svd_solver="full").fit(vectors.astype(np.float64))
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(10), atol=1e-10)
    np.testing.assert_allclose(found.variance, exact.explained_variance_, atol=1e-6 * exact.explained_variance_[0])
    captured = np.trace(found.components.numpy() @ np.cov(vectors.T.astype(np.float64)) @ found.components.numpy().T)
    np.testing.assert_allclose(captured, exact.explained_variance_.sum(), rtol=1e-7)
    cosines = np.linalg.svd(found.components.numpy() @ exact.components_.T)[1]
    assert cosines.min() > 1 - 1e-4
    assert float(found.components.gather(1, found.components.abs().argmax(1, keepdim=True)).min()) > 0


def test_leading_components_of_few_dimensions_and_of_nothing() -> None:
    """Where fewer directions vary than are asked for, the others are any."""
    low = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(3, 400)
    found = fit_leading(low, 10)
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(10), atol=1e-8)
    np.testing.assert_allclose(found.variance[3:], 0, atol=1e-5 * float(found.variance[0]))
    with pytest.raises(Undefined, match="constant features"):
        fit_leading(torch.ones(500, 400), 10)
