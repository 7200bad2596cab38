"""A small task of checkpoints on disk, for the tests of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

MODULE = """
import time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, wait=0.0):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)
        self.wait = wait

    def forward(self, x):
        time.sleep(self.wait)
        return self.fc2(torch.relu(self.fc1(x)))
"""


def write_task(folder: Path, seeds: Mapping[str, int], *, module: str, shift: float = 0.0, wait: float = 0.0) -> Path:
    """Networks by name, their weights by seed; ``module`` is the name of the file with their code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(MODULE)
    x = np.random.default_rng(0).normal(size=(60, 6)).astype("f4") + np.float32(shift)
    np.savez(folder / "d.npz", x=x, y=np.arange(60) % 4)
    models: dict[str, Any] = {}
    for number, (name, seed) in enumerate(seeds.items()):
        write_weights(folder / f"w{number}.pt", seed)
        metrics = {"train_accuracy": 0.9, "test_accuracy": 0.5 + number / 20}
        models[name] = {"weights": f"w{number}.pt", **metrics, "hparams": {"number": number}}
    split = {"npz": "d.npz", "x": "x", "y": "y"}
    manifest = {"factory": f"{module}.Net", "python_path": ".", "data": {"train": split, "test": split}}
    write_manifest(folder, {**manifest, "factory_kwargs": {"wait": wait}, "models": models})
    return folder


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    (folder / "manifest.yaml").write_text(yaml.safe_dump(dict(manifest), allow_unicode=True, sort_keys=False))


def read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((folder / "manifest.yaml").read_text())
    return manifest


def write_weights(file: Path, seed: int) -> None:
    torch.manual_seed(seed)
    weights = {
        f"{name}.{kind}": value for name, layer in LAYERS.items() for kind, value in layer().state_dict().items()
    }
    torch.save(weights, file)


LAYERS = {"fc1": lambda: nn.Linear(6, 8), "fc2": lambda: nn.Linear(8, 4)}


@pytest.fixture(scope="session")
def folders() -> SimpleNamespace:
    """The functions that write and change such a task."""
    return SimpleNamespace(
        write_task=write_task, write_manifest=write_manifest, read_manifest=read_manifest, write_weights=write_weights
    )
