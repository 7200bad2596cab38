"""Training of tasks like those of PGDL, and their data."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from genmeasures_pgdl import PGDL, make_task, recipe
from genmeasures_pgdl.network import build_network
from genmeasures_pgdl.sources import images

import genmeasures
from genmeasures.plugin import DataError, OptionError, temporary_path

TINY: dict[str, Any] = {
    "grid": {"width": (2, 3), "dropout": (0.0, 0.2), "depth": (1,), "weight_decay": (0.1,), "batch_size": (16,)},
    "train_size": 40,
    "epochs": 2,
}
HPARAMS = {"width": 4, "depth": 2, "dropout": 0.5, "weight_decay": 0.0, "batch_size": 8}


@pytest.fixture(scope="module", params=["vgg", "nin"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_task(tmp_path_factory.mktemp("made") / request.param, request.param, workers=1, **TINY)


@pytest.fixture
def task(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / made.name))


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {p.relative_to(folder): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def again(task: Path, **options: Any) -> Path:
    return make_task(task, task.name, **{"workers": 1, **TINY, **options})


# The recipe


def test_metrics_are_those_of_the_models_as_read(made: Path) -> None:
    read = PGDL(made)
    models = read.models()
    assert [one.name for one in models] == ["model_0", "model_1", "model_2", "model_3"]
    assert [(one.hparams["width"], one.hparams["dropout"]) for one in models] == [
        (2, 0.0),
        (2, 0.2),
        (3, 0.0),
        (3, 0.2),
    ]
    for split, size in (("train", 40), ("test", 600)):
        data = read.data(split)
        x, y = torch.stack([one for one, _ in data]).contiguous(), torch.stack([label for _, label in data])
        assert x.shape == (size, 1, 8, 8)
        for one in models:
            with torch.no_grad():
                logits = one.build()(x)
            assert one.metrics[f"{split}_accuracy"] == (logits.argmax(1) == y).double().mean()
            loss = torch.nn.functional.cross_entropy(logits.double(), y)
            assert one.metrics[f"{split}_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert not any(path.name.startswith(".") for path in made.rglob("*"))


def test_data_are_the_images(made: Path) -> None:
    x, y, test_x, test_y = images("digits", None)
    read = PGDL(made)
    assert torch.equal(torch.stack([one for one, _ in read.data("test")]), test_x)
    assert [int(label) for _, label in read.data("test")] == test_y.tolist()
    known = {(one.numpy().tobytes(), int(label)) for one, label in zip(x, y, strict=True)}
    assert {(one.contiguous().numpy().tobytes(), int(label)) for one, label in read.data("train")} <= known


def test_training_changes_the_weights(made: Path) -> None:
    before, after = (PGDL(made).model(0, initial=one).state_dict() for one in (True, False))
    assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))
    assert all(not before[name].any() for name in before if name.endswith("bias"))


def test_a_trained_task_is_measured(made: Path) -> None:
    ds = genmeasures.measure(PGDL(made), measures=["davies_bouldin"])
    assert ds["model_status"].values.tolist() == ["ok"] * 4
    assert np.isfinite(ds["davies_bouldin"]).any("layer").all()


def test_only_missing_models_are_trained(task: Path) -> None:
    before = files(task)
    shutil.rmtree(task / "model_2")
    left = temporary_path(task / "model_2")  # of a process that was killed two days ago
    left.mkdir()
    (left / "half").touch()
    os.utime(left, (time.time() - 2 * 24 * 3600,) * 2)
    again(task)
    after = files(task)
    rewritten = {path for path in after if path.parts[0] in ("model_2", "model_configs.json")}
    assert {path: about for path, about in after.items() if path not in rewritten} == {
        path: about for path, about in before.items() if path not in rewritten
    }
    assert all(after[path][1] == before[path][1] for path in rewritten if path.suffix == ".json")
    assert not left.exists()
    (task / "model_1" / "training.json").write_text("{")
    again(task)
    assert json.loads((task / "model_1" / "training.json").read_text())["epochs"] == 2


def test_models_do_not_depend_on_workers_and_global_state(made: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    other = make_task(tmp_path / made.name, made.name, workers=2, **TINY)
    assert torch.equal(state, torch.random.get_rng_state())
    for number in range(4):
        for initial in (False, True):
            a, b = (PGDL(one).model(number, initial).state_dict() for one in (made, other))
            assert all(torch.equal(a[name], b[name]) for name in a)
    assert (made / "model_configs.json").read_bytes() == (other / "model_configs.json").read_bytes()


def test_models_depend_on_the_seed(made: Path, tmp_path: Path) -> None:
    grid = {**TINY["grid"], "width": (2,), "dropout": (0.0,)}
    other = make_task(tmp_path / made.name, made.name, workers=1, **{**TINY, "grid": grid, "seed": 1})
    a, b = (next(iter(PGDL(one).model(0, initial=True).parameters())) for one in (made, other))
    assert not torch.equal(a, b)


@pytest.mark.parametrize(("levels", "rate"), [({}, 0.005), ({"learning_rate": (0.02,)}, 0.02)])
def test_the_first_step_of_adam_is_the_learning_rate(
    levels: dict[str, tuple[float, ...]], rate: float, tmp_path: Path
) -> None:
    # One batch and one epoch are one step, which is the learning rate times the sign of the gradient.
    grid = {"width": (2,), "depth": (1,), "dropout": (0.0,), "weight_decay": (0.0,), "batch_size": (40,), **levels}
    read = PGDL(make_task(tmp_path / "task", "vgg", train_size=40, epochs=1, workers=1, grid=grid))
    before, after = (read.model(0, initial=one).state_dict() for one in (True, False))
    steps = torch.cat([(after[name] - before[name]).abs().flatten() for name in before])
    assert steps.max() == pytest.approx(rate, rel=1e-3)


def test_training_stops_at_the_loss(task: Path, tmp_path: Path) -> None:
    grid = {**TINY["grid"], "width": (8,), "dropout": (0.0,)}
    other = again(tmp_path / "new" / task.name, grid=grid, stop_loss=0.5, epochs=200)
    epochs = json.loads((other / "model_0" / "training.json").read_text())["epochs"]
    assert 1 < epochs < 200
    assert PGDL(other).models()[0].metrics["train_loss"] <= 0.5


def test_the_folder_of_another_task(task: Path, tmp_path: Path) -> None:
    before = files(task)
    with pytest.raises(OptionError, match=r"other settings .epochs: expected 3, got 2.: choose another folder"):
        again(task, epochs=3)
    with pytest.raises(OptionError, match=r"a task with other settings .*seed: expected 1, got 0"):
        again(task, seed=1)
    assert files(task) == before
    (task / "recipe.json").write_text("[" * 9)
    with pytest.raises(OptionError, match=r"recipe\.json is damaged"):
        again(task)
    (task / "recipe.json").write_text("[]")
    with pytest.raises(OptionError, match="holds a task with other settings"):
        again(task)
    (task / "recipe.json").unlink()
    with pytest.raises(OptionError, match=r"is not empty and has no recipe\.json"):
        again(task)
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="cannot write"):
        make_task(tmp_path / "file", **TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "vg"}, "family='vg' is unknown .did you mean 'vgg'"),
        ({"data": "digit"}, "data='digit' is unknown .did you mean 'digits'"),
        ({"data": "cifar10"}, "needs a folder"),
        ({"train_size": 0}, "train_size must be an integer of at least 1, got 0"),
        ({"train_size": 2000}, "train_size must be at most 1197, .* of digits, got 2000"),
        ({"epochs": 0}, "epochs must be .*, got 0"),
        ({"seed": -1}, "seed must be .*, got -1"),
        ({"workers": 0}, "workers must be .*, got 0"),
        ({"stop_loss": float("nan")}, "stop_loss must be .*, got nan"),
        ({"grid": {"widht": (1,)}}, "no hyperparameter 'widht' .did you mean 'width'"),
        ({"grid": {"width": ()}}, r"width must be distinct integers of at least 1, got \[\]"),
        ({"grid": {"width": (4, 4)}}, r"width must be distinct integers .*, got \[4, 4\]"),
        ({"grid": {"dropout": (1.0,)}}, r"dropout must be distinct numbers in \[0, 1\), got \[1.0\]"),
        ({"grid": {"weight_decay": (-1,)}}, "weight_decay"),
        ({"grid": {"batch_norm": (1,)}}, "batch_norm must be distinct Booleans, got"),
        ({"grid": {"learning_rate": (0.0,)}}, "learning_rate must be distinct finite numbers above 0, got"),
    ],
)
def test_invalid_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_task(tmp_path / "task", **options)
    assert not (tmp_path / "task").exists()


@pytest.mark.parametrize("family", ["vgg", "nin"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_architectures(family: str, norm: bool, shape: tuple[int, ...]) -> None:
    config = recipe.architecture(family, {**HPARAMS, "batch_norm": norm}, shape)
    network = build_network(json.loads(json.dumps(config)))
    assert network.module.to_empty(device="cpu").eval()(torch.zeros(2, *shape)).shape == (2, 10)
    kinds = [layer.kind for layer in network.layers]
    assert ("Dense" in kinds) == (family == "vgg")
    assert ("BatchNormalization" in kinds) == norm
    assert (kinds[-1] == "GlobalAveragePooling2D") == (family == "nin")


def test_command_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main([str(tmp_path), "--family", "none"]) == 2
    assert "error: family='none' is unknown" in capsys.readouterr().err
    assert recipe.main([str(made), "--family", made.name, "--workers", "1"]) == 2
    assert "holds a task with other settings" in capsys.readouterr().err


# Fashion-MNIST


def idx(values: np.ndarray[Any, Any]) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    for part, size, zipped in (("train", 30, True), ("t10k", 20, False)):
        x = np.random.default_rng(size).integers(0, 256, (size, 8, 6)).astype(np.uint8)
        for name, values in (("images-idx3", x), ("labels-idx1", (np.arange(size) % 10).astype(np.uint8))):
            content = idx(values)
            path = tmp_path / f"{part}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    return tmp_path


def test_fashion_mnist(fashion: Path) -> None:
    x, y, test_x, test_y = images("fashion_mnist", fashion)
    assert (x.shape, test_x.shape, x.dtype, y.dtype) == ((30, 1, 8, 6), (20, 1, 8, 6), torch.float32, torch.int64)
    expected = np.random.default_rng(30).integers(0, 256, (30, 8, 6))
    np.testing.assert_allclose(x[:, 0].numpy() * 255, expected, atol=1e-4)
    assert test_y.tolist() == [*range(10), *range(10)]
    made = make_task(fashion / "task", "nin", "fashion_mnist", fashion, workers=1, **{**TINY, "train_size": None})
    assert len(PGDL(made).data("train")) == 30


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (IMAGES, lambda old: b"", "is not an IDX file"),
        (IMAGES, lambda old: b"\0\0\x0d\x03" + old[4:], "is not an IDX file of bytes with 3 axes"),
        (IMAGES, lambda old: old[:-1], "expected 960 bytes for the shape .*, got 959"),
        (IMAGES, lambda old: old + b"\0", "expected 960 bytes .*, got more"),
        (IMAGES, lambda old: old[:4] + b"\xff" * 12 + old[16:], "declares the shape"),
        (IMAGES, lambda old: old[:4] + bytes(4) + old[8:], "declares the shape"),
        (IMAGES, lambda old: old[:4] + struct.pack(">3I", 200000, 28, 28) + old[16:], "got 960"),
        (IMAGES, lambda old: idx(np.zeros((20, 9, 6), np.uint8)), "as the training images"),
        (LABELS, lambda old: idx(np.zeros(19, np.uint8)), "expected 20 classes, one per image, got 19"),
        (LABELS, lambda old: idx(np.full(20, 10, np.uint8)), "classes must be from 0 to 9, got 10"),
        ("train-images-idx3-ubyte.gz", lambda old: old[:50], "cannot be read"),
        ("train-images-idx3-ubyte.gz", lambda old: old[:40] + bytes(40) + old[80:], "cannot be read"),
        ("train-images-idx3-ubyte.gz", lambda old: b"no gzip at all", "cannot be read"),
    ],
)
def test_damaged_idx(fashion: Path, name: str, damage: Callable[[bytes], bytes], message: str) -> None:
    (fashion / name).write_bytes(damage((fashion / name).read_bytes()))
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        images("fashion_mnist", fashion)


def test_missing_idx(fashion: Path) -> None:
    (fashion / LABELS).unlink()
    with pytest.raises(DataError, match=f"there is no file .*{LABELS}"):
        images("fashion_mnist", fashion)


# CIFAR-10


class _Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes as Python 2 wrote its strings, which the official files are full of."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_string


def batch(size: int, seed: int) -> dict[bytes, Any]:
    data = np.random.default_rng(seed).integers(0, 256, (size, 3072)).astype(np.uint8)
    return {b"batch_label": b"a batch", b"labels": [one % 10 for one in range(size)], b"data": data}


@pytest.fixture(params=["python2", 4])
def cifar(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    inner = tmp_path / "cifar-10-batches-py"
    inner.mkdir()
    for number, name in enumerate([*(f"data_batch_{one}" for one in range(1, 6)), "test_batch"]):
        with (inner / name).open("wb") as file:
            pickler = _Python2(file, 2) if request.param == "python2" else pickle.Pickler(file, request.param)
            pickler.dump(batch(4, number))
    return tmp_path


def test_cifar10(cifar: Path) -> None:
    for folder in (cifar, cifar / "cifar-10-batches-py"):
        x, y, test_x, test_y = images("cifar10", folder)
        assert (x.shape, test_x.shape, x.dtype, y.dtype) == (
            (20, 3, 32, 32),
            (4, 3, 32, 32),
            torch.float32,
            torch.int64,
        )
        assert x.is_contiguous()
        second = batch(4, 1)[b"data"].reshape(4, 3, 32, 32)
        np.testing.assert_allclose(x[4:8].numpy() * 255, second, atol=1e-4)
        assert y.tolist() == [0, 1, 2, 3] * 5
        assert test_y.tolist() == [0, 1, 2, 3]


class _Evil:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def changed(**values: Any) -> bytes:
    return pickle.dumps({**batch(4, 0), **{name.encode(): value for name, value in values.items()}}, protocol=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"no pickle", "damaged"),
        (changed()[:-100], "damaged"),
        (pickle.dumps([1]), "damaged"),
        (pickle.dumps({b"labels": [1]}), "KeyError"),
        (changed(labels=[0, 1, 2]), "expected 4 classes, one per image, got 3"),
        (changed(labels=[0, 1, 2, 10]), "labels must be"),
        (changed(labels=[0, 1, 2, "3"]), "labels must be"),
        (changed(data=[1, 2]), "data must be an array"),
        (changed(data=np.zeros((4, 3071), np.uint8)), "must have the shape .N, 3072."),
        (changed(data=np.zeros((4, 3072), np.float32)), "data must be bytes"),
        (changed(data=np.zeros((1, 1), object)), "data must be bytes"),
        (changed(data=np.zeros((4, 3072), np.uint8)).replace(b"M\x00\x0c", b"M\x00\x0d"), "bytes for the shape"),
        (changed(data=_Evil(np.full, 10**12, 1)), "numpy.* is not allowed"),
        # A string of 2⁶² bytes, a memo of 2³¹ entries, a buffer: declared, and not there.
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "damaged"),
        (b"\x80\x04Nr\xff\xff\xff\x7f.", "LONG_BINPUT is not allowed"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "damaged"),
        (pickle.dumps(bytearray(9), protocol=5), "BYTEARRAY8 is not allowed"),
    ],
)
def test_damaged_cifar10(cifar: Path, content: bytes, message: str) -> None:
    (cifar / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match=f"data_batch_3.*{message}"):
        images("cifar10", cifar)


def test_missing_cifar10(cifar: Path) -> None:
    (cifar / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(DataError, match="test_batch: No such file"):
        images("cifar10", cifar)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_not_executed(cifar: Path, tmp_path: Path, protocol: int) -> None:
    evil = _Evil(os.system, f"touch {tmp_path / 'ran'}")
    (cifar / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(evil, protocol=protocol))
    with pytest.raises(DataError, match=r"test_batch .*posix\.system is not allowed"):
        images("cifar10", cifar)
    assert not (tmp_path / "ran").exists()
