"""Intrinsic dimension of the features of a layer, as a measure of genmeasures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from genmeasures.plugin import (
    FeatureBatch,
    FeatureMeasure,
    Layer,
    Pass,
    Split,
    Undefined,
    Value,
    Variable,
    is_count,
    require,
)
from genmeasures_geometry.dimension import levina_bickel, mackay_ghahramani, neighbor_distances, two_nn
from genmeasures_geometry.reading import Subsample, check_size, check_space, defined, pass_over, read, salt_of

_LEAST = 2
"""Neighbors that each estimate needs."""


class IntrinsicDimension(FeatureMeasure):
    """Intrinsic dimension of the features of a layer, from the distances to nearest neighbors. No labels.

    - ``intrinsic_dimension_two_nn``: TwoNN, from the ratio of the distances to the two nearest neighbors. The largest
      tenth of the ratios is left out.
    - ``intrinsic_dimension_levina_bickel``: mean over vectors of the local maximum likelihood estimate.
    - ``intrinsic_dimension_mackay_ghahramani``: the harmonic mean of the same estimates. It is smaller.

    The distances are those within a subsample, which depends on the seed of the run and on the contents of the inputs,
    not on their order. Duplicates in it are removed first. All estimates depend on the scale that the density of the
    subsample probes: compare those of equally many vectors. The vectors of neighboring pixels of one input depend on
    each other, which lowers estimates with ``extractor=receptive_field``.

    Source: Facco et al. 2017; Levina & Bickel 2004; MacKay & Ghahramani 2005.

    Args:
        space: ``"pixel"``, the whole vectors, or ``"pca"``, their projections on principal components.
        split: Split whose vectors are read, ``"train"`` or ``"test"``.
        size: Number of vectors of the subsample. There are fewer if they have more than 8,388 dimensions, which the
            status says.
        neighbors: Number of neighbors of the maximum likelihood estimates.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> import genmeasures
        >>> net = torch.nn.Linear(2, 5, bias=False)
        >>> x = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> ds = genmeasures.measure([net], x, measures=[IntrinsicDimension()])
        >>> round(ds.intrinsic_dimension_two_nn.item())
        2
    """

    name = "intrinsic_dimension"
    variables = (
        Variable(
            "intrinsic_dimension_two_nn",
            "intrinsic dimension (TwoNN)",
            expected_accuracy=-1,
            expected_accuracy_source="Ansuini et al. 2019: over networks, of the last hidden layer",
            references="Facco et al. 2017, Estimating the intrinsic dimension of datasets by a minimal neighborhood "
            "information",
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
        Variable(
            "intrinsic_dimension_levina_bickel",
            "intrinsic dimension (maximum likelihood, mean over vectors)",
            references="Levina & Bickel 2004, Maximum likelihood estimation of intrinsic dimension",
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
        Variable(
            "intrinsic_dimension_mackay_ghahramani",
            "intrinsic dimension (maximum likelihood, harmonic mean over vectors)",
            references="MacKay & Ghahramani 2005, Comments on Maximum likelihood estimation of intrinsic dimension by "
            "E. Levina and P. Bickel",
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
    )

    def __init__(self, space: str = "pixel", split: Split = "train", size: int = 1000, neighbors: int = 20) -> None:
        check_space(self, space, split)
        check_size(self, size)
        valid = is_count(neighbors, _LEAST) and neighbors < size
        require(valid, self, f"neighbors must be an integer from {_LEAST} to size − 1, got {neighbors!r}")
        self.space = space
        self.split = split
        self.size = size
        self.neighbors = neighbors

    @property
    def passes(self) -> tuple[Pass, ...]:
        """One pass over the split."""
        return (pass_over(self.split, self.space),)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        """See :meth:`FeatureMeasure.start`."""
        self._sample = Subsample(self.size, salt_of(generator))

    def update(self, batch: FeatureBatch) -> None:
        """See :meth:`FeatureMeasure.update`."""
        self._sample.add(read(batch, self.space), batch.rank)

    def compute(self) -> Mapping[str, float | Value | Undefined]:
        """See :meth:`FeatureMeasure.compute`."""
        (vectors,) = self._sample.result()
        distances, note = neighbor_distances(vectors, self.neighbors), self._sample.note
        return {
            "intrinsic_dimension_two_nn": defined(lambda: two_nn(distances), note),
            "intrinsic_dimension_levina_bickel": defined(lambda: levina_bickel(distances), note),
            "intrinsic_dimension_mackay_ghahramani": defined(lambda: mackay_ghahramani(distances), note),
        }
