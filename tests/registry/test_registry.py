"""Finding components by name: the core's, and those of plugins, good and bad."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import genmeasures
from genmeasures import aggregators, extractors, labelers, measures, tasks
from genmeasures.cli.main import main
from genmeasures.errors import GenmeasuresError, OptionError
from genmeasures.interfaces import Aggregator, Component, Extractor, Labeler, Measure, Task
from genmeasures.registry import Registry, registry, specs
from genmeasures.registry.manager import STRICT

BUILTIN = {
    "extractor": {"receptive_field", "whole_tensor"},
    "labeler": {"class_label", "downsampled", "histogram", "kmeans"},
    "measure": {"davies_bouldin", "roughness", "confidence"},
    "aggregator": {"frobenius", "mean_weight", "mean", "max", "last_k", "explicit", "single"},
    "task": {"checkpoints", "digits_cnn"},
}

SPARSITY = '''
from genmeasures.plugin import FeatureMeasure, Pass, Variable, hookimpl

class Sparsity(FeatureMeasure):
    """Share of zero activations."""

    name = "sparsity"
    variables = (Variable("sparsity", "share of zero activations"),)
    passes = (Pass("test", "vectors"),)

    def __init__(self, threshold=0.0):
        self.threshold = threshold

    def start(self, layer, generator):
        self.zeros = self.total = 0

    def update(self, batch):
        self.zeros += int((batch.vectors <= self.threshold).sum())
        self.total += batch.vectors.numel()

    def compute(self):
        return self.zeros / self.total

@hookimpl
def genmeasures_register(register):
    register(Sparsity)
'''
BAD = {
    "failing_import": ("import genmeasures_no_such_module\n", "ModuleNotFoundError: No module named 'genmeasures_no"),
    "syntax_error": ("def broken(:\n", "SyntaxError"),
    "exits": ("raise SystemExit(3)\n", "SystemExit"),
    "misspelt_hook": (
        "from genmeasures.plugin import hookimpl\n@hookimpl\ndef genmeasures_register_measure(register):\n    pass\n",
        "unknown hook 'genmeasures_register_measure'",
    ),
    "extra_argument": (
        "from genmeasures.plugin import hookimpl\n@hookimpl\ndef genmeasures_register(register, config):\n    pass\n",
        "config",
    ),
    "name_taken": (SPARSITY.replace('"sparsity"', '"roughness"'), "the measure name 'roughness' is already taken"),
    "twice": (SPARSITY + "    register(Sparsity)\n", "the measure name 'sparsity' is already taken"),
    "no_name": (SPARSITY.replace('    name = "sparsity"\n', ""), "Sparsity has no name"),
    "hook_of_earlier_versions": (
        SPARSITY.replace("genmeasures_register", "genmeasures_register_measures"),
        "unknown hook 'genmeasures_register_measures': the hook is genmeasures_register(register)",
    ),
    "no_kind": (
        SPARSITY.replace("register(Sparsity)", "register(dict)"),
        "dict cannot be registered: it must be a subclass of one of Extractor, Labeler, Measure, Aggregator, Task",
    ),
    "two_kinds": (
        SPARSITY + "\n    from genmeasures.plugin import Task\n    register(type('Both', (Sparsity, Task), {}))\n",
        "Both cannot be registered: it must be of one kind, got ['measure', 'task']",
    ),
    "an_object": (
        SPARSITY.replace("register(Sparsity)", "register(Sparsity())"),
        "Sparsity(threshold=0.0) cannot be registered: register(…) takes a class, got an object",
    ),
    "no_comma": (
        SPARSITY.replace('(Variable("sparsity", "share of zero activations"),)', 'Variable("sparsity", "zeros")'),
        "ComponentError: Sparsity: variables must be a tuple, got one Variable: write variables = (Variable(",
    ),
    "raises": (SPARSITY.replace("    register(Sparsity)\n", "    1 / 0\n"), "ZeroDivisionError"),
}


def test_the_core_registers_itself_through_the_hooks() -> None:
    bases = {
        "extractor": Extractor, "labeler": Labeler, "measure": Measure, "aggregator": Aggregator, "task": Task,
    }  # fmt: skip
    for kind, names in BUILTIN.items():
        assert set(registry().names(kind)) == names
        for name in names:
            component = registry().get(kind, name)
            assert issubclass(component, bases[kind])
            assert component.name == name
    (info,) = registry().plugins
    assert (info.name, info.distribution, info.error) == ("genmeasures", "genmeasures", "")
    assert info.version == importlib.metadata.version("genmeasures")
    assert registry().config_packages() == ["genmeasures.conf"]


@pytest.mark.parametrize("package", [extractors, labelers, measures, aggregators, tasks])
def test_every_component_of_a_package_is_registered(package: Any) -> None:
    registered = {component for info in registry().plugins for _, component in info.components}
    public = {getattr(package, name) for name in package.__all__}
    components = {value for value in public if isinstance(value, type) and issubclass(value, Component)}
    assert components
    assert components <= registered


@pytest.mark.parametrize(
    ("kind", "name", "suggested"),
    [
        ("measure", "roughnes", "roughness"),
        ("extractor", "whole-tensor", "whole_tensor"),
        ("labeler", "k_means", "kmeans"),
        ("aggregator", "frobenious", "frobenius"),
        ("task", "checkpoint", "checkpoints"),
    ],
)
def test_unknown_names_suggest_the_nearest(kind: str, name: str, suggested: str) -> None:
    with pytest.raises(OptionError, match=rf"there is no {kind} '{name}' \(did you mean '{suggested}'\? known: "):
        registry().make(kind, name, {})


def test_names_like_no_other_list_all() -> None:
    with pytest.raises(OptionError, match=r"\(known: confidence, davies_bouldin, roughness\)"):
        registry().get("measure", "zzz")


@pytest.mark.parametrize(
    ("kind", "name", "option", "suggested"),
    [("measure", "roughness", "spred", "spread"), ("extractor", "receptive_field", "component", "components")],
)
def test_unknown_options_suggest_the_nearest(kind: str, name: str, option: str, suggested: str) -> None:
    with pytest.raises(OptionError, match=f"the {kind} '{name}' has no option '{option}'.*did you mean '{suggested}'"):
        registry().make(kind, name, {option: 1})


def test_options_are_handed_on() -> None:
    made = registry().make("measure", "davies_bouldin", {"spread": "rms"})
    assert made.options() == {"labeler": None, "space": "pca", "spread": "rms", "split": "train"}
    with pytest.raises(OptionError, match="path"):
        genmeasures.load_task("checkpoints", pth="nets/")


def test_options_without_a_default_are_named() -> None:
    with pytest.raises(OptionError, match="the task 'checkpoints' needs the option 'path'"):
        genmeasures.load_task("checkpoints")
    with pytest.raises(OptionError, match="the aggregator 'explicit' needs the option 'weights'"):
        registry().make("aggregator", "explicit", {})


def test_a_plugin_is_used_by_name(install: Callable[..., None], digits: Any, digits_net: nn.Module) -> None:
    install(sparsity=SPARSITY)
    (x, y), (x_test, _) = digits
    ds = genmeasures.measure({"net": digits_net}, (x[:60], y[:60]), (x_test[:40],), measures=["sparsity", "roughness"])
    with torch.no_grad():
        hidden = torch.relu(digits_net.conv1(torch.from_numpy(x_test[:40])))
    np.testing.assert_allclose(ds["sparsity"].values[0, 0], float((hidden == 0).float().mean()), rtol=1e-6)
    assert ds["sparsity"].attrs["long_name"] == "share of zero activations"
    assert np.isfinite(ds["roughness"].values).all()


def test_a_plugin_is_listed(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install(sparsity=SPARSITY, broken=BAD["failing_import"][0])
    assert main(["plugins"]) == 0
    out = capsys.readouterr().out
    assert "sparsity(threshold=0.0)" in out
    assert "davies_bouldin(labeler=None, space='pca', spread='mean', split='train')" in out
    assert "failed to load: ModuleNotFoundError" in out


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_plugin_is_reported_and_takes_no_other_with_it(install: Callable[..., None], fault: str) -> None:
    source, reason = BAD[fault]
    install(**{"a_good_one": SPARSITY.replace("sparsity", "first"), fault: source, "z_good": SPARSITY})
    if fault == "twice":
        install(z_good=SPARSITY.replace("sparsity", "other"))
    infos = {info.name: info for info in registry().plugins}
    assert reason in infos[fault].error
    assert infos[fault].components == []
    assert infos[fault].config_packages == []
    assert infos["a_good_one"].error == ""
    assert {"first", *BUILTIN["measure"]} < set(registry().names("measure"))
    for kind, names in BUILTIN.items():
        assert names <= set(registry().names(kind))
    assert registry().get("measure", "roughness") is measures.Roughness
    if fault != "twice":
        assert infos["z_good"].error == ""
        assert "sparsity" in registry().names("measure")


def test_of_two_plugins_with_one_name_the_first_counts(install: Callable[..., None]) -> None:
    install(one=SPARSITY, two=SPARSITY)
    one, two = registry().plugins[1:]
    assert [component.name for _, component in one.components] == ["sparsity"]
    assert "already taken" in two.error


def test_names_of_two_kinds_may_be_alike(install: Callable[..., None]) -> None:
    install(one=SPARSITY.replace('name = "sparsity"', 'name = "kmeans"'))
    assert registry().plugins[1].error == ""
    assert registry().get("labeler", "kmeans") is labelers.KMeans


@pytest.mark.parametrize("fault", ["failing_import", "misspelt_hook", "extra_argument", "name_taken"])
def test_strict_makes_a_bad_plugin_an_error(
    install: Callable[..., None], fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(**{fault: BAD[fault][0]})
    monkeypatch.setenv(STRICT, "1")
    with pytest.raises(GenmeasuresError, match=f"plugin {fault} .*failed to load: "):
        registry()
    assert main(["plugins"]) == 1
    assert capsys.readouterr().err.startswith(f"error: plugin {fault}")
    monkeypatch.setenv(STRICT, "0")
    assert registry().plugins[1].error


def config_package(folder: Path, name: str, text: str) -> None:
    """A package with one config file for a measure."""
    (folder / name / "measure").mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    (folder / name / "measure" / "one.yaml").write_text(text)


CONFIGS = "from genmeasures.plugin import hookimpl\n@hookimpl\ndef genmeasures_config_packages():\n    return "


def test_config_packages_come_from_plugins(install: Callable[..., None], tmp_path: Path) -> None:
    for name in ("one_conf", "one_more", "two_conf"):
        config_package(tmp_path, name, "a: 1\n")
    install(one=CONFIGS + "['one_conf', 'one_more']\n", two=CONFIGS + "'two_conf'\n")
    assert registry().config_packages() == ["genmeasures.conf", "one_conf", "one_more", "two_conf"]


def test_configs_that_do_not_parse_are_reported(install: Callable[..., None], tmp_path: Path) -> None:
    config_package(tmp_path, "bad_conf", "a: [1\nb: 2\n")
    install(bad=CONFIGS + "'bad_conf'\n", missing=CONFIGS + "'no_such_package.conf'\n", good=SPARSITY)
    infos = {info.name: info for info in registry().plugins}
    assert "its config one.yaml cannot be read: " in infos["bad"].error
    assert "its config package 'no_such_package.conf' cannot be found" in infos["missing"].error
    assert registry().config_packages() == ["genmeasures.conf"]
    assert "sparsity" in registry().names("measure")


@pytest.mark.parametrize("hook", [name for name in vars(specs) if name.startswith("genmeasures_")])
def test_every_hook_is_documented(hook: str) -> None:
    assert inspect.getdoc(getattr(specs, hook))
    assert hook in (Path(__file__).parents[2] / "docs" / "guide" / "plugins.md").read_text()


def test_a_registry_is_made_once() -> None:
    assert registry() is registry()
    assert isinstance(registry(), Registry)


CAUSE = "ModuleNotFoundError: No module named 'genmeasures_no_such_module' ("


@pytest.mark.parametrize("kind", ["measure", "extractor", "labeler", "aggregator", "task"])
def test_a_component_of_a_plugin_that_failed_is_asked_for(install: Callable[..., None], kind: str) -> None:
    """By name in Python: which plugin failed and why, and where."""
    install(sparsity=BAD["failing_import"][0], good=SPARSITY.replace("sparsity", "first"))
    with pytest.raises(OptionError, match=f"there is no {kind} 'sparsity'") as caught:
        registry().make(kind, "sparsity", {})
    said = str(caught.value)
    assert "the plugin sparsity (? ?), which may have it, failed to load: " + CAUSE in said
    assert said.endswith("_sparsity.py, line 1)")
    assert "good" not in said


def test_it_is_asked_for_in_other_ways(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install(sparsity=BAD["failing_import"][0])
    with pytest.raises(OptionError, match=r"the plugin sparsity .* failed to load: ModuleNotFoundError"):
        genmeasures.measure([nn.Linear(2, 2)], torch.zeros(4, 2), measures=["sparsity"])
    with pytest.raises(OptionError, match=r"the plugin sparsity .* failed to load: ModuleNotFoundError"):
        genmeasures.load_task("sparsity")
    for command in (["check", "sparsity"], ["check", "measure.sparsity"], ["run", "measure=[sparsity]"]):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: there is no ")
        assert "'sparsity'" in error
        assert CAUSE in error
    assert main(["plugins"]) == 0
    assert CAUSE in "".join(capsys.readouterr().out.splitlines())


def test_where_all_plugins_load_none_is_blamed(install: Callable[..., None]) -> None:
    install(sparsity=SPARSITY)
    with pytest.raises(OptionError, match=r"known: confidence, davies_bouldin, roughness, sparsity\)$"):
        registry().make("measure", "zzz", {})
