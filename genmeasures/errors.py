"""Exceptions and helpers for error messages. All exceptions derive from :class:`GenmeasuresError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GenmeasuresError(Exception):
    """Base class of all errors raised on purpose by genmeasures."""


class OptionError(GenmeasuresError, ValueError):
    """An option, or the name of a component, is unknown or out of range."""


class ComponentError(GenmeasuresError, TypeError):
    """The class of a component does not implement its interface."""


class DataError(GenmeasuresError, ValueError):
    """A dataset cannot be used because of its shape, dtype, labels or values."""


class ModelError(GenmeasuresError, RuntimeError):
    """A model cannot be loaded or measured."""


class ResultError(GenmeasuresError, RuntimeError):
    """A result file cannot be read, written or merged."""


class GenmeasuresWarning(UserWarning):
    """A result is probably wrong, for example because an accuracy is far from the stated one."""


class Undefined(GenmeasuresError):
    """A measure has no value on a layer because its input is degenerate.

    Raised by a measure or labeler; the value becomes NaN, with the message as its status.

    Example:
        >>> raise Undefined("fewer than two clusters")
        Traceback (most recent call last):
            ...
        genmeasures.errors.Undefined: fewer than two clusters
    """


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name, with the known names and a suggestion.

    Args:
        name: The unknown name.
        candidates: The known names.

    Example:
        >>> nearest("confidense", ["confidence", "roughness"])
        " (did you mean 'confidence'? known: confidence, roughness)"
    """
    names = sorted(candidates)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f" ({hint}known: {', '.join(names) or 'none'})"


def shown(text: str) -> str:
    """Escape line breaks, control characters and surrogates, which would change the output of a terminal.

    Example:
        >>> shown("net\\n1 modèle")
        'net\\\\n1 modèle'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Put a message on one line, with control characters escaped.

    Example:
        >>> one_line("it failed:\\n  no weights")
        'it failed: no weights'
    """
    return shown(" ".join(text.split()))
