"""RS, AR and ARS, compared with the paper and with brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from genmeasures_ars import ar, ars, rs, standard_error
from torch import nn

import genmeasures
from genmeasures.plugin import ModelMeasure, Variable


class Given(ModelMeasure):
    """Values that are given to it, one per layer."""

    name = "given"
    variables = (Variable("given", "given values"),)

    def __init__(self, values: tuple[float, ...]) -> None:
        self.values = values

    def measure(self, model, layers, data):
        return {"given": list(self.values)}


def test_the_worked_case_of_the_paper() -> None:
    """Kernel 12 of layer 1 of the shallow CNN, section 3.1."""
    assert ars(0.61, 0.0141) == pytest.approx(0.985, abs=5e-4)


@pytest.mark.parametrize(
    ("layers", "mars"),
    [
        ((0.0841, 0.0429, 0.0413, 0.0361), 0.3314),
        ((0.0694, 0.1070, 0.0479, 0.0321), 0.4328),
        ((0.1008, 0.0766, 0.0661, 0.0397), 0.4606),
        ((0.0843, 0.0596, 0.0402, 0.0538), 0.3818),
    ],
)
def test_mars_is_the_sum_with_explicit_weights(layers: tuple[float, ...], mars: float) -> None:
    """Rows Good1 to Good4 of Table 2; the paper prints 0.3317, 0.4329 and 0.4605 for the first three."""
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    ds = genmeasures.measure([net], test=torch.zeros(4, 2), measures=[Given(layers)])
    assert genmeasures.aggregate(ds, "explicit", weights=[2, 2, 1, 1]).given.item() == pytest.approx(mars, abs=5e-5)


def test_limits() -> None:
    assert ars(0.3, 0.0) == 1
    assert ars(0.0, 0.5) == 0
    assert ars(0.5, 0.5) == pytest.approx(0.5)
    assert ars(0.0, 0.0) == 1
    assert np.isnan(ars([np.nan, np.nan, 0.1, 0.0], [0.0, 0.5, np.nan, np.nan])).all()
    assert ars([0.1, 0.2], [0.5, 0.5]).shape == (2,)


def test_rs_and_ar_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(7, 5, 3, 4, generator=generator).relu()
    maps[2] = 0
    kernels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    means = maps.flatten(2).mean(2)
    substitution, response = rs(means, kernels), ar(maps[torch.arange(7), kernels])
    for row, kernel in enumerate(kernels.tolist()):
        above = sum(float(means[row, j]) > float(means[row, kernel]) for j in range(5) if j != kernel)
        entries = [float(v) > 0 for v in maps[row, kernel].flatten()]
        assert substitution[row] == above / 5
        assert response[row] == sum(entries) / len(entries)
    assert substitution[2] == response[2] == 0


def test_ars_by_brute_force() -> None:
    fractions = [0.0, 1e-9, 0.0141, 0.25, 0.61, 1.0]
    for substitution in fractions:
        for response in fractions:
            expected = 1.0 if response == 0 else 2 * math.atan(substitution / response) / math.pi
            assert ars(substitution, response) == pytest.approx(expected, rel=1e-14)


def test_standard_errors() -> None:
    values = np.random.default_rng(0).random((5, 3))
    np.testing.assert_allclose(standard_error(values), scipy.stats.sem(values), rtol=1e-13)
    assert np.isnan(standard_error(values[:1])).all()


def test_a_mean_that_is_no_number_gives_none() -> None:
    assert np.isnan(rs(torch.tensor([[1.0, torch.nan]]), torch.tensor([0]))).all()
