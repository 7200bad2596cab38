"""``genmeasures check`` and ``genmeasures new-plugin``, and the list of plugins that a run is pinned to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from torch import nn

import genmeasures
from genmeasures.cli.main import main
from genmeasures.errors import OptionError
from genmeasures.registry import known_plugins, manager

ROOT = Path(__file__).parents[2]


def test_check_says_what_was_asked_and_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "frobenius"]) == 0
    out = capsys.readouterr().out
    assert "aggregator frobenius" in out
    assert "✓ reduce: It returns one number and one count of layers per model" in " ".join(out.split())
    assert out.splitlines()[-1] == "10 passed, 0 failed, 0 skipped"


def test_check_says_what_does_not_apply(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "single", "layer=conv2"]) == 0
    out = capsys.readouterr().out
    assert "– config: If it is registered" in out
    assert "      its config has options that the user must set" in out
    assert out.splitlines()[-1] == "9 passed, 0 failed, 1 skipped"


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
        (["check", "last_k", "k"], "'k': an option must be of the form OPTION=VALUE"),
        (["check", "last_k", "j=1"], "has no option 'j'"),
        (["check", "digits_cnn"], "'digits_cnn' is a task: the conformance suite has checks for extractor, labeler, "),
        (["plugins", "roughnes"], "there is no component 'roughnes' (did you mean 'roughness'? known: "),
        (["plugins", "measure.kmeans"], "there is no measure 'kmeans' ("),
        (["new-plugin", "2nd"], "'2nd' is not a valid name for a measure"),
        (["new-plugin", "class"], "'class' is not a valid name for a measure"),
        (["new-plugin", "roughness"], "the measure 'roughness' exists already"),
    ],
)
def test_errors_say_what_to_do(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


MEDIAN = """
import numpy as np

from genmeasures.plugin import Aggregator, FeatureMeasure, ModelMeasure

from shares import SHARE


class Median(Aggregator):
    name = "median_of_layers"

    def __init__(self, share: float = SHARE) -> None:
        self.share = share

    def reduce(self, values, weight_norms, layer_names):
        empty = np.isnan(values).all(1)
        filled = np.where(empty[:, None], 0.0, values)
        return np.where(empty, np.nan, np.nanquantile(filled, self.share, axis=1)), (~np.isnan(values)).sum(1)


class Unfinished(Aggregator):
    name = "unfinished"


helper = Median()
"""


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file with a component that is not installed, which imports another file beside it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "shares.py").write_text("SHARE = 0.5\n")
    (folder / "medians_of_mine.py").write_text(MEDIAN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder / "medians_of_mine.py"
    for module in ("shares", "medians_of_mine", "packaged_here", "packaged_here.medians", "packaged_here.shares"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("name", [":Median", ""])
def test_a_file_is_checked_before_it_is_packaged(own_file: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{own_file}{name}", "share=0.25"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("aggregator median_of_layers  Median(share=0.25)")
    assert "– config: " in out
    assert out.splitlines()[-1] == "9 passed, 0 failed, 1 skipped"


def test_a_file_of_a_package_is_imported_as_part_of_it(own_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = own_file.parent / "packaged_here"
    package.mkdir()
    (package / "__init__.py").write_text("from packaged_here.medians import Median\n")
    (package / "shares.py").write_text("SHARE = 0.5\n")
    (package / "medians.py").write_text(MEDIAN.replace("from shares", "from .shares"))
    assert main(["check", f"{package / 'medians.py'}:Median"]) == 0
    assert main(["check", f"{package / '__init__.py'}:Median"]) == 0
    assert "Median(share=0.5)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (":Medan", [], "medians_of_mine.py has no 'Medan' (did you mean 'Median'? known: Median)"),
        (":helper", [], "has 'helper', which is not the class of an Extractor, TargetLabeler, "),
        (":SHARE", [], "has 'SHARE', which is not the class of"),
        (":Unfinished", [], "Unfinished in medians_of_mine.py is not complete: it has no reduce"),
        (":Median", ["shares=1"], "Median has no option 'shares' (did you mean 'share'? known: share)"),
    ],
)
def test_a_class_that_is_not_there_is_told(
    own_file: Path, name: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", f"{own_file}{name}", *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module_at_all\n", "No module named 'no_such_module_at_all' (bad.py, line 1)"),
        ("x = 1\nraise SystemExit(3)\n", "bad.py cannot be imported: SystemExit: 3 (bad.py, line 2)"),
        ("\n\nclass broken(:\n", "SyntaxError: invalid syntax (bad.py, line 3)"),
        ("x = 1\n", "bad.py has 0 components (): write FILE.py:CLASS"),
        (MEDIAN.replace("class Unfinished(Aggregator):", "class Other(Median):").replace("helper = Median()", ""),
         "bad.py has 2 components (Median, Other): write FILE.py:CLASS"),
        (
            "from genmeasures.plugin import Variable, ModelMeasure\n"
            "class Mine(ModelMeasure):\n    variables = Variable('a', 'b')\n",
            "ComponentError: Mine: variables must be a tuple, got one Variable: write variables = (Variable(",

        ),
        (None, "there is no file "),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_says_where(
    own_file: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = own_file.with_name("bad.py")
    if text is not None:
        bad.write_text(text)
    sys.modules.pop("bad", None)
    assert main(["check", str(bad)]) == 1
    assert message in capsys.readouterr().err


def test_a_file_with_the_name_of_another_module_is_refused(own_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_file.rename(own_file.with_name("json.py"))
    assert main(["check", f"{own_file.with_name('json.py')}:Median"]) == 1
    assert "the module 'json' in" in capsys.readouterr().err


def test_errors_are_raised_on_request(own_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENMEASURES_DEBUG", "1")
    with pytest.raises(OptionError, match="Medan"):
        main(["check", f"{own_file}:Medan"])


def run(command: list[str], folder: Path, path: list[Path]) -> str:
    """What a command prints, run in a folder with these on the module path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["feature", "output"])
def test_a_new_plugin_works(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Installed by pip, its own tests pass, the conformance suite among them."""
    assert main(["new-plugin", "genmeasures-dead-units", "--kind", kind, "--folder", str(tmp_path)]) == 0
    folder = tmp_path / "genmeasures-dead-units"
    assert str(folder) in capsys.readouterr().out
    assert not [path for path in folder.rglob("*") if path.is_file() and "{{" in path.read_text()]
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run([*pip, "--target", str(installed), str(folder)], tmp_path, [])
    run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)], tmp_path, [installed, ROOT])
    assert main(["check", str(folder / "genmeasures_dead_units.py")]) == 0  # before it is installed
    del sys.modules["genmeasures_dead_units"]  # the plugin of the other kind has the same name
    capsys.readouterr()
    listing = "from genmeasures.cli.main import main; main(['plugins'])"
    plugins = run([sys.executable, "-c", listing], tmp_path, [installed, ROOT])
    assert "dead_units  genmeasures-dead-units 0.1.0\n  measure\n    dead_units(" in plugins
    assert main(["new-plugin", "dead_units", "--folder", str(tmp_path)]) == 1
    assert "exists already: choose another name, or another folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [[], ["--kind", "output"]])
def test_a_new_plugin_is_three_short_files(kind: list[str], tmp_path: Path) -> None:
    assert main(["new-plugin", "zeros", *kind, "--folder", str(tmp_path)]) == 0
    files = sorted((tmp_path / "genmeasures-zeros").iterdir())
    assert [path.name for path in files] == ["genmeasures_zeros.py", "pyproject.toml", "test_genmeasures_zeros.py"]
    assert sum(bool(line.strip()) for path in files for line in path.read_text().splitlines()) <= 40
    project = tomllib.loads(files[1].read_text())["project"]
    assert project["entry-points"]["genmeasures"] == {"zeros": "genmeasures_zeros"}
    (requirement,) = project["dependencies"]
    assert genmeasures.__version__ in Requirement(requirement).specifier


def test_a_component_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "measure.confidence"]) == 0
    out = capsys.readouterr().out
    version = genmeasures.__version__
    assert out.startswith(
        f"measure confidence  genmeasures.measures.Confidence  (genmeasures {version})\n\nHow densely "
    )
    assert "\n  labeler: KMeans()\n      " in out
    assert "\n  density: log\n      " in out
    assert "Args:" not in out
    assert main(["plugins", "explicit"]) == 0
    assert "\n  weights: a value is needed\n" in capsys.readouterr().out


def test_a_component_is_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "histogram", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["name"], shown["class"]) == ("labeler", "histogram", "genmeasures.labelers.Histogram")
    defaults = {option["name"]: option["default"] for option in shown["options"]}
    assert defaults == {"bins": 10, "edges": "auto"}
    assert main(["plugins", "single", "--json"]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["options"]
    assert (layer["name"], layer["required"], layer["default"]) == ("layer", True, None)


def test_the_components_of_a_plugin_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Where no component has its name."""
    for name in ("transitions", "genmeasures-transitions"):
        assert main(["plugins", name]) == 0
        out = capsys.readouterr().out
        assert "transition_count(trajectory='training_ellipse'" in " ".join(out.split())
        assert "roughness" not in out
    assert main(["plugins", "transitions", "--json"]) == 0
    (plugin,) = json.loads(capsys.readouterr().out)
    assert [component["name"] for component in plugin["components"]] == ["transition_count", "region_count"]
    assert main(["plugins", "ars"]) == 0
    assert capsys.readouterr().out.startswith("measure ars ")


@pytest.fixture
def core_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GENMEASURES_PLUGINS", "")
    manager.registry.cache_clear()
    yield
    manager.registry.cache_clear()


@pytest.mark.usefixtures("core_alone")
@pytest.mark.parametrize(
    ("arguments", "kind", "name", "extra"),
    [
        (["run", "task=pgdl", "task.path=nets"], "task", "pgdl", "pgdl"),
        (["run", "experiment=pgdl"], "experiment", "pgdl", "pgdl"),
        (["run", "experiment=unet_hippocampus"], "experiment", "unet_hippocampus", "unet"),
        (["run", "task=unet_denoising"], "task", "unet_denoising", "unet"),
        (["run", "measure=[roughness,jacobian_norm]"], "measure", "jacobian_norm", "jacobian"),
        (["check", "class_selectivity"], "component", "class_selectivity", "ars"),
        (["plugins", "transitions"], "component", "transitions", "transitions"),
        (["plugins", "measure.transition_count"], "measure", "transition_count", "transitions"),
    ],
)
def test_missing_plugins_are_named(
    arguments: list[str], kind: str, name: str, extra: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    said = f"error: there is no {kind} {name!r}: it comes with a plugin, pip install genmeasures[{extra}], and GENM"
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.usefixtures("core_alone")
@pytest.mark.parametrize("name", ["pgdl", "unet", "unet_denoising"])
def test_missing_tasks_are_named_in_python(name: str) -> None:
    with pytest.raises(OptionError, match=rf"no task '{name}': .* pip install genmeasures\[{name[:4]}\]"):
        genmeasures.load_task(name)


@pytest.mark.usefixtures("core_alone")
@pytest.mark.parametrize(
    ("name", "extra"), [("ars", "ars"), ("jacobian_norm", "jacobian"), ("transition_count", "transitions")]
)
def test_missing_measures_are_named_in_python(name: str, extra: str) -> None:
    with pytest.raises(OptionError, match=rf"no measure '{name}': .* pip install genmeasures\[{extra}\]"):
        genmeasures.measure([nn.Linear(2, 2)], torch.zeros(4, 2), measures=[name])


def test_known_plugins_are_those_of_the_repository() -> None:
    """With all their components and experiments."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["all"] == [f"genmeasures[{','.join(known_plugins.PLUGINS)}]"]
    infos = {info.name: info for info in manager.registry().plugins}
    for plugin, known in known_plugins.PLUGINS.items():
        provided: dict[str, list[str]] = {}
        for kind, component in infos[plugin].components:
            provided.setdefault(kind, []).append(component.name)
        recipes = ROOT.glob(f"plugins/genmeasures-{plugin}/src/*/conf/experiment/*.yaml")
        experiments = sorted(path.stem for path in recipes)
        if experiments:
            provided["experiment"] = experiments
        assert {kind: sorted(names) for kind, names in provided.items()} == {k: list(v) for k, v in known.items()}


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
