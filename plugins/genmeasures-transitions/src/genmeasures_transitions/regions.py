"""Activation regions of a piecewise linear network on a segment, found exactly from its breakpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.autograd.forward_ad as forward_ad
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import BaseTorchFunctionMode

from genmeasures.plugin import Undefined
from genmeasures_transitions.codes import Activation, Coder, run

SHORTEST = 1e-9
"""Regions that are shorter than this fraction of the segment are not resolved."""
_SAME = 1e-9
"""Relative difference up to which Jacobians of neighboring regions are equal."""
_LINEAR = 1e-7
"""Relative difference up to which the output is linear within a region."""
_PART = 0.4812118
"""Where in an interval its region is sought: not in the middle, where breakpoints of simple networks are."""
_TIE = 1e-12
"""A point this near to a breakpoint is on it."""
_MOST = 10**6
"""Maximum number of regions of a segment."""


@dataclass(frozen=True)
class LineRegions:
    """Regions on the segment a + t (b − a), 0 ≤ t ≤ 1, in order."""

    starts: NDArray[np.float64]
    """(regions,): t where each begins; the first begins at 0."""
    linear: NDArray[np.int64]
    """(regions,): number of the linear region, which neighbors with equal Jacobians share."""
    exact: bool
    """Whether the output is linear in t within each region. Otherwise something besides the activations bends it."""


def line_regions(
    model: nn.Module,
    activations: Sequence[Activation],
    a: Tensor,
    b: Tensor,
    generator: torch.Generator,
    batch: int = 256,
) -> LineRegions:
    """Find all activation regions on a segment.

    Within a region every pre-activation is linear in t. Its value and derivative at one t of the region therefore give
    the t at which each unit reaches its thresholds, and the nearest ones are the ends of the region. The same is done
    within what remains on either side until nothing is left: no region longer than 10⁻⁹ of the segment is missed.

    Source: Hanin and Rolnick 2019, "Deep ReLU Networks Have Surprisingly Few Activation Patterns".

    Args:
        model: Model in evaluation mode, in float64.
        activations: Its activations; all have a code.
        a: float64 (…), the beginning of the segment.
        b: float64 (…), its end.
        generator: Draws the direction along which Jacobians are compared.
        batch: Number of points per forward pass.

    Raises:
        Undefined: If the output is not one tensor, or there are more than a million regions.
        NotImplementedError: If a function of the model has no forward derivative.

    Example:
        >>> from genmeasures_transitions import find_activations
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU()).double()
        >>> net[0].weight.data, net[0].bias.data = torch.ones(2, 1).double(), torch.tensor([-0.25, -0.5]).double()
        >>> a, b = torch.zeros(1).double(), torch.ones(1).double()
        >>> line_regions(net, find_activations(net, torch.zeros(2, 1).double()), a, b, torch.Generator()).starts
        array([0.  , 0.25, 0.5 ])
    """
    step = b - a
    found: list[NDArray[np.float64]] = []
    waiting = np.array([[0.0, 1.0]])
    while len(waiting):
        now, waiting = waiting[:batch], waiting[batch:]
        middle = now[:, 0] + _PART * (now[:, 1] - now[:, 0])
        low, high = _ends(model, activations, a, step, middle)
        # Rounding may leave a gap between the ends of neighbors.
        region = np.stack([np.maximum(low, now[:, 0]), np.minimum(high, now[:, 1])], 1)
        found.append(region)
        rest = np.concatenate([np.stack([now[:, 0], region[:, 0]], 1), np.stack([region[:, 1], now[:, 1]], 1)])
        waiting = np.concatenate([rest[rest[:, 1] - rest[:, 0] > SHORTEST], waiting])
        if sum(map(len, found)) > _MOST:
            raise Undefined(f"a segment has more than {_MOST} regions")
    regions = np.concatenate(found)
    regions = regions[regions[:, 1] - regions[:, 0] > SHORTEST]
    regions = regions[np.argsort(regions[:, 0])]
    code = _codes(model, activations, a, step, regions.mean(1), batch)
    regions = regions[np.concatenate([[True], code[1:] != code[:-1]])]  # an end that rounding moved splits a region
    slopes, exact = _slopes(model, a, step, regions, generator, batch)
    scale = np.abs(slopes).max() if slopes.size else 0.0
    differ = np.abs(slopes[1:] - slopes[:-1]).max(1) > _SAME * scale
    return LineRegions(regions[:, 0], np.concatenate([[0], np.cumsum(differ)]).astype(np.int64), exact)


def _at(a: Tensor, step: Tensor, t: NDArray[np.float64]) -> Tensor:
    """Points a + t · step, (len(t), …)."""
    return a + torch.from_numpy(t).to(a.device).reshape(-1, *[1] * a.dim()) * step


def _ends(
    model: nn.Module, activations: Sequence[Activation], a: Tensor, step: Tensor, t: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of the regions of points, float64 (B,) each; both are t if it is itself a breakpoint."""
    low, high = np.full(len(t), -np.inf), np.full(len(t), np.inf)

    def receive(index: int, pre: Tensor) -> None:
        value, slope = forward_ad.unpack_dual(pre)
        if slope is None:  # it does not depend on the input
            return
        values, slopes = value.detach().flatten(1).cpu().numpy(), slope.detach().flatten(1).cpu().numpy()
        for threshold in activations[index].thresholds:
            with np.errstate(divide="ignore", invalid="ignore"):
                distance = (threshold - values) / slopes
            distance[slopes == 0] = np.inf
            ahead = np.where(distance > 0, distance, np.inf)
            behind = np.where(distance <= 0, distance, -np.inf)
            high[:] = np.minimum(high, t + ahead.min(1))
            low[:] = np.maximum(low, t + behind.max(1))
            # At a breakpoint itself, derivatives behind the unit are those of one side only.
            tied = (np.abs(distance) < _TIE).any(1)
            low[tied], high[tied] = np.inf, -np.inf

    inputs = _at(a, step, t)
    with torch.inference_mode(False), torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        Coder(model, activations, receive).run(forward_ad.make_dual(inputs, step.expand_as(inputs).clone()))
    broken = low > high
    return np.where(broken, t, low), np.where(broken, t, high)


def _codes(
    model: nn.Module,
    activations: Sequence[Activation],
    a: Tensor,
    step: Tensor,
    t: NDArray[np.float64],
    batch: int,
) -> NDArray[np.int64]:
    """Hashes of the codes at points, int64 (len(t),)."""
    hashes = np.zeros(len(t), dtype=np.int64)
    start = 0

    def receive(index: int, pre: Tensor) -> None:
        values = pre.detach().flatten(1).cpu().numpy()
        for place, threshold in enumerate(activations[index].thresholds):
            # A sum, modulo 2⁶⁴, of a random number for each unit that exceeds the threshold.
            weights = np.random.default_rng((index, place)).integers(-(2**62), 2**62, values.shape[1])
            hashes[start : start + len(values)] += (values > threshold) @ weights

    coder = Coder(model, activations, receive)
    with torch.no_grad():
        for start in range(0, len(t), batch):
            coder.run(_at(a, step, t[start : start + batch]))
    return hashes


def directional(model: nn.Module, inputs: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and their derivatives along directions, each (B, outputs).

    Args:
        model: Model in evaluation mode.
        inputs: (B, …).
        directions: (B, …).

    Raises:
        Undefined: If the output is not one tensor.
        NotImplementedError: If a function of the model has no forward derivative.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> net.weight.data = torch.tensor([[3.0, 4.0]])
        >>> directional(net, torch.ones(1, 2), torch.tensor([[1.0, 0.0]]))
        (tensor([[7.]]), tensor([[3.]]))
    """
    with torch.inference_mode(False), torch.no_grad(), forward_ad.dual_level():
        with BaseTorchFunctionMode(), sdpa_kernel(SDPBackend.MATH):
            output = run(model, forward_ad.make_dual(inputs.clone(), directions.clone()))
        if not isinstance(output, Tensor):
            raise Undefined(f"the output of the model must be one tensor, got {type(output).__name__}")
        value, slope = forward_ad.unpack_dual(output)
        slope = torch.zeros_like(value) if slope is None else slope
        return value.flatten(1).clone(), slope.flatten(1).clone()


def random_direction(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a normally distributed direction.

    Args:
        like: An input (…), whose shape, dtype and device the direction has.
        generator: Draws the same direction for every dtype and device.

    Example:
        >>> random_direction(torch.zeros(3), torch.Generator().manual_seed(0)).shape
        torch.Size([3])
    """
    drawn = torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float64)
    return drawn.to(like.device, like.dtype)


def _slopes(
    model: nn.Module,
    a: Tensor,
    step: Tensor,
    regions: NDArray[np.float64],
    generator: torch.Generator,
    batch: int,
) -> tuple[NDArray[np.float64], bool]:
    """Jv in each region for a random direction v, (regions, outputs), and whether the outputs are linear in t there.

    Two different matrices agree on a random direction with probability 0.
    """
    direction = random_direction(a, generator)
    slopes, exact = [], True
    for start in range(0, len(regions), batch):
        low, high = regions[start : start + batch].T
        quarters = [_at(a, step, low + part * (high - low)) for part in (0.25, 0.5, 0.75)]
        made = [directional(model, inputs, direction.expand_as(inputs)) for inputs in quarters]
        bent = (made[0][1] - made[2][1]).abs().amax(1)
        scale = torch.stack([slope for _, slope in made]).abs().amax((0, 2))
        exact = exact and bool((bent <= _LINEAR * scale).all())
        slopes.append(made[1][1].cpu().numpy())
    return np.concatenate(slopes), exact
