"""Davies–Bouldin indices: of vectors by their labels, and of patches by the clusters of their vectors."""

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
    """Davies–Bouldin index of labeled vectors, in two passes over a split."""

    spread: str

    def _with_error(self) -> None:
        """Add the standard error to the variables if the labeler makes several clusterings."""
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
        for state, clustering in zip(self._states, clusterings, strict=True):
            state.add(vectors, clustering)

    def end_pass(self) -> None:
        self._states = [s.result() if isinstance(s, ClusterSums) else s for s in self._states]

    def compute(self) -> float | dict[str, float | Value]:
        indices = [state.index(self.spread) for state in self._states if isinstance(state, ClusterSpreads)]
        if not indices:
            raise Undefined("no vectors in the sample")
        if len(indices) == 1:
            return indices[0]
        own, error = (variable.name for variable in self.variables)
        return {own: statistics.fmean(indices), error: statistics.stdev(indices) / math.sqrt(len(indices))}


class DaviesBouldin(_ClusterIndex):
    """Davies–Bouldin index of labeled vectors, (1/k) Σ_i max_{j≠i} (s_i + s_j)/d_ij.

    s_i is the spread of cluster i around its centroid, d_ij the distance of the centroids i and j.

    Source: Davies & Bouldin 1979; Rajagopal et al. 2021, section 2.2.2.

    Args:
        labeler: Labeler of the vectors; None takes the one that fits the targets. That is the class label, the
            downsampled mask or the bin of a histogram.
        space: Where distances are taken, ``"pca"``, ``"pixel"`` or ``"patch"``. These are the vectors after PCA, the
            whole vectors, and the patches that the layer read for them.
        spread: ``"mean"`` or ``"rms"`` (root mean square) distance to the centroid.
        split: Split whose vectors are clustered, ``"train"`` or ``"test"``.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> import genmeasures
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.eye(2)
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]])  # spreads 1 and 1, distance 4
        >>> ds = genmeasures.measure([net], (x, torch.tensor([0, 0, 1, 1])), measures=[DaviesBouldin()])
        >>> round(ds.davies_bouldin.item(), 6)
        0.5
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
        require(valid, self, f"labeler must be a labeler, such as genmeasures.labelers.KMeans(), got {labeler!r}")
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
        scored = Pass(self.split, fields[self.space], "labels")
        return (scored, scored)

    def update(self, batch: FeatureBatch) -> None:
        if self.space == "pca":
            self._add(batch.projected, batch)
        else:
            self._add(batch.vectors if self.space == "pixel" else batch.patch_set, batch)


class Roughness(_ClusterIndex):
    """Davies–Bouldin index of the patches in x_{ℓ−1}, grouped by the k-means labels of their pixels in x_ℓ.

    Source: Rajagopal et al. 2021, section 2.3.1.

    Args:
        labeler: Labeler fitted on the training vectors. None is ``KMeans()``, which needs no ground truth.
        input_pca: Number of principal components in which distances are taken, None (raw patches) or ``"auto"``.
            ``"auto"`` takes raw patches for receptive fields, and the components of the extractor for whole tensors.
        spread: ``"mean"`` or ``"rms"`` (root mean square) distance to the centroid.
        split: Split whose patches are grouped, ``"train"`` or ``"test"``.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> import genmeasures
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3))
        >>> x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> ds = genmeasures.measure([net], x[:20], x[20:], measures=[Roughness(KMeans(k=3))])
        >>> bool((ds.roughness > 0).all())
        True
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
        require(valid, self, f"labeler must be a labeler, such as genmeasures.labelers.KMeans(), got {labeler!r}")
        valid = input_pca in (None, "auto") or is_count(input_pca)
        require(valid, self, f'input_pca must be "auto", null or an integer ≥ 1, got {input_pca!r}')
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
            self.patch_components = extractor.components or 0

    @property
    def passes(self) -> tuple[Pass, ...]:
        scored = Pass(self.split, "projected_patches" if self.patch_components else "patch_set", "labels")
        return (scored, scored)

    def update(self, batch: FeatureBatch) -> None:
        if self.patch_components:
            self._add(batch.projected_patches[:, : self.patch_components], batch)
        else:
            self._add(batch.patch_set, batch)
