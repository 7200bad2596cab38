"""Patches: groups compared with a loop over all positions, and the distribution and content of draws."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from genmeasures_unet.patches import PatchSampler, patch_groups
from genmeasures_unet.volumes import Case
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from genmeasures.plugin import DataError, OptionError


def slow_group(mask: NDArray[Any]) -> int:
    share = Fraction(int((mask > 0).sum()), mask.size)
    return 0 if share == 0 else 1 if share <= Fraction(15, 100) else 2


def slow_groups(mask: NDArray[Any], size: tuple[int, ...]) -> NDArray[np.int8]:
    shape = [n - k + 1 for n, k in zip(mask.shape, size, strict=True)]
    groups = np.zeros(shape, np.int8)
    for corner in itertools.product(*map(range, shape)):
        groups[corner] = slow_group(mask[tuple(slice(c, c + k) for c, k in zip(corner, size, strict=True))])
    return groups


@st.composite
def masks_and_sizes(draw: st.DrawFn) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=3)))
    # Mostly background, so that all groups come up.
    mask = draw(hnp.arrays(np.int64, shape, elements=st.integers(1, 2), fill=st.just(0)))
    return mask, tuple(draw(st.integers(1, n)) for n in shape)


@given(masks_and_sizes())
@settings(deadline=None)
def test_groups_match_a_loop_over_all_positions(made: tuple[NDArray[np.int64], tuple[int, ...]]) -> None:
    mask, size = made
    groups = patch_groups(mask, size)
    assert groups.dtype == np.int8
    np.testing.assert_array_equal(groups, slow_groups(mask, size))


@pytest.mark.parametrize("size", [(4, 5), (20, 1), (5, 4, 1), (5, 4, 5), (10, 10, 10)])
def test_exactly_fifteen_percent_belong_to_the_border(size: tuple[int, ...]) -> None:
    voxels = int(np.prod(size))
    for count, group in ((0, 0), (1, 1), (voxels * 3 // 20, 1), (voxels * 3 // 20 + 1, 2), (voxels, 2)):
        mask = np.zeros(voxels, np.int64)
        mask[:count] = 1
        assert patch_groups(mask.reshape(size), size).ravel().tolist() == [group]


SIZE = (3, 4, 2)


def numbered(name: str, shape: tuple[int, ...], foreground: int, start: int) -> Case:
    """A case whose voxels all differ, also from those of other cases, with foreground in one corner."""
    image = start + np.arange(2 * np.prod(shape), dtype=np.float32).reshape(2, *shape)
    mask = np.zeros(shape, np.int64)
    mask[tuple(slice(0, foreground) for _ in shape)] = 1
    return Case(name, image, mask)


def three_cases() -> list[Case]:
    """With all groups, with background alone, and with all groups."""
    return [
        numbered("a", (7, 9, 6), 3, 1),
        numbered("b", (6, 6, 6), 0, 10_001),
        numbered("c", (8, 7, 5), 4, 20_001),
    ]


def found(x: NDArray[Any], cases: list[Case]) -> tuple[int, tuple[int, ...]]:
    """The case that a patch is from, and its first voxel, looked up by the value there."""
    for i, case in enumerate(cases):
        places = np.argwhere(case.image[0] == x[(0,) * x.ndim])
        if len(places):
            return i, tuple(places[0].tolist())
    raise AssertionError("the patch starts with no case's value")


def window(array: NDArray[Any], corner: tuple[int, ...], size: tuple[int, ...]) -> NDArray[Any]:
    cut: NDArray[Any] = array[(..., *(slice(c, c + k) for c, k in zip(corner, size, strict=True)))]
    return cut


@pytest.mark.parametrize("count", [1, 2, 7, 30, 61])
def test_draws_are_uniform_over_groups_and_their_cases(count: int) -> None:
    cases = three_cases()
    x, y = PatchSampler(cases, SIZE).draw(count, np.random.default_rng(count))
    assert (x.dtype, x.shape, y.dtype, y.shape) == (np.float32, (count, 2, *SIZE), np.int64, (count, *SIZE))
    groups = Counter(slow_group(mask) for mask in y)
    assert max(groups[g] for g in range(3)) - min(groups[g] for g in range(3)) <= 1
    for group, holders in ((0, (0, 1, 2)), (1, (0, 2)), (2, (0, 2))):
        of = Counter(found(patch, cases)[0] for patch, mask in zip(x, y, strict=True) if slow_group(mask) == group)
        assert set(of) <= set(holders)
        assert max(of[i] for i in holders) - min(of[i] for i in holders) <= 1


def test_patches_are_the_content_of_their_position() -> None:
    cases = three_cases()
    x, y = PatchSampler(cases, SIZE).draw(100, np.random.default_rng(0))
    for patch, mask in zip(x, y, strict=True):
        case, corner = found(patch, cases)
        np.testing.assert_array_equal(patch, window(cases[case].image, corner, SIZE))
        np.testing.assert_array_equal(mask, window(cases[case].mask, corner, SIZE))  # type: ignore[arg-type]


def test_positions_of_a_group_are_equally_likely() -> None:
    case = three_cases()[0]
    assert case.mask is not None
    groups = slow_groups(case.mask, SIZE)
    x, _ = PatchSampler([case], SIZE).draw(30_000, np.random.default_rng(0))
    drawn = Counter(found(patch, [case])[1] for patch in x)
    for group in range(3):
        places = [tuple(at) for at in np.argwhere(groups == group).tolist()]
        mean = 10_000 / len(places)
        # Six standard deviations of a Poisson count.
        assert all(abs(drawn[at] - mean) < 6 * mean**0.5 for at in places)
    assert sum(drawn.values()) == 30_000


def test_draws_depend_on_the_seed() -> None:
    sampler = PatchSampler(three_cases(), SIZE)
    first, again, other = (sampler.draw(20, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_draws_are_shuffled() -> None:
    _, y = PatchSampler(three_cases(), SIZE).draw(60, np.random.default_rng(0))
    assert all({slow_group(mask) for mask in half} == {0, 1, 2} for half in (y[:30], y[30:]))


def test_groups_that_no_case_has_are_left_out() -> None:
    sampler = PatchSampler([three_cases()[1]], SIZE)
    assert sampler.groups == (0,)
    assert not sampler.draw(5, np.random.default_rng(0))[1].any()
    assert PatchSampler(three_cases(), SIZE).groups == (0, 1, 2)
    full = Case("full", np.ones((1, 5, 5), np.float32), np.ones((5, 5), np.int64))
    assert PatchSampler([full], (2, 2)).groups == (2,)


def test_small_cases_are_padded() -> None:
    """On both sides, an odd voxel after the image."""
    case = numbered("small", (2, 6), 2, 1)
    x, y = PatchSampler([case], (5, 6)).draw(1, np.random.default_rng(0))
    np.testing.assert_array_equal(x[0, :, 1:3], case.image)
    assert case.mask is not None
    np.testing.assert_array_equal(y[0, 1:3], case.mask)
    assert not x[0][:, [0, 3, 4]].any()
    assert not y[0][[0, 3, 4]].any()


def test_targets_are_cut_at_the_same_positions() -> None:
    cases = three_cases()
    targets = [-case.image[:1].astype(np.float64) for case in cases]
    sampler = PatchSampler(cases, SIZE, targets)
    x, y = sampler.draw(20, np.random.default_rng(0))
    assert (y.dtype, y.shape) == (np.float64, (20, 1, *SIZE))
    np.testing.assert_array_equal(y, -x[:, :1])
    np.testing.assert_array_equal(x, PatchSampler(cases, SIZE).draw(20, np.random.default_rng(0))[0])


IMAGE, MASK = np.zeros((1, 5, 6), np.float32), np.zeros((5, 6), np.int64)
GOOD = Case("good", IMAGE, MASK)


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (Case("odd", IMAGE, None), "odd has no mask"),
        (Case("odd", IMAGE, MASK[:4]), "odd: image .* and mask .* differ in size"),
        (Case("odd", IMAGE.repeat(2, 0), MASK), "odd has 2 channels, but case good has 1"),
        (Case("odd", IMAGE[..., None], MASK[..., None]), "odd has 3 spatial axes, but the patch size has 2"),
    ],
)
def test_mismatched_cases_are_named(bad: Case, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        PatchSampler([GOOD, bad], (2, 2))


@pytest.mark.parametrize(
    ("targets", "fault"),
    [
        ([IMAGE], "expected 2 targets, one per case, got 1"),
        ([IMAGE, MASK], r"other: target \(5, 6\) must be channels"),
        ([IMAGE, IMAGE[:, :4]], r"other: target \(1, 4, 6\) must be channels"),
        ([IMAGE, IMAGE.repeat(2, 0)], "other: the channels or dtype of its target differ"),
        ([IMAGE, IMAGE.astype(np.float64)], "other: the channels or dtype of its target differ"),
    ],
)
def test_mismatched_targets_are_named(targets: list[NDArray[Any]], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        PatchSampler([GOOD, Case("other", IMAGE, MASK)], (2, 2), targets)


def test_impossible_draws_are_refused() -> None:
    with pytest.raises(DataError, match="no cases"):
        PatchSampler([], (2, 2))
    with pytest.raises(DataError, match="do not fit into a mask of shape"):
        patch_groups(MASK, (6, 6))
    with pytest.raises(DataError, match="do not fit into a mask of shape"):
        patch_groups(MASK, (2, 2, 2))
    for size in ((2,), (2, 0), (1, 1, 1, 1)):
        with pytest.raises(OptionError, match="patch size must be"):
            PatchSampler([GOOD], size)
    for wrong in (0, -1):
        with pytest.raises(OptionError, match="count must be 1 or more"):
            PatchSampler([GOOD], (2, 2)).draw(wrong, np.random.default_rng(0))
