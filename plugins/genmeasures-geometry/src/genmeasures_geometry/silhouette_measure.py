"""Silhouette of the classes of a layer, as a measure of genmeasures."""

from __future__ import annotations

import torch

from genmeasures.plugin import FeatureBatch, FeatureMeasure, Labeler, Layer, Pass, Split, Value, Variable, silhouette
from genmeasures_geometry.reading import (
    Subsample,
    check_labeler,
    check_size,
    check_space,
    pass_over,
    read,
    salt_of,
)


class Silhouette(FeatureMeasure):
    """Mean silhouette coefficient of labeled vectors, of a subsample: time is quadratic in the number of vectors.

    The subsample depends on the seed of the run and on the contents of the inputs, not on their order.

    Source: Rousseeuw 1987.

    Args:
        labeler: Labeler of the vectors; None takes the one that fits the targets.
        space: ``"pixel"``, the whole vectors, or ``"pca"``, their projections on principal components.
        split: Split whose vectors are read, ``"train"`` or ``"test"``.
        size: Number of vectors of the subsample. There are fewer if they have more than 4,194 dimensions, which the
            status says.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> import genmeasures
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> net.weight.data = torch.ones(1, 1)
        >>> x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> ds = genmeasures.measure([net], (x, torch.tensor([0, 0, 1, 1])), measures=[Silhouette()])
        >>> round(ds.silhouette.item(), 4)
        0.8997
    """

    name = "silhouette"
    variables = (
        Variable(
            "silhouette",
            "silhouette coefficient",
            references="Rousseeuw 1987, Silhouettes: a graphical aid to the interpretation and validation of clusters",
            bounds=(-1, 1),
            scale_invariant=True,
        ),
    )

    def __init__(
        self, labeler: Labeler | None = None, space: str = "pca", split: Split = "train", size: int = 2000
    ) -> None:
        check_labeler(self, labeler)
        check_space(self, space, split)
        check_size(self, size)
        self.labeler = labeler
        self.space = space
        self.split = split
        self.size = size

    @property
    def passes(self) -> tuple[Pass, ...]:
        """One pass over the split."""
        return (pass_over(self.split, self.space, labels=True),)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        """See :meth:`FeatureMeasure.start`."""
        self._sample = Subsample(self.size, salt_of(generator))

    def update(self, batch: FeatureBatch) -> None:
        """See :meth:`FeatureMeasure.update`."""
        assert self.labeler is not None
        self._sample.add(read(batch, self.space), batch.rank, batch.labels(self.labeler))

    def compute(self) -> Value:
        """See :meth:`FeatureMeasure.compute`."""
        vectors, labels = self._sample.result()
        return Value(silhouette(vectors, labels), self._sample.note)
