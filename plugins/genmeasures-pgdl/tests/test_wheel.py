"""The wheel of the plugin contains its configs and its entry point."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

PLUGIN = Path(__file__).resolve().parents[1]


def test_wheel_contains_configs_and_entry_point(tmp_path: Path) -> None:
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(tmp_path), str(PLUGIN)]
    subprocess.run(command, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("genmeasures_pgdl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "pgdl = genmeasures_pgdl" in archive.read(entry_points).decode()
    conf = PLUGIN / "src" / "genmeasures_pgdl" / "conf"
    configs = sorted(path.relative_to(conf.parents[1]).as_posix() for path in conf.rglob("*.yaml"))
    assert configs == ["genmeasures_pgdl/conf/experiment/pgdl.yaml", "genmeasures_pgdl/conf/task/pgdl.yaml"]
    assert set(configs) <= set(names)
    assert "genmeasures_pgdl/py.typed" in names


def test_imports_only_the_public_interface() -> None:
    """A plugin depends on ``genmeasures``, ``genmeasures.plugin`` and ``genmeasures.testing`` only."""
    modules = sorted((PLUGIN / "src").rglob("*.py"))
    assert len(modules) > 10
    for module in modules:
        tree = ast.parse(module.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.partition(".")[0] == "genmeasures":
                    assert name in ("genmeasures", "genmeasures.plugin", "genmeasures.testing"), module
