"""Separation of clusters: of pixels by their labels, and of patches by the cluster of the pixel they make."""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.interfaces import (
    SPLITS,
    Extractor,
    FeatureBatch,
    FeatureMeasure,
    Field,
    Labeler,
    Layer,
    Pass,
    PatchSet,
    Split,
    Value,
    Variable,
    is_count,
    one_of,
    require,
)
from genmeasures.labelers import KMeans
from genmeasures.statistics.davies_bouldin import ClusterSpreads, ClusterSums

_REFERENCES = "Davies & Bouldin 1979; Rajagopal et al. 2021, "


class _ClusterIndex(FeatureMeasure):
    """The Davies–Bouldin index of labeled vectors, in two passes over a split."""

    spread: str

    def _with_error(self) -> None:
        """Add the standard error to the variables, where the labeler makes several clusterings."""
        if isinstance(self.labeler, KMeans) and self.labeler.repeats > 1:
            (own,) = self.variables
            error = Variable(
                f"{own.name}_se",
                f"standard error of {own.long_name}, over {self.labeler.repeats} random seeds of k-means",
                bounds=(0, math.inf),
                scale_invariant=own.scale_invariant,
                auxiliary=True,
            )
            vars(self)["variables"] = (own, error)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._states: list[ClusterSums | ClusterSpreads] = []

    def _add(self, vectors: Tensor | PatchSet, batch: FeatureBatch) -> None:
        assert self.labeler is not None
        labels = batch.labels(self.labeler)
        clusterings = self.labeler.clusterings(labels) if isinstance(self.labeler, KMeans) else [labels]
        self._states = self._states or [ClusterSums() for _ in clusterings]
        for state, one in zip(self._states, clusterings, strict=True):
            state.add(vectors, one)

    def end_pass(self) -> None:
        self._states = [s.result() if isinstance(s, ClusterSums) else s for s in self._states]

    def compute(self) -> float | dict[str, float | Value]:
        made = [state.index(self.spread) for state in self._states if isinstance(state, ClusterSpreads)]
        if not made:
            raise Undefined("no vectors in the sample")
        if len(made) == 1:
            return made[0]
        own, error = (variable.name for variable in self.variables)
        return {own: statistics.fmean(made), error: statistics.stdev(made) / math.sqrt(len(made))}


class DaviesBouldin(_ClusterIndex):
    """DB = (1/k) Σ_i max_{j≠i} (s_i + s_j)/d_ij of labeled vectors (Rajagopal et al. 2021, 2.2.2).

    labeler: what clusters the vectors; None takes the one that fits the targets (class label,
    downsampled mask or histogram bins). space: distances between vectors after PCA to d ("pca"),
    between whole vectors ("pixel") or between the patches behind them ("patch"). spread: s_i is
    the mean distance to the centroid ("mean"), or the root mean square ("rms"). split: whose
    vectors.
    """

    name = "davies_bouldin"
    variables = (
        Variable(
            "davies_bouldin",
            "Davies–Bouldin index",
            expected_accuracy=-1,
            expected_accuracy_source="Rajagopal et al. 2021, table 1: −0.60 and −0.70 over 128 UNets",
            expected_gap=1,
            expected_gap_source="Natekar & Sharma 2020: it enters the score that won PGDL as it is",
            references=_REFERENCES + "section 2.2.2",
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
    )

    def __init__(
        self, labeler: Labeler | None = None, space: str = "pca", spread: str = "mean", split: Split = "train"
    ) -> None:
        valid = labeler is None or isinstance(labeler, Labeler)
        require(valid, self, f"labeler must be a labeler, such as genmeasures.labelers.KMeans(), not {labeler!r}")
        one_of(self, "space", space, ("pca", "pixel", "patch"))
        one_of(self, "spread", spread, ("mean", "rms"))
        one_of(self, "split", split, SPLITS)
        self.labeler = labeler
        self.space = space
        self.spread = spread
        self.split = split
        self._with_error()

    @property
    def passes(self) -> tuple[Pass, ...]:
        fields: dict[str, Field] = {"pca": "projected", "pixel": "vectors", "patch": "patch_set"}
        one = Pass(self.split, fields[self.space], "labels")
        return (one, one)

    def update(self, batch: FeatureBatch) -> None:
        if self.space == "pca":
            self._add(batch.projected, batch)
        else:
            self._add(batch.vectors if self.space == "pixel" else batch.patch_set, batch)


class Roughness(_ClusterIndex):
    """DB of the patches in x_{ℓ−1}, grouped by the k-means label of their pixel in x_ℓ (Rajagopal et al. 2021, 2.3.1).

    labeler: fitted on training pixels; None is KMeans(), which needs no ground truth. input_pca:
    number of principal components of the training patches that distances are taken in, None for
    raw patches, "auto" for raw patches under receptive fields and the extractor's d under whole
    tensors. spread and split: as in :class:`DaviesBouldin`.
    """

    name = "roughness"
    variables = (
        Variable(
            "roughness",
            "roughness",
            expected_accuracy=-1,
            expected_accuracy_source="Rajagopal et al. 2021, table 1: −0.63 and −0.78 over 128 UNets",
            expected_gap=1,
            expected_gap_source="64 networks on digits (README): 0.36",
            references=_REFERENCES + "section 2.3.1",
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
    )

    def __init__(
        self,
        labeler: Labeler | None = None,
        input_pca: int | str | None = "auto",
        spread: str = "mean",
        split: Split = "test",
    ) -> None:
        valid = labeler is None or isinstance(labeler, Labeler)
        require(valid, self, f"labeler must be a labeler, such as genmeasures.labelers.KMeans(), not {labeler!r}")
        valid = input_pca in (None, "auto") or is_count(input_pca)
        require(valid, self, f'input_pca must be "auto", null or an integer ≥ 1, not {input_pca!r}')
        one_of(self, "spread", spread, ("mean", "rms"))
        one_of(self, "split", split, SPLITS)
        self.labeler = KMeans() if labeler is None else labeler
        self.input_pca = input_pca
        self.spread = spread
        self.split = split
        self.patch_components = input_pca if isinstance(input_pca, int) else 0
        self._with_error()

    def prepare(self, extractor: Extractor) -> None:
        if self.input_pca == "auto" and extractor.projects_patches:
            self.patch_components = extractor.components

    @property
    def passes(self) -> tuple[Pass, ...]:
        scored = Pass(self.split, "projected_patches" if self.patch_components else "patch_set", "labels")
        return (scored, scored)

    def update(self, batch: FeatureBatch) -> None:
        if self.patch_components:
            self._add(batch.projected_patches[:, : self.patch_components], batch)
        else:
            self._add(batch.patch_set, batch)
