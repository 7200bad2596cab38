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
    """Context with the network up to the activation of a layer.

    Args:
        model: Network in evaluation mode.
        layer: Traced layer.

    Yields:
        A function from inputs (B, …) to activation maps (B, I, *spatial).

    Example:
        >>> from genmeasures.plugin import trace
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4))
        >>> with truncated(net, trace(net, torch.zeros(2, 1, 5, 5), "activation").layers[0]) as run:
        ...     run(torch.zeros(3, 1, 5, 5)).shape
        torch.Size([3, 2, 3, 3])
    """
    outputs: list[Tensor] = []

    def keep(_: TracedLayer, entered: Tensor, output: Tensor) -> None:
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

    Example:
        >>> import torch
        >>> from genmeasures.testing import model_data
        >>> example_of(model_data(torch.zeros(8, 1, 5, 5))).shape
        torch.Size([3, 1, 5, 5])
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


def tap_note(layer: TracedLayer) -> str:
    """Return what to note on AR where no activation directly follows a layer, "" elsewhere.

    Args:
        layer: Layer that is read after the activation.

    Example:
        >>> from genmeasures.plugin import trace
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1)).eval()
        >>> for layer in trace(net, torch.zeros(2, 1, 5, 5), "activation").layers:
        ...     print(repr(tap_note(layer)))
        ''
        'no activation directly follows: AR is the fraction of positive entries of a linear map'
    """
    followed = layer.layer.tap.split(" > ")[1:]
    if not all(step.endswith("norm") for step in followed):
        return ""
    if layer.layer.joins:
        return (
            f"no activation follows before a {layer.layer.joins}: AR is the fraction of positive entries of a map that "
            "no layer receives"
        )
    return "no activation directly follows: AR is the fraction of positive entries of a linear map"


def convolutions(model: nn.Module, layers: Sequence[Layer], example: Tensor) -> list[TracedLayer | Undefined]:
    """Return the traced layer for each layer, or Undefined for a linear layer.

    AR counts what the activation passes: outputs are read after the activation even if the run reads linear outputs.

    Args:
        model: Network in evaluation mode.
        layers: Layers of the run.
        example: A few inputs (B, …).

    Raises:
        ModelError: If the model does not run one of the layers.

    Example:
        >>> import torch
        >>> from genmeasures.testing import layers_of
        >>> net, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 4)), torch.zeros(2, 1, 5, 5)
        >>> [type(layer).__name__ for layer in convolutions(net, layers_of(net, x), x)]
        ['TracedLayer', 'Undefined']
    """
    return [
        Undefined("a linear layer has no kernels with activation maps")
        if isinstance(traced.module, nn.Linear)
        else traced
        for traced in traced_layers(model, layers, example, "activation")
    ]
