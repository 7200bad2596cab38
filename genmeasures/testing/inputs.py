"""Layers and data as the engine passes them to a model measure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from genmeasures.errors import DataError
from genmeasures.interfaces import SPLITS, Layer, ModelData
from genmeasures.tracing import trace


def layers_of(model: nn.Module, example: Tensor, tap: str = "activation") -> list[Layer]:
    """Return the layers that the engine measures.

    Args:
        model: Model in evaluation mode.
        example: At least two inputs (B, …).
        tap: Where outputs are read, ``"activation"`` or ``"linear"``.

    Example:
        >>> [layer.name for layer in layers_of(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(4, 3))]
        ['0']
    """
    return [traced.layer for traced in trace(model, example, tap).layers]


def model_data(
    inputs: Tensor,
    targets: Tensor | None = None,
    *,
    batch_size: int = 16,
    seed: int = 0,
    order: ArrayLike | None = None,
) -> ModelData:
    """Return the data argument of :meth:`~genmeasures.plugin.ModelMeasure.measure`, for tests without a run.

    Args:
        inputs: Inputs (N, …) of all splits.
        targets: Targets (N, …), or None for data without targets. Classes (N,) become (N, 1).
        batch_size: Inputs per batch.
        seed: Seed of ``data.generator``.
        order: int (N,): the canonical order, ``data.order``, whose first inputs ``data.sample`` returns. None is the
            order of the inputs; a run orders them by their contents.

    Example:
        >>> data = model_data(torch.zeros(20, 3), torch.arange(20) % 2)
        >>> [len(inputs) for inputs, targets in data.batches("test")]
        [16, 4]
        >>> data.sample("test", 2)[1].shape
        torch.Size([2, 1])
    """
    classes = targets[:, None] if targets is not None and targets.dim() == 1 else targets
    indices = np.arange(len(inputs)) if order is None else np.asarray(order, dtype=np.int64)

    def rows(selected: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        return inputs[selected].clone(), None if classes is None else classes[selected].clone()

    def batches(split: str) -> Iterator[tuple[Tensor, Tensor | None]]:
        if split not in SPLITS:
            raise DataError(f"there is no split {split!r}: it must be one of {', '.join(SPLITS)}")
        for start in range(0, len(inputs), batch_size):
            yield rows(slice(start, start + batch_size))

    def sample(split: str, count: int | None) -> tuple[Tensor, Tensor | None]:
        return rows(torch.from_numpy(indices[:count].copy()))

    return ModelData(
        batches=batches,
        sample=sample,
        order=lambda split: indices,
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(seed),
    )
