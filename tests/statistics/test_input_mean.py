"""Means with errors over inputs, compared with NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import sem

from genmeasures.errors import Undefined
from genmeasures.statistics.input_mean import InputMean

vectors = st.lists(st.tuples(st.integers(0, 6), st.floats(-100, 100), st.floats(0.1, 10)), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(vectors, st.integers(1, 7))
def test_the_error_is_that_of_a_ratio_of_sums(rows: list[tuple[int, float, float]], pieces: int) -> None:
    """Sums written out per input, in any pieces and order."""
    mean = InputMean()
    for part in np.array_split(np.random.default_rng(0).permutation(len(rows)), pieces):
        inputs, values, weights = (
            torch.tensor([rows[i][column] for i in part], dtype=torch.float64) for column in range(3)
        )
        mean.add(inputs.long(), values, weights)
    weight = sum(w for _, _, w in rows)
    expected = sum(v * w for _, v, w in rows) / weight
    assert mean.mean() == pytest.approx(expected, abs=1e-9)
    residuals = [sum(w * (v - expected) for j, v, w in rows if j == i) for i in {i for i, _, _ in rows}]
    n = len(residuals)
    if n == 1:
        with pytest.raises(Undefined, match="at least two inputs"):
            mean.error()
        return
    error = np.sqrt(n / (n - 1) * np.sum(np.square(residuals))) / weight
    assert mean.error() == pytest.approx(error, rel=1e-6, abs=1e-9)


def test_of_equally_many_vectors_it_is_the_standard_error_of_the_means_of_inputs() -> None:
    values = np.random.default_rng(0).normal(size=(9, 5))
    mean = InputMean()
    mean.add(torch.arange(9).repeat_interleave(5), torch.from_numpy(values).flatten())
    assert mean.values("v") == pytest.approx({"v": values.mean(), "v_error": sem(values.mean(1))}, rel=1e-12)


def test_it_covers_the_spread_of_the_mean_when_pixels_depend_on_each_other() -> None:
    """2,000 draws of 30 inputs of 1 to 20 pixels that are all alike: the error of independent pixels is a third."""
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(2000):
        counts = rng.integers(1, 20, 30)
        mean = InputMean()
        inputs, values = np.arange(30).repeat(counts), rng.normal(size=30).repeat(counts)
        mean.add(torch.from_numpy(inputs), torch.from_numpy(values))
        means.append(mean.mean())
        errors.append(mean.error())
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.05)


def test_without_weight_there_is_no_mean() -> None:
    mean = InputMean()
    with pytest.raises(Undefined, match="no vectors"):
        mean.mean()
    mean.add(torch.tensor([0, 1]), torch.ones(2), torch.zeros(2))
    assert all(isinstance(value, Undefined) for value in mean.values("v").values())
