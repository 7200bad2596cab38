"""Pseudo-pseudo-labels: clusters of the layer's own output."""

from __future__ import annotations

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.interfaces import FeatureLabeler, is_count, require
from genmeasures.statistics.kmeans import assign, kmeans


class KMeans(FeatureLabeler):
    """k-means on the projected training vectors; new vectors go to the nearest centre (Rajagopal et al. 2021, 2.3.1).

    k: number of clusters. restarts: k-means++ starts, of which the best counts.
    """

    name = "kmeans"

    def __init__(self, k: int = 5, restarts: int = 10) -> None:
        require(is_count(k, 2), self, f"k must be a whole number ≥ 2, not {k!r}")
        require(is_count(restarts), self, f"restarts must be a whole number ≥ 1, not {restarts!r}")
        self.k = k
        self.restarts = restarts
        self._centres: Tensor | None = None

    def fit(self, projected: Tensor, generator: torch.Generator) -> None:
        if len(projected) < self.k:
            raise Undefined(f"{len(projected)} training vectors are too few for {self.k} clusters")
        centres = kmeans(projected, self.k, generator, self.restarts).centres
        if len(centres) < self.k:
            raise Undefined(f"the training vectors take {len(centres)} different values, too few for {self.k} clusters")
        self._centres = centres

    def label(self, projected: Tensor) -> Tensor:
        assert self._centres is not None, "fit comes before label"
        return assign(projected, self._centres)
