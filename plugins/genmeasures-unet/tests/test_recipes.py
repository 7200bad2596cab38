"""The experiments of this plugin compose, and read the path of the volumes from the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


@pytest.mark.parametrize(
    ("experiment", "task"),
    [
        ("unet_hippocampus", "UNetSegmentation"),
        ("unet_few_cases", "UNetSegmentation"),
        ("unet_denoising", "UNetDenoising"),
    ],
)
def test_recipes_compose(experiment: str, task: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "genmeasures", "run", f"experiment={experiment}", "--cfg", "job", "--resolve"]
    environment = {**os.environ, "GENMEASURES_HIPPOCAMPUS": "/data/volumes.npz"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["task"]["_target_"] == f"genmeasures_unet.{task}"
    assert config["task"]["volumes"] == "/data/volumes.npz"
    assert config["task"]["patch"] == [24, 32, 16]
    assert config["output"] == f"results/{experiment}"
