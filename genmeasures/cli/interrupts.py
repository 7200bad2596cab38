"""Handling of Ctrl-C and SIGTERM: one line and an exit status, without a traceback."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_explain: list[Callable[[], str]] = []


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which ends a command as Ctrl-C does."""


def on_interrupt(explain: Callable[[], str]) -> None:
    """Add to the line that is printed: ``explain`` returns what is kept and how to resume.

    Args:
        explain: called if the command is interrupted.

    Example:
        >>> on_interrupt(lambda: "the same command resumes")
    """
    _explain[:] = [explain]


def interruptible(command: Callable[[], int]) -> int:
    """Run a command and return its exit status: 130 after Ctrl-C and 143 after SIGTERM, each with one line.

    The first signal raises KeyboardInterrupt, so that everything is closed. The second ends the process at once.

    Args:
        command: returns its exit status.

    Example:
        >>> interruptible(lambda: 0)
        0
    """
    if threading.current_thread() is not threading.main_thread():
        return command()  # only the main thread receives signals
    _explain.clear()
    owner = os.getpid()
    received: list[int] = []

    def answer(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked process, such as one that loads data, ends without a message
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        received.append(number)
        for other in before:
            signal.signal(other, _end_at_once)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    # A signal that is ignored, as under nohup, stays ignored.
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before: dict[int, Any] = {s: handler for s, handler in usual.items() if signal.getsignal(s) == handler}
    for handled in before:
        signal.signal(handled, answer)
    try:
        return command()
    except BaseException:
        if not received:
            raise
    finally:
        if not received:
            for handled, handler in before.items():
                signal.signal(handled, handler)
    # Whatever the exception is: libraries turn a KeyboardInterrupt into others.
    number = received[0]
    more = [": " + explain() for explain in _explain]
    print("".join([_WORDS[signal.Signals(number)], *more]), file=sys.stderr, flush=True)
    return 128 + number


def shield_workers() -> None:
    """Keep Ctrl-C from processes that are started from now on, which would end in tracebacks.

    They inherit the blocked signal. In this process, a thread waits for it and wakes the main thread, which must not
    block in a single call for long.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "sigwait"):
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # if started later, it would unblock the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def pass_on() -> None:
        while True:
            signal.sigwait({signal.SIGINT})
            _thread.interrupt_main()

    threading.Thread(target=pass_on, daemon=True).start()


def left_to_parent() -> None:
    """Ignore Ctrl-C in a worker process: it reaches all processes of a terminal, and the parent handles it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
