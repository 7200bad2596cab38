"""Remarks on a model that arise while it is built: they belong into its status, and are never lost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from genmeasures.errors import GenmeasuresWarning

_collected: ContextVar[list[str] | None] = ContextVar("genmeasures_notes", default=None)


def remark(text: str) -> None:
    """Make a remark on the model that is being built: a run puts it into the status, else it is a warning."""
    notes = _collected.get()
    if notes is None:
        warnings.warn(text, GenmeasuresWarning, stacklevel=3)
    else:
        notes.append(text)


@contextmanager
def remarks() -> Iterator[list[str]]:
    """Collect the remarks that are made inside.

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
