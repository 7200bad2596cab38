"""Pseudo-pseudo-labels: clusters of the layer's own output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.interfaces import FeatureLabeler, is_count, require
from genmeasures.statistics.kmeans import assign, kmeans


class KMeans(FeatureLabeler):
    """k-means on the projected training vectors; new vectors go to the nearest center (Rajagopal et al. 2021, 2.3.1).

    Args:
        k: Number of clusters.
        restarts: Number of k-means++ starts, of which the best counts.
        repeats: Number of clusterings from different random seeds, whose mean and standard error are given. With more
            than one, ``davies_bouldin`` and
            ``roughness`` are the mean over them, with the standard error of that mean as a variable of its own
            (``roughness_se``). The label is then Σ_r label_r · k^r, and :meth:`clusterings` returns each of them.
    """

    name = "kmeans"

    def __init__(self, k: int = 5, restarts: int = 10, repeats: int = 1) -> None:
        require(is_count(k, 2), self, f"k must be an integer ≥ 2, not {k!r}")
        require(is_count(restarts), self, f"restarts must be an integer ≥ 1, not {restarts!r}")
        most = int(62 * math.log(2) / math.log(k))
        valid = is_count(repeats) and repeats <= most
        require(valid, self, f"repeats must be an integer from 1 to {most} for k={k}, not {repeats!r}")
        self.k = k
        self.restarts = restarts
        self.repeats = repeats
        self._centers: list[Tensor] = []

    def fit(self, projected: Tensor, generator: torch.Generator) -> None:
        if len(projected) < self.k:
            raise Undefined(f"{len(projected)} training vectors are too few for {self.k} clusters")
        self._centers = []
        for _ in range(self.repeats):
            centers = kmeans(projected, self.k, generator, self.restarts).centers
            if len(centers) < self.k:
                raise Undefined(
                    f"the training vectors take {len(centers)} different values, too few for {self.k} clusters"
                )
            self._centers.append(centers)

    def label(self, projected: Tensor) -> Tensor:
        assert self._centers, "fit comes before label"
        labels = assign(projected, self._centers[0])
        for place, centers in enumerate(self._centers[1:], 1):
            labels += assign(projected, centers) * self.k**place
        return labels

    def clusterings(self, labels: Tensor) -> list[Tensor]:
        """Of labels int64 (n,), those of each of the clusterings.

        Example:
            >>> [one.tolist() for one in KMeans(k=5, repeats=2).clusterings(torch.tensor([3, 14]))]
            [[3, 4], [0, 2]]
        """
        return [labels // self.k**place % self.k for place in range(self.repeats)]
