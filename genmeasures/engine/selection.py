"""Selections of layers: names, globs, indices and ranges."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from genmeasures.errors import OptionError, nearest

LayerChoice: TypeAlias = str | Sequence[str | int]
"""A name, a glob or a range; or a list of these and of indices."""

_RANGE = re.compile(r"([+-]?\d+)?:([+-]?\d+)?(?::([+-]?\d+)?)?")


def selected(names: Sequence[str], wanted: LayerChoice | None) -> list[int]:
    """Indices of the layers that are chosen, ascending.

    A text is the name of a layer if there is one of that name; else a range as in Python's slices, if it looks like one
    (``"2:11"``, ``"-3:"``, ``"::2"``), or a glob (``"features.*"``, in which ``*`` matches dots as well).

    Args:
        names: names of the layers, in the order of the forward pass.
        wanted: what is chosen, None for all layers.

    Raises:
        OptionError: a part of the choice matches no layer, or the step of a range is 0.

    Example:
        >>> names = ["stem", "block.0", "block.1", "head"]
        >>> selected(names, "block.*"), selected(names, "-2:"), selected(names, ["head", 0, "1:3"])
        ([1, 2], [2, 3], [0, 1, 2, 3])
        >>> selected(names, "features.*")
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: no layer matches 'features.*': the model has stem, block.0, block.1, head
    """
    if wanted is None:
        return list(range(len(names)))
    parts = [wanted] if isinstance(wanted, str) else wanted
    return sorted({index for part in parts for index in _matching(names, part)})


def _matching(names: Sequence[str], part: str | int) -> list[int]:
    """Indices of the layers that one part of a choice names."""
    if isinstance(part, int):
        if not -len(names) <= part < len(names):
            raise OptionError(
                f"there is no layer {part} to measure: {_extent(names)}{base_60(part)}",
            )
        return [part % len(names)]
    if part in names:
        return [index for index, name in enumerate(names) if name == part]
    span = _RANGE.fullmatch(part.strip())
    if span is not None:
        start, stop, step = (None if bound is None else int(bound) for bound in span.groups())
        if step == 0:
            raise OptionError(f"layers: the step of the range {part!r} is 0")
        indices = list(range(len(names))[start:stop:step])
        if not indices:
            raise OptionError(f"no layer is in the range {part!r}: {_extent(names)}")
        return indices
    if any(character in part for character in "*?["):
        indices = [index for index, name in enumerate(names) if fnmatchcase(name, part)]
        if not indices:
            raise OptionError(f"no layer matches {part!r}: the model has {', '.join(names)}")
        return indices
    raise OptionError(f"there is no layer {part!r} to measure{nearest(part, names)}")


def _extent(names: Sequence[str]) -> str:
    """The indices that there are."""
    return (
        f"the model has {len(names)}, with indices from {-len(names)} to {len(names) - 1} "
        f"(0 is {names[0]!r}, -1 is {names[-1]!r})"
    )


def base_60(number: int) -> str:
    """The end of a message on a number that YAML may have read from a range without quotes.

    Args:
        number: an index.

    Example:
        >>> base_60(131)
        '; in YAML, 2:11 without quotes is the number 131: write "2:11"'
        >>> base_60(3)
        ''
    """
    minutes, seconds = divmod(number, 60)
    if minutes < 1:
        return ""
    return f'; in YAML, {minutes}:{seconds} without quotes is the number {number}: write "{minutes}:{seconds}"'
