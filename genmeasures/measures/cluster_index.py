"""Measures that are an index of clusters, in one or two passes over a split."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.interfaces import FeatureMeasure, Layer, PatchSet, Value, Variable
from genmeasures.labelers import KMeans
from genmeasures.statistics.davies_bouldin import ClusterSpreads, ClusterSums
from genmeasures.statistics.rank_sample import RankSample
from genmeasures.statistics.silhouette import silhouette

Spaces: TypeAlias = Mapping[str, Tensor | PatchSet]
"""By variable, the vectors whose distances count."""
INDICES = ("davies_bouldin", "calinski_harabasz", "silhouette")
_SILHOUETTE = 2000
"""Vectors of the subsample whose silhouette is computed, in time quadratic in their number."""


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
