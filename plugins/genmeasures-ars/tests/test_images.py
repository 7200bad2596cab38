"""The inputs that were found, as variables of the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ars_networks import data, images, layers, small
from genmeasures_ars import ARS
from torch import nn

import genmeasures
from genmeasures.plugin import Undefined

X, _ = images()
DIMS = ("model", "layer", "kernel", "image_channel", "image_row", "image_column")


def objectives(part: nn.Module, found: np.ndarray, kernel: int, objective: str) -> float:
    """Of one image, through the layers of a Sequential."""
    maps = part(torch.from_numpy(found[None]).float())[0].detach().double().numpy()
    means = [one.mean() for one in maps]
    others = sum(mean for other, mean in enumerate(means) if other != kernel)
    return float(means[kernel] - (others / len(means) if objective == "iam" else 0.0))


@pytest.mark.parametrize("objective", ["am", "iam"])
def test_values_follow_from_the_images(objective: str) -> None:
    """RS and AR of a single start are those of the network at the image."""
    model = small()
    measure = ARS(objective, steps=20, starts=1, keep_images=True)
    found = measure.measure(model, layers(model, X), data(X, None))
    for index, (part, channels) in enumerate(((model[:2], 5), (model[:5], 6))):
        assert found["ars_image"][index].shape == (channels, 2, 6, 6)
        for kernel, image in enumerate(found["ars_image"][index]):
            maps = part(torch.from_numpy(image[None]).float())[0].detach().numpy()
            above = [np.float64(one).mean() > np.float64(maps[kernel]).mean() for one in maps]
            assert found["rs_kernel"][index][kernel] == sum(above) / channels
            assert found["ar_kernel"][index][kernel] == (maps[kernel] > 0).mean()
    assert isinstance(found["ars_image"][2], Undefined)


@pytest.mark.parametrize("objective", ["am", "iam"])
def test_the_image_is_that_of_the_best_start(objective: str) -> None:
    """No start alone reaches a higher objective."""
    model, starts = small(seed=3), 3
    found = ARS(objective, steps=10, starts=starts, keep_images=True).measure(model, layers(model, X), data(X, None))
    follows = data(X, None)
    best = np.full(6, -np.inf)
    for _ in range(starts):
        alone = ARS(objective, steps=10, starts=1, keep_images=True).measure(model, layers(model, X), follows)
        reached = [objectives(model[:5], image, i, objective) for i, image in enumerate(alone["ars_image"][1])]
        best = np.maximum(best, reached)
    kept = [objectives(model[:5], image, i, objective) for i, image in enumerate(found["ars_image"][1])]
    np.testing.assert_allclose(kept, best, rtol=1e-5)


def test_both_kinds_of_images_survive_a_file(tmp_path: Path) -> None:
    measures = {name: ARS(name, steps=3, keep_images=True) for name in ("am", "iam")}
    ds = genmeasures.measure([small()], test=X, measures=measures)
    loaded = genmeasures.results.load(genmeasures.results.save(ds, tmp_path / "result.nc"))
    for name in ("am_image", "iam_image"):
        assert ds[name].dims == DIMS
        assert ds[name].shape == (1, 3, 6, 2, 6, 6)
        assert np.isnan(ds[name].values[0, 0, 5]).all()  # the first layer has five kernels
        assert np.isfinite(ds[name].values[0, 0, :5]).all()
        assert "a linear layer has no kernels" in str(ds[f"{name}_status"].values[0, 2])
        assert ds[name].attrs["auxiliary"] == 1
        np.testing.assert_array_equal(loaded[name].values, ds[name].values)
    assert (ds["am_image"].values[0, :2] != ds["iam_image"].values[0, :2]).any()


def test_images_are_kept_on_demand_alone() -> None:
    assert "ars_image" not in [variable.name for variable in ARS().variables]
    assert "ars_image" in [variable.name for variable in ARS(keep_images=True).clone().variables]
    ds = genmeasures.measure([small()], test=X, measures=[ARS(steps=1)])
    assert not [dim for dim in ds.dims if str(dim).startswith("image")]


def test_inputs_that_are_no_images() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU()).eval()
    x = torch.randn(4, 2, 7)
    found = ARS(steps=1, keep_images=True).measure(model, layers(model, x), data(x, None))
    assert "(channel, row, column), got inputs of the shape (2, 7)" in str(found["ars_image"][0])
    assert not isinstance(found["ars"][0], Undefined)


def test_kernels_without_a_finite_objective_have_no_image() -> None:
    model = small()
    with torch.no_grad():
        model[0].bias[1] = torch.nan
    found = ARS("am", steps=2, keep_images=True).measure(model, layers(model, X), data(X, None))
    missing = [bool(np.isnan(image).all()) for image in found["ars_image"][0]]
    assert missing == [False, True, False, False, False]
