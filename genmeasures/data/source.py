"""One view of everything that users give as data, and its check before any model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from genmeasures.data.keys import content_keys, distinct
from genmeasures.errors import DataError
from genmeasures.interfaces import TargetLabeler

Batch: TypeAlias = tuple[Tensor, Tensor | None]
"""Inputs (B, …) float32 (or integer token ids) and targets (B, C, *S), int64 or float32, or None."""


@dataclass(frozen=True)
class TargetInfo:
    """What the targets of a split are like."""

    kind: Literal["integer", "continuous"]
    channels: int
    spatial: tuple[int, ...]


@dataclass(frozen=True)
class Scan:
    """What one look at a whole split found."""

    keys: NDArray[np.uint64]
    """(N,): distinct keys of the inputs' contents."""
    contents: NDArray[np.uint64]
    """(N,): the same before equal inputs were told apart."""
    input_shape: tuple[int, ...]
    targets: TargetInfo | None

    def __len__(self) -> int:
        return len(self.keys)


class DataSource:
    """A split of the data, read batch by batch in a fixed order.

    data: a tuple of arrays or tensors (inputs,) or (inputs, targets), inputs (N, …) with channels
    first; a torch Dataset of inputs or of (input, target); or a DataLoader of them, whose data set,
    collate function, worker count and selection of samples are used, but not its shuffling.
    Floating-point inputs are read as float32. Targets are integers, (N,) or dense, or floating
    point, (N,), (N, C) or dense.
    """

    def __init__(self, data: Any, name: str, batch_size: int) -> None:
        self.name = name
        self._batch_size = batch_size
        self._arrays: tuple[Tensor, Tensor | None] | None = None
        self._loader: DataLoader[Any] | None = None
        self._scan: Scan | None = None
        if isinstance(data, DataLoader):
            self._loader = self._in_order(data)
        elif isinstance(data, Dataset):
            self._loader = DataLoader(data, batch_size=batch_size)
        elif isinstance(data, tuple | list) and len(data) in (1, 2):
            self._arrays = self._tensors(data)
        elif isinstance(data, np.ndarray | Tensor):
            self._arrays = self._tensors((data,))
        else:
            raise DataError(
                f"{name} data: expected a tuple of arrays (inputs, targets), a torch Dataset or a DataLoader, "
                f"got {type(data).__name__}"
            )
        if self._loader is not None and isinstance(self._loader.dataset, Sized) and not len(self._loader.dataset):
            raise DataError(f"{name} data: the data set is empty")

    def _in_order(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        if isinstance(loader.dataset, IterableDataset):
            return loader
        dataset, sampler = loader.dataset, loader.sampler
        if not isinstance(sampler, RandomSampler | SequentialSampler):
            dataset = torch.utils.data.Subset(dataset, list(sampler))
        return DataLoader(
            dataset,
            batch_size=loader.batch_size or self._batch_size,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
        )

    def _tensors(self, data: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        made: list[Tensor | None] = []
        for what, array in zip(("inputs", "targets"), (*data, None), strict=False):
            if array is None:
                made.append(None)
                continue
            try:
                made.append(torch.as_tensor(array))
            except (TypeError, ValueError, RuntimeError) as error:
                kind = f"array of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
                raise DataError(f"{self.name} data: the {what} are no array of numbers but {kind}: {error}") from error
        inputs, targets = made[0], made[1]
        if inputs is None or inputs.dim() < 2:
            shape = None if inputs is None else tuple(inputs.shape)
            raise DataError(f"{self.name} data: inputs must be of shape (N, …), got {shape}")
        if not len(inputs):
            raise DataError(f"{self.name} data: the data set is empty")
        if targets is not None and (targets.dim() == 0 or len(targets) != len(inputs)):
            count = "a single target" if targets.dim() == 0 else f"{len(targets)} targets"
            raise DataError(f"{self.name} data: {count} for {len(inputs)} inputs")
        return inputs, targets

    def __iter__(self) -> Iterator[Batch]:
        """All batches, in the same order every time."""
        if self._arrays is not None:
            inputs, targets = self._arrays
            for start in range(0, len(inputs), self._batch_size):
                rows = slice(start, start + self._batch_size)
                yield self._batch(inputs[rows], None if targets is None else targets[rows])
            return
        assert self._loader is not None
        try:
            for item in self._loader:
                if isinstance(item, tuple | list):
                    if len(item) > 2:
                        raise DataError(
                            f"{self.name} data: a batch has {len(item)} parts: inputs, or inputs and targets, are expected"
                        )
                    yield self._batch(item[0], item[1] if len(item) == 2 else None)
                else:
                    yield self._batch(item, None)
        except RuntimeError as error:
            if "stack expects each tensor" in str(error) or "resize storage" in str(error):
                raise DataError(f"{self.name} data: inputs or targets differ in shape: {error}") from error
            raise

    def _batch(self, inputs: Any, targets: Any) -> Batch:
        if not isinstance(inputs, Tensor):
            raise DataError(f"{self.name} data: an input is of type {type(inputs).__name__}, a tensor is expected")
        if inputs.dtype in (torch.uint8, torch.int8, torch.bool):
            raise DataError(
                f"{self.name} data: inputs are {str(inputs.dtype).removeprefix('torch.')}; "
                "give float32 inputs, scaled and normalised as the models were trained"
            )
        if inputs.is_complex():
            raise DataError(f"{self.name} data: complex inputs are not supported")
        inputs = inputs.float() if inputs.is_floating_point() else inputs.long()
        # An axis of size 1 can carry a stride that looks like channels last, with other kernels and other rounding.
        inputs = inputs.clone(memory_format=torch.contiguous_format)
        if targets is None:
            return inputs, None
        if not isinstance(targets, Tensor):
            raise DataError(
                f"{self.name} data: a target is of type {type(targets).__name__}, a number or tensor is expected"
            )
        targets = targets.float() if targets.is_floating_point() else targets.long()
        dense = inputs.dim() - 2
        # One-dimensional signals: (N, X) is dense where X is the signal's length, else a vector an input.
        without_channel = dense + 1 == targets.dim() and (dense > 1 or targets.shape[1] == inputs.shape[-1])
        if targets.dim() == 1 or (dense > 0 and without_channel):
            targets = targets[:, None]
        if targets.dim() not in (2, dense + 2):
            raise DataError(
                f"{self.name} data: targets of shape {tuple(targets.shape)} do not go with inputs of shape "
                f"{tuple(inputs.shape)}: one a sample (N,) or (N, C), or dense (N, *spatial) or (N, C, *spatial)"
            )
        return inputs, targets

    def example(self, count: int) -> Tensor:
        """The first inputs, at most ``count``."""
        return next(iter(self))[0][:count]

    def scan(self, labelers: Sequence[TargetLabeler] = ()) -> Scan:
        """Read everything once: check it, key the inputs, and let the labelers see the targets.

        Raises DataError naming the first sample that is NaN or infinite, of another shape, or
        whose label is negative.
        """
        if self._scan is not None and not labelers:
            return self._scan
        keys: list[NDArray[np.uint64]] = []
        shape: tuple[int, ...] | None = None
        info: TargetInfo | None = None
        count = 0
        for inputs, targets in self:
            if shape is None:
                shape = tuple(inputs.shape[1:])
                info = _target_info(targets)
            if tuple(inputs.shape[1:]) != shape:
                raise DataError(
                    f"{self.name} data: sample {count} has the shape {tuple(inputs.shape[1:])}, the first one {shape}"
                )
            if inputs.is_floating_point():
                _check_finite(inputs, self.name, "input", count)
            if targets is not None:
                if targets.is_floating_point():
                    _check_finite(targets, self.name, "target", count)
                elif bool((targets < 0).any()):
                    bad = int((targets < 0).flatten(1).any(1).nonzero()[0, 0])
                    raise DataError(
                        f"{self.name} data: the label of sample {count + bad} is negative ({int(targets[bad].min())}); "
                        "labels are 0, 1, 2, …"
                    )
                if info != _target_info(targets):
                    raise DataError(f"{self.name} data: targets differ in shape or type from sample {count} on")
                for labeler in labelers:
                    labeler.observe(targets)
            keys.append(content_keys(inputs))
            count += len(inputs)
        if shape is None:
            raise DataError(f"{self.name} data: the data set is empty")
        contents = np.concatenate(keys)
        self._scan = Scan(distinct(contents), contents, shape, info)
        return self._scan

    def checked(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """All batches with the index of their first input, after a scan.

        Raises DataError if an input is not what it was then: augmentation must be off, or passes
        over the data would see different data.
        """
        contents = self.scan().contents
        start = 0
        for inputs, targets in self:
            found, expected = content_keys(inputs), contents[start : start + len(inputs)]
            if len(found) != len(expected) or (found != expected).any():
                bad = start + (int((found != expected).argmax()) if len(found) == len(expected) else len(expected))
                raise DataError(
                    f"{self.name} data: sample {bad} differs from one reading to the next; "
                    "switch off random augmentation and shuffling"
                )
            yield start, inputs, targets
            start += len(inputs)
        if start != len(contents):
            raise DataError(f"{self.name} data: {start} samples where there were {len(contents)} at the first reading")


def _target_info(targets: Tensor | None) -> TargetInfo | None:
    if targets is None:
        return None
    return TargetInfo(
        "continuous" if targets.is_floating_point() else "integer", targets.shape[1], tuple(targets.shape[2:])
    )


def _check_finite(values: Tensor, name: str, what: str, first: int) -> None:
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        bad = int((~finite.flatten(1).all(1)).nonzero()[0, 0])
        raise DataError(f"{name} data: the {what} of sample {first + bad} is NaN or infinite")
