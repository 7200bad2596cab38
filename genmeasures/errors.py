"""What can go wrong, by whose fault: every error of genmeasures derives from :class:`GenmeasuresError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GenmeasuresError(Exception):
    """Base of all errors raised on purpose by genmeasures."""


class OptionError(GenmeasuresError, ValueError):
    """An option, or the name of a component, is unknown or out of range."""


class ComponentError(GenmeasuresError, TypeError):
    """The class of a component is not as its interface asks: what is wrong with it, and how it is written."""


class DataError(GenmeasuresError, ValueError):
    """A data set cannot be used: its shape, its type, its labels or its values."""


class ModelError(GenmeasuresError, RuntimeError):
    """A model cannot be loaded or measured."""


class ResultError(GenmeasuresError, RuntimeError):
    """A result file cannot be read, written or merged."""


class GenmeasuresWarning(UserWarning):
    """Something about a result that is most likely a mistake, such as an accuracy far from the one that is claimed."""


class Undefined(GenmeasuresError):
    """A measure has no value on this layer, because its input is degenerate.

    Raised by a measure or labeler; the engine turns it into NaN with the message as status.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'? known: …)`` to end an error about an unknown name."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f" ({hint}known: {', '.join(names) or 'none'})"


def shown(text: str) -> str:
    """A text on one line, with what a terminal would act upon escaped: line ends, control characters, surrogates.

    Example:
        >>> shown("net\\n1 modèle")
        'net\\\\n1 modèle'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """A message on one line, its control characters escaped.

    Example:
        >>> one_line("it failed:\\n  no weights")
        'it failed: no weights'
    """
    return shown(" ".join(text.split()))
