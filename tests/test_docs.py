"""The reference pages: made without a warning, and complete."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

import genmeasures
import genmeasures.labelers
import genmeasures.plugin
from genmeasures.registry import registry

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of everything that the pages describe."""
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    inventory = InventoryFile.loads((folder / "objects.inv").read_bytes(), uri="")
    return {name for _, names in inventory.data.items() for name in names}


def test_everything_public_has_its_place(documented: set[str]) -> None:
    wanted = [f"genmeasures.api.{name}" for name in genmeasures.__all__]
    wanted += [f"genmeasures.plugin.{name}" for name in genmeasures.plugin.__all__ if name not in _ALIASES]
    assert [name for name in wanted if name not in documented] == []


def test_every_component_is_described(documented: set[str]) -> None:
    """With each of its options named in the text."""
    described = {name.rpartition(".")[2] for name in documented}
    for info in registry().plugins:
        for _, cls in info.components:
            assert cls.__name__ in described, cls
            text = inspect.getdoc(cls) or ""
            silent = [name for name in cls.option_names() if not re.search(rf"\b{name}\b", text)]
            assert not silent, f"{cls.__name__}: {silent}"


_ALIASES = {"SPLITS", "ModelValue", "Register", "Split", "TaskKind", "Values", "hookimpl"} | {
    *genmeasures.labelers.__all__,
    *genmeasures.plugin._LAZY,
}
"""Labelers and tools for reports, which have a page of their own, and what needs no page: a constant, unions, a
protocol of the hooks and pluggy's marker."""
