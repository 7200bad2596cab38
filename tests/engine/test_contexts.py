"""No value depends on the contexts of the caller, nor on those that a model enters in its forward pass."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.metrics import davies_bouldin_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import genmeasures
from genmeasures.contexts import settled
from genmeasures.extractors import ReceptiveField, WholeTensor
from genmeasures.interfaces import Measure
from genmeasures.labelers import Downsampled, Histogram, KMeans
from genmeasures.measures import Confidence, DaviesBouldin, Roughness
from genmeasures.registry import registry

TOLERANCE = 1e-5
"""Of float32 sums that come in another order; bfloat16 and float16 are off by a thousand times as much."""

ROWS = 36
CLASSES = torch.arange(ROWS) % 4
# Far from the origin, where half precision loses the most.
X = 3 + torch.randn(ROWS, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.3 * CLASSES[:, None, None, None]


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(72, 4),
        ).eval()  # fmt: skip


NETWORK = network()


def of_plugins() -> list[Measure]:
    """The measures of those plugins that are installed, made small."""
    options: dict[str, dict[str, Any]] = {
        "jacobian_norm": {"samples": 6},
        "layer_jacobian": {"samples": 6, "projections": 3},
        "ars": {"steps": 20, "starts": 2},
        "class_selectivity": {},
        "transition_count": {"points": 60, "curvature_points": 20, "trajectories": 2},
        "region_count": {"lines": 2, "resolution": 8},
        "reinitialization": {},
    }
    known = registry().names("measure")
    made = [registry().make("measure", name, given) for name, given in options.items() if name in known]
    if "cumulative_ablation" in known:
        score = registry().make("measure", "class_selectivity", {})
        made.append(registry().make("measure", "cumulative_ablation", {"score": score}))
    return made


def values(net: nn.Module = NETWORK, x: Tensor = X, classes: Tensor = CLASSES) -> dict[str, xr.Dataset]:
    """Every measure, labeler and extractor, and inputs by tiles."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(3, (ROWS, 1, 8, 8), generator=generator, device="cpu")
    continuous = torch.rand(ROWS, 2, generator=generator, dtype=torch.float32, device="cpu")
    data, few = (x, classes), ReceptiveField(cap=300)
    scored = [DaviesBouldin(), Roughness(), Confidence(over="mixture")]
    runs: dict[str, tuple[Any, dict[str, Any]]] = {
        "pixels": (data, {"measures": [*scored, *of_plugins()]}),
        "whole": (data, {"measures": scored, "extractor": WholeTensor()}),
        "patches": (data, {"measures": [DaviesBouldin(space="patch"), Roughness(input_pca=4)]}),
        "gathered": (data, {"measures": [DaviesBouldin(KMeans(k=3), space="patch")], "extractor": few}),
        "masks": ((x, mask), {"measures": [DaviesBouldin(Downsampled("majority"), space="pixel")]}),
        "bins": ((x, continuous[:, :1]), {"measures": [DaviesBouldin(Histogram(3, "quantile"))]}),
        "quantized": ((x, continuous), {"measures": [DaviesBouldin(Histogram(3))]}),
        "tiles": (data, {"measures": ["davies_bouldin"], "layers": ["0"], "tile": 4}),
    }
    return {name: genmeasures.measure([net], given, given, **options) for name, (given, options) in runs.items()}


@pytest.fixture(scope="module")
def plain() -> dict[str, xr.Dataset]:
    found = values()
    for ds in found.values():
        statuses = [
            str(status) for name in ds.data_vars if str(name).endswith("_status") for status in ds[name].values.flat
        ]
        assert not [status for status in statuses if status.startswith("failed")]
    return found


def check(found: dict[str, xr.Dataset], expected: dict[str, xr.Dataset]) -> None:
    for run, ds in expected.items():
        for name in ds.data_vars:
            if ds[name].dtype.kind == "f":
                np.testing.assert_allclose(
                    found[run][name].values, ds[name].values, rtol=TOLERANCE, atol=1e-12, err_msg=f"{run} {name}"
                )
            else:
                np.testing.assert_array_equal(found[run][name].values, ds[name].values, err_msg=f"{run} {name}")


@contextlib.contextmanager
def switched(get: Callable[[], Any], switch: Callable[[Any], None], value: Any) -> Iterator[None]:
    before = get()
    switch(value)
    try:
        yield
    finally:
        switch(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """With all memory filled with NaN, too, before it is written to."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def warnings_raised() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def denormals_flushed() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def threads_in_autocast() -> Iterator[None]:
    """Layers are fitted in threads of their own, which have contexts of their own."""
    count = switched(torch.get_num_threads, torch.set_num_threads, 2)
    with count, torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        yield


def default_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    return switched(torch.get_default_dtype, torch.set_default_dtype, dtype)


def precision(name: str) -> AbstractContextManager[None]:
    return switched(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, name)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "default float64": lambda: default_dtype(torch.float64),
    "default float16": lambda: default_dtype(torch.float16),
    "default device": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "medium precision": lambda: precision("medium"),
    "high precision": lambda: precision("high"),
    "NumPy raises": lambda: np.errstate(all="raise"),
    "warnings raise": warnings_raised,
    "denormals are 0": denormals_flushed,
    "two threads": lambda: switched(torch.get_num_threads, torch.set_num_threads, 2),
    "two threads in autocast": threads_in_autocast,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_no_value_depends_on_the_contexts_of_the_caller(name: str, plain: dict[str, xr.Dataset]) -> None:
    with CONTEXTS[name]():
        check(values(), plain)


def test_models_and_data_may_be_made_in_inference_mode(plain: dict[str, xr.Dataset]) -> None:
    with torch.inference_mode():
        net, x, classes = network(), X.clone(), CLASSES.clone()
        check(values(net, x, classes), plain)
    check(values(net, x, classes), plain)
    assert all(parameter.is_inference() for parameter in net.parameters())


@pytest.mark.parametrize("make", [lambda data: data, lambda data: DataLoader(data, batch_size=9, shuffle=True)])
def test_data_are_read_whatever_the_default_device(make: Callable[[Any], Any]) -> None:
    data = TensorDataset(X, CLASSES)
    expected = genmeasures.measure([NETWORK], data, measures=["davies_bouldin"])
    with torch.device("meta"):
        found = genmeasures.measure([NETWORK], make(data), measures=["davies_bouldin"])
    np.testing.assert_allclose(found["davies_bouldin"].values, expected["davies_bouldin"].values, rtol=TOLERANCE)


def test_contexts_are_those_of_the_caller_again() -> None:
    def known() -> list[Any]:
        return [
            torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), torch.is_grad_enabled(), np.geterr(),
            torch.get_float32_matmul_precision(),
        ]  # fmt: skip

    usual = known()
    with (
        torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(), np.errstate(all="raise"),
        precision("medium"),
    ):  # fmt: skip
        before = known()
        assert all(one != other for one, other in zip(before, usual, strict=True))
        with contextlib.suppress(ZeroDivisionError), settled():
            expected = [False, False, True, {**np.geterr(), "under": "ignore"}, "highest"]
            assert known() == expected
            raise ZeroDivisionError
        assert known() == before
    assert known() == usual


# Models with contexts of their own -----------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Runs its convolution in half precision, as networks in production do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.conv(x).float()


def test_statistics_of_a_model_that_casts_are_not_cast() -> None:
    """Against scikit-learn on whole inputs as they were given: sums of them are made in the forward pass."""
    measure = DaviesBouldin(space="patch")
    ds = genmeasures.measure([Mixed()], (X, CLASSES), measures=[measure], extractor=WholeTensor())
    expected = davies_bouldin_score(X.double().flatten(1).numpy(), CLASSES.numpy())
    np.testing.assert_allclose(ds["davies_bouldin"].values.item(), expected, rtol=TOLERANCE)


class Force(nn.Module):
    """Differentiates within its forward pass, and keeps what it found."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.energy, self.last, self.head = nn.Linear(8, 6), nn.Linear(6, 1), nn.Linear(8, 4)

    def total(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.energy(x).tanh()).sum()
        return made

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            if self.how == "grad":
                (self.force,) = torch.autograd.grad(self.total(x), x, create_graph=True)
            elif self.how == "backward":
                self.total(x).backward()
                self.force = x.grad
            else:
                self.force = torch.func.grad(self.total)(x)
        return self.head(self.force)


@pytest.mark.parametrize("how", ["grad", "backward", "func"])
@pytest.mark.parametrize("outer", [torch.enable_grad, torch.inference_mode])
def test_models_that_differentiate_are_measured(how: str, outer: Callable[[], AbstractContextManager[Any]]) -> None:
    """Against scikit-learn on the features, which are known."""
    torch.manual_seed(0)
    net, x = Force(how), X.flatten(1)[:, :8].contiguous()
    with outer():
        ds = genmeasures.measure([net], (x, CLASSES), measures=[DaviesBouldin(space="pixel")])
    found = dict(zip(ds["layer_name"].values[0], ds["davies_bouldin"].values[0], strict=True))
    assert all(parameter.grad is None for parameter in net.parameters())
    expected = {"head": net(x), "energy": net.energy(x).tanh()}
    for name, features in expected.items():
        due = davies_bouldin_score(features.detach().double().numpy(), CLASSES.numpy())
        np.testing.assert_allclose(found[name], due, rtol=TOLERANCE)


class Interrupted(nn.Module):
    """Is interrupted by the keyboard at one of its calls."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.linear, self.left = nn.Linear(8, 4), call

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        self.linear.weight.data.mul_(2)
        self.kept: Tensor = self.linear(x)
        return self.kept


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_interrupted_measurement_leaves_the_model_as_it_was(call: int) -> None:
    net = Interrupted(call).train()
    weight, before = net.linear.weight.detach().clone(), net.linear.weight.data_ptr()
    with pytest.raises(KeyboardInterrupt):
        genmeasures.measure([net], (X.flatten(1)[:, :8], CLASSES), measures=["davies_bouldin"])
    assert (net.left, net.training, hasattr(net, "kept")) == (call, True, False)
    assert torch.equal(net.linear.weight, weight)
    assert net.linear.weight.data_ptr() == before
    assert not net.linear._forward_hooks
