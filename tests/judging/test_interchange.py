"""Predictions and tables that others made, judged with the same code; and the scores that ``judge`` reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from genmeasures.errors import OptionError, ResultError
from genmeasures.judging import (
    bca_interval,
    conditional_mutual_information,
    granulated_kendall,
    judge,
    pgdl_pairs,
    pgdl_score,
    read_predictions,
    read_table,
    worst_sign_error,
    write_predictions,
)
from genmeasures.judging.bootstrap import widening

CMI = Path(__file__).parents[1] / "data" / "cmi_task2"


def grid(models: int = 12, seed: int = 0) -> pd.DataFrame:
    """A 3 × 2 × 2 grid with a gap and two measures."""
    rng = np.random.default_rng(seed)
    rows = [(f"model_{10 * i}", a, b, c) for i, (a, b, c) in enumerate(np.ndindex(3, 2, 2))]
    table = pd.DataFrame(rows, columns=["model", "width", "norm", "depth"])
    table["norm"] = table["norm"].map({0: "none", 1: "batch"})
    table["gap"] = rng.normal(size=models)
    return table.assign(good=table["gap"] + 0.3 * rng.normal(size=models), noise=rng.normal(size=models))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    grid().to_csv(tmp_path / "mine.csv", index=False)
    return tmp_path / "mine.csv"


def test_a_table_is_judged_as_a_result(table: Path) -> None:
    given = grid()
    ds = read_table(table, ["width", "norm", "depth"], test_size=500)
    judged = judge(ds, resamples=20).set_index("measure")
    hparams = given[["width", "norm", "depth"]]
    for name in ("good", "noise"):
        row = judged.loc[name]
        assert row["pgdl"] == pytest.approx(100 * pgdl_score(given[name], given["gap"], hparams))
        assert row["pgdl_symmetric"] == pytest.approx(100 * pgdl_score(given[name], given["gap"], hparams, "symmetric"))
        for size in (0, 1, 2):
            value = conditional_mutual_information(given[name], given["gap"], hparams, size)
            assert row[f"cmi_{size}"] == pytest.approx(100 * value)
        assert row["granulated_kendall"] == pytest.approx(granulated_kendall(given[name], given["gap"], hparams).psi)
        assert row["worst_sign_error"] == pytest.approx(worst_sign_error(given[name], given["gap"], hparams, 500))
        pairs = pgdl_pairs(given[name], given["gap"], hparams)
        first, second = pairs.loc[pairs["minimum"], ["first", "second"]].iloc[0]
        assert row["pgdl_pair"] == f"{first} × {second}"
        assert row["grid_status"] == "ok"


def test_a_measure_of_good_generalization_is_turned_round(table: Path) -> None:
    ds = read_table(table, ["width", "norm", "depth"])
    turned = ds.assign(good=-ds["good"])
    turned["good"].attrs = {"expected_gap": -1}
    first, second = (judge(one, resamples=20).set_index("measure").loc["good"] for one in (ds, turned))
    assert first["pgdl"] == pytest.approx(second["pgdl"])
    assert first["granulated_kendall"] == pytest.approx(second["granulated_kendall"])
    assert np.isnan(first["worst_sign_error"])  # the size of the test set is not known


def test_p_values_of_a_grid(table: Path) -> None:
    """Against brute force, with the permutations that the seed draws; and of a measure with ties."""
    ds = read_table(table, ["width", "norm", "depth"], test_size=500)
    ds = ds.assign(noise=ds["noise"].round())
    judged = judge(ds, resamples=60, seed=3).set_index("measure")
    rng = np.random.default_rng(3)
    rng.multinomial(12, np.full(12, 1 / 12), size=60)
    orders = rng.permuted(np.tile(np.arange(12), (60, 1)), axis=1)
    given = grid()
    hparams, gap = given[["width", "norm", "depth"]], given["gap"].to_numpy()
    for name in ("good", "noise"):
        values = ds[name].values
        shuffled = np.sort(values)[orders]
        null = [pgdl_score(one, gap, hparams) for one in shuffled]
        expected = (1 + np.sum(np.array(null) >= pgdl_score(values, gap, hparams) - 1e-9)) / 61
        assert judged.loc[name, "pgdl_p"] == pytest.approx(expected)
        null = [abs(granulated_kendall(one, gap, hparams).psi) for one in shuffled]
        expected = (1 + np.sum(np.array(null) >= abs(granulated_kendall(values, gap, hparams).psi) - 1e-9)) / 61
        assert judged.loc[name, "granulated_kendall_p"] == pytest.approx(expected)
        null = [worst_sign_error(one, gap, hparams, 500) for one in shuffled]
        expected = (1 + np.sum(np.array(null) <= worst_sign_error(values, gap, hparams, 500) + 1e-9)) / 61
        assert judged.loc[name, "worst_sign_error_p"] == pytest.approx(expected)


def test_psi_has_an_interval_over_models(table: Path) -> None:
    ds = read_table(table, ["width", "norm", "depth"])
    row = judge(ds, resamples=40, seed=1).set_index("measure").loc["good"]
    given = grid()
    hparams, gap, values = given[["width", "norm", "depth"]], given["gap"].to_numpy(), given["good"].to_numpy()
    counts = np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), size=40)

    def psi(count: np.ndarray) -> float:
        """By loops: pairs count as often as they are drawn, a model is no pair with itself."""
        by_hparam = []
        for hparam in hparams:
            others = [name for name in hparams if name != hparam]
            taus = []
            for members in hparams.groupby(others).groups.values():
                pairs = [(i, j) for i in members for j in members if i < j]
                weight = [count[i] * count[j] for i, j in pairs]
                if sum(w for w, (i, j) in zip(weight, pairs, strict=True) if gap[i] != gap[j]):
                    agree = [np.sign(values[i] - values[j]) * np.sign(gap[i] - gap[j]) for i, j in pairs]
                    taus.append(np.dot(weight, agree) / sum(weight))
            if taus:
                by_hparam.append(np.mean(taus))
        return float(np.mean(by_hparam)) if by_hparam else np.nan

    assert psi(np.ones(12)) == pytest.approx(row["granulated_kendall"])
    left_out = np.array([psi(one) for one in 1 - np.eye(12)])
    expected = bca_interval(
        np.array(psi(np.ones(12))), np.array([psi(count) for count in counts]), left_out, widen=widening(12)
    )
    ends = (row["granulated_kendall_low"], row["granulated_kendall_high"])
    assert ends == pytest.approx((float(expected.low), float(expected.high)), abs=1e-12)
    assert row["granulated_kendall_pairs"] == sum(12 * (k - 1) // 2 for k in (3, 2, 2))


def test_psi_of_few_pairs_says_of_how_many(table: Path) -> None:
    ds = read_table(table, ["width", "norm", "depth"]).isel(model=[0, 1, 2])
    row = judge(ds, resamples=40).set_index("measure").loc["good"]
    assert row["granulated_kendall_pairs"] == 2
    assert np.isnan(row["granulated_kendall_low"])
    assert row["granulated_kendall_p"] >= 1 / 6
    # The grid is not complete either.
    assert row["grid_status"].startswith("undefined: the grid")
    ds = read_table(table, ["width", "norm", "depth"]).isel(model=slice(0, 8))
    row = judge(ds, resamples=40).set_index("measure").loc["good"]
    assert row["grid_status"] == "ok"
    ds = ds.drop_vars("depth").assign_attrs(hparams='["width", "norm"]').isel(model=[0, 2, 4, 6])
    row = judge(ds, resamples=40).set_index("measure").loc["good"]
    assert row["grid_status"] == (
        "undefined: the hyperparameters alone determine the order of the gaps: the score is "
        "0/0; no interval of ψ: 4 pairs of models in 4 groups, at least 8 groups and 8 models are needed"
    )


def test_an_incomplete_grid_has_a_reason(table: Path) -> None:
    ds = read_table(table, ["width", "norm", "depth"]).isel(model=slice(0, 11))
    row = judge(ds, resamples=20).set_index("measure").loc["good"]
    assert np.isnan(row["pgdl"])
    assert np.isfinite(row["granulated_kendall"])
    assert "not complete: 1 of 12 combinations" in row["grid_status"]


def test_without_hyper_parameters_there_are_no_scores(table: Path) -> None:
    ds = read_table(table, ["width", "norm", "depth"])
    judged = judge(ds.assign_attrs(hparams="[]"), resamples=20)
    assert judged["pgdl"].isna().all()
    assert (judged["grid_status"] == "").all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="model"), r"mine\.csv has no column 'model'"),
        (lambda t: t.drop(columns="gap"), "has no column 'gap'"),
        (lambda t: t.rename(columns={"norm": "norn"}), "no column 'norm' .did you mean 'norn'"),
        (lambda t: t.assign(good="x"), "the column 'good' must be numeric"),
        (lambda t: pd.concat([t, t.head(1)]), "duplicate model 'model_0'"),
    ],
)
def test_tables_that_cannot_be_read(table: Path, change: object, message: str) -> None:
    change(grid()).to_csv(table, index=False)  # type: ignore[operator]
    with pytest.raises(ResultError, match=message):
        read_table(table, ["width", "norm", "depth"])


def test_predictions_there_and_back(table: Path, tmp_path: Path) -> None:
    ds = read_table(table, ["width", "norm", "depth"])
    ds["noise"].attrs["expected_gap"] = -1
    for name, sign in (("good", 1), ("noise", -1)):
        path = tmp_path / f"{name}.predict"
        write_predictions(ds, name, path)
        content = json.loads(path.read_text())
        assert list(content) == grid()["model"].tolist()
        assert all(type(value) is float for value in content.values())
        read = read_predictions(path)
        np.testing.assert_array_equal(read.to_numpy(), sign * grid()[name].to_numpy())
    with pytest.raises(OptionError, match=r"no measure 'god' .did you mean 'good'"):
        write_predictions(ds, "god", tmp_path / "x.predict")
    ds = ds.copy(deep=True)
    ds["good"][3] = np.nan
    with pytest.raises(ResultError, match="1 of 12 models have no value of good: model_30"):
        write_predictions(ds, "good", tmp_path / "x.predict")
    assert not (tmp_path / "x.predict").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_1": "x"}', '{"model_1": true}', "[" * 100_000])
def test_predictions_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.predict").write_text(content)
    with pytest.raises(ResultError, match=r"a\.predict"):
        read_predictions(tmp_path / "a.predict")


def test_a_model_out_of_time_has_no_value(tmp_path: Path) -> None:
    (tmp_path / "a.predict").write_text('{"model_1": 1, "model_2": "EXCEEDED"}')
    read = read_predictions(tmp_path / "a.predict")
    assert read["model_1"] == 1
    assert np.isnan(read["model_2"])


def test_the_scores_of_task_2_are_the_official_ones() -> None:
    official = json.loads((CMI / "official_scores.json").read_text())
    known = [name for name in pd.read_csv(CMI / "task2_v1.csv") if name not in ("model", "gap", *official)]
    assert known == ["bs", "depth", "dropout_p", "weight_decay"]
    judged = judge(read_table(CMI / "task2_v1.csv", known), resamples=20).set_index("measure")
    assert len(official) == 4
    for name, score in official.items():
        assert judged.loc[name, "pgdl"] / 100 == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model,a,gap,m\nx,1,2,0.1,0.5\ny,2,2,0.3,0.7\n", "rows have more cells than the header"),
        ("model,a,gap,m\n", "has no rows"),
        ("model,a,gap,generalization_gap\nx,1,2,3\n", "'generalization_gap' is reserved"),
        ("model,a,gap,m,m_status\nx,1,2,3,4\n", "'m_status' is reserved"),
    ],
)
def test_tables_that_would_mislead(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ResultError, match=message):
        read_table(tmp_path / "t.csv", ["a"])


def test_names_stay_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("model,a,gap,m\n007,None,1,2\n1.10,NA,2,inf\n1.1,,3,\n")
    ds = read_table(tmp_path / "t.csv", ["a"])
    assert ds["model"].values.tolist() == ["007", "1.10", "1.1"]
    assert ds["a"].values.tolist() == ["None", "NA", ""]
    assert [one.partition(":")[0] for one in ds["m_status"].values] == ["ok", "undefined", "undefined"]


def test_a_number_that_no_float_holds(tmp_path: Path) -> None:
    (tmp_path / "a.predict").write_text('{"model_1": 1' + "0" * 400 + "}")
    with pytest.raises(ResultError, match="must have a number"):
        read_predictions(tmp_path / "a.predict")
    (tmp_path / "a.predict").write_text('{"m": 1, "m": 2}')
    with pytest.raises(ResultError, match="duplicate model 'm'"):
        read_predictions(tmp_path / "a.predict")
