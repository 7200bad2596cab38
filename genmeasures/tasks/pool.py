"""Process pool for training many networks, one thread per process.

The pool is :mod:`concurrent.futures` rather than joblib's loky: loky's workers survive a parent that is killed by
SIGKILL and continue to train the jobs that are queued (joblib 1.6).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import TypeVar

import torch

from genmeasures.errors import GenmeasuresError

_T = TypeVar("_T")


def run_in_processes(
    function: Callable[[_T], object],
    jobs: Sequence[_T],
    workers: int,
    on_done: Callable[[], object] | None = None,
    initializer: Callable[..., object] | None = None,
    *arguments: object,
) -> None:
    """Call a function once per job, in parallel processes with one torch thread each.

    The processes are spawned: a script that calls this function must be a file and do so under
    ``if __name__ == "__main__":``. They end with this function, however it ends: by an exception, by Ctrl-C, or
    because the calling process is killed.

    Args:
        function: called with one job; must be picklable, and so must be the jobs. What it returns is discarded.
        jobs: the arguments, in the order in which they are started.
        workers: number of processes, at least 1.
        on_done: called in this process after each job.
        initializer: called with ``arguments`` in each process before its first job, or None.
        arguments: the arguments of ``initializer``; picklable.

    Raises:
        GenmeasuresError: a process ended before its job was done, for example because it was killed.
        Exception: whatever ``function`` raises, from the first job that fails.

    Example:
        >>> from functools import partial
        >>> run_in_processes(print, [], workers=2)  # no jobs: no process is started
    """
    # spawn: a forked copy of a process whose torch has started threads can hang.
    context = multiprocessing.get_context("spawn")
    ended = context.Event()
    executor = ProcessPoolExecutor(max(1, min(workers, len(jobs))), context, _start, (ended, initializer, arguments))
    try:
        futures = [executor.submit(function, job) for job in jobs]
        # submit() wakes the thread that watches the processes before it starts another one (Python 3.11): without
        # this job, the end of the process that was started last is noticed only when another job is done.
        if futures:
            executor.submit(int)
        for future in as_completed(futures):
            future.result()
            if on_done is not None:
                on_done()
    except BrokenProcessPool as error:
        raise GenmeasuresError(
            "a process that trains networks ended before its training was done. A script that starts such processes "
            'must be a file and do so under `if __name__ == "__main__":`; otherwise set workers=1. '
            "If the processes were killed because memory ran out, use fewer workers"
        ) from error
    except BaseException:
        ended.set()  # a running job can take hours
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def worker_count(workers: int | None) -> int:
    """Number of processes to train in.

    Args:
        workers: the number that the user asks for; None for one per usable core.

    Returns:
        ``workers``, or the number of cores that this process may use. 1 in a daemonic process, such as one of a
        parallel sweep, which may not start others.

    Example:
        >>> worker_count(3)
        3
    """
    if multiprocessing.current_process().daemon:
        return 1
    if workers is not None:
        return workers
    # A batch system can grant fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Context in which torch computes with one thread; the number of threads is restored afterwards.

    More threads gain nothing on small networks, and would change the order in which they sum.

    Example:
        >>> with one_thread():
        ...     torch.get_num_threads()
        1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _start(ended: Event, initializer: Callable[..., object] | None, arguments: Sequence[object]) -> None:
    """Initialize a worker."""
    threading.Thread(target=_exit_when_set, args=(ended,), daemon=True).start()
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole process group; the parent handles it, and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if initializer is not None:
        initializer(*arguments)


def _exit_when_set(ended: Event) -> None:
    """End this worker when the pool is shut down by an exception."""
    ended.wait()
    os._exit(1)


def _exit_with_parent() -> None:
    """End this worker when its parent is killed: it would wait forever for the next job."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


__all__ = ["one_thread", "run_in_processes", "worker_count"]
