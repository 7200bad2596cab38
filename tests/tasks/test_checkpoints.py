"""The task of PyTorch files: its manifest, its data, and the weights it loads."""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import math
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

import genmeasures
from genmeasures.errors import DataError, ModelError, OptionError
from genmeasures.tasks import Checkpoints
from genmeasures.tasks.arrays import layout_fault
from genmeasures.tasks.weight_files import read_weight_file

ROOT = Path(genmeasures.__file__).resolve().parents[1]
CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10_tutorial_nets"

MODULE = '''
import torch
from torch import nn
from torch.utils.data import Dataset


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 2)

    @classmethod
    def wide(cls):
        return cls(8)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


class Wrapped(nn.Module):
    """Its own keys all start with a prefix that wrappers use."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(3, 2)

    def forward(self, x):
        return self.model(x)


class Halves(Dataset):
    def __init__(self, size, fail=False):
        if fail:
            raise ValueError("asked to")
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return torch.full((3, 4, 4), 0.5), i % 2


def half_net():
    return Net().half()


def on_meta():
    return Net().to("meta")


def text():
    return "not a network"


constant = 3
'''


@pytest.fixture
def module(tmp_path: Path) -> Iterator[str]:
    """A module of the test's own, in the folder of the manifest, and forgotten afterwards."""
    name = f"nets_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    path = list(sys.path)
    yield name
    sys.path[:] = path
    sys.modules.pop(name, None)


class Net(nn.Module):
    """The same as in the module, to compare with."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))
        return out


def trained(width: int = 4, seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net(width)
        net(torch.rand(16, 3, 6, 6))  # moves the running statistics off their initial values
        return net.eval()


def write(folder: Path, manifest: Any) -> Checkpoints:
    text = manifest if isinstance(manifest, str) else yaml.safe_dump(manifest, sort_keys=False)
    (folder / "manifest.yaml").write_text(text)
    return Checkpoints(str(folder))


def manifest(module: str, **changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "factory": f"{module}.Net",
        "python_path": ".",
        "data": {"test": {"npz": "data.npz", "x": "x", "y": "y", "layout": "NCHW"}},
        "models": {"net_0": {"weights": "net_0.pt", "test_accuracy": 0.5}},
    }
    return {key: value for key, value in {**content, **changes}.items() if value is not None}


def load(folder: Path, module: str, file: str = "net_0.pt", **model: Any) -> nn.Module:
    """The one model of a manifest whose weights lie in ``file``."""
    task = write(folder, manifest(module, models={"net_0": {"weights": file, **model}}))
    return task.models()[0].build()


def assert_same(model: nn.Module, reference: nn.Module) -> None:
    x = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=0, atol=0)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not model.training


# Weights


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".safetensors"])
@pytest.mark.parametrize("named", [True, False])
def test_every_format_is_loaded_and_found(suffix: str, named: bool, tmp_path: Path, module: str) -> None:
    net = trained()
    save = save_file if suffix == ".safetensors" else torch.save
    save(net.state_dict(), tmp_path / f"net_0{suffix}")
    assert_same(load(tmp_path, module, f"net_0{suffix}" if named else None), net)  # type: ignore[arg-type]


def test_old_format_is_loaded(tmp_path: Path, module: str) -> None:
    net = trained()
    torch.save(net.state_dict(), tmp_path / "net_0.pt", _use_new_zipfile_serialization=False)
    assert_same(load(tmp_path, module), net)


def test_first_suffix_that_exists_is_taken(tmp_path: Path, module: str) -> None:
    torch.save(trained(seed=1).state_dict(), tmp_path / "net_0.th")
    torch.save(trained(seed=2).state_dict(), tmp_path / "net_0.pth")
    model = write(tmp_path, manifest(module, models={"net_0": {}})).models()[0]
    assert_same(model.build(), trained(seed=2))
    torch.save(trained(seed=3).state_dict(), tmp_path / "net_0.pt")
    assert_same(model.build(), trained(seed=3))


@pytest.mark.parametrize("entry", ["state_dict", "model", "model_state_dict", "net", "weights", "params"])
def test_wrapped_state_dict_is_found(entry: str, tmp_path: Path, module: str) -> None:
    net = trained()
    content = {"epoch": 3, "optimizer": {"state": {}, "lr": 0.1}, entry: net.state_dict()}
    torch.save(content, tmp_path / "net_0.pt")
    assert_same(load(tmp_path, module), net)


def test_key_names_the_entry(tmp_path: Path, module: str) -> None:
    content = {"mine": trained(seed=1).state_dict(), "model": trained(seed=2).state_dict(), "epoch": 1}
    torch.save(content, tmp_path / "net_0.pt")
    assert_same(load(tmp_path, module, key="mine"), trained(seed=1))
    assert_same(load(tmp_path, module), trained(seed=2))
    with pytest.raises(ModelError, match=r"net_0.pt has no entry 'mime' \(did you mean 'mine'"):
        load(tmp_path, module, key="mime")
    with pytest.raises(ModelError, match="'epoch' is not a state dict but of type int"):
        load(tmp_path, module, key="epoch")


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "net.", "module._orig_mod.", "_orig_mod.module.", "model.net."]
)
def test_common_prefix_is_stripped(prefix: str, tmp_path: Path, module: str) -> None:
    net = trained()
    torch.save({"state_dict": prefixed(net.state_dict(), prefix)}, tmp_path / "net_0.pt")
    assert_same(load(tmp_path, module), net)


def test_keys_besides_the_prefix_are_left_out(tmp_path: Path, module: str) -> None:
    state = {**prefixed(trained().state_dict(), "model."), "loss.weight": torch.ones(2)}
    torch.save(state, tmp_path / "net_0.pt")
    assert_same(load(tmp_path, module), trained())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_prefix_of_the_architecture_is_kept(prefix: str, tmp_path: Path, module: str) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({f"{prefix}model.weight": weight, f"{prefix}model.bias": torch.ones(2)}, tmp_path / "net_0.pt")
    model = load(tmp_path, module, factory=f"{module}.Wrapped")
    torch.testing.assert_close(model.state_dict()["model.weight"], weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_half_precision_becomes_float32(dtype: torch.dtype, suffix: str, tmp_path: Path, module: str) -> None:
    net = trained().to(dtype)
    save = save_file if suffix == ".safetensors" else torch.save
    save(net.state_dict(), tmp_path / f"net_0{suffix}")
    assert_same(load(tmp_path, module, f"net_0{suffix}"), net.float())


def test_architecture_in_half_precision_loses_nothing(tmp_path: Path, module: str) -> None:
    net = trained()
    torch.save(net.state_dict(), tmp_path / "net_0.pt")
    assert_same(load(tmp_path, module, factory=f"{module}.half_net"), net)


def test_architecture_without_memory_is_named(tmp_path: Path, module: str) -> None:
    torch.save(trained().state_dict(), tmp_path / "net_0.pt")
    with pytest.raises(ModelError, match=rf"{module}\.on_meta returned a network on the device meta"):
        load(tmp_path, module, factory=f"{module}.on_meta")


@pytest.mark.parametrize("name", ["net.ckpt", "net.bin", "net.pth.tar", "net.pkl", "net", "checkpoint-100"])
def test_any_name_of_a_file_is_taken(name: str, tmp_path: Path, module: str) -> None:
    torch.save({"state_dict": trained().state_dict()}, tmp_path / name)
    assert_same(load(tmp_path, module, name), trained())


def test_counters_that_old_files_lack_are_not_missed(tmp_path: Path, module: str) -> None:
    net = trained()
    state = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "net_0.pt")
    assert_same(load(tmp_path, module), net)


def test_keys_that_do_not_fit_are_listed(tmp_path: Path, module: str) -> None:
    state = trained(width=5).state_dict()
    del state["fc.bias"]
    state.update({f"extra{i}": torch.ones(1) for i in range(11)})
    torch.save(state, tmp_path / "net_0.pt")
    with pytest.raises(ModelError) as caught:
        load(tmp_path, module)
    message = str(caught.value)
    assert "model 'net_0'" in message
    assert str(tmp_path / "net_0.pt") in message
    assert "1 missing: fc.bias" in message
    assert "11 unexpected: extra0" in message
    assert "and 3 more" in message
    assert "extra8" not in message
    assert "conv.weight (5, 3, 3, 3) instead of (4, 3, 3, 3)" in message
    assert "7 of another shape" in message


def damaged(kind: str) -> bytes:
    buffer = io.BytesIO()
    torch.save(trained().state_dict(), buffer, _use_new_zipfile_serialization=kind != "cut old format")
    content = buffer.getvalue()
    return {
        "cut": content[: len(content) // 2],
        "cut at the end": content[:-10],
        "cut old format": content[: len(content) // 2],
        "empty": b"",
        "text": b"hello, this is no checkpoint\n" * 20,
        "page": b"<!DOCTYPE html><html>not found</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n",
        "bytes": np.random.default_rng(0).bytes(3000),
    }[kind]


DAMAGES = ["cut", "cut at the end", "cut old format", "empty", "text", "page", "pointer", "bytes"]


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_file_is_named(kind: str, suffix: str, tmp_path: Path, module: str) -> None:
    (tmp_path / f"net_0{suffix}").write_bytes(damaged(kind))
    with pytest.raises(ModelError, match=rf"model 'net_0': .*net_0\{suffix} .*(damaged|cannot be read)") as caught:
        load(tmp_path, module, f"net_0{suffix}")
    assert "weights_only" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_fail(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "net.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"net\.pt"):
        read_weight_file(path)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (self.mark, "w")


@pytest.mark.filterwarnings("ignore")  # of torch, about TorchScript
@pytest.mark.parametrize("kind", ["module", "class", "trap", "trap of pickle", "script"])
def test_objects_are_refused_and_never_run(kind: str, tmp_path: Path, module: str) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "net_0.pt"
    if kind == "module":
        torch.save(trained(), path)
    elif kind == "class":
        torch.save({"state_dict": trained().state_dict(), "parser": argparse.ArgumentParser}, path)
    elif kind == "trap":
        torch.save({"state_dict": trained().state_dict(), "extra": Trap(str(mark))}, path)
    elif kind == "trap of pickle":
        path.write_bytes(pickle.dumps(Trap(str(mark))))
    else:
        torch.jit.trace(trained(), torch.rand(1, 3, 6, 6)).save(str(path))
    with pytest.raises(ModelError, match=r"model 'net_0': .*net_0\.pt .*torch\.save\(model\.state_dict\(\)"):
        load(tmp_path, module)
    assert not mark.exists()
    if kind == "trap of pickle":
        pickle.loads(path.read_bytes())
        assert mark.exists()  # the trap does work


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"epoch": 3, "optimizer": {}}, r"no state dict; expected names with tensors, got: epoch \(int\)"),
        (
            {"model": {"a": torch.ones(1)}, "net": {"b": torch.ones(1)}},
            r"1 unexpected: a; .* attempts: 'model', 'net'$",
        ),
        ([torch.ones(1)], "no state dict: its content is of type list"),
        (torch.ones(3), "no state dict: its content is of type Tensor"),
    ],
)
def test_file_without_one_state_dict(content: Any, fault: str, tmp_path: Path, module: str) -> None:
    torch.save(content, tmp_path / "net_0.pt")
    with pytest.raises(ModelError, match=fault):
        load(tmp_path, module)


def test_absent_file_is_named_when_its_model_is_built(tmp_path: Path, module: str) -> None:
    torch.save(trained().state_dict(), tmp_path / "here.pt")
    models = {"here": {}, "gone": {"weights": "gone.pt"}, "lost": {}}
    task = write(tmp_path, manifest(module, models=models))
    here, gone, lost = task.models()
    assert_same(here.build(), trained())
    with pytest.raises(
        ModelError, match=r"model 'gone': there is no file .*gone\.pt; the folder has here\.pt: set weights"
    ):
        gone.build()
    with pytest.raises(
        ModelError, match=r"model 'lost': there is no file .*lost\.pt, nor .* \.safetensors, .*here\.pt"
    ):
        lost.build()


# Architectures


def test_arguments_of_all_and_of_one_model(tmp_path: Path, module: str) -> None:
    torch.save(trained(6).state_dict(), tmp_path / "six.pt")
    torch.save(trained(8).state_dict(), tmp_path / "eight.pt")
    torch.save(trained(8).state_dict(), tmp_path / "wide.pt")
    models: dict[str, Any] = {"six": {}, "eight": {"factory_kwargs": {"width": 8}}}
    task = write(tmp_path, manifest(module, factory_kwargs={"width": 6}, models=models))
    six, eight = task.models()
    assert_same(six.build(), trained(6))
    assert_same(eight.build(), trained(8))
    wide = write(tmp_path, manifest(module, models={"wide": {"factory": f"{module}.Net.wide"}})).models()[0]
    assert_same(wide.build(), trained(8))


def test_building_leaves_the_random_state_alone(tmp_path: Path, module: str) -> None:
    torch.save(trained().state_dict(), tmp_path / "net_0.pt")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load(tmp_path, module)
    assert torch.equal(torch.rand(2), expected)


def test_builders_can_be_sent_to_another_process(tmp_path: Path, module: str) -> None:
    torch.save(trained().state_dict(), tmp_path / "net_0.pt")
    model = write(tmp_path, manifest(module)).models()[0]
    assert_same(pickle.loads(pickle.dumps(model.build))(), trained())


@pytest.mark.parametrize(
    ("factory", "fault"),
    [
        ("{}.Nest", r"has no 'Nest'; did you mean 'Net'"),
        ("{}.Net.wise", r"Net .* has no 'wise'; did you mean 'wide'"),
        ("{}.constant", "must be a class or function, got int"),
        ("{}.text", "must return a torch.nn.Module, got str"),
        ("no_such_module_here.Net", "no module 'no_such_module_here'; .*python_path"),
        ("torch.nn.no_such.Net", "torch.nn .* has no 'no_such'"),
        ("broken_module.Net", "importing broken_module failed: SyntaxError"),
        ("needy_module.Net", "importing needy_module failed: No module named 'something_absent'"),
        ("raising_module.Net", "importing raising_module failed: ZeroDivisionError"),
    ],
)
def test_factory_that_cannot_be_used(factory: str, fault: str, tmp_path: Path, module: str) -> None:
    (tmp_path / "broken_module.py").write_text("def")
    (tmp_path / "needy_module.py").write_text("import something_absent")
    (tmp_path / "raising_module.py").write_text("1 / 0")
    torch.save(trained().state_dict(), tmp_path / "net_0.pt")
    models = write(tmp_path, manifest(module, factory=factory.format(module))).models()
    with pytest.raises(ModelError, match=f"model 'net_0': .*{fault}"):
        models[0].build()


def test_factory_that_fails_is_shown_with_its_arguments(tmp_path: Path, module: str) -> None:
    torch.save(trained().state_dict(), tmp_path / "net_0.pt")
    with pytest.raises(ModelError, match=r"Net\(widht=4\) failed: TypeError: .*widht"):
        load(tmp_path, module, factory_kwargs={"widht": 4})


def test_modules_are_not_looked_for_beside_the_manifest_unless_asked(tmp_path: Path, module: str) -> None:
    torch.save(trained().state_dict(), tmp_path / "net_0.pt")
    models = write(tmp_path, manifest(module, python_path=None)).models()
    with pytest.raises(ModelError, match=f"no module '{module}'"):
        models[0].build()
    (tmp_path / "code").mkdir()
    (tmp_path / f"{module}.py").rename(tmp_path / "code" / f"{module}.py")
    assert_same(write(tmp_path, manifest(module, python_path=["code"])).models()[0].build(), trained())


def test_folders_with_modules_of_the_same_names_take_turns(tmp_path: Path, module: str) -> None:
    """Each has a module of the same name, which imports another one: all of them are those of the folder."""
    for place, width in (("one", 4), ("two", 6)):
        folder = tmp_path / place
        folder.mkdir()
        (folder / f"{module}_parts.py").write_text(f"WIDTH = {width}\n" + MODULE)
        (folder / f"{module}.py").write_text(
            f"from {module}_parts import WIDTH, Net as Part\n\ndef Net():\n    return Part(WIDTH)\n"
        )
        torch.save(trained(width).state_dict(), folder / "net_0.pt")
    (tmp_path / f"{module}.py").unlink()
    built = {}
    for place, width in (("one", 4), ("two", 6), ("one", 4), ("two", 6)):
        made = load(tmp_path / place, module)
        assert_same(made, trained(width))
        home = Path(str(sys.modules[f"{module}_parts"].__file__))
        assert home.parent == tmp_path / place
        assert built.setdefault(place, type(made)) is type(made)
        assert pickle.loads(pickle.dumps(type(made))) is type(made)
    assert built["one"] is not built["two"]
    sys.modules.pop(f"{module}_parts")


def test_module_of_another_folder_is_not_taken_for_ones_own(tmp_path: Path, module: str) -> None:
    """That of a manifest that was read before would be found, and in another process it would not."""
    torch.save(trained().state_dict(), tmp_path / "net_0.pt")
    assert_same(load(tmp_path, module), trained())
    other = tmp_path / "other"
    other.mkdir()
    torch.save(trained().state_dict(), other / "net_0.pt")
    (model,) = write(other, manifest(module, python_path=None)).models()
    with pytest.raises(ModelError, match=rf"'{module}' is only in {tmp_path}, .*python_path in this manifest"):
        model.build()
    assert_same(load(tmp_path, module), trained())


def test_module_of_the_same_name_from_elsewhere_is_refused(tmp_path: Path, module: str) -> None:
    """One that the user has imported, or that is installed, is not ours to put away."""
    other = tmp_path / "other"
    other.mkdir()
    torch.save(trained().state_dict(), other / "net_0.pt")
    (other / f"{module}.py").write_text(MODULE)
    sys.path.insert(0, str(tmp_path))
    mine = importlib.import_module(module)
    with pytest.raises(ModelError, match=f"module '{module}' in .*other is hidden by .*{module}.py"):
        load(other, module)
    assert sys.modules[module] is mine


# The manifest


def test_listing_has_everything_the_manifest_says_and_loads_nothing(tmp_path: Path, module: str) -> None:
    text = f"""
        factory: {module}.Net
        metric: iou
        data: {{train: {{npz: a.npz, x: x}}}}
        models:
          a:
            {{weights: /elsewhere/a.pth, train_iou: 0.75, test_iou: 0.5,
             hparams: {{lr: 1e-3, width: 64, kind: relu, bn: true}}}}
          b: {{test_iou: 1}}
    """
    task = write(tmp_path, text)
    a, b = task.models()
    assert (a.name, b.name) == ("a", "b")
    assert a.metrics == {"train_iou": 0.75, "test_iou": 0.5}
    assert b.metrics == {"test_iou": 1.0}
    assert a.hparams == {"lr": 0.001, "width": 64, "kind": "relu", "bn": True}
    assert isinstance(a.hparams["lr"], float)
    assert isinstance(a.hparams["width"], int)
    assert a.train is None
    assert task.metric == "iou"
    assert module not in sys.modules


def test_path_of_the_manifest_itself_and_home(tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(trained().state_dict(), tmp_path / "net_0.pt")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(manifest(module)))
    assert_same(Checkpoints(tmp_path / "other.yaml").models()[0].build(), trained())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(Checkpoints("~/other.yaml").models()) == 1


@pytest.mark.parametrize(("text", "value"), [("255", 255), ("-1", -1), ("-9999.5", -9999.5), ("null", None)])
def test_ignore_index(text: str, value: float | None, tmp_path: Path, module: str) -> None:
    task = write(tmp_path, f"""
        factory: {module}.Net
        data: {{train: {{npz: a.npz, x: x}}, ignore_index: {text}}}
        models: {{a: {{test_accuracy: 1}}}}
    """)  # fmt: skip
    assert task.ignore_index == value


def test_ignore_index_may_be_nan(tmp_path: Path, module: str) -> None:
    data = {"train": {"npz": "a.npz", "x": "x"}, "ignore_index": float("nan")}
    value = write(tmp_path, manifest(module, data=data)).ignore_index
    assert value is not None
    assert math.isnan(value)


def test_default_metric(tmp_path: Path, module: str) -> None:
    assert write(tmp_path, manifest(module)).metric == "accuracy"


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"facotry": 1}, r"facotry: unknown key \(did you mean 'factory'"),
    ({"factory": "resnet18"}, "factory: must be a dotted path"),
    ({"factory": "os.system('x')"}, "factory: must be a dotted path"),
    ({"factory": None}, "models.net_0.factory: is missing here and at the top"),
    ({"factory_kwargs": [1]}, "factory_kwargs: must have keys and values, got list"),
    ({"metric": 3}, "metric: must be text, got 3"),
    ({"metric": "test_accuracy"}, "metric: must be 'accuracy', without test_"),
    ({"metric": "iou"}, "metric: no model has train_iou or test_iou; the models have test_accuracy"),
    ({"python_path": "nowhere"}, "python_path: there is no folder 'nowhere'"),
    ({"python_path": 3}, "python_path: there is no folder 3"),
    ({"data": {"test": {"npz": "a", "x": "x"}, "ignore_index": "void"}}, "data.ignore_index: must be a number"),
    ({"data": {"test": {"npz": "a", "x": "x"}, "ignore_index": [255]}}, "data.ignore_index: must be a number"),
    ({"data": {"test": {"npz": "a", "x": "x", "ignore_index": 1}}}, "data.test.ignore_index: unknown key"),
    ({"data": {"tset": {}}}, r"data.tset: unknown key \(did you mean 'test'"),
    ({"data": {"test": {"x": "x"}}}, "data.test: must have either npz"),
    ({"data": {"test": {"npz": "a", "_target_": "a.b"}}}, "data.test: must have either npz"),
    ({"data": {"test": {"npz": None, "x": "x"}}}, "data.test.npz: is empty"),
    ({"data": {"test": {"npz": "a", "x": "x", "sclae": 2}}}, r"data.test.sclae: unknown key \(did you mean 'scale'"),
    ({"data": {"test": {"npz": "a"}}}, "data.test.x: is missing"),
    ({"data": {"test": {"npz": "a", "x": "x", "layout": "HWNC"}}}, "data.test.layout: 'HWNC' is not a layout"),
    ({"data": {"test": {"npz": "a", "x": "x", "scale": 0}}}, "data.test.scale: must be positive"),
    ({"data": {"test": {"npz": "a", "x": "x", "scale": "255"}}}, "data.test.scale: must be a finite number"),
    ({"data": {"test": {"npz": "a", "x": "x", "std": [1, 0]}}}, "data.test.std: must be positive"),
    ({"data": {"test": {"npz": "a", "x": "x", "std": []}}}, "data.test.std: must be positive"),
    ({"data": {"test": {"npz": "a", "x": "x", "mean": [1, "a"]}}}, "data.test.mean: must be a finite number"),
    ({"data": {"test": {"_target_": "nodots"}}}, "data.test._target_: must be a dotted path"),
    ({"models": None}, "models: is missing"),
    ({"models": {3: {}}}, "models.3: is read as int; put the name in quotes"),
    ({"models": {"a": None, "b": 3}}, "models.b: must have keys and values, got int"),
    ({"models": {"a": {"weigths": "x"}}}, r"models.a.weigths: unknown key \(did you mean 'weights'"),
    ({"models": {"a": {"weights": 3}}}, "models.a.weights: must be text"),
    ({"models": {"a": {"weights": " "}}}, "models.a.weights: must be text"),
    ({"models": {"a": {"factory": "x"}}}, "models.a.factory: must be a dotted path"),
    ({"models": {"a": {"factory_kwargs": 3}}}, "models.a.factory_kwargs: must have keys"),
    ({"models": {"a": {"key": 1}}}, "models.a.key: must be text"),
    ({"models": {"a": {"hparams": {"w": [1]}}}}, "models.a.hparams.w: must be a finite number, text"),
    ({"models": {"a": {"hparams": {"w": float("nan")}}}}, "models.a.hparams.w: must be a finite number, text"),
    ({"models": {"a": {"test_accuracy": "high"}}}, "models.a.test_accuracy: must be a finite number"),
    ({"models": {"a": {"test_accuracy": True}}}, "models.a.test_accuracy: must be a finite number"),
    ({"models": {"a": {"test_accuracy": 59.2}}}, "models.a.test_accuracy: must be a fraction from 0 to 1, got 59.2"),
    ({"models": {"table": "t.csv", "a": {}}}, "models.a: unknown key"),
    ({"models": {"table": "t.csv"}}, r"t\.csv: there is no such file"),
    ({"models": {"table": "t.csv", "columns": {"w": 3}}}, "models.columns.w: must be the name of a column, or null"),
    ({"strict": "no"}, "strict: must be true or false"),
    ({"models": {"a": {"strict": 1}}}, "models.a.strict: must be true or false"),
    ({"models": {"a": {"acc": 0.5}}}, "models.a.acc: looks like a metric, .* write test_accuracy"),
    ({"models": {"a": {"val_loss": 0.5}}}, "models.a.val_loss: looks like a metric, whose name must start with train_"),
    ({"models": {"a": {"test_acc": 0.5}}}, "models.a.test_acc: write test_accuracy, or metric: acc at the top"),
]


@pytest.mark.parametrize(("changes", "fault"), FAULTS, ids=[fault[:40] for _, fault in FAULTS])
def test_faults_are_named_by_file_and_key(changes: dict[str, Any], fault: str, tmp_path: Path, module: str) -> None:
    task = write(tmp_path, manifest(module, **changes))
    with pytest.raises(OptionError, match=rf"^{tmp_path}/(manifest\.yaml: )?{fault}"):
        task.models()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "the manifest: must have keys and values, got nothing"),
        ("- a\n- b", "the manifest: must have keys and values, got list"),
        ("models: {a: {}, a: {}}", "duplicate key 'a'"),
        ("factory: a.b\nfactory: a.c", "duplicate key 'factory'"),
        ("models: {a: [", "is not valid YAML: .*line 1"),
        ("factory: !!python/object/apply:os.getcwd []", "is not valid YAML: .*could not determine a constructor"),
        ("[" * 5000, "is not valid YAML"),
        ("a: \x00", "is not valid YAML"),
    ],
)
def test_files_that_are_no_manifest(text: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=rf"(?s)manifest\.yaml.*{fault}"):
        write(tmp_path, text).models()


def test_absent_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifests.yaml").write_text("")
    with pytest.raises(OptionError, match=r"manifest\.yaml: there is no such file .*did you mean 'manifests\.yaml'"):
        Checkpoints(str(tmp_path)).models()
    with pytest.raises(OptionError, match="there is no folder"):
        Checkpoints(str(tmp_path / "absent" / "m.yaml")).models()
    (tmp_path / "manifests.yaml").unlink()
    with pytest.raises(OptionError, match=r"nope: there is no such file or folder$"):
        Checkpoints(str(tmp_path / "nope")).models()


def test_merge_keys_of_yaml_work(tmp_path: Path, module: str) -> None:
    text = f"""
        factory: {module}.Net
        data: {{test: {{npz: a.npz, x: x}}}}
        models:
          a: &a {{test_accuracy: 0.5, hparams: {{w: 1}}}}
          b: {{<<: *a, test_accuracy: 0.25}}
    """
    a, b = write(tmp_path, text).models()
    assert a.metrics == {"test_accuracy": 0.5}
    assert b.metrics == {"test_accuracy": 0.25}
    assert b.hparams == {"w": 1}


# The table


def table(folder: Path, module: str, text: str, **changes: Any) -> Checkpoints:
    (folder / "table.csv").write_text(text, encoding="utf-8")
    return write(folder, manifest(module, models={"table": "table.csv"}, **changes))


def test_table_of_models(tmp_path: Path, module: str) -> None:
    text = (
        "\ufeffmodel,train_accuracy,test_accuracy, width,lr,bn,kind,train_size,seed,weights\n"
        "a,0.9,0.5,4,1e-3,true,relu,100,007,other.pt\n\n"
        "b, ,0.25,8,2,False,1,200,,\n"
    )
    torch.save(trained(seed=1).state_dict(), tmp_path / "other.pt")
    torch.save(trained(8, seed=2).state_dict(), tmp_path / "b.pth")
    a, b = table(tmp_path, module, text).models()
    assert a.metrics == {"train_accuracy": 0.9, "test_accuracy": 0.5}
    assert b.metrics == {"test_accuracy": 0.25}
    assert a.hparams == {"width": 4, "lr": 0.001, "bn": True, "kind": "relu", "train_size": 100, "seed": 7.0}
    assert b.hparams == {"width": 8, "lr": 2.0, "bn": False, "kind": "1", "train_size": 200}
    assert [type(a.hparams[k]) for k in ("width", "lr", "bn", "kind")] == [int, float, bool, str]
    assert_same(a.build(), trained(seed=1))
    assert_same(b.build(), trained(8, seed=2))


def test_metrics_of_a_table_come_in_pairs_or_are_the_metric(tmp_path: Path, module: str) -> None:
    model = table(tmp_path, module, "model,test_iou,train_loss,test_loss,train_size\na,0.5,3.5,4.5,9\n", metric="iou")
    assert model.models()[0].metrics == {"test_iou": 0.5, "train_loss": 3.5, "test_loss": 4.5}
    assert model.models()[0].hparams == {"train_size": 9}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "there is no column 'model'; the columns, separated by commas, are none"),
        ("model;width\na;1\n", "there is no column 'model'; .*model;width"),
        ("model,w\n", "has a header but no models"),
        ("model,w\na,1\nb,2,3\n", "line 3: expected 2 cells, one per column, got 3"),
        ("model,w\na,1\nb\n", "line 3: expected 2 cells, one per column, got 1"),
        ("model,w\na,1\na,2\n", "line 3: duplicate model 'a'"),
        ("model,w\n,1\n", "line 2: the model has no name"),
        ("model,w,w\na,1,2\n", "names of the columns must be unique and not empty"),
        ("model,\na,1\n", "names of the columns must be unique and not empty"),
        ("model,test_accuracy\na,good\n", "line 2: test_accuracy='good': must be a finite number"),
        ("model,test_accuracy\na,nan\n", "line 2: test_accuracy='nan': must be a finite number"),
        ("model,test_accuracy\na,59\n", "line 2: test_accuracy='59': must be a fraction from 0 to 1, got 59"),
        ('model,w\na,"1\n', "cannot be read as a CSV file"),
        ("model,factory\na,nodots\n", "line 2: factory='nodots' must be a dotted path"),
        ("model,factory_kwargs.width\na,[1\n", "line 2: factory_kwargs.width='\\[1' cannot be read as YAML"),
    ],
)
def test_faults_of_a_table(text: str, fault: str, tmp_path: Path, module: str) -> None:
    with pytest.raises(OptionError, match=rf"table\.csv.*{fault}"):
        table(tmp_path, module, text).models()


# The data


def data(folder: Path, **spec: Any) -> Any:
    spec = {"npz": "data.npz", "x": "x", **spec}
    return write(folder, manifest("any", data={"test": spec})).data("test")


def test_images_are_scaled_normalized_and_turned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (5, 6, 7, 3), np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(5, dtype=np.uint8))
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    inputs, targets = data(tmp_path, y="y", layout="NHWC", scale=255, mean=mean, std=std)
    expected = np.moveaxis((x.astype(np.float64) / 255 - mean) / std, 3, 1)
    assert inputs.dtype == np.float32
    assert inputs.shape == (5, 3, 6, 7)
    np.testing.assert_allclose(inputs, expected, rtol=1e-6, atol=1e-6)
    assert targets.dtype == np.int64
    np.testing.assert_array_equal(targets, np.arange(5))


@pytest.mark.parametrize(
    ("layout", "shape", "expected"),
    [
        ("NCHW", (2, 3, 4, 5), "NCHW"),
        ("NHWC", (2, 4, 5, 3), "NCHW"),
        ("NWHC", (2, 5, 4, 3), "NCHW"),
        ("NDHWC", (2, 6, 4, 5, 3), "NCDHW"),
        ("NCDHW", (2, 3, 6, 4, 5), "NCDHW"),
        ("NLC", (2, 7, 3), "NCL"),
        ("NCL", (2, 3, 7), "NCL"),
        ("NC", (2, 3), "NC"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_layouts(layout: str, shape: tuple[int, ...], expected: str, dtype: type, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random(shape).astype(dtype)
    np.savez(tmp_path / "data.npz", x=x)
    (inputs,) = data(tmp_path, layout=layout)
    np.testing.assert_array_equal(inputs, np.einsum(f"{layout}->{expected}", x).astype(np.float32))
    assert inputs.dtype == np.float32


@pytest.mark.parametrize(("layout", "shape"), [("NHW", (4, 5, 6)), ("NHWC", (4, 5, 6, 1)), ("NCHW", (4, 1, 5, 6))])
@pytest.mark.parametrize("scale", [None, 2.0])
def test_single_channel_is_laid_out_as_torch_expects(
    layout: str, shape: tuple[int, ...], scale: float | None, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).random(shape, np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    (inputs,) = data(tmp_path, layout=layout, scale=scale)
    np.testing.assert_allclose(inputs, x.reshape(4, 1, 5, 6) / (scale or 1))
    assert torch.from_numpy(inputs).stride() == torch.empty(4, 1, 5, 6).stride()


def test_features_need_no_layout_and_one_value_serves_all_channels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((6, 4))
    np.savez(tmp_path / "data.npz", x=x)
    (inputs,) = data(tmp_path, scale=2, mean=0.5, std=0.25)
    np.testing.assert_allclose(inputs, (x / 2 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)


def test_targets_keep_their_shape(tmp_path: Path) -> None:
    masks, values = np.ones((6, 5, 5), bool), np.ones((6, 2), np.float64)
    np.savez(tmp_path / "data.npz", x=np.ones((6, 4)), masks=masks, values=values)
    assert data(tmp_path, y="masks")[1].dtype == np.int64
    assert data(tmp_path, y="masks")[1].shape == masks.shape
    assert data(tmp_path, y="values")[1].dtype == np.float32


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"x": "xs"}, r"has no array 'xs' \(did you mean 'x'\? known: few, flat, images, objects, words, x\)"),
        ({"y": "why"}, "has no array 'why'"),
        ({"npz": "absent.npz"}, r"absent\.npz: there is no such file"),
        ({"npz": "text.npz"}, r"text\.npz cannot be read as an \.npz file"),
        ({"npz": "cut.npz"}, r"cut\.npz"),
        ({"npz": "one.npy"}, r"one\.npy is a single array"),
        ({"x": "objects"}, "array 'objects' cannot be read"),
        ({"x": "words"}, "array 'words' must have numbers, got type <U1"),
        ({"x": "flat"}, r"array 'flat' must have at least two axes, got shape \(4,\)"),
        ({"y": "few"}, r"the same number each, got 'x' \(4, 2\), 'few' \(3,\)"),
        ({"x": "images"}, r"array 'images' has shape \(4, 2, 2, 3\): set layout to its axes"),
        ({"x": "images", "layout": "NHWC"}, r"integers \(uint8\): set scale to their divisor"),
        ({"x": "images", "layout": "NHW", "scale": 1}, "layout NHW has 3 axes"),
        ({"x": "images", "layout": "NHWC", "scale": 1, "mean": [1, 2]}, "mean has 2 values, but .* 3 channels"),
        ({"x": "images", "layout": "NHWC", "scale": 1, "std": [1, 2]}, "std has 2 values, but .* 3 channels"),
    ],
)
def test_faults_of_arrays(spec: dict[str, Any], fault: str, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "data.npz",
        x=np.ones((4, 2)),
        few=np.ones(3),
        flat=np.ones(4),
        words=np.array(list("abcd")),
        objects=np.array([None] * 4),
        images=np.ones((4, 2, 2, 3), np.uint8),
    )
    np.save(tmp_path / "one.npy", np.ones((4, 2)))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "data.npz").read_bytes()[:-30])
    with pytest.raises(DataError, match=rf"manifest\.yaml: data\.test: .*{fault}"):
        data(tmp_path, **spec)


def test_data_set_of_the_users_own(tmp_path: Path, module: str) -> None:
    content = manifest(module, data={"train": {"_target_": f"{module}.Halves", "size": 7}})
    task = write(tmp_path, content)
    assert len(task.data("train")) == 7
    assert task.data("train")[3][1] == 1
    assert task.data("test") is None
    with pytest.raises(OptionError, match="did you mean 'train'"):
        task.data("tran")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"_target_": "{}.Halves"}, r"Halves\(\) failed: TypeError"),
        (
            {"_target_": "{}.Halves", "size": 3, "fail": True},
            r"Halves\(size=3, fail=True\) failed: ValueError: asked to",
        ),
        ({"_target_": "{}.half_net"}, "must return a Dataset or DataLoader, got Net"),
        ({"_target_": "{}.Halve"}, "did you mean 'Halves'"),
    ],
)
def test_faults_of_data_sets(spec: dict[str, Any], fault: str, tmp_path: Path, module: str) -> None:
    spec = {**spec, "_target_": spec["_target_"].format(module)}
    with pytest.raises(DataError, match=rf"manifest\.yaml: data\.test: .*{fault}"):
        write(tmp_path, manifest(module, data={"test": spec})).data("test")


@given(st.permutations("NCDHWL"), st.integers(1, 6))
def test_layouts_are_judged_right(axes: list[str], count: int) -> None:
    layout = "".join(axes[:count])
    spatial = set(layout) - {"N", "C"}
    good = layout[0] == "N" and spatial in (set(), {"L"}, {"H", "W"}, {"D", "H", "W"})
    assert (layout_fault(layout) is None) == good


# The options, and six networks of other people


def test_options_and_config(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Checkpoints: path is empty"):
        Checkpoints("")
    with pytest.raises(OptionError, match="Checkpoints: path=3"):
        Checkpoints(3)  # type: ignore[arg-type]
    config = OmegaConf.load(ROOT / "genmeasures/conf/task/checkpoints.yaml")
    assert OmegaConf.is_missing(config, "path")
    assert set(config) == {"_target_", *Checkpoints("x").options()}
    config.path = str(tmp_path)
    task = instantiate(config)
    assert isinstance(task, Checkpoints)
    assert task.clone().options() == {"path": str(tmp_path)}


TUTORIAL = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(self.conv1(x).relu())
        x = self.pool(self.conv2(x).relu()).flatten(1)
        return self.fc3(self.fc2(self.fc1(x).relu()).relu())
"""


def test_networks_of_a_tutorial_with_a_table_and_images_in_bytes(tmp_path: Path, module: str) -> None:
    """As the next test, on images and networks that it makes: colors tell the classes apart."""
    (tmp_path / f"{module}.py").write_text(TUTORIAL)
    rng = np.random.default_rng(0)
    colors = rng.integers(40, 216, size=(10, 3))
    y = rng.integers(10, size=300)
    x = np.clip(colors[y][:, None, None] + rng.normal(0, 30, (300, 32, 32, 3)), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    scaled = torch.from_numpy((x.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5).float()
    namespace: dict[str, Any] = {}
    exec(TUTORIAL, namespace)
    accuracies = []
    for seed in range(3):
        torch.manual_seed(seed)
        net = namespace["Net"]()
        optimizer = torch.optim.Adam(net.parameters(), 2e-3)
        for _ in range(12 * seed):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(scaled[:200]), torch.from_numpy(y[:200])).backward()
            optimizer.step()
        torch.save(net.state_dict(), tmp_path / f"net_{seed}.pth")
        with torch.no_grad():
            right = net(scaled).argmax(1).numpy() == y
        accuracies.append((right[:200].mean(), right[200:].mean()))
    lines = [f"net_{seed},{train},{test},net_{seed}.pth" for seed, (train, test) in enumerate(accuracies)]
    (tmp_path / "table.csv").write_text("\n".join(["model,train_accuracy,test_accuracy,weights", *lines]))
    arrays = {"npz": "images.npz", "layout": "NHWC", "scale": 255, "mean": 0.5, "std": 0.5}
    parts = {split: {**arrays, "x": f"x_{split}", "y": f"y_{split}"} for split in ("train", "test")}
    task = write(tmp_path, manifest(module, data=parts, models={"table": "table.csv"}))
    assert [model.name for model in task.models()] == ["net_0", "net_1", "net_2"]
    assert accuracies[2][1] > accuracies[0][1] + 0.2  # so that networks, splits and images are told apart
    for model, (train, test) in zip(task.models(), accuracies, strict=True):
        for split, accuracy in (("train", train), ("test", test)):
            given, classes = task.data(split)  # type: ignore[arg-type]
            assert model.metrics[f"{split}_accuracy"] == pytest.approx(accuracy)
            with torch.no_grad():
                found = (model.build()(torch.from_numpy(given)).numpy().argmax(1) == classes).mean()
            assert found == pytest.approx(accuracy, abs=0.011)  # one image may be a tie in float32


@pytest.mark.skipif(not CIFAR.is_dir(), reason=f"needs the networks in {CIFAR}")
def test_networks_of_the_cifar10_tutorial(tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text(TUTORIAL)
    rows = list(csv.DictReader((CIFAR / "accuracies.csv").open()))
    with (tmp_path / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "weights"])
        writer.writeheader()
        writer.writerows({**row, "weights": CIFAR / f"{row['model']}.pth"} for row in rows)
    arrays = {"npz": str(CIFAR / "cifar10_subset.npz"), "layout": "NHWC", "scale": 255, "mean": 0.5, "std": 0.5}
    parts = {split: {**arrays, "x": f"x_{split}", "y": f"y_{split}"} for split in ("train", "test")}
    task = write(tmp_path, manifest(module, data=parts, models={"table": "table.csv"}))
    x, y = task.data("test")
    models = task.models()
    assert len(models) == 6
    for model, row in zip(models, rows, strict=True):
        with torch.no_grad():
            accuracy = (model.build()(torch.from_numpy(x)).numpy().argmax(1) == y).mean()
        assert model.metrics["test_accuracy"] == float(row["test_accuracy"])
        assert accuracy == pytest.approx(float(row["test_accuracy"]), abs=0.03)
