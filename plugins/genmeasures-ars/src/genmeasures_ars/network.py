"""Networks truncated after a layer, and the convolutions of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from torch import Tensor, nn

from genmeasures.plugin import (
    DataError,
    Layer,
    ModelData,
    ModelError,
    Split,
    TracedLayer,
    Undefined,
    tapped,
    traced_layers,
)

Truncated: TypeAlias = Callable[[Tensor], Tensor]
"""Takes inputs (B, …) to the activation maps (B, I, *spatial) of a layer, with the graph if gradients are on."""

_EXAMPLES = 3
"""Inputs of the traced forward pass: more than one shows which dimension is the batch."""


@contextmanager
def truncated(model: nn.Module, layer: TracedLayer) -> Iterator[Truncated]:
    """Run the network up to the activation of a layer, and not beyond.

    Example:
        >>> from genmeasures.plugin import trace
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4))
        >>> with truncated(net, trace(net, torch.zeros(2, 1, 5, 5), "activation").layers[0]) as run:
        ...     run(torch.zeros(3, 1, 5, 5)).shape
        torch.Size([3, 2, 3, 3])
    """
    outputs: list[Tensor] = []

    def keep(_: TracedLayer, given: Tensor, output: Tensor) -> None:
        outputs.append(output)

    with tapped(model, [layer], keep, stop=True) as tap:

        def run(inputs: Tensor) -> Tensor:
            tap.run(inputs)
            return outputs.pop()

        yield run


def example_of(data: ModelData) -> Tensor:
    """Return the first inputs (≤ 3, …) of the test data, or of the training data if there are no test data.

    Raises:
        DataError: If the inputs have no gradient.
    """
    try:
        inputs = _first(data, "test")
    except ModelError:
        inputs = _first(data, "train")
    if not inputs.is_floating_point():
        raise DataError(f"inputs of {inputs.dtype} have no gradient: activations cannot be maximized over them")
    return inputs[:_EXAMPLES]


def _first(data: ModelData, split: Split) -> Tensor:
    inputs: Tensor = next(iter(data.batches(split)))[0]
    return inputs


def convolutions(model: nn.Module, layers: Sequence[Layer], example: Tensor) -> list[TracedLayer | Undefined]:
    """Return the traced layer for each of ``layers``, or Undefined for a linear layer.

    AR counts what the activation passes: outputs are read after the activation even if the run reads linear outputs.

    Raises:
        ModelError: If the model does not run one of the layers.
    """
    return [
        Undefined("a linear layer has no kernels with activation maps")
        if isinstance(traced.module, nn.Linear)
        else traced
        for traced in traced_layers(model, layers, example, "activation")
    ]
