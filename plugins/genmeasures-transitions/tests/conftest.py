"""Fixtures: a small network, images and their data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from genmeasures.plugin import ModelData
from genmeasures.testing import model_data


@pytest.fixture
def cnn() -> nn.Module:
    """A small network with three kinds of activation, one of them in place, and a normalization."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Hardtanh(-0.3, 0.2),
        nn.Flatten(),
        nn.Linear(8 * 16, 20),
        nn.LeakyReLU(0.1),
        nn.Linear(20, 5),
    ).eval()


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    """40 inputs (1, 8, 8) of 4 classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 1, 8, 8, generator=generator), torch.arange(40) % 4


@pytest.fixture
def given(images: tuple[Tensor, Tensor]) -> Callable[..., ModelData]:
    """Data as the engine passes them, in batches of any size."""

    def make(batch: int = 7, inputs: Tensor | None = None, targets: Tensor | None = images[1]) -> ModelData:
        all_inputs = images[0] if inputs is None else inputs
        return model_data(all_inputs, targets, batch_size=batch, seed=5)

    return make
