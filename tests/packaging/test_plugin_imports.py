"""Plugins depend on the public interface of genmeasures alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import genmeasures.plugin

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {"genmeasures", "genmeasures.plugin", "genmeasures.testing"}
FILES = [path for path in sorted(ROOT.glob("plugins/genmeasures-*/**/*.py")) if ".venv" not in path.parts]


def forbidden(source: str) -> list[str]:
    """The imports of genmeasures beyond what plugins may import."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module)]
            if node.module == "genmeasures":
                public = {*genmeasures.__all__, "__version__"}
                names = [f"genmeasures.{alias.name}" for alias in node.names if alias.name not in public]
        found += [name for name in names if name.partition(".")[0] == "genmeasures" and name not in ALLOWED]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "plugins")))
def test_plugins_import_the_public_interface_alone(path: Path) -> None:
    """Their tests and benchmarks, too."""
    assert forbidden(path.read_text(encoding="utf-8")) == []


def test_the_rule_finds_what_breaks_it() -> None:
    source = """
import genmeasures, numpy
import genmeasures.tracing
from genmeasures import measure, plugin, run
from genmeasures.plugin import trace
def f():
    from genmeasures.tasks.cnn import SmallCNN
    from genmeasures_ars import ARS
"""
    assert forbidden(source) == ["genmeasures.tracing", "genmeasures.run", "genmeasures.tasks.cnn"]
    assert len(FILES) > 30


def test_names_for_reports_are_imported_on_first_use() -> None:
    """Plugins of measures do not wait for pandas and matplotlib."""
    code = "import genmeasures.plugin, sys; print({'pandas', 'matplotlib'} & {*sys.modules})"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "set()"
    exported = {name: getattr(genmeasures.plugin, name) for name in genmeasures.plugin.__all__}
    assert exported["load_result"].__module__ == "genmeasures.results.store"
