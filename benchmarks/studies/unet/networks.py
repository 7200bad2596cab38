"""The study's networks, loaded and never trained, and the features that the library measures of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from genmeasures_unet import UNetSegmentation, conf
from genmeasures_unet.training import load, metrics
from omegaconf import OmegaConf
from torch import Tensor, nn

import genmeasures
from genmeasures.extractors import ReceptiveField
from genmeasures.interfaces import FeatureBatch, FeatureMeasure, Labeler, Layer, Pass, Variable

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


@dataclass
class Kept:
    """What :class:`Features` kept, by layer."""

    projected: dict[str, Tensor] = field(default_factory=dict)
    """float64 (n, d): training vectors under the layer's PCA."""
    labels: dict[str, Tensor] = field(default_factory=dict)
    """int64 (n,)."""

    # The engine copies measures for each layer; all copies are to fill the same object.
    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        return "Kept()"


class Features(FeatureMeasure):
    """Keeps the projected training vectors and their labels, as the measures of the library are given them.

    kept: where. labeler: whose labels; None is the one that fits the targets.
    """

    name = "features"
    variables = (Variable("features", "number of vectors kept", 0),)

    def __init__(self, kept: Kept, labeler: Labeler | None = None) -> None:
        self.kept = kept
        self.labeler = labeler

    @property
    def passes(self) -> tuple[Pass, ...]:
        return (Pass("train", "projected", "labels"),)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._name = layer.name
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, batch: FeatureBatch) -> None:
        assert self.labeler is not None
        self._parts.append((batch.rank.clone(), batch.projected.clone(), batch.labels(self.labeler).clone()))

    def compute(self) -> float:
        rank, projected, labels = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        order = rank.argsort()
        self.kept.projected[self._name] = projected[order]
        self.kept.labels[self._name] = labels[order]
        return float(len(rank))


def features(
    model: nn.Module, train: Any, components: int, labeler: Labeler | None = None, layers: list[str] | None = None
) -> tuple[Kept, Any]:
    """Projected training pixels and labels of a network, and the Davies–Bouldin indices by layer (layers,)."""
    kept = Kept()
    ds = genmeasures.measure(
        {"network": model},
        train,
        measures=["davies_bouldin", Features(kept, labeler)],
        extractor=ReceptiveField(components=components),
        layers=layers,
    )
    return kept, ds.davies_bouldin.values[0]
