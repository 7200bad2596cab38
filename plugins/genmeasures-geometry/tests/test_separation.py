"""TransRate and GBC: brute force, integrals, bounds, and an error of public code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from genmeasures_geometry import ClassMoments, Moments, bhattacharyya, coding_rate, trans_rate
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from genmeasures.plugin import Undefined

Array = NDArray[np.float64]
Blobs = tuple[Array, NDArray[np.int64]]


def rate(z: Array, distortion: float) -> float:
    n, d = z.shape
    return float(np.linalg.slogdet(np.eye(d) + d / (n * distortion**2) * z.T @ z)[1]) / 2


@pytest.mark.parametrize("distortion", [0.01, 1.0])
def test_trans_rate_by_its_definition(blobs: Blobs, tensors: tuple[Tensor, Tensor], distortion: float) -> None:
    x, y = blobs
    z = x - x.mean(0)
    parts = sum((y == c).mean() * rate(z[y == c], distortion) for c in range(4))
    found = trans_rate(ClassMoments.of(*tensors), distortion)
    assert found == pytest.approx(rate(z, distortion) - parts, rel=1e-9)


def test_classes_are_weighed_by_their_size(blobs: Blobs, tensors: tuple[Tensor, Tensor]) -> None:
    """A public library weighs them by 1/K."""
    x, y = blobs
    z = x - x.mean(0)
    wrong = rate(z, 0.01) - sum(rate(z[y == c], 0.01) for c in range(4)) / 4
    assert abs(trans_rate(ClassMoments.of(*tensors)) / wrong - 1) > 0.02
    balanced = np.arange(120) % 4
    expected = rate(z, 0.01) - sum(rate(z[balanced == c], 0.01) for c in range(4)) / 4
    found = trans_rate(ClassMoments.of(tensors[0], torch.tensor(balanced)))
    assert found == pytest.approx(expected, rel=1e-8)


def test_the_weights_of_public_code_can_be_negative() -> None:
    z = torch.tensor([[-1.0], [1.0]] * 50 + [[-9.0], [9.0]])
    labels = torch.tensor([0] * 100 + [1] * 2)
    parts = [z[labels == c].double().numpy() for c in (0, 1)]
    assert rate(z.double().numpy(), 1.0) - sum(rate(part, 1.0) for part in parts) / 2 < -0.3
    assert trans_rate(ClassMoments.of(z, labels), 1.0) > 0


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_trans_rate_is_not_negative(seed: int) -> None:
    """log det is concave."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 3, dtype=torch.float64, generator=generator)
    y = torch.randint(3, (20,), generator=generator)
    if len(y.unique()) > 1:
        classes = ClassMoments.of(x, y)
        parts = [part.count / 20 * coding_rate(part, 0.1, x.mean(0)) for part in classes.parts()]
        assert coding_rate(Moments.of(x), 0.1) - sum(parts) > -1e-12
        assert trans_rate(classes, 0.1) >= 0


def test_the_code_of_the_source(tensors: tuple[Tensor, Tensor]) -> None:
    """It has 1/(nε) for D/(nε²)."""
    z = (tensors[0] - tensors[0].mean(0)).numpy()
    printed = np.linalg.slogdet(np.eye(6) + 1 / (120 * 1e-4) * z.T @ z)[1] / 2
    assert coding_rate(Moments.of(tensors[0]), (6 * 1e-4) ** 0.5) == pytest.approx(printed, rel=1e-9)


def distance(first: Array, second: Array, restrict: Callable[[Array], Array]) -> float:
    """Bhattacharyya distance by its formula, with the covariances restricted to a form."""
    one, other = (restrict(np.cov(x.T)) for x in (first, second))
    pooled = (one + other) / 2
    shift = first.mean(0) - second.mean(0)
    logs = np.linalg.slogdet(pooled)[1] - (np.linalg.slogdet(one)[1] + np.linalg.slogdet(other)[1]) / 2
    return float(shift @ np.linalg.solve(pooled, shift) / 8 + logs / 2)


FORMS: dict[str, Callable[[Array], Array]] = {
    "full": lambda c: c,
    "diagonal": lambda c: np.diag(np.diag(c)),
    "spherical": lambda c: np.eye(len(c)) * np.trace(c) / len(c),
}


@pytest.mark.parametrize("form", FORMS)
def test_bhattacharyya_by_its_formula(blobs: Blobs, tensors: tuple[Tensor, Tensor], form: str) -> None:
    x, y = blobs
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    expected = -sum(np.exp(-distance(x[y == i], x[y == j], FORMS[form])) for i, j in pairs)
    assert bhattacharyya(ClassMoments.of(*tensors), form) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_bhattacharyya_is_the_overlap_of_gaussians(form: str) -> None:
    """Integral of the root of the product of their densities, counted for both orders of the pair."""
    x = torch.tensor([[-1.0], [2.0], [0.5], [3.0], [9.0], [4.0]], dtype=torch.float64)
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    one, other = (norm(float(x[y == c].mean()), float(x[y == c].std())) for c in (0, 1))
    overlap, _ = quad(lambda t: np.sqrt(one.pdf(t) * other.pdf(t)), -60, 60, limit=200)
    assert bhattacharyya(ClassMoments.of(x, y), form) == pytest.approx(-2 * overlap, rel=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_bhattacharyya_at_its_bounds(form: str, tensors: tuple[Tensor, Tensor]) -> None:
    x, _ = tensors
    labels = torch.arange(3).repeat_interleave(120)
    assert bhattacharyya(ClassMoments.of(x.repeat(3, 1), labels), form) == pytest.approx(-6, rel=1e-9)
    apart = x.repeat(3, 1) + 1e4 * labels[:, None]
    assert bhattacharyya(ClassMoments.of(apart, labels), form) == 0


@pytest.mark.parametrize("form", ["full", "diagonal", "spherical"])
def test_scale_offset_and_dead_dimensions(tensors: tuple[Tensor, Tensor], form: str) -> None:
    """A dimension without variance tells no classes apart; it counts in the mean of a spherical covariance."""
    x, y = tensors
    value = bhattacharyya(ClassMoments.of(x, y), form)
    assert bhattacharyya(ClassMoments.of(1024 * x + 1e6, y), form) == pytest.approx(value, rel=1e-6)
    if form != "spherical":
        dead = torch.cat([x, torch.full((120, 2), 0.37, dtype=torch.float64)], 1)
        assert bhattacharyya(ClassMoments.of(dead, y), form) == pytest.approx(value, rel=1e-9)


def test_what_has_no_value(tensors: tuple[Tensor, Tensor]) -> None:
    x, y = tensors
    for function in (trans_rate, bhattacharyya):
        with pytest.raises(Undefined, match="at least 2 classes"):
            function(ClassMoments.of(x, y * 0))
        with pytest.raises(Undefined, match="constant features"):
            function(ClassMoments.of(torch.full((4, 2), 0.37), torch.tensor([0, 0, 1, 1])))
        with pytest.raises(Undefined, match="not finite"):
            function(ClassMoments.of(torch.tensor([[1.0], [2.0], [3.0], [torch.inf]]), torch.tensor([0, 0, 1, 1])))
    few = ClassMoments.of(torch.cat([x, x[:3] + 1]), torch.cat([y, y.new_full((3,), 9)]))
    with pytest.raises(Undefined, match="covariance of a class is singular: use covariance=spherical"):
        bhattacharyya(few, "full")
    assert bhattacharyya(few, "spherical") < 0
    with pytest.raises(Undefined, match="a class has no variance"):
        bhattacharyya(
            ClassMoments.of(torch.tensor([[1.0], [1.0], [3.0], [4.0]]), torch.tensor([0, 0, 1, 1])), "spherical"
        )
    with pytest.raises(Undefined, match="at least 2 vectors"):
        bhattacharyya(ClassMoments.of(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1])))
