"""Progress bars of a run, on a terminal or in a notebook."""

from __future__ import annotations

import importlib
import io
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from genmeasures.errors import OptionError, shown

_EVERY = 0.1
"""Minimum number of seconds between updates."""

_NOTEBOOK = 100
"""Characters per line in a notebook."""

_SHOWN = threading.Lock()
"""Held while bars are shown: several sets of bars would overwrite each other."""

Callbacks: TypeAlias = tuple[Callable[[str, int, int], None] | None, Callable[[str, int, int], None] | None]
"""``on_model`` and ``on_batch``, each called with a name, the number done and the total; None to show nothing."""


@contextmanager
def progress_bars(show: bool | None) -> Iterator[Callbacks]:
    """Show the models and passes of a run as progress bars on standard error.

    Args:
        show: True to show bars wherever standard error goes, False to show none, None to show them on a terminal and
            in a notebook if called from the main thread of the main process.

    Yields:
        The callbacks ``on_model`` and ``on_batch`` of :meth:`genmeasures.run.Run.measure`. Both are None if nothing is
        shown, as inside another :func:`progress_bars`.

    Raises:
        OptionError: ``show`` is not a bool or None.

    Example:
        >>> with progress_bars(show=False) as callbacks:
        ...     callbacks
        (None, None)
    """
    if show is not None and not isinstance(show, bool):
        raise OptionError(f"progress must be True, False or None, got {show!r}")
    console = Console(stderr=True)
    if not (_is_watched(console) if show is None else show) or not _SHOWN.acquire(blocking=False):
        yield None, None
        return
    try:
        with _in_notebook() if console.is_jupyter else _on_terminal(console) as (progress, draw):
            yield _callbacks(progress, draw)
            models, passes = progress.tasks
            progress.update(models.id, completed=models.total)
            progress.update(passes.id, visible=False)
            draw()
    finally:
        _SHOWN.release()


def _is_watched(console: Console) -> bool:
    """Whether bars would be visible to a person; rich alone would treat FORCE_COLOR as a terminal."""
    if multiprocessing.current_process().name != "MainProcess":
        return False  # a worker of joblib or of a data loader
    if threading.current_thread() is not threading.main_thread():
        return False
    return console.is_jupyter or (sys.stderr.isatty() and not console.is_dumb_terminal)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),  # names may look like markup: net[/x]
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,  # would start a thread, which may hold a lock when a process is forked
        redirect_stdout=sys.stdout.isatty(),  # else output that is redirected to a file would be lost
    )


@contextmanager
def _on_terminal(console: Console) -> Iterator[tuple[Progress, Callable[[], None]]]:
    with _bars(console) as progress:
        yield progress, progress.refresh


@contextmanager
def _in_notebook() -> Iterator[tuple[Progress, Callable[[], None]]]:
    """Bars as text that is updated in place; the bars of rich for notebooks need ipywidgets."""
    display = importlib.import_module("IPython.display")
    console = Console(file=io.StringIO(), width=_NOTEBOOK, force_jupyter=False)
    progress = _bars(console)
    handle = display.display({"text/plain": ""}, raw=True, display_id=True)

    def draw() -> None:
        with console.capture() as captured:
            console.print(progress.get_renderable())
        handle.update({"text/plain": captured.get().rstrip()}, raw=True)

    yield progress, draw


def _callbacks(progress: Progress, redraw: Callable[[], None]) -> Callbacks:
    models = progress.add_task("models", total=None)
    passes = progress.add_task("", total=None, visible=False)
    drawn = -_EVERY

    def draw() -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - drawn >= _EVERY:
            drawn = now
            redraw()

    def on_model(name: str, number: int, count: int) -> None:
        progress.update(models, total=count, completed=number, description=f"model {shown(name)}")
        draw()

    def on_batch(split: str, done: int, total: int) -> None:
        progress.update(passes, total=total, completed=done, description=f"  {split} data", visible=True)
        draw()

    return on_model, on_batch


__all__ = ["Callbacks", "progress_bars"]
