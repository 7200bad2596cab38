"""Cumulative ablation: accuracy as the kernels of a layer are silenced one after another.

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
    """Return the kernels, int64 (I,), ordered by their scores.

    Args:
        scores: Scores (I,). In ascending order, ties keep the order of the kernels, and NaN comes last.
        order: ``"ascending"``, ``"descending"`` (ascending reversed) or ``"random"``.
        generator: Random numbers of the random order.

    Raises:
        OptionError: If the order is unknown, or random without a generator.

    Example:
        >>> kernel_order([0.3, float("nan"), 0.1], "ascending")
        array([2, 0, 1])
    """
    if order not in ORDERS:
        raise OptionError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
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
    """Return the accuracies with the first 0, 1, …, I kernels of each order silenced.

    The output of the layer is set to zero where the next layer receives it, after normalization and activation.

    Args:
        model: Classifier in evaluation mode.
        layer: Convolution whose kernels are silenced.
        orders: Permutations of the I kernels of the layer.
        batches: Batches (inputs (B, …), classes int64 (B, 1)), read once. Inputs without a label (class −1) do not
            count.

    Returns:
        float64 (len(orders), I + 1).

    Raises:
        DataError: If there are no classes, or the output of the model is not (B, classes).
        Undefined: If no input has a label, or the model has a single output or fewer than there are classes.

    Example:
        >>> from genmeasures.plugin import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten())  # scores x and −x for the input x
        >>> net[0].weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
        >>> x = torch.tensor([1.0, -1.0, 2.0]).view(3, 1, 1, 1)
        >>> layer = trace(net, x, "activation").layers[0]
        >>> accuracy_curve(net, layer, [[0, 1]], [(x, torch.tensor([[0], [1], [0]]))]).shape
        (1, 3)
    """
    right = np.zeros((len(orders), layer.layer.channels + 1))
    total = 0
    silenced = torch.empty(0, dtype=torch.int64)
    kept: list[Tensor] = []

    def silence(_: TracedLayer, entered: Tensor, output: Tensor) -> None:
        if output.requires_grad:
            raise Undefined("the model computes gradients within its forward pass: its kernels cannot be silenced")
        output[:, silenced] = 0  # in place, since the rest of the model reads this tensor

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
                            hits = float((_predicted(kept.pop(), classes) == classes).sum())
                        else:
                            hits = whole  # no kernel is silenced, in any order
                        whole = hits if whole is None else whole
                        row[count] += hits
    finally:
        head.remove()
    if not total:
        raise Undefined("there are no inputs with a label")
    return right / total


def largest_gap(ascending: ArrayLike, descending: ArrayLike) -> float:
    """Return max_k (descending_k − ascending_k) of two accuracy curves.

    It is positive if kernels of low score matter more, and at least 0, since the curves meet at both ends.

    Args:
        ascending: Accuracies (I + 1,) with 0 to I kernels silenced, those of low score first.
        descending: Accuracies (I + 1,), with kernels of high score silenced first.

    Example:
        >>> largest_gap([1.0, 0.25, 0.0], [1.0, 0.75, 0.0])
        0.5
    """
    return float(np.max(np.asarray(descending, dtype=np.float64) - np.asarray(ascending, dtype=np.float64)))


def _predicted(output: object, classes: Tensor) -> Tensor:
    """Classes that the largest outputs predict, int64 (B,)."""
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(classes):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise DataError(f"cumulative ablation needs a classifier with outputs (batch, classes), got {shape}")
    outputs = output.shape[1]
    if outputs < 2:
        raise Undefined(
            f"cumulative ablation needs one output per class, of at least two, got outputs of shape ({outputs},)"
        )
    if bool((classes >= outputs).any()):
        raise Undefined(
            f"cumulative ablation needs one output per class, got outputs of shape ({outputs},) and labels above "
            f"{outputs - 1}"
        )
    if not bool(torch.isfinite(output).all()):
        raise Undefined("NaN or infinite outputs")
    return output.argmax(1)
