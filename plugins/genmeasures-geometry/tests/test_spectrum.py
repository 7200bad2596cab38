"""Effective dimensions: NumPy, closed forms, and an error of public code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from genmeasures_geometry import Moments, alpha_req, participation_ratio, rank_me, stable_rank
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from torch import Tensor

from genmeasures.plugin import Undefined


def test_against_numpy(tensors: tuple[Tensor, Tensor]) -> None:
    x = tensors[0] + 3
    covariance = np.cov(x.T)
    variances, _ = Moments.of(x).axes()
    expected = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    assert participation_ratio(variances) == pytest.approx(expected, rel=1e-10)
    centered = (x - x.mean(0)).numpy()
    expected = (np.linalg.norm(centered) / np.linalg.norm(centered, 2)) ** 2
    assert stable_rank(variances) == pytest.approx(expected, rel=1e-10)
    expected = np.exp(entropy(np.linalg.svd(x.numpy(), compute_uv=False)))
    assert rank_me(torch.linalg.svdvals(Moments.of(x).raw_root())) == pytest.approx(expected, rel=1e-10)


def test_rank_me_takes_singular_values_not_their_squares(tensors: tuple[Tensor, Tensor]) -> None:
    """A public code takes eigenvalues of the covariance."""
    singular = np.linalg.svd(tensors[0].numpy(), compute_uv=False)
    right, wrong = np.exp(entropy(singular)), np.exp(entropy(singular**2))
    found = rank_me(torch.linalg.svdvals(Moments.of(tensors[0]).raw_root()))
    assert found == pytest.approx(right, rel=1e-10)
    assert found - wrong > 0.2


def test_rank_me_of_vectors_far_from_the_origin() -> None:
    """The second moment in float64 has no digits of the small singular values left; its root has."""
    x = 1e6 + torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(x)
    found = torch.linalg.svdvals(Moments.of(x).raw_root())[:4]
    torch.testing.assert_close(found, singular, rtol=1e-8, atol=0)


@given(st.integers(1, 30), st.floats(1e-8, 1e8))
def test_equal_values_are_counted(k: int, value: float) -> None:
    values = torch.full((k,), value, dtype=torch.float64)
    for dimension in (participation_ratio, stable_rank, rank_me):
        assert dimension(torch.cat([values, values.new_zeros(3)])) == pytest.approx(k, rel=1e-12)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20))
def test_bounds_and_order(numbers: list[float]) -> None:
    values = torch.tensor(numbers, dtype=torch.float64)
    least, middle = stable_rank(values), participation_ratio(values)
    assert 1 - 1e-12 <= least <= middle * (1 + 1e-12) <= len(values) * (1 + 1e-11)
    assert participation_ratio(values) <= rank_me(values) * (1 + 1e-12) <= len(values) * (1 + 1e-11)


@pytest.mark.parametrize(("n", "d"), [(200, 100), (1000, 50)])
def test_isotropic_gaussian(n: int, d: int) -> None:
    """PR → dn/(n + d), by the second moment of the Marchenko–Pastur law."""
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    variances, _ = Moments.of(x).axes()
    # Σλ² has a relative standard deviation of about 2/n.
    assert participation_ratio(variances) == pytest.approx(d * n / (n + d), rel=8 / n + 0.005)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("k", [2, 10, 300])
def test_exponent_of_a_power_law(alpha: float, k: int) -> None:
    values = 7 * torch.arange(1, k + 1, dtype=torch.float64) ** -alpha
    assert alpha_req(values.flip(0)) == pytest.approx(alpha, rel=1e-10)


def test_exponent_is_a_weighted_fit(tensors: tuple[Tensor, Tensor]) -> None:
    variances, _ = Moments.of(tensors[0]).axes()
    ranks = np.arange(1, 7)
    slope = np.polyfit(np.log(ranks), np.log(variances.numpy()), 1, w=ranks**-0.5)[0]  # polyfit squares its weights
    assert alpha_req(variances) == pytest.approx(-slope, rel=1e-9)
    plain = np.polyfit(np.log(ranks), np.log(variances.numpy()), 1)[0]
    assert abs(alpha_req(variances) + plain) > 0.01


def test_what_has_no_value() -> None:
    for function in (participation_ratio, stable_rank, rank_me, alpha_req):
        with pytest.raises(Undefined, match="no direction has variance"):
            function(torch.zeros(3))
        with pytest.raises(Undefined, match="not finite"):
            function(torch.tensor([1.0, torch.nan]))
    with pytest.raises(Undefined, match="a single direction"):
        alpha_req(torch.tensor([1.0, 0.0]))
