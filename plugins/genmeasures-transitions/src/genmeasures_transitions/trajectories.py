"""Closed trajectories in input space, whose points are made when they are asked for."""

from __future__ import annotations

import abc

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmeasures.plugin import Undefined

_TABLE = 2**14
"""Intervals in which the arc length of an ellipse is tabulated."""


class Trajectory(abc.ABC):
    """A closed curve, on which point i of k lies i/k of its length from the beginning.

    Every point is made by itself, elementwise: it does not depend on which others are asked for.
    """

    length: float

    @abc.abstractmethod
    def points(self, start: int, stop: int, k: int) -> Tensor:
        """float32 (stop − start, …): points ``start`` to ``stop`` of k."""

    @abc.abstractmethod
    def tangents(self, start: int, stop: int, k: int) -> Tensor:
        """float32 (stop − start, …): the unit tangents there, in the direction of running."""


class Ellipse(Trajectory):
    """z(t) = center + u·cos t + v·sin t, for three tensors of the shape of one input.

    Raises Undefined if u and v are so short that z is constant.
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
        """(stop − start,): the t of these points."""
        # Equal steps of t would crowd where the ellipse is flat.
        along = np.arange(start, stop) * (self.length / k)
        angles: NDArray[np.float64] = np.interp(along, self._lengths, self._angles)
        return angles

    def points(self, start: int, stop: int, k: int) -> Tensor:
        angles = self.angles(start, stop, k)
        first = torch.addcmul(self._center, self._u, self._column(np.cos(angles)))
        return first.addcmul_(self._v, self._column(np.sin(angles)))

    def tangents(self, start: int, stop: int, k: int) -> Tensor:
        angles = self.angles(start, stop, k)
        # Of a segment run back and forth the tangent has no direction at its ends: there it is as good as 0.
        speed = np.maximum(np.interp(angles, self._angles, self._speed), 1e-9 * self.length)
        return self._u * self._column(-np.sin(angles) / speed) + self._v * self._column(np.cos(angles) / speed)

    def _column(self, values: NDArray[np.float64]) -> Tensor:
        column = torch.from_numpy(values.astype(np.float32)).to(self._center.device)
        return column.reshape(-1, *[1] * self._center.dim())


class Polyline(Trajectory):
    """The closed polyline through vertices (m, …), float32, back to the first. Raises Undefined if all are equal."""

    def __init__(self, vertices: Tensor) -> None:
        self._vertices = vertices
        self._steps = vertices.roll(-1, 0) - vertices
        self._segments = torch.linalg.vector_norm(self._steps.double().flatten(1), dim=1).cpu().numpy()
        self._ends = np.cumsum(self._segments)
        self.length = float(self._ends[-1])
        _check(self.length, vertices)

    def _at(self, start: int, stop: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The segments of these points, and how far along them each lies, from 0 to 1."""
        along = np.arange(start, stop) * (self.length / k)
        last = int(np.flatnonzero(self._segments)[-1])
        segment = np.minimum(np.searchsorted(self._ends, along, side="right"), last)
        part = (along - (self._ends - self._segments)[segment]) / self._segments[segment]
        return segment, part

    def points(self, start: int, stop: int, k: int) -> Tensor:
        segment, part = self._at(start, stop, k)
        index = torch.from_numpy(segment).to(self._vertices.device)
        share = torch.from_numpy(part.astype(np.float32)).to(self._vertices.device)
        share = share.reshape(-1, *[1] * (self._vertices.dim() - 1))
        return self._steps.index_select(0, index).mul_(share).add_(self._vertices.index_select(0, index))

    def tangents(self, start: int, stop: int, k: int) -> Tensor:
        segment, _ = self._at(start, stop, k)
        index = torch.from_numpy(segment).to(self._vertices.device)
        speed = torch.from_numpy((1 / self._segments[segment]).astype(np.float32)).to(self._vertices.device)
        return self._steps.index_select(0, index).mul_(speed.reshape(-1, *[1] * (self._vertices.dim() - 1)))


def _check(length: float, points: Tensor) -> None:
    if not length > 1e-6 * max(float(points.abs().max()), 1e-30):
        raise Undefined("a trajectory is constant: the inputs that it runs through are equal")


def ellipse_through(a: Tensor, b: Tensor, c: Tensor) -> Ellipse:
    """The Steiner circumellipse of three inputs (…), float32: g + (a − g)·cos t + (b − c)/√3·sin t.

    g is their centroid; the ellipse passes through a at t = 0, b at 2π/3 and c at 4π/3. Of three
    inputs on a line it is a segment, run back and forth. Raises Undefined if the three are equal.
    """
    center = (a + b + c) / 3
    return Ellipse(center, a - center, (b - c) / 3**0.5)


def translations(image: Tensor) -> Polyline:
    """The closed polyline through all horizontal translations of an image (…, width): 28 for MNIST.

    What leaves on the right comes in again on the left, so that the last one is a step from the
    first. Raises Undefined if the image is the same in every column.
    """
    return Polyline(torch.stack([image.roll(step, -1) for step in range(image.shape[-1])]))
