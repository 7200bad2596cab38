"""What a manifest may leave open, what it is asked about, and what reaches the factory."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

import genmeasures
from genmeasures.errors import GenmeasuresWarning, ModelError, OptionError
from genmeasures.extractors import ReceptiveField
from genmeasures.interfaces import TaskModel
from genmeasures.tasks import Checkpoints
from genmeasures.tasks.manifest import looks_like_metric

MODULE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, act="relu", **others):
        super().__init__()
        self.made_with = {"width": width, "act": act, **others}
        self.fc1, self.fc2 = nn.Linear(6, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())

def any_kwargs(**kwargs):
    return Net(**kwargs)

def strict_net(width, *, pretrained=False, device=None):
    assert not pretrained and device is None
    return Net(width)

def positional(width, /):
    return Net(width)
"""


@pytest.fixture
def module(tmp_path: Path) -> Iterator[str]:
    name = f"rules_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    path = list(sys.path)
    yield name
    sys.path[:] = path
    sys.modules.pop(name, None)


def weights(width: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = {"fc1": nn.Linear(6, width), "fc2": nn.Linear(width, 4)}
    return {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}


def task(folder: Path, module: str, models: Any, factory: str = "Net", **top: Any) -> Checkpoints:
    content = {"factory": f"{module}.{factory}", "python_path": ".", "models": models, **top}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return Checkpoints(str(folder))


def table(folder: Path, module: str, text: str, columns: Any = None, **top: Any) -> Checkpoints:
    (folder / "table.csv").write_text(text)
    models = {"table": "table.csv"} | ({} if columns is None else {"columns": columns})
    return task(folder, module, models, **top)


def made_with(model: TaskModel) -> dict[str, Any]:
    found: dict[str, Any] = model.build().made_with  # type: ignore[assignment]
    return found


# Hyperparameters and the factory


def test_hyperparameters_reach_a_factory_that_names_them(
    tmp_path: Path, module: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name, width in (("a", 8), ("b", 3)):
        torch.save(weights(width), tmp_path / f"{name}.pt")
    models = {
        "a": {"hparams": {"width": 8, "act": "gelu", "lr": 0.1}},
        "b": {"hparams": {"width": 8, "lr": 0.1}, "factory_kwargs": {"width": 3}},
    }
    with caplog.at_level(logging.INFO):
        a, b = task(tmp_path, module, models).models()
        assert made_with(a) == {"width": 8, "act": "gelu"}
        assert made_with(b) == {"width": 3, "act": "relu"}
    assert a.hparams == {"width": 8, "act": "gelu", "lr": 0.1}
    assert b.hparams == {"width": 8, "lr": 0.1}
    assert f"{module}.Net is called with the hyperparameters that its signature names: width, act" in caplog.messages


def test_nothing_is_passed_that_the_signature_does_not_name(tmp_path: Path, module: str) -> None:
    torch.save(weights(8), tmp_path / "a.pt")
    models = {"a": {"hparams": {"width": 8, "lr": 0.1}}}
    with pytest.raises(
        ModelError,
        match=r"hyperparameters .*width, lr were not passed to the \*\*kwargs of .*any_kwargs.*factory_kwargs$",
    ):
        task(tmp_path, module, models, "any_kwargs").models()[0].build()
    with pytest.raises(ModelError, match=r"positional\(\) failed: TypeError"):
        task(tmp_path, module, models, "positional").models()[0].build()
    (model,) = task(tmp_path, module, models, "any_kwargs", factory_kwargs={"width": 8}).models()
    assert made_with(model) == {"width": 8, "act": "relu"}


def test_weights_of_the_factorys_own_are_never_asked_for(tmp_path: Path, module: str) -> None:
    torch.save(weights(8), tmp_path / "a.pt")
    hparams = {"width": 8, "pretrained": True, "device": "cuda"}
    (model,) = task(tmp_path, module, {"a": {"hparams": hparams}}, "strict_net").models()
    assert made_with(model) == {"width": 8, "act": "relu"}
    assert model.hparams == hparams


def test_a_hyperparameter_that_the_factory_refuses_is_named(tmp_path: Path, module: str) -> None:
    torch.save(weights(8), tmp_path / "a.pt")
    models = {"a": {"hparams": {"width": "wide"}}}
    with pytest.raises(ModelError, match=r"Net\(width='wide'\) failed: .*; the arguments width are hyper"):
        task(tmp_path, module, models).models()[0].build()


# The table


def test_arguments_of_the_factory_in_a_table(tmp_path: Path, module: str) -> None:
    for name, width in (("a", 8), ("b", 4), ("c", 5)):
        torch.save({"ema": weights(width), "optimizer": {}}, tmp_path / f"{name}.pt")
    text = (
        "model,factory_kwargs.width,factory_kwargs.sizes,lr,key,factory,test_accuracy\n"
        f'a,8,"[1, 2]",0.1,ema,,0.5\nb,,,0.2,,,\nc,5,,0.3,,{module}.strict_net,\n'
    )
    a, b, c = table(tmp_path, module, text, factory_kwargs={"act": "tanh"}).models()
    assert made_with(a) == {"width": 8, "act": "tanh", "sizes": [1, 2]}
    assert made_with(b) == {"width": 4, "act": "tanh"}
    with pytest.raises(ModelError, match="act"):  # of all models, which this factory does not take
        c.build()
    assert [dict(model.hparams) for model in (a, b, c)] == [{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}]
    assert a.metrics == {"test_accuracy": 0.5}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("test_acc", "test_acc: test_accuracy makes it a metric, test_acc: null skips it, test_acc: hparams.test"),
        ("accuracy", "accuracy: test_accuracy makes it a metric"),
        ("train_loss", "metric: loss in the manifest makes it the metric"),
        ("val_loss", r"set columns beside table in the manifest: \{val_loss: null skips it"),
        ("valid/Acc@1", "valid/Acc@1: validation_accuracy makes it a metric, valid/Acc@1: null"),
        ("testIoU", "testIoU: test_iou makes"),
        ("err", "err: test_err makes it a metric"),
        ("f1", "f1: test_f1"),
    ],
)
def test_columns_that_look_like_metrics_are_asked_about(header: str, said: str, tmp_path: Path, module: str) -> None:
    text = f"model,lr,{header},test_accuracy\na,0.1,0.5,0.4\n"
    with pytest.raises(OptionError, match=rf"table\.csv: the column '{header}' is named like a metric.*{said}"):
        table(tmp_path, module, text).models()
    (model,) = table(tmp_path, module, text, {header: None}).models()
    assert dict(model.hparams) == {"lr": 0.1}
    (model,) = table(tmp_path, module, text, {header: f"hparams.{header}"}).models()
    assert dict(model.hparams) == {"lr": 0.1, header: 0.5}


def test_columns_are_called_what_the_manifest_says(tmp_path: Path, module: str) -> None:
    text = "run,ckpt,acc,val_loss,units\nx,net.pth,0.5,3.0,8\n"
    columns = {"run": "model", "ckpt": "weights", "acc": "test_accuracy", "val_loss": None, "units": "width"}
    torch.save(weights(8), tmp_path / "net.pth")
    (model,) = table(tmp_path, module, text, columns).models()
    assert (model.name, model.metrics, model.hparams) == ("x", {"test_accuracy": 0.5}, {"width": 8})
    assert made_with(model)["width"] == 8
    with pytest.raises(
        OptionError, match=r"has no column 'rum', which columns of the manifest names \(did you mean 'run'"
    ):
        table(tmp_path, module, text, {"rum": "model"}).models()
    with pytest.raises(OptionError, match=r"there is no column 'model'.*columns: \{its name: model\}"):
        table(tmp_path, module, text).models()
    with pytest.raises(OptionError, match="the names of the columns must be unique"):
        table(tmp_path, module, text, {**columns, "units": "weights"}).models()


@pytest.mark.parametrize(
    "name",
    [
        "precision",
        "loss_weight",
        "label_smoothing",
        "train_size",
        "f",
        "top_k",
        "test_fold",
        "score_threshold",
        "lr",
        "3",
    ],
)
def test_names_of_hyperparameters_are_not_asked_about(name: str, tmp_path: Path, module: str) -> None:
    assert not looks_like_metric(name)
    (model,) = table(tmp_path, module, f"model,{name}\na,2\n").models()
    assert dict(model.hparams) == {name: 2}


def test_a_loss_that_was_chosen_by_name_is_a_hyperparameter(tmp_path: Path, module: str) -> None:
    (model, _) = table(tmp_path, module, "model,loss\na,dice\nb,mse\n").models()
    assert dict(model.hparams) == {"loss": "dice"}


# Keys that are not used


def check_unused(said: str) -> None:
    assert said == "keys of a.pt that are not used (strict: false): 2, head.bias, head.weight"


def test_unused_keys_pass_only_where_the_manifest_says_so(tmp_path: Path, module: str) -> None:
    more = {**weights(), "head.weight": torch.ones(3), "head.bias": torch.ones(3)}
    torch.save({"state_dict": {f"model.{name}": value for name, value in more.items()}}, tmp_path / "a.pt")
    with pytest.raises(
        ModelError, match=r"2 unexpected: head.bias, head.weight.*strict: false in the manifest permits"
    ):
        task(tmp_path, module, {"a": None}).models()[0].build()
    with pytest.warns(GenmeasuresWarning) as said:
        made = task(tmp_path, module, {"a": None}, strict=False).models()[0].build()
    check_unused(str(said[0].message))
    torch.testing.assert_close(dict(made.state_dict()), weights(), rtol=0, atol=0)
    with pytest.warns(GenmeasuresWarning):
        task(tmp_path, module, {"a": {"strict": False}}).models()[0].build()
    with pytest.raises(ModelError, match="unexpected"):
        task(tmp_path, module, {"a": {"strict": True}}, strict=False).models()[0].build()


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_what_the_model_needs_is_needed_in_any_case(fault: str, tmp_path: Path, module: str) -> None:
    state = {**weights(), "head.weight": torch.ones(3)}
    if fault == "missing":
        del state["fc2.bias"]
    else:
        state["fc2.bias"] = torch.ones(5)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"fc2\.bias"):
        task(tmp_path, module, {"a": None}, strict=False).models()[0].build()


def test_what_fits_wholly_is_taken_without_a_remark(tmp_path: Path, module: str) -> None:
    torch.save({"state_dict": {**weights(), "more": torch.ones(2)}, "ema": weights(seed=1)}, tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = task(tmp_path, module, {"a": None}, strict=False).models()[0].build()
    torch.testing.assert_close(dict(made.state_dict()), weights(seed=1), rtol=0, atol=0)


def data(folder: Path) -> dict[str, Any]:
    x = np.random.default_rng(0).normal(size=(60, 6)).astype("f4")
    np.savez(folder / "d.npz", x=x, y=np.arange(60) % 4)
    return {"train": {"npz": "d.npz", "x": "x"}, "test": {"npz": "d.npz", "x": "x", "y": "y"}}


OPTIONS: Mapping[str, Any] = {"measures": ["roughness"], "extractor": ReceptiveField(cap=50, fit_cap=50)}


def test_a_remark_stands_in_the_status_whether_measured_or_kept(tmp_path: Path, module: str) -> None:
    torch.save({**weights(), "head.weight": torch.ones(3), "head.bias": torch.ones(3)}, tmp_path / "a.pt")
    torch.save(weights(seed=1), tmp_path / "b.pt")
    models = {"a": {"test_accuracy": 0.25}, "b": {"test_accuracy": 0.25}}
    given = task(tmp_path, module, models, strict=False, data=data(tmp_path))
    for _ in range(2):
        with pytest.warns(GenmeasuresWarning, match=r"1 of 2 models \(a\): keys of a.pt that are not used"):
            ds = genmeasures.measure(given, keep=tmp_path / "kept", **OPTIONS)
        status = [str(one) for one in ds["model_status"].values]
        check_unused(status[0].removeprefix("note: "))
        assert status[1] == "ok"
        assert np.isfinite(ds["roughness"].values).all()
        assert "2 models: 2 ok" in repr(ds.genmeasures)
        assert "keys of a.pt" in repr(ds.genmeasures)
    torch.save(weights(), tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error", GenmeasuresWarning)
        ds = genmeasures.measure(given, keep=tmp_path / "kept", **OPTIONS)
    assert ds["model_status"].values.tolist() == ["ok", "ok"]


# Mistakes that many models share


def test_a_common_mistake_is_reported_once(tmp_path: Path, module: str, caplog: pytest.LogCaptureFixture) -> None:
    names = ["first", "second", "third", "net_4"]
    for name in names:
        torch.save(weights(5), tmp_path / f"{name}.pt")
    models: dict[str, Any] = dict.fromkeys(names)
    with pytest.raises(ModelError, match=r"^none of 4 models could be measured, for the same reason; model 'first': "):
        genmeasures.measure(task(tmp_path, module, models, data=data(tmp_path)), **OPTIONS)
    said = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 2
    assert said[0].startswith("model 'first': ")
    assert said[1] == "3 more models failed as first did: second, third, net_4"
    caplog.clear()
    models["good"] = {"factory_kwargs": {"width": 5}}
    torch.save(weights(5), tmp_path / "good.pt")
    models["gone"] = None
    ds = genmeasures.measure(task(tmp_path, module, models, data=data(tmp_path)), **OPTIONS)
    said = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert [text.partition(": ")[0] for text in said] == [
        "model 'first'",
        "model 'gone'",
        "3 more models failed as first did",
    ]
    assert repr(ds.genmeasures).splitlines()[1].startswith("4 of 6 models failed (first, second, third, …)")


# Files of weights


@pytest.mark.parametrize(
    "ending", [".ckpt", ".bin", ".pth.tar", ".pt.tar", ".tar", ".model", ".weights", ".pkl", "", ".pth", ".safetensors"]
)
@pytest.mark.parametrize("named", [False, True])
def test_weights_are_found_under_any_usual_ending(ending: str, named: bool, tmp_path: Path, module: str) -> None:
    file = tmp_path / f"best{ending}"
    if ending == ".safetensors":
        save_file(weights(), file)
    else:
        torch.save({"model": weights(), "epoch": 3}, file)
    (model,) = task(tmp_path, module, {"best": {"weights": file.name} if named else None}).models()
    torch.testing.assert_close(dict(model.build().state_dict()), weights(), rtol=0, atol=0)


@pytest.mark.parametrize("ending", ["", ".bin", ".weights"])
def test_safetensors_are_known_by_their_content(ending: str, tmp_path: Path, module: str) -> None:
    save_file(weights(), tmp_path / f"best{ending}")
    (model,) = task(tmp_path, module, {"best": None}).models()
    torch.testing.assert_close(dict(model.build().state_dict()), weights(), rtol=0, atol=0)


def test_a_message_says_what_to_write(tmp_path: Path, module: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "net").mkdir()
    torch.save(weights(), tmp_path / "net" / "last.ckpt")
    models: dict[str, Any] = {"net": None, "other": {"weights": "none/x.pt"}, "two": None}
    for ending in (".pt", ".ckpt"):
        torch.save(weights(), tmp_path / f"two{ending}")
    net, other, two = task(tmp_path, module, models).models()
    with pytest.raises(ModelError, match=r"net is a folder: set weights to a file in it, weights: net/last\.ckpt$"):
        net.build()
    with pytest.raises(ModelError, match=r"there is no file .*x\.pt; there is no folder .*none$"):
        other.build()
    two.build()
    assert any("two.pt is read, not two.ckpt; set weights to choose a file" in text for text in caplog.messages)


# Data and models from Python


def test_a_manifest_with_one_split_or_none(tmp_path: Path, module: str) -> None:
    torch.save(weights(), tmp_path / "a.pt")
    both = data(tmp_path)
    for split, other in (("train", "test"), ("test", "train")):
        given = task(tmp_path, module, {"a": None}, data={split: both[split]})
        assert given.data(split) is not None  # type: ignore[arg-type]
        assert given.data(other) is None  # type: ignore[arg-type]
    assert task(tmp_path, module, {"a": None}).data("test") is None


def test_functions_that_build_models_are_called_in_their_turn(digits: Any, make_net: Any) -> None:
    alive: list[str] = []

    def build(name: str) -> nn.Module:
        alive.append(name)
        made: nn.Module = make_net(len(alive), 3)
        return made

    x = digits[1][0][:80]
    models = {"a": lambda: build("a"), "b": make_net(0, 3), "c": lambda: build("c")}
    ds = genmeasures.measure(models, x, x, **OPTIONS)  # type: ignore[arg-type]
    assert ds["model"].values.tolist() == ["a", "b", "c"]
    assert alive == ["a", "c"]
    direct = genmeasures.measure([make_net(1, 3), make_net(0, 3), make_net(2, 3)], x, x, **OPTIONS)
    np.testing.assert_allclose(ds["roughness"], direct["roughness"], rtol=1e-6)

    def broken() -> nn.Module:
        raise KeyError("no such file")

    ds = genmeasures.measure([broken, make_net(0, 3)], x, x, **OPTIONS)
    assert "KeyError" in str(ds["model_status"].values[0])
    for wrong in (nn.Linear, lambda x: x, 3):
        with pytest.raises(ModelError, match=r"model_0 is of type .* or a function without arguments"):
            genmeasures.measure([wrong], x, x, **OPTIONS)  # type: ignore[list-item]
