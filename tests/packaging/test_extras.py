"""Extras of the core, each of which brings a plugin."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import genmeasures

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))


def project(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


@pytest.mark.parametrize("plugin", PLUGINS)
def test_an_extra_brings_each_plugin_in_versions_that_fit(plugin: str) -> None:
    """Core and plugin each allow the version of the other that lies beside it."""
    extras = project(ROOT)["optional-dependencies"]
    (requirement,) = map(Requirement, extras[plugin.removeprefix("genmeasures-")])
    own = project(ROOT / "plugins" / plugin)
    assert requirement.name == own["name"] == plugin
    assert own["version"] in requirement.specifier
    assert requirement.extras <= set(own.get("optional-dependencies", ()))
    (core,) = (need for need in map(Requirement, own["dependencies"]) if need.name == "genmeasures")
    assert genmeasures.__version__ in core.specifier
    assert "99.0" not in core.specifier
    assert "99.0" not in requirement.specifier


def test_all_brings_them_all() -> None:
    (requirement,) = map(Requirement, project(ROOT)["optional-dependencies"]["all"])
    assert requirement.name == "genmeasures"
    assert requirement.extras >= {plugin.removeprefix("genmeasures-") for plugin in PLUGINS}
