"""Selection of inputs and size of batches, independent of the batches of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genmeasures.plugin import (
    SPLITS,
    ModelData,
    ModelMeasure,
    Split,
    Undefined,
    graph_memory,
    is_count,
    one_of,
    require,
)

_ROWS = {"cpu": 64}
_ROWS_ELSEWHERE = 512
"""Maximum number of inputs per batch. On a CPU, the activations of larger batches do not fit into the caches."""


def check_sampling(measure: ModelMeasure, projections: object, samples: object, split: object, memory: object) -> None:
    """Check the options that both measures have.

    Args:
        measure: Measure that the error names.
        projections: Number of projections.
        samples: Maximum number of inputs, or None.
        split: Split of the inputs.
        memory: MiB for a batch.

    Raises:
        OptionError: If one of them is out of range.

    Example:
        >>> from genmeasures_jacobian import LayerJacobian
        >>> LayerJacobian(projections=1)
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: LayerJacobian: projections must be an integer ≥ 2, got 1
    """
    require(is_count(projections, 2), measure, f"projections must be an integer ≥ 2, got {projections!r}")
    message = f"samples must be an integer ≥ 1, or None for all inputs, got {samples!r}"
    require(samples is None or is_count(samples), measure, message)
    one_of(measure, "split", split, SPLITS)
    require(is_count(memory), measure, f"memory must be an integer ≥ 1 (MiB), got {memory!r}")


def check_finite(values: Tensor) -> None:
    """Raise Undefined unless the norms (N,) of all inputs are finite.

    Example:
        >>> check_finite(torch.tensor([1.0, torch.inf]))
        Traceback (most recent call last):
            ...
        genmeasures.errors.Undefined: the Jacobian of 1 of 2 inputs is not finite
    """
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise Undefined(f"the Jacobian of {bad} of {len(values)} inputs is not finite")


def seed_base(generator: torch.Generator) -> int:
    """Draw the number that is added to the index of an input for the seed of its random projections.

    Example:
        >>> seed_base(torch.Generator().manual_seed(0)) == seed_base(torch.Generator().manual_seed(0))
        True
    """
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device))


def choose(data: ModelData, split: Split, samples: int | None) -> tuple[Tensor, Tensor | None]:
    """Choose inputs, the same for every model and for every order of the data.

    Args:
        data: Data of the run.
        split: Split of the inputs.
        samples: Maximum number of inputs, or None for all.

    Returns:
        Inputs (N, …), and targets (N, C, *S) or None.

    Raises:
        Undefined: If the inputs are integers, such as token ids, which have no gradient.

    Example:
        >>> from genmeasures.testing import model_data
        >>> inputs, targets = choose(model_data(torch.rand(8, 2)), "test", 3)
        >>> inputs.shape
        torch.Size([3, 2])
    """
    inputs, targets = data.sample(split, samples)
    if not inputs.is_floating_point():
        raise Undefined(f"inputs of {inputs.dtype} have no gradient")
    return inputs, targets


def chunks(count: int, size: int) -> Iterator[slice]:
    """Split a range into parts of about the same length.

    Args:
        count: Length of the range.
        size: Maximum length of a part.

    Yields:
        Slices that cover 0 to ``count`` − 1 in order.

    Example:
        >>> list(chunks(5, 3))
        [slice(0, 2, None), slice(2, 5, None)]
    """
    parts = math.ceil(count / size)
    for part in range(parts):
        yield slice(part * count // parts, (part + 1) * count // parts)


def fitting_rows(model: nn.Module, run: Callable[[Tensor], Any], example: Tensor, memory: int) -> int:
    """Return the number of inputs per batch whose graph fits into memory.

    Args:
        model: Model whose parameters are not counted.
        run: Function of a batch whose graph is measured.
        example: A few inputs (B, …).
        memory: Approximate MiB for the graph.

    Returns:
        Number of inputs, at least 1.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> fitting_rows(net, net, torch.zeros(4, 2), memory=1)
        64
    """
    graph = graph_memory(run, example, (*model.parameters(), *model.buffers()))
    if graph is None:
        return 1
    # In addition to the graph: three gradients with respect to the input in float64.
    needed = graph[0] / len(example) + 24 * example[0].numel()
    return int(min(max(memory * 2**20 // needed, 1), _ROWS.get(example.device.type, _ROWS_ELSEWHERE)))


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Context in which parameters do not require gradients, which are not used; restored at the end.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> with frozen(net):
        ...     net.weight.requires_grad
        False
        >>> net.weight.requires_grad
        True
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
