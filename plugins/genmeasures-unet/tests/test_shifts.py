"""Shifts of images, against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from genmeasures_unet.shifts import Shift
from genmeasures_unet.volumes import Case

from genmeasures.plugin import OptionError

GENERATOR = np.random.default_rng(0)
MASK = (GENERATOR.random((9, 10, 7)) > 0.7).astype(np.int64)
CASE = Case("one", GENERATOR.gamma(2.0, size=(2, 9, 10, 7)).astype(np.float32), MASK)


def standard(image: np.ndarray) -> np.ndarray:
    flat = image.reshape(len(image), -1).astype(np.float64)
    return ((flat - flat.mean(1)[:, None]) / flat.std(1)[:, None]).reshape(image.shape)


def test_noise_has_the_strength_of_the_shift() -> None:
    image = standard(CASE.image)
    for strength in (0.5, 2.0):
        found = Shift("noise", strength).apply(CASE).image
        # Of a sum of independent parts with variances 1 and s², the correlation with the first is 1 / √(1 + s²).
        correlation = np.corrcoef(found.ravel(), image.ravel())[0, 1]
        assert correlation == pytest.approx(1 / np.sqrt(1 + strength**2), abs=4 / np.sqrt(image.size))
    assert not np.array_equal(
        Shift("noise", 1.0).apply(CASE).image, Shift("noise", 1.0).apply(Case("two", CASE.image, MASK)).image
    )
    assert np.array_equal(Shift("noise", 1.0).apply(CASE).image, Shift("noise", 1.0).apply(CASE).image)


def test_contrast_is_a_power_of_each_channel() -> None:
    channels = [(channel - channel.min()) / (channel.max() - channel.min()) for channel in CASE.image]
    for power in (0.5, 3.0):
        expected = standard(np.stack(channels).astype(np.float64) ** power)
        np.testing.assert_allclose(Shift("contrast", power).apply(CASE).image, expected, atol=1e-4)
    np.testing.assert_allclose(Shift("contrast", 1.0).apply(CASE).image, standard(CASE.image), atol=1e-5)


def test_resolution_averages_blocks() -> None:
    expected = np.empty(CASE.image.shape)
    edge = np.pad(CASE.image, [(0, 0), (0, 0), (0, 2), (0, 2)], mode="edge")
    for corner in np.ndindex(3, 4, 3):
        block = (slice(None), *(slice(3 * at, 3 * at + 3) for at in corner))
        expected[block] = edge[block].mean((1, 2, 3), dtype=np.float64)[:, None, None, None]
    np.testing.assert_allclose(Shift("resolution", 3).apply(CASE).image, standard(expected), atol=1e-5)


@pytest.mark.parametrize("kind", ["noise", "contrast", "resolution"])
def test_shifted_cases_are_standardized_and_keep_their_masks(kind: str) -> None:
    found = Shift(kind, 2).apply(CASE)
    assert found.mask is MASK
    assert found.image.dtype == np.float32
    assert found.image.shape == CASE.image.shape
    np.testing.assert_allclose(found.image.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(found.image.std((1, 2, 3)), 1, atol=1e-5)
    blank = Shift(kind, 2).apply(Case("blank", np.ones((1, 4, 4), np.float32), None))
    assert np.isfinite(blank.image).all()


@pytest.mark.parametrize(
    ("kind", "strength", "message"),
    [
        ("nois", 1.0, "did you mean 'noise'"),
        ("noise", 0, "strength=0 must be a positive number"),
        ("contrast", float("inf"), "strength=inf"),
        ("resolution", 1.5, "must be an integer"),
    ],
)
def test_shifts_out_of_range(kind: str, strength: float, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Shift(kind, strength)
