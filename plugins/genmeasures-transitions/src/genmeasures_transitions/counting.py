"""Transitions and turning along a trajectory, computed in batches of which only one row is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.autograd.forward_ad as forward_ad
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import BaseTorchFunctionMode

from genmeasures.plugin import Undefined
from genmeasures_transitions.codes import Activation, Coder, run
from genmeasures_transitions.trajectories import Trajectory

Codes: TypeAlias = Any
"""Whether a threshold is exceeded, bool (B, …): a NumPy array on the CPU, a tensor on other devices."""

_CELLS = 2**18
"""Approximate number of elements of the largest tensor of a batch: it fits into the cache, and the overhead of calls is
negligible."""
_ROWS = (32, 1024)


def batch_size(activations: Sequence[Activation], example: Tensor) -> int:
    """Return the number of points per batch.

    Args:
        activations: Activations of the model.
        example: Inputs (B, …).

    Returns:
        A number from 32 to 1024, by the size of the largest activation or input.

    Example:
        >>> batch_size([Activation("relu", (0.0,), shape=(1024,), layer=None)], torch.zeros(1, 2))
        256
    """
    largest = max([example[0].numel(), *(int(np.prod(activation.shape)) for activation in activations)])
    return int(np.clip(_CELLS // largest, *_ROWS))


def codes(pre: Tensor, thresholds: Sequence[float]) -> list[Codes]:
    """Return whether pre-activations exceed each threshold. The code is the sum over the thresholds.

    Args:
        pre: Pre-activation (B, …).
        thresholds: Thresholds of the activation.

    Returns:
        One array per threshold, bool (B, …); on the CPU, channels are the last dimension.

    Example:
        >>> [exceeds.tolist() for exceeds in codes(torch.tensor([[-1.0, 3.0, 7.0]]), (0.0, 6.0))]
        [[[False, True, True]], [[False, False, True]]]
    """
    if pre.device.type != "cpu" or pre.dtype not in (torch.float32, torch.float64):
        return [pre > threshold for threshold in thresholds]
    if pre.dim() > 2 and not pre.is_contiguous():
        pre = pre.movedim(1, -1)  # channels last: the comparison is fastest in the order of memory
    values = pre.detach().numpy()  # NumPy compares eight times as fast as PyTorch on a CPU
    return [values > threshold for threshold in thresholds]


def _number(changes: Codes) -> int | Tensor:
    """Number of elements that are true; on a GPU a tensor, which avoids a synchronization."""
    return torch.count_nonzero(changes) if isinstance(changes, Tensor) else int(np.count_nonzero(changes))


@dataclass
class _Tally:
    """Transitions of one activation per part of the trajectory, whose points are added in order, batch by batch."""

    thresholds: tuple[float, ...]
    edges: Sequence[int]
    """Step i, from point i to the next, belongs to part p if edges[p] ≤ i < edges[p + 1]."""
    totals: list[int | Tensor] = field(default_factory=list)
    _start: int = 0
    _part: int = 0
    _first: list[Codes] = field(default_factory=list)
    _last: list[Codes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.totals = [0] * (len(self.edges) - 1)

    def add(self, pre: Tensor) -> None:
        batch = codes(pre, self.thresholds)
        if self._last:
            self._link(self._last, [code[:1] for code in batch])
        else:
            self._first = [_copy(code[:1]) for code in batch]
        step, stop = self._start, self._start + len(pre) - 1
        changes = [code[1:] != code[:-1] for code in batch]
        while step < stop:
            end = min(stop, self.edges[self._part + 1])
            for change in changes:
                self._count(change[step - self._start : end - self._start])
            step = end
            self._go_to(step)
        self._start += len(pre)
        self._last = [_copy(code[-1:]) for code in batch]

    def close(self) -> list[int]:
        """The totals, including the transitions from the last point to the first."""
        self._link(self._last, self._first)
        return [int(total) for total in self.totals]

    def _link(self, before: Sequence[Codes], after: Sequence[Codes]) -> None:
        """Count the step that ends before ``_start``."""
        for last, first in zip(before, after, strict=True):
            self._count(last != first)
        self._go_to(self._start)

    def _count(self, changes: Codes) -> None:
        self.totals[self._part] = self.totals[self._part] + _number(changes)

    def _go_to(self, step: int) -> None:
        """Begin the next part if it begins at a step."""
        if self._part + 2 < len(self.edges) and step >= self.edges[self._part + 1]:
            self._part += 1


def _copy(code: Codes) -> Codes:
    """A copy of a row, so that its batch can be freed."""
    return code.clone() if isinstance(code, Tensor) else code.copy()


def count_transitions(
    model: nn.Module, activations: Sequence[Activation], trajectory: Trajectory, points: int, batch: int, parts: int = 1
) -> NDArray[np.int64]:
    """Count the transitions of each activation, t = Σ_i ‖c(z_i) − c(z_{(i+1) mod k})‖₁.

    Source: Novak et al. 2018, "Sensitivity and Generalization in Neural Networks".

    Args:
        model: Model in evaluation mode.
        activations: Activations from :func:`~genmeasures_transitions.find_activations`.
        trajectory: Closed trajectory in input space.
        points: Number k of equidistant points on the trajectory.
        batch: Number of points per forward pass.
        parts: Number of parts of the trajectory, ≤ ``points``. Step i, from point i to the next, is in part
            ⌊i · parts/k⌋.

    Returns:
        int64 (activations, parts).

    Raises:
        ModelError: If a batch runs other activations.
        Undefined: If an output has NaN or infinite values.

    Example:
        The circle crosses the boundary x₀ = 0 of a unit twice.

        >>> from genmeasures_transitions import Ellipse, find_activations
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU())
        >>> net[0].weight.data = torch.tensor([[1.0, 0.0]])
        >>> circle = Ellipse(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        >>> activations = find_activations(net, torch.zeros(2, 2))
        >>> count_transitions(net, activations, circle, points=99, batch=32).tolist()
        [[2]]
        >>> count_transitions(net, activations, circle, points=99, batch=32, parts=3).tolist()
        [[1, 0, 1]]
    """
    edges = [-(-part * points // parts) for part in range(parts + 1)]
    tallies = [_Tally(activation.thresholds, edges) for activation in activations]
    coder = Coder(model, activations, lambda index, pre: tallies[index].add(pre))
    with torch.no_grad():
        for start in range(0, points, batch):
            coder.run(trajectory.points(start, min(start + batch, points), points))
    counted = [tally.close() if tally.thresholds else [0] * parts for tally in tallies]
    return np.array(counted, dtype=np.int64)


def path_turning(model: nn.Module, trajectory: Trajectory, points: int, batch: int) -> float:
    """Compute ½ Σ_i ‖f'(z_i) − f'(z_{(i+1) mod k})‖ for the derivative f' of the output along a trajectory.

    It includes the turning of the trajectory itself, unlike the curvature of
    :func:`~genmeasures_transitions.path_profile`. f' is the derivative with respect to arc length, from forward-mode
    differentiation, whose rounding errors do not accumulate over the points. Differences of outputs would need no
    derivative, but in float32 their rounding errors, divided by the distance of neighbors and summed over all points,
    grow with k²: from about ten thousand points on, they exceed the result.

    Args:
        model: Model in evaluation mode.
        trajectory: Closed trajectory in input space.
        points: Number k of equidistant points on the trajectory.
        batch: Number of points per forward pass.

    Returns:
        The turning; about π for an isometry on a circle.

    Raises:
        Undefined: If the output is not one tensor.
        NotImplementedError: If a function of the model has no forward derivative.

    Example:
        >>> from genmeasures_transitions import Ellipse
        >>> circle = Ellipse(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        >>> round(path_turning(nn.Identity(), circle, points=1000, batch=100), 3)
        3.142
    """
    total = 0.0
    first: Tensor | None = None
    last: Tensor | None = None
    with torch.inference_mode(False), torch.no_grad():
        for start in range(0, points, batch):
            stop = min(start + batch, points)
            slopes = _slopes(model, trajectory.points(start, stop, points), trajectory.tangents(start, stop, points))
            if first is None or last is None:
                first = slopes[:1].clone()
            else:
                total += _distance(last, slopes[:1])
            total += _distance(slopes[1:], slopes[:-1])
            last = slopes[-1:].clone()
    assert first is not None
    assert last is not None
    return (total + _distance(last, first)) / 2


def _slopes(model: nn.Module, inputs: Tensor, tangents: Tensor) -> Tensor:
    """Derivatives (B, outputs) of the output at the inputs, along the tangents."""
    # The fused kernels of transformers and of attention have no forward derivative: a mode and a choice of the backend
    # avoid them.
    with forward_ad.dual_level(), BaseTorchFunctionMode(), sdpa_kernel(SDPBackend.MATH):
        output = run(model, forward_ad.make_dual(inputs, tangents))
        if not isinstance(output, Tensor):
            raise Undefined(f"the output of the model must be one tensor, got {type(output).__name__}")
        value, slope = forward_ad.unpack_dual(output)
        slope = torch.zeros_like(value) if slope is None else slope  # the output does not depend on the input
        return slope.reshape(len(inputs), -1)


def _distance(rows: Tensor, others: Tensor) -> float:
    return float(torch.linalg.vector_norm(rows - others, dim=1, dtype=torch.float64).sum())
