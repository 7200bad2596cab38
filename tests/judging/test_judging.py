"""Correlations against SciPy, bootstrap intervals against brute force, and the judgment of a result."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from genmeasures.aggregators import Frobenius, MeanWeight, aggregate
from genmeasures.errors import DataError, OptionError, ResultError
from genmeasures.judging import judge, kendall, pearson, resample_counts, spearman
from genmeasures.judging.correlation import STATISTICS, is_constant

REFERENCE = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr, "kendall": scipy.stats.kendalltau}
COLUMNS = [
    *["measure", "layer", "against", "n", "excluded", "excluded_models", "groups"],
    *["pearson", "pearson_low", "pearson_high", "pearson_p"],
    *["spearman", "spearman_low", "spearman_high", "spearman_p"],
    *["kendall", "kendall_low", "kendall_high", "kendall_p", "expected", "agrees", "status"],
    *["pgdl", "pgdl_p", "pgdl_symmetric", "cmi_0", "cmi_1", "cmi_2"],
    *["granulated_kendall", "granulated_kendall_low", "granulated_kendall_high", "granulated_kendall_p"],
    *["granulated_kendall_pairs", "worst_sign_error", "worst_sign_error_p", "pgdl_pair", "grid_status"],
]
pairs = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=25)


def result(models: int = 30, layers: int = 3, seed: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=models)
    test = 0.8 + 0.05 * quality
    train = 0.95 + 0.01 * rng.normal(size=models)
    values = -quality[:, None] + 0.5 * rng.normal(size=(models, layers))
    both = ("model", "layer")
    return xr.Dataset(
        {
            "m": (both, values),
            "m_status": (both, np.full(values.shape, "ok", dtype=object)),
            "t": ("model", quality + rng.normal(size=models)),
            "t_status": ("model", np.full(models, "ok", dtype=object)),
            "not_a_measure": ("model", quality),
        },
        coords={
            "model": [f"m{i}" for i in range(models)],
            "layer": np.arange(layers),
            "train_accuracy": ("model", train),
            "test_accuracy": ("model", test),
            "generalization_gap": ("model", train - test),
            "optimizer": ("model", np.full(models, "sgd", dtype=object)),
        },
        attrs={"task": "toy", "metric": "accuracy", "seed": 3},
    )


@pytest.mark.parametrize("name", STATISTICS)
@settings(deadline=None)
@given(pairs)
def test_coefficients_are_those_of_scipy(name: str, data: list[tuple[int, int]]) -> None:
    """Small integers: many ties."""
    x, y = np.array(data, dtype=float).T
    found = float(STATISTICS[name](x, y, None))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(found)
    else:
        np.testing.assert_allclose(found, REFERENCE[name](x, y).statistic, atol=1e-12)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("tied", [False, True])
def test_resamples_are_those_of_brute_force(name: str, tied: bool) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=20)
    y = x + rng.normal(size=20)
    if tied:
        x, y = np.round(x), np.round(y * 2)
    indices = rng.integers(20, size=(200, 20))
    counts = np.array([np.bincount(row, minlength=20) for row in indices], dtype=float)
    expected = np.array([REFERENCE[name](x[row], y[row]).statistic for row in indices])
    np.testing.assert_allclose(STATISTICS[name](x, y, counts), expected, atol=1e-12)


@pytest.mark.parametrize("name", STATISTICS)
def test_many_measures_and_targets_are_as_one_by_one(name: str) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(4, 15)), rng.normal(size=(3, 15))
    x[1], y[2], x[2] = np.round(x[1]), np.round(y[2]), 0.5
    x[3, 4] = np.nan
    counts = resample_counts(15, 30, rng)
    found = STATISTICS[name](x, y, counts)
    assert found.shape == (4, 3, 30)
    for a in range(4):
        for b in range(3):
            np.testing.assert_allclose(found[a, b], STATISTICS[name](x[a], y[b], counts), atol=1e-13)
    assert np.isnan(found[2:]).all()
    np.testing.assert_allclose(STATISTICS[name](x, y, None)[:2, 0], STATISTICS[name](x, y[0], None)[:2], atol=1e-13)


@pytest.mark.parametrize("name", STATISTICS)
def test_constant_resamples_have_no_coefficient(name: str) -> None:
    x, y = np.array([0.1, 0.1, 0.1, 0.7]), np.array([1.0, 2.0, 3.0, 5.0])
    counts = np.array([[4, 0, 0, 0], [2, 1, 1, 0], [0, 0, 0, 4], [1, 1, 1, 1], [1, 1, 0, 2.0]])
    found = STATISTICS[name](x, y, counts)
    assert np.isnan(found).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("statistic", [spearman, kendall])
@settings(deadline=None)
@given(pairs, st.floats(0.1, 3))
def test_ranks_do_not_change_under_monotone_maps(statistic: Any, data: list[tuple[int, int]], a: float) -> None:
    x, y = np.array(data, dtype=float).T
    counts = resample_counts(len(x), 10, np.random.default_rng(0))
    np.testing.assert_allclose(statistic(np.exp(a * x), y**3, counts), statistic(x, y, counts), atol=1e-12)


@pytest.mark.parametrize("statistic", [pearson, spearman, kendall])
@settings(deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_symmetry_signs_and_order_of_models(statistic: Any, data: list[tuple[int, int]], random: Any) -> None:
    x, y = np.array(data, dtype=float).T
    counts = resample_counts(len(x), 10, np.random.default_rng(0))
    found = statistic(x, y, counts)
    assert np.all(np.isnan(found) | (np.abs(found) <= 1))
    np.testing.assert_allclose(statistic(-x, y, counts), -found, atol=1e-12)
    np.testing.assert_allclose(statistic(y, x, counts), found, atol=1e-12)
    order = random.sample(range(len(x)), len(x))
    np.testing.assert_allclose(statistic(x[order], y[order], counts[:, order]), found, atol=1e-12)


@settings(deadline=None)
@given(pairs, st.floats(1e-6, 1e6), st.floats(-1e3, 1e3))
def test_pearson_does_not_change_under_affine_maps(data: list[tuple[int, int]], a: float, b: float) -> None:
    x, y = np.array(data, dtype=float).T
    if len(set(x)) > 1 and len(set(y)) > 1:
        # The shift is in units of the spread, or the values themselves would lose their digits.
        np.testing.assert_allclose(pearson(a * (x + b), y), pearson(x, y), atol=1e-9)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_pearson_neither_overflows_nor_underflows(scale: float) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 15))
    counts = resample_counts(15, 20, rng)
    np.testing.assert_allclose(pearson(x * scale, y, counts), pearson(x, y, counts), atol=1e-12)
    # Without the largest model, what is left is tiny beside it.
    x[0], counts[:, 0] = 1e200, 0
    counts[:, 1] += 15 - counts.sum(axis=1)
    np.testing.assert_allclose(pearson(x, y, counts), pearson(np.r_[0, x[1:]], y, counts), atol=1e-9)


@pytest.mark.parametrize("statistic", [pearson, spearman, kendall])
def test_degenerate_input_is_nan(statistic: Any) -> None:
    good = np.array([1.0, 2.0, 4.0])
    for x in (np.full(3, 0.1), np.array([1.0, np.nan, 2.0]), np.array([1.0, np.inf, 2.0])):
        assert np.isnan(statistic(x, good))
        assert np.isnan(statistic(good, x, np.ones((2, 3)))).tolist() == [True, True]
    assert np.isnan(statistic(good[:2], good[:2]))
    with pytest.raises(DataError, match="same number of models"):
        statistic(good, good[:2])
    with pytest.raises(DataError, match=r"\(resamples, 3\)"):
        statistic(good, good, np.ones((2, 4)))


def test_constant_up_to_rounding() -> None:
    assert is_constant(np.array([0.1 + 0.2, 0.3, 0.3]))
    assert is_constant(np.zeros(4))
    assert not is_constant(np.array([1e-20, 2e-20]))
    assert not is_constant(np.array([1.0, 1.0 + 1e-9]))


def test_counts_are_resamples() -> None:
    counts = resample_counts(7, 500, np.random.default_rng(0))
    assert counts.shape == (500, 7)
    assert np.all(counts.sum(axis=1) == 7)
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.2)
    # Each count is binomial with variance 1 − 1/n.
    np.testing.assert_allclose(counts.var(axis=0), 6 / 7, atol=0.2)


def test_judge_has_a_row_for_each_measure_layer_and_target() -> None:
    ds = result()
    judged = judge(ds, resamples=100)
    assert list(judged.columns) == COLUMNS
    assert judged["layer"].dtype == pd.Int64Dtype()
    targets = ["test_accuracy", "generalization_gap"]
    keys = [(r.measure, None if pd.isna(r.layer) else r.layer, r.against) for r in judged.itertuples()]
    layers = [("m", 0), ("m", 1), ("m", 2), ("t", None)]
    assert keys == [(m, layer, target) for m, layer in layers for target in targets]
    for row in judged.itertuples():
        values = ds[row.measure] if pd.isna(row.layer) else ds[row.measure].sel(layer=row.layer)
        for name, reference in REFERENCE.items():
            expected = reference(values, ds[row.against]).statistic
            assert getattr(row, name) == pytest.approx(expected)
            assert getattr(row, f"{name}_low") < expected < getattr(row, f"{name}_high")
        assert (row.n, row.excluded, row.status) == (30, 0, "ok")
    assert judged.attrs == {
        **{"task": "toy", "metric": "accuracy", "models": 30},
        **{"confidence": 0.95, "resamples": 100, "seed": 0},
    }


def test_auxiliary_variables_are_not_judged() -> None:
    ds = result()
    ds["m"].attrs["auxiliary"] = 1
    assert judge(ds, resamples=5)["measure"].unique().tolist() == ["t"]


def test_judge_goes_by_its_seed_and_shares_resamples() -> None:
    ds = result()
    judged = judge(ds, resamples=100, seed=4)
    pd.testing.assert_frame_equal(judged, judge(ds, resamples=100, seed=4))
    assert not judged["pearson_low"].equals(judge(ds, resamples=100, seed=5)["pearson_low"])
    # A row depends neither on which other rows there are, nor on the dimensions' order.
    alone = judge(ds.isel(layer=[1]).drop_vars(["t", "t_status"]).transpose(), "test_accuracy", resamples=100, seed=4)
    pd.testing.assert_frame_equal(alone, judged.iloc[[2]].reset_index(drop=True))
    doubled = ds.assign(again=ds["t"] * 2 + 1, again_status=ds["t_status"])
    rows = judge(doubled, "test_accuracy", resamples=100).set_index("measure")
    np.testing.assert_allclose(rows.loc["again", "pearson_low"], rows.loc["t", "pearson_low"], atol=1e-12)


def test_models_without_a_value_are_excluded_and_counted() -> None:
    ds = result()
    ds["m"].values[[3, 5], 1] = np.nan
    ds["m"].values[7, 1] = np.inf
    ds["test_accuracy"].values[9] = np.nan
    row = judge(ds, "test_accuracy", resamples=50).iloc[1]
    kept = np.setdiff1d(np.arange(30), [3, 5, 7, 9])
    assert (row["n"], row["excluded"]) == (26, 4)
    assert row["excluded_models"] == "m3, m5, m7, m9"
    expected = scipy.stats.spearmanr(ds["m"].values[kept, 1], ds["test_accuracy"].values[kept]).statistic
    assert row["spearman"] == pytest.approx(expected)


def test_degenerate_rows_say_why() -> None:
    ds = result().isel(model=slice(5))
    ds["m"].values[:, 0] = 0.3
    ds["m"].values[0, 0] = 0.1 + 0.2
    ds["m"].values[2:, 1] = np.nan
    judged = judge(ds, "test_accuracy", resamples=500)
    assert judged["status"].tolist()[:2] == [
        "undefined: m is the same for all models",
        "undefined: 2 models with a value and a target, at least 3 are needed",
    ]
    assert judged.loc[:1, "pearson":"kendall_p"].isna().all(axis=None)
    assert judged["status"][2] == "note: no intervals: 5 models, at least 8 are needed"
    same = ds.assign_coords(test_accuracy=("model", np.full(5, 0.5)))
    assert judge(same, "test_accuracy")["status"][3] == "undefined: test_accuracy is the same for all models"
    eight = result(models=8).drop_vars(["m", "m_status"])
    eight["t"].values[:] = [0, 0, 0, 0, 0, 0, 0, 1]  # the last one is missing from (7/8)^8 = 34 % of resamples
    status = judge(eight, "test_accuracy")["status"][0]
    assert re.fullmatch(r"note: intervals without 3\d\d of 1000 resamples, which have no coefficient", status)


def test_targets_by_name_and_by_value() -> None:
    ds = result()
    by_name = judge(ds, ["train_accuracy", "test_accuracy"], resamples=20)
    assert by_name["against"].unique().tolist() == ["train_accuracy", "test_accuracy"]
    by_value = judge(ds, {"train_accuracy": ds["train_accuracy"], "other": list(range(30))}, resamples=20)
    assert by_value["against"].unique().tolist() == ["train_accuracy", "other"]
    assert by_value["pearson"][0] == by_name["pearson"][0]
    iou = ds.rename(test_accuracy="test_iou").drop_vars("generalization_gap")
    iou.attrs["metric"] = "iou"
    assert judge(iou, resamples=20)["against"].unique().tolist() == ["test_iou"]


def test_unusable_targets_are_named() -> None:
    ds = result()
    bare = ds.drop_vars(["test_accuracy", "generalization_gap"])
    with pytest.raises(ResultError, match=r'ds\.assign_coords\(test_accuracy=\("model"'):
        judge(bare)
    with pytest.raises(OptionError, match=r"'test_acuracy'.*did you mean 'test_accuracy'"):
        judge(ds, "test_acuracy")
    with pytest.raises(DataError, match="'optimizer' must be numeric"):
        judge(ds, "optimizer")
    with pytest.raises(DataError, match=r"'layer' must have one value for each of 30 models, got the shape \(3,\)"):
        judge(ds, "layer")
    with pytest.raises(DataError, match=r"'mine' must .* 30 models, got the shape \(4,\)"):
        judge(ds, {"mine": [1, 2, 3, 4]})
    with pytest.raises(OptionError, match=r"confidence must .* got 95"):
        judge(ds, confidence=95)
    with pytest.raises(OptionError, match=r"resamples must .* got 0"):
        judge(ds, resamples=0)


def test_a_result_without_measures_has_no_rows() -> None:
    judged = judge(result().drop_vars(["m", "t"]))
    assert judged.empty
    assert list(judged.columns) == COLUMNS


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)))
def test_the_order_of_models_changes_no_coefficient(order: list[int]) -> None:
    ds = result(models=12)
    columns = ["pearson", "spearman", "kendall"]
    moved = judge(ds.isel(model=order), resamples=5)
    np.testing.assert_allclose(moved[columns], judge(ds, resamples=5)[columns], atol=1e-12)


def test_a_large_study_takes_seconds() -> None:
    """128 models, 11 layers, 4 measures, 2 targets; the limit leaves room for a busy machine."""
    ds = result(models=128, layers=11).drop_vars(["t", "t_status"])
    ds = ds.assign({f"m{i}{end}": ds[f"m{end}"] for i in range(3) for end in ("", "_status")})
    start = time.process_time()
    assert len(judge(ds)) == 88
    assert time.process_time() - start < 30


def test_only_results_are_judged() -> None:
    with pytest.raises(OptionError, match=r"an xarray Dataset.* got DataFrame"):
        judge(pd.DataFrame({"m": [1.0, 2.0, 3.0]}))  # type: ignore[arg-type]


@pytest.mark.parametrize("normalize", ["weights", "layers"])
@pytest.mark.parametrize("power", [1, -1])
def test_averages_over_layers_and_their_weights_are_judged(normalize: str, power: int) -> None:
    """The three readings of the paper's average, and the weights alone, by hand."""
    ds = result(models=12)
    rng = np.random.default_rng(5)
    norms = rng.uniform(0.5, 4, size=ds["m"].shape)
    values = ds["m"].values.copy()
    values[2, 1] = np.nan  # without a value, a layer is left out of both sums
    both = ("model", "layer")
    names = np.broadcast_to(np.array(["a", "b", "c"], dtype=object), norms.shape)
    ds = ds.assign(m=(both, values)).assign_coords(weight_norm=(both, norms), layer_name=(both, names))
    ds = ds.assign_coords(model_status=("model", np.full(12, "ok", dtype=object)))
    weights = norms**power
    used = np.where(np.isnan(values), 0, weights)
    total = np.nansum(used * np.nan_to_num(values), axis=1)
    average = total / (used.sum(1) if normalize == "weights" else np.isfinite(values).sum(1))
    weight = used.sum(1) / np.isfinite(values).sum(1)
    for aggregator, expected in ((Frobenius(normalize, power), average), (MeanWeight(power), weight)):
        judged = judge(aggregate(ds, aggregator), "test_accuracy", resamples=50)
        found = judged[judged["measure"] == "m"].iloc[0]
        reference = scipy.stats.pearsonr(expected, ds["test_accuracy"].values).statistic
        np.testing.assert_allclose(found["pearson"], reference, rtol=1e-9)
