"""Random choice of the inputs of trajectories, independent of the order and the batches of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from genmeasures.plugin import ModelData, Split, Undefined, class_problem


def inputs_at(data: ModelData, split: Split, indices: Sequence[int]) -> list[Tensor]:
    """Return inputs by their indices.

    Args:
        data: Data of the run.
        split: Split of the inputs.
        indices: Indices in the split.

    Returns:
        Inputs (…) in the order of ``indices``, on the device of the data.

    Example:
        >>> from genmeasures.testing import model_data
        >>> inputs_at(model_data(torch.tensor([[1.0], [2.0], [3.0]])), "test", [2, 0])
        [tensor([3.]), tensor([1.])]
    """
    wanted = set(indices)
    by_index: dict[int, Tensor] = {}
    start = 0
    for inputs, _ in _batches(data, split):
        for index in wanted.intersection(range(start, start + len(inputs))):
            by_index[index] = inputs[index - start].to(data.device, copy=True)
        start += len(inputs)
    return [by_index[index] for index in indices]


def draw_images(data: ModelData, count: int) -> list[Tensor]:
    """Draw test inputs without replacement.

    Args:
        data: Data of the run.
        count: Number of inputs.

    Returns:
        Inputs (…).

    Raises:
        Undefined: If there are fewer test inputs.

    Example:
        >>> from genmeasures.testing import model_data
        >>> [image.shape for image in draw_images(model_data(torch.zeros(9, 1, 8, 8)), 2)]
        [torch.Size([1, 8, 8]), torch.Size([1, 8, 8])]
    """
    total = sum(len(inputs) for inputs, _ in _batches(data, "test"))
    if total < count:
        raise Undefined(f"{count} trajectories need at least {count} test inputs, got {total}")
    drawn = torch.randperm(total, generator=data.generator, device=data.generator.device)[:count]
    return inputs_at(data, "test", _ordered(data, "test")[drawn].tolist())


def draw_triples(
    data: ModelData, count: int, classes: str, through: str = "an ellipse needs"
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Draw triples of different training inputs.

    The first input is drawn uniformly from all that belong to such a triple, and each of the others from the inputs
    that remain. Inputs without a label are left out unless ``classes`` is "any".

    Args:
        data: Data of the run.
        count: Number of triples.
        classes: "same", "different" or "any", the classes of the inputs of a triple.
        through: What needs three inputs, as the beginning of the error message.

    Returns:
        Triples of inputs (…).

    Raises:
        Undefined: If there is no such triple, or the targets are not classes.

    Example:
        >>> from genmeasures.testing import model_data
        >>> data = model_data(torch.arange(6.0).reshape(6, 1), torch.tensor([0, 0, 0, 1, 1, 2]))
        >>> (triple,) = draw_triples(data, 1, "same")
        >>> sorted(x.item() for x in triple)
        [0.0, 1.0, 2.0]
    """
    labels: list[Tensor] = []
    total = 0
    for inputs, targets in _batches(data, "train"):
        total += len(inputs)
        if classes != "any":
            labels.append(_labels(targets))
    if total < 3:
        raise Undefined(f"{through} three training inputs, got {total}")
    order = _ordered(data, "train")
    label = torch.cat(labels)[order] if labels else torch.zeros(total, dtype=torch.long, device="cpu")
    order, label = order[label >= 0], label[label >= 0]
    if len(label) < 3:
        raise Undefined(f"an ellipse needs three training inputs with a label, got {len(label)}")
    _, label, sizes = label.unique(return_inverse=True, return_counts=True)
    if classes == "same" and int(sizes.max()) < 3:
        raise Undefined("an ellipse within a class needs a class with three training inputs, and there is none")
    if classes == "different" and len(sizes) < 3:
        raise Undefined(f"an ellipse through three classes needs three in the training data, got {len(sizes)}")
    triples = [_triple(label, sizes, classes, data.generator) for _ in range(count)]
    points = inputs_at(data, "train", [int(order[index]) for triple in triples for index in triple])
    return [(points[i], points[i + 1], points[i + 2]) for i in range(0, len(points), 3)]


def _triple(label: Tensor, sizes: Tensor, classes: str, generator: torch.Generator) -> list[int]:
    """Indices of three inputs."""
    remaining = sizes[label] >= 3 if classes == "same" else torch.ones_like(label, dtype=torch.bool)
    chosen: list[int] = []
    for _ in range(3):
        candidates = remaining.nonzero()[:, 0]
        chosen.append(
            int(candidates[torch.randint(len(candidates), (1,), generator=generator, device=generator.device)])
        )
        alike = label == label[chosen[-1]]
        remaining = remaining & (alike if classes == "same" else ~alike if classes == "different" else True)
        remaining[chosen[-1]] = False
    return chosen


def _labels(targets: Tensor | None) -> Tensor:
    """Class labels, int64 (B,) on the CPU, −1 for an input without a label."""
    if targets is not None and targets[:1].numel() == 1:
        targets = targets.reshape(-1, 1)  # masks of a single pixel are classes as well
    problem = class_problem(targets)
    if targets is None or problem:
        raise Undefined(f"triples by class need {problem}; without classes, set classes=any")
    return targets.reshape(-1).cpu()


def draw_random(data: ModelData, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Draw triples of normally distributed inputs with the mean and standard deviation of all training values.

    Args:
        data: Data of the run.
        count: Number of triples.

    Returns:
        Triples of inputs float32 (…).

    Raises:
        Undefined: If there are no training inputs.

    Example:
        >>> from genmeasures.testing import model_data
        >>> ((a, b, c),) = draw_random(model_data(torch.rand(9, 1, 8, 8)), 1)
        >>> a.shape
        torch.Size([1, 8, 8])
    """
    sums: list[Tensor] = []
    shape: tuple[int, ...] = ()
    for inputs, _ in _batches(data, "train"):
        shape = tuple(inputs.shape[1:])
        values = inputs.flatten(1).double()
        # Row by row, so that rounding does not depend on the batches.
        sums.append(torch.stack([values.sum(1), values.square().sum(1)]))
    if not sums:
        raise Undefined("there are no training inputs")
    rows = torch.cat(sums, 1).cpu()
    number = rows.shape[1] * math.prod(shape)
    total, squares = rows.sum(1).tolist()
    mean = total / number
    spread = max(squares / number - mean**2, 0.0) ** 0.5
    size, generator = (count, 3, *shape), data.generator
    drawn = torch.randn(size, generator=generator, dtype=torch.float32, device=generator.device) * spread + mean
    return [(a, b, c) for a, b, c in drawn.to(data.device).unbind()]


def _ordered(data: ModelData, split: Split) -> Tensor:
    """Indices of all inputs, int64 (N,), in an order that does not depend on that of the data."""
    return torch.from_numpy(data.order(split))


def _batches(data: ModelData, split: Split) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of a split; Undefined if the inputs are integers."""
    for inputs, targets in data.batches(split):
        if not inputs.is_floating_point():
            raise Undefined(f"trajectories and segments need floating-point inputs, got {inputs.dtype}")
        yield inputs, targets
