"""Layers of a model in running order, and taps compared with plain forward hooks."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genmeasures.errors import ModelError
from genmeasures.tracing import Trace, TracedLayer, tapped, trace

INPUTS = torch.randn(7, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def names(traced: Trace) -> list[str]:
    return [one.layer.name for one in traced.layers]


def taps(traced: Trace) -> dict[str, str]:
    """Functions followed after each layer, without the layer itself."""
    return {one.layer.name: one.layer.tap.partition(" > ")[2] for one in traced.layers}


def reasons(traced: Trace) -> dict[str, str]:
    return dict(traced.skipped)


def read(
    model: nn.Module, inputs: Tensor = INPUTS, tap: str = "activation", example: Tensor | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of all layers as delivered by the tap, which must be in running order."""
    model.eval()
    traced = trace(model, inputs[:3] if example is None else example, tap)
    got: dict[str, tuple[Tensor, Tensor]] = {}

    def receive(layer: TracedLayer, given: Tensor, output: Tensor) -> None:
        assert layer.layer.name not in got
        got[layer.layer.name] = (given.clone(), output.clone())

    with torch.inference_mode(), tapped(model, traced.layers, receive) as running:
        running.run(inputs)
    assert set(got) == set(names(traced))
    return got


def hooked(model: nn.Module, places: list[str], inputs: Tensor = INPUTS) -> list[Tensor]:
    """Last outputs of submodules, copied by plain forward hooks."""
    made: dict[str, Tensor] = {}
    model.eval()
    for place in places:
        model.get_submodule(place).register_forward_hook(
            lambda *given, place=place: made.update({place: given[-1].clone()})
        )
    with torch.no_grad():
        model(inputs)
    return [made[place] for place in places]


def same(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


class Between(nn.Module):
    """A convolution, a module after it, and a convolution that receives its output."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 4, 3)
        self.between = between
        self.second = nn.LazyConv2d(3, 3)
        with torch.no_grad():
            self.eval()(INPUTS[:1])

    def forward(self, x: Tensor) -> Any:
        return self.second(self.between(self.first(x)))

    def bare(self) -> Tensor:
        with torch.no_grad():
            return self.first(INPUTS)


def norm(layer: nn.Module) -> nn.Module:
    """A normalization with random statistics and weights."""
    torch.manual_seed(1)
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return layer.eval()


ACTIVATIONS: list[nn.Module] = [
    *[nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.ReLU6(inplace=True), nn.LeakyReLU(0.1), nn.LeakyReLU(0.1, True)],
    *[nn.ELU(), nn.ELU(inplace=True), nn.CELU(), nn.CELU(inplace=True), nn.SELU(), nn.SELU(inplace=True), nn.GELU()],
    *[nn.SiLU(), nn.SiLU(inplace=True), nn.Mish(), nn.Mish(inplace=True), nn.Hardswish(), nn.Hardswish(inplace=True)],
    *[nn.Hardsigmoid(), nn.Hardsigmoid(inplace=True), nn.Hardtanh(), nn.Hardtanh(inplace=True), nn.Sigmoid()],
    *[nn.Tanh(), nn.Softplus(), nn.Softsign(), nn.Tanhshrink(), nn.Softshrink(), nn.Hardshrink(), nn.LogSigmoid()],
    *[nn.Threshold(0.1, 0.0), nn.Threshold(0.1, 0.0, inplace=True), nn.PReLU(), nn.PReLU(4), nn.RReLU()],
    *[nn.RReLU(inplace=True), nn.Softmax(1), nn.Softmin(1), nn.LogSoftmax(1), nn.Softmax2d()],
]
NORMALIZATIONS: list[nn.Module] = [
    *[nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4)],
    *[nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.LayerNorm([4, 6, 6]), nn.RMSNorm([4, 6, 6])],
    *[nn.LocalResponseNorm(2, alpha=1.0), nn.SyncBatchNorm(4)],
]


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=repr)
def test_every_activation_module_is_followed(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), layer, nn.Conv2d(4, 2, 1))
    [expected] = hooked(copy.deepcopy(model), ["1"])
    got = read(model)
    same(got["0"][1], expected)
    same(got["2"][0], expected)
    assert len(trace(model, INPUTS[:3], "activation").layers[0].follow) == 1


@pytest.mark.parametrize("dropout", [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout()], ids=repr)
def test_an_output_is_read_before_the_dropout_after_it(dropout: nn.Module) -> None:
    """But after an activation that follows a dropout."""
    behind = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), dropout, nn.Conv2d(4, 2, 1)).eval()
    between = nn.Sequential(nn.Conv2d(2, 4, 3), dropout, nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    follow = [trace(model, INPUTS[:3], "activation").layers[0].follow for model in (behind, between)]
    assert [len(functions) for functions in follow] == [1, 2]
    assert follow[0][0] is follow[1][1]


@pytest.mark.parametrize("layer", NORMALIZATIONS, ids=repr)
def test_every_normalization_module_is_followed(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), norm(layer), nn.ReLU())
    [expected] = hooked(copy.deepcopy(model), ["2"])
    same(read(model)["0"][1], expected)
    traced = trace(model, INPUTS[:3], "activation")
    assert len(traced.layers[0].follow) == 2
    assert traced.skipped == ()


FUNCTIONS: list[tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
    ("relu", F.relu, torch.relu),
    ("relu", torch.relu, torch.relu),
    ("relu", lambda x: x.relu(), torch.relu),
    ("relu", lambda x: x.relu_(), torch.relu),
    ("relu", torch.relu_, torch.relu),
    ("relu", lambda x: F.relu(x, inplace=True), torch.relu),
    ("relu", lambda x: F.relu(input=x), torch.relu),
    ("relu", F.relu_, torch.relu),
    ("leaky_relu", lambda x: F.leaky_relu(x, 0.3), nn.LeakyReLU(0.3)),
    ("leaky_relu", lambda x: F.leaky_relu_(x, 0.3), nn.LeakyReLU(0.3)),
    ("clamp", lambda x: x.clamp(min=0), torch.relu),
    ("clamp", lambda x: x.clamp_(min=0), torch.relu),
    ("clamp", lambda x: torch.clamp(x, 0, 1), nn.Hardtanh(0, 1)),
    ("clamp_min", lambda x: x.clamp_min(0), torch.relu),
    ("clip", lambda x: x.clip(0, 1), nn.Hardtanh(0, 1)),
    ("clip", lambda x: x.clip_(0, 1), nn.Hardtanh(0, 1)),
    ("threshold", lambda x: F.threshold(x, 0.2, 0.0), nn.Threshold(0.2, 0.0)),
    ("threshold", lambda x: torch.threshold(x, 0.2, 0.0), nn.Threshold(0.2, 0.0)),
    ("gelu", lambda x: F.gelu(x, approximate="tanh"), nn.GELU(approximate="tanh")),
    ("silu", F.silu, nn.SiLU()),
    ("sigmoid", lambda x: x.sigmoid(), nn.Sigmoid()),
    ("tanh", lambda x: x.tanh_(), nn.Tanh()),
    ("softmax", lambda x: x.softmax(1), nn.Softmax(1)),
]


@pytest.mark.parametrize(("name", "function", "reference"), FUNCTIONS)
def test_every_activation_function_is_followed(
    name: str, function: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor]
) -> None:
    model = Between(function)
    got = read(model)
    expected = reference(model.bare())
    assert taps(trace(model, INPUTS[:3], "activation")) == {"first": name, "second": ""}
    same(got["first"][1], expected)
    same(got["second"][0], expected)


CHAINS: list[tuple[str, str, Callable[[], nn.Module]]] = [
    ("batch_norm > relu", "1", lambda: nn.Sequential(norm(nn.BatchNorm2d(4)), nn.ReLU())),
    ("batch_norm > relu", "1", lambda: nn.Sequential(norm(nn.BatchNorm2d(4)), nn.ReLU(inplace=True))),
    ("relu > batch_norm", "1", lambda: nn.Sequential(nn.ReLU(), norm(nn.BatchNorm2d(4)))),
    ("relu > batch_norm", "1", lambda: nn.Sequential(nn.ReLU(inplace=True), norm(nn.BatchNorm2d(4)))),
    ("relu", "1", lambda: nn.Sequential(nn.Identity(), nn.ReLU())),
    ("relu", "1", lambda: nn.Sequential(nn.Dropout(), nn.ReLU())),
    ("relu", "1", lambda: nn.Sequential(nn.Dropout2d(), nn.ReLU())),
    ("relu", "1", lambda: nn.Sequential(nn.Dropout(inplace=True), nn.ReLU(inplace=True))),
    ("relu", "0", lambda: nn.Sequential(nn.ReLU(), nn.Dropout())),
    ("batch_norm > relu", "2", lambda: nn.Sequential(norm(nn.BatchNorm2d(4)), nn.Dropout(), nn.ReLU())),
    ("relu", "0", lambda: nn.Sequential(nn.ReLU(), nn.Tanh())),
    ("batch_norm", "0", lambda: nn.Sequential(norm(nn.BatchNorm2d(4)), nn.GroupNorm(2, 4), nn.ReLU())),
    ("group_norm > relu", "1", lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), norm(nn.BatchNorm2d(4)))),
    ("relu", "0", lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), norm(nn.BatchNorm2d(4)))),
]


@pytest.mark.parametrize(("tap", "last", "make"), CHAINS)
def test_one_normalization_and_one_activation_are_followed_in_either_order(
    tap: str, last: str, make: Callable[[], nn.Module]
) -> None:
    model = Between(make())
    assert taps(trace(model, INPUTS[:3], "activation"))["first"] == tap
    [expected] = hooked(copy.deepcopy(model), [f"between.{last}"])
    same(read(model)["first"][1], expected)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def residual(x: Tensor) -> Tensor:
    return F.relu(x + x.mean(1, keepdim=True))


def added_in_place(x: Tensor) -> Tensor:
    x += 1.0
    return F.relu(x)


def branch(x: Tensor) -> Tensor:
    return torch.relu(x) + torch.tanh(x)


def used_again(x: Tensor) -> Tensor:
    return torch.relu(x) + x


def concatenated_rectifier(x: Tensor) -> Tensor:
    return torch.cat([torch.relu(x), torch.relu(-x)], 1)


def as_limit(x: Tensor) -> Tensor:
    return torch.clamp(torch.zeros(1), min=x)


def widened(x: Tensor) -> Tensor:
    return torch.clamp(x, min=torch.zeros(2, 1, 1, 1, 1)).sum(0)


def flattened(x: Tensor) -> Tensor:
    return torch.relu(x.flatten(2)).view_as(x)


def through_a_view(x: Tensor) -> Tensor:
    x[:, :2].relu_()
    return x


ELSEWHERE = [swish, residual, added_in_place, branch, used_again, concatenated_rectifier, as_limit, widened, flattened]


@pytest.mark.parametrize(
    "between",
    [*ELSEWHERE, through_a_view, nn.Sequential(nn.MaxPool2d(2), nn.ReLU()), nn.GLU(1), lambda x: F.normalize(x).relu()],
)
def test_a_function_that_does_not_follow_directly_or_alone_is_not_followed(between: Callable[[Tensor], Tensor]) -> None:
    model = Between(between)
    got = read(model)
    assert taps(trace(model, INPUTS[:3], "activation"))["first"] == ""
    same(got["first"][1], model.bare())
    assert set(got) == {"first", "second"}


def test_an_activation_in_place_is_read_by_later_uses() -> None:
    model = Between(lambda x: x.relu_() + x)
    assert taps(trace(model, INPUTS[:3], "activation"))["first"] == "relu"
    same(read(model)["first"][1], model.bare().relu())


def test_reading_a_shape_is_not_a_use() -> None:
    def between(x: Tensor) -> Tensor:
        assert x.shape[1] == x.size(1) == 4
        assert x.dim() == x.ndim == 4
        assert x.is_floating_point()
        assert x.dtype == torch.float32
        return torch.relu(x)

    assert taps(trace(Between(between), INPUTS[:3], "activation"))["first"] == "relu"


@pytest.mark.parametrize("make", [lambda: nn.Sequential(norm(nn.BatchNorm2d(4)), nn.ReLU(inplace=True)), nn.ReLU])
def test_the_linear_tap_reads_the_bare_output(make: Callable[[], nn.Module]) -> None:
    model = Between(make())
    assert set(taps(trace(model, INPUTS[:3], "linear")).values()) == {""}
    same(read(model, tap="linear")["first"][1], model.bare())


def test_one_shared_activation_module() -> None:
    shared = nn.ReLU(inplace=True)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        shared,
        nn.Conv2d(3, 3, 3),
        norm(nn.BatchNorm2d(3)),
        shared,
        nn.Flatten(),
        nn.Linear(48, 4),
        shared,
    )
    equivalent = copy.deepcopy(model)
    for place in (1, 4, 7):
        equivalent[place] = nn.ReLU()
    got = read(model)
    for layer, expected in zip(["0", "2", "6"], hooked(equivalent, ["1", "4", "7"]), strict=True):
        same(got[layer][1], expected)


class OutOfOrder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 2, 1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.never = nn.Linear(3, 3)
        self.first = nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.twice(torch.relu(self.first(x))))
        return self.last(F.gelu(self.twice(x)))


def test_layers_come_in_running_order_and_each_call_counts() -> None:
    model = OutOfOrder()
    traced = trace(model.eval(), INPUTS[:3], "activation")
    assert taps(traced) == {"first": "relu", "twice": "tanh", "twice#2": "gelu", "last": ""}
    assert [one.layer.index for one in traced.layers] == [0, 1, 2, 3]
    assert reasons(traced) == {"never": "it was never called in the forward pass"}
    got = read(model)
    with torch.no_grad():
        first = torch.relu(model.first(INPUTS))
        once = torch.tanh(model.twice(first))
        twice = F.gelu(model.twice(once))
    for layer, given, output in [("first", INPUTS, first), ("twice", first, once), ("twice#2", once, twice)]:
        same(got[layer][0], given)
        same(got[layer][1], output)
    same(got["last"][0], twice)


def test_some_calls_of_a_shared_layer_can_be_tapped_alone() -> None:
    model = OutOfOrder().eval()
    expected = read(model)["twice#2"]
    chosen = [one for one in trace(model, INPUTS[:3], "activation").layers if one.layer.name == "twice#2"]
    got: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad(), tapped(model, chosen, lambda _, given, output: got.append((given, output))) as running:
        running.run(INPUTS)
    [(given, output)] = got
    same(given, expected[0])
    same(output, expected[1])


class Mixed(nn.Module):
    """Layers of types that are not measured, beside one that is."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 6)
        self.memory = nn.LSTM(6, 5, batch_first=True)
        self.scale = nn.Parameter(torch.ones(5))
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.memory(self.words(x))
        return self.head(self.norm(states * self.scale))


def test_layers_of_other_types_are_reported_with_their_parameters() -> None:
    tokens = torch.randint(10, (5, 4))
    model = Mixed().eval()
    traced = trace(model, tokens[:3], "activation")
    assert names(traced) == ["head"]
    assert traced.layers[0].layer.spatial == (4,)
    assert set(reasons(traced)) == {"(model)", "words", "memory"}
    assert "Embedding" in reasons(traced)["words"]
    assert "LSTM" in reasons(traced)["memory"]
    assert "weight_ih_l0" in reasons(traced)["memory"]
    assert "scale" in reasons(traced)["(model)"]
    same(read(model, tokens)["head"][1], hooked(model, ["head"], tokens)[0])


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.kernel))


def test_the_error_lists_the_modules_of_a_model_without_measurable_layers() -> None:
    with pytest.raises(ModelError, match=r"no layer can be measured.*Functional.*kernel"):
        trace(Functional(), INPUTS[:3], "activation")
    with pytest.raises(ModelError, match=r"the model has LSTM"):
        trace(nn.LSTM(8, 3), torch.randn(3, 4, 8), "activation")
    with pytest.raises(ModelError, match="no layer can be measured"):
        trace(nn.Identity(), INPUTS[:3], "activation")


def test_a_model_that_is_one_layer() -> None:
    traced = trace(nn.Conv2d(2, 3, 3), INPUTS[:3], "activation")
    assert names(traced) == ["(model)"]
    assert list(read(nn.Conv2d(2, 3, 3))) == ["(model)"]


class UNet(nn.Module):
    """Skip connections, strided and transposed convolutions, and activations as separate modules."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, padding=1)
        self.down_norm = norm(nn.BatchNorm2d(4))
        self.down_relu = nn.ReLU()
        self.strided = nn.Conv2d(4, 8, 2, stride=2)
        self.strided_relu = nn.LeakyReLU(0.1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.up_relu = nn.ReLU()
        self.merge = nn.Conv2d(8, 4, 3, padding=1)
        self.merge_norm = norm(nn.BatchNorm2d(4))
        self.merge_relu = nn.ReLU()
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Any:
        skip = self.down_relu(self.down_norm(self.down(x)))
        x = self.up_relu(self.up(self.strided_relu(self.strided(skip))))
        return self.out(self.merge_relu(self.merge_norm(self.merge(torch.cat([skip, x], 1)))))


class FunctionalUNet(UNet):
    """The same with functions in place, and a dictionary as output."""

    def forward(self, x: Tensor) -> Any:
        skip = F.relu(self.down_norm(self.down(x)), inplace=True)
        x = self.up(F.leaky_relu_(self.strided(skip), 0.1)).relu_()
        x = self.merge_norm(self.merge(torch.cat((skip, x), dim=1))).clamp_(min=0)
        return {"masks": self.out(x), "features": (skip, x)}


@pytest.mark.parametrize("kind", [UNet, FunctionalUNet])
def test_unet_values_are_those_of_plain_hooks(kind: type[UNet]) -> None:
    torch.manual_seed(0)
    reference = UNet()
    model = kind()
    model.load_state_dict(reference.state_dict())
    got = read(model)
    assert list(got) == ["down", "strided", "up", "merge", "out"]
    followed = ["down_relu", "strided_relu", "up_relu", "merge_relu", "out"]
    for layer, expected in zip(got, hooked(reference, followed), strict=True):
        same(got[layer][1], expected)


class Block(nn.Module):
    """A residual block: the sum in place or not, an activation behind it."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.relu = nn.ReLU(inplace=in_place)
        self.conv1, self.bn1 = nn.Conv2d(2, 2, 3, padding=1), norm(nn.BatchNorm2d(2))
        self.conv2, self.bn2 = nn.Conv2d(2, 2, 3, padding=1), norm(nn.BatchNorm2d(2))
        self.shortcut = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        identity = self.shortcut(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.in_place:
            out += identity
        else:
            out = out + identity
        return self.relu(out)


@pytest.mark.parametrize("in_place", [False, True])
def test_residual_blocks_are_read_before_the_sum(in_place: bool) -> None:
    torch.manual_seed(0)
    model = Block(in_place)
    got = read(model)
    traced = trace(model, INPUTS[:3], "activation")
    assert taps(traced) == {"shortcut": "", "conv1": "batch_norm > relu", "conv2": "batch_norm"}
    with torch.no_grad():
        same(got["conv1"][1], model.bn1(model.conv1(INPUTS)).relu())
        same(got["conv2"][1], model.bn2(model.conv2(got["conv2"][0])))
        same(got["shortcut"][1], model.shortcut(INPUTS))


class Returns(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(2, 3, 3), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(torch.relu(self.conv(x)))


@pytest.mark.parametrize("wrap", [lambda x: (x, 1), lambda x: {"out": [x]}, lambda x: None, lambda x: [x, {"y": x}]])
def test_what_a_model_returns_does_not_matter(wrap: Callable[[Tensor], Any]) -> None:
    model = Returns(wrap)
    with torch.no_grad():
        same(read(model)["conv"][1], model.conv(INPUTS).relu())


class Sequence(nn.Module):
    """Inputs (B, T, F), turned by ``before`` ahead of a linear layer."""

    def __init__(self, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.before, self.inner = nn.Linear(4, 5), before, nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.before(self.enter(x)))


def test_linear_layers_on_sequences() -> None:
    inputs = torch.randn(5, 6, 4)
    model = Sequence(torch.relu)
    got = read(model, inputs)
    same(got["inner"][1], hooked(model, ["inner"], inputs)[0])
    layers = [one.layer for one in trace(model, inputs[:3], "activation").layers]
    assert [(one.spatial, one.channels, one.patch_size, one.input_size) for one in layers] == [
        ((6,), 5, 4, 24),
        ((6,), 6, 5, 30),
    ]


@pytest.mark.parametrize("steps", [2, 3, 6], ids="{} steps".format)
@pytest.mark.parametrize("before", [lambda x: x.transpose(0, 1), lambda x: x.flatten(0, 1)], ids=["turned", "folded"])
def test_layers_whose_batch_is_not_first_are_skipped(before: Callable[[Tensor], Tensor], steps: int) -> None:
    """Also if another dimension happens to have the size of the traced batch."""
    traced = trace(Sequence(before), torch.randn(3, steps, 4), "activation")
    assert names(traced) == ["enter"]
    assert "is not the batch of 3 inputs" in reasons(traced)["inner"]


class Unbatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.stack([self.inner(one) for one in x.unbind()]))


def test_a_convolution_called_without_a_batch_is_skipped() -> None:
    model = Unbatched()
    # One call an input: the trace sees as many calls as it has inputs.
    with pytest.raises(ModelError, match="depend on the data"):
        trace(model, INPUTS[:3], "activation")
    traced = trace(model, INPUTS[:1], "activation")
    assert names(traced) == ["outer"]
    assert "without a batch dimension" in reasons(traced)["inner"]


class Flat(nn.Module):
    """A convolution over the whole batch at once, without a batch dimension of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv1d(2, 2, 3, padding=1), nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        strip = x.transpose(0, 1).flatten(1)
        return self.outer(self.inner(strip).view(2, len(x), *x.shape[2:]).transpose(0, 1))


def test_a_convolution_over_the_whole_batch_is_skipped() -> None:
    traced = trace(Flat(), INPUTS[:3], "activation")
    assert names(traced) == ["outer"]
    assert "without a batch dimension" in reasons(traced)["inner"]


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal, nn.utils.weight_norm],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_layers_with_reparametrized_weights(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Conv2d(2, 4, 3)), nn.ReLU(), wrap(nn.ConvTranspose2d(4, 3, 2))).eval()
    traced = trace(model, INPUTS[:3], "activation")
    assert [one.layer.kind for one in traced.layers] == ["Conv2d", "ConvTranspose2d"]
    assert taps(traced) == {"0": "relu", "2": ""}
    assert traced.skipped == ()
    assert traced.layers[0].layer.weight_norm == pytest.approx(model[0].weight.norm().item(), rel=1e-6)
    for place, hook in [("0", "1"), ("2", "2")]:
        same(read(model)[place][1], hooked(model, [hook])[0])


def test_other_layers_with_reparametrized_weights_are_still_reported() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.GRUCell(6, 5))
    parametrizations.weight_norm(model[1], "weight_hh")
    traced = trace(model, torch.randn(3, 4), "activation")
    assert names(traced) == ["0"]
    assert set(reasons(traced)) == {"1"}
    assert "weight_hh" in reasons(traced)["1"]


class Adapted(nn.Linear):
    """A layer that returns the output of another one."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x)


def test_a_layer_that_calls_another_one() -> None:
    inputs = torch.randn(5, 4)
    model = nn.Sequential(Adapted(nn.Linear(4, 3)), nn.ReLU())
    got = read(model, inputs)
    [expected] = hooked(model, ["1"], inputs)
    assert set(got) == {"0", "0.base"}
    for _, output in got.values():
        same(output, expected)


def test_lazy_layers_are_measured_once_they_know_their_input() -> None:
    model = nn.Sequential(nn.LazyConv2d(3, 3), nn.ReLU(), nn.LazyConvTranspose2d(2, 2)).eval()
    with torch.no_grad():
        model(INPUTS)
    traced = trace(model, INPUTS[:3], "activation")
    assert [one.layer.kind for one in traced.layers] == ["Conv2d", "ConvTranspose2d"]
    assert [one.layer.patch_size for one in traced.layers] == [2 * 9, 3 * 4]


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("wrap", [Wrapper, nn.DataParallel])
def test_a_wrapped_model(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    inner = UNet()
    got = read(wrap(inner))
    assert list(got) == ["module.down", "module.strided", "module.up", "module.merge", "module.out"]
    same(got["module.merge"][1], hooked(inner, ["merge_relu"])[0])


def test_a_compiled_model_runs_as_it_was_written() -> None:
    compilations: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        compilations.append(1)
        return graph

    inner = UNet().eval()
    expected = hooked(copy.deepcopy(inner), ["merge_relu"])
    model = torch.compile(inner, backend=backend)
    for compiled in (False, True):
        if compiled:
            with torch.no_grad():
                model(INPUTS)
            assert compilations
        before = len(compilations)
        got = read(model)
        assert list(got) == [f"_orig_mod.{name}" for name in ("down", "strided", "up", "merge", "out")]
        same(got["_orig_mod.merge"][1], expected[0])
        assert len(compilations) == before


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(3, 2, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(output_size=[14, 14], input=F.relu(input=self.conv(input=x)))


def test_layers_called_by_keyword() -> None:
    model = ByKeyword()
    got = read(model)
    with torch.no_grad():
        expected = model.conv(INPUTS).relu()
        same(got["conv"][0], INPUTS)
        same(got["conv"][1], expected)
        same(got["up"][0], expected)
        same(got["up"][1], model.up(expected, output_size=[14, 14]))


class Overwrites(nn.Module):
    """Writes into the first layer's input: after the layer, or after its activation."""

    def __init__(self, late: bool, under_inference: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.zero, self.conv, self.late, self.under_inference = (
            nn.Conv2d(2, 2, 1),
            nn.Conv2d(2, 2, 1),
            late,
            under_inference,
        )

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode(self.under_inference):
            x = self.zero(x)
            y = self.conv(x)
            if not self.late:
                x.view(-1)[::2].add_(1.0)
            y = torch.relu(y)
            x.mul_(2.0)
            return x + y


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("under_inference", [False, True])
def test_an_input_that_the_model_overwrites_is_the_one_that_the_layer_read(late: bool, under_inference: bool) -> None:
    model = Overwrites(late, under_inference)
    with torch.no_grad():
        expected = model.zero(INPUTS)
        got = read(model)["conv"]
        same(got[0], expected)
        same(got[1], model.conv(expected).relu())
    copied = [one.copy_input for one in trace(model, INPUTS[:3], "activation").layers]
    # Nothing is copied without need, where writing can be followed.
    assert copied == [False, not late or under_inference]
    assert not any(one.copy_input for one in trace(model, INPUTS[:3], "linear").layers)


class Data(nn.Module):
    """A forward pass that depends on whether the mean of the inputs is above zero."""

    def __init__(self, otherwise: Callable[[Data, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.more = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.otherwise = otherwise

    def forward(self, x: Tensor) -> Tensor:
        return self.otherwise(self, x) if x.mean() > 0 else self.more(torch.relu(self.conv(x)))


@pytest.mark.parametrize(
    "otherwise",
    [
        lambda model, x: torch.relu(model.conv(x)),
        lambda model, x: model.more(torch.relu(model.conv(model.conv(x)))),
        lambda model, x: model.more(model.more(torch.relu(model.conv(x)))),
        lambda model, x: model.more(torch.tanh(model.conv(x))),
        lambda model, x: model.more(model.conv(x)),
        lambda model, x: model.more(torch.relu(model.conv(x[:, :, 1:]))),
        lambda model, x: model.more(torch.relu(model.conv(x[1:]))),
        lambda model, x: x,
    ],
    ids=[
        "a layer less",
        "a call between",
        "a call more",
        "other activation",
        "no activation",
        "other size",
        "other batch",
        "nothing",
    ],
)
def test_a_forward_pass_that_depends_on_the_data_is_an_error(otherwise: Callable[[Data, Tensor], Tensor]) -> None:
    model = Data(otherwise).eval()
    low, high = INPUTS - 10, INPUTS + 10
    traced = trace(model, low[:3], "activation")
    with torch.no_grad(), tapped(model, traced.layers, lambda *_: None) as running:
        running.run(low)
        with pytest.raises(ModelError, match=r"depend on the data|expected an output of shape") as caught:
            running.run(high)
        assert "rejects" not in str(caught.value)
        running.run(low)


class Squeezes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 8), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).squeeze())


def test_a_batch_of_one_that_is_squeezed_away_is_an_error_naming_the_layer() -> None:
    got: list[str] = []
    model = Squeezes()
    with (
        torch.no_grad(),
        tapped(
            model, trace(model, INPUTS[:3], "activation").layers, lambda one, *_: got.append(one.layer.name)
        ) as running,
    ):
        running.run(INPUTS)
        with pytest.raises(ModelError, match=r"expected an output of shape \(1, 2\) from layer head .*, got \(2,\)"):
            running.run(INPUTS[:1])
    assert got == ["conv", "head", "conv"]


class Careful(nn.Module):
    """Continues if its layer fails."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return torch.relu(self.conv(x))
        except Exception:
            return x


class Watched(nn.Module):
    """Counts the calls of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = FunctionalUNet()
        self.begun: list[str] = []
        for name, module in self.inner.named_children():
            module.register_forward_pre_hook(lambda *_, name=name: self.begun.append(name))

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


def test_a_pass_can_end_with_the_last_requested_layer() -> None:
    model = Watched().eval()
    whole = read(model)
    traced = trace(model, INPUTS[:3], "activation")
    chosen = [one for one in traced.layers if one.layer.name in ("inner.strided", "inner.down")]
    got: dict[str, Tensor] = {}
    with (
        torch.no_grad(),
        tapped(model, chosen, lambda one, _, x: got.update({one.layer.name: x.clone()}), True) as running,
    ):
        for _ in range(2):
            model.begun.clear()
            got.clear()
            running.run(INPUTS)
            assert model.begun == ["down", "down_norm", "strided"]
            assert set(got) == {"inner.down", "inner.strided"}
            for name, output in got.items():
                same(output, whole[name][1])


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("tap", ["activation", "linear"])
def test_an_error_of_the_receiver_is_not_lost_if_the_pass_ends_early(tap: str, size: int) -> None:
    """The model continues after an error in its first layer; the pass ends with the second layer or a shape error."""
    model = nn.Sequential(Careful(), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)).eval()
    model[0].conv = nn.Conv2d(2, 2, size)
    chosen = trace(model, INPUTS[:3], tap).layers[:2]
    error = ZeroDivisionError()

    def receive(one: TracedLayer, *_: object) -> None:
        if one.layer.index == 0:
            raise error

    with torch.no_grad(), tapped(model, chosen, receive, stop=True) as running, pytest.raises(ZeroDivisionError):
        running.run(INPUTS)


@pytest.mark.parametrize("make", [Careful, lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())])
@pytest.mark.parametrize(
    "error", [RuntimeError("own"), ModelError("own"), ZeroDivisionError("own"), AttributeError("own")]
)
@pytest.mark.parametrize("tap", ["activation", "linear"])
def test_an_error_of_the_receiver_is_raised_unchanged(
    make: Callable[[], nn.Module], error: Exception, tap: str
) -> None:
    model = make().eval()
    fail = True

    def receive(*_: object) -> None:
        if fail:
            raise error

    with torch.no_grad(), tapped(model, trace(model, INPUTS[:3], tap).layers, receive) as running:
        with pytest.raises(type(error)) as caught:
            running.run(INPUTS)
        assert caught.value is error
        fail = False
        running.run(INPUTS)
        with pytest.raises(ModelError, match=r"rejects|depend"):
            running.run(INPUTS[:, :1])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("sizes\nmore"),
        ValueError("sizes"),
        AttributeError("sizes"),
        StopIteration("sizes"),
        OSError("sizes"),
    ],
)
def test_an_error_of_the_model_describes_the_inputs(error: Exception) -> None:
    def refuse(x: Tensor) -> Tensor:
        raise error

    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    model[0].register_forward_pre_hook(lambda *_: refuse(INPUTS))
    with pytest.raises(ModelError, match=r"rejects a batch of shape \(3, 2, 8, 8\), float32: (\w+: )?sizes$") as caught:
        trace(model, INPUTS[:3], "activation")
    assert caught.value.__cause__ is error


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_hooks_are_removed_and_those_of_the_user_are_kept() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    traced = trace(model, INPUTS[:3], "activation")
    assert hook_count(model) == 1
    with pytest.raises(ZeroDivisionError), tapped(model, traced.layers, lambda *_: None):
        raise ZeroDivisionError
    assert hook_count(model) == 1
    with pytest.raises(ModelError, match="rejects"):
        trace(model, INPUTS[:3, :1], "activation")
    assert hook_count(model) == 1
    before = len(calls)
    with tapped(model, traced.layers, lambda *_: None) as running:
        running.run(INPUTS)
    assert len(calls) == before + 1


def test_an_output_that_a_hook_of_the_user_replaces_is_read_as_replaced() -> None:
    model = Between(nn.ReLU())
    model.first.register_forward_hook(lambda _, __, output: output - 1)
    got = read(model)
    with torch.no_grad():
        same(got["first"][1], model.first(INPUTS).relu())
        same(got["second"][0], got["first"][1])


def test_the_receiver_may_use_tensor_functions_of_any_kind() -> None:
    """They are not part of the model's forward pass."""
    model = Between(nn.Sequential(nn.ReLU(), nn.Dropout()))
    seen: list[str] = []

    def receive(one: TracedLayer, given: Tensor, output: Tensor) -> None:
        seen.append(one.layer.name)
        torch.relu(F.batch_norm(output, output.new_zeros(output.shape[1]), output.new_ones(output.shape[1])))
        given.relu().clamp(min=1)

    for tap in ("activation", "linear"):
        with torch.no_grad(), tapped(model, trace(model, INPUTS[:3], tap).layers, receive) as running:
            running.run(INPUTS)
    assert seen == ["first", "second"] * 2


def test_tensors_of_a_layer_do_not_outlive_their_use() -> None:
    stages = [stage for _ in range(6) for stage in (nn.Conv2d(2, 2, 1), norm(nn.BatchNorm2d(2)), nn.ReLU())]
    model = nn.Sequential(*stages).eval()
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def receive(_: TracedLayer, __: Tensor, output: Tensor) -> None:
        nonlocal most
        alive.append(weakref.ref(output))
        most = max(most, sum(one() is not None for one in alive))

    with torch.inference_mode(), tapped(model, trace(model, INPUTS[:3], "activation").layers, receive) as running:
        running.run(INPUTS)
    assert len(alive) == 6
    assert most <= 2


def test_tensors_are_released_if_the_model_fails() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), norm(nn.BatchNorm2d(2)), nn.Flatten(), nn.Linear(128, 2))
    made: list[weakref.ref[Tensor]] = []
    model[0].register_forward_hook(lambda *given: made.append(weakref.ref(given[-1])))
    traced = trace(model, INPUTS[:3], "activation")
    model[1].register_forward_pre_hook(lambda *_: torch.zeros(1).view(2))
    with tapped(model, traced.layers, lambda *_: None) as running:
        with torch.no_grad(), pytest.raises(ModelError, match="rejects"):
            running.run(INPUTS)
        gc.collect()
        assert made[-1]() is None


def test_attention_is_reported_and_the_layers_around_it_measured() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(5, 6, 8)
    model = nn.Sequential(
        nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)
    ).eval()
    traced = trace(model, inputs[:3], "activation")
    assert taps(traced) == {"0": "", "1.linear1": "relu", "1.linear2": "", "2": ""}
    assert set(reasons(traced)) == {"1.self_attn", "1.self_attn.out_proj"}
    got = read(model, inputs)
    same(got["1.linear2"][0], got["1.linear1"][1])
    with torch.no_grad():
        torch.testing.assert_close(got["2"][1], model(inputs))


def test_a_single_input_is_enough() -> None:
    got = read(UNet(), INPUTS, example=INPUTS[:1])
    assert list(got) == ["down", "strided", "up", "merge", "out"]


def test_tracing_changes_neither_inputs_nor_outputs() -> None:
    model = FunctionalUNet().eval()
    inputs = INPUTS.clone()
    with torch.no_grad():
        expected = model(inputs)["masks"]
    read(model, inputs)
    same(inputs, INPUTS)
    with torch.no_grad():
        same(model(inputs)["masks"], expected)


class Live(TorchDispatchMode):
    """Peak memory in bytes of the tensors created inside."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return made


def _deep(layers: int, norm: bool, residual: bool) -> nn.Module:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(layers))
            self.norms = nn.ModuleList(nn.BatchNorm2d(8) if norm else nn.Identity() for _ in range(layers))

        def forward(self, x: Tensor) -> Tensor:
            for conv, one in zip(self.convs, self.norms, strict=True):
                made = torch.relu(one(conv(x)))
                x = x + made if residual else made
            return x

    return Deep().eval()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_a_trace_holds_no_more_tensors_than_a_pass(norm: bool, residual: bool) -> None:
    """A pass holds the tensors of one of twelve layers; a trace also holds some elements of each layer."""
    model, x = _deep(12, norm, residual), torch.randn(3, 8, 320, 320)
    with torch.no_grad():
        with Live() as bare:
            model(x)
        with Live() as traced_:
            assert len(trace(model, x, "activation").layers) == 12
    assert bare.peak >= 2 * x.nbytes
    # With the inputs of a pass: a trace makes a second batch.
    assert x.nbytes + traced_.peak <= 1.3 * (x.nbytes + bare.peak)


def test_an_input_that_is_overwritten_through_a_view_after_its_own_end() -> None:
    """Nothing but a view of the layer's input is left when it is written to."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            view, made = x.flatten(1), self.second(x)
            del x
            view.zero_()
            return torch.relu(made)

    layers = trace(Net().eval(), torch.randn(3, 2, 9, 9), "activation").layers
    assert [layer.copy_input for layer in layers] == [False, True]
