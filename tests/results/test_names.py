"""Names and values of every kind survive the file and the way back."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import genmeasures
from genmeasures.errors import ResultError
from genmeasures.judging import judge
from genmeasures.results import SCHEMA_VERSION, collect, load, save
from genmeasures.results.escape import decoded, encoded

Make = Callable[..., Any]

NAMES = [
    "optim/lr", "a b", "x.y", "1st", "-1", ".", "..", "", " ", "a=b", "größe", "網絡", "🙂", "e\u0301", "\u00e9",
    '"quoted"', "it's", "[/x]", "{a}", "$x$", "a\nb", "tab\t", "nul\0", "\x1b[31m", "\ud800", "\udcff", "\ufdd0",
    "\ufdd00000", "%2F", "optim%2Flr", "_x", "_nc4_non_coord_a", "a_nc4_non_coord_b", "_FillValue", "coordinates",
    "units", "dtype", "original_names", "time", "x" * 300, "ü" * 300, "x" * 299 + "y", "\u2028", "\u00a0", "a:b", "*",
    "C:\\nets",
]  # fmt: skip
"""Distinct names."""

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)


def back(ds: xr.Dataset, tmp_path: Path) -> xr.Dataset:
    return load(save(ds, tmp_path / "result.nc"))


@pytest.mark.parametrize("name", ["optim/lr", "a b", "größe", "nul\0", "x" * 300])
def test_hyper_parameters_of_any_name(one: Make, whole: Make, tmp_path: Path, name: str) -> None:
    metric = f"test_{name}"
    ds = whole(one("a", hparams={name: 3}, metrics={metric: 0.5}), one("b", hparams={name: 4}, metrics={metric: 0.25}))
    kept = back(ds, tmp_path)
    xr.testing.assert_identical(kept, ds)
    assert set(kept.coords) == set(ds.coords)
    assert kept[name].values.tolist() == [3, 4]
    assert kept[metric].values.tolist() == [0.5, 0.25]


def test_all_names_at_once(one: Make, whole: Make, tmp_path: Path) -> None:
    """They stay apart, for us and for plain xarray, to which coordinates are coordinates too."""
    ds = whole(one("a", hparams={name: number for number, name in enumerate(NAMES)}))
    path = save(ds, tmp_path / "result.nc")
    xr.testing.assert_identical(load(path), ds)
    with xr.open_dataset(path, decode_timedelta=False) as opened:
        assert len(opened.coords) == len(ds.coords)
        assert set(opened.data_vars) == set(ds.data_vars)
        names = json.loads(opened.attrs["original_names"])
        for number, name in enumerate(NAMES):
            (stored,) = [safe for safe, true in names.items() if true == name] or [name]
            assert opened[stored].values.tolist() == [number]
            assert len(stored.encode()) <= 255
            assert stored[0].isalpha() or stored[0] == "_"
            assert not set("/ \n\0") & set(stored)
            assert unicodedata.is_normalized("NFC", stored)
    with h5py.File(path) as opened:
        assert len(opened) == len(ds.variables)


def test_models_layers_tasks_and_texts_of_any_name(one: Make, whole: Make, tmp_path: Path) -> None:
    ds = whole(one("a", np.ones(len(NAMES)), layers=NAMES))
    names = np.array(NAMES, dtype=object)  # else NumPy takes the NULs from their ends
    ds = ds.isel(model=[0] * len(NAMES)).assign_coords(model=names, kind=("model", names))
    for number, name in enumerate(NAMES):
        ds["toy"].attrs[f"attr{number}"] = ds.attrs[f"attr{number}"] = name
    kept = back(ds, tmp_path)
    assert kept["model"].values.tolist() == kept["kind"].values.tolist() == NAMES
    assert kept["layer_name"].values.tolist() == [NAMES] * len(NAMES)
    for number, name in enumerate(NAMES):
        assert kept.attrs[f"attr{number}"] == kept["toy"].attrs[f"attr{number}"] == name


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=6), ANY_TEXT)
def test_any_names_and_texts(tmp_path: Path, known: dict[str, str], attr: str) -> None:
    coords = {f"x{name}": ("model", np.array([text], dtype=object)) for name, text in known.items()}
    ds = xr.Dataset(
        coords={"model": np.array([attr], dtype=object), **coords}, attrs={"schema_version": SCHEMA_VERSION}
    )
    ds.attrs["task"] = attr
    xr.testing.assert_identical(back(ds, tmp_path), ds)


@given(st.lists(ANY_TEXT, unique=True, max_size=10))
def test_escaped_names_are_names_of_netcdf(names: list[str]) -> None:
    ds = xr.Dataset(coords={name: i for i, name in enumerate(names)})
    stored = encoded(ds)
    for name in map(str, stored.coords):
        assert all(c.isalnum() or c in "_.-%" for c in name)
        assert 0 < len(name.encode()) <= 255
        assert unicodedata.is_normalized("NFC", name)
    xr.testing.assert_identical(decoded(stored), ds)


def test_a_name_that_is_what_another_becomes() -> None:
    (short,) = encoded(xr.Dataset(coords={"x" * 300: 1})).coords
    for names in (["x" * 300, short], [short, "x" * 300]):
        ds = xr.Dataset(coords={name: i for i, name in enumerate(names)})
        assert len(encoded(ds).coords) == 2
        xr.testing.assert_identical(decoded(encoded(ds)), ds)


def test_names_that_need_no_escaping_are_left_alone(one: Make, whole: Make) -> None:
    ds = whole(one("a", hparams={"width": 1, "weight_decay": 0.1, "größe": 2, "conv1.width": 3, "lr-decay": 4}))
    stored = encoded(ds)
    assert set(stored.variables) == set(ds.variables)
    assert "original_names" not in stored.attrs


@pytest.mark.parametrize("unit", ["seconds", "days since 2000-01-01"])
def test_units_are_no_times(one: Make, whole: Make, tmp_path: Path, unit: str) -> None:
    """xarray reads numbers of such units as times, unless it is told not to."""
    ds = whole(one("a", [1.5, 2.5]))
    ds["toy"].attrs["units"] = unit
    kept = back(ds, tmp_path)
    assert kept["toy"].dtype == np.float64
    assert kept["toy"].values.tolist() == [[1.5, 2.5]]
    assert kept["toy"].attrs["units"] == unit


def test_escaped_names_can_be_judged(one: Make, whole: Make, write: Make, tmp_path: Path) -> None:
    models = [
        one(
            f"m{i}",
            [i % 5 + 0.1 * i],
            {"optim/lr": i % 2, "a b": i // 2},
            {"train_accuracy": 1, "test_accuracy": i / 9},
        )
        for i in range(8)
    ]
    ds = whole(*models, hparams=json.dumps(["optim/lr", "a b"]))
    write(tmp_path / "runs" / "a.nc", *models, hparams=json.dumps(["optim/lr", "a b"]))
    (merged,) = collect(tmp_path / "runs", tmp_path / "out").files.values()
    for result in (back(ds, tmp_path), load(tmp_path / "runs" / "a.nc"), merged):
        judged = judge(genmeasures.aggregate(result, "mean"), resamples=10)
        expected = judge(genmeasures.aggregate(ds, "mean"), resamples=10)
        np.testing.assert_array_equal(judged["granulated_kendall"], expected["granulated_kendall"])
        assert np.isfinite(judged["granulated_kendall"]).any()


# Values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected", "kind"),
    [
        ([True, False], [True, False], "b"),
        ([np.True_, False], [True, False], "b"),
        ([2**60 + 1, 3], [2**60 + 1, 3], "i"),
        ([-(2**63), 2**63 - 1], [-(2**63), 2**63 - 1], "i"),
        ([np.int32(3), np.uint8(4)], [3, 4], "i"),
        # int64 holds it no more: a text loses nothing.
        ([2**63, 3], [str(2**63), "3"], "O"),
        ([-(2**70), 0.5], [str(-(2**70)), "0.5"], "O"),
        ([2**53 + 1, 0.5], [str(2**53 + 1), "0.5"], "O"),
        ([2**53, 0.5], [2.0**53, 0.5], "f"),
        ([np.float32(0.1), 1], [float(np.float32(0.1)), 1.0], "f"),
        ([float("inf"), 1], [float("inf"), 1.0], "f"),
        ([True, 2], [1, 2], "i"),
        (["", "a"], ["", "a"], "O"),
        (["nul\0", "a"], ["nul\0", "a"], "O"),
        ([np.str_("a"), "b"], ["a", "b"], "O"),
        ([1.0, "auto"], ["1", "auto"], "O"),
        ([0.1, "auto"], ["0.1", "auto"], "O"),
        ([True, "auto"], ["True", "auto"], "O"),
    ],
)
def test_values_keep_their_kind(
    one: Make, whole: Make, tmp_path: Path, values: list[Any], expected: list[Any], kind: str
) -> None:
    ds = whole(*(one(f"m{i}", hparams={"p": value}) for i, value in enumerate(values)))
    kept = back(ds, tmp_path)
    xr.testing.assert_identical(kept, ds)
    assert kept["p"].dtype.kind == kind
    assert kept["p"].values.tolist() == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, [1.0, None]),
        (3, [3.0, None]),
        (2**60 + 1, [str(2**60 + 1), ""]),
        (2**70, [str(2**70), ""]),
        ("a", ["a", ""]),
        (0.5, [0.5, None]),
    ],
)
def test_what_a_model_lacks_is_empty(one: Make, whole: Make, tmp_path: Path, value: Any, expected: list[Any]) -> None:
    kept = back(whole(one("a", hparams={"p": value}), one("b")), tmp_path)
    found = kept["p"].values.tolist()
    assert [None if isinstance(v, float) and np.isnan(v) else v for v in found] == expected


@pytest.mark.parametrize("value", [None, 1j, np.complex64(1), (1, 2), np.ones(2), b"bytes", {"a": 1}])
def test_values_that_are_refused_before_measuring(one: Make, value: Any) -> None:
    with pytest.raises(ResultError, match="model a: the hyperparameter or metric 'p' must be a number"):
        one("a", hparams={"p": value})


def test_names_that_are_refused_before_measuring(one: Make) -> None:
    for name in ("model_content", "model_key", "model_task", "model_task_id", "model_name", "toy_layers_used"):
        with pytest.raises(ResultError, match=f"model a: '{name}' is a reserved name"):
            one("a", hparams={name: 1})
    with pytest.raises(ResultError, match="model a: the name of a hyperparameter or metric must be a string, got 3"):
        one("a", hparams={3: 1})
    with pytest.raises(
        ResultError, match="model a: 'epochs' is both a hyperparameter and a metric: rename one of them"
    ):
        one("a", hparams={"epochs": 1}, metrics={"epochs": 2})
    for value in ("high", True):
        with pytest.raises(ResultError, match="model a: the metric 'test_accuracy' must be a number"):
            one("a", metrics={"test_accuracy": value})
