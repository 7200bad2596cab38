"""``genmeasures check`` and ``genmeasures new-plugin``, and the list of plugins that a run is pinned to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genmeasures.cli.main import main
from genmeasures.errors import OptionError
from genmeasures.registry import manager

ROOT = Path(__file__).parents[2]


def test_check_says_what_was_asked_and_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "frobenius"]) == 0
    out = capsys.readouterr().out
    assert "aggregator frobenius" in out
    assert "✓ reduce: It gives one number and one count of layers a model" in " ".join(out.split())
    assert out.splitlines()[-1] == "8 passed, 0 failed, 0 skipped"


def test_check_says_what_does_not_apply(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "single", "layer=conv2"]) == 0
    out = capsys.readouterr().out
    assert "– config: Where it is registered" in out
    assert "      its config leaves options to the user" in out
    assert out.splitlines()[-1] == "7 passed, 0 failed, 1 skipped"


def test_check_counts_what_failed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def check_nothing(component: object) -> None:
        """It fails."""
        raise AssertionError("that is [bold]how it is")

    monkeypatch.setattr("genmeasures.testing.suite._CHECKS", ((object, (check_nothing,)),))
    assert main(["check", "frobenius"]) == 1
    out = capsys.readouterr().out
    assert "✗ nothing: It fails." in out
    assert "      that is [bold]how it is" in out
    assert out.splitlines()[-1] == "0 passed, 1 failed, 0 skipped"


def test_check_takes_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "aggregator.last_k", "k=2"]) == 0
    assert "k=2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "roughnes"], "there is no component 'roughnes' (did you mean 'roughness'? known: "),
        (["check", "last_k", "k"], "'k': options are given as OPTION=VALUE"),
        (["check", "last_k", "j=1"], "has no option 'j'"),
        (["new-plugin", "2nd"], "'2nd' is no name for a measure"),
        (["new-plugin", "class"], "'class' is no name for a measure"),
    ],
)
def test_errors_say_what_to_do(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def run(command: list[str], folder: Path, path: list[Path]) -> str:
    """What a command prints, run in a folder with these on the module path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_plugin_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Installed by pip, its own tests pass, the conformance suite among them."""
    assert main(["new-plugin", "genmeasures-dead-units", "--folder", str(tmp_path)]) == 0
    folder = tmp_path / "genmeasures-dead-units"
    assert str(folder) in capsys.readouterr().out
    assert not [path for path in folder.rglob("*") if path.is_file() and "{{" in path.read_text()]
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run([*pip, "--target", str(installed), str(folder)], tmp_path, [])
    run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)], tmp_path, [installed, ROOT])
    listing = "from genmeasures.cli.main import main; main(['plugins'])"
    plugins = run([sys.executable, "-c", listing], tmp_path, [installed, ROOT])
    assert "dead_units  genmeasures-dead-units 0.1.0\n  measure\n    dead_units(" in plugins
    assert main(["new-plugin", "dead_units", "--folder", str(tmp_path)]) == 1
    assert "is already there" in capsys.readouterr().err


def test_a_run_can_be_pinned_to_named_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    manager.registry.cache_clear()
    monkeypatch.setenv("GENMEASURES_PLUGINS", "")
    assert [info.name for info in manager.registry().plugins] == ["genmeasures"]
    manager.registry.cache_clear()
    monkeypatch.setenv("GENMEASURES_PLUGINS", "no_such_plugin")
    with pytest.raises(OptionError, match="GENMEASURES_PLUGINS names the plugin 'no_such_plugin', which is not inst"):
        manager.registry()
    manager.registry.cache_clear()
    monkeypatch.delenv("GENMEASURES_PLUGINS")
    manager.registry()
