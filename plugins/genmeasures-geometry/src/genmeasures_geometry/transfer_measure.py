"""Transferability scores of the features of a layer, as a measure of genmeasures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from genmeasures.plugin import FeatureBatch, FeatureMeasure, Labeler, Layer, Pass, Split, Undefined, Value, Variable
from genmeasures_geometry.reading import (
    StreamedMoments,
    check_labeler,
    check_space,
    defined,
    pass_over,
    salt_of,
)
from genmeasures_geometry.transferability import h_score, log_me, shrunk_h_score

_FINE_TUNED = "over pretrained networks, with the accuracy after fine-tuning on the same data"


class Transferability(FeatureMeasure):
    """How well a linear model of the features predicts the labels, in closed form.

    - ``log_me``: LogME, the maximum evidence per vector of Bayesian linear regression on the indicator of each class.
      The features are not centered, and there is no intercept.
    - ``h_score``: Tr(cov(f)⁺ cov(E[f|y])).
    - ``h_score_shrunk``: the same with the covariance of Ledoit & Wolf.

    The covariance and the class means are streamed in float64. For vectors with more than 2,048 dimensions the values
    are those of a subsample of at most 1,000 vectors, and of fewer if they have more than 8,388 dimensions; the status
    says so. ``h_score`` is then undefined: no more vectors than dimensions fit any labels.

    LEEP and NCE read the outputs of a model: see :func:`~genmeasures_geometry.transferability.leep` and
    :func:`~genmeasures_geometry.transferability.nce`.

    Source: You et al. 2021; Bao et al. 2019; Ibrahim, Ponomareva & Mazumder 2021.

    Args:
        labeler: Labeler of the vectors; None takes the one that fits the targets.
        space: ``"pixel"``, the whole vectors, or ``"pca"``, their projections on principal components.
        split: Split whose vectors are read, ``"train"`` or ``"test"``.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> import genmeasures
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> net.weight.data = torch.ones(1, 1)
        >>> x = torch.tensor([[0.0], [1.0], [1.0], [2.0]])
        >>> ds = genmeasures.measure([net], (x, torch.tensor([0, 0, 1, 1])), measures=[Transferability()])
        >>> round(ds.h_score.item(), 6)
        0.5
    """

    name = "transferability"
    variables = (
        Variable(
            "log_me",
            "log maximum evidence (LogME)",
            expected_accuracy=1,
            expected_accuracy_source=f"You et al. 2021: {_FINE_TUNED}",
            references="You et al. 2021, LogME: practical assessment of pre-trained models for transfer learning",
            scale_invariant=True,
        ),
        Variable(
            "h_score",
            "H-score",
            expected_accuracy=1,
            expected_accuracy_source="Bao et al. 2019: over source tasks, with the accuracy of transfer",
            references="Bao et al. 2019, An information-theoretic approach to transferability in task transfer "
            "learning",
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
        Variable(
            "h_score_shrunk",
            "H-score with a shrunk covariance",
            expected_accuracy=1,
            expected_accuracy_source=f"Ibrahim, Ponomareva & Mazumder 2021: {_FINE_TUNED}",
            references="Ibrahim, Ponomareva & Mazumder 2021, Newer is not always better: rethinking transferability "
            "metrics, their peculiarities, stability and performance",
            bounds=(0, math.inf),
            scale_invariant=True,
        ),
    )

    def __init__(self, labeler: Labeler | None = None, space: str = "pixel", split: Split = "train") -> None:
        check_labeler(self, labeler)
        check_space(self, space, split)
        self.labeler = labeler
        self.space = space
        self.split = split

    @property
    def passes(self) -> tuple[Pass, ...]:
        """One pass over the split."""
        return (pass_over(self.split, self.space, labels=True),)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        """See :meth:`FeatureMeasure.start`."""
        self._streamed = StreamedMoments(salt_of(generator))

    def update(self, batch: FeatureBatch) -> None:
        """See :meth:`FeatureMeasure.update`."""
        assert self.labeler is not None
        self._streamed.add(batch, self.space, batch.labels(self.labeler))

    def compute(self) -> Mapping[str, float | Value | Undefined]:
        """See :meth:`FeatureMeasure.compute`."""
        moments, note = self._streamed.labeled(), self._streamed.note
        return {
            "log_me": defined(lambda: log_me(moments), note),
            "h_score": defined(lambda: h_score(moments), note),
            "h_score_shrunk": defined(lambda: shrunk_h_score(moments), note),
        }
