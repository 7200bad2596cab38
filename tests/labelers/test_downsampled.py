"""Masks at the size of a layer, against coverages counted cell by cell."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from genmeasures.errors import DataError, OptionError
from genmeasures.labelers import Downsampled

ROUNDINGS = ["ceil", "nearest", "majority", "max"]


def coverages(mask: NDArray[Any], size: tuple[int, ...], classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many voxels of each class every cell overlaps (P, classes), and how many voxels it overlaps (P,)."""
    counted = []
    for cell in itertools.product(*map(range, size)):
        # Voxel v overlaps cell i of s where v < (i + 1)·S/s and v + 1 > i·S/s.
        inside = np.ix_(
            *[
                [v for v in range(full) if v * s < (i + 1) * full and (v + 1) * s > i * full]
                for i, s, full in zip(cell, size, mask.shape, strict=True)
            ]
        )
        counted.append(np.bincount(mask[inside].ravel(), minlength=classes))
    return np.array(counted), np.array(counted).sum(1)


@st.composite
def masks(draw: st.DrawFn) -> tuple[NDArray[Any], tuple[int, ...], int]:
    dimensions = draw(st.integers(1, 3))
    longest = {1: 12, 2: 6, 3: 4}[dimensions]
    shape = draw(st.tuples(*[st.integers(1, longest)] * dimensions))
    size = draw(st.one_of(st.tuples(*[st.integers(1, longest + 2)] * dimensions), st.just(())))
    classes = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.choice(classes, (2, *shape), p=rng.dirichlet(np.ones(classes))), size, classes


@settings(max_examples=200, deadline=None)
@given(masks())
def test_against_coverages_counted_cell_by_cell(case: tuple[NDArray[Any], tuple[int, ...], int]) -> None:
    made, size, classes = case
    targets = torch.from_numpy(made)[:, None]
    labels = {rounding: Downsampled(rounding).label(targets, size).numpy() for rounding in ROUNDINGS}
    for one, mask in enumerate(made):
        counts, totals = coverages(mask, size or (1,) * mask.ndim, classes)
        numbers = np.arange(classes)
        highest = np.where(counts > 0, numbers, 0).max(1)
        half = np.where(2 * counts >= totals[:, None], numbers, 0).max(1)
        for rounding, expected in [
            ("ceil", highest),
            ("max", highest),
            ("nearest", half),
            ("majority", counts.argmax(1)),
        ]:
            np.testing.assert_array_equal(labels[rounding][one], expected, rounding)
    assert all(label.dtype == np.int64 for label in labels.values())


@pytest.mark.parametrize(("shape", "size"), [((8, 6), (4, 3)), ((9, 9), (3, 1)), ((4, 4, 4), (2, 2, 2)), ((12,), (3,))])
@pytest.mark.parametrize("density", [0.05, 0.5, 0.95])
def test_a_binary_mask_is_the_ceiling_of_its_block_means(
    shape: tuple[int, ...], size: tuple[int, ...], density: float
) -> None:
    mask = (np.random.default_rng(0).random((5, *shape)) < density).astype(np.int64)
    blocks = mask.reshape(5, *[n for s, full in zip(size, shape, strict=True) for n in (s, full // s)])
    means = blocks.mean(tuple(range(2, blocks.ndim, 2)))
    labels = Downsampled().label(torch.from_numpy(mask)[:, None], size)
    np.testing.assert_array_equal(labels, np.ceil(means).reshape(5, -1))
    nearest = Downsampled("nearest").label(torch.from_numpy(mask)[:, None], size)
    np.testing.assert_array_equal(nearest, np.floor(means + 0.5).reshape(5, -1))


@pytest.mark.parametrize("size", [(5, 7), (3, 3), (7, 2), (14, 20), (1, 1), (10, 10)])
def test_a_binary_mask_is_the_ceiling_of_its_area_average(size: tuple[int, int]) -> None:
    """By interpolation, with sizes that do not divide, and larger ones."""
    mask = (torch.rand(6, 1, 10, 10, generator=torch.Generator().manual_seed(0)) < 0.1).long()
    average = F.interpolate(mask.double(), size, mode="area")
    assert torch.equal(Downsampled().label(mask, size), average.ceil().long().flatten(1))


@pytest.mark.parametrize("spatial", [(), (1, 1)])
def test_a_layer_without_spatial_extent_has_one_label_a_image(spatial: tuple[int, ...]) -> None:
    masks = torch.zeros(3, 1, 5, 7, dtype=torch.int64)
    masks[1, 0, 4, 2], masks[2, 0, :4] = 2, 1
    found = {rounding: Downsampled(rounding).label(masks, spatial).tolist() for rounding in ROUNDINGS}
    assert found == {
        "ceil": [[0], [2], [1]],
        "max": [[0], [2], [1]],
        "nearest": [[0], [0], [1]],
        "majority": [[0], [0], [1]],
    }


@pytest.mark.parametrize("rounding", ["nearest", "majority"])
def test_a_half_is_a_half_however_large_the_area(rounding: str) -> None:
    for area in range(2, 1500, 2):
        mask = torch.zeros(3, 1, area, dtype=torch.int64)
        mask[0, 0, : area // 2] = mask[1, 0, : area // 2 - 1] = mask[2, 0, : area // 2 + 1] = 1
        expected = [[1], [0], [1]] if rounding == "nearest" else [[0], [0], [1]]
        assert Downsampled(rounding).label(mask, (1,)).tolist() == expected, area


def test_the_same_size_changes_nothing() -> None:
    masks = torch.randint(5, (4, 1, 6, 5), generator=torch.Generator().manual_seed(0))
    for rounding in ROUNDINGS:
        assert torch.equal(Downsampled(rounding).label(masks, (6, 5)), masks.flatten(1))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(
    ("targets", "spatial", "message"),
    [
        (torch.zeros(2, 1, 4, 4), (2, 2), "histogram"),
        (torch.zeros(2, 1, dtype=torch.int64), (2, 2), "class_label"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), (2, 2), "3 channels"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.int64), (3,), "2 spatial dimensions cannot label a layer with 1"),
        (torch.zeros(2, 1, 4, dtype=torch.int64), (2, 2), "1 spatial dimensions cannot label a layer with 2"),
        (torch.zeros(2, 1, 2, 2, 2, 2, dtype=torch.int64), (1, 1, 1, 1), "at most 3"),
        (torch.zeros(2, 1, 2, 2, 2, 2, dtype=torch.int64), (), "at most 3"),
    ],
)
def test_targets_that_do_not_fit_are_refused(
    rounding: str, targets: torch.Tensor, spatial: tuple[int, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Downsampled(rounding).label(targets, spatial)


def test_class_numbers_are_bounded_where_each_is_counted() -> None:
    masks = torch.full((1, 1, 4), 256)
    with pytest.raises(DataError, match="class numbers of masks must be at most 255, got 256"):
        Downsampled("majority").label(masks, (2,))
    assert Downsampled("majority").label(masks - 1, (2,)).tolist() == [[255, 255]]
    assert Downsampled("ceil").label(masks, (2,)).tolist() == [[256, 256]]


def test_an_unknown_rounding_is_refused() -> None:
    with pytest.raises(OptionError, match="did you mean 'ceil'"):
        Downsampled("ceiling")


@settings(max_examples=150, deadline=None)
@given(masks(), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.5, 0.9]))
def test_coverages_are_those_of_the_labeled_voxels(
    case: tuple[NDArray[Any], tuple[int, ...], int], seed: int, share: float
) -> None:
    """A voxel without a label is as if it were not there; an area of such voxels alone has no label."""
    made, size, classes = case
    made = np.where(np.random.default_rng(seed).random(made.shape) < share, classes, made)  # the number of no class
    targets = torch.from_numpy(np.where(made == classes, -1, made))[:, None]
    labels = {rounding: Downsampled(rounding).label(targets, size).numpy() for rounding in ROUNDINGS}
    for one, mask in enumerate(made):
        counts = coverages(mask, size or (1,) * mask.ndim, classes + 1)[0][:, :classes]
        totals = counts.sum(1)
        numbers = np.arange(classes)
        highest = np.where(counts > 0, numbers, 0).max(1)
        half = np.where(2 * counts >= totals[:, None], numbers, 0).max(1)
        for rounding, expected in [
            ("ceil", highest),
            ("max", highest),
            ("nearest", half),
            ("majority", counts.argmax(1)),
        ]:
            np.testing.assert_array_equal(labels[rounding][one], np.where(totals > 0, expected, -1), rounding)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_batch_without_any_label(rounding: str) -> None:
    targets = torch.full((2, 1, 4, 4), -1)
    assert Downsampled(rounding).label(targets, (2, 2)).tolist() == [[-1] * 4] * 2
