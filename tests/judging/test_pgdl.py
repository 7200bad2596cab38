"""The PGDL score against a plain loop and the official figures, and the other judgments of a grid."""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from genmeasures.errors import DataError, OptionError, Undefined
from genmeasures.judging import (
    conditional_mutual_information,
    granulated_kendall,
    pgdl_pairs,
    pgdl_score,
    score_table,
    sign_errors,
    worst_sign_error,
)
from genmeasures.judging.hparam_grid import grid_codes
from genmeasures.judging.pgdl import pair_scores

TASK2 = Path(__file__).parents[1] / "data" / "cmi_task2"
MODES = ["official", "symmetric"]
SVHN_TEST = 26032

HALVES = pd.DataFrame({"lr": [0.1, 0.1, 0.2, 0.2], "norm": [True, False, True, False]})
"""A 2 × 2 grid to work out by hand."""


def grid(*sizes: int) -> pd.DataFrame:
    """Every combination, in order, of hyperparameters with so many values."""
    rows = list(itertools.product(*map(range, sizes)))
    return pd.DataFrame(rows, columns=[f"h{i}" for i in range(len(sizes))])


Case = tuple[np.ndarray, np.ndarray, pd.DataFrame]


@st.composite
def cases(draw: st.DrawFn, ties_in_measure: bool = True) -> Case:
    """A measure, gaps, many of them tied, that no pair of hyperparameters determines, and a shuffled grid."""
    hparams = grid(*draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)), 2, 2, 2)
    n = len(hparams)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gap = rng.integers(0, draw(st.sampled_from([3, n, 10 * n])), size=n) / 100
    mu = (
        rng.integers(-2, 3, size=n).astype(float)
        if ties_in_measure and draw(st.booleans())
        else rng.permutation(n) - 7.5
    )
    return mu, gap, hparams.sample(frac=1, random_state=int(rng.integers(1000)))


def tables(mu: np.ndarray, gap: np.ndarray, hparams: pd.DataFrame, chosen: tuple[str, ...], same: bool) -> list[Any]:
    """2 × 2 counts, [gap larger][measure larger], of every slice."""
    columns = [hparams[name].tolist() for name in chosen]
    counts: dict[Any, list[list[int]]] = defaultdict(lambda: [[0, 0], [0, 0]])
    for i in range(len(gap)):
        for j in range(len(gap)):
            if same or i != j:
                counts[tuple((c[i], c[j]) for c in columns)][int(gap[i] > gap[j])][int(mu[i] > mu[j])] += 1
    return list(counts.values())


def information(table: list[list[int]]) -> float:
    total = sum(map(sum, table))
    bits = 0.0
    for x, y in itertools.product((0, 1), (0, 1)):
        p = table[x][y] / total
        if p > 0:
            bits += p * math.log2(p / (sum(table[x]) / total * (table[0][y] + table[1][y]) / total))
    return bits


def entropy(table: list[list[int]], offset: float) -> float:
    shares = [sum(row) / sum(map(sum, table)) for row in table]
    return -sum(p * math.log2(p + offset) for p in shares if p > 0)


def loop_pairs(mu: np.ndarray, gap: np.ndarray, hparams: pd.DataFrame, mode: str) -> list[tuple[float, float]]:
    """Mean information and entropy over the slices of each pair of hyperparameters, as pgdl.md describes it."""
    found = []
    for chosen in itertools.combinations(hparams.columns, 2):
        slices = tables(mu, gap, hparams, chosen, mode == "official")
        number = math.prod(hparams[name].nunique() ** 2 for name in chosen)
        found.append((sum(map(information, slices)) / number, sum(entropy(t, 1e-12) for t in slices) / number))
    return found


def loop_k(mu: np.ndarray, gap: np.ndarray, hparams: pd.DataFrame, size: int) -> float:
    ratios = []
    for r in range(size + 1):
        for chosen in itertools.combinations(hparams.columns, r):
            slices = tables(mu, gap, hparams, chosen, False)
            share = [sum(map(sum, t)) / (len(gap) * (len(gap) - 1)) for t in slices]
            top = sum(p * information(t) for p, t in zip(share, slices, strict=True))
            bottom = sum(p * entropy(t, 0.0) for p, t in zip(share, slices, strict=True))
            ratios.append(top / bottom if bottom else math.nan)
    return math.nan if any(map(math.isnan, ratios)) else min(ratios)


def defined(call: Callable[..., float], *args: Any) -> float:
    """The value of a call, NaN where it has none."""
    try:
        return call(*args)
    except Undefined:
        return math.nan


@pytest.fixture(scope="module")
def task2() -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """The models with their gaps and measures, their hyperparameters, and the score of each measure."""
    table = pd.read_csv(TASK2 / "task2_v1.csv")
    official = json.loads((TASK2 / "official_scores.json").read_text())
    measures = table[["model", "gap", *official]]
    return measures, table.drop(columns=measures.columns), official


def test_official_scores_of_task_2(task2: tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]) -> None:
    measures, hparams, official = task2
    scores = {name: pgdl_score(measures[name], measures["gap"], hparams) for name in official}
    assert len(official) == 4
    assert hparams.shape == (54, 4)
    assert scores == pytest.approx(official, abs=1e-11)
    at_once = pair_scores(measures[list(official)].to_numpy().T, measures["gap"].to_numpy(), grid_codes(hparams))
    np.testing.assert_allclose(at_once.min(axis=1), list(official.values()), atol=1e-11)


def test_only_the_official_score_depends_on_the_sign(
    task2: tuple[pd.DataFrame, pd.DataFrame, dict[str, float]],
) -> None:
    measures, hparams, official = task2
    for name in official:
        mu, gap = measures[name], measures["gap"]
        assert abs(pgdl_score(mu, gap, hparams) - pgdl_score(-mu, gap, hparams)) > 1e-3
        assert pgdl_score(mu, gap, hparams, "symmetric") == pytest.approx(
            pgdl_score(-mu, gap, hparams, "symmetric"), abs=1e-12
        )


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=40)
@given(cases())
def test_pairs_are_those_of_the_loop(mode: str, case: Case) -> None:
    mu, gap, hparams = case
    pairs = pgdl_pairs(mu, gap, hparams, mode)
    expected = loop_pairs(mu, gap, hparams, mode)
    assert list(zip(pairs["first"], pairs["second"], strict=True)) == list(itertools.combinations(hparams.columns, 2))
    np.testing.assert_allclose(pairs[["information", "entropy"]].to_numpy(), expected, atol=1e-13)
    # A real entropy is far above the −1e-12 that the offset leaves of none.
    scores = [i / h if h > 1e-9 else math.nan for i, h in expected]
    np.testing.assert_allclose(pairs["score"], scores, rtol=1e-9, atol=1e-11)
    score = defined(pgdl_score, mu, gap, hparams, mode)
    if any(map(math.isnan, scores)):
        assert math.isnan(score)
        assert not pairs["minimum"].any()
    else:
        assert score == pytest.approx(min(scores), abs=1e-11)
        assert 0 <= score <= 1
        assert (pairs.loc[pairs["minimum"], "score"] == score).all()
        assert pairs["minimum"].any()


@pytest.mark.parametrize("size", [0, 1, 2])
@settings(deadline=None, max_examples=25)
@given(cases())
def test_conditional_mutual_information_is_that_of_the_loop(size: int, case: Case) -> None:
    mu, gap, hparams = case
    found = defined(conditional_mutual_information, mu, gap, hparams, size)
    assert found == pytest.approx(loop_k(mu, gap, hparams, size), abs=1e-12, nan_ok=True)


def test_conditioning_on_more_cannot_raise_it() -> None:
    rng = np.random.default_rng(1)
    hparams = grid(2, 3, 2, 2)
    mu, gap = rng.normal(size=(2, len(hparams)))
    zero, one, two = (conditional_mutual_information(mu + gap, gap, hparams, size) for size in (0, 1, 2))
    assert 0 < two <= one <= zero < 1


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=25)
@given(cases(), st.randoms(use_true_random=False))
def test_only_orders_and_groups_matter(mode: str, case: Case, random: Any) -> None:
    """A monotone transform of the measure, another order of models or hyperparameters, other values: all the same."""
    mu, gap, hparams = case
    score = defined(pgdl_score, mu, gap, hparams, mode)
    same = {"abs": 1e-12, "nan_ok": True}
    assert defined(pgdl_score, np.exp(mu / 3), gap, hparams, mode) == pytest.approx(score, **same)
    order = np.array(random.sample(range(len(gap)), len(gap)))
    assert defined(pgdl_score, mu[order], gap[order], hparams.iloc[order], mode) == pytest.approx(score, **same)
    assert defined(pgdl_score, mu, gap, hparams[hparams.columns[::-1]], mode) == pytest.approx(score, **same)
    renamed = hparams.apply(lambda column: column.map({0: "sgd", 1: None, 2: 0.5}).astype(object))
    assert defined(pgdl_score, mu, gap, renamed, mode) == pytest.approx(score, **same)


@settings(deadline=None, max_examples=25)
@given(cases(ties_in_measure=False))
def test_symmetric_score_has_no_sign(case: Case) -> None:
    mu, gap, hparams = case
    score = defined(pgdl_score, mu, gap, hparams, "symmetric")
    assert defined(pgdl_score, -mu, gap, hparams, "symmetric") == pytest.approx(score, abs=1e-12, nan_ok=True)


def test_symmetric_score_has_no_sign_with_ties_in_the_measure_alone() -> None:
    rng = np.random.default_rng(2)
    hparams = grid(2, 2, 2, 2)
    mu, gap = rng.integers(0, 3, size=16), rng.permutation(16)
    assert pgdl_score(mu, gap, hparams, "symmetric") == pytest.approx(pgdl_score(-mu, gap, hparams, "symmetric"))


@pytest.mark.parametrize("mode", MODES)
def test_a_perfect_and_a_constant_measure(mode: str) -> None:
    hparams = grid(2, 3, 2, 2)
    gap = np.random.default_rng(3).permutation(len(hparams)) / 100
    assert pgdl_score(gap**3, gap, hparams, mode) == pytest.approx(1, abs=1e-9)
    assert pgdl_score(gap * 0, gap, hparams, mode) == 0
    assert conditional_mutual_information(gap, gap, hparams, 2) == pytest.approx(1)
    assert granulated_kendall(gap, gap, hparams).psi == 1
    assert granulated_kendall(-gap, gap, hparams).psi == -1
    assert worst_sign_error(gap, gap, hparams, 10**6) == 0
    assert worst_sign_error(-gap, gap, hparams, 10**6) == 1
    assert worst_sign_error(0 * gap, gap, hparams, 10**6) == 0.5


def test_a_constant_hyper_parameter_counts() -> None:
    """It adds pairs that condition on one hyperparameter alone."""
    rng = np.random.default_rng(4)
    mu, gap = rng.normal(size=(2, 8))
    pairs = pgdl_pairs(mu, gap, grid(2, 2, 2, 1))
    assert len(pairs) == 6
    np.testing.assert_array_equal(pairs["score"].iloc[[0, 1, 3]], pgdl_pairs(mu, gap, grid(2, 2, 2))["score"])


def test_fifty_measures_of_96_models_take_less_than_two_seconds() -> None:
    hparams = grid(3, 2, 2, 2, 2, 2, 1)
    rng = np.random.default_rng(5)
    measures, gap = rng.normal(size=(50, 96)), rng.normal(size=96)
    start = time.process_time()
    scores = pair_scores(measures, gap, grid_codes(hparams))
    assert time.process_time() - start < 2
    assert scores.shape == (50, 21)
    assert scores[7].min() == pgdl_score(measures[7], gap, hparams)


def test_granulated_kendall_by_hand() -> None:
    """lr: pairs (0, 2) −1 and (1, 3) +1; norm: (0, 1) +1 and (2, 3) a tie of the measure."""
    psi, frame = granulated_kendall([2, 1, 1.5, 1.5], [0.2, 0.1, 0.3, 0.4], HALVES)
    assert psi == 0.25
    assert frame.to_dict("list") == {
        "hparam": ["lr", "norm"],
        "kendall": [0, 0.5],
        "groups": [2, 2],
        "left_out": [0, 0],
    }


def test_granulated_kendall_is_that_of_scipy_without_ties() -> None:
    hparams = grid(4, 3, 5)
    rng = np.random.default_rng(6)
    mu, gap = rng.normal(size=(2, len(hparams)))
    psi, frame = granulated_kendall(mu, gap, hparams)
    data = hparams.assign(mu=mu, gap=gap)
    expected = []
    for name in hparams:
        groups = data.groupby([other for other in hparams if other != name])
        expected.append(np.mean([scipy.stats.kendalltau(group["mu"], group["gap"])[0] for _, group in groups]))
    np.testing.assert_allclose(frame["kendall"], expected)
    assert psi == pytest.approx(np.mean(expected))
    assert frame["groups"].tolist() == [15, 20, 12]


def test_granulated_kendall_leaves_out_groups_without_an_order() -> None:
    """Without the last model; a = 0 has equal gaps, and the constant c has groups of one."""
    hparams = pd.DataFrame({"a": [0, 0, 1], "b": [0, 1, 0], "c": ["x", "x", "x"]})
    psi, frame = granulated_kendall([1, 2, 3], [0.1, 0.1, 0.2], hparams)
    assert psi == 1
    assert frame["groups"].tolist() == [1, 0, 0]
    assert frame["left_out"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(frame["kendall"], [1, np.nan, np.nan])
    with pytest.raises(Undefined, match="needs two models with different gaps"):
        granulated_kendall([1, 2, 3], [0.1, 0.1, 0.1], hparams)


def test_sign_errors_by_hand() -> None:
    """lr: (0, 2) wrong, Δ = 0.1, (1, 3) right, Δ = 0.3; norm: (0, 1) right, Δ = 0.1, (2, 3) a tie, Δ = 0.1."""
    mu, gap = [2, 1, 1.5, 1.5], [0.2, 0.1, 0.3, 0.4]
    near, far = ((1 - 2 * math.exp(-2 * 1000 * (d / 2) ** 2)) ** 2 for d in (0.1, 0.3))
    frame = sign_errors(mu, gap, HALVES, 1000)
    assert frame.columns.tolist() == ["hparam", "error", "pairs", "weight"]
    assert frame["hparam"].tolist() == ["lr", "norm"]
    assert frame["pairs"].tolist() == [2, 2]
    np.testing.assert_allclose(frame["weight"], [near + far, 2 * near])
    np.testing.assert_allclose(frame["error"], [near / (near + far), 0.25])
    assert worst_sign_error(mu, gap, HALVES, 1000) == frame["error"].max()


def test_sign_errors_of_gaps_that_the_test_set_cannot_tell_apart() -> None:
    """With 10 samples 1 − 2·exp(−20·(Δ/2)²) is positive from Δ = 0.37 on: for a alone."""
    mu, gap = [1, 2, 3, 4], [0.0, 0.1, 0.5, 0.6]
    frame = sign_errors(mu, gap, HALVES, 10)
    assert frame["error"].iloc[0] == 0
    assert math.isnan(frame["error"].iloc[1])
    assert frame["weight"].iloc[1] == 0
    assert worst_sign_error(mu, gap, HALVES, 10) == 0
    with pytest.raises(Undefined, match="1 test samples"):
        worst_sign_error(mu, gap, HALVES, 1)


def test_score_table() -> None:
    rng = np.random.default_rng(7)
    scores = pd.DataFrame(rng.uniform(0, 50, size=(3, 6)), index=list("xyz"), columns=[f"task{i}" for i in range(6)])
    scores.iloc[2, 1] = np.nan
    table = score_table(scores, seed=11)
    assert table.columns.tolist() == [*scores.columns, "mean", "low", "high"]
    pd.testing.assert_frame_equal(table[scores.columns], scores)
    np.testing.assert_allclose(table["mean"], scores.to_numpy().mean(axis=1))
    assert (table["low"] < table["mean"])[:2].all()
    assert (table["mean"] < table["high"])[:2].all()
    assert table.loc["z", ["mean", "low", "high"]].isna().all()
    draws = np.random.default_rng(8).integers(6, size=(20_000, 6))
    expected = np.quantile(scores.to_numpy()[:2, draws].mean(axis=2), [0.025, 0.975], axis=1)
    many = score_table(scores, resamples=20_000)
    np.testing.assert_allclose(many[["low", "high"]].to_numpy()[:2].T, expected, atol=0.5)
    pd.testing.assert_frame_equal(table, score_table(scores, seed=np.random.default_rng(11)))
    assert (score_table(scores, confidence=0.5, seed=11)["low"] > table["low"])[:2].all()


def test_score_table_of_one_task_has_no_interval() -> None:
    table = score_table(pd.DataFrame({"task1": [3.0, 4.0]}))
    assert table["mean"].tolist() == [3, 4]
    assert table[["low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("scores", "options", "error", "message"),
    [
        ({"a": [1.0]}, {"confidence": 1}, OptionError, "confidence"),
        ({"a": [1.0]}, {"resamples": 0}, OptionError, "resamples"),
        ({"a": [1.0], "low": [1.0]}, {}, DataError, "'low'"),
        ({}, {}, DataError, "at least 1 column"),
        ({"a": [1.0], "b": [np.inf]}, {}, DataError, "1 infinite values"),
        ({"a": ["high"]}, {}, DataError, "must be numeric"),
    ],
)
def test_score_table_errors(
    scores: dict[str, list[Any]], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        score_table(pd.DataFrame(scores), **options)


FOUR = [1.0, 2.0, 3.0, 4.0]
CALLS: dict[str, Callable[..., Any]] = {
    "pgdl_score": pgdl_score,
    "pgdl_pairs": pgdl_pairs,
    "conditional_mutual_information": lambda mu, gap, hparams: conditional_mutual_information(mu, gap, hparams, 1),
    "granulated_kendall": granulated_kendall,
    "sign_errors": lambda mu, gap, hparams: sign_errors(mu, gap, hparams, 100),
    "worst_sign_error": lambda mu, gap, hparams: worst_sign_error(mu, gap, hparams, 100),
}
LOOSE = ["granulated_kendall", "sign_errors", "worst_sign_error"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("mu", "gap", "hparams", "message"),
    [
        (FOUR[:3], FOUR, HALVES, "got 3 values, 4 values and 4 rows"),
        (FOUR, FOUR[:3], HALVES, "got 4 values, 3 values"),
        (FOUR[:3], FOUR[:3], HALVES, "and 4 rows"),
        (FOUR, [0, np.nan, 1, np.inf], HALVES, "gap is not finite for 2 of 4 models, at index 1, 3"),
        ([0, -np.inf, 1, 2], FOUR, HALVES, "measure is not finite for 1 of 4 models, at index 1"),
        ([FOUR], FOUR, HALVES, r"measure .* got the shape \(1, 4\)"),
        (["a", "b", "c", "d"], FOUR, HALVES, "measure must be numeric"),
        (FOUR, FOUR, HALVES[[]], "hyperparameters"),
        ([], [], HALVES[:0], "got no rows"),
        (FOUR, FOUR, HALVES.iloc[[0, 1, 2, 1]], "rows 1, 3 have lr=0.1, norm=False \\(1 duplicate"),
        (FOUR, FOUR, HALVES.set_axis(["lr", "lr"], axis=1), "duplicate column 'lr'"),
        (FOUR, FOUR, HALVES.assign(norm=[[1], [2], [1], [2]]), "'norm' has values that cannot be compared"),
    ],
)
def test_data_errors(call: str, mu: Any, gap: Any, hparams: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CALLS[call](mu, gap, hparams)


@pytest.mark.parametrize("call", CALLS)
def test_a_grid_with_a_hole(call: str) -> None:
    hparams = HALVES.iloc[[0, 1, 3]]
    if call in LOOSE:
        CALLS[call](FOUR[:3], FOUR[:3], hparams)
        return
    message = "1 of 4 combinations have no model, for example lr=0.2, norm=True"
    with pytest.raises(DataError, match=re.escape(message)):
        CALLS[call](FOUR[:3], FOUR[:3], hparams)


@pytest.mark.parametrize("call", CALLS)
def test_one_hyper_parameter(call: str) -> None:
    if call in LOOSE:
        CALLS[call]([1, 2], [0.1, 0.9], pd.DataFrame({"a": [0, 1]}))
        return
    with pytest.raises(DataError, match="at least 2 columns, got 1"):
        CALLS[call]([1, 2], [1, 2], pd.DataFrame({"a": [0, 1]}))


def test_a_table_that_is_far_from_a_grid() -> None:
    """40 columns with a value a model: more combinations than 64 bits count."""
    hparams = pd.DataFrame({f"h{i}": range(50) for i in range(40)})
    with pytest.raises(DataError, match=f"{50**40 - 50} of {50**40} combinations have no model"):
        pgdl_score(range(50), range(50), hparams)


def test_option_errors() -> None:
    with pytest.raises(OptionError, match="did you mean 'symmetric'"):
        pgdl_score(FOUR, FOUR, HALVES, "symetric")
    with pytest.raises(OptionError, match=r"size must .* got 3"):
        conditional_mutual_information(FOUR, FOUR, HALVES, 3)
    for call in (sign_errors, worst_sign_error):
        with pytest.raises(OptionError, match=r"test_size must .* got 0"):
            call(FOUR, FOUR, HALVES, 0)


@pytest.mark.parametrize("mode", MODES)
def test_no_uncertainty_is_undefined(mode: str) -> None:
    """With two hyperparameters each slice holds one pair of models; h0 and h1 may also settle the gaps."""
    with pytest.raises(Undefined, match=r"'lr' and 'norm' determine the order of the gaps"):
        pgdl_score(FOUR, FOUR, HALVES, mode)
    hparams = grid(2, 2, 2)
    with pytest.raises(Undefined, match="all gaps are equal"):
        pgdl_score(range(8), np.ones(8), hparams, mode)
    settled = hparams["h0"] * 2 + hparams["h1"]
    pairs = pgdl_pairs(range(8), settled, hparams, mode)
    assert pairs["score"].isna().tolist() == [True, False, False]
    assert not pairs["minimum"].any()
    with pytest.raises(Undefined, match=r"'h0' and 'h1' .* \(1 of 3 sets"):
        pgdl_score(range(8), settled, hparams, mode)


def test_no_uncertainty_of_the_conditional_mutual_information() -> None:
    with pytest.raises(Undefined, match="all gaps are equal"):
        conditional_mutual_information(FOUR, np.ones(4), HALVES, 1)
    with pytest.raises(Undefined, match="'lr' and 'norm'"):
        conditional_mutual_information(FOUR, [1, 3, 2, 4], HALVES, 2)
    assert conditional_mutual_information(FOUR, FOUR, HALVES, 0) == pytest.approx(1)


@pytest.mark.parametrize(
    "hparams", [{"a": [0, 1, 0, 1], "b": [0, 0, 1, 1]}, np.array([[0, 0], [1, 0], [0, 1], [1, 1]])]
)
def test_hparams_are_a_frame(hparams: Any) -> None:
    for score in (pgdl_score, granulated_kendall):
        with pytest.raises(DataError, match="must be a pandas DataFrame"):
            score([1, 2, 3, 4], [1, 2, 3, 5], hparams)
