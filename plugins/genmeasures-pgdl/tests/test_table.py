"""The table of official scores: complete at any width, and safe to print whatever the names are."""

from __future__ import annotations

import io
import re

import numpy as np
import pandas as pd
import pytest
from genmeasures_pgdl.table import markdown_scores, render_scores
from rich.console import Console

NAMES = ("db", "confidence_unweighted_and_projected_on_many_components", "x" * 70)
WIDTHS = (40, 60, 80, 120, 200)


@pytest.mark.parametrize("width", WIDTHS)
def test_scores_of_many_tasks_lose_tasks_but_not_digits(width: int) -> None:
    rng = np.random.default_rng(0)
    tasks = [f"task{i}_v4" for i in range(12)]
    scores = pd.DataFrame(100 * rng.random((3, 12)), index=[name[:40] for name in NAMES], columns=tasks)
    scores = scores.assign(mean=scores.mean(axis=1), low=10.0, high=90.0)
    out = io.StringIO()
    render_scores(scores, Console(file=out, width=width))
    text = " ".join(out.getvalue().split())
    assert max(map(len, out.getvalue().splitlines())) <= width
    left_out = re.search(r"columns left out: (.*?) \(", text)
    missing = left_out[1].split(", ") if left_out else []
    table = text.split("columns left out")[0]
    for task in tasks:
        assert (task in missing) != (task in table), task
        for value in scores[task] if task in table else ():
            assert f" {value:.2f} " in table
    for value in scores["mean"]:
        assert f" {value:.2f} " in table
    assert "[10.00, 90.00]" in table
    assert bool(missing) == (width < 200)
    assert missing == tasks[len(tasks) - len(missing) :][::-1]


@pytest.mark.parametrize("width", WIDTHS)
def test_control_characters_in_names_are_escaped(width: int) -> None:
    """Names of tasks and measures: control characters, line ends and surrogates."""
    name, escaped = "a\nb\x1b[31m\ud800|:smile:[/x]", "a\\nb\\x1b[31m\\ud800|:smile:[/x]"
    scores = pd.DataFrame({name: [50.0], "mean": [50.0], "low": [40.0], "high": [60.0]}, index=[name])
    out = io.StringIO()
    render_scores(scores, Console(file=out, width=width))
    printed = "".join(out.getvalue().split())
    assert escaped in printed
    markdown = markdown_scores(scores)
    for text in (out.getvalue(), markdown):
        assert all(character.isprintable() for character in text.replace("\n", ""))
    assert markdown.count(escaped.replace("|", "\\|")) == 2
    assert all(line.startswith("| ") and line.endswith(" |") for line in markdown.splitlines())
