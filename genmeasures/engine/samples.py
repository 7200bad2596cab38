"""Samples as the tensors that index a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from genmeasures.interfaces import Sample


def located(sample: Sample, start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row in the batch, position and rank, int64 (n,) each, of the vectors of inputs ``start`` … ``start + count − 1``.

    Args:
        sample: the sample.
        start: index of the first input of the batch.
        count: number of inputs in the batch.

    Example:
        >>> import numpy as np
        >>> from genmeasures.extractors.samples import Drawn
        >>> sample = Drawn(np.array([0, 2, 3]), np.array([5, 1, 4]), np.array([1, 0, 2]))
        >>> [part.tolist() for part in located(sample, 2, 2)]
        [[0, 1], [1, 4], [0, 2]]
    """
    inputs, positions, rank = map(torch.from_numpy, sample.part(start, start + count))
    return inputs - start, positions, rank
