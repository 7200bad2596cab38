"""Square norms of the Jacobian of a model's output by its input, input by input.

B inputs in a batch with d elements each, C channels of the output (classes), P positions (1 unless
the output is dense). Logits are handed around as (B, C, P). Gradients of logits are as precise as
the model's parameters; the softmax, and all sums, are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from genmeasures.plugin import ModelError, Undefined, eager
from genmeasures_jacobian.projections import signs
from genmeasures_jacobian.softmax import Softmax

Run: TypeAlias = Callable[[Tensor], Tensor]
"""Takes inputs (B, …) to logits (B, C, P)."""


@dataclass(frozen=True)
class Squares:
    """Square norms of a batch, float64: one row a projection where they are estimated, a single row where exact."""

    jacobian: Tensor
    """(m, B): ‖J‖_F², J of the softmax or of the logits, over all positions."""
    logits: Tensor | None
    """(m', B): ‖∂f/∂x‖_F² of the logits; None where not asked for."""
    target: Tensor | None
    """(B,): ‖J_y‖₂² of the true class; None where not asked for."""
    output: Tensor
    """(B, C, P): the logits, as the model computes them."""


def runner(model: nn.Module) -> Run:
    """The model as a function with one output (B, C, P), of (B,), (B, C) or (B, C, *S).

    Raises ModelError, when called, for an output that is not one floating-point tensor with the batch first.
    """

    def run(inputs: Tensor) -> Tensor:
        with eager():
            # A copy, for a model may overwrite its input, which a leaf of the graph does not allow.
            output = model(inputs.clone())
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(f"the model's output is of type {kind}, not one floating-point tensor to differentiate")
        if output.dim() == 0 or len(output) != len(inputs):
            raise ModelError(f"the model's output of shape {tuple(output.shape)} does not have the batch first")
        return output.reshape(len(output), output.shape[1] if output.dim() > 1 else 1, -1)

    return run


def outputs(run: Run, inputs: Tensor) -> Tensor:
    """(B, C, P) without a graph."""
    with torch.inference_mode(False), torch.no_grad():
        return run(inputs)


def exact_backward(run: Run, inputs: Tensor, softmax: bool, targets: Tensor | None = None) -> Squares:
    """By one backward pass for every output.

    inputs (B, …). softmax: of its probabilities rather than of the logits. targets: int64 (B,), the
    true classes, whose rows are wanted too, for P = 1. ``logits`` is filled too.

    With r the most probable class, D_i = g_i − g_r the gradients of the logits from there and
    H = Σ_i σ_i D_i, row i is J_i = σ_i (D_i − H): three sums are kept of the rows, not the rows. The
    r of every input comes first, so that its gradient is there when the others come.
    """
    leaf, output = _graph(run, inputs)
    batch, channels, positions = output.shape
    total = torch.zeros(batch, dtype=torch.float64, device=inputs.device)
    logits = torch.zeros_like(total)
    own = torch.zeros_like(total)
    head = Softmax(output)

    def row_of(channel: Tensor, position: int) -> Tensor:
        """float64 (B, d): of each input's logit at its channel (B,)."""
        cotangent = torch.zeros_like(output)
        cotangent[:, :, position].scatter_(1, channel[:, None], 1.0)
        return gradient(output, leaf, cotangent).flatten(1).double()

    for position in range(positions):
        first = head.first[:, 0, position]
        probabilities = head.values[:, :, position]
        # Σ σ_i² ‖D_i‖², Σ σ_i D_i, Σ σ_i² D_i and D_y
        squares = torch.zeros_like(total)
        mean, squares_mean, true = torch.zeros(3, *leaf.flatten(1).shape, dtype=torch.float64, device=leaf.device)
        reference: Tensor | None = None
        for place in range(channels):
            # The first of the channels trades places with the most probable one.
            channel = first if place == 0 else torch.where(first == place, 0, place)
            row = row_of(channel, position)
            logits += _square(row)
            if softmax:
                reference = row.clone() if reference is None else reference
                row -= reference
            if targets is not None:
                chosen = targets == channel
                true[chosen] = row[chosen]
            if not softmax:
                total += _square(row)
            elif place:
                weight = probabilities.gather(1, channel[:, None])
                squares += weight[:, 0].square() * _square(row)
                mean.addcmul_(weight, row)
                squares_mean.addcmul_(weight.square(), row)
        if softmax:
            cross = (squares_mean * mean).sum(1)
            total += (squares - 2 * cross + probabilities.square().sum(1) * _square(mean)).clamp(min=0)
        if targets is not None and softmax:
            own += (probabilities.gather(1, targets[:, None])[:, 0]).square() * _square(true - mean)
        elif targets is not None:
            own += _square(true)
    return Squares(total[None], logits[None], None if targets is None else own, output.detach())


def exact_forward(run: Run, inputs: Tensor, softmax: bool, targets: Tensor | None = None, rows: int = 1) -> Squares:
    """By forward-mode differentiation along every element of the input; the same as :func:`exact_backward`.

    rows: how many to run at once, each with one direction. Raises NotImplementedError or RuntimeError
    for a model with a function that has no forward derivative.
    """
    batch, size = len(inputs), inputs[0].numel()
    total = torch.zeros(batch, dtype=torch.float64, device=inputs.device)
    logits = torch.zeros_like(total)
    own = torch.zeros_like(total)
    step = max(1, rows // batch)
    output = inputs
    for start in range(0, size, step):
        count = min(step, size - start)
        directions = torch.zeros(count, batch, size, dtype=inputs.dtype, device=inputs.device)
        along = torch.arange(count, device=inputs.device)
        directions[along, :, start + along] = 1.0
        repeated = inputs.repeat(count, *[1] * (inputs.dim() - 1))
        output, column = pushed(run, repeated, directions.reshape(repeated.shape))
        logits += _square(column).reshape(count, batch).sum(0)
        if softmax:
            column = Softmax(output).product(column)
        total += _square(column).reshape(count, batch).sum(0)
        if targets is not None:
            own += column[:, :, 0].gather(1, targets.repeat(count)[:, None]).reshape(count, batch).square().sum(0)
    return Squares(total[None], logits[None], None if targets is None else own, output[:batch])


def pushed(run: Run, inputs: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (B, C, P) and their derivatives along the tangents, float64, by forward-mode differentiation."""
    with torch.inference_mode(False), torch.no_grad(), forward_ad.dual_level():
        output, tangent = forward_ad.unpack_dual(run(forward_ad.make_dual(inputs.clone(), tangents)))
        if tangent is None:
            raise _no_gradient()
        return output.clone(), tangent.double()


def hutchinson(
    run: Run, inputs: Tensor, softmax: bool, seeds: Sequence[int], projections: int, targets: Tensor | None = None
) -> Squares:
    """Estimates ‖vᵀJ‖² for random signs v (Hutchinson 1990), by one backward pass for each.

    seeds: of the signs of each input. targets: as of :func:`exact_backward`; the logits are then
    estimated too, with an eighth of the projections, for they are averaged over inputs, and the rows
    of the true classes are exact.
    """
    leaf, output = _graph(run, inputs)
    head = Softmax(output)
    few = 0 if targets is None or not softmax else -(-projections // 8)
    vectors = signs(seeds, projections + few, output[0].numel()).to(output.device)

    def square(vector: Tensor, through: bool) -> Tensor:
        """float64 (B,): ‖vᵀJ‖² for v (B, C, P), of the softmax or of the logits."""
        cotangent = head.product(vector) if through else vector.double()
        # Scaled, for in float32 the square of a sure network's gradient is none.
        scale = cotangent.abs().amax((1, 2), keepdim=True)
        scale = torch.where(scale > 0, scale, 1.0)
        made = gradient(output, leaf, (cotangent / scale).to(output.dtype))
        return _square(made) * scale[:, 0, 0].square()

    total = torch.stack([square(vector.view_as(output), softmax) for vector in vectors[:projections]])
    if targets is None:
        return Squares(total, None, None, output.detach())
    logits = torch.stack([square(vector.view_as(output), False) for vector in vectors[projections:]]) if few else total
    true = torch.zeros_like(output).scatter_(1, targets[:, None, None], 1.0)
    return Squares(total, logits, square(true, softmax), output.detach())


def _graph(run: Run, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """A leaf for the inputs and the output (B, C, P) with its graph. Raises Undefined where there is none."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = inputs.detach().clone().requires_grad_()
        output = run(leaf)
    if not output.requires_grad:
        raise _no_gradient()
    return leaf, output


def gradient(output: Tensor, leaf: Tensor, cotangent: Tensor) -> Tensor:
    """Of the leaf (B, …). Raises Undefined for a model that detaches its input, and has a graph of its own."""
    (made,) = torch.autograd.grad(output, leaf, cotangent, retain_graph=True, allow_unused=True)
    if made is None:
        raise _no_gradient()
    return made.detach()


def _no_gradient() -> Undefined:
    return Undefined("the model's output has no gradient by its input")


def _square(rows: Tensor) -> Tensor:
    """float64 (B,): square norms of rows (B, …)."""
    made: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1, dtype=torch.float64).square()
    return made
