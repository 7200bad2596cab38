"""Cumulative ablation: the accuracy as the kernels of a layer are silenced one after another.

Source: "Exploring the generalizability of CNNs via activated representational substitution", 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from genmeasures.plugin import DataError, OptionError, TracedLayer, Undefined, tapped
from genmeasures_ars.selectivity import classes_of

ORDERS = ("ascending", "descending", "random")


def kernel_order(scores: ArrayLike, order: str, generator: torch.Generator | None = None) -> NDArray[np.int64]:
    """int64 (I,): the kernels in "ascending", "descending" or "random" order of their scores (I,).

    Of kernels with one score the first comes first in ascending order; those without (NaN) come
    after all others. Descending is ascending reversed. "random" draws from the generator and raises
    OptionError without one.
    """
    if order not in ORDERS:
        raise OptionError(f"order={order!r} is unknown: it must be one of {', '.join(ORDERS)}")
    values = np.asarray(scores, dtype=np.float64)
    if order == "random":
        if generator is None:
            raise OptionError("order='random' needs a generator")
        drawn: NDArray[np.int64] = torch.randperm(len(values), generator=generator, device=generator.device).numpy()
        return drawn
    ascending = np.argsort(values, kind="stable")
    return ascending if order == "ascending" else ascending[::-1]


def accuracy_curve(
    model: nn.Module,
    layer: TracedLayer,
    orders: Sequence[ArrayLike],
    batches: Iterable[tuple[Tensor, Tensor | None]],
) -> NDArray[np.float64]:
    """float64 (len(orders), I + 1): the accuracy with the first 0, 1, …, I kernels of each order silenced.

    The layer's output is zeroed where the next layer receives it, after normalization and activation.
    orders: permutations of the layer's I kernels. batches: (inputs (B, …), classes int64 (B, 1)), gone
    through once; inputs of the class −1, which have no label, do not count. Raises DataError where
    there are no classes, or the model gives no (B, classes) scores, and Undefined where there are no
    inputs with a label.
    """
    right = np.zeros((len(orders), layer.layer.channels + 1))
    total = 0
    silenced = torch.empty(0, dtype=torch.int64)
    kept: list[Tensor] = []

    def silence(_: TracedLayer, given: Tensor, output: Tensor) -> None:
        if output.requires_grad:
            raise Undefined("the model takes gradients within its forward pass: no kernel can be silenced")
        output[:, silenced] = 0  # in place: what follows in the model reads this very tensor

    head = model.register_forward_hook(lambda _module, _args, output: kept.append(output))
    permutations = [torch.from_numpy(np.array(order, dtype=np.int64)) for order in orders]
    try:
        with torch.no_grad(), tapped(model, [layer], silence) as tap:
            for inputs, targets in batches:
                classes = classes_of(targets, "cumulative ablation")
                total += int((classes >= 0).sum())
                whole: float | None = None
                for row, order in zip(right, permutations, strict=True):
                    for count in range(len(row)):
                        if count or whole is None:
                            silenced = order[:count].to(inputs.device)
                            tap.run(inputs)
                            hits = float((_predicted(kept.pop(), len(inputs)) == classes).sum())
                        else:
                            hits = whole  # nothing is silenced yet, whatever the order
                        whole = hits if whole is None else whole
                        row[count] += hits
    finally:
        head.remove()
    if not total:
        raise Undefined("there are no inputs with a label")
    return right / total


def largest_gap(ascending: ArrayLike, descending: ArrayLike) -> float:
    """max_k (descending_k − ascending_k) of two accuracy curves (I + 1,), each from 0 kernels silenced to all.

    Positive where kernels of low score matter more. It is at least 0, for the curves meet at both ends.
    """
    return float(np.max(np.asarray(descending, dtype=np.float64) - np.asarray(ascending, dtype=np.float64)))


def _predicted(output: object, batch: int) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != batch:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise DataError(f"cumulative ablation needs a classifier with outputs (batch, classes), not {shape}")
    if not bool(torch.isfinite(output).all()):
        raise Undefined("NaN or infinite outputs")
    return output.argmax(1)
