"""Shift between splits: SciPy, torchmetrics, closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from genmeasures_geometry import Moments, coral, frechet_distance, mmd
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist
from torch import Tensor

from genmeasures.plugin import Undefined

TORCHMETRICS_FID = 2.2939012758355464
"""Of torchmetrics 1.9.0: _compute_fid of torchmetrics.image.fid on the means and numpy.cov of :func:`pair`, float64."""

Array = NDArray[np.float64]


def pair() -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((200, 5)), 1.5 * rng.standard_normal((300, 5)) + 0.3


def moments(*arrays: Array) -> list[Moments]:
    return [Moments.of(torch.tensor(array)) for array in arrays]


def test_frechet_distance_against_scipy(tensors: tuple[Tensor, Tensor]) -> None:
    x = tensors[0].numpy()
    y = x[:50] @ np.random.default_rng(1).standard_normal((6, 6)) + 2
    one, other = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + other - 2 * sqrtm(one @ other).real)
    assert frechet_distance(*moments(x, y)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_against_torchmetrics() -> None:
    assert frechet_distance(*moments(*pair())) == pytest.approx(TORCHMETRICS_FID, rel=1e-10)


def test_closed_forms_of_gaussians_that_share_axes() -> None:
    """‖μ − μ′‖² + Σ (σ − σ′)², and the squared difference of variances."""
    x = torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values, axes = Moments.of(x).axes()
    white = (x - x.mean(0)) @ axes / values.sqrt() * 499**0.5
    first, second = torch.tensor([1.0, 2.0, 3.0, 0.0]).double(), torch.tensor([4.0, 2.0, 1.0, 5.0]).double()
    pair = Moments.of(white * first + 1), Moments.of(white * second)
    assert frechet_distance(*pair) == pytest.approx(4 + float((first - second).square().sum()), rel=1e-9)
    assert coral(*pair) == pytest.approx(float((first**2 - second**2).square().sum()) / 64, rel=1e-9)


def test_equal_sets_have_no_distance(tensors: tuple[Tensor, Tensor]) -> None:
    """Also far from the origin, and where a direction has no variance."""
    x = torch.cat([tensors[0], tensors[0][:, :1]], 1) + 1e6
    one, other = Moments.of(x), Moments.of(x.flip(0))
    trace = float(one.covariance().trace())
    assert frechet_distance(one, other) == pytest.approx(0, abs=1e-7 * trace)  # a root of rounding errors of 1e-16
    assert coral(one, other) == pytest.approx(0, abs=1e-12 * trace**2)


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_frechet_distance_is_a_squared_metric(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [
        Moments.of(torch.randn(9, 3, generator=generator) @ torch.randn(3, 3, generator=generator)) for _ in range(3)
    ]
    a, b, c = (max(0.0, frechet_distance(parts[i], parts[j])) ** 0.5 for i, j in ((0, 1), (1, 2), (0, 2)))
    assert c <= a + b + 1e-7
    assert frechet_distance(parts[1], parts[0]) == pytest.approx(a**2, rel=1e-7, abs=1e-12)


def test_coral_by_its_definition() -> None:
    x, y = pair()
    expected = np.linalg.norm(np.cov(x.T) - np.cov(y.T)) ** 2 / 100
    assert coral(*moments(x, y)) == pytest.approx(expected, rel=1e-9)


def brute(x: Array, y: Array, sigma: float) -> float:
    """The unbiased estimate by loops over pairs."""

    def kernel(a: Array, b: Array) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * sigma**2)))

    def within(z: Array) -> float:
        return float(np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]))

    return within(x) + within(y) - 2 * float(np.mean([kernel(a, b) for a in x for b in y]))


def test_mmd_by_its_definition() -> None:
    x, y = pair()
    x, y = x[:30] + 1e3, y[:20] + 1e3
    found = mmd(torch.tensor(x), torch.tensor(y), bandwidth=1.3)
    assert found == pytest.approx(brute(x, y, 1.3), rel=1e-9)
    distances = np.sort(pdist(np.concatenate([x, y])))
    median = float(distances[(len(distances) - 1) // 2])  # torch takes the lower one of two
    assert mmd(torch.tensor(x), torch.tensor(y)) == pytest.approx(brute(x, y, median), rel=1e-9)


def test_mmd_is_unbiased() -> None:
    """The biased estimate, with the diagonal, is positive for sets of one distribution; this one is 0 on average."""
    generator = torch.Generator().manual_seed(0)
    values, biased = [], []
    for _ in range(400):
        x, y = torch.randn(2, 10, 3, dtype=torch.float64, generator=generator)
        values.append(mmd(x, y, bandwidth=1.5))
        kernels = [np.exp(-(cdist(a, b) ** 2) / 4.5).mean() for a, b in ((x, x), (y, y), (x, y))]
        biased.append(kernels[0] + kernels[1] - 2 * kernels[2])
    error = np.std(values) / 20
    assert abs(np.mean(values)) < 4 * error
    assert np.mean(biased) > 20 * error
    assert min(values) < 0


def test_mmd_is_invariant_to_scale_and_grows_with_the_shift() -> None:
    x, y = (torch.tensor(array) for array in pair())
    assert mmd(1024 * x, 1024 * y) == pytest.approx(mmd(x, y), rel=1e-9)
    shifts = [mmd(x, x.flip(1) + shift) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert shifts == sorted(shifts)


def test_what_has_no_value() -> None:
    one, two = torch.rand(1, 2), torch.rand(5, 2)
    with pytest.raises(Undefined, match="at least 2 vectors of each split, got 1 and 5"):
        mmd(one, two)
    with pytest.raises(Undefined, match="half of the distances between vectors are 0"):
        mmd(torch.full((5, 2), 0.37), torch.full((5, 2), 0.37))
    with pytest.raises(Undefined, match="not finite"):
        mmd(two, torch.full((5, 2), torch.nan))
    for distance in (frechet_distance, coral):
        with pytest.raises(Undefined, match="at least 2 vectors in the sample, got 1"):
            distance(Moments.of(two), Moments.of(one))
        with pytest.raises(Undefined, match="not finite"):
            distance(Moments.of(two), Moments.of(two / 0))
