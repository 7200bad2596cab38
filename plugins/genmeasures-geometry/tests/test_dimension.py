"""Intrinsic dimension: scikit-dimension, brute force and balls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from genmeasures_geometry import levina_bickel, local_dimensions, mackay_ghahramani, neighbor_distances, two_nn
from scipy.spatial.distance import cdist
from torch import Tensor

from genmeasures.plugin import Undefined

TWO_NN, LEVINA_BICKEL, MACKAY_GHAHRAMANI = 3.294980372447915, 3.268598232068929, 3.1149184770556557
"""Of scikit-dimension 0.5.0: skdim.id.TwoNN().fit(x).dimension_, and skdim.id.MLE().fit(x, n_neighbors=20, comb=c)
.dimension_ with c = "mean" and "mle", for the vectors of :func:`plane`."""


ROUNDING = 1e-10
"""Relative difference allowed: squared distances of products lose up to six digits."""


def plane() -> Tensor:
    """500 vectors (8,) near a subspace of three dimensions."""
    rng = np.random.default_rng(0)
    inside = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 8))
    return torch.tensor(inside + 0.05 * rng.standard_normal((500, 8)))


def test_against_scikit_dimension() -> None:
    distances = neighbor_distances(plane(), 20)
    assert two_nn(distances) == pytest.approx(TWO_NN, rel=ROUNDING)
    assert levina_bickel(distances) == pytest.approx(LEVINA_BICKEL, rel=ROUNDING)
    assert mackay_ghahramani(distances) == pytest.approx(MACKAY_GHAHRAMANI, rel=ROUNDING)


def test_the_two_means_are_named_apart() -> None:
    distances = neighbor_distances(plane(), 20)
    local = local_dimensions(distances)
    assert levina_bickel(distances) == pytest.approx(float(local.mean()), rel=1e-12)
    assert mackay_ghahramani(distances) == pytest.approx(1 / float((1 / local).mean()), rel=1e-12)
    assert levina_bickel(distances) - mackay_ghahramani(distances) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_are_those_of_differences(dtype: torch.dtype) -> None:
    x = plane().to(dtype)
    expected = np.sort(cdist(x.double(), x.double()), 1)[:, 1:6]
    found = neighbor_distances(x, 5)
    np.testing.assert_allclose(np.sort(found, 0), np.sort(expected, 0), rtol=ROUNDING)


def test_close_neighbors_far_from_the_origin() -> None:
    """Products of vectors at 1e6 have no digits of distances of 1e-3 left."""
    x = torch.rand(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-3 + 1e6
    expected = np.sort(cdist(x, x), 1)[:, 1:4]
    np.testing.assert_allclose(np.sort(neighbor_distances(x, 3), 0), np.sort(expected, 0), rtol=1e-6)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_uniform_ball(d: int) -> None:
    """The bias at the boundary of a ball grows with d; the standard errors are below 3 %."""
    generator = torch.Generator().manual_seed(d)
    x = torch.randn(4000, d, dtype=torch.float64, generator=generator)
    radius = torch.rand(4000, 1, dtype=torch.float64, generator=generator) ** (1 / d)
    ball = torch.zeros(4000, 12, dtype=torch.float64)
    ball[:, :d] = radius * x / x.norm(dim=1, keepdim=True)
    distances = neighbor_distances(ball, 10)
    assert two_nn(distances) == pytest.approx(d, rel=0.08)
    assert mackay_ghahramani(distances) == pytest.approx(d, rel=0.1)


def test_duplicates_are_removed_first() -> None:
    x = plane()
    copies = torch.cat([x, x[:100], -0.0 * x[:1], 0.0 * x[:1]])
    with_zero = torch.cat([x, 0.0 * x[:1]])
    torch.testing.assert_close(neighbor_distances(copies, 3), neighbor_distances(with_zero, 3), rtol=ROUNDING, atol=0)


def test_order_and_scale_change_nothing() -> None:
    x = plane()
    turned = neighbor_distances(4 * x.flip(0), 6)
    assert two_nn(turned) == pytest.approx(two_nn(neighbor_distances(x, 6)), rel=ROUNDING)
    assert levina_bickel(turned) == pytest.approx(levina_bickel(neighbor_distances(x, 6)), rel=ROUNDING)


def test_what_has_no_value() -> None:
    with pytest.raises(Undefined, match="more than 2 distinct vectors in the sample, got 2"):
        neighbor_distances(torch.tensor([[0.0], [1.0], [1.0]]), 2)
    with pytest.raises(Undefined, match="more than 2 distinct vectors in the sample, got 0"):
        neighbor_distances(torch.zeros(0, 3), 2)
    with pytest.raises(Undefined, match="not finite"):
        neighbor_distances(torch.tensor([[0.0], [1.0], [torch.nan]]), 2)
    corners = neighbor_distances(torch.eye(4), 3)
    with pytest.raises(Undefined, match="equally far away"):
        two_nn(corners)
    with pytest.raises(Undefined, match="makes the mean infinite"):
        levina_bickel(corners)
    with pytest.raises(Undefined, match="of all vectors are equally far away"):
        mackay_ghahramani(corners)
    with pytest.raises(Undefined, match="too few for a fit"):
        two_nn(torch.tensor([[1.0, 2.0], [1.0, 3.0]]).double())
    assert np.isfinite(two_nn(neighbor_distances(plane(), 2), discard=0.0))
