"""Weights out of files as training scripts and wrappers write them, and what such files may hold besides."""

from __future__ import annotations

import argparse
import builtins
import collections
import copy
import datetime
import functools
import io
import logging
import os
import pathlib
import pickle
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from genmeasures.errors import ModelError
from genmeasures.tasks.weight_files import read_weight_file
from genmeasures.tasks.weights import load_weights


class Net(nn.Module):
    """A network that has a part named as a usual prefix."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.model(x).mean((2, 3)))
        return out


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def normed() -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(5, 4)), nn.ReLU(), weight_norm(nn.Linear(4, 3)))


def only_normed() -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(5, 3, bias=False)))


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(5, 3), np.float64(1)

    def get_extra_state(self) -> Any:
        return {"scale": self.scale, "table": np.arange(3.0)}

    def set_extra_state(self, state: Any) -> None:
        self.scale, self.table = state["scale"], state["table"]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) * float(self.scale)
        return out


class Renaming(nn.Module):
    """Reads what an older version of itself wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in ("weight", "bias"):
            if f"{prefix}fc_{name}" in state_dict:
                state_dict[f"{prefix}linear.{name}"] = state_dict.pop(f"{prefix}fc_{name}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 5)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).relu())
        return out


def filled(make: Callable[[], nn.Module], seed: int = 1) -> nn.Module:
    """With weights of its own, which no other seed has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.data = torch.rand(value.shape, dtype=value.dtype) + 0.1
    if isinstance(model, Stateful):
        model.scale = np.float64(seed + 0.5)
    return model.eval()


def states(make: Callable[[], nn.Module], *seeds: int) -> list[dict[str, Any]]:
    return [filled(make, seed).state_dict() for seed in seeds]


def under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def old_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Of weight norm before it became a parametrization."""
    pairs = (("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1", "weight_v"))
    return {functools.reduce(lambda n, pair: n.replace(*pair), pairs, name): value for name, value in state.items()}


def load(make: Callable[[], nn.Module], content: Any, folder: Path, key: str | None = None) -> nn.Module:
    torch.save(content, folder / "net.ckpt")
    return load_weights(make, folder / "net.ckpt", key).eval()


def check(loaded: nn.Module, make: Callable[[], nn.Module], seed: int = 1) -> None:
    """The outputs are those of the network with that seed, to the bit, since they are computed the same way."""
    x = torch.rand((2, 3, 8, 8) if make is Net else (2, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(x), filled(make, seed)(x))
        assert not torch.equal(loaded(x), filled(make, seed + 100)(x))


# Prefixes and entries


PREFIXES = [
    "", "module.", "model.", "_orig_mod.", "net.", "network.", "ema.", "_orig_mod.module.", "module._orig_mod.",
    "model._orig_mod.module.", "model.net.", "net.model.", "model.model.", "_fsdp_wrapped_module.",
    "segmenter.", "module.encoder_q.", "lit.unet._orig_mod.",
]  # fmt: skip


@pytest.mark.parametrize("besides", [{}, {"loss.weight": torch.ones(4), "teacher.head.weight": torch.ones(9, 9)}])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("make", [Net, plain, normed, Stateful, Renaming, Tied])
def test_prefixes_in_any_nesting(
    make: Callable[[], nn.Module], prefix: str, besides: dict[str, Any], tmp_path: Path
) -> None:
    if besides and not prefix:
        with pytest.raises(ModelError, match=r"2 unexpected: loss\.weight, teacher\.head\.weight"):
            load(make, {**states(make, 1)[0], **besides}, tmp_path)
        return
    content = {"state_dict": {**under(prefix, states(make, 1)[0]), **besides}, "epoch": 3}
    check(load(make, content, tmp_path), make)


ENTRIES = [
    "state_dict", "model_state_dict", "model", "ema", "ema_state_dict", "state_dict_ema", "params", "network",
    "network_weights", "weights", "net", "module", "generator", "state_dict.model", "model.state_dict", "ema.module",
    "checkpoint.model.net",
]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_in_any_nesting(entry: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3, "best": torch.tensor(0.9), "optimizer": {"state": {0: torch.ones(3)}}}
    inner: Any = states(Net, 1)[0]
    for name in reversed(entry.split(".")):
        inner = {name: inner}
    check(load(Net, {**content, **inner}, tmp_path), Net)


def test_wrappers_inside_of_names_and_around_the_architecture(tmp_path: Path) -> None:
    state = states(Net, 1)[0]
    # As DataParallel of one part, compilation of another, or checkpointing of a block leave it.
    inside = {
        name.replace("model.", "model.module.").replace("head.", "head._orig_mod."): state[name] for name in state
    }
    check(load(Net, inside, tmp_path), Net)
    blocks = {name.replace("model.0.", "model.0._checkpoint_wrapped_module."): state[name] for name in state}
    check(load(Net, under("module.", blocks), tmp_path), Net)

    # As torch.compile does it, whose import takes ten seconds.
    def compiled(model: nn.Module) -> nn.Module:
        return nn.ModuleDict({"_orig_mod": model})

    def both(model: nn.Module) -> nn.Module:
        return nn.DataParallel(compiled(model))

    for around in (nn.DataParallel, compiled, both):
        wrapped = load(lambda: around(Net()), state, tmp_path)  # noqa: B023
        inner = next(module for module in wrapped.modules() if isinstance(module, Net))
        check(inner, Net)


def test_a_name_that_wrappers_use_can_be_the_architectures_own(tmp_path: Path) -> None:
    def both() -> nn.Module:
        return nn.ModuleDict({"module": nn.Linear(5, 5), "_orig_mod": nn.Linear(5, 5)})

    state = states(both, 1)[0]
    for content in (state, under("module.", state), under("model._orig_mod.", state)):
        loaded = load(both, content, tmp_path).state_dict()
        assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_averaged_models_of_torch(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(filled(Net, 1))
    averaged.update_parameters(filled(Net, 1))
    assert "n_averaged" in averaged.state_dict()
    for content in (averaged.state_dict(), {"ema": averaged.state_dict()}, under("model.", averaged.state_dict())):
        check(load(Net, content, tmp_path), Net)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "generator."])
@pytest.mark.parametrize("make", [normed, only_normed])
def test_old_names_of_weight_norm(make: Callable[[], nn.Module], prefix: str, tmp_path: Path) -> None:
    state = old_names(states(make, 1)[0])
    assert any(name.endswith("weight_g") for name in state)
    if make is only_normed and prefix == "generator.":
        # No name is the same, so nothing tells which part of the file it is.
        check(load(make, under(prefix, state), tmp_path, key="generator"), make)
        return
    check(load(make, {"state_dict": under(prefix, state)}, tmp_path), make)


def test_old_weight_norm_as_architecture(tmp_path: Path) -> None:
    # Its weights are no parameters, so the model cannot be copied.
    def old() -> nn.Module:
        return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(5, 3)))

    state = {"0.bias": torch.ones(3), "0.weight_g": torch.ones(3, 1), "0.weight_v": torch.rand(3, 5)}
    loaded = load(old, {"model": under("module.", state), "ema": {"0.bias": torch.ones(3)}}, tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "net."])
def test_modules_that_rename_on_loading(prefix: str, tmp_path: Path) -> None:
    state = states(Renaming, 1)[0]
    old = {f"{prefix}fc_weight": state["linear.weight"], f"{prefix}fc_bias": state["linear.bias"]}
    check(load(Renaming, old, tmp_path), Renaming)


def test_versions_of_modules_are_kept_under_prefixes(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Versioned(nn.Linear):
        _version = 3

        def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *args: Any) -> None:
            seen.append(metadata.get("version"))
            super()._load_from_state_dict(state, prefix, metadata, *args)

    def make() -> nn.Module:
        return nn.Sequential(Versioned(5, 3))

    for wrapped in (make(), nn.Sequential(collections.OrderedDict(model=nn.DataParallel(make())))):
        seen.clear()
        load(make, wrapped.state_dict(), tmp_path)
        assert seen == [3]


@pytest.mark.parametrize("absent", ["first.weight", "last.weight"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_tied_weights_may_be_there_once(absent: str, prefix: str, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in states(Tied, 1)[0].items() if name != absent}
    save_file(under(prefix, state), tmp_path / "net.safetensors")
    check(load_weights(Tied, tmp_path / "net.safetensors").eval(), Tied)
    # Not so where the two are weights of their own.
    untied = nn.Sequential(collections.OrderedDict(first=nn.Linear(5, 5), last=nn.Linear(5, 5)))
    with pytest.raises(ModelError, match=f"1 missing: {absent}$"):
        load_weights(lambda: copy.deepcopy(untied), tmp_path / "net.safetensors")


def test_counters_of_old_files_and_numbers_as_vectors(tmp_path: Path) -> None:
    state = {name: value for name, value in states(Net, 1)[0].items() if not name.endswith("num_batches_tracked")}
    check(load(Net, under("module.", state), tmp_path), Net)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

    assert load(Scaled, {"scale": torch.tensor([3.0])}, tmp_path).scale == 3  # as PyTorch 0.3 wrote it


def test_models_built_at_their_first_call(tmp_path: Path) -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(3))

    check(load(lazy, {"model": under("module.", states(plain, 1)[0])}, tmp_path), plain)


# Which of several are taken


def test_trained_weights_are_preferred_to_averages_and_both_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = states(Net, 1, 2)
    for content, others in (
        ({"state_dict_ema": second, "state_dict": first}, ["state_dict_ema"]),
        ({"ema": {"module": second}, "model": first}, ["ema.module"]),
        ({"state_dict": {**under("ema.", second), **under("model.", first)}}, ["state_dict.ema"]),
        ({"model_state_dict": first, "params": first, "swa_weights": second}, ["swa_weights"]),
    ):
        caplog.clear()
        check(load(Net, content, tmp_path), Net, 1)
        (record,) = [one for one in caplog.records if one.levelno == logging.WARNING]
        assert "net.ckpt has different weights that fit" in record.message
        for other in others:
            assert f"set key to use others: {other}" in record.message
            check(load(Net, content, tmp_path, key=other), Net, 2)


def test_equal_weights_under_two_names_are_no_question(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, again = states(Net, 1, 1)
    check(load(Net, {"state_dict": first, "model": again, "mine": first}, tmp_path), Net)
    check(load(Net, {"mine": first, "yours": again}, tmp_path), Net)
    assert not caplog.records


@pytest.mark.parametrize(
    "places", [("student", "teacher"), ("best", "last"), ("state_dict.student", "state_dict.teacher")]
)
def test_different_weights_without_a_usual_name_are_asked_about(places: tuple[str, str], tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    for place, state in zip(places, states(Net, 1, 2), strict=True):
        entry, _, prefix = place.rpartition(".")
        content.setdefault(entry or place, {}).update(under(f"{prefix}.", state) if entry else state)
    with pytest.raises(ModelError, match=f"different weights that fit under '{places[0]}', '{places[1]}': choose with"):
        load(Net, content, tmp_path)
    for number, place in enumerate(places, 1):
        check(load(Net, content, tmp_path, key=place), Net, number)


def test_what_is_left_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state = {**under("unet.", states(Net, 1)[0]), "loss.weight": torch.ones(3), "metric.total": torch.ones(1)}
    check(load(Net, {"state_dict": state}, tmp_path), Net)
    assert [one.message.partition(": ")[2] for one in caplog.records] == [
        "the weights under 'state_dict.unet' fit; 2 other keys are ignored"
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_key_names_entries_and_prefixes(tmp_path: Path) -> None:
    first, second = states(Net, 1, 2)
    content = {"a.b": {"c": first}, "state_dict": {**under("d.e.", second), "x": torch.ones(1)}, "epoch": 3}
    check(load(Net, content, tmp_path, key="a.b"), Net, 1)
    check(load(Net, content, tmp_path, key="a.b.c"), Net, 1)
    for key in ("state_dict", "state_dict.d", "state_dict.d.e"):
        check(load(Net, content, tmp_path, key=key), Net, 2)
    with pytest.raises(ModelError, match=r"net\.ckpt has no entry 'state_dict\.f' .*state_dict"):
        load(Net, content, tmp_path, key="state_dict.f")
    with pytest.raises(ModelError, match="the entry 'epoch' is not a state dict but of type int"):
        load(Net, content, tmp_path, key="epoch")
    with pytest.raises(ModelError, match=r"\(state_dict\.d\.e\.head\) does not fit"):
        load(Net, content, tmp_path, key="state_dict.d.e.head")


# Failures


def test_failed_attempts_leave_no_trace(tmp_path: Path) -> None:
    made: list[nn.Module] = []

    class Picky(nn.Module):
        """Counts loadings; its own code refuses what has names and shapes as it should be."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.loads = nn.Linear(5, 3), 0

        def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
            self.loads += 1
            super()._load_from_state_dict(state, prefix, *args)
            if state[f"{prefix}inner.bias"][0] < 0:
                raise ValueError("a bias below zero")

    def make() -> nn.Module:
        made.append(Picky())
        return made[-1]

    bad = {"inner.weight": torch.full((3, 5), 7.0), "inner.bias": -torch.ones(3)}
    good = {"inner.weight": torch.ones(3, 5), "inner.bias": torch.ones(3)}
    loaded = load(make, {"model": bad, "ema": good}, tmp_path)
    assert loaded is made[1]
    assert loaded.loads == 1
    assert all(torch.equal(value, good[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(ModelError, match=r"net\.ckpt \(model\) cannot be loaded into Picky: ValueError: a bias below"):
        load(make, {"model": bad}, tmp_path)


def test_networks_that_overrule_strict(tmp_path: Path) -> None:
    class Lenient(nn.Linear):
        def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
            return super().load_state_dict(state, strict=False, assign=assign)

    def make() -> nn.Module:
        return Lenient(5, 3)

    state = states(lambda: nn.Linear(5, 3), 1)[0]
    loaded = load(make, {"state_dict": under("module.", state)}, tmp_path).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())
    with pytest.raises(ModelError, match="2 missing: bias, weight; 2 unexpected: kernel, offset"):
        load(make, {"kernel": torch.ones(3, 5), "offset": torch.ones(3)}, tmp_path)


def test_best_attempt_is_told_shortest_names_first(tmp_path: Path) -> None:
    state = states(Net, 1)[0]
    del state["head.bias"], state["model.0.weight"]
    state["a_long_name_that_is_not_there"] = state["short"] = torch.ones(1)
    state["head.weight"] = torch.ones(2, 2)
    content = {"other": {"x": torch.ones(1)}, "state_dict": {**under("module.", state), "n_averaged": torch.ones(1)}}
    with pytest.raises(ModelError) as caught:
        load(Net, content, tmp_path)
    told = str(caught.value)
    assert "net.ckpt (state_dict.module) does not fit the architecture (Net): " in told
    assert "2 missing: head.bias, model.0.weight" in told
    assert "2 unexpected: short, a_long_name_that_is_not_there" in told
    assert "1 of another shape: head.weight (2, 2) instead of (4, 6)" in told
    assert told.endswith("the best fit of the attempts: 'state_dict', 'state_dict.module'")


def test_other_than_tensors_in_the_place_of_weights(tmp_path: Path) -> None:
    state = {**states(plain, 1)[0], "0.weight": np.ones((4, 5))}
    with pytest.raises(ModelError, match=r"1 of another shape: 0\.weight of type ndarray"):
        load(plain, state, tmp_path)


def test_quantized_weights_are_named(tmp_path: Path) -> None:
    state = states(plain, 1)[0]
    state["0.weight"] = torch.quantize_per_tensor(state["0.weight"], 0.1, 0, torch.qint8)
    del state["0.bias"]
    with pytest.raises(ModelError, match="the file has quantized weights, so the factory must return the quantized"):
        load(plain, state, tmp_path)


def test_the_one_part_that_fits_is_found_among_many_with_its_names(tmp_path: Path) -> None:
    def small() -> nn.Module:
        return nn.Linear(2, 2)

    layers = {f"layer{n}.part.{name}": torch.full((3, 3), n) for n in range(300) for name in ("weight", "bias")}
    save_file({**layers, **under("wanted.", states(small, 1)[0])}, tmp_path / "net.safetensors")
    loaded = load_weights(small, tmp_path / "net.safetensors").state_dict()
    assert all(torch.equal(value, states(small, 1)[0][name]) for name, value in loaded.items())


# Dtypes


@pytest.mark.parametrize("file", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("own", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtype_of_the_architecture(own: torch.dtype, kept: torch.dtype, file: torch.dtype, tmp_path: Path) -> None:
    state = {name: value.to(file) for name, value in states(plain, 1)[0].items()}
    loaded = load(lambda: plain().to(own), state, tmp_path)
    for name, value in loaded.state_dict().items():
        assert value.dtype == kept
        assert torch.equal(value, state[name].to(kept))


def test_mixed_architecture_becomes_float32(tmp_path: Path) -> None:
    def mixed() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 4).bfloat16(), nn.ReLU(), nn.Linear(4, 3))

    check(load(mixed, states(plain, 1)[0], tmp_path), plain)


# What else a file may hold


def nested(value: Any) -> dict[str, Any]:
    return {"state_dict": states(plain, 1)[0], "epoch": 3, "callbacks": {"one": [value, (value,)]}}


PLAIN: list[Any] = [
    np.float64(0.93), np.float32(0.5), np.float16(0.5), np.int64(3), np.uint8(3), np.bool_(True), np.complex64(1 + 2j),
    np.str_("text"), np.str_(""), np.bytes_(b"ab"), np.float64(0.5).astype(">f8"),
    np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array(["a", "bc"]),
    np.zeros((0, 3)), np.array(5.0), np.arange(3, dtype=">i4"), np.dtype("f4"), np.float32, np.bool_,
    pathlib.Path("/a/b"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("C:/a"),
    argparse.Namespace(lr=0.1, path=pathlib.Path("a"), inner=argparse.Namespace(x=np.float64(1))),
    types.SimpleNamespace(lr=0.1), collections.OrderedDict(a=1), collections.defaultdict(list, a=[1]),
    collections.defaultdict(collections.OrderedDict), collections.Counter("aab"), collections.deque([1, 2], maxlen=3),
    torch.Size([1, 2]), torch.device("cpu"), torch.float32, torch.__version__, torch.tensor(3.0),
    datetime.datetime(2024, 1, 2, 3, 4, 5, 6), datetime.datetime.now(datetime.UTC), datetime.date(2024, 1, 2),
    datetime.timedelta(seconds=3), {1, 2}, frozenset({1}), b"", b"bytes", bytearray(b"ab"), 2**70, None, 1j, float,
    np.random.RandomState(0).get_state(), torch.get_rng_state(),
]  # fmt: skip


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("value", PLAIN, ids=[f"{type(value).__name__}-{i}" for i, value in enumerate(PLAIN)])
def test_plain_data_beside_the_weights(value: Any, old_format: bool, tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save(nested(value), tmp_path / "net.pth.tar", _use_new_zipfile_serialization=not old_format)
    check(load_weights(plain, tmp_path / "net.pth.tar").eval(), plain)
    assert set(torch.serialization.get_safe_globals()) == before
    first, (second,) = read_weight_file(tmp_path / "net.pth.tar")["callbacks"]["one"]
    if isinstance(value, np.ndarray):
        for found in (first, second):
            np.testing.assert_array_equal(found, value)
            assert found.dtype == value.dtype.newbyteorder("=")
            assert found.flags.writeable
    elif isinstance(value, np.generic | pathlib.PurePath | argparse.Namespace | dict | datetime.date | int):
        assert first == value
        assert second == value
        if isinstance(value, np.generic):
            assert type(first) is type(value)


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_both_names_of_numpys_core(core: str, tmp_path: Path) -> None:
    torch.save(nested([np.float64(0.25), np.arange(3)]), tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    found = (tmp_path / "net.pt").read_bytes()
    other = found.replace(b"numpy._core.multiarray", f"{core}.multiarray".encode())
    other = other.replace(b"numpy.core.multiarray", f"{core}.multiarray".encode())
    assert f"{core}.multiarray".encode() in other
    (tmp_path / "net.pt").write_bytes(other)
    check(load_weights(plain, tmp_path / "net.pt").eval(), plain)
    scalar, array = read_weight_file(tmp_path / "net.pt")["callbacks"]["one"][0]
    assert scalar == 0.25
    assert array.tolist() == [0, 1, 2]


def test_extra_state_is_handed_on(tmp_path: Path) -> None:
    for content in (
        {"state_dict": states(Stateful, 2)[0]},
        under("module.", states(Stateful, 2)[0]),
        {"state_dict": under("model.", states(Stateful, 2)[0]), "hyper_parameters": {"lr": np.float64(0.1)}},
    ):
        loaded = load(Stateful, content, tmp_path)
        check(loaded, Stateful, 2)
        assert isinstance(loaded, Stateful)
        assert loaded.scale == 2.5
        np.testing.assert_array_equal(loaded.table, np.arange(3.0))


class Runs:
    """Calls something when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


class Sets:
    def __getstate__(self) -> Any:
        return {"path": "x"}

    def __setstate__(self, state: Any) -> None:
        Path(state["path"]).touch()


def traps(mark: str) -> Iterator[tuple[Any, str]]:
    """What would make the file ``mark``, and the name that the error must give."""
    python = f"open({mark!r}, 'w')"
    yield Runs(os.system, f"touch {mark}"), "posix.system"
    yield Runs(builtins.eval, python), "eval"
    yield Runs(builtins.exec, python), "exec"
    yield Runs(builtins.open, mark, "w"), "io.open"
    yield (
        Runs(builtins.getattr, os, "system") if False else Runs(functools.partial, open, mark, "w"),
        "functools.partial",
    )
    yield Sets(), "test_weights.Sets"
    yield argparse.Namespace(inner=[Runs(builtins.eval, python)]), "eval"
    yield collections.defaultdict(Sets), "test_weights.Sets"
    yield np.array([Runs(builtins.eval, python)], dtype=object), ""
    yield np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]), ""
    yield argparse.ArgumentParser, "argparse.ArgumentParser"
    yield OmegaConf.create({"lr": 0.1}), "omegaconf.dictconfig.DictConfig"  # as Lightning keeps hyperparameters


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("old_format", [False, True])
def test_code_is_refused_by_name_and_never_run(number: int, old_format: bool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    trap, name = list(traps(str(mark)))[number]
    torch.save(nested(trap), tmp_path / "net.pt", _use_new_zipfile_serialization=not old_format)
    with pytest.raises(
        ModelError, match=r"net\.pt (holds objects other than|cannot be read).*keep its weights alone"
    ) as caught:
        load_weights(plain, tmp_path / "net.pt")
    assert name in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))
    assert not mark.exists()


def pickled(*parts: bytes) -> bytes:
    """A file of the old format, whose pickle is written by hand."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    head = buffer.getvalue()
    body = pickle.dumps({}, protocol=2)
    assert body in head
    return head.replace(body, b"\x80\x02" + b"".join(parts) + b".", 1)


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def byte_string(value: str) -> bytes:
    return b"c_codecs\nencode\n" + text(value) + text("latin1") + b"\x86R"


def dtype(code: str, state: bytes = b"") -> bytes:
    return b"cnumpy\ndtype\n" + text(code) + b"\x85R" + state


def scalar(kind: bytes, content: bytes) -> bytes:
    return b"cnumpy.core.multiarray\nscalar\n" + kind + content + b"\x86R"


EIGHT = byte_string("12345678")
FIELDS = b"(K\x03" + text("<") + b"N(" + text("a") + b"tNK\x08K\x01K\x3ftb"
"""State that would give a dtype a field: what numpy.dtype itself takes for the place of an object."""
HANDMADE = {
    "object dtype": (scalar(dtype("O8"), b"}"), "NumPy dtype 'O8'"),
    "fields given later": (scalar(dtype("f8", FIELDS), EIGHT), "NumPy dtype with fields"),
    "void dtype": (scalar(dtype("V8"), EIGHT), "NumPy dtype 'V8'"),
    "expression as dtype": (dtype("(2,3)f8,O"), "NumPy dtype '(2,3)f8,O'"),
    "too few bytes": (scalar(dtype("f8"), byte_string("1234")), "NumPy values of float64 that are not 1"),
    "no bytes": (scalar(dtype("f8"), text("12345678")), "NumPy values of float64 that are not 1"),
    "no dtype": (scalar(text("f8"), EIGHT), "NumPy values of an unknown dtype"),
    "array of a size that is not there": (
        b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01J\xff\xff\xff\x7f\x85" + dtype("f8") + b"\x89" + EIGHT + b"tb",
        "NumPy values of float64 that are not 2147483647",
    ),
    "method of a namespace": (b"cargparse\nNamespace\n)\x81}" + text("__setstate__") + b"cos\nsystem\nsb", "system"),
    "module of a module": (b"cos.path\nos.system\n", "os.path.os.system"),
    "module of an allowed one": (b"cargparse\n_sys.modules\n", "argparse._sys.modules"),
    "numpy's loader": (b"cnumpy\nload\n" + text("/etc/passwd") + b"\x85R", "numpy.load"),
    "path that reaches the disk": (b"cpathlib\nPath\n" + text("/etc") + b"\x85R", "pathlib.Path"),
    "import": (b"c__builtin__\n__import__\n" + text("os") + b"\x85R", "__import__"),
    "state of a class": (b"cargparse\nNamespace\n}" + text("__init__") + b"Nsb", "(type)"),
}


@pytest.mark.parametrize("name", HANDMADE)
def test_handmade_pickles_do_nothing_but_fail(name: str, tmp_path: Path) -> None:
    content, told = HANDMADE[name]
    (tmp_path / "net.pt").write_bytes(pickled(content))
    with pytest.raises(ModelError, match=r"net\.pt (holds objects other|cannot be read)") as caught:
        read_weight_file(tmp_path / "net.pt")
    assert told in str(caught.value)


def test_handmade_pickles_work_where_they_are_sound(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(pickled(scalar(dtype("f8"), EIGHT)))
    assert read_weight_file(tmp_path / "net.pt") == np.frombuffer(b"12345678", np.float64)[0]


def test_files_of_other_kinds_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"a": np.ones(3)}, protocol=2))
    with pytest.raises(ModelError, match=r"net\.pkl .*torch\.save"):
        read_weight_file(tmp_path / "net.pkl")
    torch.save(nested(np.float64(1)), tmp_path / "new.pkl")
    check(load_weights(plain, tmp_path / "new.pkl").eval(), plain)
    save_file(states(plain, 1)[0], tmp_path / "NET.SAFETENSORS")
    check(load_weights(plain, tmp_path / "NET.SAFETENSORS").eval(), plain)
