"""Intervals and p-values against SciPy, and how often intervals hold the truth."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from genmeasures.judging import bca_interval, judge, resample_counts
from genmeasures.judging.bootstrap import widening
from genmeasures.judging.correlation import STATISTICS
from genmeasures.judging.permutation import correlation_p_values, p_value, permutations
from genmeasures.judging.ranks import Floats
from genmeasures.judging.resampling import left_out_counts

REFERENCE = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr, "kendall": scipy.stats.kendalltau}


def judged(x: Any, y: Any, **options: Any) -> Any:
    ds = xr.Dataset(
        {"m": ("model", np.asarray(x, dtype=float)), "m_status": ("model", ["ok"] * len(x))},
        {"test_accuracy": ("model", np.asarray(y, dtype=float))},
    )
    return judge(ds, **options).iloc[0]


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("n", [8, 12, 30])
def test_bca_intervals_are_those_of_scipy(name: str, n: int) -> None:
    """On the same resamples, which SciPy takes from an earlier result."""
    rng = np.random.default_rng(n)
    x, noise = rng.normal(size=(2, n))
    y = x + noise
    statistic = STATISTICS[name]
    # Rounded on both sides: SciPy does not take for ties what differs by rounding alone.
    resampled = np.round(statistic(x, y, resample_counts(n, 999, rng)), 10)
    resampled = resampled[np.isfinite(resampled)]
    reference = scipy.stats.bootstrap(
        (x, y),
        lambda a, b: round(REFERENCE[name](a, b).statistic, 10),
        paired=True,
        vectorized=False,
        n_resamples=0,
        bootstrap_result=SimpleNamespace(bootstrap_distribution=resampled),
        method="BCa",
        confidence_level=0.9,
    ).confidence_interval
    found = bca_interval(np.round(statistic(x, y, None), 10), resampled, statistic(x, y, left_out_counts(n)), 0.9)
    np.testing.assert_allclose((found.low, found.high), reference, atol=1e-9)


def test_the_interval_of_judge_is_bca_at_a_wider_level() -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 12))
    row = judged(x, x + noise, resamples=500, seed=7, confidence=0.9)
    counts = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=500)
    resampled = np.array(
        [np.corrcoef(x[r], (x + noise)[r])[0, 1] for r in (np.repeat(np.arange(12), c) for c in counts)]
    )
    level = 2 * scipy.stats.norm.cdf(scipy.stats.norm.ppf(0.95) * math.sqrt(12 / 10)) - 1
    reference = scipy.stats.bootstrap(
        (x, x + noise),
        lambda a, b: np.corrcoef(a, b)[0, 1],
        paired=True,
        vectorized=False,
        n_resamples=0,
        bootstrap_result=SimpleNamespace(bootstrap_distribution=resampled),
        method="BCa",
        confidence_level=level,
    ).confidence_interval
    np.testing.assert_allclose((row["pearson_low"], row["pearson_high"]), reference, atol=1e-9)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("tied", [False, True])
def test_exact_p_values_are_those_of_scipy(name: str, tied: bool) -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 6))
    if tied:
        x, y = np.round(x), np.round(y)
    reference = scipy.stats.permutation_test(
        (x,),
        lambda a: abs(REFERENCE[name](a, y).statistic),
        permutation_type="pairings",
        alternative="greater",
        vectorized=False,
        n_resamples=math.inf,
    )
    assert judged(x, y)[f"{name}_p"] == pytest.approx(reference.pvalue, abs=1e-12)


@pytest.mark.parametrize("name", STATISTICS)
def test_random_p_values_are_those_of_scipy(name: str) -> None:
    """With other permutations: three standard errors of the two shares apart, at most."""
    rng = np.random.default_rng(3)
    x, noise = rng.normal(size=(2, 25))
    y = 0.4 * x + noise
    reference = scipy.stats.permutation_test(
        (x,),
        lambda a: abs(REFERENCE[name](a, y).statistic),
        permutation_type="pairings",
        alternative="greater",
        vectorized=False,
        n_resamples=1999,
        rng=np.random.default_rng(0),
    ).pvalue
    found = judged(x, y, resamples=1999)[f"{name}_p"]
    assert 0.01 < reference < 0.5
    assert found == pytest.approx(reference, abs=3 * math.sqrt(2 * reference * (1 - reference) / 1999))
    assert found * 2000 == pytest.approx(round(found * 2000))  # the observed order counts as one more


def test_p_values_are_never_zero() -> None:
    x = np.arange(20.0)
    assert judged(x, x, resamples=99)["spearman_p"] == pytest.approx(1 / 100)
    assert judged(x[:4], x[:4])["pearson_p"] == pytest.approx(2 / 24)
    assert judged(x[:3], -x[:3])["kendall_p"] == pytest.approx(2 / 6)


def test_p_values_are_uniform_where_there_is_nothing() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 10)), rng.normal(size=10)
    orders, exhaustive = permutations(10, 499, rng) or (None, None)
    assert orders is not None
    assert exhaustive is False
    for p in correlation_p_values(x, y[None], orders, exhaustive).values():
        below = float(np.mean(p <= 0.1))
        assert below == pytest.approx(0.1, abs=3 * math.sqrt(0.09 / 400))


def test_permutations() -> None:
    rng = np.random.default_rng(0)
    orders, exhaustive = permutations(5, 10, rng) or (None, None)
    assert orders is not None
    assert exhaustive is True
    assert len({tuple(order) for order in orders.tolist()}) == 120
    orders, exhaustive = permutations(9, 10, rng) or (None, None)
    assert orders is not None
    assert exhaustive is False
    assert orders.shape == (10, 9)
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    groups = np.array([1, 0, 1, 0, 2, 2])
    orders, exhaustive = permutations(6, 10, rng, groups) or (None, None)
    assert orders is not None
    assert len(orders) == 6
    # The first of one group with the first of another, the second with the second.
    assert {tuple(order) for order in orders.tolist()} >= {(0, 1, 2, 3, 4, 5), (1, 0, 3, 2, 4, 5)}
    assert permutations(3, 10, rng, np.array([0, 0, 1])) is None


def test_p_values_count_ties_and_the_observed_order() -> None:
    null = np.array([0.5, 0.5 + 1e-14, 0.2, 0.9])
    assert float(p_value(np.array(0.5), null, exhaustive=True)) == 3 / 4
    assert float(p_value(np.array(0.5), null, exhaustive=False)) == 4 / 5
    assert np.isnan(p_value(np.array(np.nan), null, exhaustive=False))


def test_few_models_have_p_values_and_no_interval() -> None:
    row = judged([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.41])
    assert row["pearson"] > 0.99
    assert np.isnan(row["pearson_low"])
    assert row["pearson_p"] == pytest.approx(2 / 24)
    assert row["status"] == "note: no intervals: 4 models, at least 8 are needed"


def test_what_all_resamples_share_is_no_certainty() -> None:
    x = np.arange(15.0)
    row = judged(x, np.exp(x))
    assert row["spearman"] == row["kendall"] == 1
    assert np.isnan(row["spearman_low"])
    assert row["status"] == "note: no interval of spearman and kendall: equal in all resamples"
    assert row["pearson_low"] < row["pearson"] < row["pearson_high"]


def test_an_interval_without_resamples() -> None:
    found = bca_interval(np.array([0.3, np.nan]), np.array([[np.nan] * 4, [0.1, 0.2, 0.3, 0.4]]), np.ones((2, 3)))
    assert np.isnan(found.low).all()
    assert found.dropped.tolist() == [4, 0]


def coverage(n: int, rho: float, trials: int, resamples: int) -> dict[str, tuple[float, float]]:
    """How many 95 % intervals hold the truth: those of judge, and plain percentiles, for each coefficient."""
    truth = {"pearson": rho, "spearman": 6 / np.pi * np.arcsin(rho / 2), "kendall": 2 / np.pi * np.arcsin(rho)}
    rng = np.random.default_rng(n)
    held = {name: np.zeros(2) for name in STATISTICS}
    left_out = left_out_counts(n)
    for _ in range(trials):
        x, noise = rng.normal(size=(2, n))
        y = rho * x + np.sqrt(1 - rho**2) * noise
        counts = resample_counts(n, resamples, rng)
        for name, statistic in STATISTICS.items():
            found: Floats = statistic(x, y, counts)
            new = bca_interval(statistic(x, y, None), found, statistic(x, y, left_out), widen=widening(n))
            old = np.nanquantile(found, [0.025, 0.975])
            held[name] += (new.low <= truth[name] <= new.high, old[0] <= truth[name] <= old[1])
    return {name: (float(of[0]) / trials, float(of[1]) / trials) for name, of in held.items()}


def test_intervals_hold_as_often_as_they_claim() -> None:
    """Bivariate normals, 200 trials each: three standard errors, √(0.95·0.05/200), are 4.6 percentage points.

    No interval holds less often than that below 95 %. Of Pearson's coefficient, none holds more often than
    that above, and plain percentiles are further from 95 % and too narrow. Intervals of ranks of few
    models are on the safe side, as ranks are discrete.
    """
    trials = 200
    tolerance = 3 * math.sqrt(0.95 * 0.05 / trials)
    found = {(n, rho): coverage(n, rho, trials, 300) for n in (8, 12, 20, 50) for rho in (0.0, 0.5, 0.9)}
    for case, by_name in found.items():
        for name, (new, _) in by_name.items():
            assert new >= 0.95 - tolerance, (case, name, new)
        assert by_name["pearson"][0] <= 0.95 + tolerance, (case, by_name["pearson"])
    new, old = (np.array([by_name["pearson"][k] for by_name in found.values()]) for k in (0, 1))
    assert np.mean(old) < 0.93  # 12 · 200 trials: the standard error is 0.5 percentage points
    assert np.mean(new) == pytest.approx(0.955, abs=0.02)
    assert np.abs(new - 0.95).mean() < np.abs(old - 0.95).mean()
