"""Feeds: portions of the data that run through the model in one call, and the sampled vectors in them."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from genmeasures.engine.layer import LayerState
from genmeasures.engine.prepare import PreparedData
from genmeasures.engine.returned import checked_labels
from genmeasures.engine.samples import located
from genmeasures.interfaces import Labeler, SampleName, TargetLabeler
from genmeasures.tracing.geometry import Geometry
from genmeasures.tracing.tap import Tap


class TargetLabels:
    """Labels of some inputs by target labelers, computed once for all layers of the same spatial size.

    Args:
        labelers: fitted, by representation.
        targets: (B, C, *S), None if the data have none.
        device: device of the labels.
    """

    def __init__(self, labelers: Mapping[str, TargetLabeler], targets: Tensor | None, device: torch.device) -> None:
        self.targets = targets
        self._labelers = labelers
        self._device = device
        self._labels: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def at(self, labeler: Labeler, size: tuple[int, ...]) -> Tensor:
        """int64 (B, P) at all P positions of a layer of that spatial size, or (B, 1) if they are equal."""
        key = (repr(labeler), size)
        if key not in self._labels:
            assert self.targets is not None
            fitted, count = self._labelers[repr(labeler)], len(self.targets)
            labels = fitted.label(self.targets.to(self._device), size)
            self._labels[key] = checked_labels(fitted, labels, (count, 1), (count, math.prod(size)))
        return self._labels[key]


@dataclass(frozen=True)
class Vectors:
    """Where the sampled vectors of a layer lie in the tensors of one forward call; each int64 (n,)."""

    geometry: Geometry
    """How the layer reads its input in this call."""
    rows: Tensor
    """Rows of the batch."""
    positions: Tensor
    """Flattened positions in the output of this call."""
    rank: Tensor
    """Ranks in the sample."""
    labeled: Tensor
    """Flattened positions in the output for a whole input, where labels are looked up."""


@dataclass(frozen=True)
class Portion(abc.ABC):
    """Data that run through the model in one call."""

    start: int
    """Index of the first of the inputs."""
    inputs: Tensor
    """(B, C, *S), on the device."""
    labels: TargetLabels
    """Labels of the whole inputs."""

    def run(self, tap: Tap) -> Any:
        """Run the model; returns its output, None if the pass ended before it."""
        return tap.run(self.inputs)

    @abc.abstractmethod
    def vectors(self, state: LayerState, sample: SampleName, inputs: Tensor, output: Tensor) -> Vectors:
        """Where the sampled vectors of a layer lie in its inputs (B, …) and its output (B, …)."""


class Feed(abc.ABC):
    """Feeds the inputs of a sample to the model."""

    whole: ClassVar[bool]
    """Whether portions are whole inputs, so that outputs can be compared with targets."""

    @abc.abstractmethod
    def portions(self, sample: SampleName, states: Sequence[LayerState]) -> Iterator[Portion]:
        """All portions in which vectors of these layers may lie, in the order of the inputs."""


class WholePortion(Portion):
    """Some whole inputs."""

    def vectors(self, state: LayerState, sample: SampleName, inputs: Tensor, output: Tensor) -> Vectors:
        rows, positions, rank = located(state.samples[sample], self.start, len(output))
        return Vectors(state.traced.geometry, rows, positions, rank, positions)


class WholeFeed(Feed):
    """Feeds whole inputs, as many at a time as the memory allows.

    Args:
        data: data of the run.
        device: device of the model.
        layout: the memory format in which the model is fastest.
        rows: maximum number of inputs per call.
    """

    whole = True

    def __init__(self, data: PreparedData, device: torch.device, layout: torch.memory_format, rows: int) -> None:
        self._data = data
        self._device = device
        self._layout = layout
        self._rows = rows

    def portions(self, sample: SampleName, states: Sequence[LayerState]) -> Iterator[Portion]:
        source = self._data.sources[self._data.split_of(sample)]
        for start, inputs, targets in source.checked():
            for row in range(0, len(inputs), self._rows):
                rows = slice(row, row + self._rows)
                labels = TargetLabels(self._data.labelers, None if targets is None else targets[rows], self._device)
                moved = inputs[rows].to(self._device).contiguous(memory_format=self._layout)
                yield WholePortion(start + row, moved, labels)
