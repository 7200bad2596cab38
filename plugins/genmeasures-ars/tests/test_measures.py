"""The measures as the engine calls them."""

from __future__ import annotations

import dataclasses

import genmeasures_ars
import numpy as np
import pytest
import torch
from ars_networks import data, images, layers, small
from genmeasures_ars import ARS, ClassSelectivity, CumulativeAblation
from torch import nn

import genmeasures
from genmeasures.plugin import DataError, ModelError, ModelMeasure, OptionError, Undefined, Value

X, Y = images()
ROUNDING = 1e-5
"""Relative difference of float32 activations in batches of other sizes."""
MEASURES = [ARS(steps=15), ClassSelectivity(), CumulativeAblation(ARS(steps=5)), CumulativeAblation(ClassSelectivity())]


@pytest.mark.parametrize("measure", MEASURES, ids=repr)
def test_every_variable_for_every_layer(measure: ModelMeasure) -> None:
    model = small(norm=True)
    measured = layers(model, X)
    results = measure.measure(model, measured, data(X, Y))
    assert sorted(results) == sorted(variable.name for variable in measure.variables)
    for variable in measure.variables:
        value = results[variable.name]
        if not variable.dims:
            assert isinstance(value, float)
            continue
        assert len(value) == 3
        assert isinstance(value[2], Undefined)
        assert "linear" in str(value[2])
        for layer, entry in zip(measured[:2], value, strict=False):
            if variable.dims == ("layer",):
                assert isinstance(entry, float | Value)
            else:
                assert isinstance(entry, np.ndarray)
                assert entry.dtype == np.float64
                assert entry.shape == (layer.channels,)


@pytest.mark.parametrize("measure", MEASURES, ids=repr)
def test_model_is_unchanged(measure: ModelMeasure) -> None:
    model = small(norm=True)
    model[0].bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    measure.measure(model, layers(model, X), data(X, Y))
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert [p.requires_grad for p in model.parameters()] == [n != "0.bias" for n, _ in model.named_parameters()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("measure", MEASURES, ids=repr)
def test_same_seed_same_value(measure: ModelMeasure) -> None:
    model = small()
    one, other = (measure.measure(model, layers(model, X), data(X, Y, seed=3, batch=b)) for b in (16, 9))
    for variable in measure.variables:
        if "kernel" in variable.dims:
            for a, b in zip(one[variable.name][:2], other[variable.name][:2], strict=True):
                np.testing.assert_allclose(a, b, rtol=ROUNDING)


def test_means_of_a_layer_are_over_its_kernels() -> None:
    model = small()
    results = ARS(steps=15).measure(model, layers(model, X), data(X, None))
    for name in ("ars", "rs", "ar"):
        for mean, values in zip(results[name][:2], results[f"{name}_kernel"][:2], strict=True):
            number = mean.value if isinstance(mean, Value) else mean
            assert number == pytest.approx(np.nanmean(values))


def test_chunks_do_not_change_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    whole = ARS(steps=15).measure(model, layers(model, X), data(X, None))
    monkeypatch.setattr("genmeasures_ars.measure.fitting_batch", lambda *_: 2)
    parts = ARS(steps=15).measure(model, layers(model, X), data(X, None))
    for a, b in zip(whole["ars_kernel"][:2], parts["ars_kernel"][:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=ROUNDING, atol=1e-6)


def test_layers_do_not_depend_on_which_are_chosen() -> None:
    model = small()
    measured = layers(model, X)
    whole = ARS(steps=5).measure(model, measured, data(X, None))
    alone = ARS(steps=5).measure(model, measured[1:2], data(X, None))
    np.testing.assert_array_equal(whole["ars_kernel"][1], alone["ars_kernel"][0])


@pytest.mark.parametrize("objective", ["am", "iam"])
def test_a_dead_layer_has_learned_no_features(objective: str) -> None:
    model = small()
    with torch.no_grad():
        model[0].bias.fill_(-1e4)
    results = ARS(objective, steps=3).measure(model, layers(model, X), data(X, None))
    assert results["ars"][0] == Value(1.0, "5 of 5 kernels have no response, and thus an ARS of 1")
    assert results["ars_kernel"][0].tolist() == [1.0] * 5
    assert results["rs"][0] == results["ar"][0] == results["ars_error"][0] == 0.0


@pytest.mark.parametrize("objective", ["am", "iam"])
def test_a_dead_kernel_is_fully_replaced(objective: str) -> None:
    model = small()
    with torch.no_grad():
        model[0].bias[1] = -1e4
    results = ARS(objective, steps=3).measure(model, layers(model, X), data(X, None))
    assert results["ar_kernel"][0][1] == 0
    assert results["rs_kernel"][0][1] > 0
    assert results["ars_kernel"][0][1] == 1
    assert results["ars_kernel_error"][0][1] == 0
    assert results["ars"][0].note == "1 of 5 kernels have no response, and thus an ARS of 1"
    assert results["ars"][0].value == pytest.approx(results["ars_kernel"][0].mean())


def test_kernels_without_a_value_are_counted() -> None:
    model = small()
    with torch.no_grad():
        model[0].bias[1] = -1e4
    results = ClassSelectivity().measure(model, layers(model, X), data(X, Y))
    assert np.isnan(results["class_selectivity_kernel"][0][1])
    assert isinstance(results["class_selectivity"][0], Value)
    assert "1 of 5" in results["class_selectivity"][0].note


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d])
def test_other_convolutions(kind: type[nn.Module]) -> None:
    dims = {"Conv1d": 1, "Conv3d": 3}.get(kind.__name__, 2)
    torch.manual_seed(0)
    model = nn.Sequential(kind(2, 4, 3), nn.ReLU()).eval()
    x = torch.randn(4, 2, *([5] * dims))
    results = ARS(steps=5).measure(model, layers(model, x), data(x, None))
    assert results["rs_kernel"][0].shape == (4,)


def test_training_data_will_do_for_the_shape_of_an_input() -> None:
    model = small()
    both = data(X, None)

    def batches(split: str) -> object:
        if split == "test":
            raise ModelError("ars needs test data, and none are given")
        return both.batches("train")

    measured = layers(model, X)
    results = ARS(steps=3).measure(model, measured, dataclasses.replace(both, batches=batches))
    expected = ARS(steps=3).measure(model, measured, data(X, None))
    np.testing.assert_array_equal(results["ars_kernel"][0], expected["ars_kernel"][0])


def test_inputs_without_gradient() -> None:
    model = small()
    measured = layers(model, X)
    with pytest.raises(DataError, match="int64"):
        ARS().measure(model, measured, data(X.long(), None))


def test_class_targets_are_needed() -> None:
    model = small()
    for targets in (None, Y.float(), Y.repeat(1, 2)):
        with pytest.raises(DataError, match="class_selectivity needs"):
            ClassSelectivity().measure(model, layers(model, X), data(X, targets))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("objective", "AM", "objective='AM' is unknown"),
        ("steps", 0, "steps must be an integer ≥ 1, got 0"),
        ("steps", 1.5, "steps must be an integer ≥ 1, got 1.5"),
        ("step_size", 0, "step_size must be a number > 0, got 0"),
        ("step_size", "fast", "step_size must be a number > 0, got 'fast'"),
        ("step_size", float("inf"), "step_size must be a number > 0, got inf"),
        ("starts", 0, "starts must be an integer ≥ 1, got 0"),
        ("tries", 0, "tries must be an integer ≥ 1, got 0"),
        ("keep_images", 1, "keep_images must be true or false, got 1"),
        ("memory", True, r"memory must be an integer ≥ 1 \(MiB\), got True"),
    ],
)
def test_options_of_ars(option: str, value: object, message: str) -> None:
    with pytest.raises(OptionError, match=f"ARS: {message}"):
        ARS(**{option: value})


def test_other_options() -> None:
    with pytest.raises(OptionError, match="split"):
        ClassSelectivity(split="val")
    with pytest.raises(OptionError, match="split"):
        CumulativeAblation(split="val")
    with pytest.raises(OptionError, match="score"):
        CumulativeAblation("ars")


def test_all_are_registered() -> None:
    registered: list[type] = []
    genmeasures_ars.genmeasures_register(registered.append)
    assert registered == [ARS, ClassSelectivity, CumulativeAblation]


def test_defaults() -> None:
    """From them the Hydra configs are derived, which name result files."""
    defaults = {
        "objective": "iam", "steps": 1500, "step_size": 0.1, "growth": 0.04, "starts": 4, "tries": 16,
        "keep_images": False, "memory": 256,
    }  # fmt: skip
    assert ARS().options() == defaults
    assert ARS(**defaults).clone().options() == defaults
    assert ClassSelectivity().options() == {"split": "test"}
    assert repr(CumulativeAblation()) == f"CumulativeAblation(score={ARS()!r}, split='test')"
    assert repr(CumulativeAblation().clone()) == repr(CumulativeAblation())


def test_the_status_tells_how_classes_were_read() -> None:
    """One-hot targets mean the same classes, and what depends on them says so."""
    model, measured = small(norm=True), torch.nn.functional.one_hot(Y[:, 0]).float()
    measures = [ClassSelectivity(), ARS(steps=2)]
    expected = genmeasures.measure([model], test=(X, Y[:, 0]), measures=measures)
    found = genmeasures.measure([model], test=(X, measured), measures=measures)
    for name in ("class_selectivity", "class_selectivity_kernel"):
        np.testing.assert_array_equal(found[name].values, expected[name].values)
        assert "one-hot targets were read as class numbers" in str(found[f"{name}_status"].values.flat[0])
        assert "one-hot" not in str(expected[f"{name}_status"].values.flat[0])
    assert "one-hot" not in "".join(map(str, found["ars_status"].values.flat))


class _Branches(nn.Module):
    """A residual block, a dense concatenation, and a layer that another reads without an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.dense, self.bare, self.last = (
            nn.Conv2d(channels, kernels, 3, padding=1) for channels, kernels in ((2, 4), (4, 4), (4, 4), (8, 4), (4, 4))
        )
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.norm(self.second(x)))
        return torch.relu(self.last(self.bare(torch.cat([x, self.dense(x)], 1)))).mean((2, 3))


@pytest.mark.parametrize("tap", ["activation", "linear", "block"])
def test_the_status_tells_where_no_activation_follows(tap: str) -> None:
    torch.manual_seed(0)
    extractor = genmeasures.extractors.ReceptiveField(tap=tap)
    ds = genmeasures.measure([_Branches().eval()], test=X, measures=[ARS(steps=1, starts=1)], extractor=extractor)
    assert ds.layer_name.values[0].tolist() == ["first", "second", "dense", "bare", "last"]
    missing = "of a map that no layer receives"
    for name in ("ars", "ar"):
        first, second, dense, bare, last = ds[f"{name}_status"].values[0]
        assert first == last == "ok"
        assert f"no activation follows before a sum: AR is the fraction of positive entries {missing}" in second
        assert (
            f"no activation follows before a concatenation: AR is the fraction of positive entries {missing}" in dense
        )
        assert "no activation directly follows: AR is the fraction of positive entries of a linear map" in bare
    assert not any("activation" in status for status in ds["rs_status"].values[0])
