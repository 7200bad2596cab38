"""Functions that the command line calls once all jobs of a run have ended."""

from __future__ import annotations

from collections.abc import Callable

AT_END: list[Callable[[], None]] = []
"""The registered functions, in the order in which they are called; each run starts with none."""


def at_end(function: Callable[[], None]) -> None:
    """Call a function at the end of ``genmeasures run``, after the last job of a multirun.

    The function is also called if jobs have failed, unlike ``on_multirun_end`` of a Hydra callback. Register it in
    ``on_multirun_start`` of such a callback, which an experiment names under ``hydra.callbacks``.

    Args:
        function: takes no arguments. An exception that it raises ends the command.

    Example:
        >>> from genmeasures.plugin import at_end
        >>> at_end(lambda: print("all jobs have ended"))
    """
    AT_END.append(function)
