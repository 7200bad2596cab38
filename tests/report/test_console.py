"""Tables at every width: no number is cut, and what has no room is named."""

from __future__ import annotations

import io
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from rich.console import Console

from genmeasures.judging import judge
from genmeasures.report import make_console, markdown_table, print_json, render_table
from genmeasures.report.console import fold

NAMES = ("db", "confidence_unweighted_and_projected_on_many_components", "x" * 70, "ψ/λ with spaces [brackets]")
WIDTHS = (40, 60, 80, 120, 200)


@pytest.fixture(scope="module")
def judged() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    grid = list(itertools.product([1, 2], ["a", "b"], [3, 4], [5, 6]))
    gap = 0.05 * rng.normal(size=16)
    data = {}
    for name in NAMES:
        data[name] = ("model", gap + 0.04 * rng.normal(size=16), {"expected_gap": 1})
        data[f"{name}_status"] = ("model", ["ok"] * 16)
    data[NAMES[0]][1][3] = np.nan
    coords = {"model": [f"a_model_with_a_long_name_{i}" for i in range(16)], "generalization_gap": ("model", gap)}
    coords |= {f"hparam{k}": ("model", [row[k] for row in grid]) for k in range(4)}
    return judge(xr.Dataset(data, coords, {"hparams": json.dumps([f"hparam{k}" for k in range(4)])}))


def parts(printed: str) -> tuple[list[str], list[str], list[str]]:
    """The header's names, the lines of the body, and the columns that are said to be left out."""
    lines = printed.splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line.strip()) == {"─"})
    body = list(itertools.takewhile(str.strip, lines[rule + 1 :]))
    named = re.search(r"columns left out: (.*?) \(a wider terminal", " ".join(printed.split()))
    return lines[rule - 1].split(), body, named[1].split(", ") if named else []


@pytest.mark.parametrize("width", WIDTHS)
def test_every_number_is_whole_or_its_column_is_named(judged: pd.DataFrame, width: int) -> None:
    out = io.StringIO()
    render_table(judged, Console(file=out, width=width))
    assert max(map(len, out.getvalue().splitlines())) <= width
    header, body, left_out = parts(out.getvalue())
    assert sorted(header + left_out) == sorted(
        ["measure", "expected", "Pearson", "Spearman", "Kendall", "PGDL", "ψ", "models"]
    )
    numbers = re.findall(r"\[-?[\d.]+, -?[\d.]+\]|\d+ of \d+|\S+", " ".join(body))
    columns = {"Pearson": "pearson", "Spearman": "spearman", "Kendall": "kendall", "ψ": "granulated_kendall"}
    for name in {*columns, "PGDL"} & set(header):
        column = columns.get(name, "pgdl")
        for _, row in judged.iterrows():
            if np.isfinite(row[column]):
                assert f"{row[column]:.2f}" in numbers
            if name != "PGDL" and np.isfinite(row[f"{column}_low"]):
                assert f"[{row[f'{column}_low']:.2f}, {row[f'{column}_high']:.2f}]" in numbers
    if "models" in header:
        assert numbers.count("15 of 16") == 1
        assert numbers.count("16") == 3
    assert bool(left_out) == (width < 120)


@pytest.mark.parametrize("width", WIDTHS)
def test_names_are_whole_in_pieces(judged: pd.DataFrame, width: int) -> None:
    """Long names go over several lines, broken between their words where these have room."""
    out = io.StringIO()
    render_table(judged, Console(file=out, width=width))
    _, body, _ = parts(out.getvalue())
    # A name's lines begin at the left; single spaces are its own.
    pieces = [re.split("  +", line[2:])[0].rstrip() for line in body]
    joined = "".join(pieces)
    for name in NAMES:
        assert name.replace(" ", "") in joined.replace(" ", ""), name
    assert [piece for piece in pieces if piece.startswith("confidence")] == [
        fold(NAMES[1], max(map(len, pieces))).splitlines()[0]
    ]


def test_folding() -> None:
    assert fold("confidence_unweighted", 12) == "confidence_\nunweighted"
    assert fold("short", 12) == "short"
    assert fold("x" * 30, 12) == "\n".join(["x" * 12, "x" * 12, "x" * 6])
    assert fold("a.b/c d", 2) == "a.\nb/\nc\nd"
    assert fold("", 12) == ""


@pytest.mark.parametrize("width", WIDTHS)
def test_names_reach_no_terminal_as_they_are(judged: pd.DataFrame, width: int) -> None:
    """Of measures, targets, tasks and models: control characters, line ends and surrogates are escaped."""
    name, escaped = "a\nb\x1b[31m\ud800|:smile:[/x]", "a\\nb\\x1b[31m\\ud800|:smile:[/x]"
    judged = judged.assign(measure=name, against=name, excluded_models=name, status=f"note: {name}")
    judged.attrs |= {"given": name, "groups": name}
    out = io.StringIO()
    render_table(judged, Console(file=out, width=width))
    printed = "".join(out.getvalue().split())
    assert printed.count(escaped) > 3
    for text in (out.getvalue(), markdown_table(judged)):
        assert all(character.isprintable() for character in text.replace("\n", ""))
    text = markdown_table(judged)
    assert escaped.replace("|", "\\|") in text
    assert all(line.startswith("| ") and line.endswith(" |") for line in text.splitlines())


def test_what_goes_to_a_file_has_no_limit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    make_console().print("x" * 500 + " y")
    assert capsys.readouterr().out == "x" * 500 + " y\n"
    monkeypatch.setenv("COLUMNS", "50")
    make_console().print("word " * 30)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 50
    make_console(quiet=True).print("nothing")
    assert capsys.readouterr().out == ""


def test_json_has_no_numbers_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"ψ\ud800": [1.5, None]})
    assert json.loads(capsys.readouterr().out) == {"ψ\ud800": [1.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        print_json(float("nan"))
