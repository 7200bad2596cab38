"""Streamed moments: against NumPy, in any batches, and far from the origin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from genmeasures_geometry import ClassMeans, ClassMoments, Moments
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genmeasures.plugin import Undefined

ROUNDING = 1e-11
"""Relative difference allowed between sums of a few hundred numbers in float64, in another order."""
FAR = 1e6
"""Offset of vectors with a spread of 1; float64 resolves it to 1e-10."""
OFFSET = 1e-8
"""Relative difference allowed there: the vectors themselves are rounded by 1e-10 of their spread."""


def direct(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, scatter, cubes and quartic from their definitions."""
    y = x - x.mean(0)
    square = y.square().sum(1)
    return x.mean(0), y.T @ y, square @ y, square @ square


def assert_equal(moments: Moments, expected: tuple[Tensor, ...], tolerance: float) -> None:
    found = (moments.mean, moments.scatter, moments.cubes, moments.quartic)
    third = float(expected[3]) ** 0.75  # the cubes of symmetric vectors cancel
    for one, other, least in zip(found, expected, (0.0, 0.0, third, 0.0), strict=True):
        scale = max(float(other.abs().max()), least)
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("batch", [1, 7, 120, 1000])
def test_moments_in_any_batches(tensors: tuple[Tensor, Tensor], batch: int) -> None:
    x, _ = tensors
    moments = Moments()
    for rows in x.split(batch):
        moments.add(rows)
    assert moments.count == 120
    assert_equal(moments, direct(x), ROUNDING)
    np.testing.assert_allclose(moments.covariance(), np.cov(x.T), rtol=1e-10)


def test_a_large_offset_costs_no_digits(tensors: tuple[Tensor, Tensor]) -> None:
    x, _ = tensors
    moments = Moments()
    for rows in (x + FAR).split(11):
        moments.add(rows)
    _, *expected = direct(x)
    assert_equal(moments, (x.mean(0) + FAR, *expected), OFFSET)
    # What sums of squares leave of it:
    naive = ((x + FAR).square().sum(0) - 120 * (x + FAR).mean(0).square()) / 119
    assert (naive / moments.covariance().diagonal() - 1).abs().max() > 1e3 * OFFSET


def test_vectors_far_from_those_before_are_merged_without_loss(tensors: tuple[Tensor, Tensor]) -> None:
    """The first batch says nothing of the mean of all."""
    x, _ = tensors
    moments = Moments()
    for rows in (x[:5] - FAR, x[5:]):
        moments.add(rows)
    assert_equal(moments, direct(torch.cat([x[:5] - FAR, x[5:]])), ROUNDING)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_merging_is_adding(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(size, 3, dtype=torch.float64, generator=generator) + 5 for size in sizes]
    merged = Moments()
    for part in parts:
        merged.merge(Moments.of(part))
    merged.merge(Moments())
    if sum(sizes) > 1:
        assert_equal(merged, direct(torch.cat(parts)), ROUNDING)


def test_axes_are_those_of_an_svd(tensors: tuple[Tensor, Tensor]) -> None:
    x = torch.cat([tensors[0], tensors[0][:, :1]], 1)  # a direction without variance
    values, axes = Moments.of(x).axes()
    expected = torch.linalg.svdvals(x - x.mean(0))[:6].square()
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(axes.T @ axes, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)
    root = Moments.of(x).raw_root()
    torch.testing.assert_close(root.T @ root, x.T @ x, rtol=1e-10, atol=1e-9)


def test_what_has_no_moments() -> None:
    with pytest.raises(Undefined, match="at least 2 vectors in the sample, got 0"):
        Moments().covariance()
    with pytest.raises(Undefined, match="at least 2 vectors in the sample, got 1"):
        Moments.of(torch.ones(1, 2)).covariance()
    with pytest.raises(Undefined, match="not finite"):
        Moments.of(torch.tensor([[1.0], [float("inf")]])).covariance()
    with pytest.raises(Undefined, match="constant features"):
        Moments.of(torch.full((100, 3), 0.37)).axes()


def test_class_means_in_any_batches(tensors: tuple[Tensor, Tensor]) -> None:
    x, y = tensors
    means = ClassMeans()
    for rows, labels in zip((x + FAR).split(13), y.split(13), strict=True):
        means.add(rows, 3 * labels - 1)
    assert means.labels().tolist() == [-1, 2, 5, 8]
    assert means.counts().tolist() == torch.bincount(y).tolist()
    expected = torch.stack([x[y == c].mean(0) for c in range(4)])
    torch.testing.assert_close(means.means() - FAR, expected, rtol=0, atol=1e-9)


def test_moments_of_classes(tensors: tuple[Tensor, Tensor]) -> None:
    x, y = tensors
    classes = ClassMoments()
    for rows, labels in zip(x.split(17), y.split(17), strict=True):
        classes.add(rows, labels)
    for c, part in enumerate(classes.parts()):
        assert_equal(part, direct(x[y == c]), ROUNDING)
    assert_equal(classes.total(), direct(x), ROUNDING)
