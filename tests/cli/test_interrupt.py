"""Ctrl-C and SIGTERM: one line, an exit status, no traceback, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from genmeasures.cli.interrupts import interruptible, on_interrupt
from genmeasures.results import load
from genmeasures.results.schema import is_measured

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """The command in a group of processes of its own, as a terminal would start it."""
    task = ("task=checkpoints", "task.path=.", "measure=[davies_bouldin]", "figures=false", *overrides)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "genmeasures.cli.main", "run", *task],
            cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip


def wait_for_parts(folder: Path, running: subprocess.Popen[bytes]) -> None:
    end = time.time() + 120
    while time.time() < end and running.poll() is None and not list(folder.glob("results/*.parts/n*.nc")):
        time.sleep(0.05)
    assert running.poll() is None, (folder / "log.txt").read_text()


def last_line(folder: Path, start: str) -> str:
    said = (folder / "log.txt").read_text()
    assert "Traceback" not in said, said
    assert "KeyboardInterrupt" not in said, said
    (found,) = [line for line in said.splitlines() if line.startswith(start)]
    return found


def test_ctrl_c_and_going_on(tmp_path: Path, folders: Any) -> None:
    folders.write_task(tmp_path, {f"n{number}": number for number in range(4)}, module="interrupted_nets", wait=0.4)
    running = start(tmp_path)
    wait_for_parts(tmp_path, running)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(60) == 130
    told = last_line(tmp_path, "interrupted")
    (parts,) = tmp_path.glob("results/*.parts")
    kept = len(list(parts.glob("n*.nc")))
    assert 1 <= kept < 4
    assert f"{kept} measured model" in told
    assert parts.name in told
    assert "the same command resumes" in told

    # Again, and terminated; then to the end.
    running = start(tmp_path)
    time.sleep(0.5)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143
    last_line(tmp_path, "terminated")
    running = start(tmp_path)
    assert running.wait(120) == 0
    assert f"{kept} of 4 models taken from" in (tmp_path / "log.txt").read_text()
    (path,) = tmp_path.glob("results/*.nc")
    # The task's accuracies are made up, which a note says.
    assert is_measured(load(path)["model_status"].values).all()


def test_ctrl_c_in_a_multirun_of_processes(tmp_path: Path, folders: Any) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folders.write_task(tmp_path, {f"n{number}": number for number in range(6)}, module="interrupted_nets", wait=0.4)
    running = start(tmp_path, "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "-m")
    wait_for_parts(tmp_path, running)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(60) == 130
    told = last_line(tmp_path, "interrupted")
    assert "the same command resumes" in told
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/*.parts/*.nc")}
    time.sleep(1)  # workers that live on would keep more
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/*.parts/*.nc")} == before


def waiting(second: bool) -> str:
    """A command that takes long to close after a signal."""
    return (
        "import sys, time\nfrom genmeasures.cli.interrupts import interruptible\n"
        "def command():\n    try:\n        print('begun', flush=True)\n        time.sleep(60)\n"
        f"    finally:\n        print('closing', flush=True)\n        time.sleep({60 if second else 0})\n"
        "sys.exit(interruptible(command))\n"
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("second", [False, True])
def test_the_second_signal_ends_at_once(number: signal.Signals, status: int, second: bool) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    running = subprocess.Popen(
        [sys.executable, "-c", waiting(second)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert running.stdout is not None
    assert running.stdout.readline() == b"begun\n"
    running.send_signal(number)
    assert running.stdout.readline() == b"closing\n"
    if second:
        running.send_signal(number)
    _, said = running.communicate(timeout=20)
    assert running.returncode == status
    assert said.decode().split() == ([] if second else ["interrupted" if number == signal.SIGINT else "terminated"])


def test_commands_that_are_not_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def fail() -> int:
        on_interrupt(lambda: "never said")
        raise ValueError("its own")

    assert interruptible(lambda: 3) == 3
    with pytest.raises(ValueError, match="its own"):
        interruptible(fail)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(interruptible(lambda: 4)))
    thread.start()
    thread.join()
    assert found == [4]
    assert capsys.readouterr().err == ""
