"""Roughness: how badly what a layer reads is separated by the clusters of what it writes."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.interfaces import (
    SPLITS,
    FeatureBatch,
    FeatureLabeler,
    Labeler,
    Layer,
    Pass,
    PatchSet,
    Split,
    Variable,
    is_count,
    one_of,
    require,
)
from genmeasures.labelers import KMeans
from genmeasures.measures.cluster_index import INDICES, ClusterIndex, Moments
from genmeasures.statistics.pca import PCA, Identity, fit_leading, fit_pca
from genmeasures.statistics.rank_sample import RankSample

_REFERENCES = "Rajagopal et al. 2021, section 2.3.1"
_FITTED_ON = 10_000
"""Training vectors that a pushforward fits the clusters of input pixels, and the components of vectors, on."""


class Roughness(ClusterIndex):
    """Davies–Bouldin index of the patches in x_{ℓ−1}, grouped by the k-means labels of their pixels in x_ℓ.

    ``roughness`` takes distances between raw patches, ``roughness_projected`` between patches projected on principal
    components of the training patches: those of at most 1,000 patches drawn at random for receptive fields, those of
    all whole inputs for whole tensors. The draw moves ``roughness_projected`` by 0.3% on average and by 1.3% at most
    (four convolutions of a VGG of random weights, eight draws each, against components of up to 20,000 patches).

    Source: Rajagopal et al. 2021, section 2.3.1; the components of patches as in its table 2.

    Args:
        labeler: Labeler fitted on the training vectors. None is ``KMeans()``, which needs no ground truth.
        input_pca: Number of principal components of ``roughness_projected``.
        direction: ``"pullback"``, or ``"pushforward"``, the index of vectors in x_ℓ grouped by the clusters of the
            pixels of x_{ℓ−1} at the centers of their patches. Kernels of even size and transposed convolutions have no
            center. Labelers and projections are then fitted on at most 10,000 training vectors, in a pass of their own.
            These vectors and pixels of all layers stay in memory beside the budget of the run: 40 kB per channel that
            a layer reads or writes.
        index: ``"davies_bouldin"``, or ``"calinski_harabasz"`` or ``"silhouette"``, which rise where clusters are
            better separated. The silhouette is that of at most 2,000 vectors.
        spread: ``"mean"`` or ``"rms"`` (root mean square) distance to the centroid, for the Davies–Bouldin index.
        split: Split whose patches are grouped, ``"train"``, ``"test"`` or ``"validation"``.

    Raises:
        OptionError: If an option is not one of these values, a pushforward has a labeler of targets, or another index
            than Davies–Bouldin has a spread.

    Example:
        The patches of the first layer have nine elements, so that ten components are all of them:

        >>> import genmeasures
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3))
        >>> x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> ds = genmeasures.measure([net], x[:20], x[20:], measures=[Roughness(KMeans(k=3))])
        >>> bool((ds.roughness > 0).all()), bool((ds.roughness_projected - ds.roughness)[0, 0].round(4) == 0)
        (True, True)
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
            references=_REFERENCES,
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
        Variable(
            "roughness_projected",
            "roughness of projected patches",
            expected_accuracy=-1,
            expected_accuracy_source="Rajagopal et al. 2021, table 1: −0.63 and −0.78 over 128 UNets",
            expected_gap=1,
            expected_gap_source="64 networks on digits: 0.37",
            references=_REFERENCES,
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
    )

    def __init__(
        self,
        labeler: Labeler | None = None,
        input_pca: int = 10,
        direction: str = "pullback",
        index: str = "davies_bouldin",
        spread: str = "mean",
        split: Split = "test",
    ) -> None:
        valid = labeler is None or isinstance(labeler, Labeler)
        require(valid, self, f"labeler must be a labeler, such as genmeasures.labelers.KMeans(), got {labeler!r}")
        require(is_count(input_pca), self, f"input_pca must be an integer ≥ 1, got {input_pca!r}")
        one_of(self, "direction", direction, ("pullback", "pushforward"))
        one_of(self, "index", index, INDICES)
        one_of(self, "spread", spread, ("mean", "rms"))
        applies = spread == "mean" or index == "davies_bouldin"
        require(applies, self, f"spread={spread!r} applies to index='davies_bouldin' alone, got index={index!r}")
        one_of(self, "split", split, SPLITS)
        self.labeler = KMeans() if labeler is None else labeler
        of_features = direction == "pullback" or isinstance(self.labeler, FeatureLabeler)
        require(of_features, self, f"direction=pushforward needs a labeler of features, got {self.labeler!r}")
        self.input_pca = input_pca
        self.direction = direction
        self.index = index
        self.spread = spread
        self.split = split
        self.patch_components = input_pca if direction == "pullback" else 0
        self._set_variables()

    @property
    def passes(self) -> tuple[Pass, ...]:
        if self.direction == "pullback":
            if self.index == "silhouette":
                return (Pass(self.split, "patch_set", "projected_patches", "labels"),)
            sums = Pass(self.split, "patch_set", "labels")
            return (sums, Pass(self.split, "patch_set", "patch_projection", "labels"))
        fit, scored = (Pass(sample, "vectors", "patches", "patch_set") for sample in ("fit", self.split))
        return (fit, *(scored,) * self._passes_over_split)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        super().start(layer, generator)
        self._generator = generator
        self._training = RankSample(_FITTED_ON, self._salt)
        self._fitted: _Pushforward | None = None
        self._summed = False
        """Whether the first pass over the split has ended."""

    def update(self, batch: FeatureBatch) -> None:
        if self.direction == "pullback":
            self._add_patches(batch)
        elif self._fitted is None:
            rows = self._training.chosen(batch.rank)
            if len(rows):
                self._training.add(batch.rank[rows], _centers(batch)[rows].clone(), batch.vectors[rows].clone())
        else:
            vectors, projected = batch.vectors, self._fitted.vectors.project(batch.vectors)
            labels = self._fitted.label(_centers(batch))
            self._add({"roughness": vectors, "roughness_projected": projected}, labels, batch.rank)

    def _add_patches(self, batch: FeatureBatch) -> None:
        assert self.labeler is not None
        labels = batch.labels(self.labeler)
        if self.index == "silhouette":
            projected = batch.projected_patches[:, : self.input_pca]
            self._add({"roughness": batch.patch_set, "roughness_projected": projected}, labels, batch.rank)
        elif not self._summed:
            self._add({"roughness": batch.patch_set}, labels, batch.rank)
        else:
            mean, components = batch.patch_projection
            self._add_distances(batch.patch_set, labels, batch.rank, mean, components[: self.input_pca])

    def _add_distances(self, patches: PatchSet, labels: Tensor, rank: Tensor, mean: Tensor, components: Tensor) -> None:
        """Add raw and projected distances to centroids; patches are projected together with the first distances."""
        raw = [state for state in self._states["roughness"] if isinstance(state, Moments)]
        if "roughness_projected" not in self._states:
            self._states["roughness_projected"] = [state.projected(mean, components) for state in raw]
        projected = self._states["roughness_projected"]
        projections: Tensor | None = None
        for state, of_projections, clustering in zip(raw, projected, self._clusterings(labels), strict=True):
            if projections is None:
                projections = state.add_projecting(patches, clustering, mean, components)
            else:
                state.add(patches, clustering, rank)
            of_projections.add(projections, clustering, rank)

    def end_pass(self) -> None:
        self._summed = True
        if self.direction == "pushforward" and self._fitted is None:
            assert isinstance(self.labeler, FeatureLabeler)
            centers, vectors = self._training.result() or (torch.empty(0, 1, device="cpu"),) * 2
            components = self.extractor.components
            self._fitted = _Pushforward(self.labeler, centers, vectors, components, self.input_pca, self._generator)
        super().end_pass()


class _Pushforward:
    """Clusters of input pixels, and components of the vectors."""

    def __init__(
        self,
        labeler: FeatureLabeler,
        centers: Tensor,
        vectors: Tensor,
        components: int | None,
        of_vectors: int,
        generator: torch.Generator,
    ) -> None:
        self.vectors: PCA = fit_leading(vectors, of_vectors)
        self._pixels: PCA | Identity = Identity()
        if components is not None:
            self._pixels = fit_pca(centers, components)[0]
        self._labeler = copy.deepcopy(labeler)
        self._labeler.fit(self._pixels.project(centers), generator)

    def label(self, centers: Tensor) -> Tensor:
        return self._labeler.label(self._pixels.project(centers))


def _centers(batch: FeatureBatch) -> Tensor:
    """float32 (n, C): the pixels of the layer's input at the centers of the patches."""
    center = batch.patch_set.center
    if center is None:
        raise Undefined("the patches have no pixel at their center (transposed, or a kernel of even size)")
    return batch.patches[:, center]
