"""Activation maximisation: inputs to which one kernel of a layer responds most, all kernels side by side.

Sources: Erhan et al. 2009 (AM); "Exploring the generalizability of CNNs via activated representational
substitution", eq. 1 (AM) and eq. 2 (IAM). The paper leaves open the noise, the step size and the
normalisation of the gradient. Here noise is standard normal; the gradient of each input is divided by
its own root mean square, so that every step is of one length whatever the scale of the network, and
inputs in one batch do not see each other; and the inputs are not bounded, as eq. 1 has no constraint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genmeasures.plugin import ModelError
from genmeasures_ars.network import Truncated
from genmeasures_ars.scores import exceeding

OBJECTIVES = ("iam", "am")
AR_TOLERANCE = 0.005
"""By how much AR may move while a kernel still counts as settled: entries near 0 flicker with every step."""
_CHECK = 10
"""Steps between two looks at which kernels have settled: on a GPU each look waits for the device."""
_CPU_BATCH = 16
"""Inputs side by side on a CPU at most: with more, their maps leave its caches (1.1 to 1.5 times slower at 64)."""


@dataclass(frozen=True)
class Ascent:
    """Where the ascents for n kernels ended."""

    inputs: Tensor
    """(n, …): the inputs x*."""
    means: Tensor
    """float64 (n, I): mean activation of every kernel of the layer for each of them."""
    maps: Tensor
    """(n, *spatial): the activation map of the kernel that each was made for."""
    objective: Tensor
    """float64 (n,)."""
    steps: Tensor
    """int64 (n,): steps taken."""


def objective_of(means: Tensor, kernels: Tensor, objective: str) -> Tensor:
    """(n,): h_i ("am", eq. 1) or h_i − (1/I) Σ_{j≠i} h_j ("iam", eq. 2), from means h (n, I), kernels int64 (n,)."""
    own = means.gather(1, kernels[:, None]).squeeze(1)
    return own if objective == "am" else own - (means.sum(1) - own) / means.shape[1]


def begin_at(run: Truncated, noise: Tensor) -> tuple[Tensor, Tensor]:
    """int64 (I,): the first of the noise inputs (s, …) that each kernel responds to; bool (I,): whether there is one.

    At an input to which a kernel is silent everywhere its gradient is zero, and an ascent would stay
    there however well the kernel responds elsewhere.
    """
    with torch.no_grad():
        responds = torch.cat([(run(one) > 0).flatten(2).any(2) for one in noise.split(1)])
    return responds.int().argmax(0), responds.any(0)


def ascend(
    run: Truncated,
    inputs: Tensor,
    kernels: Tensor,
    objective: str,
    steps: int,
    step_size: float,
    patience: int | None,
) -> Ascent:
    """Gradient ascent from inputs (n, …), each for its own kernel int64 (n,), in one batch.

    x ← x + step_size · g/rms(g), at most ``steps`` times. A kernel has settled, and its input stays
    as it is, once over ``patience`` steps on end the number of kernels that exceed it has not
    changed, nor its AR by more than ``AR_TOLERANCE``; None takes all steps. Raises ModelError where
    no gradient reaches the inputs.
    """
    active = torch.arange(len(kernels), device=inputs.device)
    taken = torch.zeros_like(active)
    ended = inputs.detach().clone()
    x = ended.clone()
    target = kernels
    rank, share = torch.full_like(active, -1), torch.full(active.shape, torch.inf, device=inputs.device)
    still = torch.zeros_like(active)
    for step in range(steps):
        gradient, maps, means = _gradient(run, x, target, objective)
        if patience is not None:
            new_rank, new_share = exceeding(means, target), (_own(maps, target) > 0).float().flatten(1).mean(1)
            same = (new_rank == rank) & ((new_share - share).abs() <= AR_TOLERANCE)
            still = torch.where(same, still + 1, 0)
            # The share is held against that of the beginning of the quiet stretch, lest it drifts away unseen.
            rank, share = new_rank, torch.where(same, share, new_share)
            if step and step % _CHECK == 0 and bool((settled := still >= patience).any()):
                ended[active[settled]], taken[active[settled]] = x[settled], step
                rest = ~settled
                active, target, x, gradient = active[rest], target[rest], x[rest], gradient[rest]
                rank, share, still = rank[rest], share[rest], still[rest]
                if not len(active):
                    break
        x = x + step_size * _unit(gradient)
    ended[active], taken[active] = x, steps
    with torch.no_grad():
        maps = run(ended)
        means = maps.double().flatten(2).mean(2)
        own = _own(maps, kernels).clone()
    return Ascent(ended, means, own, objective_of(means, kernels, objective), taken)


def fitting_batch(run: Truncated, example: Tensor, parameters: Sequence[nn.Parameter], memory: int) -> int:
    """How many inputs (1, …) fit into ``memory`` bytes in one step of an ascent, at least 1.

    On a CPU no more than are fastest. Counted is what one forward pass keeps for its gradient, twice
    over: gradients, too, are as large. Parameters are there once, whatever the batch.
    """
    kept: dict[int, int] = {}
    apart = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run(example.detach().clone().requires_grad_())
    one = sum(kept.values()) + (output.numel() + 3 * example.numel()) * output.element_size()
    return max(1, min(memory // (2 * one), _CPU_BATCH if example.device.type == "cpu" else sys.maxsize))


def _own(maps: Tensor, kernels: Tensor) -> Tensor:
    """(n, *spatial): of maps (n, I, *spatial) the one of each row's kernel."""
    return maps[torch.arange(len(kernels), device=maps.device), kernels]


def _gradient(run: Truncated, x: Tensor, kernels: Tensor, objective: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of inputs x (n, …): gradients (n, …) of the objective, maps (n, I, *spatial) and means (n, I)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        # A copy goes in, for a model may write over its input, and a leaf must not be written to.
        maps = run(x.clone())
        means = maps.flatten(2).mean(2)
        total = objective_of(means, kernels, objective).sum()
        if not total.requires_grad:
            raise ModelError("no gradient reaches the input: the model runs without gradients")
        (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
    if gradient is None:
        raise ModelError("no gradient reaches the input: the model detaches it")
    return gradient, maps.detach(), means.detach()


def _unit(gradient: Tensor) -> Tensor:
    """Gradients (n, …) of root mean square 1 each; one that is 0 stays 0."""
    flat = gradient.flatten(1)
    size = torch.linalg.vector_norm(flat, dim=1, keepdim=True) / flat.shape[1] ** 0.5
    unit: Tensor = (flat / size.clamp_min(torch.finfo(flat.dtype).tiny)).view_as(gradient)
    return unit
