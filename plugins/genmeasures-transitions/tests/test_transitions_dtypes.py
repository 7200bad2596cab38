"""The measures work on networks of any floating-point type, with values as of float32."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from genmeasures_transitions.measure import TransitionCount
from torch import nn

import genmeasures


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_values_are_those_of_float32(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 20), nn.ReLU(),
        nn.Linear(20, 4),
    )  # fmt: skip
    classes = torch.arange(48) % 4
    data = torch.randn(48, 1, 8, 8) + classes[:, None, None, None], classes
    measures = [TransitionCount(points=128, trajectories=2, curvature_points=32)]
    expected, ds = (
        genmeasures.measure({"net": one}, data, data, measures=measures) for one in (net, copy.deepcopy(net).to(dtype))
    )
    for name in ("transition_count", "path_curvature"):
        np.testing.assert_allclose(ds[name].values, expected[name].values, rtol=tolerance, err_msg=name)
    for name in expected.data_vars:
        if str(name).endswith("_status"):
            assert set(ds[name].values.ravel()) == set(expected[name].values.ravel())
            assert not any(text.startswith("failed") for text in ds[name].values.ravel())
