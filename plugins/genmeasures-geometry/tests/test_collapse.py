"""Neural collapse: simplexes, brute force, scikit-learn, and an error of public code."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from genmeasures_geometry import ClassMeans, Collapse, center_disagreement, self_duality
from numpy.typing import NDArray
from sklearn.metrics import calinski_harabasz_score
from sklearn.neighbors import NearestCentroid
from torch import Tensor

from genmeasures.plugin import Undefined

ROUNDING = 1e-9
"""Relative difference allowed: a pseudo-inverse amplifies rounding by the condition of the class means."""

Blobs = tuple[NDArray[np.float64], NDArray[np.int64]]


def covariances(x: NDArray[np.float64], y: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Σ_W over vectors and Σ_B over classes, as matrices."""
    classes = np.unique(y)
    means = np.stack([x[y == c].mean(0) for c in classes])
    within = sum((x[y == c] - m).T @ (x[y == c] - m) for c, m in zip(classes, means, strict=True)) / len(x)
    between = np.cov(means.T, ddof=0)
    return within, between


def simplex(k: int, dimensions: int, turn: Callable[[int], Tensor]) -> Tensor:
    """K vectors of a simplex equiangular tight frame, rotated and shifted."""
    frame = torch.zeros(k, dimensions, dtype=torch.float64)
    frame[:, :k] = torch.eye(k) - 1 / k
    return 3 * frame @ turn(dimensions) + 7


@pytest.mark.parametrize("k", [2, 3, 10])
def test_a_simplex_has_collapsed(k: int, rotation: Callable[[int], Tensor]) -> None:
    """Whatever the sizes of the classes."""
    means = simplex(k, 12, rotation)
    labels = torch.arange(5 * k) % k
    labels = torch.cat([labels, labels.new_zeros(20)])
    collapse = Collapse.of(means[labels], labels)
    for value in (
        collapse.within_between(),
        collapse.norm_variation(),
        collapse.angle_variation(),
        collapse.distance_variance(),
    ):
        assert value == pytest.approx(0, abs=1e-12)
    assert collapse.nearest_center_accuracy() == 1
    with pytest.raises(Undefined, match="the vectors of each class are equal"):
        collapse.calinski_harabasz()


def test_nc1_is_that_of_the_matrices(blobs: Blobs, tensors: tuple[Tensor, Tensor]) -> None:
    within, between = covariances(*blobs)
    expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 4
    assert Collapse.of(*tensors).within_between() == pytest.approx(expected, rel=ROUNDING)


def test_nc1_divides_by_the_number_of_classes_not_of_dimensions(blobs: Blobs, tensors: tuple[Tensor, Tensor]) -> None:
    """A public package divides Σ_B by the dimension D, which multiplies NC1 by D/K."""
    within, between = covariances(*blobs)
    wrong = np.trace(within @ np.linalg.pinv(between * 4 / 6, rcond=1e-10)) / 4
    found = Collapse.of(*tensors).within_between()
    assert found == pytest.approx(wrong * 4 / 6, rel=ROUNDING)
    assert abs(found / wrong - 1) > 0.3


def test_the_geometry_of_class_means(blobs: Blobs, tensors: tuple[Tensor, Tensor]) -> None:
    x, y = blobs
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    offsets = means - means.mean(0)
    norms = np.linalg.norm(offsets, axis=1)
    collapse = Collapse.of(*tensors)
    assert collapse.norm_variation() == pytest.approx(norms.std() / norms.mean(), rel=ROUNDING)
    pairs = list(itertools.permutations(range(4), 2))
    angles = [abs(offsets[i] @ offsets[j] / norms[i] / norms[j] + 1 / 3) for i, j in pairs]
    assert collapse.angle_variation() == pytest.approx(np.mean(angles), rel=ROUNDING)
    variances = [((x[y == c] - means[c]) ** 2).sum(1).mean() for c in range(4)]
    cdnv = [(variances[i] + variances[j]) / 2 / ((means[i] - means[j]) ** 2).sum() for i, j in pairs]
    assert collapse.distance_variance() == pytest.approx(np.mean(cdnv), rel=ROUNDING)


def test_against_scikit_learn(blobs: Blobs, tensors: tuple[Tensor, Tensor]) -> None:
    collapse = Collapse.of(*tensors)
    assert collapse.calinski_harabasz() == pytest.approx(calinski_harabasz_score(*blobs), rel=ROUNDING)
    accuracy = NearestCentroid().fit(*blobs).score(*blobs)
    assert 0.5 < accuracy < 1
    assert collapse.nearest_center_accuracy() == pytest.approx(accuracy, rel=1e-12)


def values(collapse: Collapse) -> list[float]:
    return [
        collapse.within_between(),
        collapse.norm_variation(),
        collapse.angle_variation(),
        collapse.distance_variance(),
        collapse.nearest_center_accuracy(),
        collapse.calinski_harabasz(),
    ]


def test_batches_offset_rotation_and_scale_change_nothing(
    tensors: tuple[Tensor, Tensor], rotation: Callable[[int], Tensor]
) -> None:
    x, y = tensors
    moved = 1e-3 * (x @ rotation(6) + 1e6)
    means = ClassMeans()
    for rows, labels in zip(moved.split(7), y.split(7), strict=True):
        means.add(rows, labels)
    collapse = Collapse(means)
    for rows, labels in zip(moved.flip(0).split(50), y.flip(0).split(50), strict=True):
        collapse.add(rows, labels)
    # Vectors at 1e6 are rounded by 1e-10 of their spread.
    assert values(collapse) == pytest.approx(values(Collapse.of(x, y)), rel=1e-7)


def test_more_dimensions_than_vectors(blobs: Blobs) -> None:
    x, y = blobs
    wide = x @ np.random.default_rng(1).standard_normal((6, 500))
    within, between = covariances(wide, y)
    expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 4
    found = Collapse.of(torch.tensor(wide), torch.tensor(y)).within_between()
    assert found == pytest.approx(expected, rel=ROUNDING)


def test_what_has_no_value() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    with pytest.raises(Undefined, match="at least 2 classes"):
        Collapse.of(torch.rand(4, 2), labels * 0)
    with pytest.raises(Undefined, match="the means of all classes are equal"):
        Collapse.of(torch.full((4, 2), 0.37), labels)
    with pytest.raises(Undefined, match="not finite"):
        Collapse.of(torch.tensor([[1.0], [2.0], [3.0], [torch.inf]]), labels)
    same = Collapse.of(torch.tensor([[1.0], [1.0], [1.0], [4.0]]), torch.tensor([0, 0, 1, 2]))
    with pytest.raises(Undefined, match="two classes have the same mean"):
        same.distance_variance()
    middle = Collapse.of(torch.tensor([[-1.0], [1.0], [0.0], [0.0]]), torch.tensor([0, 1, 2, 2]))
    with pytest.raises(Undefined, match="which has no angle"):
        middle.angle_variation()


def test_self_duality(rotation: Callable[[int], Tensor]) -> None:
    means = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centered = (means - means.mean(0)).numpy()
    weight = rotation(8)[:5]
    w = weight.numpy()
    expected = np.linalg.norm(w / np.linalg.norm(w) - centered / np.linalg.norm(centered)) ** 2
    assert self_duality(weight, means) == pytest.approx(expected, rel=1e-12)
    assert self_duality(torch.tensor(centered) * 4, means) == pytest.approx(0, abs=1e-14)
    for weight, means in ((torch.zeros(2, 3), torch.rand(2, 3)), (torch.rand(2, 3), torch.full((2, 3), 0.37))):
        with pytest.raises(Undefined, match="the weights are zero, or the means"):
            self_duality(weight, means)


def test_center_disagreement(blobs: Blobs, tensors: tuple[Tensor, Tensor]) -> None:
    x, y = blobs
    logits = np.random.default_rng(2).standard_normal((120, 4))
    nearest = NearestCentroid().fit(x, y)
    expected = (nearest.predict(x) != logits.argmax(1)).mean()
    found = center_disagreement(torch.tensor(logits), tensors[0], torch.tensor(nearest.centroids_))
    assert found == pytest.approx(expected, rel=1e-12)
    own = torch.nn.functional.one_hot(torch.tensor(nearest.predict(x)))
    assert center_disagreement(own.double(), tensors[0], torch.tensor(nearest.centroids_)) == 0
