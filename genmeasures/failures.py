"""Statuses of exceptions, their tracebacks in the log, and the distinction of resource shortages from errors."""

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
"""Environment variable; with "1", exceptions are raised instead of becoming a status."""

RESOURCE_STATUS = "failed: resources: "
"""Prefix of the status of a value that is missing because memory, disk space, threads or file handles ran out."""

_SHORTAGES = re.compile(
    r"out of memory|not enough memory|can(no|')t allocate memory|bad_alloc|ALLOC_FAILED|can't start new thread",
    re.IGNORECASE,
)
_SHORTAGE_ERRNOS = frozenset({errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN})


def is_shortage(error: BaseException | None) -> bool:
    """Whether an exception, or one of its causes, is a shortage of memory or of another resource.

    Such a failure is independent of the model: it is never stored, and the next run measures the model again.

    Args:
        error: The exception; None is not a shortage.

    Example:
        >>> is_shortage(RuntimeError("CUDA out of memory")), is_shortage(ValueError("negative width"))
        (True, False)
    """
    for cause in _chain(error):
        if isinstance(cause, MemoryError):
            return True
        if isinstance(cause, OSError) and cause.errno in _SHORTAGE_ERRNOS:
            return True
        # torch raises RuntimeError, and errors of genmeasures quote their causes.
        if isinstance(cause, RuntimeError | GenmeasuresError) and _SHORTAGES.search(str(cause)):
            return True
    return False


_raising = contextvars.ContextVar("raising", default=False)


@contextlib.contextmanager
def raising(wanted: bool = True) -> Iterator[None]:
    """Raise exceptions that would otherwise become a status, as ``GENMEASURES_DEBUG=1`` does for a whole process.

    Threads started inside the context need a copy of it (:func:`contextvars.copy_context`).

    Args:
        wanted: False to leave the behavior unchanged.

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
    """Whether exceptions are raised instead of becoming a status.

    Example:
        >>> with raising():
        ...     debugging()
        True
    """
    return _raising.get() or os.environ.get(DEBUG_VARIABLE) == "1"


def origin(error: BaseException) -> str:
    """Return where an exception was raised.

    Frames of this package are skipped, and those of installed libraries if there are others.

    Args:
        error: The exception. For a syntax error, the location of the error is returned.

    Returns:
        Text such as "measure.py, line 12", or "" if the exception has no traceback.

    Example:
        >>> origin(SyntaxError("invalid syntax", ("measure.py", 12, 1, "def")))
        'measure.py, line 12'
        >>> origin(ValueError("never raised"))
        ''
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and not Path(frame.filename).is_relative_to(_HERE)
    ]
    # User code takes precedence over the libraries that it calls; an installed plugin is a library like any other.
    chosen = [frame for frame in own if not frame.filename.startswith(_LIBRARIES)] or own
    return f"{Path(chosen[-1].filename).name}, line {chosen[-1].lineno}" if chosen else ""


_HERE = Path(__file__).parent
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def to_raise_later(error: _Error) -> _Error:
    """Prepare an exception to be stored and raised later: its traceback becomes a note, and its frames are released.

    Frames would keep tensors alive. They are kept inside :func:`raising`, for a debugger.

    Args:
        error: The exception, which is modified.

    Returns:
        The same exception.

    Example:
        >>> error = to_raise_later(ValueError("negative width"))
        >>> error.__notes__
        ['ValueError: negative width\\n']
    """
    if not debugging():
        error.add_note("".join(traceback.format_exception(error)))
        _forget_frames(error)
    return error


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an exception as text.

    Args:
        error: The exception.

    Returns:
        The traceback; "" if the exception and all its causes are errors of genmeasures, whose messages suffice.

    Example:
        >>> traceback_of(Undefined("fewer than two clusters"))
        ''
        >>> traceback_of(ValueError("negative width"))
        'ValueError: negative width\\n'
    """
    if all(isinstance(cause, GenmeasuresError) for cause in _chain(error)):
        return ""
    return "".join(traceback.format_exception(error))


def status_of(error: Exception, what: str) -> str:
    """Return the status that replaces a value after an exception, and log the traceback at debug level.

    Args:
        error: The exception.
        what: What failed, for the log: "roughness on layer conv1".

    Returns:
        "undefined: …" for :class:`~genmeasures.errors.Undefined`, "failed: resources: …" for a
        shortage, else "failed: …".

    Raises:
        Exception: The exception itself, unless it is Undefined, inside :func:`raising` or with ``GENMEASURES_DEBUG=1``.

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
    message = _message(error)
    shortage = is_shortage(error)
    _forget_frames(error)
    return f"{RESOURCE_STATUS if shortage else 'failed: '}{message}"


_NO_REASON = "no reason given"
_NO_MESSAGE = "no message"


def says_nothing(status: str) -> bool:
    """Whether a status has no reason, because its exception had no message.

    Args:
        status: A status of :func:`status_of`.

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
    """An exception and its causes, without ``__context__``: the caller may be handling an unrelated exception."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _forget_frames(error: BaseException) -> None:
    """Release the frames of an exception, which would keep the tensors of their functions alive."""
    for cause in _chain(error):
        cause.__traceback__ = None


def _message(error: Exception) -> str:
    """Message of an exception; where it was raised if it has none."""
    text = str(error).strip()
    if not text:
        location = origin(error)
        text = f"{_NO_MESSAGE} ({location})" if location else _NO_MESSAGE
    if isinstance(error, AttributeError):
        text += _suggestion(error)
    return text if isinstance(error, GenmeasuresError) else f"{type(error).__name__}: {text}"


def _suggestion(error: AttributeError) -> str:
    """Suggests an attribute of an object of this package, such as a batch, a layer or the data of a model measure."""
    if not isinstance(error.name, str) or not type(error.obj).__module__.startswith("genmeasures."):
        return ""
    public = {name for name in (*dir(type(error.obj)), *getattr(error.obj, "__dict__", ())) if not name.startswith("_")}
    return nearest(error.name, public)
