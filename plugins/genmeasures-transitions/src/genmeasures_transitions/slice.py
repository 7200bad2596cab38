"""Linear regions on a two-dimensional slice of input space, as data for an image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genmeasures.plugin import OptionError, Undefined
from genmeasures_transitions.codes import Coder, find_activations
from genmeasures_transitions.counting import batch_size, codes
from genmeasures_transitions.regions import directional, random_direction

_SAME = 1e-5
"""Relative difference up to which Jacobians of neighboring regions are equal; those of float32 differ by rounding."""

_COMPARED = 256
"""Number of regions of which several points are compared."""


@dataclass(frozen=True)
class Slice:
    """Linear regions on a grid in the plane through three inputs a, b and c.

    Two grid points with equal numbers lie in the same region.
    """

    x: NDArray[np.float64]
    """(nx,): coordinates along the first axis, from a to b, in distances of input space."""
    y: NDArray[np.float64]
    """(ny,): coordinates along the second axis, orthogonal to the first, toward c."""
    corners: NDArray[np.float64]
    """(3, 2): the coordinates of a, b and c; a is the origin."""
    regions: NDArray[np.int64]
    """(ny, nx): number of the region, by the codes of all activations."""
    activations: tuple[str, ...]
    """Names of the activations, in the order of the forward pass."""
    by_activation: NDArray[np.int64]
    """(activations, ny, nx): number of the region, by the codes of one activation."""
    linear: NDArray[np.int64]
    """(ny, nx): number of the linear region, which neighbors with equal Jacobians share; that of ``regions`` where the
    model has no forward derivative."""
    exact: bool
    """Whether the Jacobian is the same at up to five points of a region, which is tested for the 256 largest regions.
    Otherwise something besides the activations bends the function, or the model has no forward derivative, and
    ``linear`` says nothing."""

    def boundaries(self, activation: int | None = None) -> NDArray[np.bool_]:
        """Return whether a boundary lies between a grid point and the next one in x or in y.

        Args:
            activation: Index of an activation, for its boundaries alone; None for all boundaries.

        Returns:
            bool (ny, nx).
        """
        regions = self.regions if activation is None else self.by_activation[activation]
        boundaries = np.zeros(regions.shape, dtype=bool)
        boundaries[:, :-1] |= regions[:, :-1] != regions[:, 1:]
        boundaries[:-1] |= regions[:-1] != regions[1:]
        return boundaries


def slice_through(
    model: nn.Module, a: Tensor, b: Tensor, c: Tensor, resolution: int = 256, margin: float = 0.25
) -> Slice:
    """Compute the linear regions of a model in the plane through three inputs.

    Regions smaller than the spacing of the grid can be missed.

    Source: Novak et al. 2018, "Sensitivity and Generalization in Neural Networks", two-dimensional slices.

    Args:
        model: Model in evaluation mode, on the device of the inputs.
        a: Floating point (…). Grid points have its dtype.
        b: Floating point (…).
        c: Floating point (…).
        resolution: Number of grid points along each axis.
        margin: Margin around the three inputs, as a fraction of their extent.

    Raises:
        Undefined: If the inputs lie on a line, or an activation has no code.
        OptionError: If ``resolution`` is less than 2 or ``margin`` is negative.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
        >>> net[0].weight.data, net[0].bias.data = torch.tensor([[1.0, 0.0]]), torch.tensor([-0.5])
        >>> a, b, c = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> slice_through(net, a, b, c, resolution=4, margin=0).regions[0]
        array([0, 0, 1, 1])
    """
    if resolution < 2 or margin < 0:
        raise OptionError(
            f"slice_through: resolution must be ≥ 2 and margin ≥ 0, got resolution={resolution} and margin={margin}"
        )
    first, second = (b - a).double().flatten(), (c - a).double().flatten()
    width = float(torch.linalg.vector_norm(first))
    along = float(first @ second) / width if width else 0.0
    upright = second - first * (along / width) if width else second
    height = float(torch.linalg.vector_norm(upright))
    if not height > 1e-6 * max(width, float(torch.linalg.vector_norm(second))) or not width:
        raise Undefined("the three inputs lie on a line, and do not define a plane")
    corners = np.array([[0, 0], [width, 0], [along, height]])
    low, high = corners.min(0), corners.max(0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    x, y = np.linspace(low[0], high[0], resolution), np.linspace(low[1], high[1], resolution)
    right = (first / width).to(a.dtype).reshape(a.shape)
    up = (upright / height).to(a.dtype).reshape(a.shape)

    total = resolution * resolution

    def points(start: int, stop: int) -> Tensor:
        row, column = np.divmod(np.arange(start, stop), resolution)
        coordinates = (
            torch.from_numpy(values).to(a.device, a.dtype).reshape(-1, *[1] * a.dim()) for values in (x[column], y[row])
        )
        return torch.addcmul(a, right, next(coordinates)).addcmul_(up, next(coordinates))

    spread = [points(place, place + 1) for place in (0, total // 3, total // 2, total - 1)]
    activations = find_activations(model, torch.cat(spread))
    batch = batch_size(activations, points(0, 1))
    # Only the digest of each row is kept: equal codes have equal digests.
    digests: list[list[bytes]] = [[] for _ in activations]

    def receive(index: int, pre: Tensor) -> None:
        exceeded = codes(pre, activations[index].thresholds)
        bits = [np.packbits(np.asarray(code if isinstance(code, np.ndarray) else code.cpu()).reshape(len(pre), -1), 1)
                for code in exceeded]  # fmt: skip
        rows = np.concatenate(bits, 1)
        digests[index] += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]

    coder = Coder(model, activations, receive)
    with torch.no_grad():
        for start in range(0, total, batch):
            coder.run(points(start, min(start + batch, total)))
    by_activation = np.stack([_numbers(own) if own else np.zeros(total, dtype=np.int64) for own in digests])
    regions = _numbers([row.tobytes() for row in np.ascontiguousarray(by_activation.T)])
    grid = regions.reshape(resolution, resolution)
    earliest, sizes = np.unique(regions, return_index=True, return_counts=True)[1:]
    largest = np.argsort(-sizes, kind="stable")[:_COMPARED]
    members, begins = np.argsort(regions, kind="stable"), np.cumsum(sizes) - sizes
    try:
        slopes = _slopes(model, points, earliest, batch)
        linear, exact = _merged(grid, slopes), True
        for part in (0.25, 0.5, 0.75, 1.0):
            inner = members[begins[largest] + (part * (sizes[largest] - 1)).astype(int)]
            differences = np.abs(_slopes(model, points, inner, batch) - slopes[largest])
            exact = exact and bool((differences <= _SAME * np.abs(slopes).max(initial=0.0)).all())
    except NotImplementedError:
        linear, exact = grid, False
    return Slice(
        x,
        y,
        corners,
        grid,
        tuple(activation.name for activation in activations),
        by_activation.reshape(-1, resolution, resolution),
        linear,
        exact,
    )


def _slopes(
    model: nn.Module, points: Callable[[int, int], Tensor], places: NDArray[np.int64], batch: int
) -> NDArray[np.float64]:
    """Jv at each of the places on the grid for one random direction v, (places, outputs)."""
    # The comparison of Jacobians needs any direction: another seed gives another one, and the same answer.
    direction = random_direction(points(0, 1)[0], torch.Generator().manual_seed(0))
    slopes = []
    for start in range(0, len(places), batch):
        inputs = torch.cat([points(place, place + 1) for place in places[start : start + batch].tolist()])
        slopes.append(directional(model, inputs, direction.expand_as(inputs))[1].double().cpu().numpy())
    return np.concatenate(slopes)


def _merged(regions: NDArray[np.int64], slopes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Numbers of the regions (ny, nx) in which neighbors with equal rows of ``slopes`` (regions, outputs) are one."""
    pairs = np.concatenate(
        [
            np.stack([regions[:, :-1].ravel(), regions[:, 1:].ravel()], 1),
            np.stack([regions[:-1].ravel(), regions[1:].ravel()], 1),
        ]
    )
    pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], 1), axis=0)
    tolerance = _SAME * np.abs(slopes).max(initial=0.0)
    equal = pairs[np.abs(slopes[pairs[:, 0]] - slopes[pairs[:, 1]]).max(1, initial=0.0) <= tolerance]
    parent = list(range(len(slopes)))

    def root(region: int) -> int:
        while parent[region] != region:
            parent[region] = region = parent[parent[region]]
        return region

    for one, other in equal.tolist():
        parent[root(max(one, other))] = root(min(one, other))
    roots = np.array([root(region) for region in range(len(slopes))])
    return np.unique(roots, return_inverse=True)[1][regions]


def _numbers(keys: list[bytes]) -> NDArray[np.int64]:
    """Numbers int64 (n,) of the keys, in the order in which they first occur."""
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)
