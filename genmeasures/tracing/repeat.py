"""Whether a model repeats itself: the same features of the same inputs, whatever else is in the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasures.tracing.dtypes import is_readable, plain, rounding

RANDOM = (
    "the model is random in evaluation mode (dropout that stays on, for example); its passes are seeded, and the "
    "value depends on the seed and the batch size"
)
UNSEEDED = (
    "the model is random in evaluation mode, and seeding does not make it reproducible: the value differs from run "
    "to run"
)
BATCH = (
    "the features of an input depend on the other inputs of its batch (normalization by batch statistics, for "
    "example): the value holds for this order of the data and this batch size"
)

_ELEMENTS = 4096
"""Elements of one input that are compared, at most."""


@dataclass(frozen=True)
class Sample:
    """Some elements of a tensor (B, …), and what had happened when it was made."""

    values: Tensor
    """(B, m), a copy."""
    shape: tuple[int, ...]
    """Of the tensor, without the batch."""
    tolerance: float
    drew: bool
    """Whether the pass had drawn random numbers by then; False where nobody looked."""


@dataclass(frozen=True)
class Observed:
    """One forward pass."""

    sites: Sequence[Sample | None]
    """In running order; None for what cannot be compared."""
    drew: bool
    """Whether it drew any random numbers."""


def sample(tensor: object, batch: int, drew: bool) -> Sample | None:
    """What is kept of a tensor to be compared; None unless it is floating point with the batch first."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not is_readable(tensor):
        return None
    if tensor.dim() == 0 or len(tensor) != batch:
        return None
    steps = [1] * (tensor.dim() - 1)
    sizes = list(tensor.shape[1:])
    while math.prod(sizes) > _ELEMENTS:  # every second one along the longest axis
        axis = sizes.index(max(sizes))
        steps[axis] *= 2
        sizes[axis] = -(-tensor.shape[axis + 1] // steps[axis])
    thin = plain(tensor.detach())[(slice(None), *(slice(None, None, step) for step in steps))]
    # Clones, for what a view shows would be kept alive, and could be written to.
    return Sample(thin.unsqueeze(-1).flatten(1).clone(), tuple(tensor.shape[1:]), rounding(tensor.dtype), drew)


def alone(example: Tensor, count: int) -> Tensor:
    """The last input of (B, …), ``count`` times: another batch, in which it has no neighbors but itself."""
    return torch.cat([example[-1:]] * count)  # in the memory layout of the example, for the same kernels


def differ(one: Sample | None, other: Sample | None, rows: Sequence[int], others: Sequence[int]) -> bool:
    """Whether rows of one sample are not ``others`` of the other, by more than rounding explains."""
    if one is None or other is None:
        return (one is None) != (other is None)
    if one.shape != other.shape:
        return True
    left, right = one.values[list(rows)].double(), other.values[list(others)].double()
    if not torch.equal(torch.isfinite(left), torch.isfinite(right)):
        return True
    left, right = left.nan_to_num(0, 0, 0), right.nan_to_num(0, 0, 0)
    # Root mean squares over all rows: a few elements on the edge of a decision may be far apart by rounding alone.
    return float((left - right).norm()) > one.tolerance * max(float(left.norm()), float(right.norm()))


def notes(example: Tensor, first: Observed, again: Observed, observe: Callable[[Tensor], Observed]) -> tuple[str, ...]:
    """Of each site what a reader of its values must know, "" for nothing.

    Args:
        example: the inputs (B, …) of the first pass.
        first: that pass.
        again: a pass of the last of these inputs (:func:`alone`), under another seed.
        observe: one more pass under the seed of the first, that looks at each site whether random numbers
            have been drawn; called only where the two passes differ or have drawn any.

    Returns:
        One text a site. What holds for a site holds for all that follow it.
    """
    count, batch = len(first.sites), len(example)
    last, copies = [batch - 1], range(max(1, batch - 1))
    pairs = zip(first.sites, again.sites, strict=True)
    suspect = [differ(one, other, last * len(copies), copies) for one, other in pairs]
    drew = first.drew and again.drew  # what is drawn in the first pass alone is for weights made at the first call
    if not drew and not any(suspect):
        return ("",) * count
    repeated = observe(example)
    every = range(batch)
    pairs = zip(first.sites, repeated.sites, strict=True)
    unseeded = [differ(one, other, every, every) for one, other in pairs]
    drawn = [drew and site is not None and site.drew for site in repeated.sites]
    random_from = _first([a or b for a, b in zip(unseeded, drawn, strict=True)])
    batch_from = count
    if batch > 1 and any(suspect[:random_from]):
        # In a batch of the same size and in its place the last input has the same features to the bit, unless they
        # depend on the others: what differed by rounding alone, by which small differences of large numbers are made
        # for one, does not differ here.
        pairs = zip(first.sites[:random_from], observe(alone(example, batch)).sites, strict=False)
        batch_from = _first([differ(one, other, last, last) for one, other in pairs])
    made = []
    for site in range(count):
        random = (UNSEEDED if any(unseeded) else RANDOM) if site >= random_from else ""
        found = [random, BATCH if batch_from <= site and batch_from < random_from else ""]
        made.append("; ".join(text for text in found if text))
    return tuple(made)


def _first(flags: Sequence[bool]) -> int:
    """Place of the first one that is true; their number if none is."""
    return next((place for place, flag in enumerate(flags) if flag), len(flags))
