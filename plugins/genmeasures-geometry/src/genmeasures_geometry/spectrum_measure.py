"""Effective dimensions of the features of a layer, as a measure of genmeasures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from genmeasures.plugin import (
    SPLITS,
    FeatureBatch,
    FeatureMeasure,
    Layer,
    Pass,
    Split,
    Undefined,
    Value,
    Variable,
    one_of,
)
from genmeasures_geometry.reading import StreamedMoments, defined, salt_of
from genmeasures_geometry.spectrum import alpha_req, participation_ratio, rank_me, stable_rank


class FeatureSpectrum(FeatureMeasure):
    """Effective dimensions of the features of a layer, from the eigenvalues λ of their covariance. No labels.

    - ``participation_ratio``: (Σλ)²/Σλ².
    - ``feature_stable_rank``: Σλ/max λ.
    - ``alpha_req``: the exponent α of λ_i ∝ i^(−α), fitted with weights 1/i.
    - ``rank_me``: exp(−Σ p log p), p = σ/Σσ, with the singular values σ of the vectors as they are, not centered.

    The covariance is streamed in float64. For vectors with more than 2,048 dimensions the values are those of a
    subsample of at most 1,000 vectors, and of fewer if they have more than 8,388 dimensions; the status says so. All
    values depend on the number of vectors: compare those of equally many.

    Source: Garrido et al. 2023 (RankMe); Agrawal et al. 2022 (α-ReQ).

    Args:
        split: Split whose vectors are read, ``"train"`` or ``"test"``.

    Raises:
        OptionError: If ``split`` is neither.

    Example:
        >>> import genmeasures
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.eye(2)
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> ds = genmeasures.measure([net], x, measures=[FeatureSpectrum()])
        >>> round(ds.participation_ratio.item(), 6), round(ds.rank_me.item(), 6)
        (2.0, 2.0)
    """

    name = "feature_spectrum"
    variables = (
        Variable(
            "participation_ratio",
            "participation ratio of the covariance",
            bounds=(1, math.inf),
            scale_invariant=True,
        ),
        Variable(
            "feature_stable_rank",
            "stable rank of the centered features",
            bounds=(1, math.inf),
            scale_invariant=True,
        ),
        Variable(
            "alpha_req",
            "decay exponent of the spectrum",
            references="Agrawal et al. 2022, α-ReQ: assessing representation quality in self-supervised learning by "
            "measuring eigenspectrum decay",
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
        Variable(
            "rank_me",
            "effective rank of the features (RankMe)",
            expected_accuracy=1,
            expected_accuracy_source="Garrido et al. 2023: over self-supervised networks, with the accuracy of a "
            "linear classifier of the features",
            references="Garrido et al. 2023, RankMe: assessing the downstream performance of pretrained "
            "self-supervised representations by their rank",
            bounds=(1, math.inf),
            scale_invariant=True,
        ),
    )

    def __init__(self, split: Split = "train") -> None:
        one_of(self, "split", split, SPLITS)
        self.split = split

    @property
    def passes(self) -> tuple[Pass, ...]:
        """One pass over the split."""
        return (Pass(self.split, "vectors"),)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        """See :meth:`FeatureMeasure.start`."""
        self._streamed = StreamedMoments(salt_of(generator))

    def update(self, batch: FeatureBatch) -> None:
        """See :meth:`FeatureMeasure.update`."""
        self._streamed.add(batch, "pixel")

    def compute(self) -> Mapping[str, float | Value | Undefined]:
        """See :meth:`FeatureMeasure.compute`."""
        moments, note = self._streamed.total(), self._streamed.note
        variances, _ = moments.axes()
        return {
            "participation_ratio": defined(lambda: participation_ratio(variances), note),
            "feature_stable_rank": defined(lambda: stable_rank(variances), note),
            "alpha_req": defined(lambda: alpha_req(variances), note),
            "rank_me": defined(lambda: rank_me(torch.linalg.svdvals(moments.raw_root())), note),
        }
