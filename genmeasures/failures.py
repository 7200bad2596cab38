"""Exceptions that become a status: one place that logs their traceback and tells shortages from faults."""

from __future__ import annotations

import errno
import logging
import os
import re
import traceback
from collections.abc import Iterator
from typing import TypeVar

from genmeasures.errors import GenmeasuresError, Undefined

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


def debugging() -> bool:
    """Whether failures are to be raised rather than recorded."""
    return os.environ.get(DEBUG_VARIABLE) == "1"


def to_raise_later(error: _Error) -> _Error:
    """The error, to be kept and raised again, with its traceback as a note in place of frames that hold tensors.

    Where ``GENMEASURES_DEBUG=1`` the frames stay, for a debugger to look at.
    """
    if not debugging():
        error.add_note("".join(traceback.format_exception(error)))
        _forget_frames(error)
    return error


def status_of(error: Exception, what: str) -> str:
    """The status that an exception leaves behind; its traceback goes to the log at debug level.

    Args:
        error: what was raised.
        what: what failed, for the log: "roughness on layer conv1".

    Returns:
        "undefined: …" for :class:`~genmeasures.errors.Undefined`, "failed: resources: …" for a
        shortage, else "failed: …".

    Raises:
        Exception: the error itself, unless it is Undefined, where ``GENMEASURES_DEBUG=1``.

    Example:
        >>> status_of(Undefined("fewer than two clusters"), "davies_bouldin on layer conv1")
        'undefined: fewer than two clusters'
        >>> status_of(ValueError("no"), "my_measure on layer conv1")
        'failed: ValueError: no'
    """
    if isinstance(error, Undefined):
        _forget_frames(error)
        return f"undefined: {error}"
    log.debug("%s failed", what, exc_info=error)
    if debugging():
        raise error
    _forget_frames(error)
    if is_shortage(error):
        return f"{RESOURCE_STATUS}{_told(error)}"
    return f"failed: {_told(error)}"


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
    text = str(error).strip() or "no message"
    return text if isinstance(error, GenmeasuresError) else f"{type(error).__name__}: {text}"
