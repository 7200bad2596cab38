"""The process pool: its workers end whatever ends their parent, and a worker that is killed is explained."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import genmeasures
from genmeasures.errors import GenmeasuresError
from genmeasures.tasks.digits_cnn import grid
from genmeasures.tasks.pool import run_in_processes

ROOT = Path(genmeasures.__file__).resolve().parents[1]

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from genmeasures.tasks.digits_cnn import grid
from genmeasures.tasks.digits_training import Job, Recipe, _train_and_save
from genmeasures.tasks.pool import run_in_processes

if __name__ == "__main__":
    data = np.zeros((320, 1, 8, 8), np.float32), np.zeros(320, np.int64)
    jobs = [Job(Path(sys.argv[1]) / f"{h.name}.pt", h, Recipe(), data, data) for h in grid()]
    run_in_processes(_train_and_save, jobs, 1)
"""


def children(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return [int(word) for word in listed.split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: object, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    messages = (tmp_path / "stderr").open("w")
    process = subprocess.Popen(
        command, env=environment, stderr=messages, start_new_session=True,
        # Ctrl-C is ignored by what was started in the background, and by its children unless told otherwise.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert until(lambda: len(list(tmp_path.rglob("*.pt"))) >= 1, 60), "no network was trained in a minute"
        workers = children(process.pid)
        assert workers
        # Ctrl-C reaches parent and workers alike; of a killed parent the workers are told nothing.
        os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
        process.wait(60)
        assert until(lambda: not any(map(is_running, workers)), 10)
    finally:
        process.kill()
        process.wait()
        messages.close()
    interrupts = [line for line in (tmp_path / "stderr").read_text().splitlines() if line == "KeyboardInterrupt"]
    assert len(interrupts) == (how == signal.SIGINT)
    assert len(list(tmp_path.rglob("*.pt"))) < len(grid())


# Workers cannot import this module, but exec is a builtin.


def test_each_worker_is_initialized_and_has_one_thread(tmp_path: Path) -> None:
    start = f"import os; open(f'{tmp_path}/start{{os.getpid()}}', 'x').close()"
    job = f"import os, torch; open('{tmp_path}/JOB', 'x').write(f'{{os.getpid()}} {{torch.get_num_threads()}}')"
    done: list[int] = []
    run_in_processes(exec, [job.replace("JOB", f"job{n}") for n in range(3)], 2, lambda: done.append(1), exec, start)
    assert len(done) == 3
    initialized = {path.name.removeprefix("start") for path in tmp_path.glob("start*")}
    assert str(os.getpid()) not in initialized
    for n in range(3):
        pid, threads = (tmp_path / f"job{n}").read_text().split()
        assert pid in initialized
        assert threads == "1"


def test_workers_that_do_not_start_are_explained() -> None:
    with pytest.raises(GenmeasuresError, match=r'if __name__ == "__main__".*workers=1'):
        run_in_processes(print, [1], 2, initializer=functools.partial(os._exit, 3))


def test_a_killed_worker_is_explained() -> None:
    """As the kernel kills a process when memory runs out; the other one would run for ten minutes."""
    before = set(multiprocessing.active_children())
    began = time.monotonic()
    with pytest.raises(GenmeasuresError, match=r"ended before its training was done.*use fewer workers"):
        run_in_processes(exec, ["import time; time.sleep(600)", "import os; os.kill(os.getpid(), 9)"], 2)
    assert time.monotonic() - began < 300
    assert set(multiprocessing.active_children()) <= before


def test_a_job_that_fails_ends_the_others() -> None:
    """Sleeping in place of training: one job fails at once, the other would take ten minutes."""
    before = set(multiprocessing.active_children())
    began = time.monotonic()
    with pytest.raises(ValueError, match="non-negative"):
        run_in_processes(time.sleep, [600, -1], 2)
    assert time.monotonic() - began < 300
    assert set(multiprocessing.active_children()) <= before
