"""Averages over starts, compared with plain loops and with a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ars_networks import data, images, layers, small
from genmeasures_ars import ARS
from numpy.typing import NDArray
from torch import nn

from genmeasures.plugin import Undefined, Value

X, _ = images()
STARTS, TRIES, STEPS, LENGTH = 3, 4, 6, 0.3


def first_with_a_response(part: nn.Module, draws: torch.Tensor, kernel: int) -> torch.Tensor:
    for draw in draws:
        if (part(draw[None])[0, kernel].detach().numpy() > 0).any():
            return draw
    return draws[0]


def ascent(part: nn.Module, x: torch.Tensor, kernel: int, objective: str) -> NDArray[np.float32]:
    """The maps (I, *spatial) of the highest point of an ascent of one kernel."""
    running, best, highest = torch.zeros_like(x), None, -math.inf
    for step in range(STEPS + 1):
        x = x.detach().requires_grad_()
        maps = part(x[None].clone())[0]
        means = [one.mean() for one in maps]
        value = means[kernel]
        if objective == "iam":
            value = value - sum(mean for other, mean in enumerate(means) if other != kernel) / len(means)
        if value.item() > highest:
            best, highest = maps.detach().numpy(), value.item()
        if step < STEPS:
            (gradient,) = torch.autograd.grad(value, x)
            running = running / 2 + gradient / gradient.square().mean().sqrt().clamp_min(1e-30) / 2
            x = x + LENGTH * running / running.square().mean().sqrt().clamp_min(1e-30)
    return best


def scores(maps: NDArray[np.float32], kernel: int) -> tuple[float, float, float]:
    """RS, AR and ARS by their definitions."""
    own = np.float64(maps[kernel]).mean()
    substitution = sum(np.float64(other).mean() > own for other in maps) / len(maps)
    entries = maps[kernel].ravel()
    response = sum(entry > 0 for entry in entries) / len(entries)
    return substitution, response, 2 / math.pi * math.atan(substitution / response) if response else 1.0


@pytest.mark.parametrize("objective", ["am", "iam"])
def test_against_plain_loops(objective: str) -> None:
    model = small(norm=True, seed=5)
    with torch.no_grad():
        model[0].bias -= 1.5  # some kernels respond to some noise inputs alone
    measure = ARS(objective, steps=STEPS, step_size=LENGTH, growth=0.0, starts=STARTS, tries=TRIES)
    found = measure.measure(model, layers(model, X), data(X, None, seed=2))
    generator = torch.Generator().manual_seed(2)
    noise = [torch.randn(TRIES, 2, 6, 6, generator=generator) for _ in range(STARTS)]
    for index, (part, channels) in enumerate(((model[:3], 5), (model[:6], 6))):
        expected = np.empty((3, STARTS, channels))
        for start in range(STARTS):
            for kernel in range(channels):
                begin = first_with_a_response(part, noise[start], kernel)
                expected[:, start, kernel] = scores(ascent(part, begin, kernel, objective), kernel)
        assert 0 < (expected[1] == 0).mean() < 1  # some have no response
        for name, values in zip(("rs", "ar", "ars"), expected, strict=True):
            layer = found[name][index]
            np.testing.assert_allclose(found[f"{name}_kernel"][index], values.mean(0), rtol=1e-12)
            np.testing.assert_allclose(
                found[f"{name}_kernel_error"][index], values.std(0, ddof=1) / math.sqrt(STARTS), rtol=1e-9, atol=1e-15
            )
            mean = layer.value if isinstance(layer, Value) else layer
            assert mean == pytest.approx(values.mean(), rel=1e-12)
            by_start = [float(np.mean(row)) for row in values]
            centered = [value - sum(by_start) / STARTS for value in by_start]
            spread = math.sqrt(sum(value**2 for value in centered) / (STARTS - 1) / STARTS)
            assert found[f"{name}_error"][index] == pytest.approx(spread, rel=1e-9, abs=1e-15)


def test_kernels_that_respond_to_some_starts_alone() -> None:
    """Two opposite kernels of one pixel: at each start one of them responds, and has ARS 0; the other has 1."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    x = torch.zeros(3, 1, 1, 1)
    results = ARS("am", steps=2, starts=6, tries=1).measure(model, layers(model, x), data(x, None, seed=1))
    generator = torch.Generator().manual_seed(1)
    negative = np.array([float(torch.randn(1, 1, 1, 1, generator=generator)) < 0 for _ in range(6)])
    assert 0 < negative.mean() < 1
    np.testing.assert_allclose(results["ars_kernel"][0], [negative.mean(), 1 - negative.mean()])
    np.testing.assert_allclose(results["ars_kernel_error"][0], negative.std(ddof=1) / math.sqrt(6))
    assert results["ars"][0] == Value(0.5, "2 of 2 kernels have no response from some of the starts")
    assert results["ars_error"][0] == 0.0


def test_more_starts_are_further_ones() -> None:
    """Of two starts the first is that of a single one."""
    model = small()
    one, two = (ARS(steps=4, starts=n).measure(model, layers(model, X), data(X, None))["ars_kernel"][1] for n in (1, 2))
    second = 2 * two - one
    assert ((second > -1e-12) & (second < 1 + 1e-12)).all()
    generator = torch.Generator().manual_seed(0)
    torch.randn(16, 2, 6, 6, generator=generator)
    follows = data(X, None)
    follows.generator.set_state(generator.get_state())
    alone = ARS(steps=4, starts=1).measure(model, layers(model, X), follows)["ars_kernel"][1]
    np.testing.assert_allclose(second, alone, atol=1e-12)


def test_a_single_start_has_no_spread() -> None:
    model = small()
    results = ARS(steps=2, starts=1).measure(model, layers(model, X), data(X, None))
    for name in ("ars", "rs", "ar", "ars_kernel", "rs_kernel", "ar_kernel"):
        assert isinstance(results[f"{name}_error"][0], Undefined)
        assert "a single start has no spread" in str(results[f"{name}_error"][0])
        assert not isinstance(results[name][0], Undefined)
