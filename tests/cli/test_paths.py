"""Paths on the command line: any characters, without quotes within quotes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from genmeasures.cli.main import main
from genmeasures.cli.overrides import readable, text_of
from genmeasures.errors import OptionError
from genmeasures.results import load

PATHS = [
    "epoch=3", "modèles", "日本語", "my nets", "a,b", "nets(1)", "nets (1)", "range(3)", "it's", 'say "so"', "a'b\\'c",
    "ends in \\", "x#1", "007", "1e3", "true", "[a]", "{a:1}", " space ", "a&b;c!d", "100%", "C:\\nets", "~/nets",
    "a=b,c=d", "../up", "-dash", "+plus", "$HOME", "semi;colon", "star*", "emoji🙂", "a\tb",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", ["task.path", "output", "+task.cache"])
def test_hydra_reads_the_path_that_was_typed(path: str, key: str) -> None:
    (argument,) = readable([f"{key}={path}"])
    parsed = OverridesParser.create().parse_override(argument)
    assert not parsed.is_sweep_override()
    assert parsed.value() == path
    assert text_of([argument], key.lstrip("+"), "otherwise") == path


@pytest.mark.parametrize(
    "argument",
    [
        "seed=1", "seed=0,1", "extractor=receptive_field,whole_tensor", "measure=[roughness,confidence]", "~task",
        "task.path='a=b'", 'task.path="a,b"', "task.path=null", "task.path=???", "task.path=${output}/x", "task.path=",
        "task.path=a\\,b", "--multirun", "-m", "--cfg", "job", "hydra.run.dir=x/${now:%Y}",
        "task.path=plain/path-1.5_x", "task.volumes=choice_of/mine", "broken", "task.path='half",
    ],
)  # fmt: skip
def test_what_hydra_reads_as_it_is_meant_stays(argument: str) -> None:
    assert readable([argument]) == [argument]


def test_commas_sweep_in_a_multirun() -> None:
    assert readable(["task.path=a,b", "-m"])[0] == "task.path=a,b"
    assert readable(["task.path=epoch=1,epoch=2", "--multirun"])[0] == "task.path='epoch=1','epoch=2'"
    parsed = OverridesParser.create().parse_override(readable(["task.path=epoch=1,epoch=2", "-m"])[0])
    assert parsed.is_sweep_override()


def test_other_texts_that_hydra_cannot_read() -> None:
    assert readable(["against=test=accuracy"]) == ["against='test=accuracy'"]
    with pytest.raises(OptionError, match=r"in quotes, \"layers=\['modèle.conv',fc\]\""):
        readable(["layers=[modèle.conv,fc]"])


def test_the_last_of_several_counts() -> None:
    assert text_of(["output=a", "seed=1", "output='b=c'"], "output", "results") == "b=c"
    assert text_of(["seed=1", "outputs=x"], "output", "results") == "results"


@pytest.mark.parametrize("name", ["epoch=3", "modèles (alt), [1]"])
def test_a_run_of_a_folder_of_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folders: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    folders.write_task(tmp_path / name, {"a": 0}, module=f"paths_{len(name)}")
    task = ["task=checkpoints", f"task.path={name}", "measure=[davies_bouldin]", "figures=false", f"output=to {name}"]
    assert main(["run", *task]) == 0
    (path,) = (tmp_path / f"to {name}").glob("*.nc")
    assert load(path).attrs["task"] == name
    assert f"result: to {name}/{path.name}" in capfd.readouterr().out


ERRORS: dict[str, Callable[[Path], Any]] = {
    "experiment=broken": lambda folder: (folder / "conf" / "experiment" / "broken.yaml").write_text("a: [1"),
    "experiment=missing": lambda folder: None,
    "nothing=1": lambda folder: None,
    "layers=[modèle]": lambda folder: None,
    "output=${nowhere}": lambda folder: None,
    "--config-dir=nowhere": lambda folder: None,
    "hydra/launcher=none": lambda folder: None,
}


@pytest.mark.parametrize("argument", ERRORS)
def test_errors_of_hydra_are_one_line(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    ERRORS[argument](tmp_path)
    assert main(["run", argument]) == 1
    said = capfd.readouterr()
    lines = (said.out + said.err).strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert argument.partition("=")[2].strip("[]${}") in lines[0] or "broken" in argument or "nothing" in lines[0]
