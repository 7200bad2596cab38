"""Block taps: outputs after sums and concatenations, compared with plain forward hooks on the blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmeasures.tracing import Trace, TracedLayer, tapped, trace
from genmeasures.tracing.functions import JOINS

INPUTS = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)


class Residual(nn.Module):
    """Two convolutions and a shortcut, a projection where the sizes differ; ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, in_place: bool = False) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        project = stride > 1 or inputs != outputs
        self.project = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if project else None
        self.relu = nn.ReLU(inplace=in_place)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = x if self.project is None else self.project(x)
        if self.in_place:
            out += shortcut
        else:
            out = shortcut + out
        made: Tensor = self.relu(out)
        return made


class PreActivation(nn.Module):
    """Normalization and activation before each convolution; the sum is the output."""

    def __init__(self, channels: int, in_place: bool) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, channels)
        self.norm2, self.conv2 = nn.BatchNorm2d(channels), conv(channels, channels)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x)))
        out = F.dropout(self.conv2(F.relu(self.norm2(out))), 0.5, self.training)
        if self.in_place:
            x += out
            return x
        return torch.add(x, out, alpha=0.5)


class Dense(nn.Module):
    """Concatenates its input with what it computes of it."""

    def __init__(self, inputs: int, growth: int, join: Callable[..., Tensor] = torch.cat) -> None:
        super().__init__()
        self.conv, self.join = conv(inputs, growth), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join([x, F.gelu(self.conv(x))], dim=1)


class Quantizable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.sum = conv(4, 4), torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.sum.add(self.conv(x), x)
        return joined


class Branches(nn.Module):
    """Three branches, added by Python's sum."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv(4, 4), conv(4, 4, 1), conv(4, 4, 5)])

    def forward(self, x: Tensor) -> Tensor:
        joined = sum(branch(x) for branch in self.branches)
        assert isinstance(joined, Tensor)
        return F.silu(joined)


class Twice(nn.Module):
    """One block, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.block(self.block(x))


class UNet(nn.Module):
    """A plain UNet, whose upsampled outputs are joined with those of the encoder; a residual stage at the bottom."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = conv(4, 6), Residual(6, 12)
        self.up, self.merge, self.head = nn.ConvTranspose2d(12, 6, 2, 2), nn.Identity(), conv(12, 2)

    def forward(self, x: Tensor) -> Any:
        skip = F.relu(self.down(x))
        low = self.bottom(F.max_pool2d(skip, 2))
        return self.head(self.merge(torch.cat([F.relu(self.up(low)), skip], 1)))


def made(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, -0.5, 1.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def read(model: nn.Module, tap: str = "block", inputs: Tensor = INPUTS) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of all layers as the tap delivers them."""
    got: dict[str, tuple[Tensor, Tensor]] = {}

    def receive(layer: TracedLayer, given: Tensor, output: Tensor) -> None:
        assert layer.layer.name not in got
        assert output.shape[-1 if layer.channels_last else 1] == layer.layer.channels
        got[layer.layer.name] = (given.clone(), output.clone())

    layers = trace(model, inputs[:3].clone(), tap).layers
    with torch.no_grad(), tapped(model, layers, receive) as running:
        running.run(inputs.clone())
    assert set(got) == {layer.layer.name for layer in layers}
    return got


def hooked(model: nn.Module, places: list[str], inputs: Tensor = INPUTS) -> dict[str, list[Tensor]]:
    """Outputs of all calls of submodules, copied by plain forward hooks."""
    model = copy.deepcopy(model)
    outputs: dict[str, list[Tensor]] = {place: [] for place in places}
    for place in outputs:
        model.get_submodule(place).register_forward_hook(
            lambda *given, place=place: outputs[place].append(given[-1].clone())
        )
    with torch.no_grad():
        model(inputs.clone())
    return outputs


def given(model: nn.Module, layers: list[str]) -> list[Tensor]:
    """Inputs of layers, copied by plain hooks before they run."""
    model, inputs = copy.deepcopy(model), dict[str, Tensor]()
    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: inputs.update({name: args[0].clone()})
        )
    with torch.no_grad():
        model(INPUTS.clone())
    return [inputs[name] for name in layers]


def joins(traced: Trace) -> dict[str, str]:
    return {layer.layer.name: layer.layer.joins for layer in traced.layers}


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "residual": (
        lambda: nn.Sequential(conv(4, 4), nn.ReLU(), Residual(4, 4), Residual(4, 6, 2), conv(6, 2)),
        {"0": "1", "2.conv1": "", "2.conv2": "2", "3.conv1": "", "3.conv2": "3", "3.project.0": "3", "4": "4"},
    ),
    "in place": (
        lambda: nn.Sequential(Residual(4, 4, 1, True), Residual(4, 6, 2, True), conv(6, 2)),
        {"0.conv1": "", "0.conv2": "0", "1.conv1": "", "1.conv2": "1", "1.project.0": "1", "2": "2"},
    ),
    "pre-activation": (
        lambda: nn.Sequential(PreActivation(4, False), PreActivation(4, False)),
        {"0.conv1": "", "0.conv2": "0", "1.conv1": "", "1.conv2": "1"},
    ),
    "pre-activation in place": (
        lambda: nn.Sequential(conv(4, 4), PreActivation(4, True), PreActivation(4, True)),
        {"0": "0", "1.conv1": "", "1.conv2": "1", "2.conv1": "", "2.conv2": "2"},
    ),
    "dense": (
        lambda: nn.Sequential(
            Dense(4, 3), Dense(7, 2, torch.concat), nn.BatchNorm2d(9), nn.ReLU(), Dense(9, 1, torch.concatenate)
        ),
        {"0.conv": "0", "1.conv": "3", "4.conv": "4"},
    ),
    "quantizable": (lambda: nn.Sequential(Quantizable(), nn.ReLU(), conv(4, 2)), {"0.conv": "1", "2": "2"}),
    "branches": (
        lambda: nn.Sequential(Branches(), conv(4, 2)),
        {"0.branches.0": "0", "0.branches.1": "0", "0.branches.2": "0", "1": "1"},
    ),
    "UNet": (
        UNet,
        {"down": "", "bottom.conv1": "", "bottom.conv2": "bottom", "bottom.project.0": "bottom", "up": "merge",
         "head": "head"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_blocks(name: str) -> None:
    """And inputs are what the layers read; layers inside of a block are read as by the default tap."""
    model = made(MODELS[name][0]())
    places = MODELS[name][1]
    got, default = read(model), read(model, "activation")
    assert list(default) == list(places)
    at_blocks = [layer for layer, place in places.items() if place]
    blocks = hooked(model, [places[layer] for layer in at_blocks])
    for layer in at_blocks:
        torch.testing.assert_close(got[layer][1], blocks[places[layer]][0], rtol=0, atol=0)
    for layer, inputs in zip(places, given(model, list(places)), strict=True):
        torch.testing.assert_close(got[layer][0], inputs, rtol=0, atol=0)
    for layer in set(places) - set(at_blocks):
        torch.testing.assert_close(got[layer][1], default[layer][1], rtol=0, atol=0)


def test_each_call_of_a_block_has_its_own_output() -> None:
    model = made(Twice())
    got, [first, second] = read(model), hooked(model, ["block"])["block"]
    torch.testing.assert_close(got["block.conv2"][1], first, rtol=0, atol=0)
    torch.testing.assert_close(got["block.conv2#2"][1], second, rtol=0, atol=0)


TAPS = {
    "residual": ["Conv2d > relu", "Conv2d > batch_norm > relu", "Conv2d > batch_norm > sum > relu"],
    "pre-activation": ["Conv2d > batch_norm > relu", "Conv2d > sum"],
    "dense": ["Conv2d > gelu > concatenation", "Conv2d > gelu > concatenation > batch_norm > relu"],
    "branches": ["Conv2d > add > sum > sum > silu", "Conv2d > sum > sum > silu", "Conv2d > sum > silu"],
}


@pytest.mark.parametrize("name", TAPS)
def test_the_tap_is_described(name: str) -> None:
    model = made(MODELS[name][0]())
    found = [layer.layer.tap for layer in trace(model, INPUTS[:3].clone(), "block").layers]
    assert found[: len(TAPS[name])] == TAPS[name]


@pytest.mark.parametrize("name", MODELS)
def test_joins_do_not_depend_on_the_tap(name: str) -> None:
    model = made(MODELS[name][0]())
    found = {tap: trace(model, INPUTS[:3].clone(), tap) for tap in ("activation", "linear", "block")}
    assert joins(found["activation"]) == joins(found["linear"]) == joins(found["block"])
    for before, after in zip(found["activation"].layers, found["block"].layers, strict=True):
        changed = before.layer.tap != after.layer.tap
        assert changed == bool(before.layer.joins)
        assert bool(before.read_before) == changed
        assert after.read_before == ""
    assert {layer.read_before for layer in found["linear"].layers} == {""}
    assert all(not set(layer.follow) & JOINS for layer in found["activation"].layers)


def test_kinds_of_joins() -> None:
    assert set(joins(trace(made(MODELS["dense"][0]()), INPUTS[:3], "activation")).values()) == {"concatenation"}
    found = joins(trace(made(MODELS["in place"][0]()), INPUTS[:3], "activation"))
    assert found == {
        "0.conv1": "", "0.conv2": "sum", "1.conv1": "", "1.conv2": "sum", "1.project.0": "sum", "2": "",
    }  # fmt: skip


def test_a_chain_of_joins_is_followed_to_its_end() -> None:
    """A sum whose output goes into a concatenation: the channels are those that the next layer receives."""

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = conv(4, 4), conv(8, 2)

        def forward(self, x: Tensor) -> Any:
            return self.head(torch.cat([F.relu(self.up(x)) + x, x], 1))

    model = made(Stage())
    layer = trace(model, INPUTS[:3], "block").layers[0].layer
    assert (layer.tap, layer.joins) == ("Conv2d > relu > sum > concatenation", "sum")
    assert (layer.channels, layer.spatial, layer.patch_size) == (8, (8, 8), 36)
    [received] = given(model, ["head"])
    torch.testing.assert_close(read(model)["up"][1], received, rtol=0, atol=0)


class Tokens(nn.Module):
    """Patches as tokens, with a class token, position embeddings and a block of two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 6)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 33, 6))
        self.wide, self.narrow, self.norm = nn.Linear(6, 9), nn.Linear(9, 6), nn.LayerNorm(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x.flatten(1, 2))
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        return self.head(self.norm(x + self.narrow(F.gelu(self.wide(x)))))


def test_positions_stay_those_of_the_layer() -> None:
    """A token beside the others shifts positions: the layer is read before it, with a caveat."""
    model = made(Tokens())
    [embed, wide, narrow, head] = trace(model, INPUTS[:3], "block").layers
    assert [layer.layer.joins for layer in (embed, wide, narrow, head)] == ["concatenation", "", "sum", ""]
    assert embed.layer.tap == "Linear"
    assert embed.read_before == "the output is read before its concatenation, which is not along the channels"
    assert narrow.layer.tap == "Linear > sum > layer_norm"
    got, block = read(model), hooked(model, ["embed", "norm"])
    torch.testing.assert_close(got["embed"][1], block["embed"][0], rtol=0, atol=0)
    torch.testing.assert_close(got["narrow"][1], block["norm"][0], rtol=0, atol=0)


def after(function: Callable[[Tensor, Tensor], Tensor]) -> str:
    """How the output of a layer is joined by a function of it and of the input."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return function(self.conv(x), x)

    found = trace(made(One()), INPUTS[:3], "activation")
    return found.layers[0].layer.joins


@pytest.mark.parametrize(
    ("function", "joined"),
    [
        (lambda y, x: y + x, "sum"),
        (lambda y, x: torch.add(input=x, other=y), "sum"),
        (lambda y, x: F.dropout(torch.tanh(y), 0.5, False).add(x), "sum"),
        (lambda y, x: torch.cat(tensors=(x, x, y), dim=1), "concatenation"),
        (lambda y, x: 1 + y + x, "sum"),
        (lambda y, x: torch.cat([torch.cat([y], 1), x], 1), "concatenation"),
        (lambda y, x: y + 1, ""),  # no other branch
        (lambda y, x: torch.cat([y], 1), ""),
        (lambda y, x: y + x.mean((2, 3), keepdim=True), ""),  # broadcast
        (lambda y, x: y * x, ""),
        (lambda y, x: y - x, ""),
        (lambda y, x: F.max_pool2d(y, 2) + F.max_pool2d(x, 2), ""),  # passes something else first
        (lambda y, x: torch.stack([y, x]).sum(0), ""),
        (lambda y, x: F.avg_pool2d(y, 2).sum() + y + x, ""),
    ],
)
def test_what_a_join_is(function: Callable[[Tensor, Tensor], Tensor], joined: str) -> None:
    assert after(function) == joined


def test_a_number_that_is_added_is_not_followed_without_a_join() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x) + 1)

    for tap in ("activation", "block"):
        assert trace(made(Shifted()), INPUTS[:3], tap).layers[0].layer.tap == "Conv2d"


def test_what_a_layer_does_within_itself_is_no_join() -> None:
    class Adapted(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = super().forward(x)
            made += x
            return made

    model = made(nn.Sequential(Adapted(4, 4, 3, padding=1), nn.ReLU()))
    for tap in ("activation", "block"):
        [layer] = trace(model, INPUTS[:3], tap).layers
        assert (layer.layer.joins, layer.layer.tap) == ("", "Adapted > relu")
        torch.testing.assert_close(read(model, tap)["0"][1], hooked(model, ["1"])["1"][0], rtol=0, atol=0)


def test_noise_in_a_branch_is_noted_where_it_enters() -> None:
    """The shortcut runs first and is read last: what is read before the noise has no note."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.conv1, self.conv2 = conv(4, 4, 1), conv(4, 4), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            shortcut = self.project(x)
            out = F.dropout(F.relu(self.conv1(x)), 0.5, True)
            joined: Tensor = shortcut + self.conv2(out)
            return joined

    found = {layer.layer.name: layer.note for layer in trace(made(Noisy()), INPUTS[:3], "block").layers}
    assert {name: bool(note) for name, note in found.items()} == {"project": True, "conv1": False, "conv2": True}


def test_layers_that_read_the_output_of_a_block_are_known() -> None:
    layers = trace(made(MODELS["residual"][0]()), INPUTS[:3], "block").layers
    names = [layer.layer.name for layer in layers]
    reads = {layer.layer.name: None if layer.reads is None else names[layer.reads] for layer in layers}
    assert reads["2.conv1"] == "0"
    assert reads["3.conv1"] == reads["3.project.0"] == "2.conv2"
    assert reads["4"] in ("3.conv2", "3.project.0")  # both are read there


def test_no_join_is_looked_at_unless_a_tap_follows_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(MODELS["residual"][0]())
    for tap, followed in (("activation", False), ("block", True)):
        with tapped(model, trace(model, INPUTS[:3], tap).layers, lambda *given: None) as running:
            assert bool(running._followed & JOINS) == followed
