"""Interpretation of targets: class numbers, continuous values, and missing labels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from genmeasures.errors import OptionError
from genmeasures.interfaces import Split

Kind: TypeAlias = Literal["integer", "continuous"]

UNLABELED = -1
"""Missing label in integer targets; in continuous targets it is NaN."""
TORCH_IGNORES = -100
"""The default ``ignore_index`` of the losses of torch. It cannot be a class."""
_MASK_IGNORE = 255
"""Missing label in 8-bit masks, such as those of VOC and Cityscapes."""

_MOST_CLASSES = 1000
_MOST_MASK_CLASSES = 200
_INPUTS_PER_VALUE = 4
_TABLE = 1 << 20
"""Largest value that is counted in a table."""
_SOFT = 1e-3
"""Tolerance of the sum of soft labels, which is 1."""

_READ = "floating-point targets with integer values were read as "


@dataclass(frozen=True)
class TargetInfo:
    """Kind and shape of the targets of a split."""

    kind: Kind
    channels: int
    spatial: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """Interpretation of the targets of a split, see :func:`settle`.

    Example:
        >>> Reading("integer", ignored=(255.0,)).apply(torch.tensor([[0], [255]])).tolist()
        [[0], [-1]]
    """

    kind: Kind
    argmax: bool = False
    """Whether the class is the index of the channel that is 1."""
    ignored: tuple[float, ...] = ()
    """Values that mean "no label"."""
    notes: tuple[str, ...] = ()
    """Notes for the status of values that depend on labels."""

    def apply(self, targets: Tensor) -> Tensor:
        """Interpret targets (B, C, *S): int64 with −1 or float32 with NaN for a missing label."""
        integer = self.kind == "integer"
        labels = targets.long() if integer else targets.float()
        if self.argmax:
            labels = targets.argmax(1, keepdim=True)
        if not self.ignored:
            return labels
        unlabeled = is_any_of(targets, self.ignored).any(1, keepdim=True)
        return labels.masked_fill(unlabeled, UNLABELED if integer else math.nan)

    def info(self, raw: TargetInfo) -> TargetInfo:
        """Kind and shape of the targets after :meth:`apply`."""
        return TargetInfo(self.kind, 1 if self.argmax else raw.channels, raw.spatial)

    def salt(self, raw: TargetInfo) -> np.uint64:
        """A hash of this interpretation, 0 if it changes nothing."""
        if self.kind == raw.kind and not self.argmax and not self.ignored:
            return np.uint64(0)
        text = repr((self.kind, self.argmax, self.ignored))
        return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def check_ignore_index(value: object) -> None:
    """Check an ``ignore_index``.

    Args:
        value: a number (which NaN is) or None.

    Raises:
        OptionError: it is neither.

    Example:
        >>> check_ignore_index("255")
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: ignore_index must be a number, such as 255, or null, got '255'
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | np.number)):
        raise OptionError(f"ignore_index must be a number, such as 255, or null, got {value!r}")


def is_any_of(targets: Tensor, values: tuple[float, ...]) -> Tensor:
    """bool (…): where targets have one of the values, NaN included.

    Args:
        targets: numbers of any shape.
        values: the values to look for.

    Example:
        >>> is_any_of(torch.tensor([0.0, 255.0, math.nan]), (255.0, math.nan)).tolist()
        [False, True, True]
    """
    matches = torch.zeros_like(targets, dtype=torch.bool)
    for value in values:
        matches |= torch.isnan(targets) if math.isnan(value) else targets == value
    return matches


class TargetSummary:
    """Statistics of all targets of a split, without missing labels.

    Args:
        info: kind and shape of the targets.
        ignore_index: the value that means "no label", None for none; −100 always does.

    Example:
        >>> summary = TargetSummary(TargetInfo("integer", 1, ()), None)
        >>> summary.add(torch.tensor([[0], [2], [-100]]))
        >>> summary.largest, summary.ignored
        (2.0, (-100.0,))
    """

    def __init__(self, info: TargetInfo, ignore_index: float | None) -> None:
        self.info = info
        self._ignore = () if ignore_index is None else (float(ignore_index),)
        self.has_ignored = False
        self.has_torch_ignored = False
        self.inputs = 0
        """Number of inputs with a label."""
        self.places = 0
        """Number of labels."""
        self.least, self.largest = math.inf, -math.inf
        self.least_other, self.largest_other = math.inf, -math.inf
        """Without 255."""
        self.whole = True
        """Whether all values are integers."""
        self.one_hot = self.soft = info.channels > 1
        self._distinct: set[int] | None = set()
        """Different integers of one channel; None if they are too many for classes."""

    @property
    def ignored(self) -> tuple[float, ...]:
        """The values that occur and mean "no label", if targets are class numbers."""
        torchs = (float(TORCH_IGNORES),) if self.has_torch_ignored and TORCH_IGNORES not in self._ignore else ()
        return (*self.asked, *torchs)

    @property
    def asked(self) -> tuple[float, ...]:
        """The ``ignore_index`` if it occurs."""
        return self._ignore if self.has_ignored else ()

    @property
    def distinct(self) -> float:
        """Number of different values, ∞ if they are too many for classes."""
        return math.inf if self._distinct is None else len(self._distinct)

    def is_left_out(self, targets: Tensor) -> Tensor:
        """bool (…): where targets mean "no label"."""
        return is_any_of(targets, (*self._ignore, TORCH_IGNORES))

    def add(self, targets: Tensor) -> None:
        """Add a batch (B, C, *S), int64 or float32."""
        values = targets.movedim(1, -1).reshape(-1, targets.shape[1])  # (places, C)
        least = float(targets.min())
        # NaN may mean "no label", and is the least value then.
        if self._ignore or not least >= 0:
            asked = is_any_of(values, self._ignore).any(1)
            torchs = (values == TORCH_IGNORES).any(1)
            self.has_ignored |= bool(asked.any())
            self.has_torch_ignored |= bool((torchs & ~asked).any())
            left_out = asked | torchs
            self.inputs += int((~left_out).view(len(targets), -1).any(1).sum())
            if bool(left_out.any()):
                values = values[~left_out]
        else:
            self.inputs += len(targets)
        self.places += len(values)
        if len(values):
            self._see(values)

    def _see(self, values: Tensor) -> None:
        least, largest = map(float, values.aminmax())
        self.least, self.largest = min(self.least, least), max(self.largest, largest)
        others = values[values != _MASK_IGNORE] if largest == _MASK_IGNORE else values
        if len(others):
            self.least_other = min(self.least_other, float(others.min()))
            self.largest_other = max(self.largest_other, float(others.max()))
        if self.whole and values.is_floating_point():
            self.whole = bool((values == values.round()).all())
        if self.one_hot:
            self.one_hot = self.whole and least >= 0 and largest <= 1 and bool((values.sum(1) == 1).all())
        if self.soft:
            self.soft = least >= 0 and bool(((values.double().sum(1) - 1).abs() <= _SOFT).all())
        if self._distinct is None or self.info.channels > 1 or self.info.kind == "integer":
            return
        if not self.whole or least < 0:
            self._distinct = None
        elif largest <= _TABLE:
            self._distinct.update(torch.bincount(values.flatten().long()).nonzero()[:, 0].tolist())
        else:
            self._distinct.update(values.unique().long().tolist())
        if self._distinct is not None and len(self._distinct) > _MOST_CLASSES:
            self._distinct = None

    @property
    def can_be_classes(self) -> bool:
        """Whether all targets can be class numbers."""
        return self.one_hot or (self.info.channels == 1 and self.whole and self.least >= 0)

    @property
    def are_classes(self) -> bool:
        """Whether targets are class numbers by the rules of :func:`settle`."""
        if self.one_hot or self.info.kind == "integer":
            return self.can_be_classes
        most = _MOST_MASK_CLASSES if self.info.spatial else min(_MOST_CLASSES, self.inputs // _INPUTS_PER_VALUE)
        return self.can_be_classes and self.distinct <= most

    @property
    def _multi_hot(self) -> bool:
        """Whether channels are 0 and 1, but not one-hot."""
        return self.info.channels > 1 and self.whole and self.least >= 0 and self.largest == 1 and not self.one_hot

    def as_classes(self) -> Reading:
        """Interpretation as class numbers."""
        notes = []
        if self.one_hot:
            notes.append("one-hot targets were read as class numbers")
        elif self.info.kind == "continuous":
            notes.append(f"{_READ}class numbers")
        if TORCH_IGNORES in self.ignored and TORCH_IGNORES not in self._ignore:
            notes.append(f'label {TORCH_IGNORES} was left out as "no label": it cannot be a class')
        if self.largest == _MASK_IGNORE and self.least_other < self.largest_other < _MASK_IGNORE - 1:
            notes.append(
                f"label {_MASK_IGNORE} looks like an ignore label and counts as a class; "
                f"ignore_index={_MASK_IGNORE} leaves it out"
            )
        return Reading("integer", self.one_hot, self.ignored, tuple(notes))

    def as_continuous(self, why: str = "") -> Reading:
        """Interpretation as continuous targets; ``why`` if they could be class numbers."""
        notes = [why] if why else []
        if self.info.channels > 1 and self.places:
            if self._multi_hot:
                notes.append("multi-hot targets were read as continuous vectors")
            elif self.soft:
                notes.append("soft labels were read as continuous vectors")
        return Reading("continuous", ignored=self.asked, notes=tuple(notes))

    def own(self) -> Reading:
        """Interpretation of these targets by themselves."""
        if self.are_classes:
            return self.as_classes()
        if self.info.kind == "integer":
            return self.as_continuous() if self._multi_hot else Reading("integer", ignored=self.ignored)
        if self.info.channels == 1 and self.whole and self.places and self.distinct <= _MOST_CLASSES:
            many = "masks" if self.info.spatial else f"{self.inputs} inputs"
            return self.as_continuous(f"{_READ}continuous: {int(self.distinct)} different ones are many for {many}")
        if self.info.channels == 1 and self.whole and -_MOST_CLASSES <= self.least < 0 <= self.largest <= _MOST_CLASSES:
            return self.as_continuous(f"{_READ}continuous: some are negative")
        return self.as_continuous()


def settle(summaries: Mapping[Split, TargetSummary]) -> dict[Split, Reading]:
    """Interpretation of the targets of each split, by those of the training split.

    Integers and booleans are class numbers 0, 1, 2, …. These are read as class numbers too, with a note in the status
    of every value that depends on labels:

    - one-hot targets, (N, C) or (N, C, *S) with C ≥ 2, of any type: exactly one channel is 1 and the others are 0; the
      class is the index of that channel;
    - floating-point targets that are all integers ≥ 0, (N,), (N, 1) or dense, with few different values: for one target
      per input at most 1,000, and at least four inputs per value on average; for dense targets at most 200, since 8-bit
      intensities have up to 256.

    All other floating-point targets are continuous, with a note if they could be something else: integers that are too
    many or negative, soft labels (≥ 0 with sum 1), and multi-hot targets of any type.

    Positions whose target is ``ignore_index``, in any channel, have no label. Among class numbers −100 means "no label"
    too, with a note. 255 is a class unless it is ``ignore_index``, with a note if two or more classes are below 254 and
    none is 254.

    The other splits are read like the training split. If that is impossible, floating-point targets are continuous in
    all splits, and other targets are read by themselves, with a note.

    Args:
        summaries: by split; the first one decides.

    Returns:
        The interpretation, by split.

    Example:
        >>> summary = TargetSummary(TargetInfo("continuous", 2, ()), None)
        >>> summary.add(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> settle({"train": summary})["train"].notes
        ('one-hot targets were read as class numbers',)
    """
    named = list(summaries.items())
    (first, summary), others = named[0], named[1:]
    readings = {first: summary.own()}
    for name, other in others:
        lead = readings[first]
        if lead.kind == "integer":
            if other.can_be_classes or not other.places:
                readings[name] = other.as_classes()
                continue
            if summary.info.kind == "continuous":  # floats that are not class numbers
                why = f"{_READ}continuous: the {name} targets are not class numbers"
                readings = {split: summaries[split].as_continuous(why) for split in (*readings, name)}
                continue
        elif other.info.kind == "continuous" or other.info.channels == summary.info.channels:
            why = f"integer {name} targets were read as continuous, as the {first} targets are"
            mine = other.as_continuous("" if other.info.kind == "continuous" else why)
            readings[name] = replace(mine, notes=tuple(dict.fromkeys((*lead.notes, *mine.notes))))
            continue
        mine = other.own()
        if mine.kind != lead.kind:
            words = {"integer": "class numbers", "continuous": "continuous"}
            note = f"{first} targets were read as {words[lead.kind]}, {name} targets as {words[mine.kind]}"
            readings[first], mine = (replace(reading, notes=(*reading.notes, note)) for reading in (lead, mine))
        readings[name] = mine
    return readings
