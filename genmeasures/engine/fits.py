"""Projections and labelers that are fitted on the training sample of a layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from genmeasures.engine.returned import checked_labels
from genmeasures.engine.seeds import generator_for
from genmeasures.errors import Undefined
from genmeasures.failures import to_raise_later
from genmeasures.interfaces import FeatureLabeler, FeatureMeasure, Labeler, Layer
from genmeasures.statistics.pca import PCA, Identity, fit_leading, fit_pca

_APART = 512
"""Vectors, up to twice as many, that the projection without the inputs held back is fitted on."""


class Fits:
    """Fits of one layer: the projections of vectors and of patches, and the feature labelers.

    Args:
        layer: the layer.
        measures: measures of the run, which determine what is fitted.
        components: number of components of the projection; None for none.
        seed: seed of the run.
    """

    def __init__(self, layer: Layer, measures: Sequence[FeatureMeasure], components: int | None, seed: int) -> None:
        self._layer = layer
        self._components = components
        self._seed = seed
        self._labelers = {
            repr(measure.labeler): measure.labeler
            for measure in measures
            if isinstance(measure.labeler, FeatureLabeler)
            and any("labels" in reading.fields for reading in measure.passes)
        }
        self._fitted: dict[str, FeatureLabeler | Exception] = {}
        """By labeler: the fitted labeler, or the exception that its fit raised."""
        self._projection: PCA | Identity | Exception = Undefined("no vectors in the training sample")
        self._projection_apart: PCA | Identity | Exception = self._projection
        self._patch_projection: PCA | Identity | Exception = self._projection
        self.apart = any("projected_apart" in one.fields for measure in measures for one in measure.passes)
        """Whether any measure reads the projection that is fitted without the inputs held back."""
        self.patch_components = max((measure.patch_components for measure in measures), default=0)
        """Number of components of the projected patches; 0 if no measure reads them."""

    def fit_projection(self, vectors: Tensor) -> Tensor:
        """Fit the projection on vectors float32 (n, k); returns them projected, float64 (n, d)."""
        if self._components is None:
            self._projection = self._projection_apart = Identity()
            return self._projection.project(vectors)
        try:
            self._projection, projected = fit_pca(vectors, self._components)
        except Exception as error:
            self._projection = error
            raise
        return projected

    def fit_projection_apart(self, vectors: Tensor, held_back: Tensor) -> None:
        """Fit the other projection on vectors float32 (n, k) without those where ``held_back``, bool (n,), is true."""
        if self._components is None:
            return
        rest = (~held_back).nonzero()[:, 0]
        step = max(1, len(rest) // max(_APART, self._components + 1))
        if step > 1:
            # At random: the ranks go through the positions of one input after the other.
            generator = generator_for(self._seed, "apart", self._layer.index)
            drawn = torch.randperm(len(rest), generator=generator, device="cpu")[: len(rest) // step]
            rest = rest[drawn.sort().values.to(rest.device)]
        try:
            self._projection_apart = fit_leading(vectors[rest], self._components)
        except Exception as error:  # whatever it is, only the measures that read it have no value
            self._projection_apart = to_raise_later(error)

    def fit_labelers(self, projected: Tensor) -> None:
        """Fit the feature labelers on projected vectors float64 (n, d)."""
        for key, labeler in self._labelers.items():
            fresh = copy.deepcopy(labeler)
            try:
                fresh.fit(projected, generator_for(self._seed, "labeler", key, self._layer.index))
                self._fitted[key] = fresh
            except Exception as error:
                self._fitted[key] = to_raise_later(error)

    def fit_patch_projection(self, patches: Tensor, exact: bool) -> None:
        """Fit the projection of patches float32 (n, D), exactly or by a randomized method."""
        try:
            fit = _exact if exact else fit_leading
            self._patch_projection = fit(patches, self.patch_components)
        except Exception as error:  # whatever it is, only the measures that read it have no value
            self._patch_projection = to_raise_later(error)

    def share_projection(self, other: Fits) -> None:
        """Take the projection of the layer whose vectors are this layer's patches."""
        self._patch_projection = other._projection

    def project(self, vectors: Tensor) -> Tensor:
        """float64 (n, d) of vectors float32 (n, k)."""
        return _fitted(self._projection).project(vectors)

    def project_apart(self, vectors: Tensor) -> Tensor:
        """float64 (n, ·) of vectors float32 (n, k) by the projection fitted without the inputs held back."""
        return _fitted(self._projection_apart).project(vectors)

    def patch_projection(self) -> tuple[Tensor, Tensor]:
        """Mean and components of the projection of patches; raises what the fit raised."""
        projection = _fitted(self._patch_projection)
        assert isinstance(projection, PCA)
        return projection.mean, projection.components

    def labels(self, labeler: Labeler, projected: Tensor) -> Tensor:
        """int64 (n,) by a feature labeler for projected vectors float64 (n, d); raises what its fit raised."""
        fitted = self._fitted[repr(labeler)]
        if isinstance(fitted, Exception):
            raise fitted
        return checked_labels(fitted, fitted.label(projected), (len(projected),))


def _exact(patches: Tensor, components: int) -> PCA:
    return fit_pca(patches, components)[0]


def _fitted(projection: PCA | Identity | Exception) -> PCA | Identity:
    if isinstance(projection, Exception):
        raise projection
    return projection
