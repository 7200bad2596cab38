"""Models that are random in evaluation mode, or whose features depend on the batch: seeded, and said in the status."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from genmeasures_unet import ResidualUNet
from torch import Tensor, nn

import genmeasures
from genmeasures.engine.outcome import Outcome, noted
from genmeasures.errors import ModelError
from genmeasures.interfaces import ModelData, ModelMeasure, Variable
from genmeasures.tracing import trace
from genmeasures.tracing.repeat import BATCH, RANDOM, UNSEEDED

X, Y = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 4


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def measured(model: nn.Module, *, x: Tensor = X, **options: Any) -> xr.Dataset:
    settings = {"measures": ["davies_bouldin"], "batch_size": 16, **options}
    return genmeasures.measure({"net": model}, (x, Y[: len(x)]), **settings)


class Around(nn.Module):
    """Two convolutions with something between them, and a linear layer."""

    def __init__(self, between: Callable[..., Tensor], after: Callable[..., Tensor] = lambda x: x) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(256, 4)
        self.between, self.after = between, after

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.a(x).relu())
        return self.after(self.c(self.b(x).relu().flatten(1)))


class AlwaysDropout(nn.Dropout):
    """Whose eval() leaves it on: Monte Carlo dropout."""

    def train(self, mode: bool = True) -> AlwaysDropout:
        return super().train(True)


class StochasticDepth(nn.Module):
    """Leaves out its layer for one input in a hundred: seldom enough to be missed by looking at values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.rand(len(x), 1, 1, 1, device=x.device) > 0.01
        return x + self.layer(x) * keep


class HeldGenerator(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.source: Any = {
            "torch": torch.Generator,
            "python": random.Random,
            "numpy": np.random.default_rng,
            "legacy numpy": np.random.RandomState,
        }[kind]()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "torch":
            return x + torch.randn(x.shape, generator=self.source)
        draw = self.source.gauss if self.kind == "python" else self.source.normal
        return x * (1 + draw(0, 1))


def shifted(x: Tensor) -> Tensor:
    step = random.randrange(1, 8)
    return x.roll(step, -1)


def noisy(x: Tensor) -> Tensor:
    return x + torch.from_numpy(np.random.normal(size=x.shape)).to(x)  # noqa: NPY002


def cropped(x: Tensor) -> Tensor:
    row, column = torch.randint(0, 4, (2,)).tolist()
    return F.pad(x[:, :, row : row + 5, column : column + 5], (1, 2, 1, 2))


RANDOM_PARTS: dict[str, Callable[[], Callable[..., Tensor]]] = {
    "F.dropout": lambda: F.dropout,
    "F.dropout2d": lambda: F.dropout2d,
    "in place": lambda: lambda x: F.dropout(x, 0.3, inplace=True),
    "MC dropout": AlwaysDropout,
    "stochastic depth": StochasticDepth,
    "noise": lambda: lambda x: x + 0.1 * torch.randn_like(x),
    "bernoulli": lambda: lambda x: x * torch.bernoulli(torch.full_like(x, 0.9)),
    "random crop": lambda: cropped,
    "random pooling": lambda: nn.Sequential(nn.FractionalMaxPool2d(2, output_size=5), nn.Upsample(8)),
    "Python": lambda: shifted,
    "NumPy": lambda: noisy,
    **{f"own {kind}": lambda kind=kind: HeldGenerator(kind) for kind in ("torch", "python", "numpy", "legacy numpy")},
}


@pytest.mark.parametrize("part", RANDOM_PARTS)
def test_a_random_model_says_so_and_gives_the_same_values_again(part: str) -> None:
    model = Around(RANDOM_PARTS[part]())
    runs = [measured(model) for _ in range(2)]
    for ds in runs:
        names, status = list(ds.layer_name.values[0]), list(ds.davies_bouldin_status.values[0])
        # One part adds noise of its own, which makes a sum.
        added = "note: the output is read before its sum with others (tap: block reads it after that)"
        assert status[0] == (added if part == "own torch" else "ok"), names[0]
        assert dict(zip(names[-2:], status[-2:], strict=True)) == dict.fromkeys(["b", "c"], f"note: {RANDOM}")
    np.testing.assert_array_equal(runs[0].davies_bouldin.values, runs[1].davies_bouldin.values)
    other = measured(model, seed=1)
    assert other.davies_bouldin.values[0, -1] != runs[0].davies_bouldin.values[0, -1] or part == "stochastic depth"
    plain = measured(Around(nn.Identity()), seed=1)
    assert set(plain.davies_bouldin_status.values[0]) == {"ok"}


def test_the_global_generators_are_not_moved() -> None:
    def draws(x: Tensor) -> Tensor:
        x = x + torch.randn_like(x) + random.random()
        return x + float(np.random.normal())  # noqa: NPY002

    model = Around(draws)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(3), random.random(), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    measured(model)
    got = torch.rand(3), random.random(), np.random.rand(3)  # noqa: NPY002
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=0)
    assert got[1] == expected[1]
    np.testing.assert_array_equal(got[2], expected[2])


def test_a_generator_that_a_module_holds_is_not_moved() -> None:
    model = Around(HeldGenerator("torch"))
    before = model.between.source.get_state()  # type: ignore[union-attr]
    measured(model)
    assert torch.equal(model.between.source.get_state(), before)  # type: ignore[union-attr]


def test_one_seed_serves_all_passes_of_a_run() -> None:
    """Roughness reads the training data for a fit and the test data twice: inputs have the same features each time."""
    model = Around(F.dropout)
    runs = [measured(model, measures=["roughness", "confidence"], test=(X[:30], Y[:30])) for _ in range(2)]
    for name in ("roughness", "confidence"):
        np.testing.assert_array_equal(runs[0][name].values, runs[1][name].values)
        assert all(
            text.startswith("note: ") and text.endswith(RANDOM) for text in runs[0][f"{name}_status"].values[0][1:]
        )


def test_what_cannot_be_seeded_says_that_it_is_not_reproducible() -> None:
    count = itertools.count(1)
    model = Around(lambda x: x * (1 + next(count) % 7))
    status = measured(model).davies_bouldin_status.values[0]
    assert list(status) == ["ok", f"note: {UNSEEDED}", f"note: {UNSEEDED}"]


def reference(x: Tensor) -> Tensor:
    return x - x[:1]


def ghost(x: Tensor) -> Tensor:
    return x / x.abs().amax((0, 2, 3), keepdim=True)


class CrossAttention(nn.Module):
    """Attends over the batch, as set encoders and contrastive heads do."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return ((flat @ flat.T / 100).softmax(1) @ flat).view_as(x)


BATCH_PARTS: dict[str, Callable[[], Callable[..., Tensor]]] = {
    "centered": lambda: lambda x: x - x.mean(0, keepdim=True),
    "reference": lambda: reference,
    "largest": lambda: ghost,
    "attention": CrossAttention,
    "F.batch_norm": lambda: lambda x: F.batch_norm(x, None, None, training=True),
    "BatchNorm in training mode": lambda: TrainingNorm(4),
}


class TrainingNorm(nn.BatchNorm2d):
    """A batch norm that forgets about evaluation mode, and keeps its running statistics for itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True)


@pytest.mark.parametrize("part", BATCH_PARTS)
def test_features_that_depend_on_the_batch_are_said_in_the_status(part: str) -> None:
    between = BATCH_PARTS[part]()
    # Behind a pool: a normalization that directly follows a layer is read with it.
    ds = measured(Around(lambda x: between(F.avg_pool2d(x, 3, 1, 1))))
    expected = ["ok", f"note: {BATCH}", f"note: {BATCH}"]
    assert list(ds.davies_bouldin_status.values[0]) == expected
    assert np.isfinite(ds.davies_bouldin.values).all()


def test_a_normalization_by_batch_statistics_is_read_with_its_layer() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    for tap, expected in (("activation", ["ok", BATCH, BATCH]), ("linear", ["ok", "ok", BATCH])):
        ds = measured(model, extractor=genmeasures.extractors.ReceptiveField(tap=tap))
        assert [text.removeprefix("note: ") for text in ds.davies_bouldin_status.values[0]] == expected


def test_random_and_dependent_on_the_batch() -> None:
    model = Around(lambda x: x - x.mean(0, keepdim=True))
    model.after = F.dropout
    traced = trace(model.eval(), X[:3], "activation")
    assert [one.note for one in traced.layers] == ["", BATCH, BATCH]
    assert traced.note == f"{BATCH}; {RANDOM}"  # of the whole: the dropout comes behind the last layer


def test_dropout_in_place_behind_a_layer_is_not_of_its_features() -> None:
    """The layer's tensor is written over once it was read."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), AlwaysDropout(0.5, inplace=True), nn.Conv2d(4, 4, 3)
    )
    assert [one.note for one in trace(model.eval(), X[:3], "activation").layers] == ["", RANDOM]


def test_a_single_example_shows_randomness_too() -> None:
    assert [one.note for one in trace(Around(F.dropout).eval(), X[:1], "activation").layers] == ["", RANDOM, RANDOM]


def test_layers_that_are_left_out_at_random_are_an_error_that_says_so() -> None:
    class LayerDrop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return x if float(torch.rand(())) < 0.5 else self.b(x)

    # Half of the seeds show it in the trace, the others in a later batch.
    with pytest.raises(ModelError, match=r"ran other layers.*random in evaluation mode"):
        measured(LayerDrop(), batch_size=2)


class Mean(ModelMeasure):
    """Of the model's outputs on the test data."""

    name = "mean"
    variables = (
        Variable("mean_output", "mean output", 0, dims=()),
        Variable("mean_layer", "mean of a layer", 0),
    )

    def measure(self, model: nn.Module, layers: Any, data: ModelData) -> dict[str, Any]:
        with torch.no_grad():
            made = float(model(data.sample("train", 10)[0]).mean())
        return {"mean_output": made, "mean_layer": [made for _ in layers]}


def test_measures_of_the_model_are_seeded_and_carry_the_note() -> None:
    model = Around(F.dropout)
    one, other = (measured(model, measures=[Mean()]) for _ in range(2))
    assert float(one.mean_output[0]) == float(other.mean_output[0])
    assert str(one.mean_output_status.values[0]) == f"note: {RANDOM}"
    assert list(one.mean_layer_status.values[0]) == ["ok", f"note: {RANDOM}", f"note: {RANDOM}"]


def test_measures_of_a_sure_model_are_not_seeded() -> None:
    """What they draw from the global generators stays their own fault, which the conformance suite finds."""

    class Draws(ModelMeasure):
        name = "draws"
        variables = (Variable("draws", "a random number", 0, dims=()),)

        def measure(self, model: nn.Module, layers: Any, data: ModelData) -> dict[str, Any]:
            return {"draws": float(torch.rand(()))}

    model = Around(nn.Identity())
    assert len({float(measured(model, measures=[Draws()]).draws[0]) for _ in range(3)}) == 3


def test_a_random_model_is_refused_by_tiles() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), AlwaysDropout(), nn.Conv2d(4, 4, 3, padding=1))
    x = torch.randn(4, 3, 64, 64)
    with pytest.raises(ModelError, match=r"random in evaluation mode.*leave tile out"):
        measured(model, x=x, tile=32)
    assert set(measured(model[:1], x=x, tile=32).davies_bouldin_status.values[0]) == {"ok"}


def test_notes_are_added_to_a_status_with_a_value() -> None:
    assert noted(Outcome(1.0, "ok"), "X") == Outcome(1.0, "note: X")
    assert noted(Outcome(1.0, "note: A"), "X") == Outcome(1.0, "note: A; X")
    assert noted(Outcome(1.0, "ok"), "") == Outcome(1.0, "ok")
    for status in ("undefined: constant", "failed: resources: memory"):
        assert noted(Outcome(float("nan"), status), "X").status == status


# Healthy models never get a note ------------------------------------------------------------------------------


def vgg() -> nn.Module:
    def block(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(True), nn.MaxPool2d(2)]

    head = [nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 4)]
    return nn.Sequential(*block(3, 16), *block(16, 32), *head)


class Residual(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(size, size, 3, padding=1), nn.Conv2d(size, size, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(size), nn.BatchNorm2d(size)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.other(self.norm(self.one(x)).relu_()))
        y += x
        return y.relu_()


def resnet(depth: int = 8) -> nn.Module:
    blocks = [Residual(16) for _ in range(depth)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *blocks, *head)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.5, batch_first=True)
        self.embed, self.encoder, self.head = nn.Linear(24, 16), nn.TransformerEncoder(layer, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.flatten(2).transpose(1, 2).reshape(len(x), 8, 24))).mean(1))


class Large(nn.Module):
    """Activations of 1e6 and more, and a layer of what is left when they cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(192, 64), nn.Linear(64, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x.flatten(1)) * 1e6
        z = self.b(y)
        return self.c(z - F.linear(y, self.b.weight) - self.b.bias)


class FirstCall(nn.Module):
    """Makes its layer at the first call, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.made: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.made is None:
            self.made = nn.Conv2d(4, 2, 1).to(x)
        return self.made(self.a(x))


def trained_norms(model: nn.Module) -> nn.Module:
    """With running statistics and weights that are not those of the beginning."""
    model.train()
    with torch.no_grad():
        model(X)
    return model.eval()


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "VGG": lambda: trained_norms(vgg()),
    "ResNet": lambda: trained_norms(resnet()),
    "deep ResNet, untrained": lambda: resnet(30),
    "transformer": Transformer,
    "large activations": Large,
    "made at the first call": FirstCall,
    "RReLU": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.RReLU(), nn.Conv2d(4, 4, 3)),
    "instance norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_models_get_no_note(name: str, dtype: torch.dtype) -> None:
    model = HEALTHY[name]().to(dtype).eval()
    x = X[:3].to(dtype)
    if name == "large activations" and dtype == torch.float16:
        x = x * 1e-4  # float16 holds no more than 65,504
    for tap in ("activation", "linear"):
        traced = trace(model, x, tap)
        assert len(traced.layers) > 1
        assert [one.note for one in traced.layers] == [""] * len(traced.layers)
        assert traced.note == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_residual_unet_gets_no_note(dtype: torch.dtype) -> None:
    model = ResidualUNet(depth=3).to(dtype).eval()
    traced = trace(model, torch.randn(3, 1, 16, 16, 16).to(dtype), "activation")
    assert traced.note == ""
