"""Davies–Bouldin index of vectors by their labels."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from genmeasures.interfaces import (
    SPLITS,
    FeatureBatch,
    Field,
    Labeler,
    Pass,
    PatchSet,
    Split,
    Variable,
    one_of,
    require,
)
from genmeasures.measures.cluster_index import ClusterIndex


class DaviesBouldin(ClusterIndex):
    """Davies–Bouldin index of labeled vectors, (1/k) Σ_i max_{j≠i} (s_i + s_j)/d_ij.

    s_i is the spread of cluster i around its centroid, d_ij the distance of the centroids i and j.

    Source: Davies & Bouldin 1979; Rajagopal et al. 2021, section 2.2.2.

    Args:
        labeler: Labeler of the vectors; None takes the one that fits the targets. That is the class label, the
            downsampled mask or the bin of a histogram.
        space: Where distances are taken, ``"pca"``, ``"pixel"`` or ``"patch"``. These are the vectors after PCA, the
            whole vectors, and the patches that the layer read for them.
        spread: ``"mean"`` or ``"rms"`` (root mean square) distance to the centroid.
        split: Split whose vectors are clustered, ``"train"``, ``"test"`` or ``"validation"``.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> import genmeasures
        >>> import torch
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
            references="Davies & Bouldin 1979; Rajagopal et al. 2021, section 2.2.2",
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
        self._set_variables()

    @property
    def passes(self) -> tuple[Pass, ...]:
        fields: dict[str, Field] = {"pca": "projected", "pixel": "vectors", "patch": "patch_set"}
        scored = Pass(self.split, fields[self.space], "labels")
        return (scored, scored)

    def update(self, batch: FeatureBatch) -> None:
        assert self.labeler is not None
        fields: dict[str, Callable[[], Tensor | PatchSet]] = {
            "pca": lambda: batch.projected,
            "pixel": lambda: batch.vectors,
            "patch": lambda: batch.patch_set,
        }
        self._add({"davies_bouldin": fields[self.space]()}, batch.labels(self.labeler), batch.rank)
