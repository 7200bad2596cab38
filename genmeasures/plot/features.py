"""Projected training vectors of a model with their labels, as the engine gives them to measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genmeasures.api import measure
from genmeasures.interfaces import Extractor, FeatureBatch, FeatureMeasure, Labeler, Layer, Measure, Pass, Variable
from genmeasures.labelers import KMeans
from genmeasures.measures import DaviesBouldin


@dataclass(frozen=True)
class Projected:
    """The projected training vectors of a layer."""

    points: Tensor
    """float64 (n, d)."""
    labels: Tensor
    """int64 (n,)."""
    labeler: Labeler
    """Where the labels are from."""


@dataclass(frozen=True)
class LayerFeatures:
    """What a figure shows of a layer."""

    name: str
    """Name of the layer."""
    projected: Projected | None
    """None where the layer has none."""
    davies_bouldin: float
    """Davies–Bouldin index of the labels, NaN where it is undefined or not computed."""
    status: str
    """Why there is no value, or "ok"."""


@dataclass
class _Kept:
    """The vectors that :class:`_Features` has kept, by layer."""

    by_layer: dict[str, Projected] = field(default_factory=dict)

    # The engine copies measures for each layer, and all copies fill the same object.
    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        return "_Kept()"


class _Features(FeatureMeasure):
    """Keeps what a layer is fitted on: its projected vectors and their labels, in the order of their ranks."""

    name = "features"
    variables = (Variable("features", "number of vectors kept", 0),)
    passes = (Pass("fit", "projected", "labels"),)

    def __init__(self, kept: _Kept, labeler: Labeler | None = None) -> None:
        self.kept = kept
        self.labeler = labeler

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._name = layer.name
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, batch: FeatureBatch) -> None:
        assert self.labeler is not None
        labels = batch.labels(self.labeler)
        if isinstance(self.labeler, KMeans):
            labels = self.labeler.clusterings(labels)[0]
        self._parts.append((batch.rank.cpu(), batch.projected.cpu().clone(), labels.cpu().clone()))

    def compute(self) -> float:
        assert self.labeler is not None
        if self._parts:
            rank, points, labels = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
            order = rank.argsort()
            self.kept.by_layer[self._name] = Projected(points[order], labels[order], self.labeler)
        return float(sum(len(rank) for rank, _, _ in self._parts))


def layer_features(
    model: nn.Module | Callable[[], nn.Module],
    train: Any,
    labelers: Mapping[str, Labeler | None],
    extractor: str | Extractor,
    layers: Sequence[str | int] | None,
    options: Mapping[str, Any],
    index: bool = False,
) -> dict[str, list[LayerFeatures]]:
    """Compute the projected training vectors of a model, with the labels of several labelers.

    Args:
        model: the model, or a function that builds it.
        train: its training data, in any form of :func:`genmeasures.api.measure`.
        labelers: labelers by a name for each, an identifier; None is the one that fits the targets.
        extractor: extractor, or its name; the vectors have its number of components.
        layers: names or indices of layers; None for all.
        options: further options of :func:`genmeasures.api.measure`.
        index: whether to compute the Davies–Bouldin indices.

    Returns:
        For each labeler the layers in the order of the forward pass.

    Raises:
        OptionError: there is no such layer.
        ModelError: the model cannot be measured.

    Example:
        >>> net, inputs = nn.Linear(2, 2), torch.arange(12.0).reshape(6, 2)
        >>> [layer] = layer_features(net, (inputs,), {"two": KMeans(2)}, "receptive_field", None, {})["two"]
        >>> layer.projected.points.shape, layer.projected.labels.unique().tolist()
        (torch.Size([6, 2]), [0, 1])
    """
    kept = {name: _Kept() for name in labelers}
    measures: dict[str, str | Measure] = {}
    for name, labeler in labelers.items():
        measures[f"features_{name}"] = _Features(kept[name], labeler)
        if index:
            measures[f"index_{name}"] = DaviesBouldin(labeler)
    settings: dict[str, Any] = {"errors": "raise", **options}  # of a single model, an error is no status
    ds = measure({"model": model}, train, measures=measures, extractor=extractor, layers=layers, **settings)
    layer_names = [str(name) for name in ds["layer_name"].values[0]]
    found: dict[str, list[LayerFeatures]] = {}
    for name in labelers:
        indices = ds[f"index_{name}"].values[0] if index else [math.nan] * len(layer_names)
        statuses = ds[f"features_{name}_status"].values[0]
        found[name] = [
            LayerFeatures(layer, kept[name].by_layer.get(layer), float(value), str(status))
            for layer, value, status in zip(layer_names, indices, statuses, strict=True)
        ]
    return found


def drawn_points(features: Projected, points: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draw some of the vectors for a figure.

    Args:
        features: the vectors of a layer.
        points: maximum number of vectors.
        seed: of the choice.

    Returns:
        float64 (n, d) and int64 (n,): vectors in random order, so that no label covers the others, and their labels.

    Example:
        >>> features = Projected(torch.eye(3).double(), torch.arange(3), KMeans(2))
        >>> chosen, labels = drawn_points(features, 2, seed=0)
        >>> chosen.shape, labels.shape
        ((2, 3), (2,))
    """
    chosen = torch.randperm(len(features.points), generator=torch.Generator().manual_seed(seed))[:points]
    return features.points[chosen].numpy(), features.labels[chosen].numpy()
