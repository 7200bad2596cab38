"""Networks of any floating-point type get inputs of their own type; features are float32 for all."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from genmeasures_unet import ResidualUNet
from torch import Tensor, nn

import genmeasures
from genmeasures.errors import ModelError
from genmeasures.interfaces import FeatureBatch, FeatureMeasure, Layer, ModelData, ModelMeasure, Pass, Variable
from genmeasures.tracing import fastest_layout, trace
from genmeasures.tracing.dtypes import input_dtype, inputs_as

HALVES = (torch.float16, torch.bfloat16)
TOLERANCES = {torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Of values, against those of the same network in float32."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1),
        nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 20), nn.ReLU(), nn.Linear(20, 4),
    ).eval()  # fmt: skip


@pytest.fixture
def data() -> Any:
    x, y = torch.randn(60, 1, 8, 8), torch.arange(60) % 4
    return x + y[:, None, None, None], y


def measured(model: nn.Module, data: Any, test: Any = None, **options: Any) -> xr.Dataset:
    return genmeasures.measure(
        {"net": model}, data, test, **{"measures": ["davies_bouldin"], "batch_size": 16, **options}
    )


class Features(FeatureMeasure):
    """Keeps the vectors and patches of each layer."""

    name = "features"
    variables = (Variable("features", "number of vectors", 0),)
    passes = (Pass("train", "vectors", "patches"),)

    def __init__(self, kept: Any = None) -> None:
        self.kept = kept

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._layer, self._parts = layer, list[tuple[Tensor, Tensor, Tensor]]()

    def update(self, batch: FeatureBatch) -> None:
        self._parts.append((batch.rank.clone(), batch.vectors.clone(), batch.patches.clone()))

    def compute(self) -> float:
        rank, *parts = (torch.cat(part) for part in zip(*self._parts, strict=True))
        self.kept.made[self._layer.name] = [part[rank.argsort()] for part in parts]
        return float(len(rank))


class Kept:
    """Survives the copies that the engine makes of a measure."""

    def __init__(self) -> None:
        self.made: dict[str, list[Tensor]] = {}

    def __copy__(self) -> Kept:
        return self

    def __deepcopy__(self, memo: Any) -> Kept:
        return self


def features(model: nn.Module, data: Any, **options: Any) -> tuple[dict[str, list[Tensor]], xr.Dataset]:
    kept = Kept()
    ds = measured(model, data, measures=[Features(kept)], **options)
    return kept.made, ds


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("given", [torch.float32, "own"])
def test_features_are_those_of_float32(data: Any, dtype: torch.dtype, given: Any) -> None:
    model = network()
    x = data[0].to(dtype).float()
    expected, plain = features(model, (x, data[1]))
    made, ds = features(copy.deepcopy(model).to(dtype), (x.to(dtype if given == "own" else given), data[1]))
    assert made.keys() == expected.keys()
    assert set(ds.features_status.values.ravel()) == {"ok"}
    for name, parts in made.items():
        for part, due in zip(parts, expected[name], strict=True):
            assert part.dtype == torch.float32
            torch.testing.assert_close(part, due, rtol=0, atol=TOLERANCES[dtype] * float(due.abs().max()))
    np.testing.assert_allclose(ds.weight_norm.values, plain.weight_norm.values, rtol=TOLERANCES[dtype])


def test_weight_norms_are_summed_in_double_precision() -> None:
    model = nn.Sequential(nn.Linear(200, 300)).to(torch.bfloat16)
    nn.init.constant_(model[0].weight, 1.0)  # in bfloat16 a sum of ones ends at 256
    ds = measured(model, (torch.randn(12, 200), torch.arange(12) % 3))
    assert float(ds.weight_norm[0, 0]) == pytest.approx(60_000**0.5, rel=1e-12)


class Gradient(ModelMeasure):
    """Norm of the gradient of the outputs by the inputs that a measure is given."""

    name = "gradient"
    variables = (Variable("gradient", "norm of a gradient", 0, dims=()), Variable("drawn", "mean output", 0, dims=()))

    def measure(self, model: nn.Module, layers: Any, data: ModelData) -> dict[str, Any]:
        x = data.sample("train", 10)[0].requires_grad_()
        with torch.enable_grad():
            (made,) = torch.autograd.grad(model(x).float().square().sum(), x)
        noise = torch.randn(x.shape, generator=data.generator)  # inputs of a measure's own making
        with torch.no_grad():
            return {"gradient": float(made.norm()), "drawn": float(model(noise).float().mean())}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_measures_of_features_and_of_the_model(data: Any, dtype: torch.dtype) -> None:
    model = network()
    measures = [Gradient(), "davies_bouldin", "roughness", "confidence"]
    expected, ds = (measured(one, data, data, measures=measures) for one in (model, copy.deepcopy(model).to(dtype)))
    for name in ("gradient", "drawn", "davies_bouldin"):
        np.testing.assert_allclose(ds[name].values, expected[name].values, rtol=2 * TOLERANCES[dtype], err_msg=name)
    for name in ("roughness", "confidence"):
        assert np.isfinite(ds[name].values).all()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_inputs_by_tiles(dtype: torch.dtype) -> None:
    model = ResidualUNet(dimensions=2, depth=2).eval().to(dtype)
    data = torch.randn(3, 1, 96, 96), torch.arange(3)
    whole, _ = features(model, data)
    tiled, ds = features(model, data, tile=32)
    before_sum = "note: the output is read before its sum with others (tap: block reads it after that)"
    assert set(ds.features_status.values.ravel()) == {"ok", before_sum}
    for name, parts in whole.items():
        for part, due in zip(tiled[name], parts, strict=True):
            torch.testing.assert_close(part, due, rtol=0, atol=TOLERANCES[dtype] * float(due.abs().max()))


def test_a_layout_is_chosen_in_any_type(data: Any) -> None:
    for dtype in (torch.float32, *TOLERANCES):
        model = network().to(dtype)
        with inputs_as(model, dtype):
            assert fastest_layout(model, data[0][:3]) == torch.channels_last


class Mixed(nn.Module):
    """Two parts in types of their own; what runs first was made last."""

    def __init__(self, first: torch.dtype, second: torch.dtype) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4).to(second)
        self.stem = nn.Linear(64, 8).to(first)
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x.flatten(1)).relu().to(self.second))


@pytest.mark.parametrize("first", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("second", [torch.float32, torch.float64, torch.float16])
def test_mixed_types_take_the_one_of_the_first_layer_that_runs(
    data: Any, first: torch.dtype, second: torch.dtype
) -> None:
    model = Mixed(first, second)
    assert input_dtype(model, lambda: data[0][:1]) == first
    assert set(measured(model, data).davies_bouldin_status.values.ravel()) == {"ok"}


class Stored(nn.Module):
    """Weights that are no parameters, and a layer without any."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(6, 64, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.w)  # type: ignore[arg-type]


def test_types_of_models_without_parameters_and_with_others() -> None:
    def example() -> Tensor:
        raise AssertionError("nothing needs to be run")

    assert input_dtype(nn.Flatten(), example) == torch.float32
    assert input_dtype(Stored(torch.float64), example) == torch.float64
    assert input_dtype(nn.Linear(2, 2, dtype=torch.complex128), example) == torch.float64
    whole = nn.Linear(2, 2)
    whole.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    assert input_dtype(whole.to(torch.float16), example) == torch.float16
    # A model that fails before its first layer is left to say so itself.
    broken = nn.Sequential(nn.Unflatten(1, (7, 7)), nn.Linear(7, 2).double(), nn.Linear(2, 2))
    assert input_dtype(broken, lambda: torch.zeros(1, 5)) == torch.float64


def test_token_ids_stay_whole_numbers() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 6), nn.Flatten(), nn.Linear(30, 3))
    data = torch.randint(10, (40, 5)), torch.arange(40) % 3
    expected = measured(model, data)
    for dtype, tolerance in TOLERANCES.items():
        ds = measured(copy.deepcopy(model).to(dtype), data)
        np.testing.assert_allclose(ds.davies_bouldin.values, expected.davies_bouldin.values, rtol=tolerance)


class Unsupported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(self.a(x)).abs()


class Spectral(nn.Module):
    """A layer with complex weights, for which there is no type of 16 bits on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w = nn.Linear(8, 8), nn.Parameter(torch.randn(5, 5, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(self.a(x)) @ self.w).to(x.dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("make", [Unsupported, Spectral])
def test_what_a_cpu_cannot_compute_in_half_precision_says_what_to_do(
    data: Any, dtype: torch.dtype, make: type[nn.Module]
) -> None:
    name = str(dtype).removeprefix("torch.")
    model = make()
    assert set(measured(model, data).davies_bouldin_status.values[0]) == {"ok"}
    with pytest.raises(ModelError, match=rf"rejects a batch .*{name}.*run it on a GPU, or pass model.float\(\)"):
        measured(model.to(dtype), data)


def test_an_error_names_the_type_that_reached_the_model(data: Any) -> None:
    with pytest.raises(ModelError, match=r"\(3, 1, 8, 8\), float64: "):
        measured(nn.Sequential(nn.Linear(5, 3)).double(), data)


def test_nothing_is_left_on_the_model(data: Any) -> None:
    model = network().double()
    own = model.register_forward_pre_hook(lambda module, args: None)
    measured(model, data)
    assert list(model._forward_pre_hooks) == [own.id]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


# Tensor subclasses -------------------------------------------------------------------------------------------


class Tagged(Tensor):
    """A tensor with a remark, as MONAI's MetaTensor: all that is made of it is tagged too, and has opinions."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.float, torch.isfinite, torch.linalg.vector_norm, torch.Tensor.flatten):
            raise TypeError(f"{func.__name__} of a tagged tensor")
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapping(Tensor):
    """A tensor that only holds another one, as distributed tensors do."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapping:
        made: Wrapping = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)  # type: ignore[attr-defined]
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(tensors: dict[str, Tensor], *_: Any) -> Wrapping:
        return Wrapping(tensors["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def unwrap(value: Any) -> Any:
            return value.inner if isinstance(value, Wrapping) else value

        made = func(*torch.utils._pytree.tree_map(unwrap, args), **torch.utils._pytree.tree_map(unwrap, kwargs or {}))
        return torch.utils._pytree.tree_map(lambda one: cls(one) if isinstance(one, Tensor) else one, made)


class Distributed(Wrapping):
    def full_tensor(self) -> Tensor:
        return self.inner


class Inside(nn.Module):
    """Makes tensors of a subclass in the midst of its forward pass."""

    def __init__(self, wrap: Any, unwrap: Any = lambda x: x) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(16, 4)
        self.wrap, self.unwrap = wrap, unwrap

    def forward(self, x: Tensor) -> Any:
        x = self.wrap(self.a(x).relu())
        x = self.unwrap(self.b(x).relu())
        return self.wrap(self.c(torch.nn.functional.adaptive_avg_pool2d(x, 2).reshape(len(x), -1)))


@pytest.mark.parametrize("tap", ["activation", "linear"])
@pytest.mark.parametrize("kind", [Tagged, Distributed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensor_subclasses_inside_the_model_are_read_as_plain_ones(
    data: Any, kind: type[Tensor], tap: str, dtype: torch.dtype
) -> None:
    def wrap(x: Tensor) -> Tensor:
        return x.as_subclass(Tagged) if kind is Tagged else Distributed(x)

    model = Inside(wrap, lambda x: x.inner if isinstance(x, Wrapping) else x)
    plain = Inside(lambda x: x)
    plain.load_state_dict(model.state_dict())
    options: Any = {"extractor": genmeasures.extractors.ReceptiveField(tap=tap)}
    expected, _ = features(plain, data, **options)
    made, ds = features(model.to(dtype), data, **options)
    assert set(ds.features_status.values.ravel()) == {"ok"}
    assert list(made) == ["a", "b", "c"]
    for name, parts in made.items():
        for part, due in zip(parts, expected[name], strict=True):
            assert type(part) is Tensor
            torch.testing.assert_close(part, due, rtol=1e-5, atol=1e-6)


def test_tensors_that_cannot_be_read_are_skipped_with_the_reason(data: Any) -> None:
    model = Inside(Wrapping, lambda x: x.inner).eval()
    traced = trace(model, data[0][:3], "activation")
    assert [one.layer.name for one in traced.layers] == ["a", "c"]
    assert dict(traced.skipped) == {"b": "its tensors are of type Wrapping, which cannot be converted to plain tensors"}


class Quantized(Wrapping):
    """A weight of integers that shows itself as floating point, as torchao has it."""

    def dequantize(self) -> Tensor:  # type: ignore[override]
        return self.inner


def test_weights_of_a_subclass_are_measured(data: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    expected = measured(model, data)
    weight = model[1].weight.detach()
    model[1].weight = nn.Parameter(Quantized(weight), requires_grad=False)
    model[1].forward = lambda x: F.linear(x, weight, model[1].bias)  # type: ignore[assignment]
    traced = trace(model.eval(), data[0][:3], "activation")
    assert traced.layers[0].layer.weight_norm == pytest.approx(float(expected.weight_norm[0, 0]), rel=1e-9)
