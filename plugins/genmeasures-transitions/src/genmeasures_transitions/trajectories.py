"""Closed trajectories in input space, whose points are computed on demand."""

from __future__ import annotations

import abc

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmeasures.plugin import Undefined

_TABLE = 2**14
"""Number of intervals in which the arc length of an ellipse is tabulated."""


class Trajectory(abc.ABC):
    """A closed curve with equidistant points: the arc length up to point i of k is i/k of the whole.

    Points are computed elementwise, so that a point does not depend on the others of the same call.

    Attributes:
        length: Arc length.
    """

    length: float

    @abc.abstractmethod
    def points(self, start: int, stop: int, k: int) -> Tensor:
        """Compute points on the curve.

        Args:
            start: Index of the first point.
            stop: Index after the last point.
            k: Number of points on the whole curve.

        Returns:
            (stop − start, …) in the dtype of the curve.
        """

    @abc.abstractmethod
    def tangents(self, start: int, stop: int, k: int) -> Tensor:
        """Compute the unit tangents at points, in the direction of the parameter.

        Args:
            start: Index of the first point.
            stop: Index after the last point.
            k: Number of points on the whole curve.

        Returns:
            (stop − start, …) in the dtype of the curve.
        """

    @abc.abstractmethod
    def anchors(self) -> NDArray[np.float64]:
        """Return the arc lengths at which the curve passes through the inputs that it was made from, float64 (m,)."""


class Ellipse(Trajectory):
    """The ellipse z(t) = center + u·cos t + v·sin t.

    Args:
        center: Floating point (…), of the shape of one input. Points have its dtype.
        u: Of the same dtype (…).
        v: Of the same dtype (…).

    Raises:
        Undefined: If u and v are so short that z is constant.

    Example:
        >>> circle = Ellipse(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        >>> round(circle.length, 3)
        6.283
        >>> circle.points(0, 1, 4)
        tensor([[1., 0.]])
    """

    def __init__(self, center: Tensor, u: Tensor, v: Tensor) -> None:
        self._center, self._u, self._v = center, u, v
        wide, high = u.double().flatten(), v.double().flatten()
        a, b, c = float(wide @ wide), float(high @ high), float(wide @ high)
        angles = np.linspace(0, 2 * np.pi, _TABLE + 1)
        sine, cosine = np.sin(angles), np.cos(angles)
        speed = np.sqrt(np.maximum(a * sine**2 + b * cosine**2 - 2 * c * sine * cosine, 0))
        lengths = np.concatenate([[0], np.cumsum((speed[1:] + speed[:-1]) / 2)]) * (angles[1] - angles[0])
        self.length = float(lengths[-1])
        _check(self.length, center)
        self._angles, self._speed, self._lengths = angles, speed, lengths

    def angles(self, start: int, stop: int, k: int) -> NDArray[np.float64]:
        """Return the parameters t of points, float64 (stop − start,)."""
        # Points with equal steps of t would not be equidistant.
        along = np.arange(start, stop) * (self.length / k)
        angles: NDArray[np.float64] = np.interp(along, self._lengths, self._angles)
        return angles

    def points(self, start: int, stop: int, k: int) -> Tensor:
        angles = self.angles(start, stop, k)
        first = torch.addcmul(self._center, self._u, self._column(np.cos(angles)))
        return first.addcmul_(self._v, self._column(np.sin(angles)))

    def tangents(self, start: int, stop: int, k: int) -> Tensor:
        angles = self.angles(start, stop, k)
        # At the ends of a degenerate ellipse, a segment, the tangent has no direction and is set to almost 0.
        speed = np.maximum(np.interp(angles, self._angles, self._speed), 1e-9 * self.length)
        return self._u * self._column(-np.sin(angles) / speed) + self._v * self._column(np.cos(angles) / speed)

    def anchors(self) -> NDArray[np.float64]:
        """Return the arc lengths at t = 0, 2π/3 and 4π/3."""
        lengths: NDArray[np.float64] = np.interp(2 * np.pi / 3 * np.arange(3), self._angles, self._lengths)
        return lengths

    def _column(self, values: NDArray[np.float64]) -> Tensor:
        column = torch.from_numpy(values).to(self._center.device, self._center.dtype)
        return column.reshape(-1, *[1] * self._center.dim())


class Polyline(Trajectory):
    """The closed polyline through vertices.

    Args:
        vertices: Floating point (m, …). Points have its dtype.

    Raises:
        Undefined: If all vertices are equal.

    Example:
        >>> square = Polyline(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
        >>> square.length, square.points(1, 2, 8).tolist(), square.tangents(1, 2, 8).tolist()
        (4.0, [[0.5, 0.0]], [[1.0, 0.0]])
    """

    def __init__(self, vertices: Tensor) -> None:
        self._vertices = vertices
        self._steps = vertices.roll(-1, 0) - vertices
        self._segments = torch.linalg.vector_norm(self._steps.double().flatten(1), dim=1).cpu().numpy()
        self._ends = np.cumsum(self._segments)
        self.length = float(self._ends[-1])
        _check(self.length, vertices)

    def _at(self, start: int, stop: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The segments of points, and the positions of the points on them from 0 to 1."""
        along = np.arange(start, stop) * (self.length / k)
        last = int(np.flatnonzero(self._segments)[-1])
        segment = np.minimum(np.searchsorted(self._ends, along, side="right"), last)
        position = (along - (self._ends - self._segments)[segment]) / self._segments[segment]
        return segment, position

    def points(self, start: int, stop: int, k: int) -> Tensor:
        segment, position = self._at(start, stop, k)
        index = torch.from_numpy(segment).to(self._vertices.device)
        weight = torch.from_numpy(position).to(self._vertices.device, self._vertices.dtype)
        weight = weight.reshape(-1, *[1] * (self._vertices.dim() - 1))
        return self._steps.index_select(0, index).mul_(weight).add_(self._vertices.index_select(0, index))

    def tangents(self, start: int, stop: int, k: int) -> Tensor:
        segment, _ = self._at(start, stop, k)
        index = torch.from_numpy(segment).to(self._vertices.device)
        speed = torch.from_numpy(1 / self._segments[segment]).to(self._vertices.device, self._vertices.dtype)
        return self._steps.index_select(0, index).mul_(speed.reshape(-1, *[1] * (self._vertices.dim() - 1)))

    def anchors(self) -> NDArray[np.float64]:
        """Return the arc lengths at the vertices."""
        return np.asarray(self._ends - self._segments, dtype=np.float64)


def _check(length: float, points: Tensor) -> None:
    if not length > 1e-6 * max(float(points.abs().max()), 1e-30):
        raise Undefined("a trajectory is constant: its inputs are equal")


def ellipse_through(a: Tensor, b: Tensor, c: Tensor) -> Ellipse:
    """Return the Steiner circumellipse of three inputs, g + (a − g)·cos t + (b − c)/√3·sin t, with g their centroid.

    It passes through a at t = 0, b at t = 2π/3 and c at t = 4π/3. For three inputs on a line, it is a segment that is
    passed in both directions.

    Args:
        a: float32 (…).
        b: float32 (…).
        c: float32 (…).

    Raises:
        Undefined: If the three are equal.

    Example:
        >>> a, b, c = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        >>> ellipse_through(a, b, c).points(0, 1, 3)
        tensor([[1., 0.]])
    """
    center = (a + b + c) / 3
    return Ellipse(center, a - center, (b - c) / 3**0.5)


def translations(image: Tensor) -> Polyline:
    """Return the closed polyline through all horizontal translations of an image, 28 for MNIST.

    Translations are circular: columns that leave on the right enter on the left.

    Args:
        image: float32 (…, width).

    Raises:
        Undefined: If all columns of the image are equal.

    Example:
        >>> translations(torch.tensor([[1.0, 0.0, 0.0]])).points(0, 2, 3).tolist()
        [[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]
    """
    return Polyline(torch.stack([image.roll(step, -1) for step in range(image.shape[-1])]))
