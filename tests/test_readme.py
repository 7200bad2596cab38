"""What the README and the plugin module show works as it stands there."""

import re
from pathlib import Path

import numpy as np
import torch

import genmeasures.plugin
from genmeasures import measure
from genmeasures.registry import registry

README = Path(__file__).resolve().parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [code for name, code in fences if name == language]


def test_the_python_example_runs() -> None:
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    table = names["table"]
    assert list(table["measure"].unique()) == [
        "davies_bouldin",
        "roughness",
        "roughness_projected",
        "confidence",
        "confidence_unweighted",
        "confidence_published",
        "confidence_rank",
        "confidence_shift",
    ]
    assert (table["n"] == 4).all()


def test_the_measure_in_ten_lines_runs() -> None:
    text = genmeasures.plugin.__doc__ or ""
    code = "\n".join(line[4:] for line in text.split("::\n")[1].split("\nand the entry point")[0].splitlines())
    names: dict[str, object] = {}
    exec(compile(code, "plugin", "exec"), names)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    net = torch.nn.Sequential(torch.nn.Linear(3, 50), torch.nn.ReLU())
    ds = measure([net], test=(x,), measures=[names["Sparsity"]()])
    np.testing.assert_allclose(ds.sparsity.item(), float((net(x) == 0).float().mean()))


def test_every_component_and_setting_of_the_readme_exists() -> None:
    text = README.read_text()
    for kind in ("extractor", "labeler", "measure", "task"):
        for name in registry().names(kind):
            assert f"`{name}`" in text, f"the README says nothing of the {kind} {name}"
    commands = re.findall(r"^genmeasures ([\w-]+)", "\n".join(blocks("")), flags=re.MULTILINE)
    assert set(commands) == {"run", "estimate", "rank", "collect", "plot", "plugins", "check", "new-plugin"}
