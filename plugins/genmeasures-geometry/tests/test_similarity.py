"""Linear CKA: definitions, invariance, and the bias that the minibatch estimate is without."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from genmeasures_geometry import MinibatchCKA, hsic, linear_cka
from torch import Tensor

from genmeasures.plugin import Undefined


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def minibatch(x: Tensor, y: Tensor, size: int) -> float:
    cka = MinibatchCKA()
    for one, other in zip(x.split(size), y.split(size), strict=True):
        cka.add(one, other)
    return cka.value()


@pytest.mark.parametrize("k", [4, 200])
def test_cka_by_its_definition(k: int) -> None:
    """With centering matrices, from features or from their products."""
    x, y = draw(50, k), draw(50, 7, seed=1) + draw(50, k)[:, :1]
    center = np.eye(50) - 1 / 50
    left, right = (center @ z.numpy() @ z.numpy().T @ center for z in (x + 3, y))
    expected = np.trace(left @ right) / np.linalg.norm(left) / np.linalg.norm(right)
    assert linear_cka(x + 3, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("k", [4, 100])
def test_rotation_scale_and_offset_change_nothing(k: int, rotation: Callable[[int], Tensor]) -> None:
    x, y = draw(50, k), draw(50, k, seed=1)
    assert linear_cka(x, x) == pytest.approx(1, rel=1e-12)
    moved = 7 * x @ rotation(k) + 1e6
    # Vectors at 1e6 are rounded by 1e-10 of their spread.
    assert linear_cka(moved, x) == pytest.approx(1, rel=1e-8)
    assert linear_cka(moved, y) == pytest.approx(linear_cka(x, y), rel=1e-8)
    assert minibatch(moved, x, 25) == pytest.approx(1, rel=1e-8)
    assert minibatch(moved, y, 25) == pytest.approx(minibatch(x, y, 25), rel=1e-6, abs=1e-8)


def test_uncorrelated_features_have_no_similarity() -> None:
    x = torch.tensor([[1.0], [-1.0], [0.0], [0.0]])
    assert linear_cka(x, x.roll(2, 0)) == 0


def test_hsic_is_the_u_statistic() -> None:
    """The mean over all ordered choices of four different inputs."""
    k, q = (z @ z.T for z in (draw(7, 3), draw(7, 2, seed=1)))
    total, count = 0.0, 0
    for i, j, u, v in itertools.permutations(range(7), 4):
        total += float(k[i, j] * (q[i, j] + q[u, v] - 2 * q[i, u]))
        count += 1
    assert hsic(k, q) == pytest.approx(total / count, rel=1e-10)
    filled = k + 5 * torch.eye(7)
    assert hsic(filled, q) == pytest.approx(hsic(k, q), rel=1e-12)
    assert hsic(k + 100, q) == pytest.approx(hsic(k, q), rel=1e-9)


def test_minibatches_average_hsic_before_the_quotient() -> None:
    x, y = draw(40, 3), draw(40, 3, seed=1) + draw(40, 3)
    parts = [(a @ a.T, b @ b.T) for a, b in zip(x.split(10), y.split(10), strict=True)]
    sums = [sum(hsic(*(part[i] for i in pair)) for part in parts) for pair in ((0, 1), (0, 0), (1, 1))]
    assert minibatch(x, y, 10) == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), rel=1e-9)
    quotients = [minibatch(a, b, 10) for a, b in zip(x.split(10), y.split(10), strict=True)]
    assert abs(minibatch(x, y, 10) - np.mean(quotients)) > 1e-3


def test_few_inputs_bias_cka_but_not_the_minibatch_estimate() -> None:
    """Of independent features, with more dimensions than inputs."""
    x, y = draw(2000, 100), draw(2000, 100, seed=1)
    assert linear_cka(x[:20], y[:20]) > 0.7
    assert abs(minibatch(x, y, 20)) < 0.02
    shared = x + 0.5 * y
    assert minibatch(x, shared, 20) == pytest.approx(minibatch(x, shared, 500), abs=0.02)


def test_what_has_no_value() -> None:
    x = draw(10, 3)
    with pytest.raises(Undefined, match="vectors of one representation are equal"):
        linear_cka(x, torch.full((10, 2), 0.37))
    with pytest.raises(Undefined, match="as many vectors of each, got 10 and 9"):
        linear_cka(x, x[1:])
    with pytest.raises(Undefined, match="not finite"):
        linear_cka(x, x / 0)
    cka = MinibatchCKA()
    with pytest.raises(Undefined, match="no inputs"):
        cka.value()
    with pytest.raises(Undefined, match="at least 4 inputs, and as many vectors of each, got 3 and 3"):
        cka.add(x[:3], x[:3])
    with pytest.raises(Undefined, match="got 10 and 9"):
        cka.add(x, x[1:])
    with pytest.raises(Undefined, match="not finite"):
        cka.add(x, x / 0)
    cka.add(x, torch.ones(10, 2))
    with pytest.raises(Undefined, match="constant features"):
        cka.value()
