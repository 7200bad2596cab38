"""Slices, compared with brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from genmeasures_transitions import slice_through
from torch import Tensor, nn

from genmeasures.plugin import OptionError, Undefined


def three() -> tuple[Tensor, Tensor, Tensor]:
    a, b, c = torch.randn(3, 5, generator=torch.Generator().manual_seed(4)).unbind()
    return a, b, c


@pytest.fixture
def mlp() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 9), nn.Hardtanh(-0.2, 0.2), nn.Linear(9, 2)).eval()


def test_the_slice_against_brute_force(mlp: nn.Sequential) -> None:
    a, b, c = three()
    made = slice_through(mlp, a, b, c, resolution=23)
    assert made.activations == ("relu", "hardtanh")
    # The plane by its corners: barycentric coordinates of every grid point.
    x, y = np.meshgrid(made.x, made.y)
    system = np.vstack([made.corners.T, np.ones(3)])
    shares = np.linalg.solve(system, np.stack([x.ravel(), y.ravel(), np.ones(x.size)]))
    points = torch.from_numpy(shares.T).float() @ torch.stack([a, b, c])
    with torch.no_grad():
        first = mlp[0](points)
        second = mlp[2](first.relu())
    codes = [(first > 0).long(), (second > -0.2).long() + (second > 0.2).long()]
    for place, code in enumerate([*codes, torch.cat(codes, 1)]):
        expected = code.unique(dim=0, return_inverse=True)[1].numpy()
        found = (made.by_activation[place] if place < 2 else made.regions).ravel()
        assert len(np.unique(found)) > 3
        assert ((found[:, None] == found) == (expected[:, None] == expected)).all()
    grid = made.regions
    expected_edges = np.zeros((23, 23), dtype=bool)
    for i in range(23):
        for j in range(23):
            right = j + 1 < 23 and grid[i, j] != grid[i, j + 1]
            expected_edges[i, j] = right or (i + 1 < 23 and grid[i, j] != grid[i + 1, j])
    assert (made.boundaries() == expected_edges).all()
    assert (made.boundaries() == made.boundaries(0) | made.boundaries(1)).all()


def test_corners_are_the_three_inputs(mlp: nn.Sequential) -> None:
    a, b, c = three()
    made = slice_through(mlp, a, b, c, resolution=5, margin=0)
    for i, one in enumerate((a, b, c)):
        for j, other in enumerate((a, b, c)):
            distance = np.linalg.norm(made.corners[i] - made.corners[j])
            assert distance == pytest.approx(float((one - other).norm()), rel=1e-5)
    assert made.x.min() == made.corners[:, 0].min()
    assert made.y.max() == made.corners[:, 1].max()


def test_two_half_planes_by_hand() -> None:
    """One unit with the boundary x₀ = 0.5: two halves."""
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0]]))
        layer.bias.fill_(-0.5)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    made = slice_through(nn.Sequential(layer, nn.ReLU()), *corners, resolution=10, margin=0)
    assert (made.regions == (made.x > 0.5).astype(int)).all()
    assert made.boundaries().sum() == 10


def test_errors_of_slices(mlp: nn.Sequential) -> None:
    a, b, c = three()
    for third in (a, b, a + 2 * (b - a)):
        with pytest.raises(Undefined, match="line"):
            slice_through(mlp, a, b, third)
    with pytest.raises(Undefined, match="line"):
        slice_through(mlp, a, a, c)
    with pytest.raises(OptionError, match="resolution"):
        slice_through(mlp, a, b, c, resolution=1)
    with pytest.raises(Undefined, match="tanh"):
        slice_through(nn.Tanh(), a, b, c)
