"""One view of all forms of data, checked before any model runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from genmeasures.data.keys import content_keys, distinct, mix
from genmeasures.data.plain import collate, plain
from genmeasures.data.randomness import PrivateRandomness, drawn
from genmeasures.data.targets import Reading, TargetInfo, TargetSummary, is_any_of, settle
from genmeasures.errors import DataError
from genmeasures.interfaces import Split, TargetLabeler

Batch: TypeAlias = tuple[Tensor, Tensor | None]
"""Inputs (B, …) float32 (or integer token ids) and targets (B, C, *S), int64 or float32, or None."""

_READ_AGAIN = "the data must be the same each time they are read: pass a data set, arrays or a list"


@dataclass(frozen=True)
class Scan:
    """Result of reading a whole split once."""

    keys: NDArray[np.uint64]
    """(N,): distinct hashes of the inputs."""
    copies: NDArray[np.int64]
    """(N,): rank of each input among the different inputs, the same for all copies of an input."""
    contents: NDArray[np.uint64]
    """(N,): hashes of inputs and targets together."""
    input_shape: tuple[int, ...]
    targets: TargetInfo | None
    summary: TargetSummary | None = None
    """Statistics of the targets, before they are interpreted."""

    def __len__(self) -> int:
        return len(self.keys)


class DataSource:
    """A split of the data, read batch by batch in a fixed order.

    The data are read several times and must be the same each time. Random samplers are read once, with a fixed seed;
    the states of global generators do not change. Floating-point inputs are read as float32. Targets are integers, (N,)
    or dense, or floating point, (N,), (N, C) or dense, with or without channels; for inputs (N, C, X), targets (N, X)
    are dense. They are returned unchanged until :func:`read_alike` has settled how they are read.

    Args:
        data: a tuple of arrays (inputs,) or (inputs, targets), inputs (N, …) with channels first; a torch Dataset of
            inputs or of (input, target), or a list of such pairs; or a DataLoader, of which the data set, the collate
            function, the workers and the selection of samples are used, but not the shuffling. A list of two tuples is
            two pairs, a tuple or list of two arrays is all inputs and all targets. Arrays are tensors or NumPy arrays
            of any class, lists, or objects that convert to arrays, such as pandas columns.
        name: of the split, for messages.
        batch_size: inputs per batch, except of a DataLoader.
        ignore_index: the target that means "no label", None for none.

    Raises:
        DataError: the data are of another form, or empty.

    Example:
        >>> source = DataSource((torch.zeros(5, 3), torch.arange(5) % 2), "train", batch_size=4)
        >>> [tuple(inputs.shape) for inputs, targets in source]
        [(4, 3), (1, 3)]
        >>> len(source.scan())
        5
    """

    def __init__(self, data: Any, name: str, batch_size: int, ignore_index: float | None = None) -> None:
        self.name = name
        self._batch_size = batch_size
        self._ignore_index = ignore_index
        self._reading: Reading | None = None
        self._readings = 0
        self._arrays: tuple[Tensor, Tensor | None] | None = None
        self._loader: DataLoader[Any] | None = None
        self._selected: list[Any] | None = None
        """Indices that the sampler of a DataLoader selects, None for all."""
        self._scan: Scan | None = None
        if isinstance(data, DataLoader):
            self._loader = self._in_order(data)
        elif isinstance(data, Dataset) or _is_list_of_samples(data):
            self._loader = DataLoader(data, batch_size=batch_size, generator=torch.Generator(), collate_fn=collate)
        elif isinstance(data, tuple | list) and len(data) in (1, 2):
            self._arrays = self._tensors(data)
        elif isinstance(data, np.ndarray | Tensor) or hasattr(data, "__array__"):
            self._arrays = self._tensors((data,))
        else:
            of = f" of {len(data)}" if isinstance(data, tuple | list) else ""
            once = f"; {_READ_AGAIN}" if isinstance(data, Iterator) else ""
            raise DataError(
                f"{name} data: expected a tuple of arrays (inputs, targets), a torch Dataset, a DataLoader or a list "
                f"of pairs (input, target), got {type(data).__name__}{of}{once}"
            )
        if self._loader is not None and not isinstance(self._loader.dataset, IterableDataset):
            if not isinstance(self._loader.dataset, Sized):
                raise DataError(f"{name} data: a {type(self._loader.dataset).__name__} has no length")
            if not len(self._loader.dataset):
                raise DataError(f"{name} data: the data set is empty")

    def _in_order(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """The loader without its shuffling: the selected samples in ascending order."""
        collate_fn = collate if loader.collate_fn is default_collate else loader.collate_fn
        if isinstance(loader.dataset, IterableDataset) or not isinstance(loader.dataset, Sized):
            own = copy.copy(loader)
            own._iterator = None  # persistent workers belong to the user's loader
            own.generator = torch.Generator()  # or each reading would move the global generator
            own.collate_fn = collate_fn
            return own
        sampler: Any = loader.sampler
        whole = isinstance(sampler, SequentialSampler) or (
            isinstance(sampler, RandomSampler) and not sampler.replacement
        )
        whole = whole and len(sampler) == len(loader.dataset)
        if loader.batch_sampler is None:  # the data set makes the batches
            batch_size, order = None, None if whole else self._drawn(sampler, loader.dataset)
        else:
            batch_size = loader.batch_size or self._batch_size
            if loader.batch_size is None:  # a batch sampler of the user, which need not select all
                order = sorted(self._drawn(_Flat(loader.batch_sampler), loader.dataset))
            else:
                order = None if whole else sorted(self._drawn(sampler, loader.dataset))
            self._selected = order
        return DataLoader(
            loader.dataset,
            batch_size=batch_size,
            sampler=order,
            num_workers=loader.num_workers,
            collate_fn=collate_fn,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            persistent_workers=loader.persistent_workers,
            timeout=loader.timeout,
            generator=torch.Generator(),  # as above
        )

    def _drawn(self, sampler: Any, dataset: Sized) -> list[Any]:
        try:
            return drawn(sampler, len(dataset))
        except Exception as error:  # whatever a user's sampler raises
            raise DataError(f"{self.name} data: the sampler cannot be read: {type(error).__name__}: {error}") from error

    def _sample(self, index: int) -> str:
        """Name of a sample in messages, by its index in the user's data set."""
        return f"sample {index if self._selected is None else self._selected[index]}"

    def _tensors(self, data: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        tensors: list[Tensor | None] = []
        for what, array in zip(("inputs", "targets"), (*data, None), strict=False):
            if array is None:
                tensors.append(None)
                continue
            try:
                tensors.append(plain(array))
            except (TypeError, ValueError, RuntimeError) as error:
                kind = f"array of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
                raise DataError(
                    f"{self.name} data: the {what} must be an array of numbers, got {kind}: {error}"
                ) from error
        inputs, targets = tensors[0], tensors[1]
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
        """All batches, always in the same order."""
        for inputs, targets in self._raw():
            yield inputs, self._read(targets)

    def _read(self, targets: Tensor | None) -> Tensor | None:
        return targets if targets is None or self._reading is None else self._reading.apply(targets)

    def _raw(self) -> Iterator[Batch]:
        """All batches, with targets that are not interpreted."""
        if self._arrays is not None:
            inputs, targets = self._arrays
            for start in range(0, len(inputs), self._batch_size):
                rows = slice(start, start + self._batch_size)
                yield self._batch(inputs[rows], None if targets is None else targets[rows])
            return
        assert self._loader is not None
        count = number = 0
        batches: Iterator[Any] | None = None
        # Each reading has another seed, so that random data differ between readings, which is an error.
        randomness = PrivateRandomness(self._readings)
        self._readings += 1
        while True:
            try:
                with randomness:
                    if batches is None:
                        with torch.device("cpu"):  # the generator of the loader is on the CPU
                            batches = iter(self._loader)
                    item = next(batches)
                number += 1
            except StopIteration as end:
                self._check_end(count, number, end)
                return
            except Exception as error:  # whatever a user's data set raises
                raise self._unreadable(error, count) from error
            parts = item if isinstance(item, tuple | list) else (item,)
            if len(parts) not in (1, 2):
                raise DataError(
                    f"{self.name} data: expected batches of inputs, or of inputs and targets, got {len(parts)} parts"
                )
            batch = self._batch(parts[0], parts[1] if len(parts) == 2 else None)
            yield batch
            count += len(batch[0])

    def _check_end(self, count: int, number: int, end: StopIteration) -> None:
        """Raise DataError if the data end too early: after ``count`` samples in ``number`` batches."""
        if self._scan is not None and count < len(self._scan):
            before = f"{count} samples, {len(self._scan)} at the first reading"
            raise DataError(f"{self.name} data: {before}; {_READ_AGAIN}")
        assert self._loader is not None
        if not isinstance(self._loader.dataset, IterableDataset) and number < len(self._loader):
            where = f"the batch that begins with {self._sample(count)}"
            raise DataError(f"{self.name} data: {where} cannot be read: StopIteration; {_READ_AGAIN}") from end

    def _unreadable(self, error: Exception, count: int) -> DataError:
        lines = str(error).strip().splitlines() or [""]
        # The message of a worker process ends with the original error.
        what = lines[-1] if lines[0].startswith("Caught ") else f"{type(error).__name__}: {lines[0]}"
        if "stack expects each tensor" in what or "resize storage" in what:
            what = f"inputs or targets differ in shape ({what})"
        return DataError(f"{self.name} data: the batch that begins with {self._sample(count)} cannot be read: {what}")

    def _batch(self, inputs: Any, targets: Any) -> Batch:
        inputs = self._plain(inputs, "an input", "a tensor")
        if inputs.dim() < 2:
            raise DataError(f"{self.name} data: inputs must be of shape (N, …), got {tuple(inputs.shape)}")
        if inputs.dtype in (torch.uint8, torch.int8, torch.bool):
            raise DataError(
                f"{self.name} data: inputs are {str(inputs.dtype).removeprefix('torch.')}; "
                "pass float32 inputs, scaled and normalized as in training"
            )
        if inputs.is_complex():
            raise DataError(f"{self.name} data: complex inputs are not supported")
        inputs = inputs.float() if inputs.is_floating_point() else inputs.long()
        # An axis of size 1 can carry a stride that looks like channels last, with other kernels and other rounding.
        inputs = inputs.detach().clone(memory_format=torch.contiguous_format)
        if targets is None:
            return inputs, None
        targets = self._plain(targets, "a target", "a number or tensor")
        if targets.is_complex():
            raise DataError(f"{self.name} data: complex targets are not supported")
        self._check_count(inputs, targets)
        targets = targets.detach().float() if targets.is_floating_point() else targets.long()
        dense = inputs.dim() - 2
        space = tuple(inputs.shape[2:])
        if dense and targets.dim() == dense + 2 and targets.shape[1:-1] == space != tuple(targets.shape[2:]):
            raise DataError(
                f"{self.name} data: targets of shape {tuple(targets.shape)} have their channels last; "
                "pass (N, C, *spatial)"
            )
        is_dense = dense > 1 or (dense == 1 and targets.shape[-1] == inputs.shape[-1])
        if targets.dim() == 1 or (is_dense and targets.dim() == dense + 1):
            targets = targets[:, None]
        if targets.dim() not in (2, dense + 2):
            raise DataError(
                f"{self.name} data: targets of shape {tuple(targets.shape)} do not match inputs of shape "
                f"{tuple(inputs.shape)}: expected one per sample, (N,) or (N, C), or dense, (N, *spatial) or "
                "(N, C, *spatial)"
            )
        return inputs, targets

    def _plain(self, value: Any, what: str, expected: str) -> Tensor:
        if type(value) is Tensor and value.layout == torch.strided and not value.is_quantized:
            return value
        try:
            return plain(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"{self.name} data: {what} must be {expected}, got an object of type {type(value).__name__} ({error})"
            ) from error

    def example(self, count: int) -> Tensor:
        """The first inputs, at most ``count``."""
        parts: list[Tensor] = []
        for inputs, _ in self:
            parts.append(inputs[:count])
            count -= len(parts[-1])
            if count <= 0:
                break
        if not parts:
            raise DataError(f"{self.name} data: the data set is empty")
        return torch.cat(parts)

    def scan(self, labelers: Sequence[TargetLabeler] = ()) -> Scan:
        """Read and check all data once, hash the inputs, and show the targets to labelers.

        Args:
            labelers: see all targets, as they are read.

        Raises:
            DataError: a sample is NaN or infinite, of another shape, or has a negative label; it is named.
        """
        if self._scan is None:
            self._scan = self._read_first()
        for _, _, targets in self.checked() if labelers else ():
            if targets is not None:
                for labeler in labelers:
                    labeler.observe(targets)
        return self._scan

    def _read_first(self) -> Scan:
        keys: list[NDArray[np.uint64]] = []
        contents: list[NDArray[np.uint64]] = []
        shape: tuple[int, ...] | None = None
        info: TargetInfo | None = None
        summary: TargetSummary | None = None
        count = 0
        for inputs, targets in self._raw():
            if shape is None:
                shape = tuple(inputs.shape[1:])
                info = _target_info(targets)
                summary = None if info is None else TargetSummary(info, self._ignore_index)
            if tuple(inputs.shape[1:]) != shape:
                raise DataError(
                    f"{self.name} data: {self._sample(count)} has the shape {tuple(inputs.shape[1:])}, "
                    f"the first one {shape}"
                )
            if info != _target_info(targets):
                raise DataError(f"{self.name} data: targets differ in shape or type from {self._sample(count)} on")
            self._check_finite(inputs, "input", count)
            if targets is not None and summary is not None:
                if summary.info.kind == "integer":
                    self._check_classes(targets, summary, count)
                else:
                    self._check_finite(targets, "target", count)
                summary.add(targets)
            keys.append(content_keys(inputs))
            contents.append(_contents(keys[-1], targets))
            count += len(inputs)
        if shape is None:
            raise DataError(f"{self.name} data: the data set is empty")
        of_all = np.concatenate(keys)
        copies = np.unique(of_all, return_inverse=True)[1]
        return Scan(distinct(of_all), copies, np.concatenate(contents), shape, info, summary)

    def _check_classes(self, targets: Tensor, summary: TargetSummary, first: int) -> None:
        if int(targets.min()) >= 0:
            return
        bad = (targets < 0) & ~summary.is_left_out(targets)
        if bool(bad.any()):
            row = int(bad.flatten(1).any(1).nonzero()[0, 0])
            value = int(targets[row][bad[row]].min())
            raise DataError(
                f"{self.name} data: the label of {self._sample(first + row)} is negative ({value}); "
                f'labels are 0, 1, 2, …; ignore_index={value} leaves it out if it means "no label"'
            )

    def _check_finite(self, values: Tensor, what: str, first: int) -> None:
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            if what == "target" and self._ignore_index is not None:
                finite |= is_any_of(values, (float(self._ignore_index),))
                if bool(finite.all()):
                    return
            bad = int((~finite.flatten(1).all(1)).nonzero()[0, 0])
            raise DataError(f"{self.name} data: the {what} of {self._sample(first + bad)} is NaN or infinite")

    def read_as(self, reading: Reading) -> Self:
        """The same data with targets interpreted in that way, after a scan; ``scan().contents`` depend on it."""
        scan = self.scan()
        assert scan.targets is not None
        source = copy.copy(self)
        source._reading = reading
        contents = _salted(scan.contents, reading, scan.targets)
        source._scan = replace(scan, targets=reading.info(scan.targets), contents=contents)
        return source

    @property
    def ignored(self) -> tuple[float, ...]:
        """Targets that mean "no label"."""
        return () if self._reading is None else self._reading.ignored

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for statuses on how targets were interpreted."""
        return () if self._reading is None else self._reading.notes

    def checked(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """All batches, each with the index of its first input, after a scan.

        Raises:
            DataError: a sample differs from the scan, as with random augmentation.
        """
        scan = self.scan()
        contents = scan.contents
        start = 0
        for inputs, targets in self._raw():
            current, expected = _contents(content_keys(inputs), targets), contents[start : start + len(inputs)]
            if self._reading is not None and scan.summary is not None:
                current = _salted(current, self._reading, scan.summary.info)
            if len(current) > len(expected):
                raise DataError(f"{self.name} data: more than the {len(contents)} samples of the first reading")
            if (current != expected).any():
                raise DataError(
                    f"{self.name} data: {self._sample(start + int((current != expected).argmax()))} differs from one "
                    "reading to the next; switch off random augmentation and shuffling"
                )
            yield start, inputs, self._read(targets)
            start += len(inputs)
        if start != len(contents):
            raise DataError(f"{self.name} data: {start} samples, {len(contents)} at the first reading")


def _is_list_of_samples(data: Any) -> bool:
    """Whether data are a list of (input, target) or (input,), with tensors or arrays as inputs."""
    if not isinstance(data, list) or not data:
        return False
    kinds = (tuple,) if len(data) < 3 else (tuple, list)  # two lists may be all inputs and all targets
    return all(isinstance(item, kinds) and len(item) in (1, 2) and hasattr(item[0], "shape") for item in data)


def _target_info(targets: Tensor | None) -> TargetInfo | None:
    if targets is None:
        return None
    return TargetInfo(
        "continuous" if targets.is_floating_point() else "integer", targets.shape[1], tuple(targets.shape[2:])
    )


def _contents(keys: NDArray[np.uint64], targets: Tensor | None) -> NDArray[np.uint64]:
    """Hashes of inputs and targets together."""
    return keys if targets is None else mix(keys ^ mix(content_keys(targets)))


def _salted(contents: NDArray[np.uint64], reading: Reading, raw: TargetInfo) -> NDArray[np.uint64]:
    """Hashes of inputs and targets as they are interpreted."""
    salt = reading.salt(raw)
    return mix(contents ^ salt) if salt else contents


class _Flat:
    """The indices of a batch sampler, one by one."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return (index for batch in self.batches for index in batch)


def read_alike(sources: Mapping[Split, DataSource]) -> dict[Split, DataSource]:
    """The splits with their targets interpreted in one way, see :func:`genmeasures.data.targets.settle`.

    Args:
        sources: by split, the training split first.

    Example:
        >>> inputs, targets = torch.zeros(8, 2), torch.tensor([0.0, 1.0]).repeat(4)
        >>> read_alike({"train": DataSource((inputs, targets), "train", 8)})["train"].notes
        ('floating-point targets with integer values were read as class numbers',)
    """
    summaries = {name: source.scan().summary for name, source in sources.items()}
    present = {name: summary for name, summary in summaries.items() if summary is not None}
    readings = settle(present) if present else {}
    return {name: source.read_as(readings[name]) if name in readings else source for name, source in sources.items()}
