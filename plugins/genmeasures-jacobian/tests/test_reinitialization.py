"""Accuracy with one layer set back, compared with networks that are put together by hand."""

from __future__ import annotations

import copy
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from genmeasures_jacobian import Reinitialization, reinitialized
from jacobian_networks import dense, images
from torch import Tensor, nn

import genmeasures
from genmeasures.plugin import ModelError, OptionError
from genmeasures.testing import parametrize_with_checks

NOTE = "note: weights drawn by reset_parameters, and not those that the training began with"


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 9),
        nn.ReLU(),
        nn.Linear(9, 3),
    ]
    return nn.Sequential(*layers).eval()


X = images(60)
Y = torch.randint(3, (60,), generator=torch.Generator().manual_seed(1))


def accuracy(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> float:
    with torch.no_grad():
        predicted = model(x).numpy().argmax(1)
    return float(np.mean(predicted == y.numpy()))


def measured(model: nn.Module, **options: Any) -> Any:
    return genmeasures.measure({"net": model}, test=(X, Y), measures=[Reinitialization(**options)], batch_size=7)


@pytest.mark.parametrize("path", ["init.pt", "{model}.pt"])
def test_layers_with_the_weights_of_a_file(path: str, tmp_path: Path) -> None:
    trained, initial = network(0), network(1)
    torch.save({"state_dict": initial.state_dict()}, tmp_path / path.replace("{model}", "net"))
    before = copy.deepcopy(trained.state_dict())
    ds = measured(trained, initial=str(tmp_path / path))
    expected = []
    for index in (0, 4, 6):
        mixed = nn.Sequential(*(initial[place] if place == index else trained[place] for place in range(7))).eval()
        expected.append(accuracy(mixed))
    assert ds.reinitialization.values[0].tolist() == pytest.approx(expected)
    assert len(set(expected)) > 1
    assert ds.reinitialization_status.values[0].tolist() == ["ok"] * 3
    assert ds.reinitialization_none.item() == pytest.approx(accuracy(trained))
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_layers_with_their_own_weights_change_nothing(tmp_path: Path) -> None:
    trained = network(0)
    torch.save(trained.state_dict(), tmp_path / "same.pt")
    ds = measured(trained, initial=str(tmp_path / "same.pt"))
    assert ds.reinitialization.values.tolist() == [[accuracy(trained)] * 3]


def test_weights_that_are_drawn() -> None:
    """As ``reset_parameters`` draws them after seeding torch, and global generators are as they were."""
    trained = network(0)
    states = torch.get_rng_state(), random.getstate()
    legacy = np.random.get_state()[1].copy()  # noqa: NPY002
    ds = measured(trained)
    again = measured(trained)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == legacy).all()  # noqa: NPY002
    np.testing.assert_array_equal(ds.reinitialization.values, again.reinitialization.values)
    assert set(ds.reinitialization_status.values.ravel()) == {NOTE}
    for name, build in reinitialized(trained, ["0", "4"], seed=5).items():
        made, index = build(), int(name)
        weight = made[index].weight
        bound = 1 / weight[0].numel() ** 0.5  # that of nn.init.kaiming_uniform_ with a = √5
        assert 0.8 * bound < float(weight.detach().abs().max()) <= bound
        assert not torch.equal(weight, trained[index].weight)
        others = [place for place in (0, 4, 6) if place != index]
        assert all(torch.equal(made[place].weight, trained[place].weight) for place in others)
    alone = measured(trained).reinitialization.values[0, 1]
    one = genmeasures.measure({"net": trained}, test=(X, Y), measures=[Reinitialization()], layers=["4"])
    assert one.reinitialization.item() == alone


def test_any_measure_of_the_changed_models() -> None:
    trained, initial = network(0), network(1)
    ds = genmeasures.measure(reinitialized(trained, ["0", "6"], initial), test=(X, Y), measures=["jacobian_norm"])
    mixed = nn.Sequential(initial[0], *trained[1:]).eval()
    expected = genmeasures.measure([mixed], test=(X, Y), measures=["jacobian_norm"])
    assert ds.jacobian_norm.values[0] == pytest.approx(expected.jacobian_norm.item())
    assert ds.model.values.tolist() == ["0", "6"]


def test_dense_outputs_and_missing_labels() -> None:
    model, labels = dense(), torch.randint(3, (12, 6, 6), generator=torch.Generator().manual_seed(0))
    labels[:, 0] = -1
    ds = genmeasures.measure([model], test=(images(), labels), measures=[Reinitialization()], ignore_index=-1)
    with torch.no_grad():
        right = (model(images()).argmax(1) == labels)[labels >= 0]
    assert ds.reinitialization_none.item() == pytest.approx(float(right.double().mean()))


def test_layers_that_cannot_be_drawn() -> None:
    model = network(0)
    nn.utils.parametrizations.weight_norm(model[4])
    ds = measured(model)
    assert "computed from other parameters" in ds.reinitialization_status.values[0, 1]
    assert np.isfinite(ds.reinitialization.values[0, [0, 2]]).all()


@pytest.mark.parametrize("targets", [None, torch.randn(60)])
def test_without_classes_there_is_no_value(targets: Tensor | None) -> None:
    test = X if targets is None else (X, targets)
    ds = genmeasures.measure([network(0)], test=test, measures=[Reinitialization()])
    assert all("targets" in status for status in ds.reinitialization_status.values.ravel())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((60, 1), r"one output per class, of at least two.* got outputs of shape \(1,\)"),
        ((60,), r"one output per class, of at least two.* got outputs of shape \(\)"),
        ((60, 3), "one output per class, got 3 outputs and labels above 2"),
    ],
)
def test_fewer_outputs_than_classes_have_no_accuracy(shape: tuple[int, ...], message: str) -> None:
    """The largest of one logit is always the first, which would be a constant guess."""
    columns = shape[1] if len(shape) > 1 else 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, columns), *([nn.Flatten(0)] if len(shape) == 1 else []))
    labels = torch.arange(60) % (2 if columns == 1 else 5)
    ds = genmeasures.measure([model], test=(X, labels), measures=[Reinitialization()], batch_size=2)
    for name in ("reinitialization", "reinitialization_none"):
        assert np.isnan(ds[name].values).all()
        assert re.search(f"^undefined: .*{message}", str(ds[f"{name}_status"].values.ravel()[0]))


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    for name in ("other.pt", "missing.pt"):
        ds = measured(network(0), initial=str(tmp_path / name))
        assert name in ds.reinitialization_status.values[0, 0]
        with pytest.raises(ModelError, match=name):
            genmeasures.measure(
                [network(0)], test=(X, Y), measures=[Reinitialization(str(tmp_path / name))], errors="raise"
            )


@pytest.mark.parametrize("options", [{"initial": 3}, {"initial": ""}, {"split": "all"}])
def test_options_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        Reinitialization(**options)


@parametrize_with_checks([Reinitialization()])
def test_conforms(component: Any, check: Any) -> None:
    check(component)
