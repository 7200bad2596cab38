"""Reproducibility of features: whether they depend on random numbers or on the other inputs in the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasures.tracing.dtypes import is_readable, plain, rounding

RANDOM = (
    "the model is random in evaluation mode (for example, dropout that stays active); its passes are seeded, and the "
    "value depends on the seed and the batch size"
)
UNSEEDED = (
    "the model is random in evaluation mode, and seeding does not make it reproducible: the value differs between runs"
)
BATCH = (
    "the features of an input depend on the other inputs of its batch (for example, normalization by batch "
    "statistics): the value holds for this order of the data and this batch size"
)

_ELEMENTS = 4096
"""Maximum number of elements per input that are compared."""


@dataclass(frozen=True)
class Sample:
    """Some elements of a tensor (B, …), recorded when it was computed."""

    values: Tensor
    """(B, m), a copy."""
    shape: tuple[int, ...]
    """Shape of the tensor without the batch dimension."""
    tolerance: float
    """Relative difference that rounding explains."""
    drew: bool
    """Whether the pass had drawn random numbers by then; False if this was not checked."""


@dataclass(frozen=True)
class Observed:
    """Record of one forward pass."""

    sites: Sequence[Sample | None]
    """Samples of tensors in running order; None for those that cannot be compared."""
    drew: bool
    """Whether it drew any random numbers."""


def sample(tensor: object, batch: int, drew: bool) -> Sample | None:
    """Copy the elements of a tensor that are compared between passes.

    Args:
        tensor: Output of a layer or a model.
        batch: Number of inputs in the batch.
        drew: Whether the pass had drawn random numbers by then.

    Returns:
        The sample; None if it is not a floating-point tensor with the batch as its first dimension.

    Example:
        >>> sample(torch.zeros(2, 3), batch=2, drew=False).values.shape
        torch.Size([2, 3])
        >>> sample(torch.zeros(3, 2), batch=2, drew=False) is None
        True
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not is_readable(tensor):
        return None
    if tensor.dim() == 0 or len(tensor) != batch:
        return None
    steps = [1] * (tensor.dim() - 1)
    sizes = list(tensor.shape[1:])
    while math.prod(sizes) > _ELEMENTS:  # take every second element along the longest axis
        axis = sizes.index(max(sizes))
        steps[axis] *= 2
        sizes[axis] = -(-tensor.shape[axis + 1] // steps[axis])
    thin = plain(tensor.detach())[(slice(None), *(slice(None, None, step) for step in steps))]
    # A clone, because a view would keep the tensor alive and could be written to.
    return Sample(thin.unsqueeze(-1).flatten(1).clone(), tuple(tensor.shape[1:]), rounding(tensor.dtype), drew)


def alone(example: Tensor, count: int) -> Tensor:
    """Repeat the last input of a batch, so that it has no neighbors but itself.

    Args:
        example: (B, …).
        count: Number of copies.

    Returns:
        (count, …).

    Example:
        >>> alone(torch.tensor([[1.0], [2.0]]), 3).flatten()
        tensor([2., 2., 2.])
    """
    return torch.cat([example[-1:]] * count)  # keeps the memory layout of the example, hence the same kernels


def differ(first: Sample | None, second: Sample | None, rows: Sequence[int], other_rows: Sequence[int]) -> bool:
    """Whether rows of two samples differ by more than rounding explains.

    Args:
        first: A sample.
        second: Another sample.
        rows: Rows of the first sample.
        other_rows: Rows of the second sample that they are compared with.

    Example:
        >>> first, second = (sample(torch.tensor([[1.0], [x]]), 2, False) for x in (2.0, 3.0))
        >>> differ(first, second, [0], [0]), differ(first, second, [1], [1])
        (False, True)
    """
    if first is None or second is None:
        return (first is None) != (second is None)
    if first.shape != second.shape:
        return True
    left, right = first.values[list(rows)].double(), second.values[list(other_rows)].double()
    if not torch.equal(torch.isfinite(left), torch.isfinite(right)):
        return True
    left, right = left.nan_to_num(0, 0, 0), right.nan_to_num(0, 0, 0)
    # Norms over all rows: rounding can change single elements a lot if they are close to a discontinuity.
    return float((left - right).norm()) > first.tolerance * max(float(left.norm()), float(right.norm()))


def notes(example: Tensor, first: Observed, again: Observed, observe: Callable[[Tensor], Observed]) -> tuple[str, ...]:
    """Describe whether the features at each site are random or depend on the batch.

    Args:
        example: Inputs (B, …) of the first pass.
        first: The first pass.
        again: A pass of copies of the last input (:func:`alone`) with another seed.
        observe: Makes another pass with the seed of the first one and records for each site whether random numbers
            have been drawn by then. It is only called if the two passes differ or have drawn random numbers.

    Returns:
        One note per site, "" if features are reproducible. A note on one site holds for all later sites too.

    Example:
        >>> inputs = torch.tensor([[1.0], [2.0]])
        >>> def observe(batch):
        ...     features = [batch * 2, batch - batch.sum()]
        ...     return Observed([sample(feature, len(batch), False) for feature in features], False)
        >>> linear, centered = notes(inputs, observe(inputs), observe(alone(inputs, 1)), observe)
        >>> linear
        ''
        >>> centered == BATCH
        True
    """
    count, batch = len(first.sites), len(example)
    last, copies = [batch - 1], range(max(1, batch - 1))
    pairs = zip(first.sites, again.sites, strict=True)
    suspect = [differ(site, other, last * len(copies), copies) for site, other in pairs]
    drew = first.drew and again.drew  # drawn in the first pass only: for weights created at the first call
    if not drew and not any(suspect):
        return ("",) * count
    repeated = observe(example)
    every = range(batch)
    pairs = zip(first.sites, repeated.sites, strict=True)
    unseeded = [differ(site, other, every, every) for site, other in pairs]
    drawn = [drew and site is not None and site.drew for site in repeated.sites]
    random_from = _first([a or b for a, b in zip(unseeded, drawn, strict=True)])
    batch_from = count
    if batch > 1 and any(suspect[:random_from]):
        # In a batch of the same size and at the same index, the last input has the same features to the bit unless
        # they depend on the other inputs. Features that differed above because of amplified rounding (small
        # differences of large numbers, for example) do not differ here.
        pairs = zip(first.sites[:random_from], observe(alone(example, batch)).sites, strict=False)
        batch_from = _first([differ(site, other, last, last) for site, other in pairs])
    texts = []
    for index in range(count):
        random = (UNSEEDED if any(unseeded) else RANDOM) if index >= random_from else ""
        parts = [random, BATCH if batch_from <= index and batch_from < random_from else ""]
        texts.append("; ".join(part for part in parts if part))
    return tuple(texts)


def _first(flags: Sequence[bool]) -> int:
    """Index of the first true flag; the number of flags if none is true."""
    return next((index for index, flag in enumerate(flags) if flag), len(flags))
