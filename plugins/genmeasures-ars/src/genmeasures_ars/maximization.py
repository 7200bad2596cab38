"""Activation maximization: inputs to which one kernel of a layer responds most, all kernels side by side.

Sources: Erhan et al. 2009 (AM); "Exploring the generalizability of CNNs via activated representational
substitution", eq. 1 (AM) and eq. 2 (IAM). The paper leaves open the noise, the step size and the
normalization of the gradient. Here noise is standard normal; the gradient of each input is divided by
its own root mean square, so that every step is of one length whatever the scale of the network, and
inputs in one batch do not see each other; and the inputs are not bounded, as eq. 1 has no constraint.

Without a bound, the input of a network of ReLUs and pools only grows once its direction is found, and
steps of one length turn it less and less. The way that the paper's 1500 steps go is therefore gone in
strides as long as a few hundredths of the way behind, along a running mean of the gradients, since long
strides across a kink would go back and forth: 130 strides end at an objective as high (``benchmarks/cost.py``).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genmeasures.plugin import ModelError
from genmeasures_ars.network import Truncated

log = logging.getLogger(__name__)

OBJECTIVES = ("iam", "am")
_MOMENTUM = 0.5
"""Weight of the gradients before in their running mean."""
_CPU_BATCH = 16
"""Inputs side by side on a CPU at most: with more, their maps leave its caches (1.1 to 1.5 times slower at 64)."""


@dataclass(frozen=True)
class Ascent:
    """What the ascents for n kernels found."""

    inputs: Tensor
    """(n, …): the inputs x*, each the one of the highest objective on its way."""
    means: Tensor
    """float64 (n, I): mean activation of every kernel of the layer for each of them."""
    maps: Tensor
    """(n, *spatial): the activation map of the kernel that each was made for."""
    objective: Tensor
    """float64 (n,)."""


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


def strides(steps: int, step_size: float, growth: float) -> list[float]:
    """Lengths whose sum is steps · step_size: each is ``growth`` of the way behind it, and step_size at least."""
    lengths, behind = [], 0.0
    while behind < steps:
        lengths.append(min(max(1.0, growth * behind), steps - behind))
        behind += lengths[-1]
    return [step_size * length for length in lengths]


def ascend(run: Truncated, inputs: Tensor, kernels: Tensor, objective: str, lengths: Sequence[float]) -> Ascent:
    """Gradient ascent from inputs (n, …), each for its own kernel int64 (n,), in one batch.

    v ← ½ v + ½ g/rms(g), x ← x + length · v/rms(v), for each of the lengths: all of them, for RS and AR
    stand still for long and change again. Raises ModelError where no gradient reaches the inputs.
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
    # Where the end is not a number it stays the end: what came before must not hide it.
    fallen = value < highest
    if fallen.any():
        x = torch.where(_beside(fallen, x), best, x)
        maps, means, value = _response(run, x, kernels, objective)
    return Ascent(x, means, _own(maps, kernels).clone(), value)


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

    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = run(example.detach().clone().requires_grad_())
    except ModelError as error:
        # torch.func within a model takes no such hooks. What else is wrong goes wrong again.
        log.debug("the memory of the graph is not known", exc_info=error)
        return 1
    one = sum(kept.values()) + (output.numel() + 3 * example.numel()) * output.element_size()
    return max(1, min(memory // (2 * one), _CPU_BATCH if example.device.type == "cpu" else sys.maxsize))


def _response(run: Truncated, x: Tensor, kernels: Tensor, objective: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of inputs x (n, …): maps (n, I, *spatial), means float64 (n, I) and objectives float64 (n,)."""
    with torch.no_grad():
        maps = run(x)
        means = maps.double().flatten(2).mean(2)
    return maps, means, objective_of(means, kernels, objective)


def _beside(rows: Tensor, like: Tensor) -> Tensor:
    """(n, 1, …): one entry a row, to go with tensors (n, …)."""
    return rows.view(-1, *[1] * (like.dim() - 1))


def _own(maps: Tensor, kernels: Tensor) -> Tensor:
    """(n, *spatial): of maps (n, I, *spatial) the one of each row's kernel."""
    return maps[torch.arange(len(kernels), device=maps.device), kernels]


def _gradient(run: Truncated, x: Tensor, kernels: Tensor, objective: str) -> tuple[Tensor, Tensor]:
    """Of inputs x (n, …): gradients (n, …) of the objective, and means (n, I)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        # A copy goes in, for a model may write over its input, and a leaf must not be written to.
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
    # Scaled first, for squares of small gradients are 0 in float32.
    largest = flat.abs().amax(1, keepdim=True)
    flat = flat / torch.where(largest > 0, largest, 1.0)
    size = torch.linalg.vector_norm(flat, dim=1, keepdim=True) / flat.shape[1] ** 0.5
    unit: Tensor = (flat / size.clamp_min(torch.finfo(flat.dtype).tiny)).view_as(gradient)
    return unit
