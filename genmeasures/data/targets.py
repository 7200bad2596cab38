"""How targets are read: which are class numbers, which are continuous, and which places have no label."""

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
"""What stands in integer targets where there is no label; in continuous ones NaN does."""
TORCH_IGNORES = -100
"""What torch's losses ignore unless told otherwise. It can be no class."""
_MASKS_IGNORE = 255
"""What 8-bit masks have where there is no label: VOC, Cityscapes and others."""

_MOST_CLASSES = 1000
_MOST_MASK_CLASSES = 200
_SHARE = 4
_TABLE = 1 << 20
"""Largest number that is counted in a table."""
_SOFT = 1e-3
"""By how much the sum of soft labels may differ from 1."""

_READ = "floating-point targets with integer values were read as "


@dataclass(frozen=True)
class TargetInfo:
    """What the targets of a split are like."""

    kind: Kind
    channels: int
    spatial: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """How the targets of a split are read. See :func:`settle`.

    Example:
        >>> Reading("integer", ignored=(255.0,)).apply(torch.tensor([[0], [255]])).tolist()
        [[0], [-1]]
    """

    kind: Kind
    argmax: bool = False
    """Whether the class is the number of the channel that is 1."""
    ignored: tuple[float, ...] = ()
    """Values that mean "no label"."""
    notes: tuple[str, ...] = ()
    """What the status of a value says that depends on labels."""

    def apply(self, targets: Tensor) -> Tensor:
        """Targets (B, C, *S) as they are read, int64 or float32; −1 or NaN where there is no label."""
        whole = self.kind == "integer"
        made = targets.long() if whole else targets.float()
        if self.argmax:
            made = targets.argmax(1, keepdim=True)
        if not self.ignored:
            return made
        unlabeled = is_any_of(targets, self.ignored).any(1, keepdim=True)
        return made.masked_fill(unlabeled, UNLABELED if whole else math.nan)

    def info(self, raw: TargetInfo) -> TargetInfo:
        """What targets are like once they are read."""
        return TargetInfo(self.kind, 1 if self.argmax else raw.channels, raw.spatial)

    def salt(self, raw: TargetInfo) -> np.uint64:
        """A number for what this reading makes of targets, 0 where it changes nothing."""
        if self.kind == raw.kind and not self.argmax and not self.ignored:
            return np.uint64(0)
        text = repr((self.kind, self.argmax, self.ignored))
        return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def check_ignore_index(value: object) -> None:
    """Raise OptionError unless the value is a number, NaN being one, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | np.number)):
        raise OptionError(f"ignore_index must be a number, such as 255, or null, not {value!r}")


def is_any_of(targets: Tensor, values: tuple[float, ...]) -> Tensor:
    """bool (…): where targets have one of the values; NaN is one that can be looked for."""
    found = torch.zeros_like(targets, dtype=torch.bool)
    for value in values:
        found |= torch.isnan(targets) if math.isnan(value) else targets == value
    return found


class TargetSummary:
    """What one look at all targets of a split found, those that are ignored left out.

    ignore_index: the value that means "no label", None for none; −100 is looked for in any case.
    """

    def __init__(self, info: TargetInfo, ignore_index: float | None) -> None:
        self.info = info
        self._ignore = () if ignore_index is None else (float(ignore_index),)
        self.has_ignored = False
        self.has_torchs = False
        self.inputs = 0
        """With a label."""
        self.places = 0
        """With a label."""
        self.least, self.largest = math.inf, -math.inf
        self.least_other, self.largest_other = math.inf, -math.inf
        """Among all values but 255."""
        self.whole = True
        """Whether all values are integers."""
        self.one_hot = self.soft = info.channels > 1
        self._distinct: set[int] | None = set()
        """Of whole values of one channel; None for more than can be classes."""

    @property
    def ignored(self) -> tuple[float, ...]:
        """The values that mean "no label" and are there, if these are class numbers."""
        torchs = (float(TORCH_IGNORES),) if self.has_torchs and TORCH_IGNORES not in self._ignore else ()
        return (*self.asked, *torchs)

    @property
    def asked(self) -> tuple[float, ...]:
        """The value that the caller says means "no label", if it is there."""
        return self._ignore if self.has_ignored else ()

    @property
    def distinct(self) -> float:
        """Number of different values, ∞ for more than can be classes."""
        return math.inf if self._distinct is None else len(self._distinct)

    def is_left_out(self, targets: Tensor) -> Tensor:
        """bool (…): where targets have a value that means "no label"."""
        return is_any_of(targets, (*self._ignore, TORCH_IGNORES))

    def add(self, targets: Tensor) -> None:
        """See a batch (B, C, *S), int64 or float32."""
        values = targets.movedim(1, -1).reshape(-1, targets.shape[1])  # (places, C)
        least = float(targets.min())
        # NaN may be what means "no label", and is the least value then.
        if self._ignore or not least >= 0:
            asked = is_any_of(values, self._ignore).any(1)
            torchs = (values == TORCH_IGNORES).any(1)
            self.has_ignored |= bool(asked.any())
            self.has_torchs |= bool((torchs & ~asked).any())
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
        others = values[values != _MASKS_IGNORE] if largest == _MASKS_IGNORE else values
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
        """Whether a class number can be read at every place."""
        return self.one_hot or (self.info.channels == 1 and self.whole and self.least >= 0)

    @property
    def are_classes(self) -> bool:
        """Whether they are class numbers by the rules of :func:`settle`."""
        if self.one_hot or self.info.kind == "integer":
            return self.can_be_classes
        most = _MOST_MASK_CLASSES if self.info.spatial else min(_MOST_CLASSES, self.inputs // _SHARE)
        return self.can_be_classes and self.distinct <= most

    @property
    def _multi_hot(self) -> bool:
        """Whether several channels are 1, or none, where the others are 0."""
        return self.info.channels > 1 and self.whole and self.least >= 0 and self.largest == 1 and not self.one_hot

    def as_classes(self) -> Reading:
        """The reading as class numbers."""
        notes = []
        if self.one_hot:
            notes.append("one-hot targets were read as class numbers")
        elif self.info.kind == "continuous":
            notes.append(f"{_READ}class numbers")
        if TORCH_IGNORES in self.ignored and TORCH_IGNORES not in self._ignore:
            notes.append(f'label {TORCH_IGNORES} was left out as "no label": it can be no class')
        if self.largest == _MASKS_IGNORE and self.least_other < self.largest_other < _MASKS_IGNORE - 1:
            notes.append(
                f"label {_MASKS_IGNORE} looks like an ignore label and counts as a class; "
                f"ignore_index={_MASKS_IGNORE} leaves it out"
            )
        return Reading("integer", self.one_hot, self.ignored, tuple(notes))

    def as_continuous(self, why: str = "") -> Reading:
        """The reading as continuous targets; ``why`` where they might be class numbers."""
        notes = [why] if why else []
        if self.info.channels > 1 and self.places:
            if self._multi_hot:
                notes.append("multi-hot targets were read as continuous vectors")
            elif self.soft:
                notes.append("soft labels were read as continuous vectors")
        return Reading("continuous", ignored=self.asked, notes=tuple(notes))

    def own(self) -> Reading:
        """How these targets are read by themselves."""
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
    """How the targets of each split are read, by what all targets of the training split are like.

    Integers, and truth values, are class numbers, 0, 1, 2, …. Beside them these are read as class
    numbers, and the status of every value that depends on labels has a note that says so:

    - one-hot targets, (N, C) or (N, C, *S) with C ≥ 2, of any type: exactly one 1 at each place, and
      0 elsewhere; the class is the channel that is 1;
    - floating-point targets that are all integers ≥ 0, (N,), (N, 1) or dense, if they take few
      different values: at most 1,000, and on average at least four inputs a value, for one target an
      input; at most 200 for dense targets, since intensities of 8 bits take up to 256.

    Everything else that is floating point is continuous. It gets a note where it might have been
    meant otherwise: integers that are too many or negative, soft labels (≥ 0 and of sum 1), and
    multi-hot targets, of any type.

    Places whose target is ``ignore_index``, in any channel, have no label. In class numbers −100 never
    has, and a note says so; 255 counts as a class unless it is ``ignore_index``, with a note where two
    classes or more are below 254 and none is 254.

    Another split is read as the training split is. Where it cannot be, floating-point targets are
    continuous in both, and other targets what they are; a note says so.

    Args:
        summaries: of each split; the first decides.
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
            if summary.info.kind == "continuous":  # floats that turn out to be no class numbers
                why = f"{_READ}continuous: the {name} targets are no class numbers"
                readings = {first: summary.as_continuous(why), name: other.as_continuous(why)}
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
            readings[first], mine = (replace(one, notes=(*one.notes, note)) for one in (lead, mine))
        readings[name] = mine
    return readings
