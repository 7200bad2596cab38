"""Exceptions that become a status: one place that logs their traceback and tells shortages from faults."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import logging
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from genmeasures.errors import GenmeasuresError, Undefined, nearest

log = logging.getLogger(__name__)

_Error = TypeVar("_Error", bound=BaseException)

DEBUG_VARIABLE = "GENMEASURES_DEBUG"
"""Environment variable; "1" raises what would otherwise become a status."""

RESOURCE_STATUS = "failed: resources: "
"""Beginning of the status of a value that is missing for want of memory, disk, threads or file handles."""

_SHORTAGES = re.compile(
    r"out of memory|not enough memory|can(no|')t allocate memory|bad_alloc|ALLOC_FAILED|can't start new thread",
    re.IGNORECASE,
)
_SHORTAGE_ERRNOS = frozenset({errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN})


def is_shortage(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, is a shortage of memory or of another resource.

    Such a failure says nothing about the model: it is never kept, and the same command tries again.
    """
    for one in _chain(error):
        if isinstance(one, MemoryError):
            return True
        if isinstance(one, OSError) and one.errno in _SHORTAGE_ERRNOS:
            return True
        # torch raises RuntimeError, and errors of ours quote what they were caused by.
        if isinstance(one, RuntimeError | GenmeasuresError) and _SHORTAGES.search(str(one)):
            return True
    return False


_raising = contextvars.ContextVar("raising", default=False)


@contextlib.contextmanager
def raising(wanted: bool = True) -> Iterator[None]:
    """Raise inside what would otherwise become a status, as ``GENMEASURES_DEBUG=1`` does for a whole process.

    Threads started inside need a copy of the context (:func:`contextvars.copy_context`) to know.

    Example:
        >>> with raising():
        ...     status_of(ValueError("no"), "my_measure on layer conv1")
        Traceback (most recent call last):
            ...
        ValueError: no
    """
    token = _raising.set(_raising.get() or wanted)
    try:
        yield
    finally:
        _raising.reset(token)


def debugging() -> bool:
    """Whether failures are to be raised rather than recorded."""
    return _raising.get() or os.environ.get(DEBUG_VARIABLE) == "1"


def origin(error: BaseException) -> str:
    """Where an exception was raised, "measure.py, line 12"; "" where that is not known any more.

    Of a syntax error, the line that it is in.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and not Path(frame.filename).is_relative_to(_HERE)
    ]
    # What an author wrote comes before what it calls; an installed plugin is a library as any other.
    chosen = [frame for frame in own if not frame.filename.startswith(_LIBRARIES)] or own
    return f"{Path(chosen[-1].filename).name}, line {chosen[-1].lineno}" if chosen else ""


_HERE = Path(__file__).parent
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def to_raise_later(error: _Error) -> _Error:
    """The error, to be kept and raised again, with its traceback as a note in place of frames that hold tensors.

    Where failures are raised (:func:`raising`) the frames stay, for a debugger to look at.
    """
    if not debugging():
        error.add_note("".join(traceback.format_exception(error)))
        _forget_frames(error)
    return error


def traceback_of(error: BaseException) -> str:
    """The traceback as text, of an exception that is not only one of ours, which says all in its message; else ""."""
    if all(isinstance(one, GenmeasuresError) for one in _chain(error)):
        return ""
    return "".join(traceback.format_exception(error))


def status_of(error: Exception, what: str) -> str:
    """The status that an exception leaves behind; its traceback goes to the log at debug level.

    Args:
        error: what was raised.
        what: what failed, for the log: "roughness on layer conv1".

    Returns:
        "undefined: …" for :class:`~genmeasures.errors.Undefined`, "failed: resources: …" for a
        shortage, else "failed: …".

    Raises:
        Exception: the error itself, unless it is Undefined, in :func:`raising` or where ``GENMEASURES_DEBUG=1``.

    Example:
        >>> status_of(Undefined("fewer than two clusters"), "davies_bouldin on layer conv1")
        'undefined: fewer than two clusters'
        >>> status_of(ValueError("no"), "my_measure on layer conv1")
        'failed: ValueError: no'
    """
    if isinstance(error, Undefined):
        _forget_frames(error)
        return f"undefined: {str(error).strip() or _NO_REASON}"
    log.debug("%s failed", what, exc_info=error)
    if debugging():
        raise error
    told = _told(error)
    shortage = is_shortage(error)
    _forget_frames(error)
    return f"{RESOURCE_STATUS if shortage else 'failed: '}{told}"


_NO_REASON = "no reason given"
_NO_MESSAGE = "no message"


def says_nothing(status: str) -> bool:
    """Whether a status has no reason, because an exception without a message left it.

    Example:
        >>> says_nothing(status_of(Undefined(), "my_measure on layer conv1"))
        True
        >>> says_nothing(status_of(AssertionError(), "my_measure on layer conv1"))
        True
        >>> says_nothing("undefined: fewer than two clusters")
        False
    """
    reason = status.partition(": ")[2]
    return not status.startswith(("ok", "note: ")) and (reason == _NO_REASON or f": {_NO_MESSAGE}" in reason)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, what it was raised from, and so on.

    Not its ``__context__``: a caller may measure while it handles an exception of its own.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _forget_frames(error: BaseException) -> None:
    """An error that is kept somewhere must not keep the tensors of all functions that it came through."""
    for one in _chain(error):
        one.__traceback__ = None


def _told(error: Exception) -> str:
    text = str(error).strip()
    if not text:  # then the line that raised it says more than nothing
        place = origin(error)
        text = f"{_NO_MESSAGE} ({place})" if place else _NO_MESSAGE
    if isinstance(error, AttributeError):
        text += _meant(error)
    return text if isinstance(error, GenmeasuresError) else f"{type(error).__name__}: {text}"


def _meant(error: AttributeError) -> str:
    """The attribute that was meant, of an object of this package: a batch, a layer, the data of a model measure."""
    if not isinstance(error.name, str) or not type(error.obj).__module__.startswith("genmeasures."):
        return ""
    public = {name for name in (*dir(type(error.obj)), *getattr(error.obj, "__dict__", ())) if not name.startswith("_")}
    return nearest(error.name, public)
