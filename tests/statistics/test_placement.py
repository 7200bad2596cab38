"""Ranks among reference numbers, compared with brute force and with SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_1samp, mannwhitneyu, uniform

from genmeasures.errors import Undefined
from genmeasures.statistics.placement import Placement

numbers = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=20)


def placed(reference: list[float], new: list[float]) -> Placement:
    placement = Placement(torch.tensor(reference, dtype=torch.float64), torch.arange(len(reference)))
    for start in range(0, len(new), 3):
        part = torch.tensor(new[start : start + 3], dtype=torch.float64)
        placement.add(part, torch.arange(start, start + len(part)))
    return placement


@settings(max_examples=150, deadline=None)
@given(numbers, numbers)
def test_places_are_those_of_brute_force(reference: list[float], new: list[float]) -> None:
    """Equal numbers share their places; the distance is the largest over all places."""
    n = len(reference)
    ranks, masses = [], np.zeros(n + 1)
    for number in new:
        below, equal = sum(r < number for r in reference), sum(r == number for r in reference)
        ranks.append((below + (equal + 1) / 2) / (n + 1))
        masses[below : below + equal + 1] += 1 / (equal + 1) / len(new)
    placement = placed(reference, new)
    assert placement.rank() == pytest.approx(np.mean(ranks), abs=1e-12)
    expected = np.abs(np.cumsum(masses) - np.arange(1, n + 2) / (n + 1)).max()
    assert placement.distance() == pytest.approx(expected, abs=1e-12)


def test_without_ties_rank_and_distance_are_those_of_mann_whitney_and_kolmogorov_smirnov() -> None:
    rng = np.random.default_rng(0)
    reference, new = rng.normal(size=400), rng.normal(0.3, 1.2, 300)
    placement = placed(reference.tolist(), new.tolist())
    below = (reference[:, None] < new).sum(0)
    auc = mannwhitneyu(new, reference).statistic / 300 / 400
    assert placement.rank() == pytest.approx((400 * auc + 0.5) / 401, rel=1e-12)
    # Ranks (1 + below)/(n + 1) are those of the upper ends of the places: one place is the resolution.
    expected = ks_1samp((1 + below) / 401, uniform.cdf).statistic
    assert placement.distance() == pytest.approx(expected, abs=1 / 401)


def test_the_rank_of_exchangeable_numbers_is_one_half_within_its_error() -> None:
    """With ties, few inputs, and inputs of several equal numbers."""
    rng = np.random.default_rng(0)
    ranks, errors = [], []
    for _ in range(600):
        drawn = np.maximum(rng.normal(size=40), 0).repeat(3)
        placement = Placement(torch.from_numpy(drawn[:45]), torch.arange(15).repeat_interleave(3))
        placement.add(torch.from_numpy(drawn[45:]), torch.arange(25).repeat_interleave(3))
        ranks.append(placement.rank())
        errors.append(placement.rank_error())
    assert abs(np.mean(ranks) - 0.5) < 3 * np.std(ranks) / np.sqrt(600)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(ranks), rel=0.1)


def test_numbers_that_differ_by_rounding_are_equal() -> None:
    assert placed([1.0, 1e6], [1.0 + 1e-12, 1e6 - 1e-6]).rank() == 0.5
    with pytest.raises(Undefined, match="held back"):
        placed([], [1.0])
