"""The direction of imports, as the documentation states it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "genmeasures"


def order() -> dict[str, int]:
    """Line of each module or package in the block under "Import order"."""
    page = (ROOT / "docs" / "guide" / "how-it-works.md").read_text(encoding="utf-8")
    block = page.partition("## Import order")[2].split("```")[1]
    return {name: number for number, line in enumerate(block.strip().splitlines()) for name in line.split()}


def imported(source: str) -> Iterator[str]:
    """Modules and packages of genmeasures that a source file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "genmeasures":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("genmeasures."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("genmeasures."))


def test_every_package_has_its_line() -> None:
    packages = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert packages - set(order()) - {"conf", "recipes", "template"} == set()


@pytest.mark.parametrize("name", order())
def test_imports_come_from_the_lines_above(name: str) -> None:
    lines = order()
    files = list((PACKAGE / name).rglob("*.py")) or [PACKAGE / f"{name}.py"]
    names = {other for file in files for other in imported(file.read_text(encoding="utf-8"))} - {name}
    assert [other for other in names if other in lines and lines[other] >= lines[name]] == []


def test_what_counts_as_an_import() -> None:
    source = (
        "import genmeasures.data.keys\nfrom genmeasures import run\ndef f():\n    from genmeasures.cli.main import x\n"
    )
    assert list(imported(source)) == ["data", "run", "cli"]
