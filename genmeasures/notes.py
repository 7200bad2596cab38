"""Remarks on a model from its construction, for its status."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from genmeasures.errors import GenmeasuresWarning

_collected: ContextVar[list[str] | None] = ContextVar("genmeasures_notes", default=None)


def remark(text: str) -> None:
    """Remark on the model that is being built.

    During a run the remark becomes part of the status of the model; otherwise it is a warning.

    Args:
        text: The remark.

    Example:
        >>> with remarks() as notes:
        ...     remark("the last layer has no bias")
        >>> notes
        ['the last layer has no bias']
    """
    notes = _collected.get()
    if notes is None:
        warnings.warn(text, GenmeasuresWarning, stacklevel=3)
    else:
        notes.append(text)


@contextmanager
def remarks() -> Iterator[list[str]]:
    """Context manager that collects the remarks made inside.

    Yields:
        List of remarks, which grows as they are made.

    Example:
        >>> with remarks() as notes:
        ...     remark("2 keys of the file are not used")
        >>> notes
        ['2 keys of the file are not used']
    """
    notes: list[str] = []
    token = _collected.set(notes)
    try:
        yield notes
    finally:
        _collected.reset(token)


__all__ = ["remark", "remarks"]
