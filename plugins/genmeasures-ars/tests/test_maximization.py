"""Activation maximization, compared with closed forms and with single ascents."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from ars_networks import images, small, traced
from genmeasures_ars import ascend, begin_at, fitting_batch, strides, truncated
from genmeasures_ars.maximization import objective_of
from torch import nn

from genmeasures.plugin import ModelError

NOISE = torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(3))
LENGTHS = [0.1, 0.1, 0.1, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5]


def naive(
    model: nn.Module, upto: int, noise: torch.Tensor, kernel: int, objective: str, steps: Sequence[float]
) -> torch.Tensor:
    """The definition, for one kernel, through the layers of a Sequential."""
    x = noise[None].clone()
    v = torch.zeros_like(x)
    for length in steps:
        x.requires_grad_()
        h = model[:upto](x)[0].flatten(1).mean(1)
        others = sum(h[j] for j in range(len(h)) if j != kernel) / len(h)
        value = h[kernel] - (others if objective == "iam" else 0)
        (gradient,) = torch.autograd.grad(value, x)
        v = (v + gradient / gradient.square().mean().sqrt().clamp_min(1e-30)) / 2
        x = (x + length * v / v.square().mean().sqrt().clamp_min(1e-30)).detach()
    return x[0]


@pytest.mark.parametrize("objective", ["am", "iam"])
@pytest.mark.parametrize(("place", "upto"), [(0, 3), (1, 6)])
def test_batched_ascents_equal_single_ones(objective: str, place: int, upto: int) -> None:
    model = small(norm=True)
    layer = traced(model, NOISE)[place]
    kernels = torch.arange(layer.layer.channels)
    with truncated(model, layer) as run:
        start = NOISE[begin_at(run, NOISE)]
        together = ascend(run, start, kernels, objective, LENGTHS)
        chunks = [ascend(run, start[c], c, objective, LENGTHS) for c in kernels.split(2)]
    for kernel in kernels.tolist():
        alone = naive(model, upto, start[kernel], kernel, objective, LENGTHS)
        torch.testing.assert_close(together.inputs[kernel], alone, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(together.inputs, torch.cat([c.inputs for c in chunks]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(together.means, torch.cat([c.means for c in chunks]), rtol=1e-3, atol=1e-3)


def test_the_objective_of_am_rises() -> None:
    model = small()
    layer = traced(model, NOISE)[1]
    kernels = torch.arange(6)
    with truncated(model, layer) as run:
        start = NOISE[begin_at(run, NOISE)]
        values = torch.stack([ascend(run, start, kernels, "am", [0.05] * n).objective for n in (1, 5, 20, 60)])
    assert (values.diff(dim=0) > 0).all()


def test_a_linear_convolution_has_a_known_maximizer() -> None:
    """One output pixel and no activation: every step is along the kernel, which the input therefore resembles."""
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 6).eval()
    (layer,) = traced(model, NOISE)
    with truncated(model, layer) as run:
        reached = ascend(run, NOISE[:3], torch.arange(3), "am", strides(500, 0.1, 0.04))
        other = ascend(run, NOISE[:3], torch.arange(3), "iam", strides(500, 0.1, 0.04))
    weight = model.weight.detach()
    unit = weight / weight.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(reached.inputs, NOISE[:3] + 50 * unit, rtol=1e-3, atol=1e-3)
    contrast = weight - (weight.sum(0) - weight) / 3
    similar = nn.functional.cosine_similarity(other.inputs.flatten(1), contrast.flatten(1))
    assert (similar > 0.99).all()


def test_objectives_by_hand() -> None:
    means, kernels = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])
    assert float(objective_of(means, kernels, "am")) == 3
    assert float(objective_of(means, kernels, "iam")) == 2


def test_the_input_of_a_silent_kernel_does_not_move() -> None:
    model = small()
    with torch.no_grad():
        model[0].bias[1] = -1e3
    layer = traced(model, NOISE)[0]
    with truncated(model, layer) as run:
        begin = begin_at(run, NOISE)
        reached = ascend(run, NOISE[begin], torch.arange(5), "am", [0.1] * 5)
    assert torch.equal(reached.inputs[1], NOISE[0])


def test_ascents_begin_at_an_input_with_a_response() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    noise = torch.tensor([-1.0, -2.0, 3.0, 4.0]).reshape(4, 1, 1, 1)
    (layer,) = traced(model, noise)
    with truncated(model, layer) as run:
        assert begin_at(run, noise).tolist() == [2]


def test_later_layers_are_not_run() -> None:
    model = small()
    ran: list[nn.Module] = []
    example = images(3)[0]
    layer = traced(model, example)[0]
    model[4].register_forward_hook(lambda module, args, output: ran.append(module))
    with truncated(model, layer) as run:
        run(example)
    assert not ran


def test_no_gradient_is_an_error() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x.detach())

    model = Detached().eval()
    (layer,) = traced(model, NOISE)
    with truncated(model, layer) as run, pytest.raises(ModelError, match="no gradient"):
        ascend(run, NOISE[:3], torch.arange(3), "am", [0.1] * 2)


def test_batches_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    layer = traced(model, NOISE)[1]
    with truncated(model, layer) as run:
        batches = [fitting_batch(run, NOISE[:1], list(model.parameters()), n) for n in (1, 2**30)]
        monkeypatch.setattr("genmeasures_ars.maximization._CPU_BATCH", 2**30)
        unbounded = fitting_batch(run, NOISE[:1], list(model.parameters()), 2**20)
    assert batches == [1, 16]
    # Of each input the two layers' outputs, 4 bytes a number, are kept at least, and not ten times as much.
    kept = 4 * (5 * 36 + 6 * 9)
    assert 2**20 / (10 * kept) < unbounded < 2**20 / kept


def test_strides_cover_the_path_of_the_steps() -> None:
    lengths = strides(1500, 0.1, 0.04)
    assert sum(lengths) == pytest.approx(150)
    assert len(lengths) == 130
    assert lengths[:25] == [0.1] * 25
    behind = [sum(lengths[:index]) for index in range(len(lengths))]
    assert lengths[26:-1] == pytest.approx([0.04 * path for path in behind[26:-1]])
    assert strides(7, 0.5, 0.0) == [0.5] * 7


@pytest.mark.parametrize("objective", ["am", "iam"])
def test_strides_reach_what_single_steps_reach(objective: str) -> None:
    """The plain ascent, 1500 steps of one length along the gradient, as written in the paper."""
    model = small(norm=True)
    layer = traced(model, NOISE)[1]
    kernels = torch.arange(layer.layer.channels)
    with truncated(model, layer) as run:
        start = NOISE[begin_at(run, NOISE)]
        reached = ascend(run, start, kernels, objective, strides(1500, 0.1, 0.04))
        x = start.clone()
        for _ in range(1500):
            x.requires_grad_()
            means = model[:6](x).flatten(2).mean(2)
            (gradient,) = torch.autograd.grad(objective_of(means, kernels, objective).sum(), x)
            x = (x + 0.1 * gradient / gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()).detach()
        plain = objective_of(model[:6](x).flatten(2).mean(2), kernels, objective).detach().double()
    assert float(reached.objective.sum()) >= 0.99 * float(plain.sum())
    assert (reached.objective >= 0.9 * plain).all()


def test_the_best_input_of_the_path_is_kept() -> None:
    """A stride beyond the only input that the kernel responds to: max(0, 1 − |x − 1|) of x = 0.5 + 0.4, then 2.9."""

    class Tent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.ones_(self.conv.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.conv(torch.relu(1 - (x - 1).abs())))

    model = Tent().eval()
    start = torch.full((3, 1, 1, 1), 0.5)
    (layer,) = traced(model, start)
    with truncated(model, layer) as run:
        reached = ascend(run, start, torch.zeros(3, dtype=torch.int64), "am", [0.4, 2.0])
    torch.testing.assert_close(reached.inputs, torch.full((3, 1, 1, 1), 0.9))
    torch.testing.assert_close(reached.objective, torch.full((3,), 0.9).double())
    torch.testing.assert_close(reached.maps, torch.full((3, 1, 1), 0.9))


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1.0, 1e30])
def test_steps_do_not_depend_on_the_scale_of_the_gradient(scale: float) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)) * scale)
    start = torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    (layer,) = traced(model, start)
    with truncated(model, layer) as run:
        reached = ascend(run, start[:2], torch.arange(2), "am", [0.1])
    change = (reached.inputs - start[:2]).square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(change, torch.full((2,), 0.1), rtol=1e-4, atol=0)
