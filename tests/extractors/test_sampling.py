"""Samples: how many, of what, uniform, and the same whatever the order of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from genmeasures.data import content_keys
from genmeasures.data.keys import distinct, mix
from genmeasures.errors import OptionError
from genmeasures.extractors import ReceptiveField, WholeTensor, receptive_field
from genmeasures.extractors.samples import Drawn
from genmeasures.interfaces import Extractor, Layer, Sample
from genmeasures.tracing import LayerReader, geometry_of

SIGNIFICANT = 1e-3
"""Seeds are fixed: a uniform sample that passes once passes always."""


def keys_of(contents: NDArray[Any]) -> NDArray[np.uint64]:
    return distinct(content_keys(torch.as_tensor(contents)[:, None]))


def canonical(sample: Drawn, contents: NDArray[Any]) -> list[tuple[Any, int]]:
    """(content, position) of each vector in the order of the ranks."""
    pairs: list[tuple[Any, int]] = [(None, -1)] * len(sample)
    for place, one, position in zip(sample.rank, sample.inputs, sample.positions, strict=True):
        pairs[place] = (contents[one], int(position))
    return pairs


def listed(sample: Sample) -> Drawn:
    """The vectors of a sample of either kind."""
    made = Drawn(*sample.part(0, 1 << 40))
    assert len(made) == len(sample)
    return made


sizes = st.tuples(st.integers(1, 25), st.integers(1, 30))
caps = st.one_of(st.none(), st.integers(1, 800))
seeds = st.integers(0, 2**63 - 1)


@settings(max_examples=200, deadline=None)
@given(sizes, caps, seeds)
def test_as_many_vectors_as_asked_for_and_none_twice(size: tuple[int, int], cap: int | None, seed: int) -> None:
    n, positions = size
    sample = listed(ReceptiveField(cap).sample(positions, keys_of(np.arange(n)), seed))
    total = n * positions if cap is None else min(cap, n * positions)
    assert len(sample) == len(sample.positions) == len(sample.rank) == total
    assert len(set(zip(sample.inputs, sample.positions, strict=True))) == total
    assert sample.positions.min() >= 0
    assert sample.positions.max() < positions
    counts = np.bincount(sample.inputs, minlength=n)
    assert len(counts) == n
    assert counts.max() - counts.min() <= 1
    # Sorted by input and, within one, by position, so that a batch finds its vectors by bisection.
    assert (np.diff(sample.inputs * positions + sample.positions) > 0).all()
    assert sorted(sample.rank) == list(range(total))


@settings(max_examples=200, deadline=None)
@given(st.data(), st.lists(st.integers(0, 12), min_size=1, max_size=25), st.integers(1, 30), caps, seeds)
def test_the_order_of_the_data_does_not_matter(
    data: st.DataObject, contents: list[int], positions: int, cap: int | None, seed: int
) -> None:
    """Also where some inputs are equal."""
    here = np.array(contents)
    there = np.array(data.draw(st.permutations(contents)))
    for extractor in (ReceptiveField(cap), WholeTensor(cap)):
        one = listed(extractor.sample(positions, keys_of(here), seed))
        other = listed(extractor.sample(positions, keys_of(there), seed))
        assert canonical(one, here) == canonical(other, there)


@settings(max_examples=100, deadline=None)
@example((20, 7), 20 * 3 + 9, 0, 1)  # one position more is more than half of them
@example((20, 7), 20 * 3 + 9, 0, 30)
@given(sizes, st.integers(1, 800), seeds, st.integers(1, 100))
def test_how_many_are_drawn_at_a_time_does_not_matter(size: tuple[int, int], cap: int, seed: int, block: int) -> None:
    n, positions = size
    keys = keys_of(np.arange(n))
    one = listed(ReceptiveField(cap).sample(positions, keys, seed))
    with mock.patch.object(receptive_field, "_BLOCK", block):
        other = listed(ReceptiveField(cap).sample(positions, keys, seed))
    for left, right in zip(vars(one).values(), vars(other).values(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("share", [1, 3, 10, 11, 20])
def test_the_positions_of_an_input_are_its_own(share: int) -> None:
    """They do not depend on the other inputs, where each gives as many."""
    keys, positions = keys_of(np.arange(40)), 21
    all_of_them = listed(ReceptiveField(40 * share).sample(positions, keys, 5))
    some = listed(ReceptiveField(15 * share).sample(positions, keys[10:25], 5))
    kept = (all_of_them.inputs >= 10) & (all_of_them.inputs < 25)
    np.testing.assert_array_equal(all_of_them.inputs[kept] - 10, some.inputs)
    np.testing.assert_array_equal(all_of_them.positions[kept], some.positions)


def p_value(observed: NDArray[np.int64]) -> float:
    """Of a chi-square test that all are equally likely."""
    return float(scipy.stats.chisquare(observed).pvalue)


@pytest.mark.parametrize("per_input", [0.5, 1, 1.5, 7, 9.5, 10, 11, 15.5, 18.5, 19])
@pytest.mark.parametrize(
    "make", [np.arange, lambda n: n - np.arange(n, dtype=np.float64) ** 2], ids=["counted", "other"]
)
def test_every_position_is_as_likely(per_input: float, make: Callable[[int], NDArray[Any]]) -> None:
    n, positions = 4000, 20
    sample = listed(ReceptiveField(int(n * per_input)).sample(positions, keys_of(make(n)), 1))
    observed = np.bincount(sample.positions, minlength=positions)
    # Drawn without repeats, counts vary less than independent ones: chi-square shrinks by the share left out.
    left_out = 1 - per_input / positions
    expected = n * per_input / positions
    statistic = ((observed - expected) ** 2 / expected).sum() / left_out * (positions - 1) / positions
    # The trivial way to look uniform, in turns, would be as wrong: both tails count.
    p = scipy.stats.chi2.cdf(statistic, positions - 1)
    assert SIGNIFICANT < p < 1 - SIGNIFICANT


@pytest.mark.parametrize("chosen", [2, 4])
def test_every_pair_of_positions_is_as_likely(chosen: int) -> None:
    """Of six positions two are chosen, or two are left out: each of 15 pairs as often."""
    n = 6000
    sample = listed(ReceptiveField(n * chosen).sample(6, keys_of(np.arange(n)), 2))
    member = np.zeros((n, 6), dtype=bool)
    member[sample.inputs, sample.positions] = True
    pairs, observed = np.unique(member, axis=0, return_counts=True)
    assert len(pairs) == 15
    assert p_value(observed) > SIGNIFICANT


def test_positions_of_two_inputs_and_under_two_seeds_are_independent() -> None:
    n, positions = 9000, 6
    keys = keys_of(np.arange(n))
    one, other = (listed(ReceptiveField(n).sample(positions, keys, seed)).positions for seed in (0, 1))
    for left, right in [(one, other), (one[:-1], one[1:])]:
        together = np.bincount(left * positions + right, minlength=36).reshape(6, 6)
        assert scipy.stats.chi2_contingency(together).pvalue > SIGNIFICANT


@pytest.mark.parametrize("make", [ReceptiveField, WholeTensor])
def test_every_input_is_as_likely_where_not_all_are_used(make: Callable[[int], Extractor]) -> None:
    n, runs = 30, 2000
    keys = keys_of(np.arange(n))
    observed = np.zeros(n, dtype=np.int64)
    for seed in range(runs):
        observed += np.bincount(listed(make(10).sample(5, keys, seed)).inputs, minlength=n)
    expected = runs * 10 / n
    statistic = ((observed - expected) ** 2 / expected).sum() / (2 / 3) * (n - 1) / n
    assert SIGNIFICANT < scipy.stats.chi2.cdf(statistic, n - 1) < 1 - SIGNIFICANT


@pytest.mark.parametrize("extractor", [ReceptiveField(500), WholeTensor(500)])
def test_another_seed_gives_another_sample(extractor: Extractor) -> None:
    n = 1000
    keys = keys_of(np.arange(n))
    one, again, other = (listed(extractor.sample(30, keys, seed)) for seed in (3, 3, 4))
    pairs = [set(zip(sample.inputs, sample.positions, strict=True)) for sample in (one, again, other)]
    assert pairs[0] == pairs[1]
    np.testing.assert_array_equal(one.rank, again.rank)
    # As many in common as chance will have it.
    share = 500 / (n * 30 if isinstance(extractor, ReceptiveField) else n)
    common = len(pairs[0] & pairs[2])
    assert scipy.stats.binomtest(common, 500, share).pvalue > SIGNIFICANT


@settings(max_examples=100, deadline=None)
@given(sizes, caps, st.integers(1, 400), seeds)
def test_fits_see_a_sample_of_no_more_than_their_cap(
    size: tuple[int, int], cap: int | None, fit_cap: int, seed: int
) -> None:
    n, positions = size
    keys = keys_of(np.arange(n))
    for make in (ReceptiveField, WholeTensor):
        for_fits = listed(make(cap, fit_cap=fit_cap).sample(positions, keys, seed, True))
        expected = listed(make(fit_cap if cap is None else min(cap, fit_cap)).sample(positions, keys, seed))
        assert len(for_fits) <= fit_cap
        for left, right in zip(vars(for_fits).values(), vars(expected).values(), strict=True):
            np.testing.assert_array_equal(left, right)
        whole = listed(make(cap, fit_cap=fit_cap).sample(positions, keys, seed))
        assert len(whole) == len(listed(make(cap).sample(positions, keys, seed)))


@pytest.mark.parametrize("cap", [None, 12, 13])
def test_all_there_is(cap: int | None) -> None:
    sample = listed(ReceptiveField(cap).sample(4, keys_of(np.arange(3)), 0))
    assert list(zip(sample.inputs, sample.positions, strict=True)) == [(i, p) for i in range(3) for p in range(4)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.one_of(st.none(), st.integers(1, 50)), seeds)
def test_whole_tensors(n: int, cap: int | None, seed: int) -> None:
    sample = listed(WholeTensor(cap).sample(7, keys_of(np.arange(n)), seed))
    total = n if cap is None else min(cap, n)
    assert len(sample) == total
    assert (np.diff(sample.inputs) > 0).all()
    assert sample.inputs.min() >= 0
    assert sample.inputs.max() < n
    assert (sample.positions == 0).all()
    assert sorted(sample.rank) == list(range(total))


# What is extracted.

LAYER = Layer(0, "conv", "Conv2d", 4, (3, 5), 2 * 9, 2 * 5 * 7, 1.0, "Conv2d")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_vectors_are_the_pixels_at_their_positions(dtype: torch.dtype) -> None:
    output = torch.arange(6.0 * 4 * 15).view(6, 4, 15).to(dtype)
    rows, positions = torch.tensor([5, 0, 0, 3]), torch.tensor([14, 0, 7, 2])
    made = ReceptiveField().vectors(output, rows, positions)
    expected = torch.stack([output[row, :, position] for row, position in zip(rows, positions, strict=True)])
    assert made.dtype == torch.float32
    assert torch.equal(made, expected.float())
    assert ReceptiveField().vector_size(LAYER) == 4
    assert ReceptiveField().label_size((3, 5)) == (3, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_whole_tensors_are_flattened(dtype: torch.dtype) -> None:
    """In the order (*spatial, channels)."""
    output, given = torch.arange(6.0 * 4 * 15).view(6, 4, 15).to(dtype), torch.randn(6, 2, 5, 7).to(dtype)
    rows, positions = torch.tensor([5, 0, 3]), torch.tensor([0, 0, 0])
    made = WholeTensor().vectors(output, rows, positions)
    reader = LayerReader(geometry_of(torch.nn.Conv2d(2, 4, 3), (6, 2, 5, 7), (6, 4, 3, 5)), given, False)
    patches = WholeTensor().patches(reader, rows, positions).unfold()
    assert made.dtype == patches.dtype == torch.float32
    assert torch.equal(made, torch.stack([output[row].T.flatten() for row in rows]).float())
    assert torch.equal(patches, torch.stack([given[row].movedim(0, -1).flatten() for row in rows]).float())
    assert made.shape[1] == WholeTensor().vector_size(LAYER) == 60
    assert patches.shape[1] == WholeTensor().patch_size(LAYER) == 70
    assert WholeTensor().label_size((3, 5)) == ()


def test_patches_are_what_the_layer_read() -> None:
    conv = torch.nn.Conv2d(2, 4, 3)
    given = torch.randn(6, 2, 5, 7)
    output = conv(given)
    reader = LayerReader(geometry_of(conv, tuple(given.shape), tuple(output.shape)), given, False)
    rows, positions = torch.tensor([5, 0, 0, 3]), torch.tensor([14, 0, 7, 2])
    patches = ReceptiveField().patches(reader, rows, positions).unfold()
    assert patches.shape[1] == ReceptiveField().patch_size(LAYER) == 18
    expected = torch.nn.functional.unfold(given, 3)[rows, :, positions].view(4, 2, 9).transpose(1, 2)
    assert torch.equal(patches, expected.flatten(1))


@pytest.mark.parametrize("make", [ReceptiveField, WholeTensor])
@pytest.mark.parametrize(
    "options",
    [
        {"cap": 0},
        {"cap": -1},
        {"cap": 2.5},
        {"cap": True},
        {"components": 0},
        {"components": "3"},
        {"tap": "activations"},
        {"fit_cap": 0},
        {"fit_cap": None},
    ],
)
def test_options_out_of_range_are_refused(make: Callable[..., Extractor], options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{make.__name__}: {next(iter(options))}"):
        make(**options)


# Keys.


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.sampled_from([(3,), (1, 4, 4), (2, 3, 1, 2)]), st.booleans(), st.data())
def test_keys_are_of_the_contents_alone(n: int, shape: tuple[int, ...], floats: bool, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(n)
    inputs = torch.randint(-3, 4, (n, *shape), generator=generator)
    inputs = inputs / 7 if floats else inputs
    keys = content_keys(inputs)
    order = torch.tensor(data.draw(st.permutations(range(n))))
    np.testing.assert_array_equal(content_keys(inputs[order]), keys[order.numpy()])
    width = data.draw(st.integers(1, n))
    np.testing.assert_array_equal(np.concatenate([content_keys(part) for part in inputs.split(width)]), keys)
    wide = torch.stack([inputs, inputs], -1)[..., 1]
    assert n * inputs[0].numel() == 1 or not wide.is_contiguous()
    np.testing.assert_array_equal(content_keys(wide), keys)
    equal = (inputs[:, None] == inputs[None]).flatten(2).all(2).numpy()
    np.testing.assert_array_equal(keys[:, None] == keys[None], equal)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("scale", [1.0, 1 / 16, 1 / 255, 2.0**-20, 1e6])
@pytest.mark.parametrize("floats", [True, False])
def test_one_other_element_is_another_key(levels: int, scale: float, floats: bool) -> None:
    """Images of few levels, whose float32 have most bits in common."""
    base = torch.randint(levels, (64,), generator=torch.Generator().manual_seed(0))
    others = base.repeat(64 * levels, 1)
    places = torch.arange(64).repeat_interleave(levels)
    others[torch.arange(len(others)), places] = torch.arange(levels).repeat(64)
    inputs = others.float() * scale if floats else others
    distinct_images = 64 * (levels - 1) + 1
    assert len(np.unique(others.numpy(), axis=0)) == distinct_images
    assert len(np.unique(content_keys(inputs))) == distinct_images


def test_the_last_bit_of_a_float_is_another_key() -> None:
    one = torch.linspace(-1, 1, 50)[None]
    for place in range(50):
        other = one.clone()
        other[0, place] = torch.nextafter(one[0, place], torch.tensor(2.0))
        assert content_keys(other) != content_keys(one)


def test_exchanged_elements_are_another_key() -> None:
    images = torch.eye(100) + 2 * torch.roll(torch.eye(100), 1, 0)
    assert len(np.unique(content_keys(torch.cat([images, images.flip(1)])))) == 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_no_collisions_among_images_of_two_levels(dtype: torch.dtype) -> None:
    images = torch.randint(2, (100_000, 64), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert len(np.unique(content_keys(images))) == len(images)


def test_no_collisions_among_images_whose_numbers_have_one_bit() -> None:
    """The float 2.0 is the bit 30 alone: multiplied and summed as it is, it would leave 34 bits for a key."""
    numbers = torch.randint(1 << 40, (300_000,), generator=torch.Generator().manual_seed(0)).unique()
    images = 2.0 * (numbers[:, None] >> torch.arange(40) & 1).float()
    assert len(np.unique(content_keys(images))) == len(images)


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x / 16, lambda x: (x - x.mean()) / x.std(), lambda x: x > 7])
def test_no_collisions_among_the_digits(change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    images = change(load_digits().images)
    expected = len(np.unique(images.reshape(len(images), -1), axis=0))
    inputs = torch.as_tensor(images)[:, None]
    assert len(np.unique(content_keys(inputs.float()))) == expected
    assert len(np.unique(content_keys((inputs * 1000).long()))) == expected


def test_keys_use_all_of_their_bits() -> None:
    keys = content_keys(torch.as_tensor(load_digits().images).float())
    ones = np.array([(keys >> np.uint64(bit) & np.uint64(1)).sum() for bit in range(64)])
    assert scipy.stats.binomtest(int(ones.min()), len(keys)).pvalue > SIGNIFICANT / 64
    assert scipy.stats.binomtest(int(ones.max()), len(keys)).pvalue > SIGNIFICANT / 64


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.data())
def test_equal_inputs_get_keys_of_their_own(values: list[int], data: st.DataObject) -> None:
    keys = mix(np.array(values, dtype=np.uint64))
    made = distinct(keys)
    assert len(np.unique(made)) == len(values)
    other = distinct(mix(np.array(data.draw(st.permutations(values)), dtype=np.uint64)))
    assert set(made) == set(other)
    # The first of a kind keeps its key.
    assert set(keys) <= set(made)


def test_mix_is_splitmix64() -> None:
    """The first outputs for the seed 0, as the generator's authors give them."""
    states = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(value) for value in mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]
