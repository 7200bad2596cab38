"""The tutorial's code runs, one block after another, and the measure that it makes passes the suite as it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from genmeasures.testing import run_checks

TUTORIAL = Path(__file__).parents[1] / "docs" / "first-measure.md"


def test_the_tutorial_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    measure_lines = [line for line in blocks[0].splitlines() if line.strip() and "import" not in line]
    assert len(measure_lines) <= 11  # the class line and ten
    module = ModuleType("tutorial")  # a module as any other, so that what it defines can be pickled
    monkeypatch.setitem(sys.modules, "tutorial", module)
    namespace = vars(module)
    for block in blocks:
        exec(compile(block, str(TUTORIAL), "exec"), namespace)
    ds = namespace["ds"]
    assert list(ds["sparsity"].dims) == ["model", "layer"]
    assert float(ds["sparsity"][0, 0]) > 0.1
    assert [one.message for one in run_checks(namespace["SpectralNorms"]()) if one.status == "failed"] == []
    out = capsys.readouterr().out
    assert "✓" in out
    assert "✗" not in out
