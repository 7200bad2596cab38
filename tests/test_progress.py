"""Progress bars on a terminal or in a notebook, and a log line per model."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import genmeasures
from genmeasures.errors import OptionError
from genmeasures.progress import progress_bars

SCRIPT = """
import sys, warnings
import torch
from torch import nn
import genmeasures
from genmeasures.measures import DaviesBouldin

class Net(nn.Linear):
    def forward(self, x):
        return super().forward(x)

def run(number, **more):
    torch.manual_seed(number)
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    return genmeasures.measure({"net[/x]": Net(3, 4), "b": Net(3, 4)}, (x, y), measures=["davies_bouldin"], **more)
"""


@pytest.fixture
def script(tmp_path: Path) -> Any:
    """Runs a script with standard error, or both, on a terminal, or redirected; returns what each got."""

    def call(code: str, *, terminal: str, **environment: str) -> tuple[str, str]:
        file = tmp_path / "script.py"
        file.write_text(SCRIPT + code)
        known = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TERM": "xterm", "COLUMNS": "100"}
        env = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
        ours, theirs = pty.openpty()
        out = (tmp_path / "out.txt").open("wb")
        err = (tmp_path / "err.txt").open("wb")
        with out, err:
            process = subprocess.Popen(
                [sys.executable, str(file)],
                env={**env, **known, **environment},
                stdout=theirs if "out" in terminal else out,
                stderr=theirs if "err" in terminal else err,
                stdin=subprocess.DEVNULL,
            )
            os.close(theirs)
            screen = b""
            while True:
                try:
                    part = os.read(ours, 4096)
                except OSError:  # what Linux says at the end
                    break
                if not part:
                    break
                screen += part
            assert process.wait(60) == 0, (tmp_path / "err.txt").read_text() + screen.decode()
        os.close(ours)
        files = (tmp_path / "out.txt").read_text() + (tmp_path / "err.txt").read_text()
        return screen.decode(), files

    return call


def test_a_terminal_shows_the_models(script: Any) -> None:
    screen, files = script("run(0); print('done')", terminal="err")
    assert "model net[/x]" in screen
    assert "2/2" in screen
    assert files == "done\n"  # what is printed stays in its file


def test_redirected_output_has_no_bars(script: Any) -> None:
    for environment in ({}, {"FORCE_COLOR": "1"}):
        screen, files = script("run(0); run(1, progress=None); print('done')", terminal="", **environment)
        assert screen == ""
        assert files == "done\n"


def test_it_can_be_turned_off(script: Any) -> None:
    screen, files = script("run(0, progress=False); print('done')", terminal="out err")
    assert screen.replace("\r\n", "\n") == "done\n"
    assert files == ""


WORKERS = """
import threading
from concurrent.futures import ThreadPoolExecutor
from joblib import Parallel, delayed

if __name__ == "__main__":
    with ThreadPoolExecutor(2) as pool:
        print(len(list(pool.map(run, range(4)))))
    print(len(Parallel(2)(delayed(run)(number) for number in range(2))))
"""


def test_threads_and_processes_show_none(script: Any) -> None:
    screen, files = script(WORKERS, terminal="err")
    assert "model" not in screen
    assert files == "4\n2\n"


class Display:
    """A stand-in for ``IPython.display`` that records each update of a cell."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, content: dict[str, str], raw: bool, display_id: bool) -> Display:
        assert raw
        assert display_id
        return self

    def update(self, content: dict[str, str], raw: bool) -> None:
        self.shown.append(content["text/plain"])


def test_a_notebook_shows_the_models(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    display = Display()
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(logging.getLogger("genmeasures"), "propagate", False)  # to handlers that other tests have left
    torch.manual_seed(0)
    nets = {"net[/x]": nn.Linear(3, 4), "last": nn.Linear(3, 4)}
    genmeasures.measure(nets, (torch.randn(40, 3), torch.arange(40) % 2), measures=["davies_bouldin"])
    assert "model net[/x]" in display.shown[0]
    assert "0/2" in display.shown[0]
    assert "model last" in display.shown[-1]
    assert "2/2" in display.shown[-1]
    assert "\n" not in display.shown[-1]
    assert not any("\x1b" in text for text in display.shown)
    assert capfd.readouterr() == ("", "")


def test_bars_within_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars(True) as (on_model, on_batch):
        assert on_model is not None
        assert on_batch is not None
        on_model("outer", 0, 2)
        on_batch("train", 1, 2)
        with progress_bars(True) as inner:
            assert inner == (None, None)
    with progress_bars(True) as again:
        assert again != (None, None)
    with progress_bars(None) as captured:
        assert captured == (None, None)
    assert "outer" in capsys.readouterr().err


def test_bars_can_be_shown_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), progress_bars(True):
        raise KeyboardInterrupt
    with progress_bars(True) as again:
        assert again != (None, None)
    with pytest.raises(OptionError, match="progress must be True, False or None, got 1"), progress_bars(1):  # type: ignore[arg-type]
        pass


def test_values_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    net, data = nn.Linear(3, 4), (torch.randn(40, 3), torch.arange(40) % 2)
    made = [genmeasures.measure([net], data, measures=["davies_bouldin"], progress=show) for show in (True, False)]
    assert made[0]["davies_bouldin"].equals(made[1]["davies_bouldin"])
    assert "model_0" in capsys.readouterr().err


def test_a_line_for_each_model(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    data = (torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2)
    models = {"fits": nn.Linear(3, 4), "does not": nn.Linear(5, 4)}
    with caplog.at_level(logging.INFO, logger="genmeasures.run"):
        for _ in range(2):
            genmeasures.measure(models, data, measures=["davies_bouldin"], keep=tmp_path)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    shapes = [re.sub(r"\d+\.\d\d s", "… s", line) for line in lines]
    assert shapes == [
        "model fits: ok, … s, layers: 1",
        "model does not: failed, … s, layers: 0",
        "model fits: ok (reused), … s, layers: 1",
        "model does not: failed, … s, layers: 0",
    ]


def test_other_threads_measure_without_bars(capsys: pytest.CaptureFixture[str]) -> None:
    """One shows bars, the other measures without."""
    barrier = threading.Barrier(2)

    def show(_: int) -> bool:
        with progress_bars(True) as (on_model, _batch):
            barrier.wait(10)
            return on_model is not None

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(show, range(2))) == [False, True]
