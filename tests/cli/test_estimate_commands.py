"""The commands estimate and rank."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from genmeasures.cli.estimate_arguments import METHODS as OFFERED
from genmeasures.cli.main import main
from genmeasures.estimates import METHODS


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the logits of three models, from worst to best."""
    folder = tmp_path_factory.mktemp("logits")
    rng = np.random.default_rng(0)
    known, new = rng.integers(3, size=120), rng.integers(3, size=90)
    for name, scale in (("a", 1.0), ("b", 2.0), ("c", 4.0)):
        np.savez(
            folder / f"{name}.npz",
            validation_logits=scale * np.eye(3)[known] + rng.normal(size=(120, 3)),
            validation_labels=known,
            target_logits=0.8 * scale * np.eye(3)[new] + rng.normal(size=(90, 3)),
            target_labels=new,
        )
    return folder


def test_the_help_lists_all_methods() -> None:
    assert list(OFFERED) == list(METHODS)


def test_a_folder_of_logits_gives_a_choice(logits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "estimates.nc"
    assert main(["estimate", str(logits), "--resamples", "100", "--output", str(result)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"by atc: take c, best with probability 0\.9\d, 98\.89 % \[\S+, \S+\], regret 0", out)
    assert f"result: {result}" in " ".join(out.split())
    assert main(["rank", str(result), "--by", "atc", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in rows] == ["c", "b", "a"]
    assert 0.9 < rows[0]["p_best"] < 1
    assert rows[0]["regret"] == 0


def test_json_is_all_that_is_printed(logits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(logits / "a.npz"), "--method", "doc", "ac", "--resamples", "20", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["estimator"], row["estimate_status"]) for row in report["estimates"]] == [
        ("a", "doc", "ok"),
        ("a", "ac", "ok"),
    ]
    assert report["output"] is None


def test_a_measured_result_is_ranked_with_a_direction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import xarray as xr

    from genmeasures.results import SCHEMA_VERSION, save

    dims = ("model", "layer")
    ds = xr.Dataset(
        {"m": (dims, [[1.0, 2.0], [3.0, 4.0]]), "m_status": (dims, [["ok"] * 2] * 2)},
        {
            "model": ["x", "y"],
            "layer": [0, 1],
            "layer_name": (dims, [["a", "b"]] * 2),
            "weight_norm": (dims, np.ones((2, 2))),
            "model_status": ("model", ["ok", "ok"]),
        },
        {"schema_version": SCHEMA_VERSION},
    )
    path = str(save(ds, tmp_path / "run.nc"))
    for sign, first in (("+", "y"), ("~", "x")):
        assert main(["rank", path, "--by", f"{sign}m", "--aggregator", "mean"]) == 0
        assert f"by m: take {first}" in capsys.readouterr().out
    assert main(["rank", path]) == 1
    assert "no measure states whether larger is better" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["estimate", "no_such_folder"], "there is no file or folder no_such_folder; each model is an .npz file with"),
        (["estimate", "LOGITS", "--method", "atk"], "method 'atk' is unknown (did you mean 'atc'?"),
        (["estimate", "LOGITS", "--metric", "dice"], "Dice coefficients need an output per pixel"),
        (["estimate", "LOGITS", "--resamples", "5", "--output", "r.csv"], "--output must be a file that ends with .nc"),
        (["rank", "no_such.nc"], "there is no result file no_such.nc"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], error: str, logits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(logits) if word == "LOGITS" else word for word in arguments]) == 1
    printed = capsys.readouterr()
    assert error in " ".join((printed.err + printed.out).split())
