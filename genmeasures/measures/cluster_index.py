"""Measures that are an index of clusters, in one or two passes over a split."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmeasures.data.keys import mix
from genmeasures.errors import Undefined
from genmeasures.interfaces import FeatureMeasure, Layer, PatchSet, Value, Variable
from genmeasures.labelers import KMeans
from genmeasures.statistics.davies_bouldin import ClusterSpreads, ClusterSums
from genmeasures.statistics.silhouette import silhouette

Spaces: TypeAlias = Mapping[str, Tensor | PatchSet]
"""By variable, the vectors whose distances count."""
INDICES = ("davies_bouldin", "calinski_harabasz", "silhouette")
_SILHOUETTE = 2000
"""Vectors of the subsample whose silhouette is computed, in time quadratic in their number."""


class RankSample:
    """Up to ``size`` vectors of a sample, chosen by a hash of their ranks: the same ones in any order of batches.

    Args:
        size: Number of vectors.
        salt: Of the hash, below 2⁶³.

    Example:
        >>> sample = RankSample(2, salt=0)
        >>> for rank in torch.tensor([[0, 1], [2, 3]]):
        ...     chosen = sample.chosen(rank)
        ...     sample.add(rank[chosen], rank[chosen].float())
        >>> len(sample.result()[0])
        2
    """

    def __init__(self, size: int, salt: int) -> None:
        self._size = size
        self._salt = np.uint64(salt)
        self._keys: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._kept: tuple[Tensor, ...] = ()

    def _hashed(self, rank: Tensor) -> NDArray[np.uint64]:
        return mix(rank.cpu().numpy().astype(np.uint64) ^ self._salt)

    def chosen(self, rank: Tensor) -> Tensor:
        """int64 (m,), ascending: the rows of a batch that belong to the sample by what is known so far.

        Args:
            rank: int64 (n,), ranks of the batch.
        """
        keys = self._hashed(rank)
        if len(self._keys) >= self._size:
            rows = np.nonzero(keys < self._keys.max())[0]
        else:
            rows = np.sort(np.argsort(keys)[: self._size])
        return torch.from_numpy(rows).to(rank.device)

    def add(self, rank: Tensor, *tensors: Tensor) -> None:
        """Add chosen vectors of a batch.

        Args:
            rank: int64 (m,).
            tensors: (m, …) each, what is kept of these vectors.
        """
        keys = np.concatenate([self._keys, self._hashed(rank)])
        kept = self._kept or tuple(tensor[:0] for tensor in tensors)
        order = np.argsort(keys)[: self._size]
        rows = torch.from_numpy(order)
        self._keys = keys[order]
        self._kept = tuple(torch.cat(pair)[rows.to(pair[0].device)] for pair in zip(kept, tensors, strict=True))

    def result(self) -> tuple[Tensor, ...]:
        """What is kept of the chosen vectors, in an order that depends on their ranks alone."""
        return self._kept


class Sampled:
    """Silhouette of a subsample."""

    def __init__(self, salt: int) -> None:
        self._sample = RankSample(_SILHOUETTE, salt)

    def add(self, vectors: Tensor | PatchSet, labels: Tensor, rank: Tensor) -> None:
        rows = self._sample.chosen(rank)
        if len(rows):
            picked = vectors.select(rows).unfold() if isinstance(vectors, PatchSet) else vectors[rows]
            self._sample.add(rank[rows], picked.clone(), labels[rows])

    def end_pass(self) -> None:
        """The vectors are chosen in a single pass."""

    def value(self) -> float:
        kept = self._sample.result()
        if not kept:
            raise Undefined("no vectors in the sample")
        vectors, labels = kept
        return silhouette(vectors, labels)


class Moments:
    """Davies–Bouldin or Caliński–Harabasz index, from the centroids and the distances to them."""

    def __init__(self, index: str, spread: str) -> None:
        self.state: ClusterSums | ClusterSpreads = ClusterSums()
        self._index = index
        self._spread = spread

    def add(self, vectors: Tensor | PatchSet, labels: Tensor, rank: Tensor) -> None:
        self.state.add(vectors, labels)

    def add_projecting(self, patches: PatchSet, labels: Tensor, mean: Tensor, components: Tensor) -> Tensor:
        """Add patches in the second pass; returns their projections, float64 (n, d)."""
        assert isinstance(self.state, ClusterSpreads)
        return self.state.add_projecting(patches, labels, mean, components)

    def projected(self, mean: Tensor, components: Tensor) -> Moments:
        """The index of the projections in the second pass: the projected centroids are their centroids."""
        assert isinstance(self.state, ClusterSpreads)
        other = Moments(self._index, self._spread)
        other.state = self.state.projected(mean, components)
        return other

    def end_pass(self) -> None:
        if isinstance(self.state, ClusterSums):
            self.state = self.state.result()

    def value(self) -> float:
        assert isinstance(self.state, ClusterSpreads)
        if self._index == "davies_bouldin":
            return self.state.davies_bouldin(self._spread)
        return self.state.calinski_harabasz()


class ClusterIndex(FeatureMeasure):
    """Index of labeled vectors, in two passes over a split, or in one for the silhouette."""

    spread: str
    index: str = "davies_bouldin"

    def _set_variables(self) -> None:
        """Adapt the variables to the index, with the standard error if the labeler makes several clusterings."""
        own = [_of_index(variable, self.index) for variable in type(self).variables]
        errors = []
        if isinstance(self.labeler, KMeans) and self.labeler.repeats > 1:
            errors = [
                Variable(
                    f"{variable.name}_se",
                    f"standard error of {variable.long_name}, over {self.labeler.repeats} random seeds of k-means",
                    bounds=(0, math.inf),
                    scale_invariant=variable.scale_invariant,
                    auxiliary=True,
                )
                for variable in own
            ]
        vars(self)["variables"] = (*own, *errors)

    @property
    def _passes_over_split(self) -> int:
        return 1 if self.index == "silhouette" else 2

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._salt = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        self._states: dict[str, list[Sampled | Moments]] = {}

    def _add(self, spaces: Spaces, labels: Tensor, rank: Tensor) -> None:
        """Add a batch."""
        clusterings = self._clusterings(labels)
        if not self._states:
            self._states = {name: self._new_states(len(clusterings)) for name in spaces}
        for name, vectors in spaces.items():
            for state, clustering in zip(self._states[name], clusterings, strict=True):
                state.add(vectors, clustering, rank)

    def _clusterings(self, labels: Tensor) -> Sequence[Tensor]:
        return self.labeler.clusterings(labels) if isinstance(self.labeler, KMeans) else [labels]

    def _new_states(self, count: int) -> list[Sampled | Moments]:
        if self.index == "silhouette":
            return [Sampled(self._salt) for _ in range(count)]
        return [Moments(self.index, self.spread) for _ in range(count)]

    def end_pass(self) -> None:
        for states in self._states.values():
            for state in states:
                state.end_pass()

    def compute(self) -> dict[str, float | Value | Undefined]:
        if not self._states:
            raise Undefined("no vectors in the sample")
        values: dict[str, float | Value | Undefined] = {}
        for name, states in self._states.items():
            values |= _summary(name, states)
        return values


def _summary(name: str, states: Sequence[Sampled | Moments]) -> dict[str, float | Value | Undefined]:
    """The value of a variable, and its standard error over several clusterings."""
    try:
        indices = [state.value() for state in states]
    except Undefined as why:
        return dict.fromkeys([name] if len(states) == 1 else [name, f"{name}_se"], why)
    if len(indices) == 1:
        return {name: indices[0]}
    return {name: statistics.fmean(indices), f"{name}_se": statistics.stdev(indices) / math.sqrt(len(indices))}


def _of_index(variable: Variable, index: str) -> Variable:
    """A variable of the Davies–Bouldin index for another index: those rise where it falls."""
    if index == "davies_bouldin":
        return variable
    return replace(
        variable,
        long_name=f"{variable.long_name} ({'silhouette' if index == 'silhouette' else 'Caliński–Harabasz index'})",
        expected_accuracy=-variable.expected_accuracy,
        expected_gap=-variable.expected_gap,
        expected_accuracy_source=f"opposite of the Davies–Bouldin index: {variable.expected_accuracy_source}",
        expected_gap_source=f"opposite of the Davies–Bouldin index: {variable.expected_gap_source}",
        bounds=(-1, 1) if index == "silhouette" else (0, math.inf),
    )
