"""Draws the inputs that trajectories run through: no value depends on their order, nor on how they come in batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from genmeasures.plugin import ModelData, Split, Undefined, class_problem


def inputs_at(data: ModelData, split: Split, indices: Sequence[int]) -> list[Tensor]:
    """The inputs (…) at these indices of a split, in this order, on the data's device."""
    wanted = set(indices)
    found: dict[int, Tensor] = {}
    start = 0
    for inputs, _ in _batches(data, split):
        for index in wanted.intersection(range(start, start + len(inputs))):
            found[index] = inputs[index - start].to(data.device, copy=True)
        start += len(inputs)
    return [found[index] for index in indices]


def draw_images(data: ModelData, count: int) -> list[Tensor]:
    """``count`` test inputs (…), each at most once. Raises Undefined if there are fewer."""
    total = sum(len(inputs) for inputs, _ in _batches(data, "test"))
    if total < count:
        raise Undefined(f"{count} trajectories need as many test inputs, there are {total}")
    drawn = torch.randperm(total, generator=data.generator, device=data.generator.device)[:count]
    return inputs_at(data, "test", _ordered(data, "test")[drawn].tolist())


def draw_triples(data: ModelData, count: int, classes: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """``count`` triples of different training inputs (…).

    classes: the three of the "same" class, of three "different" ones, or of "any". The first is
    drawn evenly among all inputs that have such company, the next evenly among what remains.
    Inputs without a label are left out where classes are told apart.
    Raises Undefined if there are no such three, or no classes to tell.
    """
    labels: list[Tensor] = []
    total = 0
    for inputs, targets in _batches(data, "train"):
        total += len(inputs)
        if classes != "any":
            labels.append(_labels(targets))
    if total < 3:
        raise Undefined(f"an ellipse runs through three training inputs, there are {total}")
    order = _ordered(data, "train")
    label = torch.cat(labels)[order] if labels else torch.zeros(total, dtype=torch.long, device="cpu")
    order, label = order[label >= 0], label[label >= 0]
    if len(label) < 3:
        raise Undefined(f"an ellipse runs through three training inputs, {len(label)} have a label")
    _, label, sizes = label.unique(return_inverse=True, return_counts=True)
    if classes == "same" and int(sizes.max()) < 3:
        raise Undefined("no class has three training inputs")
    if classes == "different" and len(sizes) < 3:
        raise Undefined(f"an ellipse through three classes needs as many, the training data have {len(sizes)}")
    triples = [_triple(label, sizes, classes, data.generator) for _ in range(count)]
    points = inputs_at(data, "train", [int(order[index]) for triple in triples for index in triple])
    return [(points[i], points[i + 1], points[i + 2]) for i in range(0, len(points), 3)]


def _triple(label: Tensor, sizes: Tensor, classes: str, generator: torch.Generator) -> list[int]:
    open_ = sizes[label] >= 3 if classes == "same" else torch.ones_like(label, dtype=torch.bool)
    chosen: list[int] = []
    for _ in range(3):
        left = open_.nonzero()[:, 0]
        chosen.append(int(left[torch.randint(len(left), (1,), generator=generator, device=generator.device)]))
        alike = label == label[chosen[-1]]
        open_ = open_ & (alike if classes == "same" else ~alike if classes == "different" else True)
        open_[chosen[-1]] = False
    return chosen


def _labels(targets: Tensor | None) -> Tensor:
    if targets is not None and targets[:1].numel() == 1:
        targets = targets.reshape(-1, 1)  # masks of a single pixel are classes, too
    problem = class_problem(targets)
    if targets is None or problem:
        raise Undefined(f"classes are told apart by {problem}: choose classes=any")
    return targets.reshape(-1).cpu()


def draw_random(data: ModelData, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """``count`` triples of normal inputs (…), with the mean and standard deviation of all training values."""
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
    """int64 (N,): all inputs, in an order that does not depend on that of the data."""
    return torch.from_numpy(data.order(split))


def _batches(data: ModelData, split: Split) -> Iterator[tuple[Tensor, Tensor | None]]:
    for inputs, targets in data.batches(split):
        if not inputs.is_floating_point():
            raise Undefined("the inputs are integers: there is no path between them")
        yield inputs, targets
