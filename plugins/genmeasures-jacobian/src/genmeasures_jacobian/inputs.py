"""Selection of inputs and size of batches, neither of which depends on the batches of the data."""

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
"""Inputs to run at once, at most: on a CPU, what is computed of more leaves the caches before it is read again."""


def check_sampling(measure: ModelMeasure, projections: object, samples: object, split: object, memory: object) -> None:
    """Raise OptionError for one of these options that is out of range."""
    require(is_count(projections, 2), measure, f"projections must be an integer ≥ 2, got {projections!r}")
    message = f"samples must be an integer ≥ 1, or None for all inputs, got {samples!r}"
    require(samples is None or is_count(samples), measure, message)
    one_of(measure, "split", split, SPLITS)
    require(is_count(memory), measure, f"memory must be an integer ≥ 1 (MiB), got {memory!r}")


def check_finite(values: Tensor) -> None:
    """Raise Undefined unless the norms (N,) of all inputs are finite."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise Undefined(f"the Jacobian of {bad} of {len(values)} inputs is not finite")


def seed_base(generator: torch.Generator) -> int:
    """What is added to an input's number to give the seed of its random projections."""
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device))


def choose(data: ModelData, split: Split, samples: int | None) -> tuple[Tensor, Tensor | None]:
    """At most ``samples`` inputs (N, …) with their targets (N, C, *S), the same for every model and order of the data.

    Raises Undefined for inputs that have no gradient, token ids for one.
    """
    inputs, targets = data.sample(split, samples)
    if not inputs.is_floating_point():
        raise Undefined(f"inputs of {inputs.dtype} have no gradient")
    return inputs, targets


def chunks(count: int, size: int) -> Iterator[slice]:
    """0 … count − 1 in parts of about the same length, ``size`` at most."""
    parts = math.ceil(count / size)
    for part in range(parts):
        yield slice(part * count // parts, (part + 1) * count // parts)


def fitting_rows(model: nn.Module, run: Callable[[Tensor], Any], example: Tensor, memory: int) -> int:
    """How many inputs at once fit into so many MiB with all that the graph of ``run`` keeps of them; at least 1.

    run: what is to be run with the model. example (B, …): a few inputs.
    """
    graph = graph_memory(run, example, (*model.parameters(), *model.buffers()))
    if graph is None:
        return 1
    # Beside the graph: three gradients by the input in float64.
    needed = graph[0] / len(example) + 24 * example[0].numel()
    return int(min(max(memory * 2**20 // needed, 1), _ROWS.get(example.device.type, _ROWS_ELSEWHERE)))


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients by the parameters, which would be computed and kept for nothing; restored at the end."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
