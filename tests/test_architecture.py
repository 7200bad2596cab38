"""The import graph of the package: imports point one way."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import genmeasures

ROOT = Path(genmeasures.__file__).parent


def modules() -> dict[str, Path]:
    """Source files by dotted module name."""
    files = {}
    for file in ROOT.rglob("*.py"):
        parts = ["genmeasures", *file.relative_to(ROOT).with_suffix("").parts]
        files[".".join(parts).removesuffix(".__init__")] = file
    return files


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports when it runs, those of its functions included."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                names.add(member if member in known else node.module)
    return names & set(known)


def test_there_is_no_import_cycle() -> None:
    known = modules()
    graph = {name: imports(file, known) - {name} for name, file in known.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(known)


def test_no_module_imports_the_package_itself() -> None:
    """``genmeasures`` re-exports the highest layer: an import of it from below points upward."""
    known = modules()
    assert [name for name, file in known.items() if "genmeasures" in imports(file, known)] == []


def test_the_engine_imports_no_layer_above_it() -> None:
    above = ("run", "api", "cli", "results", "judging", "report", "registry", "tasks", "kept", "plugin", "testing")
    known = modules()
    for name, file in known.items():
        if name.startswith(("genmeasures.engine", "genmeasures.interfaces", "genmeasures.data", "genmeasures.tracing")):
            assert not {module for module in imports(file, known) if module.split(".")[1] in above}, name
