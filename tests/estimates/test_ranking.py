"""Rankings: order, probability of being the best, regret."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import norm

import genmeasures
from genmeasures.errors import DataError, OptionError


def measured(values: list[float], errors: list[float] | None = None, sign: int = 0) -> xr.Dataset:
    status = ("model", ["ok" if np.isfinite(value) else "undefined: constant" for value in values])
    variables: dict[str, Any] = {"m": ("model", values, {"expected_accuracy": sign}), "m_status": status}
    if errors is not None:
        variables["m_error"] = ("model", errors)
    return xr.Dataset(variables, {"model": [f"net_{i}" for i in range(len(values))]})


def test_two_normals_are_compared_as_in_closed_form() -> None:
    """Within four standard errors of 1000 draws."""
    table = genmeasures.rank(measured([1.0, 1.3], [0.2, 0.3]), {"m": 1})
    assert table["model"].tolist() == ["net_1", "net_0"]
    expected = norm.cdf(0.3 / np.hypot(0.2, 0.3))
    assert table["p_best"][0] == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 1000))
    assert table["p_best"].sum() == pytest.approx(1)
    assert table["low"][0] == pytest.approx(1.3 - 1.96 * 0.3, abs=1e-4)


def test_the_stated_direction_decides() -> None:
    for sign, first in ((1, "net_1"), (-1, "net_0")):
        assert genmeasures.rank(measured([1.0, 1.3], sign=sign))["model"][0] == first
        assert genmeasures.rank(measured([1.0, 1.3]), {"m": sign})["model"][0] == first
    with pytest.raises(OptionError, match="no measure states whether larger is better"):
        genmeasures.rank(measured([1.0, 1.3]))
    with pytest.raises(OptionError, match=r"m does not state whether larger is better: say so, by=\{'m': 1\}"):
        genmeasures.rank(measured([1.0, 1.3]), "m")


def test_ties_are_shared() -> None:
    table = genmeasures.rank(measured([1.0, 1.0, 0.0], [0.0, 0.0, 0.0]), {"m": 1})
    assert table["rank"].tolist() == [1.5, 1.5, 3.0]
    assert table["p_best"].tolist() == [0.5, 0.5, 0.0]


def test_without_an_error_there_is_no_probability() -> None:
    table = genmeasures.rank(measured([1.0, np.nan, 2.0]), {"m": 1})
    assert table["model"].tolist() == ["net_2", "net_0", "net_1"]
    assert table["p_best"].isna().all()
    assert table["status"].tolist() == ["note: no standard error"] * 2 + ["undefined: constant"]


def test_regret_is_what_the_choice_costs() -> None:
    ds = measured([1.0, 3.0, 2.0]).assign_coords(test_accuracy=("model", [0.9, 0.7, 0.8]))
    table = genmeasures.rank(ds, {"m": 1})
    assert table["regret"].round(9).tolist() == [0.2, 0.1, 0.0]
    assert genmeasures.rank(ds, {"m": 1}, against=[1, 5, 2])["regret"].tolist() == [0.0, 3.0, 4.0]
    assert genmeasures.rank(ds.drop_vars("test_accuracy"), {"m": 1})["regret"].isna().all()
    with pytest.raises(OptionError, match="no numbers 'test_acc' along model"):
        genmeasures.rank(ds, {"m": 1}, against="test_acc")
    with pytest.raises(DataError, match="one number for each of 3 models"):
        genmeasures.rank(ds, {"m": 1}, against=[1.0])


def test_models_are_compared_on_the_same_inputs() -> None:
    """A model that is a little better on every input is the best for sure, though intervals overlap."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(100, 3))
    ds = genmeasures.estimate(
        {"a": (logits, logits), "b": (logits, 1.02 * logits)}, rng.integers(3, size=100), method="ac", resamples=200
    )
    table = genmeasures.rank(ds)
    assert table["model"].tolist() == ["b", "a"]
    assert table["p_best"].tolist() == [1.0, 0.0]
    assert table["low"][0] < table["high"][1]


def test_the_mean_rank_combines_criteria() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=80)
    logits = {
        f"net_{i}": tuple(2.0 * np.eye(3)[labels] * s + rng.normal(size=(80, 3)) for _ in "ab")
        for i, s in enumerate((0.5, 1, 2))
    }
    ds = genmeasures.estimate(logits, labels, labels, ["atc", "doc"], resamples=100)
    table = genmeasures.rank(ds)
    assert table["by"].unique().tolist() == ["atc", "doc", "mean_rank"]
    combined = table[table["by"] == "mean_rank"]
    ranks = table[table["by"] != "mean_rank"].groupby("model")["rank"].mean()
    assert combined["value"].tolist() == [ranks[name] for name in combined["model"]]
    assert combined["p_best"].sum() == pytest.approx(1)
    assert combined["regret"].iloc[0] == 0


def test_faults_are_named() -> None:
    with pytest.raises(OptionError, match="must be a result"):
        genmeasures.rank(3)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"no measure 'n' per model"):
        genmeasures.rank(measured([1.0]), "n")
    with pytest.raises(DataError, match="no model has a value of m"):
        genmeasures.rank(measured([np.nan]), {"m": 1})
    layered = xr.Dataset({"m": (("model", "layer"), [[1.0]])}, {"model": ["a"]})
    with pytest.raises(OptionError, match="aggregate it first"):
        genmeasures.rank(layered)
