"""One view of everything that users give as data, and its check before any model runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from genmeasures.data.keys import content_keys, distinct, mix
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
    """(N,): keys of inputs and targets together, equal where both are."""
    input_shape: tuple[int, ...]
    targets: TargetInfo | None

    def __len__(self) -> int:
        return len(self.keys)


class DataSource:
    """A split of the data, read batch by batch in a fixed order.

    data: a tuple of arrays or tensors (inputs,) or (inputs, targets), inputs (N, …) with channels
    first; a torch Dataset of inputs or of (input, target); or a DataLoader of them, whose data set,
    collate function, workers and selection of samples are used, but not its shuffling.
    Floating-point inputs are read as float32. Targets are integers, (N,) or dense, or floating
    point, (N,), (N, C) or dense, with or without channels. For inputs (N, C, X) targets (N, X)
    are dense.
    """

    def __init__(self, data: Any, name: str, batch_size: int) -> None:
        self.name = name
        self._batch_size = batch_size
        self._arrays: tuple[Tensor, Tensor | None] | None = None
        self._loader: DataLoader[Any] | None = None
        self._selected: list[Any] | None = None
        """What a DataLoader's sampler selects of its data set, None where that is all of it."""
        self._scan: Scan | None = None
        if isinstance(data, DataLoader):
            self._loader = self._in_order(data)
        elif isinstance(data, Dataset):
            self._loader = DataLoader(data, batch_size=batch_size, generator=torch.Generator())
        elif isinstance(data, tuple | list) and len(data) in (1, 2):
            self._arrays = self._tensors(data)
        elif isinstance(data, np.ndarray | Tensor):
            self._arrays = self._tensors((data,))
        else:
            of = f" of {len(data)}" if isinstance(data, tuple | list) else ""
            raise DataError(
                f"{name} data: expected a tuple of arrays (inputs, targets), a torch Dataset or a DataLoader, "
                f"got {type(data).__name__}{of}"
            )
        if self._loader is not None and not isinstance(self._loader.dataset, IterableDataset):
            if not isinstance(self._loader.dataset, Sized):
                raise DataError(f"{name} data: a {type(self._loader.dataset).__name__} has no length")
            if not len(self._loader.dataset):
                raise DataError(f"{name} data: the data set is empty")

    def _in_order(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """The loader without its shuffling: what it selects, in ascending order."""
        if isinstance(loader.dataset, IterableDataset) or not isinstance(loader.dataset, Sized):
            return loader
        sampler: Any = loader.sampler
        whole = isinstance(sampler, SequentialSampler) or (
            isinstance(sampler, RandomSampler) and not sampler.replacement
        )
        whole = whole and len(sampler) == len(loader.dataset)
        if loader.batch_sampler is None:  # the data set makes the batches
            batch_size, order = None, None if whole else list(sampler)
        else:
            batch_size = loader.batch_size or self._batch_size
            if loader.batch_size is None:  # a batch sampler of the user's own, which need not take all
                order = sorted(index for batch in loader.batch_sampler for index in batch)
            else:
                order = None if whole else sorted(sampler)
            self._selected = order
        return DataLoader(
            loader.dataset,
            batch_size=batch_size,
            sampler=order,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            persistent_workers=loader.persistent_workers,
            timeout=loader.timeout,
            generator=torch.Generator(),  # or each reading would move the global one on
        )

    def _sample(self, place: int) -> str:
        """What to call a sample in an error: by its number in the user's data set."""
        return f"sample {place if self._selected is None else self._selected[place]}"

    def _tensors(self, data: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        made: list[Tensor | None] = []
        for what, array in zip(("inputs", "targets"), (*data, None), strict=False):
            if array is None:
                made.append(None)
                continue
            if isinstance(array, np.ndarray) and (min(array.strides, default=0) < 0 or not array.dtype.isnative):
                array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written to
                    made.append(array if isinstance(array, Tensor) else torch.as_tensor(array, device="cpu"))
            except (TypeError, ValueError, RuntimeError) as error:
                kind = f"array of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
                raise DataError(f"{self.name} data: the {what} are no array of numbers but {kind}: {error}") from error
        inputs, targets = made[0], made[1]
        if inputs is None or inputs.dim() < 2:
            shape = None if inputs is None else tuple(inputs.shape)
            raise DataError(f"{self.name} data: inputs must be of shape (N, …), got {shape}")
        if not len(inputs):
            raise DataError(f"{self.name} data: the data set is empty")
        if targets is not None:
            self._check_count(inputs, targets)
        return inputs, targets

    def _check_count(self, inputs: Tensor, targets: Tensor) -> None:
        if targets.dim() == 0 or len(targets) != len(inputs):
            count = "a single target" if targets.dim() == 0 else f"{len(targets)} targets"
            raise DataError(f"{self.name} data: {count} for {len(inputs)} inputs")

    def __iter__(self) -> Iterator[Batch]:
        """All batches, in the same order every time."""
        if self._arrays is not None:
            inputs, targets = self._arrays
            for start in range(0, len(inputs), self._batch_size):
                rows = slice(start, start + self._batch_size)
                yield self._batch(inputs[rows], None if targets is None else targets[rows])
            return
        assert self._loader is not None
        count = 0
        batches: Iterator[Any] | None = None
        while True:
            try:
                if batches is None:
                    with torch.device("cpu"):  # where the generator of the loader is, whatever the default
                        batches = iter(self._loader)
                item = next(batches)
            except StopIteration:
                return
            except Exception as error:  # whatever a user's data set raises
                raise self._unreadable(error, count) from error
            parts = item if isinstance(item, tuple | list) else (item,)
            if len(parts) not in (1, 2):
                raise DataError(
                    f"{self.name} data: a batch has {len(parts)} parts: inputs, or inputs and targets, are expected"
                )
            batch = self._batch(parts[0], parts[1] if len(parts) == 2 else None)
            yield batch
            count += len(batch[0])

    def _unreadable(self, error: Exception, count: int) -> DataError:
        lines = str(error).strip().splitlines() or [""]
        # An error in a worker process ends with what it was there.
        what = lines[-1] if lines[0].startswith("Caught ") else f"{type(error).__name__}: {lines[0]}"
        if "stack expects each tensor" in what or "resize storage" in what:
            what = f"inputs or targets differ in shape ({what})"
        return DataError(f"{self.name} data: the batch from {self._sample(count)} on cannot be read: {what}")

    def _batch(self, inputs: Any, targets: Any) -> Batch:
        if not isinstance(inputs, Tensor):
            raise DataError(f"{self.name} data: an input is of type {type(inputs).__name__}, a tensor is expected")
        if inputs.dim() < 2:
            raise DataError(f"{self.name} data: inputs must be of shape (N, …), got {tuple(inputs.shape)}")
        if inputs.dtype in (torch.uint8, torch.int8, torch.bool):
            raise DataError(
                f"{self.name} data: inputs are {str(inputs.dtype).removeprefix('torch.')}; "
                "give float32 inputs, scaled and normalised as the models were trained"
            )
        if inputs.is_complex():
            raise DataError(f"{self.name} data: complex inputs are not supported")
        inputs = inputs.float() if inputs.is_floating_point() else inputs.long()
        # An axis of size 1 can carry a stride that looks like channels last, with other kernels and other rounding.
        inputs = inputs.detach().clone(memory_format=torch.contiguous_format)
        if targets is None:
            return inputs, None
        if not isinstance(targets, Tensor):
            raise DataError(
                f"{self.name} data: a target is of type {type(targets).__name__}, a number or tensor is expected"
            )
        if targets.is_complex():
            raise DataError(f"{self.name} data: complex targets are not supported")
        self._check_count(inputs, targets)
        targets = targets.detach().float() if targets.is_floating_point() else targets.long()
        dense = inputs.dim() - 2
        is_dense = dense > 1 or (dense == 1 and targets.shape[-1] == inputs.shape[-1])
        if targets.dim() == 1 or (is_dense and targets.dim() == dense + 1):
            targets = targets[:, None]
        if targets.dim() not in (2, dense + 2):
            raise DataError(
                f"{self.name} data: targets of shape {tuple(targets.shape)} do not go with inputs of shape "
                f"{tuple(inputs.shape)}: one a sample (N,) or (N, C), or dense (N, *spatial) or (N, C, *spatial)"
            )
        return inputs, targets

    def example(self, count: int) -> Tensor:
        """The first inputs, at most ``count``."""
        found: list[Tensor] = []
        for inputs, _ in self:
            found.append(inputs[:count])
            count -= len(found[-1])
            if count <= 0:
                break
        if not found:
            raise DataError(f"{self.name} data: the data set is empty")
        return torch.cat(found)

    def scan(self, labelers: Sequence[TargetLabeler] = ()) -> Scan:
        """Read everything once: check it, key the inputs, and let the labelers see the targets.

        Raises DataError naming the first sample that is NaN or infinite, of another shape, or
        whose label is negative.
        """
        if self._scan is not None and not labelers:
            return self._scan
        keys: list[NDArray[np.uint64]] = []
        contents: list[NDArray[np.uint64]] = []
        shape: tuple[int, ...] | None = None
        info: TargetInfo | None = None
        count = 0
        for inputs, targets in self:
            if shape is None:
                shape = tuple(inputs.shape[1:])
                info = _target_info(targets)
            if tuple(inputs.shape[1:]) != shape:
                raise DataError(
                    f"{self.name} data: {self._sample(count)} has the shape {tuple(inputs.shape[1:])}, "
                    f"the first one {shape}"
                )
            if info != _target_info(targets):
                raise DataError(f"{self.name} data: targets differ in shape or type from {self._sample(count)} on")
            self._check_finite(inputs, "input", count)
            if targets is not None:
                self._check_finite(targets, "target", count)
                if info is not None and info.kind == "integer" and bool((targets < 0).any()):
                    bad = int((targets < 0).flatten(1).any(1).nonzero()[0, 0])
                    raise DataError(
                        f"{self.name} data: the label of {self._sample(count + bad)} is negative "
                        f"({int(targets[bad].min())}); labels are 0, 1, 2, …"
                    )
                for labeler in labelers:
                    labeler.observe(targets)
            keys.append(content_keys(inputs))
            contents.append(_contents(keys[-1], targets))
            count += len(inputs)
        if shape is None:
            raise DataError(f"{self.name} data: the data set is empty")
        self._scan = Scan(distinct(np.concatenate(keys)), np.concatenate(contents), shape, info)
        return self._scan

    def _check_finite(self, values: Tensor, what: str, first: int) -> None:
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            bad = int((~finite.flatten(1).all(1)).nonzero()[0, 0])
            raise DataError(f"{self.name} data: the {what} of {self._sample(first + bad)} is NaN or infinite")

    def checked(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """All batches with the index of their first input, after a scan.

        Raises DataError if an input or a target is not what it was then: augmentation must be off,
        or passes over the data would see different data.
        """
        contents = self.scan().contents
        start = 0
        for inputs, targets in self:
            found, expected = _contents(content_keys(inputs), targets), contents[start : start + len(inputs)]
            if len(found) > len(expected):
                raise DataError(f"{self.name} data: more than the {len(contents)} samples of the first reading")
            if (found != expected).any():
                raise DataError(
                    f"{self.name} data: {self._sample(start + int((found != expected).argmax()))} differs from one "
                    "reading to the next; switch off random augmentation and shuffling"
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


def _contents(keys: NDArray[np.uint64], targets: Tensor | None) -> NDArray[np.uint64]:
    """Keys of the inputs and targets together."""
    return keys if targets is None else mix(keys ^ mix(content_keys(targets)))
