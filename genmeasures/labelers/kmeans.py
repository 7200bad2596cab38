"""Clusters of the projected output of a layer."""

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
        k: number of clusters.
        restarts: number of k-means++ starts, of which the best is taken.
        repeats: number of clusterings from different random numbers. With more than one, ``davies_bouldin`` and
            ``roughness`` are means over them, with the standard error as another variable (``roughness_se``). The label
            is then Σ_r label_r · k^r, which :meth:`clusterings` takes apart.

    Raises:
        OptionError: an option is invalid.

    Example:
        >>> labeler, points = KMeans(k=2), torch.tensor([[0.0], [0.1], [5.0], [5.1]], dtype=torch.float64)
        >>> labeler.fit(points, torch.Generator().manual_seed(0))
        >>> first, second, third, fourth = labeler.label(points).tolist()
        >>> first == second != third == fourth
        True
    """

    name = "kmeans"

    def __init__(self, k: int = 5, restarts: int = 10, repeats: int = 1) -> None:
        require(is_count(k, 2), self, f"k must be an integer ≥ 2, got {k!r}")
        require(is_count(restarts), self, f"restarts must be an integer ≥ 1, got {restarts!r}")
        most = int(62 * math.log(2) / math.log(k))
        valid = is_count(repeats) and repeats <= most
        require(valid, self, f"repeats must be an integer from 1 to {most} for k={k}, got {repeats!r}")
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
        for index, centers in enumerate(self._centers[1:], 1):
            labels += assign(projected, centers) * self.k**index
        return labels

    def clusterings(self, labels: Tensor) -> list[Tensor]:
        """The labels of each clustering.

        Args:
            labels: int64 (n,), as of :meth:`label`.

        Example:
            >>> [part.tolist() for part in KMeans(k=5, repeats=2).clusterings(torch.tensor([3, 14]))]
            [[3, 4], [0, 2]]
        """
        return [labels // self.k**index % self.k for index in range(self.repeats)]
