"""Cache of what one pass keeps for the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from torch import Tensor

from genmeasures.engine.consumer import Consumer
from genmeasures.engine.samples import located
from genmeasures.interfaces import (
    Extractor,
    FeatureBatch,
    Field,
    FieldValue,
    Labeler,
    PatchSet,
    Sample,
    SampleName,
    Split,
)
from genmeasures.tracing import LayerReader, StoredPatches, TracedLayer

PATCH_FIELDS: frozenset[Field] = frozenset({"patches", "patch_set"})
CACHED_FIELDS: frozenset[Field] = PATCH_FIELDS | {"projected", "projected_patches", "patch_projection", "labels"}
"""Fields of a pass that can be cached, or need not be."""
_PROJECTED: tuple[Field, ...] = ("projected", "projected_patches")


class PassCache:
    """What the next pass over a sample reads of a layer, so that it needs no forward pass.

    Each field has one block of memory, because a block per batch would fragment the memory.

    Args:
        name: name of the sample.
        sample: the sample.
        split: split of the sample.
        traced: the layer.
        extractor: extractor of the run.
        places: int64 (N,), rank of each input of the split by its contents.
        held_back: bool (N,), the inputs that are held back.
    """

    def __init__(
        self,
        name: SampleName,
        sample: Sample,
        split: Split,
        traced: TracedLayer,
        extractor: Extractor,
        places: Tensor,
        held_back: Tensor,
    ) -> None:
        self.name: SampleName = name
        self._sample = sample
        self._split: Split = split
        self._traced = traced
        self._extractor = extractor
        self._places = places
        self._held_back = held_back
        self._tensors: dict[str, Tensor] = {}
        """By field or labeler, (vectors, …) in the order of the batches."""
        self._filled: Counter[str] = Counter()
        """Number of vectors of each of them; fewer than all if the only measure that reads it failed in between."""
        self._inputs: Tensor | None = None
        """(inputs, …): the layer's inputs with channels innermost, if patches are read from them."""
        self._batches: list[tuple[int, int, slice, slice]] = []
        """First input, number of inputs, rows among the vectors of these inputs, and rows among all vectors."""

    def add_inputs(self, inputs: Tensor, start: int, total: int) -> Tensor:
        """Cache a batch of the layer's inputs (B, …), of ``total`` in all; returns the copy.

        They are copied: the model may overwrite them, or they may be part of something larger.
        """
        inner = inputs.movedim(1, -1)
        if self._inputs is None:
            self._inputs = inner.new_empty((total, *inner.shape[1:]))
        return self._inputs[start : start + len(inputs)].copy_(inner).movedim(-1, 1)

    def add(self, start: int, count: int, tensors: Mapping[str, Tensor], vectors: int) -> None:
        """Cache vectors of the inputs ``start`` … ``start + count − 1``.

        tensors: (vectors, …) by field or labeler. Without "rank" among them, the vectors come in the order of the
        sample.
        """
        last = self._batches[-1] if self._batches else (start, count, slice(0, 0), slice(0, 0))
        before = last[2].stop if last[0] == start else 0
        rows = slice(last[3].stop, last[3].stop + vectors)
        self._batches.append((start, count, slice(before, before + vectors), rows))
        for key, tensor in tensors.items():
            if key not in self._tensors:
                self._tensors[key] = tensor.new_empty((len(self._sample), *tensor.shape[1:]))
            self._tensors[key][rows] = tensor
            self._filled[key] += vectors

    def serves(self, consumer: Consumer) -> bool:
        """Whether the next pass of a consumer can be replayed."""
        if not consumer.waits_for(self.name) or not self._batches:
            return False
        total = self._batches[-1][3].stop
        held = {key for key in self._tensors if self._filled[key] == total}
        if self._inputs is not None or "patches" in held:
            held |= PATCH_FIELDS
        labeled = not consumer.reads_labels or repr(consumer.measure.labeler) in held
        return labeled and consumer.fields - {"labels", "patch_projection"} <= held

    def batches(self, patch_projection: Callable[[], tuple[Tensor, Tensor]]) -> Iterator[FeatureBatch]:
        """The batches of the pass, as far as they are cached.

        patch_projection: the projection of patches, which is known and not cached.
        """
        for start, count, part, span in self._batches:
            rows, positions, rank = (index[part] for index in located(self._sample, start, count))
            rank = self._tensors["rank"][span] if "rank" in self._tensors else rank
            fields: dict[Field, Callable[[FeatureBatch], FieldValue]] = {
                "patch_projection": lambda _: patch_projection()
            }
            for name in _PROJECTED:
                if name in self._tensors:
                    fields[name] = partial(_rows_of, self._tensors[name], span)
            patches: PatchSet | None = None
            if "patches" in self._tensors:
                patches = StoredPatches(self._tensors["patches"][span])
            elif self._inputs is not None:
                inputs = self._inputs[start : start + count].movedim(-1, 1)
                reader = LayerReader(self._traced.geometry, inputs, self._traced.channels_last)
                patches = self._extractor.patches(reader, rows.to(inputs.device), positions.to(inputs.device))
            if patches is not None:
                fields["patch_set"] = partial(_same, patches)
                fields["patches"] = _unfolded
            inputs, held_back = (of[rows + start].to(rank.device) for of in (self._places, self._held_back))
            labels = partial(self._label, span)
            yield FeatureBatch(self._traced.layer, self._split, rank, inputs, fields, labels, held_back)

    def _label(self, rows: slice, labeler: Labeler, batch: FeatureBatch) -> Tensor:
        return self._tensors[repr(labeler)][rows]


def _rows_of(values: Tensor, rows: slice, batch: FeatureBatch) -> Tensor:
    return values[rows]


def _same(patches: PatchSet, batch: FeatureBatch) -> PatchSet:
    return patches


def _unfolded(batch: FeatureBatch) -> Tensor:
    return batch.patch_set.unfold()
