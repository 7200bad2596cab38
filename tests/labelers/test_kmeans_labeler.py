"""Pseudo-pseudo-labels against scikit-learn's k-means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.cluster
import torch
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from genmeasures.errors import OptionError, Undefined
from genmeasures.labelers import KMeans
from genmeasures.statistics.kmeans import assign, kmeans


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("k", "d", "n"), [(2, 1, 50), (3, 2, 300), (5, 10, 1000), (8, 10, 5000)])
@pytest.mark.parametrize("seed", [0, 1])
def test_separated_blobs_are_found_as_scikit_learn_finds_them(k: int, d: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(k)
    # On a line far apart, in all directions a little: separated in any dimension.
    centers = rng.normal(size=(k, d)) + 30 * np.arange(k)[:, None]
    points, blobs = make_blobs(n, centers=centers, cluster_std=1.0, random_state=0)
    reference = sklearn.cluster.KMeans(k, n_init=10, random_state=0).fit(points)
    labeler = KMeans(k)
    labeler.fit(torch.from_numpy(points), generator(seed))
    labels = labeler.label(torch.from_numpy(points))
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) == set(range(k))
    assert adjusted_rand_score(labels, blobs) == 1.0
    # New points, anywhere, go to the nearest center.
    new = rng.uniform(points.min(), points.max(), (2000, d))
    assert adjusted_rand_score(labeler.label(torch.from_numpy(new)), reference.predict(new)) == 1.0


def test_nothing_is_fitted_to_new_points() -> None:
    labeler = KMeans(2)
    labeler.fit(torch.tensor([[0.0], [1.0], [10.0], [11.0]], dtype=torch.float64), generator())
    low, high = labeler.label(torch.tensor([[0.5], [10.5]], dtype=torch.float64)).tolist()
    assert low != high
    far = torch.tensor([[5.4], [5.6], [1e6], [-1e6]], dtype=torch.float64)
    assert labeler.label(far).tolist() == [low, high, high, low]
    assert labeler.label(far[1:2]).tolist() == [high]


def test_one_seed_gives_one_labeling() -> None:
    points = torch.randn(4000, 3, dtype=torch.float64, generator=generator(5))
    labels = []
    for seed in (0, 0, 1):
        labeler = KMeans(6)
        labeler.fit(points, generator(seed))
        labels.append(labeler.label(points))
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[2])


def test_as_many_restarts_as_asked_for() -> None:
    """Points without clusters: which of many local optima is found depends on the starts."""
    points = torch.rand(600, 3, dtype=torch.float64, generator=generator(5))
    found = {}
    for restarts in (1, 3, 10):
        labeler = KMeans(8, restarts)
        labeler.fit(points, generator())
        found[restarts] = labeler.label(points)
        expected = kmeans(points, 8, generator(), restarts).centers
        assert torch.equal(found[restarts], assign(points, expected))
    labeler = KMeans(8)
    labeler.fit(points, generator())
    assert torch.equal(labeler.label(points), found[10])
    assert not torch.equal(found[1], found[10])


def test_too_few_points_have_no_labels() -> None:
    with pytest.raises(Undefined, match="4 training vectors are too few for 5 clusters"):
        KMeans().fit(torch.randn(4, 3, dtype=torch.float64), generator())
    KMeans().fit(torch.randn(5, 3, dtype=torch.float64), generator())


@pytest.mark.parametrize("different", [1, 4])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_too_few_different_points_have_no_labels(different: int, scale: float) -> None:
    values = torch.randn(different, 3, dtype=torch.float64, generator=generator(1)) * scale
    with pytest.raises(Undefined, match=f"{different} different values, too few for 5 clusters"):
        KMeans().fit(values.repeat(50, 1), generator())


def test_just_enough_different_points() -> None:
    values = torch.randn(5, 3, dtype=torch.float64, generator=generator(1))
    labeler = KMeans()
    labeler.fit(values.repeat(50, 1), generator())
    assert sorted(labeler.label(values).tolist()) == [0, 1, 2, 3, 4]


def test_repeats_are_clusterings_one_by_one() -> None:
    """Of points without clusters, so that they differ."""
    points, drawn = torch.rand(400, 3, dtype=torch.float64, generator=generator()), generator(1)
    labeler = KMeans(4, restarts=1, repeats=5)
    labeler.fit(points, drawn)
    found = labeler.clusterings(labeler.label(points))
    again = generator(1)
    expected = [assign(points, kmeans(points, 4, again, 1).centers) for _ in range(5)]
    assert len(found) == 5
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert len({tuple(one.tolist()) for one in found}) > 1


@pytest.mark.parametrize(
    "options", [{"k": 1}, {"k": 2.0}, {"restarts": 0}, {"restarts": None}, {"repeats": 0}, {"k": 5, "repeats": 28}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"KMeans: {list(options)[-1]}"):
        KMeans(**options)
