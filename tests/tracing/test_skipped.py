"""Modules with weights are measured, or listed with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmeasures.errors import ModelError
from genmeasures.tracing import Sketch, Trace, trace

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("seeded")]

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def seeded() -> None:
    torch.manual_seed(0)


def accounted(traced: Trace) -> dict[str, str]:
    """Measured layers with "", skipped ones with their reasons."""
    return {**{one.layer.name: "" for one in traced.layers}, **dict(traced.skipped)}


class Own(nn.Module):
    """A layer whose weight is stored in an unusual way."""

    def __init__(self, keep: Callable[[Own, Tensor], None], use: Callable[[Own, Tensor], Tensor]) -> None:
        super().__init__()
        keep(self, torch.randn(6, 4))
        self._use = use

    def forward(self, x: Tensor) -> Tensor:
        return self._use(self, x)


def as_int8(module: Own, weight: Tensor) -> None:
    scale = weight.abs().amax(1, keepdim=True) / 127
    module.register_buffer("weight_int8", (weight / scale).round().to(torch.int8))
    module.register_buffer("weight_scale", scale)


def set_attribute(name: str, wrap: Callable[[Tensor], Any]) -> Callable[[Own, Tensor], None]:
    return lambda module, weight: setattr(module, name, wrap(weight))


OWN: dict[str, tuple[Callable[[Own, Tensor], None], Callable[[Own, Tensor], Tensor], str]] = {
    "parameter": (set_attribute("w", nn.Parameter), lambda m, x: F.linear(x, m.w), "parameters w"),
    "buffer": (lambda m, w: m.register_buffer("w", w), lambda m, x: F.linear(x, m.w), "buffers w"),
    "unsaved buffer": (
        lambda m, w: m.register_buffer("w", w, persistent=False),
        lambda m, x: F.linear(x, m.w),
        "buffers w",
    ),
    "vector": (lambda m, w: m.register_buffer("gain", w[0]), lambda m, x: x * m.gain, "buffers gain"),
    "int8 buffers": (as_int8, lambda m, x: F.linear(x, m.weight_int8 * m.weight_scale), "buffers weight_int8"),
    "tensor": (set_attribute("w", lambda w: w), lambda m, x: F.linear(x, m.w), "attributes w"),
    "leaf": (set_attribute("w", lambda w: w.requires_grad_()), lambda m, x: F.linear(x, m.w), "attributes w"),
    "list": (set_attribute("ws", lambda w: [w]), lambda m, x: F.linear(x, m.ws[0]), "attributes ws[0]"),
    "dict": (set_attribute("ws", lambda w: {"a": w}), lambda m, x: F.linear(x, m.ws["a"]), "attributes ws['a']"),
    "parameters in a list": (
        set_attribute("ws", lambda w: [nn.Parameter(w)]),
        lambda m, x: F.linear(x, m.ws[0]),
        "attributes ws[0]",
    ),
    "complex": (set_attribute("w", lambda w: w + 0j), lambda m, x: ((x + 0j) @ m.w.T).real, "attributes w"),
    "quantized tensor": (
        set_attribute("w", lambda w: torch.quantize_per_tensor(w, 0.05, 0, torch.qint8)),
        lambda m, x: F.linear(x, m.w.dequantize()),
        "attributes w",
    ),
    "sparse": (
        set_attribute("w", lambda w: w.to_sparse()),
        lambda m, x: torch.sparse.mm(m.w, x.T).T,
        "attributes w",
    ),
    "float8": (
        set_attribute("w", lambda w: w.to(torch.float8_e4m3fn)),
        lambda m, x: F.linear(x, m.w.float()),
        "attributes w",
    ),
}


@pytest.mark.parametrize("way", OWN)
def test_weights_stored_in_any_way_are_listed(way: str) -> None:
    keep, use, named = OWN[way]
    model = nn.Sequential(nn.Linear(5, 4), Own(keep, use), nn.ReLU()).eval()
    traced = trace(model, torch.randn(3, 5), "activation")
    assert [one.layer.name for one in traced.layers] == ["0"]
    assert set(dict(traced.skipped)) == {"1"}
    reason = dict(traced.skipped)["1"]
    assert reason.startswith("layers of type Own are not measured (")
    assert named in reason


class Constants(nn.Module):
    """Tensors that are not weights: masks, indices, single numbers, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("causal", torch.full((8, 8), -torch.inf).triu(1))
        self.register_buffer("allowed", torch.ones(8, 8).tril())
        self.register_buffer("window", torch.ones(3, 3, dtype=torch.bool))
        self.register_buffer("positions", torch.arange(8))
        self.register_buffer("temperature", torch.tensor(0.7))
        self.flags, self.eps, self.shape = [1, 2.5], 1e-5, (3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.causal).softmax(-1) * self.allowed / self.temperature


class FrozenNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)  # type: ignore[arg-type]


def test_other_tensors_are_not_listed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), FrozenNorm(), nn.BatchNorm2d(4), Constants()).eval()
    assert trace(model, IMAGES, "activation").skipped == ()


class Caches(nn.Module):
    """Stores its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None
        self.history: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last = x * 2
        self.history = [x, self.last]
        return self.last


def test_tensors_stored_by_a_pass_are_not_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Caches()).eval()
    model(IMAGES)
    assert trace(model, IMAGES, "activation").skipped == ()
    sketch = Sketch(model, torch.device("cpu"))
    assert trace(sketch.model, sketch.input(IMAGES.shape), "activation").skipped == ()


class Encoder(nn.Module):
    """The kinds of layers that language models consist of."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.bag = nn.Embedding(10, 8), nn.EmbeddingBag(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.memory, self.cell = nn.LSTM(8, 8, batch_first=True), nn.GRUCell(8, 8)
        self.pair = nn.Bilinear(8, 8, 4)
        self.table = nn.ParameterList([nn.Parameter(torch.randn(8))])
        self.named = nn.ParameterDict({"a": nn.Parameter(torch.randn(8))})
        self.norm, self.head, self.unused = nn.LayerNorm(8), nn.Linear(4, 3), nn.Conv1d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x) + self.table[0] + self.named["a"]
        y = self.norm(y + self.attention(y, y, y)[0])
        y = self.memory(y)[0][:, -1]
        return self.head(self.pair(self.cell(y, self.bag(x)), y))


def test_layers_that_are_not_measured_are_listed_by_their_parameters() -> None:
    traced = trace(Encoder().eval(), torch.randint(10, (3, 5)), "activation")
    found = accounted(traced)
    assert [name for name, reason in found.items() if not reason] == ["head"]
    told = {
        "words": "weight", "bag": "weight", "attention": "in_proj_weight", "memory": "weight_ih_l0",
        "cell": "weight_ih", "pair": "weight", "table": "parameters 0", "named": "parameters a",
    }  # fmt: skip
    for name, parameter in told.items():
        assert parameter in found[name]
    assert found["unused"] == found["attention.out_proj"] == "it was never called in the forward pass"
    assert set(found) == {"head", "unused", "attention.out_proj", *told}


def dynamic() -> tuple[nn.Module, Tensor]:
    """Linear, recurrent and embedding layers with packed weights, behind a layer that is measured."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.memory, self.cell = nn.Conv1d(4, 4, 3), nn.LSTM(6, 5), nn.GRUCell(5, 5)
            self.head = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))

        def forward(self, x: Tensor) -> Tensor:
            states, _ = self.memory(self.conv(x).transpose(0, 1))
            return self.head(self.cell(states[-1]))

    kinds = {nn.Linear, nn.LSTM, nn.GRUCell}
    return torch.ao.quantization.quantize_dynamic(Net().eval(), kinds, dtype=torch.qint8), torch.randn(3, 4, 8)


def static() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        torch.ao.quantization.QuantWrapper(
            nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
        ),
    ).eval()
    model[1].qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")  # type: ignore[assignment]
    prepared = torch.ao.quantization.prepare(model)
    prepared(IMAGES)
    return torch.ao.quantization.convert(prepared), IMAGES


@pytest.mark.parametrize(
    ("make", "quantized"),
    [
        (dynamic, {"memory", "cell", "head.0", "head.2"}),
        (static, {"1.module.0", "1.module.3"}),
    ],
)
def test_quantized_layers_are_listed(make: Callable[[], tuple[nn.Module, Tensor]], quantized: set[str]) -> None:
    model, inputs = make()
    found = accounted(trace(model, inputs, "activation"))
    for name in quantized:
        assert "quantized" in found.pop(name)
    assert list(found.values()) == [""]  # what is left is the measured layer: parts that hold weights are no layers


class Int8Linear(nn.Linear):
    """A linear layer with an integer weight, as in bitsandbytes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.scale = float(linear.weight.detach().abs().max() / 127)
        whole = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)


def test_a_linear_layer_with_an_integer_weight_is_listed() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), Int8Linear(nn.Linear(4, 3))).eval()
    found = accounted(trace(model, torch.randn(3, 5), "activation"))
    assert found == {"0": "", "2": "its weight is stored as int8: pass the model before quantization"}


class Holder(nn.Module):
    """Modules in a plain list, a common mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.layers = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)]
        self.again = [self.first]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return x


def test_modules_in_a_plain_list_are_listed_with_the_remedy() -> None:
    traced = trace(nn.Sequential(Holder()).eval(), torch.randn(3, 5), "activation")
    assert [one.layer.name for one in traced.layers] == ["0.first"]
    assert set(dict(traced.skipped)) == {"0.layers[0]", "0.layers[2]"}
    assert all("nn.ModuleList" in reason for _, reason in traced.skipped)


@pytest.mark.parametrize("make", [torch.jit.script, lambda part: torch.jit.trace(part, torch.randn(2, 4, 8, 8))])
def test_torchscript_as_a_part_is_listed(make: Callable[[nn.Module], nn.Module]) -> None:
    part = make(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()).eval())
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), part, nn.Flatten(), nn.Linear(256, 2)).eval()
    found = accounted(trace(model, IMAGES, "activation"))
    assert [name for name, reason in found.items() if not reason] == ["0", "3"]
    assert "TorchScript" in found["1"]
    assert "TorchScript" in found["1.0"]
    frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)).eval()))
    model[1] = frozen  # its weights are constants of its code
    assert "TorchScript" in accounted(trace(model, IMAGES, "activation"))["1"]


def test_a_program_that_a_module_holds_is_listed() -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program = torch.export.export(nn.Sequential(nn.Linear(4, 2)), (torch.randn(3, 4),))

        def forward(self, x: Tensor) -> Tensor:
            return x

    found = accounted(trace(nn.Sequential(nn.Linear(5, 4), Calls()).eval(), torch.randn(3, 5), "activation"))
    assert "attributes program" in found["1"]


def zoo() -> list[tuple[nn.Module, Tensor]]:
    tokens = torch.randint(10, (3, 5))
    sequences = torch.randn(3, 5, 8)
    unfolded = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.PReLU(4), nn.ConvTranspose2d(4, 4, 2, stride=2),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 2, 1)), nn.Flatten(), nn.Linear(512, 4),
        nn.Bilinear(4, 4, 2),
    )  # fmt: skip
    unfolded[7].forward = lambda x, own=unfolded[7]: nn.Bilinear.forward(own, x, x)  # type: ignore[assignment]
    return [
        (Encoder(), tokens),
        (nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), sequences),
        (unfolded, IMAGES),
        (torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))), IMAGES),
        dynamic(),
        static(),
        *[(nn.Sequential(nn.Linear(5, 4), Own(keep, use)), torch.randn(3, 5)) for keep, use, _ in OWN.values()],
    ]


NORMALIZATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU)


def has_weights(module: nn.Module) -> bool:
    """Whether a module's own part of the state dict, or a tensor among its attributes, holds more than a number."""
    own = module._save_to_state_dict
    saved: dict[str, Any] = {}
    own(saved, "", True)
    values = [*saved.values(), *vars(module).values()]
    values += [one for value in values if isinstance(value, list) for one in value]
    values += [one for value in vars(module).values() if isinstance(value, dict) for one in value.values()]
    return any(
        isinstance(value, torch.ScriptObject) or (isinstance(value, Tensor) and value.numel() > 1) for value in values
    )


@pytest.mark.parametrize("number", range(len(OWN) + 6))
def test_no_module_with_weights_vanishes(number: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, inputs = zoo()[number]
    found = accounted(trace(model.eval(), inputs, "activation"))
    weighted = [
        name for name, module in model.named_modules() if has_weights(module) and not isinstance(module, NORMALIZATIONS)
    ]
    assert weighted
    for name in weighted:
        # What keeps or makes the weight of a layer, and is part of it: of one that is quantized or parametrized.
        owner = name.split("._packed_params")[0].split("._all_weight_values")[0].split(".parametrizations")[0]
        assert owner in found, f"{name} vanished: {found}"
    assert all(reason == "" or len(reason) > 20 for reason in found.values())


def test_the_error_lists_the_modules_if_none_can_be_measured() -> None:
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)).eval(), {nn.Linear})
    with pytest.raises(ModelError, match=r"no layer can be measured.*0: layers of type Linear.*quantized"):
        trace(model, torch.randn(3, 4), "activation")
