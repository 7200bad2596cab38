"""Record of the training sample of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from genmeasures.engine.consumer import Consumer
from genmeasures.failures import to_raise_later
from genmeasures.interfaces import (
    FeatureBatch,
    FeatureLabeler,
    Field,
    FieldValue,
    Labeler,
    Layer,
    SampleName,
    Split,
    TargetLabeler,
)

_ROWS = 16_384
"""Vectors of a replayed batch."""


class TrainingRecord:
    """The vectors of the "fit" sample, stored by rank, so that fits do not depend on the order of the data.

    After the fits, passes over the samples that it serves are replayed from it, without a forward pass.

    Args:
        layer: the layer.
        split: split of the sample.
        samples: names of the samples that it serves: "fit", and the split if all of its sample is fitted on.
        size: number of vectors.
        labelers: target labelers, by ``repr``, whose labels the replayed passes read.
        keeps_vectors: whether the replayed passes read vectors.
        patch_ranks: int64 (m,), the ranks of the vectors whose patches are recorded; None for all.
    """

    def __init__(
        self,
        layer: Layer,
        split: Split,
        samples: frozenset[SampleName],
        size: int,
        labelers: Mapping[str, TargetLabeler],
        keeps_vectors: bool,
        patch_ranks: Tensor | None = None,
    ) -> None:
        self.samples = samples
        self.vectors: Tensor | None = None
        """float32 (n, k); None before the first batch, and after the fits if no replayed pass reads them."""
        self.patches: Tensor | None = None
        """float32 (n, D), or (m, D) of those that are recorded, until their projection is fitted."""
        self.projected: Tensor | None = None
        """float64 (n, d), after the fit."""
        self._apart: Tensor | Exception | None = None
        """float64 (n, ·) by the other projection, or what its fit raised; None if no measure reads it."""
        self._inputs = torch.empty(0, dtype=torch.int64, device="cpu")
        """int64 (n,): ranks of the inputs."""
        self.held_back = torch.empty(0, dtype=torch.bool, device="cpu")
        """bool (n,): the vectors of inputs that are held back."""
        self._layer = layer
        self._split: Split = split
        self._size = size
        self._labelers = labelers
        self._keeps_vectors = keeps_vectors
        self._patch_row: Tensor | None = None
        """int64 (n,): the row of each vector among the recorded patches, −1 where it is not recorded."""
        self._patch_count = size if patch_ranks is None else len(patch_ranks)
        if patch_ranks is not None:
            rows = torch.arange(len(patch_ranks), device="cpu")
            self._patch_row = torch.full((size,), -1, device="cpu").index_copy_(0, patch_ranks, rows)
        self._labels: dict[str, Tensor | Exception] = {}
        """By labeler: the labels, or what the labeler raised."""

    def add(self, batch: FeatureBatch, with_patches: bool) -> None:
        """Record the vectors of a batch, and their patches."""
        vectors = batch.vectors
        if self.vectors is None:
            self.vectors = vectors.new_empty(self._size, vectors.shape[1])
            self._inputs = batch.inputs.new_empty(self._size)
            self.held_back = batch.held_back.new_empty(self._size)
            self._labels.update((key, batch.rank.new_zeros(self._size)) for key in self._labelers)
        self.vectors.index_copy_(0, batch.rank, vectors)
        self._inputs[batch.rank] = batch.inputs
        self.held_back[batch.rank] = batch.held_back
        if with_patches:
            self._add_patches(batch)

    def _add_patches(self, batch: FeatureBatch) -> None:
        rows, patches = batch.rank, batch.patch_set
        if self._patch_row is not None:
            rows = self._patch_row.to(rows.device)[rows]
            chosen = (rows >= 0).nonzero()[:, 0]
            if not len(chosen):
                return
            rows, patches = rows[chosen], patches.select(chosen)
        unfolded = patches.unfold()
        if self.patches is None:
            self.patches = unfolded.new_empty(self._patch_count, unfolded.shape[1])
        self.patches.index_copy_(0, rows, unfolded)

    def add_labels(self, batch: FeatureBatch) -> None:
        """Record the labels of a batch; an exception of a labeler is raised by the measures that read its labels."""
        for key, labeler in self._labelers.items():
            labels = self._labels[key]
            if isinstance(labels, Tensor):
                try:
                    labels[batch.rank] = batch.labels(labeler)
                except Exception as error:
                    self._labels[key] = to_raise_later(error)

    def settle(self, projected: Tensor, apart: Tensor | Exception | None) -> None:
        """Take the projected vectors, and drop what no replayed pass reads."""
        self.projected = projected
        self._apart = apart
        if not self._keeps_vectors:
            self.vectors = None

    def serves(self, consumer: Consumer) -> bool:
        """Whether the next pass of a consumer can be replayed, which none can before the fits."""
        readable = {"projected", "projected_apart", "labels"} | ({"vectors"} if self.vectors is not None else set())
        return self.projected is not None and consumer.waits_for(*self.samples) and consumer.fields <= readable

    def batches(self, by_features: Callable[[Labeler, Tensor], Tensor]) -> Iterator[FeatureBatch]:
        """The sample in the order of the ranks.

        by_features: the labels of a feature labeler for projected vectors (n, d).
        """
        assert self.projected is not None
        for start in range(0, self._size, _ROWS):
            rows = slice(start, min(start + _ROWS, self._size))
            rank = torch.arange(rows.start, rows.stop, device=self.projected.device)
            fields: dict[Field, Callable[[FeatureBatch], FieldValue]] = {
                "projected": partial(_rows_of, self.projected, rows)
            }
            if self._apart is not None:
                fields["projected_apart"] = partial(_rows_of, self._apart, rows)
            if self.vectors is not None:
                fields["vectors"] = partial(_rows_of, self.vectors, rows)
            inputs, held_back = self._inputs[rows], self.held_back[rows]
            labels = partial(self._label, rows, by_features)
            yield FeatureBatch(self._layer, self._split, rank, inputs, fields, labels, held_back)

    def _label(
        self, rows: slice, by_features: Callable[[Labeler, Tensor], Tensor], labeler: Labeler, batch: FeatureBatch
    ) -> Tensor:
        if isinstance(labeler, FeatureLabeler):
            return by_features(labeler, batch.projected)
        labels = self._labels[repr(labeler)]
        if isinstance(labels, Exception):
            raise labels
        return labels[rows]


def _rows_of(values: Tensor | Exception, rows: slice, batch: FeatureBatch) -> Tensor:
    if isinstance(values, Exception):
        raise values
    return values[rows]
