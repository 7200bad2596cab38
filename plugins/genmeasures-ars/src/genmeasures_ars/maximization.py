"""Activation maximization: inputs to which one kernel of a layer responds most, for all kernels side by side.

Sources: Erhan et al. 2009 (AM); "Exploring the generalizability of CNNs via activated representational substitution",
eq. 1 (AM) and eq. 2 (IAM). The paper does not specify the noise, the step size and the normalization of the gradient.
Here the noise is standard normal; the gradient of each input is divided by its root mean square, so that all steps have
the same length for networks of any scale, and the inputs of a batch are independent; and inputs are not bounded, since
eq. 1 has no constraint.

Without a bound, the input of a network of ReLUs and pools only grows once its direction is found, and steps of constant
length turn it less and less. The path of the paper's 1500 steps is therefore taken in strides whose length is a few
hundredths of the path before them, along a running mean of the gradients, since long strides across a kink would
oscillate. 130 strides reach an equally high objective (``benchmarks/cost.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genmeasures.plugin import ModelError, graph_memory
from genmeasures_ars.network import Truncated

OBJECTIVES = ("iam", "am")
_MOMENTUM = 0.5
"""Weight of the previous gradients in their running mean."""
_CPU_BATCH = 16
"""Maximum inputs side by side on a CPU: maps of more do not fit into its caches (1.1 to 1.5 times slower at 64)."""


@dataclass(frozen=True)
class Ascent:
    """Result of the ascents for n kernels."""

    inputs: Tensor
    """(n, …): the inputs x*, each with the highest objective on its path."""
    means: Tensor
    """float64 (n, I): mean activation of every kernel of the layer for each of them."""
    maps: Tensor
    """(n, *spatial): the activation map of the kernel of each input."""
    objective: Tensor
    """float64 (n,)."""


def objective_of(means: Tensor, kernels: Tensor, objective: str) -> Tensor:
    """Return the objectives h_i ("am", eq. 1) or h_i − (1/I) Σ_{j≠i} h_j ("iam", eq. 2).

    Args:
        means: Mean activations h (n, I) of all kernels of the layer for n inputs.
        kernels: int64 (n,), the kernel i of each input.
        objective: ``"am"`` or ``"iam"``.

    Returns:
        Objectives (n,), in the dtype of ``means``.

    Example:
        >>> objective_of(torch.tensor([[4.0, 1.0]]), torch.tensor([0]), "iam")
        tensor([3.5000])
    """
    own = means.gather(1, kernels[:, None]).squeeze(1)
    return own if objective == "am" else own - (means.sum(1) - own) / means.shape[1]


def begin_at(run: Truncated, noise: Tensor) -> Tensor:
    """Return the first noise input that each kernel responds to, or the first of all if there is none.

    At an input to which a kernel does not respond at all, its gradient is zero, and the ascent of AM would not move.

    Args:
        run: Truncated network.
        noise: Inputs (t, …).

    Returns:
        Indices of the inputs, int64 (I,).

    Example:
        >>> begin_at(lambda x: torch.stack([x, -x], 1), torch.tensor([[-1.0], [2.0]]))
        tensor([1, 0])
    """
    with torch.no_grad():
        responds = torch.cat([(run(start) > 0).flatten(2).any(2) for start in noise.split(1)])
    return responds.int().argmax(0)


def strides(steps: int, step_size: float, growth: float) -> list[float]:
    """Return the lengths of strides along a path of the length ``steps`` · ``step_size``.

    Args:
        steps: Number of steps of constant length that the path stands for.
        step_size: Length of a step, the smallest length of a stride except for the last.
        growth: Length of a stride as a fraction of the path before it.

    Example:
        >>> strides(8, 1.0, 0.5)
        [1.0, 1.0, 1.0, 1.5, 2.25, 1.25]
    """
    lengths, behind = [], 0.0
    while behind < steps:
        lengths.append(min(max(1.0, growth * behind), steps - behind))
        behind += lengths[-1]
    return [step_size * length for length in lengths]


def ascend(run: Truncated, inputs: Tensor, kernels: Tensor, objective: str, lengths: Sequence[float]) -> Ascent:
    """Run gradient ascents side by side in one batch.

    A step is v ← ½ v + ½ g/rms(g), x ← x + length · v/rms(v). There is no early stopping, since RS and AR may stay
    constant for long and then change.

    Args:
        run: Truncated network.
        inputs: Inputs (n, …) to start from.
        kernels: int64 (n,), the kernel of each input.
        objective: ``"am"`` or ``"iam"``.
        lengths: Lengths of the steps, see :func:`strides`.

    Raises:
        ModelError: If no gradient reaches the inputs.

    Example:
        >>> ascent = ascend(lambda x: torch.stack([x, -x], 1), torch.ones(1, 3), torch.tensor([1]), "am", [1.0, 1.0])
        >>> ascent.inputs
        tensor([[-1., -1., -1.]])
    """
    x = inputs.detach().clone()
    best, highest = x, torch.full((len(kernels),), -torch.inf, dtype=torch.float64, device=inputs.device)
    mean = torch.zeros_like(x)
    for length in lengths:
        gradient, means = _gradient(run, x, kernels, objective)
        value = objective_of(means.double(), kernels, objective)
        higher = value > highest
        highest = torch.where(higher, value, highest)
        best = torch.where(_beside(higher, x), x, best)
        mean = _MOMENTUM * mean + (1 - _MOMENTUM) * _unit(gradient)
        x = x + length * _unit(mean)
    maps, means, value = _response(run, x, kernels, objective)
    # An end that is NaN stays the end: earlier inputs must not hide it.
    fallen = value < highest
    if fallen.any():
        x = torch.where(_beside(fallen, x), best, x)
        maps, means, value = _response(run, x, kernels, objective)
    return Ascent(x, means, _own(maps, kernels).clone(), value)


def fitting_batch(run: Truncated, example: Tensor, parameters: Sequence[nn.Parameter], memory: int) -> int:
    """Return the number of inputs of one step of an ascent that fit into memory.

    An input needs twice the memory that a forward pass keeps for its gradient, since gradients are as large. Parameters
    exist once for all batches. On a CPU, the number is at most 16, which is fastest.

    Args:
        run: Truncated network.
        example: One input (1, …).
        parameters: Parameters of the network, which are not counted.
        memory: Memory in bytes.

    Returns:
        Number of inputs, at least 1.

    Example:
        >>> net = nn.Conv2d(1, 2, 3)
        >>> fitting_batch(net, torch.zeros(1, 1, 8, 8), list(net.parameters()), memory=2**26)
        16
    """
    graph = graph_memory(run, example, parameters)
    if graph is None:
        return 1
    kept, output = graph
    per_input: int = kept + (output.numel() + 3 * example.numel()) * output.element_size()
    return max(1, min(memory // (2 * per_input), _CPU_BATCH if example.device.type == "cpu" else sys.maxsize))


def _response(run: Truncated, x: Tensor, kernels: Tensor, objective: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of inputs x (n, …): maps (n, I, *spatial), means float64 (n, I) and objectives float64 (n,)."""
    with torch.no_grad():
        maps = run(x)
        means = maps.double().flatten(2).mean(2)
    return maps, means, objective_of(means, kernels, objective)


def _beside(rows: Tensor, like: Tensor) -> Tensor:
    """(n, 1, …): one entry per row, to broadcast with tensors (n, …)."""
    return rows.view(-1, *[1] * (like.dim() - 1))


def _own(maps: Tensor, kernels: Tensor) -> Tensor:
    """(n, *spatial): of maps (n, I, *spatial) the one of each row's kernel."""
    return maps[torch.arange(len(kernels), device=maps.device), kernels]


def _gradient(run: Truncated, x: Tensor, kernels: Tensor, objective: str) -> tuple[Tensor, Tensor]:
    """Of inputs x (n, …): gradients (n, …) of the objective, and means (n, I)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        # A copy, since a model may overwrite its input, and a leaf must not be overwritten.
        means = run(x.clone()).flatten(2).mean(2)
        total = objective_of(means, kernels, objective).sum()
        if not total.requires_grad:
            raise ModelError("no gradient reaches the input: the model runs without gradients")
        (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
    if gradient is None:
        raise ModelError("no gradient reaches the input: the model detaches it")
    return gradient, means.detach()


def _unit(gradient: Tensor) -> Tensor:
    """Gradients (n, …) of root mean square 1 each; one that is 0 stays 0."""
    flat = gradient.flatten(1)
    # Scaled first, since squares of small gradients are 0 in float32.
    largest = flat.abs().amax(1, keepdim=True)
    flat = flat / torch.where(largest > 0, largest, 1.0)
    size = torch.linalg.vector_norm(flat, dim=1, keepdim=True) / flat.shape[1] ** 0.5
    unit: Tensor = (flat / size.clamp_min(torch.finfo(flat.dtype).tiny)).view_as(gradient)
    return unit
