"""Transitions and curvature along a trajectory, streamed: a row of codes is all that is kept of a batch."""

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
"""bool (B, …): whether a threshold is exceeded, a NumPy array of the CPU, a tensor elsewhere."""

_CELLS = 2**18
"""Elements of the largest tensor of a batch, about: it stays in the cache, and the calls do not tell."""
_ROWS = (32, 1024)


def batch_size(activations: Sequence[Activation], example: Tensor) -> int:
    """Points to run at once, from the size of the largest activation and of one input of the example (B, …)."""
    largest = max(example[0].numel(), *(int(np.prod(activation.shape)) for activation in activations))
    return int(np.clip(_CELLS // largest, *_ROWS))


def codes(pre: Tensor, thresholds: Sequence[float]) -> list[Codes]:
    """bool (B, …) for each threshold: whether the pre-activation (B, …) exceeds it; the code is their sum."""
    if pre.device.type != "cpu" or pre.dtype not in (torch.float32, torch.float64):
        return [pre > threshold for threshold in thresholds]
    if pre.dim() > 2 and not pre.is_contiguous():
        pre = pre.movedim(1, -1)  # channels last: the order in memory is the fast one
    values = pre.detach().numpy()  # NumPy compares eight times as fast as PyTorch does on a CPU
    return [values > threshold for threshold in thresholds]


def _differences(one: Codes, other: Codes) -> int | Tensor:
    """On how many elements codes differ: a tensor of a GPU, so that nothing waits for it."""
    if isinstance(one, Tensor):
        return torch.count_nonzero(one != other)
    return int(np.count_nonzero(one != other))


@dataclass
class _Tally:
    """Transitions of one activation: points come batch by batch in order."""

    thresholds: tuple[float, ...]
    total: int | Tensor = 0
    _first: list[Codes] = field(default_factory=list)
    _last: list[Codes] = field(default_factory=list)

    def add(self, pre: Tensor) -> None:
        made = codes(pre, self.thresholds)
        for code in made:
            self.total = self.total + _differences(code[1:], code[:-1])
        if self._last:
            self._link(self._last, [code[:1] for code in made])
        else:
            self._first = [_copy(code[:1]) for code in made]
        self._last = [_copy(code[-1:]) for code in made]

    def close(self) -> int:
        """All transitions, with that from the last point to the first."""
        self._link(self._last, self._first)
        return int(self.total)

    def _link(self, before: Sequence[Codes], after: Sequence[Codes]) -> None:
        for one, other in zip(before, after, strict=True):
            self.total = self.total + _differences(one, other)


def _copy(code: Codes) -> Codes:
    """A row by itself, which does not keep its whole batch alive."""
    return code.clone() if isinstance(code, Tensor) else code.copy()


def count_transitions(
    model: nn.Module, activations: Sequence[Activation], trajectory: Trajectory, points: int, batch: int
) -> NDArray[np.int64]:
    """t = Σ_i ‖c(z_i) − c(z_{(i+1) mod k})‖₁ of each activation (Novak et al. 2018), int64 (activations,).

    activations: what :func:`~genmeasures_transitions.find_activations` found in the model. points: k,
    equidistant on the trajectory. batch: how many are run at once. Raises ModelError if a batch runs
    other activations.
    """
    tallies = [_Tally(activation.thresholds) for activation in activations]
    coder = Coder(model, activations, lambda place, pre: tallies[place].add(pre))
    with torch.no_grad():
        for start in range(0, points, batch):
            coder.run(trajectory.points(start, min(start + batch, points), points))
    return np.array([tally.close() for tally in tallies], dtype=np.int64)


def curvature(model: nn.Module, trajectory: Trajectory, points: int, batch: int) -> float:
    """½ Σ_i ‖f'(z_i) − f'(z_{(i+1) mod k})‖_F, with f' the derivative of the output along the path by its length.

    f' comes from forward-mode differentiation: no rounding adds up over the points. Differences of
    outputs would be free, but in float32 their rounding, divided by the distance of neighbors and
    summed over all points, grows with the square of k: from some ten thousand points on it outweighs
    the curvature. Raises Undefined if the output is not one tensor, NotImplementedError if one of the
    model's functions has no forward derivative.
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
    """(B, outputs): derivatives of the output at the inputs, along the tangents."""
    # Transformers and attention have fused kernels without a forward derivative: a mode and the choice keep them out.
    with forward_ad.dual_level(), BaseTorchFunctionMode(), sdpa_kernel(SDPBackend.MATH):
        output = run(model, forward_ad.make_dual(inputs, tangents))
        if not isinstance(output, Tensor):
            raise Undefined(f"the model's output is a {type(output).__name__}, not one tensor to differentiate")
        value, slope = forward_ad.unpack_dual(output)
        slope = torch.zeros_like(value) if slope is None else slope  # an output that reads no input
        return slope.reshape(len(inputs), -1)


def _distance(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one - other, dim=1, dtype=torch.float64).sum())
