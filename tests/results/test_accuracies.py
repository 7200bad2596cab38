"""Measured accuracies beside claimed ones: when a claim stands, and what is filled in."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr

from genmeasures.results import with_accuracies
from genmeasures.results.summary import model_notes


def result(measured: Any, labels: int = 1000, metric: str = "accuracy", classes: int = 10, **known: Any) -> xr.Dataset:
    """Models with a measured test accuracy, and what is known of them."""
    count = len(measured)
    coords: dict[str, Any] = {
        "model": [f"net{i}" for i in range(count)],
        "model_status": ("model", np.array(["ok"] * count, dtype=object)),
        "measured_test_accuracy": ("model", np.array(measured, dtype=float)),
        "measured_test_labels": ("model", np.full(count, float(labels))),
    }
    coords |= {name: ("model", np.array(values, dtype=float)) for name, values in known.items()}
    return xr.Dataset({}, coords, {"metric": metric, "classes": classes, "hparams": "[]"})


def disagrees(*args: Any, **options: Any) -> list[bool]:
    status = with_accuracies(result(*args, **options))["model_status"].values
    return [str(one).startswith("note: test accuracy is") for one in status]


@pytest.mark.parametrize(
    ("measured", "claimed", "labels", "wrong"),
    [
        (0.734, 0.73, 10**9, False),  # rounded
        (0.7351, 0.73, 10**9, True),
        (0.7304, 0.730, 10**9, False),  # 0.73 again: zeros at the end are not written
        (0.9754, 0.9751, 10**9, True),
        (0.76, 0.73, 1000, False),  # 3 · √(0.73 · 0.27 / 1000) + 0.005 = 0.047
        (0.776, 0.73, 1000, False),
        (0.778, 0.73, 1000, True),
        (0.31, 0.73, 100, True),
        (0.998, 1.0, 1000, False),  # the error is that of 0.998
        (0.95, 1.0, 1000, True),  # 1 is not taken to be rounded from 0.95
        (0.5, 0.0, 1000, True),
        (float("nan"), 0.73, 1000, False),
        (0.73, float("nan"), 1000, False),
    ],
)
def test_when_a_claim_stands(measured: float, claimed: float, labels: int, wrong: bool) -> None:
    assert disagrees([measured], labels=labels, test_accuracy=[claimed]) == [wrong]


def test_the_finest_claim_tells_how_all_are_rounded() -> None:
    assert disagrees([0.94], labels=10**9, test_accuracy=[0.9]) == [False]
    assert disagrees([0.94, 0.734], labels=10**9, test_accuracy=[0.9, 0.73]) == [True, False]


@pytest.mark.parametrize("name", ["test_acc", "test_top1", "test_accuracy"])
def test_claims_in_percent_and_by_other_names(name: str) -> None:
    assert disagrees([0.975, 0.8], labels=10**6, **{name: [97.5, 97.5]}) == [False, True]
    (line,) = model_notes(with_accuracies(result([0.8], labels=100, **{name: [97.5]})))
    assert line.startswith("1 of 1 models (net0): test accuracy is 80 on 100 labels, claimed 97.5: check data, normal")


@pytest.mark.parametrize("name", ["val_accuracy", "acc", "train_accuracy", "test_iou", "test_loss"])
def test_what_is_no_claim_of_this_accuracy(name: str) -> None:
    assert disagrees([0.8], **{name: [0.1]}) == [False]


def test_what_is_missing_is_filled_in() -> None:
    ds = with_accuracies(result([0.8, 0.6, np.nan], test_accuracy=[np.nan, 0.6, np.nan], train_accuracy=[0.9] * 3))
    np.testing.assert_array_equal(ds["test_accuracy"], [0.8, 0.6, np.nan])
    np.testing.assert_allclose(ds["generalization_gap"], [0.1, 0.3, np.nan])
    assert "measured" in ds["test_accuracy"].attrs["comment"]
    ds = with_accuracies(result([0.8, 0.6]))
    np.testing.assert_array_equal(ds["test_accuracy"], [0.8, 0.6])
    assert "generalization_gap" not in ds.coords


def test_it_is_filled_in_as_others_are() -> None:
    ds = with_accuracies(result([0.8, 0.6], test_accuracy=[np.nan, 60.0]))
    np.testing.assert_allclose(ds["test_accuracy"], [80.0, 60.0])
    ds = with_accuracies(result([0.8, 0.6], train_accuracy=[90.0, 99.0]))
    np.testing.assert_allclose(ds["test_accuracy"], [80.0, 60.0])
    np.testing.assert_allclose(ds["generalization_gap"], [10.0, 39.0])
    ds = with_accuracies(result([0.8, 0.6], metric="acc", test_acc=[np.nan, 0.6]))
    np.testing.assert_allclose(ds["test_acc"], [0.8, 0.6])
    assert "test_accuracy" not in ds.coords


def test_nothing_is_filled_in_where_another_metric_counts_or_the_name_is_taken() -> None:
    assert "test_accuracy" not in with_accuracies(result([0.8], metric="iou", test_iou=[0.5])).coords
    ds = result([0.8], test_accuracy=[3.0])
    ds.attrs["hparams"] = json.dumps(["test_accuracy"])
    ds = with_accuracies(ds)
    assert ds["test_accuracy"].values.tolist() == [3.0]
    assert ds["model_status"].values.tolist() == ["ok"]


def test_an_accuracy_below_a_blind_guess_is_none() -> None:
    ds = with_accuracies(result([0.01, 0.08, 0.5], labels=1000))
    np.testing.assert_array_equal(ds["test_accuracy"], [np.nan, 0.08, 0.5])
    assert "0.01 on 1000 labels, below chance level" in str(ds["model_status"].values[0])
    assert ds["model_status"].values.tolist()[1:] == ["ok", "ok"]


def test_what_is_wrong_with_many_models_is_one_line() -> None:
    ds = with_accuracies(result([0.1 + i / 100 for i in range(9)], test_accuracy=[0.73] * 9))
    (line,) = model_notes(ds)
    assert line.startswith("9 of 9 models (net0, net1, net2, …), for example: test accuracy is 0.1 on 1000 labels")


def test_a_model_that_failed_has_no_note() -> None:
    ds = result([0.1], test_accuracy=[0.73])
    ds["model_status"] = ("model", np.array(["failed: by itself"], dtype=object))
    assert with_accuracies(ds)["model_status"].values.tolist() == ["failed: by itself"]
