"""Square norms of the Jacobian of the output of a model with respect to its input, per input.

A batch has B inputs of d elements. The output has C channels (classes) and P positions, 1 unless it is dense; logits
have the shape (B, C, P). Gradients of logits have the precision of the parameters; the softmax and all sums are
float64.
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
"""Maps inputs (B, …) to logits (B, C, P)."""


@dataclass(frozen=True)
class Squares:
    """Square norms of a batch, float64: one row per projection if they are estimated, one row if they are exact."""

    jacobian: Tensor
    """(m, B): ‖J‖_F² for J of the softmax or of the logits, over all positions."""
    centered: Tensor | None
    """(m', B): Σ_j ‖g_j − ḡ‖² over the logits and positions, with the gradients g_j of the logits at a position and
    their mean ḡ; None if it is not computed."""
    target: Tensor | None
    """(B,): ‖J_y‖₂² of the true class; None if it is not computed."""
    output: Tensor
    """(B, C, P): logits in the dtype of the model."""


def runner(model: nn.Module) -> Run:
    """Return the model as a function with an output of shape (B, C, P).

    Args:
        model: Its output has the shape (B,), (B, C) or (B, C, *S).

    Returns:
        A function of the inputs. It raises ModelError if the output is not one floating-point tensor whose first
        dimension is the batch.

    Example:
        >>> runner(nn.Linear(2, 3))(torch.zeros(5, 2)).shape
        torch.Size([5, 3, 1])
    """

    def run(inputs: Tensor) -> Tensor:
        with eager():
            # A copy, because a model may overwrite its input, which a leaf of the graph does not allow.
            output = model(inputs.clone())
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(f"the output of the model must be one floating-point tensor, got {kind}")
        if output.dim() == 0 or len(output) != len(inputs):
            shape = tuple(output.shape)
            raise ModelError(
                f"the first dimension of the output of the model must be the batch of {len(inputs)}, got shape {shape}"
            )
        return output.reshape(len(output), output.shape[1] if output.dim() > 1 else 1, -1)

    return run


def outputs(run: Run, inputs: Tensor) -> Tensor:
    """Compute the output without a graph.

    Args:
        run: Model as a function, see :func:`runner`.
        inputs: (B, …).

    Returns:
        (B, C, P).

    Example:
        >>> outputs(runner(nn.Linear(2, 3)), torch.zeros(5, 2)).requires_grad
        False
    """
    with torch.inference_mode(False), torch.no_grad():
        return run(inputs)


def exact_backward(run: Run, inputs: Tensor, softmax: bool, targets: Tensor | None = None) -> Squares:
    """Compute square norms by one backward pass per output.

    For the most probable class r, with the differences D_i = g_i − g_r of the gradients of the logits and
    H = Σ_i σ_i D_i, row i is J_i = σ_i (D_i − H). Instead of the rows, three sums over them are kept. The class r of
    each input comes first, because the others need its gradient.

    Args:
        run: Model as a function, see :func:`runner`.
        inputs: (B, …).
        softmax: Whether J is that of the softmax; otherwise it is that of the logits.
        targets: True classes, int64 (B,), if ``target`` is to be computed; P must be 1.

    Returns:
        Exact square norms; ``centered`` is computed in any case.

    Raises:
        Undefined: If the output has no gradient with respect to the input.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> exact_backward(runner(net), torch.zeros(1, 2), softmax=False).jacobian
        tensor([[25.]], dtype=torch.float64)
    """
    leaf, output = _graph(run, inputs)
    batch, channels, positions = output.shape
    total = torch.zeros(batch, dtype=torch.float64, device=inputs.device)
    centered = torch.zeros_like(total)
    own = torch.zeros_like(total)
    head = Softmax(output)

    def row_of(channel: Tensor, position: int) -> Tensor:
        """Gradients float64 (B, d) of the logit of each input at its channel (B,)."""
        cotangent = torch.zeros_like(output)
        cotangent[:, :, position].scatter_(1, channel[:, None], 1.0)
        return gradient(output, leaf, cotangent).flatten(1).double()

    for position in range(positions):
        first = head.first[:, 0, position]
        probabilities = head.values[:, :, position]
        # Σ σ_i² ‖D_i‖², Σ D_i, Σ σ_i D_i, Σ σ_i² D_i and D_y
        squares = torch.zeros_like(total)
        shape = (4, *leaf.flatten(1).shape)
        plain_sum, mean, squares_mean, true = torch.zeros(shape, dtype=torch.float64, device=leaf.device)
        reference: Tensor | None = None
        for index in range(channels):
            # Channel 0 and the most probable one are swapped.
            channel = first if index == 0 else torch.where(first == index, 0, index)
            row = row_of(channel, position)
            reference = row.clone() if reference is None else reference
            if not softmax:
                total += _square(row)
                if targets is not None:
                    chosen = targets == channel
                    true[chosen] = row[chosen]
            row -= reference
            centered += _square(row)
            plain_sum += row
            if softmax and targets is not None:
                chosen = targets == channel
                true[chosen] = row[chosen]
            if softmax and index:
                weight = probabilities.gather(1, channel[:, None])
                squares += weight[:, 0].square() * _square(row)
                mean.addcmul_(weight, row)
                squares_mean.addcmul_(weight.square(), row)
        centered -= _square(plain_sum) / channels
        if softmax:
            cross = (squares_mean * mean).sum(1)
            total += (squares - 2 * cross + probabilities.square().sum(1) * _square(mean)).clamp(min=0)
        if targets is not None and softmax:
            own += (probabilities.gather(1, targets[:, None])[:, 0]).square() * _square(true - mean)
        elif targets is not None:
            own += _square(true)
    centered = centered.clamp(min=0)
    return Squares(total[None], centered[None], None if targets is None else own, output.detach())


def exact_forward(run: Run, inputs: Tensor, softmax: bool, targets: Tensor | None = None, rows: int = 1) -> Squares:
    """Compute square norms by forward-mode differentiation along every element of the input.

    The result is that of :func:`exact_backward`.

    Args:
        run: Model as a function, see :func:`runner`.
        inputs: (B, …).
        softmax: Whether J is that of the softmax; otherwise it is that of the logits.
        targets: True classes, int64 (B,), if ``target`` is to be computed; P must be 1.
        rows: Number of rows of a forward pass, each an input with one direction.

    Returns:
        Exact square norms.

    Raises:
        Undefined: If the output has no gradient with respect to the input.
        NotImplementedError: If a function of the model has no forward derivative; some raise RuntimeError.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> exact_forward(runner(net), torch.zeros(1, 2), softmax=False).jacobian
        tensor([[25.]], dtype=torch.float64)
    """
    batch, size = len(inputs), inputs[0].numel()
    total = torch.zeros(batch, dtype=torch.float64, device=inputs.device)
    centered = torch.zeros_like(total)
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
        centered += _square(column - column.mean(1, keepdim=True)).reshape(count, batch).sum(0)
        if softmax:
            column = Softmax(output).product(column)
        total += _square(column).reshape(count, batch).sum(0)
        if targets is not None:
            own += column[:, :, 0].gather(1, targets.repeat(count)[:, None]).reshape(count, batch).square().sum(0)
    return Squares(total[None], centered[None], None if targets is None else own, output[:batch])


def pushed(run: Run, inputs: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
    """Compute outputs and their derivatives along tangents by forward-mode differentiation.

    Args:
        run: Model as a function, see :func:`runner`.
        inputs: (B, …).
        tangents: Directions, of the shape of ``inputs``.

    Returns:
        Outputs (B, C, P), and derivatives float64 (B, C, P).

    Raises:
        Undefined: If the output has no gradient with respect to the input.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> net.weight.data = torch.tensor([[3.0, 4.0]])
        >>> pushed(runner(net), torch.ones(1, 2), torch.tensor([[1.0, 0.0]]))
        (tensor([[[7.]]]), tensor([[[3.]]], dtype=torch.float64))
    """
    with torch.inference_mode(False), torch.no_grad(), forward_ad.dual_level():
        output, tangent = forward_ad.unpack_dual(run(forward_ad.make_dual(inputs.clone(), tangents)))
        if tangent is None:
            raise _no_gradient()
        return output.clone(), tangent.double()


def hutchinson(
    run: Run, inputs: Tensor, softmax: bool, seeds: Sequence[int], projections: int, targets: Tensor | None = None
) -> Squares:
    """Estimate square norms by ‖vᵀJ‖² for random signs v, with one backward pass per projection.

    Source: Hutchinson 1990, "A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing
    Splines".

    Args:
        run: Model as a function, see :func:`runner`.
        inputs: (B, …).
        softmax: Whether J is that of the softmax; otherwise it is that of the logits.
        seeds: Seeds of the signs of each input.
        projections: Number m of projections.
        targets: True classes, int64 (B,), if ``centered`` and ``target`` are to be computed; P must be 1. ``centered``
            has an eighth of the projections, because it is averaged over inputs; ``target`` is exact.

    Returns:
        Estimated square norms.

    Raises:
        Undefined: If the output has no gradient with respect to the input.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> hutchinson(runner(net), torch.zeros(1, 2), False, seeds=[0], projections=3).jacobian.flatten()
        tensor([25., 25., 25.], dtype=torch.float64)
    """
    leaf, output = _graph(run, inputs)
    head = Softmax(output)
    few = 0 if targets is None else -(-projections // 8)
    vectors = signs(seeds, projections + few, output[0].numel()).to(output.device)

    def square(vector: Tensor, through: bool) -> Tensor:
        """‖vᵀJ‖², float64 (B,), of the softmax or of the logits, for v (B, C, P)."""
        cotangent = head.product(vector) if through else vector.double()
        # Scaled, because the squared gradient of a confident network underflows in float32.
        scale = cotangent.abs().amax((1, 2), keepdim=True)
        scale = torch.where(scale > 0, scale, 1.0)
        row = gradient(output, leaf, (cotangent / scale).to(output.dtype))
        return _square(row) * scale[:, 0, 0].square()

    total = torch.stack([square(vector.view_as(output), softmax) for vector in vectors[:projections]])
    if targets is None:
        return Squares(total, None, None, output.detach())
    # ‖vᵀ(G − 1ḡᵀ)‖² for the matrix G of the gradients is ‖uᵀG‖², u the vector v without its mean.
    each = (vector.view_as(output).double() for vector in vectors[projections:])
    centered = torch.stack([square(vector - vector.mean(1, keepdim=True), False) for vector in each])
    true = torch.zeros_like(output).scatter_(1, targets[:, None, None], 1.0)
    return Squares(total, centered, square(true, softmax), output.detach())


def _graph(run: Run, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """A leaf for the inputs, and the output (B, C, P) with its graph; Undefined if there is no graph."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = inputs.detach().clone().requires_grad_()
        output = run(leaf)
    if not output.requires_grad:
        raise _no_gradient()
    return leaf, output


def gradient(output: Tensor, leaf: Tensor, cotangent: Tensor) -> Tensor:
    """Compute the gradient with respect to a leaf, and keep the graph.

    Args:
        output: Tensor with a graph.
        leaf: (B, …).
        cotangent: Weights of the elements of ``output``, of its shape.

    Returns:
        Gradient (B, …).

    Raises:
        Undefined: If ``output`` does not depend on ``leaf``.

    Example:
        >>> leaf = torch.ones(2, requires_grad=True)
        >>> gradient(3 * leaf, leaf, torch.tensor([1.0, 2.0]))
        tensor([3., 6.])
    """
    (row,) = torch.autograd.grad(output, leaf, cotangent, retain_graph=True, allow_unused=True)
    if row is None:
        raise _no_gradient()  # the model detaches its input, and its graph starts at something else
    return row.detach()


def _no_gradient() -> Undefined:
    return Undefined("the output of the model has no gradient with respect to the input")


def _square(rows: Tensor) -> Tensor:
    """Square norms, float64 (B,), of rows (B, …)."""
    squares: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1, dtype=torch.float64).square()
    return squares
