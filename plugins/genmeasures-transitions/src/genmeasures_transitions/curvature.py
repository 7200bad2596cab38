"""Jacobian matrices of the output with respect to the input, and the curvature, along a trajectory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genmeasures.plugin import Undefined
from genmeasures_transitions.codes import Activation, Coder, run
from genmeasures_transitions.counting import codes
from genmeasures_transitions.trajectories import Trajectory

EXACT = 128
"""Jacobians of outputs with more elements than this are estimated."""
PROJECTIONS = 32
"""Number of random projections of an estimate."""
_CELLS = 2**23
"""Approximate number of elements of the Jacobians of a batch."""
_RUNS = 16
"""Number of sequences of points with one code within which Jacobians are compared."""
_COMPARED = 80
"""Approximate number of points at which they are."""


@dataclass(frozen=True)
class Profile:
    """Values at k points z_i of a trajectory, float64 (k,)."""

    logits: NDArray[np.float64]
    """‖∂f/∂x‖_F of the output f."""
    softmax: NDArray[np.float64] | Undefined
    """‖∂ softmax(f)/∂x‖_F, or why there is none."""
    changes: NDArray[np.float64]
    """‖J(z_i) − J(z_{(i+1) mod k})‖_F with J = ∂f/∂x."""
    estimated: bool
    """Whether the norms are estimated from random projections."""

    @property
    def curvature(self) -> float:
        """½ Σ_i ‖J(z_i) − J(z_{(i+1) mod k})‖_F."""
        return float(self.changes.sum()) / 2


class Jacobians:
    """Rows of the Jacobian J of an output with n elements, or random projections vᵀJ of it if n is large.

    Args:
        model: Model in evaluation mode.
        example: A few inputs (B, …).
        generator: Draws the random signs v.

    Raises:
        Undefined: If the output is not one floating-point tensor.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> rows, output = Jacobians(net, torch.zeros(1, 2), torch.Generator())(torch.zeros(1, 2))
        >>> rows.tolist()
        [[[3.0, 0.0], [0.0, 4.0]]]
    """

    def __init__(self, model: nn.Module, example: Tensor, generator: torch.Generator) -> None:
        self._model = model
        with torch.inference_mode(False), torch.no_grad():
            output = _output(model, example)
        size = output[0].numel()
        self.estimated = size > EXACT
        self.classes = output.shape[1] if output.dim() == 2 else 0
        """Number of outputs, 0 if the output is not (B, classes)."""
        if self.estimated:
            signs = torch.randint(2, (PROJECTIONS, size), generator=generator, device=generator.device)
            self._vectors = (2 * signs - 1).to(output.device, output.dtype)
        else:
            self._vectors = torch.eye(size, dtype=output.dtype, device=output.device)
        self.batch = int(np.clip(_CELLS // (len(self._vectors) * example[0].numel()), 1, 256))
        """Number of inputs per batch."""

    def __call__(self, inputs: Tensor, softmax: bool = False) -> tuple[Tensor, Tensor]:
        """Compute rows or projections.

        Args:
            inputs: (B, …).
            softmax: Whether projections are those of the Jacobian of the softmax; exact rows are never.

        Returns:
            (B, m, d) for m rows or projections, and the output (B, …) without its graph.

        Raises:
            Undefined: If the output is not one tensor, or has no gradient with respect to the input.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaf = inputs.detach().clone().requires_grad_()
            output = _output(self._model, leaf.clone())  # a copy, which the model may overwrite
        rows = torch.zeros(len(inputs), len(self._vectors), leaf[0].numel(), dtype=leaf.dtype, device=leaf.device)
        if not output.requires_grad:
            return rows, output
        for index, vector in enumerate(self._vectors):
            cotangent = vector.reshape(1, *output.shape[1:]).expand_as(output)
            if softmax:
                cotangent = _through_softmax(output.detach(), cotangent).to(output.dtype)
            (row,) = torch.autograd.grad(output, leaf, cotangent, retain_graph=True, allow_unused=True)
            if row is not None:
                rows[:, index] = row.detach().flatten(1)
        return rows, output.detach()

    def mixture(self, inputs: Tensor) -> Tensor:
        """uᵀJ (B, d) for one random vector u, on which two different Jacobians agree with probability 0."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = inputs.detach().clone().requires_grad_()
            output = _output(self._model, leaf.clone())
        if not output.requires_grad:
            return torch.zeros_like(leaf).flatten(1)
        # Any vector will do: another seed gives another one, and the same answer.
        generator = torch.Generator("cpu").manual_seed(0)
        drawn = torch.randn(output.shape[1:], generator=generator, dtype=torch.float64, device="cpu")
        cotangent = drawn.to(output.device, output.dtype).expand_as(output)
        (row,) = torch.autograd.grad(output, leaf, cotangent, allow_unused=True)
        return (torch.zeros_like(leaf) if row is None else row).detach().flatten(1)

    def norms(self, rows: Tensor) -> Tensor:
        """‖·‖_F, float64 (B,), of matrices (B, m, d), or its estimate √(mean ‖vᵀ·‖²) from projections."""
        norms: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1, dtype=torch.float64)
        return norms / len(self._vectors) ** 0.5 if self.estimated else norms


def _output(model: nn.Module, inputs: Tensor) -> Tensor:
    output = run(model, inputs)
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() < 1:
        raise Undefined(f"the output of the model must be one tensor, got {type(output).__name__}")
    return output if output.dim() > 1 else output[:, None]


def _through_softmax(output: Tensor, vectors: Tensor) -> Tensor:
    """(diag(σ) − σσᵀ)v, float64 (B, n), for the softmax σ of outputs (B, n) and vectors (B, n)."""
    values = torch.softmax(output.double(), 1)
    differences = vectors.double() - vectors.gather(1, output.argmax(1, keepdim=True)).double()
    return values * (differences - (values * differences).sum(1, keepdim=True))


def _softmax_norms(rows: Tensor, output: Tensor) -> Tensor:
    """‖(diag(σ) − σσᵀ)J‖_F, float64 (B,), for rows J (B, n, d) and outputs (B, n)."""
    values = torch.softmax(output.double(), 1)[:, :, None]
    # Differences from the row of the most probable class, which avoids cancellation.
    first = output.argmax(1)[:, None, None].expand(-1, 1, rows.shape[2])
    differences = rows.double() - rows.gather(1, first).double()
    of_softmax = values * (differences - (values * differences).sum(1, keepdim=True))
    norms: Tensor = torch.linalg.vector_norm(of_softmax.flatten(1), dim=1)
    return norms


def path_profile(
    model: nn.Module,
    trajectory: Trajectory,
    points: int,
    jacobians: Jacobians,
    changed: NDArray[np.bool_] | None = None,
) -> Profile:
    """Compute Jacobian norms and changes of the Jacobian at equidistant points of a trajectory.

    Args:
        model: Model in evaluation mode.
        trajectory: Closed trajectory in input space.
        points: Number k of equidistant points on the trajectory.
        jacobians: Jacobians of the model.
        changed: For a piecewise linear model, whether the code of any unit differs at the next point, bool (k,), from
            :func:`changed_codes`: the Jacobian is computed only where one has changed. None computes it at every point.

    Raises:
        Undefined: If the output is not one tensor.

    Example:
        >>> from genmeasures_transitions import Ellipse
        >>> circle = Ellipse(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        >>> net = nn.Linear(2, 3)
        >>> path_profile(net, circle, 50, Jacobians(net, torch.zeros(1, 2), torch.Generator())).curvature
        0.0
    """
    new = np.ones(points, dtype=bool)
    if changed is not None:
        new[1:] = changed[:-1]
    logits, softmax, changes = np.zeros(points), np.zeros(points), np.zeros(points)
    known = jacobians.classes > 1
    first: Tensor | None = None
    last: Tensor | None = None
    for start in range(0, points, jacobians.batch):
        stop = min(start + jacobians.batch, points)
        inputs = trajectory.points(start, stop, points)
        computed, index = new[start:stop], torch.from_numpy(np.cumsum(new[start:stop])).to(inputs.device)
        parts = [] if last is None else [last]
        if computed.any():
            rows, output = jacobians(inputs[torch.from_numpy(computed).to(inputs.device)])
            parts.append(rows)
        unique = torch.cat(parts)
        matrices = unique.index_select(0, index - (1 if last is None else 0))
        if not computed.all() and known:
            with torch.no_grad():
                output = _output(model, inputs)
        logits[start:stop] = jacobians.norms(matrices).cpu().numpy()
        if known and jacobians.estimated:
            softmax[start:stop] = jacobians.norms(jacobians(inputs, softmax=True)[0]).cpu().numpy()
        elif known:
            softmax[start:stop] = _softmax_norms(matrices, output).cpu().numpy()
        if last is not None:
            changes[start - 1] = float(jacobians.norms(matrices[:1] - last))
        changes[start : stop - 1] = jacobians.norms(matrices[1:] - matrices[:-1]).cpu().numpy()
        first = matrices[:1].clone() if first is None else first
        last = matrices[-1:].clone()
    assert first is not None
    assert last is not None
    changes[-1] = float(jacobians.norms(first - last))
    reason = Undefined("the softmax needs outputs of the shape (inputs, classes), with at least two classes")
    return Profile(logits, softmax if known else reason, changes, jacobians.estimated)


def changed_codes(
    model: nn.Module, activations: Sequence[Activation], trajectory: Trajectory, points: int, batch: int
) -> NDArray[np.bool_]:
    """Return for each of k points whether the code of any unit differs at the next one.

    Args:
        model: Model in evaluation mode.
        activations: Activations of the model.
        trajectory: Closed trajectory in input space.
        points: Number k of equidistant points on the trajectory.
        batch: Number of points per forward pass.

    Returns:
        bool (k,).

    Example:
        >>> from genmeasures_transitions import Ellipse, find_activations
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU())
        >>> net[0].weight.data = torch.tensor([[1.0, 0.0]])
        >>> circle = Ellipse(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        >>> changed_codes(net, find_activations(net, torch.zeros(2, 2)), circle, points=5, batch=2).tolist()
        [False, True, False, True, False]
    """
    changed = np.zeros(points, dtype=bool)
    start = 0

    def receive(index: int, pre: Tensor) -> None:
        for code in codes(pre, activations[index].thresholds):
            bits = code if isinstance(code, np.ndarray) else code.cpu().numpy()
            differs = (bits[1:] != bits[:-1]).reshape(len(bits) - 1, -1).any(1)
            changed[start : start + len(differs)] |= differs

    coder = Coder(model, activations, receive)
    with torch.no_grad():
        for start in range(0, points, batch):
            # One point more, so that every step lies within a batch.
            stop = min(start + batch, points)
            following = trajectory.points(*((0, 1) if stop == points else (stop, stop + 1)), points)
            coder.run(torch.cat([trajectory.points(start, stop, points), following]))
    return changed


def is_piecewise_linear(
    activations: Sequence[Activation],
    trajectories: Sequence[Trajectory],
    changed: Sequence[NDArray[np.bool_]],
    jacobians: Jacobians,
) -> bool:
    """Whether the Jacobian is the same within the longest sequences of points with one code.

    It is not if the model contains a function that is neither linear nor an activation, such as a product or a softmax.
    Of a model without codes, all points are compared: each trajectory is one sequence.

    Args:
        activations: Activations of the model.
        trajectories: Closed trajectories in input space.
        changed: For each of them, whether the code of any unit differs at the next point, bool (k,).
        jacobians: Jacobians of the model.

    Raises:
        Undefined: If the output is not one tensor.

    Example:
        >>> from genmeasures_transitions import Ellipse, find_activations
        >>> circle = Ellipse(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Softmax(1))
        >>> found = find_activations(net, torch.zeros(2, 2))
        >>> changed = changed_codes(net, found, circle, 50, batch=50)
        >>> is_piecewise_linear(found, [circle], [changed], Jacobians(net, torch.zeros(1, 2), torch.Generator()))
        False
    """
    every = [(path, start, stop) for path, own in enumerate(changed) for start, stop in _runs(own) if stop > start]
    runs = sorted(every, key=lambda run: run[1] - run[2])
    most = max(map(len, changed), default=0)
    if any(activation.thresholds for activation in activations):
        runs = runs[:_RUNS]
        most = max(2, _COMPARED // max(len(runs), 1))
    size = max(jacobians.batch - 1, 1)
    for path, start, stop in runs:
        places = np.linspace(start, stop, min(most, stop - start + 1)).round().astype(int)
        for begin in range(1, len(places), size):
            some = [places[0], *places[begin : begin + size]]
            inputs = [trajectories[path].points(place, place + 1, len(changed[path])) for place in some]
            rows = jacobians.mixture(torch.cat(inputs)).double()
            norms, differences = (torch.linalg.vector_norm(each, dim=1) for each in (rows, rows - rows[:1]))
            tolerance = 1e-9 if inputs[0].dtype == torch.float64 else 1e-4
            if bool((differences > tolerance * norms.max()).any()):
                return False
    return True


def _runs(changed: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First and last points of the sequences of points with one code, from the first point to the last one."""
    start = 0
    for stop in [*np.flatnonzero(changed[:-1]), len(changed) - 1]:
        yield start, int(stop)
        start = int(stop) + 1
