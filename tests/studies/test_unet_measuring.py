"""How the UNet study measures its networks in parts: on networks that are trained for one epoch on small images."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from genmeasures_unet import UNetSegmentation

import genmeasures
from genmeasures.results import load

FOLDER = Path(__file__).parents[2] / "benchmarks" / "studies" / "unet"
sys.path.insert(0, str(FOLDER))
try:
    measure = importlib.import_module("measure")
finally:
    sys.path.remove(str(FOLDER))

MEASURES = ("davies_bouldin", "roughness", "roughness_projected")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """Recipes of networks of the same depth, which are trained for one epoch."""
    made = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    masks = np.zeros((10, 40, 40), dtype=np.uint8)
    masks[:, 12:24, 10:30] = 1
    np.savez(made / "volumes.npz", x=(80 * masks + 40 * rng.random(masks.shape)).astype(np.uint8), y=masks)
    options = {"volumes": str(made / "volumes.npz"), "patch": [32, 32], "epochs": 1, "epoch_size": 8}
    options["cache"] = str(made / "cache")
    few = {**options, "objectives": ["mse"], "train_cases": [2], "shift": "noise"}
    recipes = {"unet_hippocampus": {**options, "objectives": ["mse", "dice"]}, "unet_few_cases": few}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "recipe", recipes.__getitem__)
        patch.setattr(measure, "PATCHES", 12)
        patch.setattr(measure, "MANY", 24)
        # Without confidence, whose mixtures take most of the time.
        fast = functools.partial(genmeasures.measure, measures=["davies_bouldin", "roughness"])
        patch.setattr(genmeasures, "measure", fast)
        UNetSegmentation(**{**few, "workers": 1}).models()
        UNetSegmentation(**{**recipes["unet_hippocampus"], "objectives": ["dice"], "workers": 1}).models()
        yield recipes


def test_layers_with_few_pixels_are_measured_on_more_patches(toy: Any, tmp_path: Path) -> None:
    listed = list(measure.jobs("block_receptive_field", tmp_path))
    names = [f"{objective}_seed{seed}" for objective in ("mse", "dice") for seed in (0, 1, 2)]
    assert [(job.path.stem, trained) for job, trained in listed] == [(name, name == "dice_seed0") for name in names]
    job = listed[3][0]
    measure.measure(job)
    ds = load(job.path)
    assert ds.model.values.tolist() == ["dice_seed0_epoch01"]
    assert ds.layer.values.tolist() == list(range(11))
    assert ds.layer_name.values[0].tolist()[3:7] == [*measure.DEEP, "decoder.1.conv"]
    assert ds.vectors_test.values[0, 2:7].tolist() == [12 * 16, 24 * 4, 24, 24 * 4, 12 * 16]
    assert {"test_iou", "train_iou", "generalization_gap", "objective", "epoch", "seed"} <= set(ds.coords)
    # The whole network, on the patches of either part.
    for patches, layers in ((24, list(measure.DEEP)), (12, ["encoder.2.conv", "head"])):
        whole = UNetSegmentation(**{**job.options, "patches": patches})
        expected = genmeasures.measure(whole, extractor=job.result.extractor.clone(), layers=layers)
        same = np.isin(ds.layer_name.values[0].astype(str), layers)
        for name in MEASURES:
            np.testing.assert_allclose(ds[name].values[:, same], expected[name].values, rtol=1e-6)
    job.path.write_bytes(b"kept")
    measure.measure(job)
    assert job.path.read_bytes() == b"kept"  # what is measured is not measured again


def test_shifted_test_cases_bring_their_own_accuracy(toy: Any, tmp_path: Path) -> None:
    found = {}
    for name in ("few_cases_whole_tensor", "few_cases_shifted_whole_tensor"):
        ((job, trained),) = measure.jobs(name, tmp_path)
        assert trained
        measure.measure(job)
        assert measure.write(name, tmp_path, tmp_path) == f"{name}: 1 networks"
        found[name] = load(tmp_path / f"{name}.nc")
    plain, shifted = found.values()
    assert plain.model.values.tolist() == shifted.model.values.tolist() == ["mse_train_cases2_seed0_epoch01"]
    np.testing.assert_array_equal(plain.davies_bouldin, shifted.davies_bouldin)  # of the training patches
    assert not np.array_equal(plain.roughness, shifted.roughness)
    np.testing.assert_array_equal(plain.test_iou, shifted.unshifted_iou)
    np.testing.assert_allclose(shifted.generalization_gap, shifted.train_iou - shifted.test_iou, atol=1e-12)
    for shift, strength in (("contrast", 2.0), ("resolution", 2)):
        options = {**toy["unet_few_cases"], "shift": shift, "strength": strength, "workers": 1}
        (model,) = UNetSegmentation(**options).models()
        assert shifted[f"{shift}_iou"].item() == model.metrics["test_iou"]
    assert measure.write("whole_tensor", tmp_path, tmp_path).startswith("whole_tensor: not measured yet: mse_seed0, ")
