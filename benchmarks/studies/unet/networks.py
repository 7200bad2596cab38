"""The study's networks, loaded and never trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genmeasures_unet import UNetSegmentation, conf
from genmeasures_unet.training import load, metrics
from omegaconf import OmegaConf
from torch import nn

EXPERIMENT = Path(conf.__file__).parent / "experiment" / "unet_hippocampus.yaml"
"""The recipe of the study."""


def recipe(experiment: str) -> dict[str, Any]:
    """The options of the task in the recipe of this name.

    The environment variable ``GENMEASURES_HIPPOCAMPUS`` names the volumes.
    """
    path = EXPERIMENT.with_name(f"{experiment}.yaml")
    options: Any = OmegaConf.to_container(OmegaConf.load(path).task, resolve=True)
    return dict(options)


def read_task(experiment: Path, **options: Any) -> UNetSegmentation:
    """The task of a recipe, whose volumes the environment variable ``GENMEASURES_HIPPOCAMPUS`` names."""
    given: Any = OmegaConf.to_container(OmegaConf.load(experiment).task, resolve=True)
    return UNetSegmentation(**{**given, **options})


def network(task: UNetSegmentation, objective: str, seed: int, epoch: int) -> tuple[nn.Module, dict[str, float]]:
    """A trained network and its scores. Raises FileNotFoundError or ValueError where its checkpoint is no good."""
    one = UNetSegmentation(**{**task.options(), "objectives": [objective], "seeds": [seed]})
    cases = one.cases()
    (run,) = one.runs(cases)
    return load(run, epoch, cases), metrics(run, epoch) or {}
