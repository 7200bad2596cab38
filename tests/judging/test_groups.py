"""Correlations given what is known already, and models that belong together."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from genmeasures.errors import DataError, OptionError
from genmeasures.judging import bca_interval, dummies, judge, partial_pearson, partial_spearman, pearson
from genmeasures.judging.bootstrap import widening


def correlated(seed: int, n: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    x, y, z = rng.standard_normal((3, n)) + rng.standard_normal((3, 2)) @ rng.standard_normal((2, n))
    return x, y, z


def trainings(runs: int = 10, epochs: int = 6, seed: int = 0) -> xr.Dataset:
    """Checkpoints of several trainings: accuracy grows with the epoch, and so does a measure that knows nothing."""
    rng = np.random.default_rng(seed)
    epoch = np.tile(np.arange(1, epochs + 1), runs)
    run = np.repeat(np.arange(runs), epochs)
    better = rng.normal(size=runs)[run]
    accuracy = 0.5 + 0.05 * np.log(epoch) + 0.02 * better + 0.002 * rng.normal(size=len(run))
    values = {
        "clock": np.log(epoch) + 0.05 * rng.normal(size=len(run)),
        "telling": better + 0.7 * rng.normal(size=runs)[run] + 0.1 * rng.normal(size=len(run)),
    }
    data = {name: ("model", v) for name, v in values.items()}
    data |= {f"{name}_status": ("model", np.full(len(run), "ok", dtype=object)) for name in values}
    coords = {
        "model": [f"run{r}_epoch{e}" for r, e in zip(run, epoch, strict=True)],
        "test_accuracy": ("model", accuracy),
        "training": ("model", np.array([f"run{r}" for r in run], dtype=object)),
        "log_epoch": ("model", np.log(epoch)),
        "objective": ("model", np.array(["dice", "mse"], dtype=object)[run % 2]),
    }
    return xr.Dataset(data, coords)


@given(st.integers(0, 10**6), st.integers(4, 40))
def test_partial_correlation_is_that_of_the_three_coefficients(seed: int, n: int) -> None:
    x, y, z = correlated(seed, n)
    xy, xz, yz = (np.corrcoef(a, b)[0, 1] for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_pearson(x, y, z[:, None]) == pytest.approx(expected, abs=1e-8)


@given(st.integers(0, 10**6), st.floats(0.01, 1e4), st.floats(-1e4, 1e4))
def test_partial_correlation_knows_no_units(seed: int, scale: float, shift: float) -> None:
    x, y, z = correlated(seed, 12)
    alone = partial_pearson(x, y, z[:, None])
    assert partial_pearson(scale * x + 3 * z, y, (scale * z + shift)[:, None]) == pytest.approx(alone, abs=1e-7)
    assert partial_pearson(y, -x, z[:, None]) == pytest.approx(-alone, abs=1e-12)


def test_partial_correlation_given_several_and_given_nothing() -> None:
    x, y, z = correlated(3, 30)
    groups = np.repeat(["a", "b", "c"], 10)
    design = np.column_stack([z, dummies(groups)])
    left = [v - LinearRegression().fit(design, v).predict(design) for v in (x, y)]
    expected = scipy.stats.pearsonr(*left).statistic
    assert partial_pearson(x, y, design) == pytest.approx(expected, abs=1e-12)
    # A regressor that says what others say already changes nothing.
    twice = np.column_stack([design, 2 * z - design[:, 1]])
    assert partial_pearson(x, y, twice) == pytest.approx(expected, abs=1e-12)
    nothing = np.empty((30, 0))
    assert partial_pearson(x, y, nothing) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)


def test_partial_correlation_without_meaning_is_nan() -> None:
    x, y, z = correlated(0, 10)
    cases = [
        (np.ones(10), y, z[:, None]),
        (x, 5 + 2 * z, z[:, None]),
        (x[:3], y[:3], z[:3, None]),
        (np.where(z > 0, np.nan, x), y, z[:, None]),
        (x[:0], y[:0], z[:0, None]),
    ]
    for case in cases:
        assert np.isnan(partial_pearson(*case))
    assert np.isfinite(partial_pearson(x[:4], y[:4], z[:4, None]))


def test_partial_correlations_of_ranks_are_those_of_ranked_columns() -> None:
    x, y, z = correlated(5, 25)
    x = np.round(x)
    ranks = [scipy.stats.rankdata(v) for v in (x, y, z)]
    expected = partial_pearson(ranks[0], ranks[1], ranks[2][:, None])
    assert partial_spearman(x, y, z[:, None]) == pytest.approx(float(expected), abs=1e-12)
    assert partial_spearman(np.exp(x), y**3, np.exp(z)[:, None]) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("statistic", [partial_pearson, partial_spearman])
def test_partial_correlations_of_resamples_are_those_of_repeated_rows(statistic: Any) -> None:
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(3, 14))
    # Some resamples lack a group, whose dummy is then constant.
    design = np.column_stack([z, dummies(np.repeat(["a", "b", "c"], [2, 6, 6]))])
    rows = rng.integers(14, size=(60, 14))
    counts = np.array([np.bincount(row, minlength=14) for row in rows], dtype=float)
    found = statistic(np.stack([x, -x]), y, design, counts)
    expected = [float(statistic(x[row], y[row], design[row])) for row in rows]
    np.testing.assert_allclose(found[0], expected, atol=1e-9)
    np.testing.assert_allclose(found[1], -found[0], atol=1e-9)


def test_judging_given_what_is_known() -> None:
    ds = trainings()
    plain = judge(ds, resamples=300).set_index("measure")
    judged = judge(ds, given=["log_epoch", "objective"], resamples=300).set_index("measure")
    assert plain.loc["clock", "pearson"] > 0.6
    assert abs(judged.loc["clock", "pearson"]) < 0.3
    design = np.column_stack([ds["log_epoch"].values, ds["objective"].values == "mse"])
    left = [v - LinearRegression().fit(design, v).predict(design) for v in (ds["telling"], ds["test_accuracy"])]
    assert judged.loc["telling", "pearson"] == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-12)
    for name in ("pearson", "spearman"):
        low, value, high = (judged.loc["telling", f"{name}{end}"] for end in ("_low", "", "_high"))
        assert 0 < low < value < high
        assert judged.loc["telling", f"{name}_p"] == pytest.approx(1 / 301)
    assert judged.loc["clock", "pearson_p"] > 0.02
    assert judged["kendall"].isna().all()
    assert judged.attrs["given"] == "log_epoch, objective"
    by_value = judge(ds, given={"a": ds["log_epoch"].values, "b": ds["objective"].values}, resamples=300)
    np.testing.assert_array_equal(by_value["pearson"], judged["pearson"])


def test_p_values_given_something_are_those_of_permuted_residuals() -> None:
    """Freedman and Lane, by brute force over all permutations of 6 models."""
    x, y, z = correlated(2, 6)
    ds = xr.Dataset(
        {"m": ("model", x), "m_status": ("model", ["ok"] * 6)}, {"test_accuracy": ("model", y), "z": ("model", z)}
    )
    fitted = LinearRegression().fit(z[:, None], y).predict(z[:, None])
    residual = y - fitted
    null = [
        abs(float(partial_pearson(x, fitted + residual[list(o)], z[:, None]))) for o in itertools.permutations(range(6))
    ]
    expected = np.mean(np.array(null) >= abs(float(partial_pearson(x, y, z[:, None]))) - 1e-12)
    (row,) = judge(ds, given="z").itertuples()
    assert row.pearson_p == pytest.approx(expected, abs=1e-12)
    assert (
        row.status == "note: no intervals: 6 models, at least 9 (8 + 1 degrees of freedom of the covariates) are needed"
    )


def test_what_is_given_may_leave_nothing() -> None:
    ds = trainings(runs=2, epochs=3)
    exact = ds.assign(clock=ds["log_epoch"] * 2 + 1)
    status = judge(exact, given="log_epoch").set_index("measure")["status"]
    assert status["clock"] == "undefined: the covariates explain clock completely"
    names = {name: np.random.default_rng(k).normal(size=6) for k, name in enumerate("abcd")}
    status = judge(ds, given=names)["status"][0]
    assert status == "undefined: 6 models are too few for the 4 degrees of freedom of the covariates"
    ds["log_epoch"].values[2] = np.nan
    row = judge(ds, given="log_epoch").iloc[0]
    assert (row["n"], row["excluded_models"]) == (5, "run0_epoch3")


def test_whole_groups_are_resampled() -> None:
    ds = trainings()
    judged = judge(ds, groups="training", resamples=400, seed=2).set_index("measure")
    row = judged.loc["telling"]
    assert row["groups"] == 10
    x, y = ds["telling"].values, ds["test_accuracy"].values
    members = np.arange(60).reshape(10, 6)
    counts = np.random.default_rng(2).multinomial(10, np.full(10, 0.1), size=400)
    rows = [np.concatenate([np.tile(of, k) for of, k in zip(members, row, strict=True)]) for row in counts]
    resampled = np.array([np.corrcoef(x[r], y[r])[0, 1] for r in rows])
    left_out = np.array([np.corrcoef(np.delete(x, of), np.delete(y, of))[0, 1] for of in members])
    expected = bca_interval(pearson(x, y), resampled, left_out, widen=widening(10))
    assert (row["pearson_low"], row["pearson_high"]) == pytest.approx(
        (float(expected.low), float(expected.high)), abs=1e-12
    )
    # Beside the epoch, there are ten trainings and not sixty models.
    wide, narrow = (
        judge(ds, groups=groups, given="log_epoch", resamples=400).set_index("measure").loc["telling"]
        for groups in ("training", None)
    )
    assert wide["pearson_high"] - wide["pearson_low"] > 1.3 * (narrow["pearson_high"] - narrow["pearson_low"])
    pd.testing.assert_frame_equal(judge(ds, groups=ds["training"].values, resamples=400, seed=2), judged.reset_index())


def test_groups_change_places_as_a_whole() -> None:
    """Four trainings have 24 orders; what follows from the epoch alone is no evidence."""
    ds = trainings(runs=4, seed=3)
    judged = judge(ds, groups="training").set_index("measure")
    for name in ("clock", "telling"):
        x, y = ds[name].values.reshape(4, 6), ds["test_accuracy"].values.reshape(4, 6)
        null = [abs(np.corrcoef(x.ravel(), y[list(order)].ravel())[0, 1]) for order in itertools.permutations(range(4))]
        assert judged.loc[name, "pearson_p"] == pytest.approx(np.mean(np.array(null) >= null[0] - 1e-12))
        assert judged.loc[name, "pearson_p"] * 24 == pytest.approx(round(judged.loc[name, "pearson_p"] * 24))
    assert judge(ds).set_index("measure").loc["clock", "pearson_p"] < 0.01
    assert judged.loc["clock", "pearson_p"] > 0.05
    assert judged["status"].unique().tolist() == ["note: no intervals: 4 groups, at least 8 are needed"]


def test_groups_of_different_size_have_no_p_value() -> None:
    ds = trainings().isel(model=slice(1, None))
    judged = judge(ds, groups="training", resamples=50)
    assert judged["pearson_p"].isna().all()
    assert judged["pearson_low"].notna().all()
    assert judged["status"][0] == "note: no p-values: groups of different sizes are not exchangeable"
    # A model without a value changes the size of its group.
    ds = trainings()
    ds["clock"].values[3] = np.nan
    judged = judge(ds, groups="training", resamples=50).set_index("measure")
    assert np.isnan(judged.loc["clock", "pearson_p"])
    assert np.isfinite(judged.loc["telling", "pearson_p"])


def test_groups_and_given_that_cannot_be_used() -> None:
    ds = trainings()
    with pytest.raises(OptionError, match=r"no coordinate 'trainin' along model.*did you mean 'training'"):
        judge(ds, groups="trainin")
    with pytest.raises(OptionError, match=r"no coordinate 'logepoch' along model.*did you mean 'log_epoch'"):
        judge(ds, given=["logepoch"])
    with pytest.raises(DataError, match="at least 2 distinct labels"):
        judge(ds, groups=np.zeros(60))
    with pytest.raises(DataError, match=r"'groups' must have one value for each of 60 models, got the shape \(3,\)"):
        judge(ds, groups=[1, 2, 3])
    with pytest.raises(DataError, match=r"'a' must have one value for each of 60 models, got the shape \(2,\)"):
        judge(ds, given={"a": [1.0, 2.0]})
