"""A network up to one layer, and which of its layers have kernels with activation maps."""

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
    """The network up to a layer: what lies behind its activation is not run."""
    made: list[Tensor] = []

    def keep(_: TracedLayer, given: Tensor, output: Tensor) -> None:
        made.append(output)

    with tapped(model, [layer], keep, stop=True) as tap:

        def run(inputs: Tensor) -> Tensor:
            tap.run(inputs)
            return made.pop()

        yield run


def example_of(data: ModelData) -> Tensor:
    """The first few inputs (≤ 3, …) of the test data, or of the training data where there are none.

    Raises DataError for inputs that have no gradient.
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
    """The traced layer of each of ``layers``, its output read after the activation; Undefined for a linear layer.

    AR counts what an activation lets through, so that it is read behind it also where the run reads
    bare outputs. Raises ModelError where the model no longer runs a layer.
    """
    return [
        Undefined("a linear layer has no kernels with activation maps")
        if isinstance(traced.module, nn.Linear)
        else traced
        for traced in traced_layers(model, layers, example, "activation")
    ]
