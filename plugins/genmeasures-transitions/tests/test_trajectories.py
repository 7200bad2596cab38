"""Trajectories: points, distances, tangents, and degenerate inputs."""

from __future__ import annotations

import math

import pytest
import torch
from genmeasures_transitions import Ellipse, Polyline, Trajectory, ellipse_through, translations
from torch import Tensor

from genmeasures.plugin import Undefined


def three(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c = torch.randn(3, *shape, generator=torch.Generator().manual_seed(3)).unbind()
    return a, b, c


def test_the_ellipse_passes_through_its_three_points() -> None:
    corners = three(2, 3)
    k = 200_000
    points = ellipse_through(*corners).points(0, k, k)
    for corner in corners:
        assert (points - corner).flatten(1).norm(dim=1).min() < 1e-4


def test_an_equilateral_triangle_gives_its_circle() -> None:
    corners = [torch.tensor([math.cos(t), math.sin(t)]) * 3 + 1 for t in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    circle = ellipse_through(*corners)
    assert circle.length == pytest.approx(6 * math.pi)
    points = circle.points(0, 12, 12)
    torch.testing.assert_close((points - 1).norm(dim=1), torch.full((12,), 3.0))
    torch.testing.assert_close(points[[0, 4, 8]], torch.stack(corners))


@pytest.fixture(params=["ellipse", "polyline", "segment"])
def path(request: pytest.FixtureRequest) -> Trajectory:
    a, b, c = three(2, 3)
    if request.param == "ellipse":
        return ellipse_through(a, 10 * b, c)
    if request.param == "segment":
        return ellipse_through(a, 2 * a, 5 * a)
    return Polyline(torch.stack([a, a, b, c, c]))


def test_points_are_equidistant_along_the_path(path: Trajectory) -> None:
    k = 5000
    points = path.points(0, k, k)
    steps = (points.roll(-1, 0) - points).flatten(1).norm(dim=1) * (k / path.length)
    assert (steps > 1 - 1e-2).sum() >= k - 4  # a corner is cut
    assert steps.max() < 1 + 1e-2


def test_tangents_are_the_unit_directions_of_the_path(path: Trajectory) -> None:
    k = 20_000
    points, tangents = path.points(0, k, k).double(), path.tangents(0, k, k).double()
    ahead = (points.roll(-1, 0) - points) * (k / path.length)
    close = (ahead - tangents).flatten(1).norm(dim=1) < 0.1
    assert close.sum() >= k - 4


def test_points_do_not_depend_on_the_others_of_a_call(path: Trajectory) -> None:
    parts = [path.points(start, min(start + 7, 50), 50) for start in range(0, 50, 7)]
    assert torch.equal(torch.cat(parts), path.points(0, 50, 50))


def test_translations_pass_through_all_of_them() -> None:
    image = torch.zeros(1, 2, 4)
    image[..., 1] = 1
    points = translations(image).points(0, 8, 8)
    for step in range(4):
        assert torch.equal(points[2 * step], image.roll(step, -1))
    assert torch.equal(points[1], (points[0] + points[2]) / 2)
    assert torch.equal(points[7], (points[6] + points[0]) / 2)


def test_constant_trajectories_are_undefined() -> None:
    same = torch.ones(1, 3, 3)
    with pytest.raises(Undefined, match="constant"):
        ellipse_through(same, same, same)
    with pytest.raises(Undefined, match="constant"):
        translations(same)
    with pytest.raises(Undefined, match="constant"):
        Ellipse(same, same * 0, same * 0)
