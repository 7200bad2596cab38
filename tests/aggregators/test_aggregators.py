"""Aggregators against cases worked out by hand, and laws that hold for any values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from genmeasures.aggregators import Explicit, Frobenius, LastK, Max, Mean, MeanWeight, SingleLayer, aggregate
from genmeasures.errors import OptionError, ResultError
from genmeasures.interfaces import Aggregator

NAN = np.nan
# Three layers, two layers (the third does not exist), three with one lacking a value, none with a value.
VALUES = np.array([[1.0, 2.0, 6.0], [3.0, 5.0, NAN], [4.0, NAN, 8.0], [NAN, NAN, NAN]])
NORMS = np.array([[1.0, 2.0, 1.0], [3.0, 1.0, NAN], [1.0, 7.0, 3.0], [1.0, 1.0, 1.0]])
NAMES = np.array([["a", "b", "c"], ["a", "b", ""], ["a", "b", "c"], ["a", "b", "c"]], dtype=object)
ALL: list[Aggregator] = [
    *(Frobenius(normalize, power) for normalize in ("weights", "layers") for power in (1, -1)),
    *(MeanWeight(), Mean(), Max(), LastK(2), Explicit({"a": 1.0, "b": 2.0}), SingleLayer(0)),
]


def result(values: np.ndarray = VALUES, norms: np.ndarray = NORMS, names: np.ndarray = NAMES) -> xr.Dataset:
    """A result with the layered measure m and the measure t, one value a model."""
    models, layers = values.shape
    both = ("model", "layer")
    status = np.where(names == "", "", np.where(np.isnan(values), "undefined: too few", "ok")).astype(object)
    return xr.Dataset(
        {
            "m": (both, values, {"long_name": "measure", "expected_accuracy": -1, "references": "someone"}),
            "m_status": (both, status),
            "t": ("model", np.arange(models, dtype=float), {"long_name": "total"}),
            "t_status": ("model", np.full(models, "ok", dtype=object)),
        },
        coords={
            "model": [f"m{i}" for i in range(models)],
            "layer": np.arange(layers),
            "layer_name": (both, names),
            "weight_norm": (both, norms),
            "model_status": ("model", np.full(models, "ok", dtype=object)),
            "width": ("model", np.arange(models)),
        },
        attrs={"task": "toy", "metric": "accuracy"},
    )


@pytest.mark.parametrize(
    ("aggregator", "expected", "used"),
    [
        (Frobenius(), [11 / 4, 14 / 4, 28 / 4, NAN], [3, 2, 2, 0]),
        (Frobenius("layers"), [11 / 3, 14 / 2, 28 / 2, NAN], [3, 2, 2, 0]),
        (Frobenius(power=-1), [8 / 2.5, 6 / (4 / 3), (4 + 8 / 3) / (4 / 3), NAN], [3, 2, 2, 0]),
        (Frobenius("layers", power=-1), [8 / 3, 6 / 2, (4 + 8 / 3) / 2, NAN], [3, 2, 2, 0]),
        (MeanWeight(), [4 / 3, 4 / 2, 4 / 2, NAN], [3, 2, 2, 0]),
        (MeanWeight(power=-1), [2.5 / 3, (4 / 3) / 2, (4 / 3) / 2, NAN], [3, 2, 2, 0]),
        (Mean(), [3, 4, 6, NAN], [3, 2, 2, 0]),
        (Max(), [6, 5, 8, NAN], [3, 2, 2, 0]),
        (LastK(2), [4, 4, 8, NAN], [2, 2, 1, 0]),
        (LastK(9), [3, 4, 6, NAN], [3, 2, 2, 0]),
        (Explicit({"a": 2, "b": -1}), [0, 1, NAN, NAN], [2, 2, 1, 0]),
        (Explicit({"a": 2, "c": 0.5}), [5, NAN, 12, NAN], [2, 1, 2, 0]),
        (Explicit({"a": 2, "b": 0}), [2, 6, 8, NAN], [1, 1, 1, 0]),
        (SingleLayer(0), [1, 3, 4, NAN], [1, 1, 1, 0]),
        (SingleLayer(-1), [6, 5, 8, NAN], [1, 1, 1, 0]),
        (SingleLayer(2), [6, NAN, 8, NAN], [1, 0, 1, 0]),
        (SingleLayer("b"), [2, 5, NAN, NAN], [1, 1, 0, 0]),
    ],
    ids=repr,
)
def test_worked_cases(aggregator: Aggregator, expected: list[float], used: list[int]) -> None:
    values, layers_used = aggregator.reduce(VALUES, NORMS, NAMES)
    np.testing.assert_allclose(values, expected, rtol=1e-14)
    assert layers_used.tolist() == used
    assert (values.dtype, layers_used.dtype) == (np.float64, np.int64)


def test_mars_rows_of_the_paper() -> None:
    """The two rows of Table 2 that follow from their layers; 0.3314 is printed as 0.3317."""
    layers = np.array([[0.0841, 0.0429, 0.0413, 0.0361], [0.0843, 0.0596, 0.0402, 0.0538]])
    names = np.array([["conv1", "conv2", "conv3", "conv4"]] * 2, dtype=object)
    in_order, used = Explicit([2, 2, 1, 1]).reduce(layers, np.ones_like(layers), names)
    np.testing.assert_allclose(in_order, [0.3314, 0.3818], atol=1e-12)
    assert used.tolist() == [4, 4]
    by_name = Explicit({"conv4": 1, "conv3": 1, "conv2": 2, "conv1": 2})
    np.testing.assert_array_equal(by_name.reduce(layers, np.ones_like(layers), names)[0], in_order)


def test_layers_between_missing_ones_are_counted_in_order() -> None:
    """A sequence of weights, an index and the last layers go by the layers that a model has."""
    values, names = np.array([[1.0, NAN, 4.0]]), np.array([["a", "", "c"]], dtype=object)
    norms = np.ones((1, 3))
    assert Explicit([10, 1]).reduce(values, norms, names)[0] == [14]
    assert SingleLayer(1).reduce(values, norms, names)[0] == [4]
    assert LastK(2).reduce(values, norms, names)[0] == [2.5]


@pytest.mark.parametrize("aggregator", ALL, ids=repr)
def test_a_model_without_layers_has_no_value(aggregator: Aggregator) -> None:
    for shape in ((2, 3), (2, 0)):
        values, used = aggregator.reduce(np.full(shape, NAN), np.full(shape, NAN), np.full(shape, "", dtype=object))
        assert np.isnan(values).all()
        assert used.tolist() == [0, 0]


def test_frobenius_leaves_out_layers_without_a_norm() -> None:
    names = np.array([["a", "b", "c"]], dtype=object)
    values, used = Frobenius().reduce(np.array([[1.0, 2.0, 5.0]]), np.array([[1.0, NAN, 3.0]]), names)
    assert values == [4]
    assert used == [2]
    values, used = Frobenius().reduce(np.ones((1, 3)), np.zeros((1, 3)), names)
    assert np.isnan(values).all()
    assert used == [0]


@pytest.mark.parametrize("aggregator", [*ALL, Explicit([1.0, 2.0])], ids=repr)
def test_options_survive_a_clone(aggregator: Aggregator) -> None:
    assert repr(aggregator.clone()) == repr(aggregator)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LastK(0), "k must be an integer ≥ 1, got 0"),
        (lambda: LastK(True), "k must be an integer ≥ 1, got True"),
        (lambda: Explicit([]), "must be finite numbers"),
        (lambda: Explicit([1, NAN]), "must be finite numbers"),
        (lambda: Explicit([0, 0]), "at least one is not 0"),
        (lambda: Explicit("12"), "must be finite numbers"),
        (lambda: Explicit({"a": "x"}), "must be finite numbers"),
        (lambda: SingleLayer(1.5), "must be a name or an index, an integer, got"),
        (lambda: SingleLayer(""), "must be a name or an index, an integer, got"),
        (lambda: SingleLayer("d").reduce(VALUES, NORMS, NAMES), "no model has a layer 'd'.*known: a, b, c"),
        (lambda: SingleLayer(3).reduce(VALUES, NORMS, NAMES), r"no model has a layer 3 \(they have up to 3\)"),
        (lambda: SingleLayer(-4).reduce(VALUES, NORMS, NAMES), "no model has a layer -4"),
        (lambda: Explicit([1, 1, 1]).reduce(VALUES, NORMS, NAMES), r"3 weights, but 1 of 4 models .* \(2\)"),
        (lambda: Explicit({"a": 1, "bb": 1}).reduce(VALUES, NORMS, NAMES), "no model has a layer 'bb'.*mean 'b'"),
    ],
)
def test_bad_options_are_named(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


tables = hnp.arrays(np.float64, (3, 4), elements=st.floats(-1e6, 1e6) | st.just(NAN))
weights = hnp.arrays(np.float64, (3, 4), elements=st.floats(0.01, 1e3))
FOUR = np.array([list("abcd")] * 3, dtype=object)


@settings(deadline=None)
@given(tables, weights)
def test_means_lie_between_smallest_and_largest(values: np.ndarray, norms: np.ndarray) -> None:
    largest, counted = Max().reduce(values, norms, FOUR)
    smallest = -Max().reduce(-values, norms, FOUR)[0]
    for aggregator in (Frobenius(), Mean(), LastK(4)):
        mean, used = aggregator.reduce(values, norms, FOUR)
        slack = 1e-9 * (1 + np.abs(largest) + np.abs(smallest))
        assert np.all(np.isnan(mean) | ((mean <= largest + slack) & (mean >= smallest - slack)))
        np.testing.assert_array_equal(used, counted)
        np.testing.assert_array_equal(np.isnan(mean), used == 0)


@settings(deadline=None)
@given(tables, weights, st.floats(1e-3, 1e3), st.permutations(range(4)))
def test_frobenius_ignores_scale_and_order(values: np.ndarray, norms: np.ndarray, scale: float, order: Any) -> None:
    mean = Frobenius().reduce(values, norms, FOUR)[0]
    np.testing.assert_allclose(Frobenius().reduce(values, norms * scale, FOUR)[0], mean, rtol=1e-9, atol=1e-6)
    moved = Frobenius().reduce(values[:, order], norms[:, order], FOUR)[0]
    np.testing.assert_allclose(moved, mean, rtol=1e-9, atol=1e-6)


@settings(deadline=None)
@given(tables, weights)
def test_frobenius_is_numpys_average(values: np.ndarray, norms: np.ndarray) -> None:
    mean = Frobenius().reduce(values, norms, FOUR)[0]
    for row, w, found in zip(values, norms, mean, strict=True):
        has = ~np.isnan(row)
        if has.any():
            np.testing.assert_allclose(found, np.average(row[has], weights=w[has]), rtol=1e-9, atol=1e-6)


def test_aggregate_keeps_what_is_known_of_the_models() -> None:
    ds = result().assign(extra=("model", np.arange(4)), deep=(("model", "kernel"), np.zeros((4, 2))))
    before = ds.copy(deep=True)
    out = aggregate(ds, Frobenius())
    xr.testing.assert_identical(ds, before)
    assert dict(out.sizes) == {"model": 4}
    assert list(out.data_vars) == ["m", "m_status", "m_layers_used", "t", "t_status", "extra"]
    assert set(out.coords) == {"model", "model_status", "width"}
    assert out.attrs == {"task": "toy", "metric": "accuracy", "aggregator": repr(Frobenius())}
    assert out["m"].attrs == {**ds["m"].attrs, "aggregator": repr(Frobenius())}
    assert out["t"].attrs == ds["t"].attrs
    np.testing.assert_allclose(out["m"], [11 / 4, 14 / 4, 7, NAN])
    assert out["m_layers_used"].dtype == np.int64
    assert out["m_layers_used"].values.tolist() == [3, 2, 2, 0]
    xr.testing.assert_identical(aggregate(ds.transpose("kernel", "layer", "model"), Frobenius()), out)
    xr.testing.assert_identical(aggregate(ds.assign(m=ds["m"].T), Frobenius()), out)


def test_standard_errors_of_layers_are_left_out() -> None:
    """Layers are dependent: neither a mean of their errors nor their root sum of squares is the error of the mean."""
    ds, auxiliary = result(), {"auxiliary": 1}
    for name in ("m_error", "m_se", "m_count", "other_error"):
        ds[name] = ds["m"].assign_attrs(auxiliary)
        ds[f"{name}_status"] = ds["m_status"]
    ds["t_error"], ds["t_error_status"] = ds["t"].assign_attrs(auxiliary), ds["t_status"]
    out = aggregate(ds, Frobenius())
    measures = [name for name in out.data_vars if not str(name).endswith(("_status", "_layers_used"))]
    assert measures == ["m", "t", "m_count", "other_error", "t_error"]
    xr.testing.assert_identical(out["m"], aggregate(result(), Frobenius())["m"])


@pytest.mark.parametrize(
    ("aggregator", "expected"),
    [
        (Mean(), ["ok", "ok", "note: 1 of 3 layers has no value", "undefined: no layer has a value"]),
        (LastK(1), ["ok", "ok", "ok", "undefined: no layer has a value"]),
        (
            Explicit({"a": 1, "b": 1}),
            ["ok", "ok", "undefined: 1 of 2 layers has no value", "undefined: no layer has a value"],
        ),
        (
            SingleLayer("c"),
            [
                "ok",
                "undefined: the model lacks a layer that SingleLayer(layer='c') uses",
                "ok",
                "undefined: no layer has a value",
            ],
        ),
    ],
    ids=repr,
)
def test_statuses(aggregator: Aggregator, expected: list[str]) -> None:
    out = aggregate(result(), aggregator)
    assert out["m_status"].values.tolist() == expected
    undefined = [status.startswith("undefined") for status in expected]
    assert np.isnan(out["m"]).values.tolist() == undefined


def test_missing_norms_are_told_from_missing_values() -> None:
    norms = NORMS.copy()
    norms[0, 0] = NAN
    status = aggregate(result(norms=norms), Frobenius())["m_status"].values
    assert status[0] == "note: 1 of 3 layers has no usable weight norm"
    assert status[2] == "note: 1 of 3 layers has no value"
    assert aggregate(result(norms=norms), Mean())["m_status"].values[0] == "ok"


@pytest.mark.parametrize("normalize", ["weights", "layers"])
def test_a_norm_of_zero_has_no_inverse(normalize: str) -> None:
    norms = NORMS.copy()
    norms[0, 1], norms[1] = 0.0, [0.0, 0.0, NAN]
    out = aggregate(result(norms=norms), Frobenius(normalize, power=-1))
    assert out["m_status"].values[:2].tolist() == [
        "note: 1 of 3 layers has no usable weight norm", "undefined: 2 of 2 layers have no usable weight norm",
    ]  # fmt: skip
    np.testing.assert_allclose(out["m"].values[:2], [7 / 2, NAN])
    assert out["m_layers_used"].values[:2].tolist() == [2, 0]
    # As a factor it is a number like any other: its layer counts.
    out = aggregate(result(norms=norms), Frobenius("layers"))
    np.testing.assert_allclose(out["m"].values[:2], [7 / 3, 0])
    assert out["m_status"].values[:2].tolist() == ["ok", "ok"]


@settings(deadline=None)
@given(tables, weights)
def test_a_mean_over_layers_is_the_weighted_mean_times_the_mean_weight(values: np.ndarray, norms: np.ndarray) -> None:
    for power in (1, -1):
        product = (
            Frobenius(power=power).reduce(values, norms, FOUR)[0] * MeanWeight(power).reduce(values, norms, FOUR)[0]
        )
        np.testing.assert_allclose(
            Frobenius("layers", power).reduce(values, norms, FOUR)[0], product, rtol=1e-9, atol=1e-6
        )


def test_weights_alone_have_no_expected_sign() -> None:
    attrs = aggregate(result(), MeanWeight())["m"].attrs
    assert attrs["long_name"] == "weights of the layers of measure"
    assert attrs["expected_accuracy"] == attrs["expected_gap"] == 0


@pytest.mark.parametrize("options", [{"normalize": "none"}, {"power": 0}, {"power": 2}])
def test_unknown_options_of_frobenius(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="is unknown"):
        Frobenius(**options)


def test_infinite_values_give_no_number() -> None:
    values = VALUES.copy()
    values[0] = [np.inf, 1, -np.inf]
    values[1, 0] = np.inf
    out = aggregate(result(values), Mean())
    assert np.isnan(out["m"][:2]).all()
    assert out["m_status"].values[:2].tolist() == ["undefined: the layers' values give no finite number"] * 2


def test_a_failed_model_keeps_its_reason() -> None:
    ds = result()
    ds["model_status"].values[0] = "failed: out of memory"
    out = aggregate(ds, Frobenius())
    assert out["m_status"].values[0] == "failed: out of memory"
    assert np.isnan(out["m"].values[0])
    assert out["m_layers_used"].values[0] == 0


def test_aggregating_twice_is_told() -> None:
    with pytest.raises(ResultError, match="already aggregated, by Frobenius"):
        aggregate(aggregate(result(), Frobenius()), Mean())


def test_aggregate_needs_the_coordinates() -> None:
    with pytest.raises(ResultError, match="no coordinate 'weight_norm'"):
        aggregate(result().drop_vars("weight_norm"), Frobenius())
