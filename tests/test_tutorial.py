"""The code of the tutorials runs, one block after another, and gives what the text says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import kendalltau

from genmeasures.cli.main import main
from genmeasures.testing import run_checks

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (TUTORIALS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module as any other, so that what it defines can be pickled."""
    module = ModuleType("tutorial")
    monkeypatch.setitem(sys.modules, "tutorial", module)
    return module


def test_the_first_measure(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    page = "first-measure.md"
    assert len(blocks(page)) == 7
    for block in blocks(page):
        exec(compile(block, page, "exec"), vars(run))
    assert list(run.ds["sparsity"].dims) == ["model", "layer"]
    assert float(run.ds["sparsity"][0, 0]) > 0.1
    for measure in (run.SpectralNorms(), run.LogLoss()):
        assert [one.message for one in run_checks(measure) if one.status == "failed"] == []
    assert 2 < float(run.losses["log_loss"][0]) < 3
    out = capsys.readouterr().out
    assert "✓" in out
    assert "✗" not in out
    assert [check.message for check in run_checks(run.Sparsity(threshold=0.1)) if check.status == "failed"] == []


def test_the_first_measure_is_what_new_plugin_makes(tmp_path: Path) -> None:
    page = "first-measure.md"
    assert main(["new-plugin", "sparsity", "--folder", str(tmp_path)]) == 0
    folder = tmp_path / "genmeasures-sparsity"
    assert (folder / "genmeasures_sparsity.py").read_text() == blocks(page)[0]
    assert [(folder / "pyproject.toml").read_text()] == blocks(page, "toml")
    texts = [path.read_text() for path in folder.iterdir()]
    assert len(texts) == 3
    assert sum(bool(line.strip()) for text in texts for line in text.splitlines()) <= 40


@pytest.mark.slow
def test_the_next_site(run: ModuleType) -> None:
    """The figures of the text, to what other processors may change in sixteen trainings."""
    page = "next-site.md"
    for block in blocks(page):
        exec(compile(block, page, "exec"), vars(run))
    table = run.table.set_index("measure")
    (printed,) = re.findall(r"confidence_unweighted +16 +(-0\.\d+)", (TUTORIALS / page).read_text(encoding="utf-8"))
    # A step of tau for 16 models is 1/60: twelve pairs may change places.
    assert abs(table.loc["confidence_unweighted", "kendall"] - float(printed)) < 0.2
    found = run.found
    values = run.genmeasures.aggregate(found)["confidence_unweighted"].values
    tau = kendalltau(values, found["test_accuracy"].values).statistic
    assert tau < -0.5
    best = float(found["test_accuracy"].sel(model=run.ranked.index[:3]).max())
    assert (found["test_accuracy"].values > best).sum() <= 1
    assert np.isfinite(run.beyond["spearman"]).all()


def test_your_checkpoints(run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "checkpoints.md"
    monkeypatch.chdir(tmp_path)
    training, reading = blocks(page)
    exec(compile(training, page, "exec"), vars(run))
    (manifest,) = blocks(page, "yaml")
    (tmp_path / "nets" / "manifest.yaml").write_text(manifest)
    (command,) = re.findall(r"```\ngenmeasures (run .*)\n```", (TUTORIALS / page).read_text(encoding="utf-8"))
    assert main(command.split()) == 0
    exec(compile(reading, page, "exec"), vars(run))
    assert run.ds.sizes["model"] == 8
    assert set(run.ds["model_status"].values) == {"ok"}


def test_other_components(run: ModuleType) -> None:
    page = "other-components.md"
    for block in blocks(page):
        exec(compile(block, page, "exec"), vars(run))
    assert np.isfinite(run.ds["davies_bouldin"].values).all()
    registered: list[type] = []
    run.genmeasures_register(registered.append)
    assert registered == [run.Parity, run.Median]
    for component in registered:
        assert [check for check in run_checks(component()) if check.status == "failed"] == []
