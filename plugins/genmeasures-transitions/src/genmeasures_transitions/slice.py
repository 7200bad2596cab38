"""A two-dimensional slice of input space with its linear regions, as data for an image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genmeasures.plugin import OptionError, Undefined
from genmeasures_transitions.codes import Coder, find_activations
from genmeasures_transitions.counting import batch_size, codes


@dataclass(frozen=True)
class Slice:
    """A grid in a plane through three inputs. Two grid points with the same number lie in the same region."""

    x: NDArray[np.float64]
    """(nx,): coordinates along the first axis, from a toward b, in distances of input space."""
    y: NDArray[np.float64]
    """(ny,): along the second axis, at right angles to the first, toward c."""
    corners: NDArray[np.float64]
    """(3, 2): the coordinates of a, b and c; a is the origin."""
    regions: NDArray[np.int64]
    """(ny, nx): number of the region that the codes of all activations tell."""
    activations: tuple[str, ...]
    """Names of the activations, in running order."""
    by_activation: NDArray[np.int64]
    """(activations, ny, nx): the same by the code of each activation alone."""

    def boundaries(self, activation: int | None = None) -> NDArray[np.bool_]:
        """(ny, nx): whether a boundary runs between a grid point and its next in x or in y.

        activation: place of the one whose boundaries alone are meant.
        """
        regions = self.regions if activation is None else self.by_activation[activation]
        found = np.zeros(regions.shape, dtype=bool)
        found[:, :-1] |= regions[:, :-1] != regions[:, 1:]
        found[:-1] |= regions[:-1] != regions[1:]
        return found


def slice_through(
    model: nn.Module, a: Tensor, b: Tensor, c: Tensor, resolution: int = 256, margin: float = 0.25
) -> Slice:
    """The linear regions of a model in the plane through three inputs (…), float32 (Novak et al. 2018, the 2D slice).

    The model must be in evaluation mode on the inputs' device. resolution: grid points along each
    axis. margin: how far the grid goes beyond the three, as a share of their extent. Where an activation region is
    smaller than the grid it may be missed. Raises Undefined if the three lie on a line or an
    activation has no code, OptionError for a resolution < 2 or a negative margin.
    """
    if resolution < 2 or margin < 0:
        raise OptionError(f"slice_through: resolution={resolution} must be ≥ 2 and margin={margin} ≥ 0")
    first, second = (b - a).double().flatten(), (c - a).double().flatten()
    width = float(torch.linalg.vector_norm(first))
    along = float(first @ second) / width if width else 0.0
    upright = second - first * (along / width) if width else second
    height = float(torch.linalg.vector_norm(upright))
    if not height > 1e-6 * max(width, float(torch.linalg.vector_norm(second))) or not width:
        raise Undefined("the three inputs lie on a line: there is no plane through them alone")
    corners = np.array([[0, 0], [width, 0], [along, height]])
    low, high = corners.min(0), corners.max(0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    x, y = np.linspace(low[0], high[0], resolution), np.linspace(low[1], high[1], resolution)
    right = (first / width).float().reshape(a.shape)
    up = (upright / height).float().reshape(a.shape)

    def points(start: int, stop: int) -> Tensor:
        row, column = np.divmod(np.arange(start, stop), resolution)
        shares = (
            torch.from_numpy(values.astype(np.float32)).to(a.device).reshape(-1, *[1] * a.dim())
            for values in (x[column], y[row])
        )
        return torch.addcmul(a, right, next(shares)).addcmul_(up, next(shares))

    activations = find_activations(model, points(0, 3))
    batch = batch_size(activations, points(0, 1))
    # Equal codes have equal digests, and a row's digest is all that is kept of it.
    digests: list[list[bytes]] = [[] for _ in activations]

    def receive(place: int, pre: Tensor) -> None:
        made = codes(pre, activations[place].thresholds)
        bits = [np.packbits(np.asarray(code if isinstance(code, np.ndarray) else code.cpu()).reshape(len(pre), -1), 1)
                for code in made]  # fmt: skip
        rows = np.concatenate(bits, 1)
        digests[place] += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]

    coder = Coder(model, activations, receive)
    total = resolution * resolution
    with torch.no_grad():
        for start in range(0, total, batch):
            coder.run(points(start, min(start + batch, total)))
    by_activation = np.stack([_numbers(own) for own in digests])
    regions = _numbers([row.tobytes() for row in np.ascontiguousarray(by_activation.T)])
    return Slice(
        x,
        y,
        corners,
        regions.reshape(resolution, resolution),
        tuple(activation.name for activation in activations),
        by_activation.reshape(-1, resolution, resolution),
    )


def _numbers(keys: list[bytes]) -> NDArray[np.int64]:
    """(n,): 0, 1, 2, … by the first place at which each key comes."""
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)
