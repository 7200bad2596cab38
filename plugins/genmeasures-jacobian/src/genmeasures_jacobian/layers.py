"""Norm of the Jacobian of the output of each layer, as a measure of genmeasures."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from genmeasures.plugin import (
    Layer,
    ModelData,
    ModelError,
    ModelMeasure,
    Split,
    TracedLayer,
    Undefined,
    Variable,
    tapped,
    traced_layers,
)
from genmeasures_jacobian.inputs import (
    check_finite,
    check_sampling,
    choose,
    chunks,
    fitting_rows,
    frozen,
    seed_base,
)
from genmeasures_jacobian.jacobian import gradient
from genmeasures_jacobian.projections import norms, signs

log = logging.getLogger(__name__)

_EXAMPLES = 3
"""Inputs of the traced forward pass: more than one shows which dimension is the batch."""
_REFERENCES = "after Novak et al. 2018, Sensitivity and Generalization in Neural Networks; Hutchinson 1990"


class LayerJacobian(ModelMeasure):
    """Mean Frobenius norm of the Jacobian of the output of each layer, E_x ‖∂x_ℓ/∂x‖_F over all its elements.

    The output is read where the run reads it. The norm is estimated as the root of E‖J w‖² for random signs w in input
    space (Hutchinson 1990): one forward-mode pass gives one projection for all layers. For a model with a function
    without forward derivative, the outputs of the layers are projected instead, by one backward pass per layer. The
    standard error is that of the estimate and does not include the spread over inputs.

    Source: after Novak et al. 2018, "Sensitivity and Generalization in Neural Networks".

    Args:
        projections: Number of random projections of each input.
        samples: Maximum number of inputs; None takes all.
        split: Split of the inputs, ``"train"``, ``"test"`` or ``"validation"``.
        memory: Approximate MiB for a batch.

    Raises:
        OptionError: If an option is out of range.

    Example:
        >>> import genmeasures
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> ds = genmeasures.measure([net], test=torch.rand(8, 2), measures=[LayerJacobian()])
        >>> round(ds.layer_jacobian.item(), 4)
        5.0
    """

    name = "layer_jacobian"
    variables = (
        Variable(
            "layer_jacobian",
            "mean Frobenius norm of the Jacobian of a layer",
            references=_REFERENCES,
            bounds=(0.0, math.inf),
        ),
        Variable(
            "layer_jacobian_error",
            "standard error of the mean layer Jacobian norm from the projections",
            references=_REFERENCES,
            bounds=(0.0, math.inf),
            auxiliary=True,
        ),
    )

    def __init__(
        self, projections: int = 16, samples: int | None = 256, split: Split = "test", memory: int = 256
    ) -> None:
        check_sampling(self, projections, samples, split, memory)
        self.projections = projections
        self.samples = samples
        self.split = split
        self.memory = memory

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        """See :meth:`ModelMeasure.measure`.

        Raises:
            Undefined: If the inputs have no gradient.
            ModelError: If the model does not run one of the layers.
        """
        base = seed_base(data.generator)
        chosen, _ = choose(data, self.split, self.samples)
        with frozen(model), torch.inference_mode(False):
            example = chosen[:_EXAMPLES]
            traced = traced_layers(model, layers, example)
            rows = fitting_rows(model, lambda inputs: model(inputs.clone()), example, self.memory)
            forward = True
            parts: list[Tensor] = []
            for part in chunks(len(chosen), rows):
                inputs = chosen[part]
                seeds = range(base + part.start, base + part.stop)
                if forward:
                    try:
                        parts.append(push(model, traced, inputs, seeds, self.projections, rows))
                        continue
                    except (ModelError, NotImplementedError, RuntimeError) as error:
                        # Few functions have no forward derivative. Any other error occurs in the backward pass as well.
                        log.debug("no forward-mode differentiation", exc_info=error)
                        forward = False
                parts.append(pull(model, traced, inputs, seeds, self.projections))
        squares = torch.cat([part.cpu() for part in parts], 2)
        values: list[float | Undefined] = []
        errors: list[float | Undefined] = []
        for layer in squares.unbind(1):
            try:
                if layer.isnan().all():
                    raise Undefined("the output of the layer has no gradient with respect to the input")
                norm, deviation = norms(layer)
                check_finite(norm)
                values.append(float(norm.mean()))
                errors.append(float(deviation.square().sum().sqrt()) / len(norm))
            except Undefined as reason:
                values.append(reason)
                errors.append(reason)
        return {"layer_jacobian": values, "layer_jacobian_error": errors}


def push(
    model: nn.Module, layers: Sequence[TracedLayer], inputs: Tensor, seeds: Sequence[int], projections: int, rows: int
) -> Tensor:
    """Project the Jacobians of all layers on random directions of the input, by forward-mode passes.

    Args:
        model: Model without gradients of its parameters.
        layers: L layers, traced.
        inputs: (B, …).
        seeds: Seeds of the directions of each input.
        projections: Number m of directions per input.
        rows: Number of rows of a forward pass, each an input with one direction.

    Returns:
        ‖J_ℓ w‖², float64 (m, L, B); NaN for a layer without a gradient with respect to the input.

    Raises:
        ModelError: If a function of the model has no forward derivative; some raise RuntimeError.

    Example:
        >>> net = nn.Linear(1, 2, bias=False)
        >>> net.weight.data = torch.tensor([[3.0], [4.0]])
        >>> from genmeasures.testing import layers_of
        >>> layers = traced_layers(net, layers_of(net, torch.ones(3, 1)), torch.ones(3, 1))
        >>> push(net, layers, torch.ones(2, 1), seeds=[0, 1], projections=1, rows=8)
        tensor([[[25., 25.]]], dtype=torch.float64)
    """
    batch = len(inputs)
    vectors = signs(seeds, projections, inputs[0].numel())
    squares = torch.full((projections, len(layers), batch), torch.nan, dtype=torch.float64, device=inputs.device)
    indices = {id(layer): index for index, layer in enumerate(layers)}
    start, count = 0, 0

    def receive(layer: TracedLayer, entered: Tensor, output: Tensor) -> None:
        tangent = forward_ad.unpack_dual(output).tangent
        if tangent is not None:
            square = torch.linalg.vector_norm(tangent.flatten(1), dim=1, dtype=torch.float64).square()
            squares[start : start + count, indices[id(layer)]] = square.view(count, batch)

    step = max(1, rows // batch)
    with torch.no_grad(), tapped(model, layers, receive, stop=True) as tap:
        for start in range(0, projections, step):
            count = min(step, projections - start)
            repeated = inputs.repeat(count, *[1] * (inputs.dim() - 1))
            tangents = vectors[start : start + count].to(inputs).reshape(repeated.shape)
            with forward_ad.dual_level():
                tap.run(forward_ad.make_dual(repeated, tangents))
    return squares


def pull(
    model: nn.Module, layers: Sequence[TracedLayer], inputs: Tensor, seeds: Sequence[int], projections: int
) -> Tensor:
    """Project the Jacobians of all layers on random directions of their outputs, by backward passes.

    Args:
        model: Model without gradients of its parameters.
        layers: L layers, traced.
        inputs: (B, …).
        seeds: Seeds of the directions of each input.
        projections: Number m of directions per layer and input.

    Returns:
        ‖vᵀJ_ℓ‖², float64 (m, L, B); NaN for a layer without a gradient with respect to the input.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> net.weight.data = torch.tensor([[3.0, 4.0]])
        >>> from genmeasures.testing import layers_of
        >>> layers = traced_layers(net, layers_of(net, torch.ones(3, 2)), torch.ones(3, 2))
        >>> pull(net, layers, torch.ones(2, 2), seeds=[0, 1], projections=1)
        tensor([[[25., 25.]]], dtype=torch.float64)
    """
    squares = torch.full((projections, len(layers), len(inputs)), torch.nan, dtype=torch.float64, device=inputs.device)
    outputs: dict[int, Tensor] = {}

    def receive(layer: TracedLayer, entered: Tensor, output: Tensor) -> None:
        outputs[id(layer)] = output.clone()  # the model may overwrite the output itself

    with torch.enable_grad(), tapped(model, layers, receive, stop=True) as tap:
        leaf = inputs.detach().clone().requires_grad_()
        tap.run(leaf.clone())
    for index, layer in enumerate(layers):
        output = outputs[id(layer)]
        if not output.requires_grad:
            continue
        # Layers of the same size must not share signs. The generator of the CPU reads the lower 32 bits of a seed.
        own = [seed + 2**20 * (index + 1) for seed in seeds]
        for number, vector in enumerate(signs(own, projections, output[0].numel())):
            cotangent = vector.to(output).view_as(output)
            try:
                row = gradient(output, leaf, cotangent)
            except Undefined:
                break
            squares[number, index] = torch.linalg.vector_norm(row.flatten(1), dim=1, dtype=torch.float64).square()
    return squares
