"""Fixtures: labeled vectors as a layer makes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]


@pytest.fixture
def blobs() -> Arrays:
    """120 vectors (6,) of 4 classes of unequal size, correlated, about means that overlap a little."""
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 120, p=[0.4, 0.3, 0.2, 0.1])
    means = 2 * rng.standard_normal((4, 6))
    return means[labels] + rng.standard_normal((120, 6)) @ rng.standard_normal((6, 6)), labels


@pytest.fixture
def tensors(blobs: Arrays) -> tuple[Tensor, Tensor]:
    """The same as tensors."""
    return torch.tensor(blobs[0]), torch.tensor(blobs[1])


@pytest.fixture
def rotation() -> Callable[[int], Tensor]:
    """A random orthogonal matrix of a size."""

    def make(size: int) -> Tensor:
        matrix = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
        return torch.linalg.qr(matrix)[0]

    return make
