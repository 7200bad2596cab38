"""The function that users call: stored outputs, statuses, intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import genmeasures
from genmeasures.errors import DataError, OptionError
from genmeasures.estimates import METHODS
from genmeasures.results import load, save


def logits_of(labels: np.ndarray, scale: float, seed: int, k: int = 4) -> np.ndarray:
    return np.asarray(scale * np.eye(k)[labels] + np.random.default_rng(seed).normal(size=(len(labels), k)))


@pytest.fixture(scope="module")
def labels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(4, size=200), rng.integers(4, size=150)


@pytest.fixture(scope="module")
def stored(labels: tuple[np.ndarray, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    known, new = labels
    return {
        f"net_{i}": (logits_of(known, scale, i), logits_of(new, 0.7 * scale, 10 + i))
        for i, scale in enumerate((1.0, 2.0, 3.0))
    }


def test_all_methods_give_percent_with_intervals(stored: Any, labels: Any) -> None:
    ds = genmeasures.estimate(stored, *labels, list(METHODS), resamples=200)
    assert ds.estimate.dims == ("model", "estimator")
    assert all(status == "ok" or "in bins of confidence" in status for status in ds.estimate_status.values.ravel())
    assert ((ds.estimate > 10) & (ds.estimate <= 100)).all()
    assert (
        ((ds.estimate_low <= ds.estimate) & (ds.estimate <= ds.estimate_high)).sel(estimator=["ac", "doc", "gde"]).all()
    )
    for i, name in enumerate(stored):
        accuracy = 100 * (stored[name][1].argmax(1) == labels[1]).mean()
        assert float(ds.target_accuracy[i]) == pytest.approx(accuracy)
    assert ds.estimate.sel(estimator="validation").values == pytest.approx(ds.validation_accuracy.values)


def test_values_depend_on_the_seed_alone(stored: Any, labels: Any) -> None:
    """Neither on the other models nor on their order, for a method of one model."""
    one, other = (genmeasures.estimate(stored, labels[0], seed=seed, resamples=50) for seed in (0, 1))
    xr.testing.assert_identical(one, genmeasures.estimate(stored, labels[0], seed=0, resamples=50))
    assert (one.resampled.values != other.resampled.values).any()
    alone = genmeasures.estimate({"net_2": stored["net_2"]}, labels[0], resamples=50)
    np.testing.assert_array_equal(alone.resampled.values[0], one.resampled.values[2])


def test_intervals_cover_the_expectation() -> None:
    """AC over 100 samples: 95 % intervals cover its expectation in 89 to 100 of them (binomial, four sigma: 87)."""
    covered = 0
    rng = np.random.default_rng(3)
    expected = 100 * np.exp(big := rng.normal(size=(200_000, 3))).max(1) / np.exp(big).sum(1)
    for _ in range(100):
        ds = genmeasures.estimate(
            {"net": (np.zeros((10, 3)), rng.normal(size=(60, 3)))}, [0] * 10, method="ac", resamples=200
        )
        covered += bool(ds.estimate_low.item() <= expected.mean() <= ds.estimate_high.item())
    assert covered >= 87


def test_files_and_dicts_and_tensors_give_the_same(stored: Any, labels: Any, tmp_path: Path) -> None:
    for name, (known, new) in stored.items():
        np.savez(tmp_path / f"{name}.npz", validation_logits=known, target_logits=new, validation_labels=labels[0])
    expected = genmeasures.estimate(stored, labels[0], resamples=20)
    xr.testing.assert_identical(genmeasures.estimate(tmp_path, resamples=20), expected)
    files = sorted(tmp_path.glob("*.npz"))
    xr.testing.assert_identical(genmeasures.estimate(files, resamples=20), expected)
    tensors = {
        name: {"validation": torch.tensor(known, requires_grad=True), "target": torch.tensor(new)}
        for name, (known, new) in stored.items()
    }
    xr.testing.assert_identical(genmeasures.estimate(tensors, labels[0], resamples=20), expected)
    xr.testing.assert_identical(load(save(expected, tmp_path / "result.nc")), expected)


def test_a_model_that_cannot_be_used_does_not_stop_the_others(stored: Any, labels: Any) -> None:
    broken = {
        "nan": (np.full((200, 4), np.nan), stored["net_0"][1]),
        "short": (stored["net_0"][0][:5], stored["net_0"][1]),
    }
    ds = genmeasures.estimate(stored | broken, labels[0], method=["atc", "gde"], resamples=20)
    assert list(ds.model_status.values[:3]) == ["ok"] * 3
    assert ds.model_status.values[3] == "failed: validation logits of 200 inputs are NaN or infinite"
    assert "must be of shape (5,) for logits (5, 4), got (200,)" in ds.model_status.values[4]
    assert np.isnan(ds.estimate.values[3:]).all()
    assert np.isfinite(ds.estimate.values[:3]).all()
    with pytest.raises(DataError, match="no model has outputs to estimate from; nan: validation logits of 200"):
        genmeasures.estimate({"nan": broken["nan"]}, labels[0])


def test_what_is_not_known_has_no_interval() -> None:
    certain = 1000 * np.eye(2)[[0, 1] * 5]
    ds = genmeasures.estimate({"net": (certain, certain)}, [0, 1] * 5, method=["ac", "gde", "aline"], resamples=20)
    statuses = ds.estimate_status.values[0].tolist()
    assert statuses[0] == "note: no interval: the estimate is the same in all resamples"
    assert statuses[1] == "undefined: agreement needs at least 2 models, got 1"
    assert statuses[2] == "undefined: agreement needs at least 2 models, got 1"
    assert np.isnan(ds.estimate_low.values).all()
    few = genmeasures.estimate(
        {"net": (certain[:4] + np.array([0, 0.5]), certain[:4])}, [0, 1, 1, 0], method="doc", resamples=20
    )
    assert "no interval: fewer than 8 inputs" in few.estimate_status.values[0, 0]


def test_scaling_is_that_of_the_validation_data(stored: Any, labels: Any) -> None:
    """The estimates do not depend on the scale of the logits."""
    scaled = {name: (5 * known, 5 * new) for name, (known, new) in stored.items()}
    methods = ["ac", "doc", "atc", "im", "cot", "ensemble"]
    one, other = (
        genmeasures.estimate(of, labels[0], method=methods, scale=True, resamples=10) for of in (stored, scaled)
    )
    np.testing.assert_allclose(one.estimate, other.estimate, rtol=1e-6)
    np.testing.assert_allclose(5 * one.temperature, other.temperature, rtol=1e-6)
    sure = genmeasures.estimate(
        {"net": (np.eye(2)[[0, 1] * 5], np.eye(2))}, [0, 1] * 5, method=["atc", "validation"], scale=True
    )
    assert sure.estimate_status.values[0, 0] == "undefined: the temperature is 0: every validation output is correct"
    assert sure.estimate.values[0, 1] == 100


def test_an_estimate_beyond_100_says_so() -> None:
    validation = np.array([[0.0, 0.1]] * 9 + [[0.2, 0.0]])
    ds = genmeasures.estimate({"net": (validation, np.array([[0.0, 9.0]] * 9))}, [1] * 10, method="doc", resamples=20)
    assert ds.estimate.item() > 100
    assert ds.estimate_status.item().endswith("the estimate is outside of 0 to 100 %")


def test_pixels_have_dice_coefficients_by_class() -> None:
    rng = np.random.default_rng(0)
    masks = rng.integers(3, size=(9, 6, 6))
    logits = 2 * np.eye(3)[masks].transpose(0, 3, 1, 2) + rng.normal(size=(9, 3, 6, 6))
    methods = ["validation", "ac", "doc", "atc"]
    ds = genmeasures.estimate({"net": (logits, 0.5 * logits)}, masks, masks, methods, resamples=50)
    assert ds.attrs["metric"] == "dice"
    assert ds.dice.dims == ("model", "estimator", "class")
    np.testing.assert_allclose(ds.estimate, ds.dice[..., 1:].mean("class"))
    assert ((ds.dice_low <= ds.dice) & (ds.dice <= ds.dice_high)).sel(estimator="validation").all()
    assert ds.target_dice.item() == pytest.approx(ds.target_class_dice.values[0, 1:].mean())
    accuracy = genmeasures.estimate({"net": (logits, logits)}, masks, method="atc", metric="accuracy", resamples=10)
    assert accuracy.estimate.item() == pytest.approx(100 * (logits.argmax(1) == masks).mean())
    with pytest.raises(OptionError, match="'cot' does not estimate Dice coefficients"):
        genmeasures.estimate({"net": (logits, logits)}, masks, method="cot")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "atk"}, "method 'atk' is unknown .did you mean 'atc'"),
        ({"method": []}, "name a method"),
        ({"method": ["atc", "atc"]}, "named twice"),
        ({"metric": "dise"}, "did you mean 'dice'"),
        ({"average": "pixel"}, "did you mean 'pixels'"),
        ({"confidence": 95}, "confidence must be between 0 and 1"),
        ({"resamples": 0}, "resamples must be a positive integer"),
        ({"seed": -1}, "seed must be an integer"),
        ({"errors": "rais"}, "did you mean 'raise'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        genmeasures.estimate({"net": ([[0.0, 1.0]], [[0.0, 1.0]])}, [0], **options)


@pytest.mark.parametrize(
    ("logits", "error", "match"),
    [
        ({}, OptionError, "there are no models"),
        ("no_such_folder", OptionError, "there is no file or folder no_such_folder"),
        ({"net": torch.nn.Linear(2, 2)}, OptionError, "expected the logits of models, got models"),
        ({"net": 3}, DataError, "net: expected a pair of arrays"),
        ({"net": {"test": [[0.0]]}}, DataError, "unknown key 'test'"),
        ({"net": {"target": [[0.0]]}}, DataError, "there are no validation logits"),
        ({"net": ([[0.0, 1.0]], [[0.0, 1.0, 2.0]])}, DataError, "must have the same classes"),
    ],
)
def test_what_cannot_be_read_is_named(logits: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        genmeasures.estimate(logits, [0])


def test_faulty_files_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "single.npz.npy", np.zeros(3))
    (tmp_path / "single.npz.npy").rename(tmp_path / "single.npz")
    np.savez(tmp_path / "other.npz", validation_logit=np.zeros((2, 2)), target_logits=np.zeros((2, 2)))
    np.savez(tmp_path / "bare.npz", validation_logits=np.zeros((2, 2)), target_logits=np.zeros((2, 2)))
    (tmp_path / "text.npz").write_text("no archive")
    expected = {
        "single": "has a single array",
        "other": r"no array validation_logits .did you mean 'validation_logit'",
        "bare": "validation has no labels: pass them",
        "text": "cannot be read",
    }
    for name, match in expected.items():
        with pytest.raises(DataError, match=match):
            genmeasures.estimate(tmp_path / f"{name}.npz")
    with pytest.raises(OptionError, match=r"several files have the name bare"):
        genmeasures.estimate([tmp_path / "bare.npz", tmp_path / "bare.npz"])
