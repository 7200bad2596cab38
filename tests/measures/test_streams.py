"""Measures fed by hand: the same vectors in any pieces, in any order, and a sample that others read more of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import sem
from sklearn.metrics import davies_bouldin_score
from torch import nn

import genmeasures
from genmeasures.errors import OptionError
from genmeasures.extractors import ReceptiveField
from genmeasures.interfaces import FeatureBatch, FeatureMeasure, Layer, Pass, Variable
from genmeasures.labelers import KMeans
from genmeasures.measures import Confidence, DaviesBouldin, Roughness
from genmeasures.tracing.patches import StoredPatches

ROUNDING = 1e-9
"""Relative difference of sums in float64 in another order."""
PIECES = 1e-8
"""The same where vectors are float32, whose distances to the centroids round in another order."""

LAYER = Layer(0, "conv", "Conv2d", 4, (2, 2), 9, 16, 1.0, "Conv2d")


def fed(measure: FeatureMeasure, pieces: int, seed: int | None) -> Any:
    """What a measure makes of 240 vectors of 4 clusters that come in so many pieces, each pass in another order."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 4
    projected = torch.randn(240, 3, generator=generator, dtype=torch.float64) + 4.0 * labels[:, None]
    vectors = torch.randn(240, 4, generator=generator) + 4.0 * labels[:, None]
    rng = np.random.default_rng(seed)
    measure.start(LAYER, torch.Generator().manual_seed(0))
    for one in measure.passes:
        order = np.arange(240) if seed is None else rng.permutation(240)
        for part in np.array_split(order, pieces):
            rows = torch.from_numpy(part)
            inputs = rows // 5
            fields: dict[Any, Any] = {
                "projected": lambda _, rows=rows: projected[rows],
                "projected_apart": lambda _, rows=rows: projected[rows],
                "vectors": lambda _, rows=rows: vectors[rows],
            }
            split = "test" if one.sample == "test" else "train"
            measure.update(FeatureBatch(LAYER, split, rows, inputs, fields, lambda _, batch: labels[batch.rank]))  # type: ignore[arg-type]
        measure.end_pass()
    return measure.compute()


@pytest.mark.parametrize(
    ("measure", "tolerance"),
    [
        (DaviesBouldin(KMeans(4)), ROUNDING),
        (DaviesBouldin(KMeans(4), space="pixel"), PIECES),
        (Confidence(components=2), ROUNDING),
        (Confidence(components=2, density="linear", over="mixture"), ROUNDING),
    ],
    ids=repr,
)
@pytest.mark.parametrize("pieces", [1, 7])
def test_pieces_and_their_order_change_nothing(measure: FeatureMeasure, tolerance: float, pieces: int) -> None:
    plain, other = fed(measure.clone(), 1, None), fed(measure.clone(), pieces, 3)
    if isinstance(plain, dict):
        plain, other = ([getattr(value, "value", value) for value in made.values()] for made in (plain, other))
    assert other == pytest.approx(plain, rel=tolerance)


class MorePatchComponents(FeatureMeasure):
    """Reads eight components of the patches."""

    name = "more"
    variables = (Variable("more", "number of components", 0),)
    passes = (Pass("test", "projected_patches"),)
    patch_components = 8

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._components = 0

    def update(self, batch: FeatureBatch) -> None:
        self._components = batch.projected_patches.shape[1]

    def compute(self) -> float:
        return self._components


def test_a_measure_reads_no_more_components_than_it_asked_for() -> None:
    """Though another needs more, and one projection serves both."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    x = torch.randn(30, 2, 8, 8)
    roughness = Roughness(KMeans(3), input_pca=2)
    options: dict[str, Any] = {"extractor": ReceptiveField(cap=600)}
    alone = genmeasures.measure({"net": net}, x, x, measures=[roughness], **options)
    both = genmeasures.measure({"net": net}, x, x, measures=[roughness, MorePatchComponents()], **options)
    assert both["more"].values.tolist() == [[8, 8]]
    for name in ("roughness", "roughness_projected"):
        np.testing.assert_allclose(both[name].values, alone[name].values, rtol=1e-6)


@pytest.mark.parametrize("kind", [DaviesBouldin, Roughness])
def test_the_standard_error_over_seeds_of_kmeans(kind: type[FeatureMeasure]) -> None:
    """Against scikit-learn's index of each clustering, and SciPy's standard error."""
    points = torch.rand(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labeler = KMeans(4, restarts=1, repeats=6)
    labeler.fit(points, torch.Generator().manual_seed(1))
    measure = kind(labeler)
    measure.start(LAYER, torch.Generator())
    for _ in range(2):
        for part in points.split(150):
            labels = labeler.label(part)
            batch: Any = SimpleNamespace(
                projected=part,
                patch_set=StoredPatches(part),
                patch_projection=(torch.zeros(3).double(), torch.eye(3).double()),
                rank=torch.arange(len(part)),
                labels=lambda _, labels=labels: labels,
            )
            measure.update(batch)
        measure.end_pass()
    found = measure.compute()
    clusterings = labeler.clusterings(labeler.label(points))
    expected = [davies_bouldin_score(points.numpy(), one.numpy()) for one in clusterings]
    assert isinstance(found, dict)
    assert found[kind.name] == pytest.approx(np.mean(expected), rel=1e-9)
    assert found[f"{kind.name}_se"] == pytest.approx(sem(expected), rel=1e-6)
    assert found[f"{kind.name}_se"] > 0


def test_the_standard_error_is_auxiliary_and_there_only_when_asked_for() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ds = genmeasures.measure([net], x, x, measures=[DaviesBouldin(KMeans(repeats=3)), Roughness()])
    assert float(ds["davies_bouldin_se"].item()) >= 0
    assert "roughness_se" not in ds
    assert ds["davies_bouldin_se"].attrs["auxiliary"]
    assert DaviesBouldin.variables[0].name == "davies_bouldin"
    assert len(DaviesBouldin.variables) == 1
    with pytest.raises(OptionError, match="repeats=1"):
        Confidence(KMeans(repeats=2))
