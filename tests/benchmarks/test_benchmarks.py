"""The benchmarks run and report on 1 or 2 % of their work. Whether the targets are met is for ``make bench`` to say."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
ROWS = (
    "clustering",
    "pgdl",
    "sklearn",
    "tfrecord",
    "tiles",
    "tracing",
    "unet",
    "vgg_all",
    "vgg_large",
    "vgg_small",
    "whole_tensor",
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)
    return importlib.import_module("benchmarks.run")


def test_all_rows_are_tested(run: ModuleType) -> None:
    assert sorted(run.ROWS) == list(ROWS)
    assert {row for row, *_ in run.CHECKS} <= {*ROWS}


LARGE = ("tiles", "unet", "vgg_large")
"""Rows that take a minute each on two busy cores, even of few inputs."""


@pytest.mark.parametrize("row", [pytest.param(row, marks=[pytest.mark.slow] * (row in LARGE)) for row in ROWS])
def test_the_row_runs_and_is_reported(
    row: str, run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    fraction = "0.02" if row in ("clustering", "pgdl") else "0.01"
    monkeypatch.setattr(sys, "argv", ["benchmarks.run", row, "--fraction", fraction, "--output", str(output)])
    run.main()  # returns whether a target is missed, as it may be at this size
    header, *lines = capsys.readouterr().out.splitlines()
    assert "target" in header
    assert all(line.endswith(("met", "MISSED")) for line in lines)
    figures = json.loads(output.read_text())["rows"][row]
    assert figures
    assert all(math.isfinite(value) for value in figures.values())
    if row == "clustering":  # quality does not depend on the size
        assert figures["inertia_ratio"] < 1.05
