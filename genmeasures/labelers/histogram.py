"""Bins of continuous targets."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmeasures.data.keys import mix
from genmeasures.errors import DataError
from genmeasures.interfaces import TargetLabeler, is_count, one_of, require
from genmeasures.labelers.downsampled import pool, resized
from genmeasures.statistics.kmeans import assign, kmeans

_VALUES_PER_INPUT = 4096
_MOST_VALUES = 1 << 22
_NEARLY_EMPTY = 10
"""A bin with less than one of so many parts of an equal share is nearly empty."""


class Histogram(TargetLabeler):
    """Continuous targets, averaged over the area of each output position and binned.

    The edges are fitted on the training targets; values beyond them are in the outermost bins. For targets of several
    channels, a k-means quantizer with ``bins`` centers is fitted instead (Rajagopal et al. 2021, section 2.2.2; an
    integer label is a special case). Positions without a label (NaN, or −1 in integers) are left out of edges and
    averages; an area of such positions alone gets −1.

    Args:
        bins: number of bins.
        edges: "uniform" between the extremes of the training targets, "quantile" at their quantiles, or "auto". "auto"
            takes uniform edges unless they leave more than half of the bins nearly empty, as for heavy-tailed targets,
            and quantiles leave fewer so. The status of values has a note in either case, unless each of a few distinct
            targets has a bin of its own. A bin is nearly empty if it has less than a tenth of an equal share of the
            training targets.

    Raises:
        OptionError: an option is invalid.

    Example:
        >>> labeler = Histogram(bins=2)
        >>> labeler.observe(torch.tensor([[0.0], [1.0]]))
        >>> labeler.fit(torch.Generator())
        >>> labeler.label(torch.tensor([[0.2], [0.7], [9.0]]), ()).tolist()
        [[0], [1], [1]]

        A heavy tail would leave all but the first of ten uniform bins nearly empty:

        >>> labeler = Histogram()
        >>> labeler.observe(torch.linspace(-40, 40, 1001).exp()[:, None])
        >>> labeler.fit(torch.Generator())
        >>> labeler.note
        'quantiles as edges of the 10 bins, 9 of which would be nearly empty between uniform edges'
    """

    name = "histogram"
    needs_fit = True

    def __init__(self, bins: int = 10, edges: str = "auto") -> None:
        require(is_count(bins, 2), self, f"bins must be an integer ≥ 2, got {bins!r}")
        one_of(self, "edges", edges, ("auto", "uniform", "quantile"))
        self.bins = bins
        self.edges = edges
        self._seen: list[Tensor] = []
        self._kept = _VALUES_PER_INPUT
        self._low = float("inf")
        self._high = float("-inf")
        self._inner: Tensor | None = None
        self._centers: Tensor | None = None

    def observe(self, targets: Tensor) -> None:
        numbers = _numbers(targets)
        values = numbers.flatten(2) if numbers.dim() > 2 else numbers[:, :, None]
        unlabeled = torch.isnan(values)
        labeled = values[~unlabeled] if bool(unlabeled.any()) else values
        if not labeled.numel():
            return
        self._low = min(self._low, float(labeled.min()))
        self._high = max(self._high, float(labeled.max()))
        if self.edges != "uniform" or values.shape[1] > 1:
            positions = _spread(values.shape[2])[: self._kept]
            self._seen.append(values[:, :, positions.to(values.device)].cpu())
            # Every input is thinned in the same way, so that the order of the data does not matter.
            while self._kept > 1 and sum(seen.numel() for seen in self._seen) > _MOST_VALUES:
                self._kept //= 2
                self._seen = [seen[:, :, : self._kept].clone() for seen in self._seen]

    def fit(self, generator: torch.Generator) -> None:
        if self._seen and self._seen[0].shape[1] > 1:
            points = torch.cat([seen.transpose(1, 2).flatten(0, 1) for seen in self._seen])
            points = points[~torch.isnan(points).any(1)]
            points = points[torch.from_numpy(np.lexsort(points.T.numpy()))]
            self._centers = kmeans(points, self.bins, generator).centers
        elif self._low <= self._high:
            self._inner = torch.from_numpy(self._edges())
        self._seen = []

    def _edges(self) -> NDArray[np.float64]:
        """The inner edges of the bins."""
        uniform: NDArray[np.float64] = np.histogram_bin_edges([self._low, self._high], self.bins)[1:-1]
        if self.edges == "uniform":
            return uniform
        values = torch.cat([seen[~torch.isnan(seen)] for seen in self._seen]).numpy()
        quantiles: NDArray[np.float64] = np.unique(np.quantile(values, np.arange(1, self.bins) / self.bins))
        if self.edges == "quantile":
            return quantiles
        empty, others = (self._nearly_empty(values, edges) for edges in (uniform, quantiles))
        if 2 * empty <= self.bins:
            return uniform
        if others >= empty:
            counts = self._counts(values, uniform)
            if len(np.unique(values)) > np.count_nonzero(counts):  # else each value has a bin of its own
                self.note = (
                    f"one of the {self.bins} bins has {counts.max() / len(values):.1%} of the training targets, "
                    f"{empty} are nearly empty, and quantiles as edges leave no fewer so"
                )
            return uniform
        self.note = (
            f"quantiles as edges of the {self.bins} bins, {empty} of which would be nearly empty between uniform edges"
        )
        return quantiles

    def _counts(self, values: NDArray[np.float64], inner: NDArray[np.float64]) -> NDArray[np.int64]:
        """Number of values in each bin."""
        return np.bincount(np.searchsorted(inner, values, side="right"), minlength=self.bins)

    def _nearly_empty(self, values: NDArray[np.float64], inner: NDArray[np.float64]) -> int:
        """Number of bins with less than a tenth of an equal share of the values."""
        return int((self._counts(values, inner) * self.bins * _NEARLY_EMPTY < len(values)).sum())

    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        if self._inner is None and self._centers is None:
            raise DataError("histogram labels are fitted on the training targets, none of which has a label")
        values = _numbers(targets)
        unlabeled = torch.isnan(values).any(1, keepdim=True)
        any_unlabeled = bool(unlabeled.any())
        if any_unlabeled:
            values = values.masked_fill(unlabeled, 0.0)
        if values.dim() > 2:
            size = resized(values.dim() - 2, spatial)
            values = pool(values, size, "avg").flatten(2)
            if any_unlabeled:
                labeled = pool((~unlabeled).double(), size, "avg").flatten(2)
                unlabeled = labeled == 0
                values = values / labeled.masked_fill(unlabeled, 1.0)
        else:
            values = values[:, :, None]
        labels = self._labels(values)
        return labels.masked_fill(unlabeled.flatten(1), -1) if any_unlabeled else labels

    def _labels(self, values: Tensor) -> Tensor:
        """int64 (B, P) for values (B, C, P)."""
        if self._centers is not None:
            points = values.transpose(1, 2)
            return assign(points.flatten(0, 1), self._centers.to(values.device)).view(points.shape[:2])
        assert self._inner is not None
        return torch.bucketize(values[:, 0].contiguous(), self._inner.to(values.device), right=True)


def _numbers(targets: Tensor) -> Tensor:
    """float64, NaN without a label."""
    values = targets.to(torch.float64)
    return values if targets.is_floating_point() else values.masked_fill(targets < 0, math.nan)


@lru_cache(maxsize=8)
def _spread(size: int) -> Tensor:
    """Positions to estimate all positions by, in pseudorandom order."""
    return torch.from_numpy(np.argsort(mix(np.arange(size, dtype=np.uint64)))[:_VALUES_PER_INPUT].copy())
