"""Command lines that are wrong: one line that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

from genmeasures.cli.main import main
from genmeasures.cli.overrides import flags_first

WHOLE = "'genmeasures run --cfg job' shows all settings"
SAID = {
    "nothing=1": f"nothing=1: there is no setting 'nothing'; {WHOLE}",
    "sed=1": f"sed=1: there is no setting 'sed' (did you mean 'seed'?); {WHOLE}",
    "extracter=whole_tensor": "(did you mean 'extractor'?)",
    "+extracter=whole_tensor": "extracter: unknown setting, which nothing reads (did you mean 'extractor'?",
    "extractor=whole": "there is no extractor 'whole' (did you mean 'whole_tensor'?",
    "measure=[roughnes]": "there is no measure 'roughnes' (did you mean 'roughness'? known: ",
    "experiment=quik": "there is no experiment 'quik' (did you mean 'quick'? known: extractors, pgdl, quick",
    "hydra/launcher=none": "there is no hydra/launcher 'none' (known: basic",
    "measure.roughness.k=8": "(did you mean 'measure.roughness.labeler.k'?)",
    "measure.rougness.spread=rms": "(did you mean 'measure.roughness.spread'?)",
    "measure=[roughness] measure.confidence.over=mixture": (
        "measure.confidence.over=mixture: 'confidence' is not among the measures of this run: choose it too, "
        "measure=[roughness,confidence]"
    ),
    "measure.davies_bouldin.labeler.k=3": "is null and has no settings: choose one first, "
    "+labeler@measure.davies_bouldin.labeler=NAME",
    "labeler@measure.davies_bouldin.labeler=kmeans": "prefix it with a plus sign, +labeler@measure.davies_bouldin.lab",
    "labeler@measure.rougness.labeler=class_label": "'rougness' is not among the measures of this run (did you mean",
    "+seed=1": "+seed=1: 'seed' exists already: leave out the plus sign, seed=1",
    "+extractor=whole_tensor": "leave out the plus sign, extractor=whole_tensor",
    "~sead": "~sead: there is no setting 'sead' to remove (did you mean 'seed'?)",
    "~seed": "~seed: a run needs this setting",
    "seed": "seed: a setting must be of the form KEY=VALUE",
    "seed = 1": "seed: a setting must be of the form KEY=VALUE, without spaces around the equals sign",
    "seed=0,1": "seed=0,1: several values: add -m to have a run for each, write a list as seed=[0,1]",
    "seed=${sed}": "seed=${sed}: ${sed} refers to a setting that does not exist (did you mean ${seed}?)",
    "output=${nowhere}": "output=${nowhere}: ${nowhere} refers to a setting that does not exist",
    "seed=${oc.env:GENMEASURES_NOT_THERE}": "Environment variable 'GENMEASURES_NOT_THERE' not found",
    "task.path='half": "task.path='half: this cannot be parsed: a text with special characters needs quotes",
    "figures=off": "figures must be true or false, got 'off'",
    "force=banana": "force must be true or false, got 'banana'",
    "seed=abc": "seed must be an integer ≥ 0, got 'abc'",
    "layers=131": 'such as [131], got 131; in YAML, 2:11 without quotes is the number 131: write "2:11"',
    "layers=0": "layers must be a list of names or indices, such as [0], got 0",
    "layers=[]": "layers is an empty list",
    "layers=[1.5]": "layers must be names or indices (0 is the first, -1 the last), got 1.5",
    "+measure@measure.layer=roughness": "a variable cannot be called 'layer', the name of a coordinate",
    "+measure@measure.a-b=roughness": "'a-b' is not a name",
    "+measure@measure.confidence=roughness +measure@measure.confidence=confidence": "measure",
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: object) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    folders.write_task(tmp_path / "nets", {"a": 0}, module=f"complaints_{tmp_path.name}")  # type: ignore[attr-defined]


@pytest.mark.parametrize("typed", SAID)
def test_what_is_wrong_and_what_to_do(typed: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "task=checkpoints", "task.path=nets", "figures=false", *typed.split(" ")]) == 1
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    told = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert SAID[typed] in told[0]
    assert not list(tmp_path.glob("results/*.nc"))


@pytest.mark.parametrize("typed", ["layers=-1:", 'layers="-1:"', "layers=['-1:']", "layers=[-1:,-1]", "layers=1:11"])
def test_a_range_of_layers(typed: str, tmp_path: Path) -> None:
    assert main(["run", "task=checkpoints", "task.path=nets", "measure=[davies_bouldin]", "figures=false", typed]) == 0
    [file] = tmp_path.glob("results/*.nc")
    with xr.open_dataset(file) as ds:
        assert ds.sizes["layer"] == 1


def test_a_place_that_is_not_there_tells_the_range(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "task=checkpoints", "task.path=nets", "measure=[davies_bouldin]", "layers=[2]"]) == 1
    assert "there is no layer 2 to measure: the model has 2, with indices from -2 to 1" in capfd.readouterr().err


def test_settings_that_others_refer_to_are_read(capfd: pytest.CaptureFixture[str]) -> None:
    given = ["task=checkpoints", "task.path=nets", "figures=false", "measure=[davies_bouldin]"]
    assert main(["run", *given, "+mine=3", "seed=${mine}", "layers=[-1]"]) == 0
    assert "not measured: 1 layer (fc1)" in capfd.readouterr().out


def test_flags_stand_anywhere() -> None:
    given = ["seed=0,1", "--multirun", "--config-dir", "a=b", "layers=[0]", "--info", "x=1", "-c", "job", "~y"]
    flags = ["--multirun", "--config-dir", "a=b", "--info", "-c", "job"]
    assert flags_first(given) == [*flags, "seed=0,1", "layers=[0]", "x=1", "~y"]


@pytest.mark.parametrize("before", [["-m", "run", "seed=0,1"], ["run", "seed=0,1", "-m"], ["run", "-m", "seed=0,1"]])
def test_a_multirun_with_settings_on_both_sides(before: list[str], tmp_path: Path) -> None:
    given = ["task=checkpoints", "task.path=nets", "measure=[davies_bouldin]", "figures=false"]
    assert main([*before, *given]) == 0
    assert len(list(tmp_path.glob("results/*.nc"))) == 2


def test_the_configuration_is_shown_wherever_the_flag_stands(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "seed=7", "--cfg", "job", "extractor=whole_tensor"]) == 0
    said = capfd.readouterr().out
    assert "seed: 7" in said
    assert "genmeasures.extractors.WholeTensor" in said


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["colect"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no command 'colect' (did you mean 'collect'? known: ")
    assert main(["seed=1", "-m"]) == 2
    assert capsys.readouterr().err == "error: settings follow a command: genmeasures run seed=1 -m\n"
    assert main(["run", "seed=1", "-h"]) == 0
    assert capsys.readouterr().out.startswith("genmeasures run [hydra overrides]")
    assert main(["run", "--version"]) == 0
    assert capsys.readouterr().out.startswith("genmeasures ")
    assert main([]) == 2
    assert "collect" in capsys.readouterr().err


def test_python_m(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", "genmeasures", "--version"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("genmeasures ")
