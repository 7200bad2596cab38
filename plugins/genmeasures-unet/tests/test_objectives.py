"""Training objectives, compared with manual calculations, loops over voxels, and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from genmeasures_unet.objectives import (
    OBJECTIVES,
    balanced_bce,
    dice_and_bce,
    dice_loss,
    mean_square_error,
    regression_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from genmeasures.plugin import DataError


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


# One input of three voxels with probabilities 1/2, 1/4 and 3/4, the first two of the foreground.
BINARY = torch.tensor([[[logit(0.5), logit(0.25), logit(0.75)]]])
BINARY_MASK = torch.tensor([[1, 1, 0]])
# Two voxels of three classes, with probabilities (1/2, 1/4, 1/4) and (1/8, 1/8, 3/4), of classes 1 and 2.
THREE = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]).log().T[None]
THREE_MASK = torch.tensor([[1, 2]])


def test_binary_by_hand() -> None:
    # (1/4 + 9/16 + 9/16) / 3
    assert mean_square_error(BINARY, BINARY_MASK).item() == pytest.approx(11 / 24, rel=1e-6)
    # Foreground (ln 2 + ln 4) / 2, background ln 4; unbalanced it would be 5/3 ln 2.
    assert balanced_bce(BINARY, BINARY_MASK).item() == pytest.approx(1.75 * math.log(2), rel=1e-6)
    # 2 (1/2 + 1/4) = 3/2 over (1/4 + 1/16 + 9/16) + 2 = 23/8, each plus 1.
    assert dice_loss(BINARY, BINARY_MASK).item() == pytest.approx(1 - 2.5 / 3.875, rel=1e-6)
    assert dice_and_bce(BINARY, BINARY_MASK).item() == pytest.approx(1 - 2.5 / 3.875 + 1.75 * math.log(2), rel=1e-6)


def test_three_classes_by_hand() -> None:
    # Voxel 1: 1/4 + 9/16 + 1/16; voxel 2: 1/64 + 1/64 + 1/16; over 6.
    assert mean_square_error(THREE, THREE_MASK).item() == pytest.approx((0.875 + 0.09375) / 6, rel=1e-6)
    # Classes 1 and 2 are there, 0 is not.
    assert balanced_bce(THREE, THREE_MASK).item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2, rel=1e-6)
    # Class 1: (2 · 1/4 + 1) / (1/16 + 1/64 + 1 + 1); class 2: (2 · 3/4 + 1) / (1/16 + 9/16 + 1 + 1).
    ratios = (1.5 / (5 / 64 + 2), 2.5 / (10 / 16 + 2))
    assert dice_loss(THREE, THREE_MASK).item() == pytest.approx(1 - sum(ratios) / 2, rel=1e-6)


def loops(logits: NDArray[np.float64], mask: NDArray[np.int64]) -> dict[str, float]:
    """The objectives voxel by voxel: (B, C, voxels) and (B, voxels)."""
    inputs, channels, voxels = logits.shape
    squares: list[float] = []
    entropies: dict[int, list[float]] = {}
    ratios: list[float] = []
    for n in range(inputs):
        sums = {z: [0.0, 0.0] for z in range(1, max(channels, 2))}
        for v in range(voxels):
            z = int(mask[n, v])
            if channels == 1:
                one = 1 / (1 + math.exp(-logits[n, 0, v]))
                squares.append((one - z) ** 2)
                share = [1 - one, one]
            else:
                powers = [math.exp(value) for value in logits[n, :, v]]
                share = [power / sum(powers) for power in powers]
                squares.extend((p - (c == z)) ** 2 for c, p in enumerate(share))
            entropies.setdefault(z, []).append(-math.log(share[z]))
            for c, pair in sums.items():
                pair[0] += 2 * share[c] * (c == z)
                pair[1] += share[c] ** 2 + (c == z)
        ratios.extend((overlap + 1) / (total + 1) for overlap, total in sums.values())
    dice = 1 - sum(ratios) / len(ratios)
    bce = sum(sum(values) / len(values) for values in entropies.values()) / len(entropies)
    return {"mse": sum(squares) / len(squares), "bce": bce, "dice": dice, "dice_bce": dice + bce}


@st.composite
def cases(draw: st.DrawFn, channels: st.SearchStrategy[int]) -> tuple[Tensor, Tensor]:
    """Logits float64 and a mask in which classes can be absent."""
    count = draw(channels)
    size = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    inputs = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes = draw(st.lists(st.integers(0, max(count, 2) - 1), min_size=1, max_size=3))
    logits = rng.normal(0, 3, (inputs, count, *size))
    return torch.from_numpy(logits), torch.from_numpy(rng.choice(classes, (inputs, *size)))


@settings(deadline=None)
@given(cases(st.integers(1, 4)))
def test_objectives_match_loops_over_voxels(case: tuple[Tensor, Tensor]) -> None:
    logits, mask = case
    expected = loops(logits.flatten(2).numpy(), mask.flatten(1).numpy())
    for name, objective in OBJECTIVES.items():
        got = objective(logits, mask)
        assert got.shape == ()
        assert got.item() == pytest.approx(expected[name], rel=1e-10, abs=1e-12), name
        single = objective(logits.float(), mask)
        assert single.dtype == torch.float32
        assert single.item() == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


@settings(deadline=None)
@given(cases(st.just(1)))
def test_two_classes_equal_one_channel_of_their_difference(case: tuple[Tensor, Tensor]) -> None:
    logits, mask = case
    background = torch.linspace(-2, 2, logits.numel(), dtype=torch.float64).view_as(logits)
    both = torch.cat([background, logits + background], dim=1)
    for name, objective in OBJECTIVES.items():
        assert objective(both, mask).item() == pytest.approx(objective(logits, mask).item(), rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_gradients_are_right_and_finite_at_the_extremes(name: str, channels: int) -> None:
    objective = OBJECTIVES[name]
    rng = np.random.default_rng(0)
    mask = torch.from_numpy(rng.integers(0, max(channels, 2), (2, 3, 4)))
    logits = torch.from_numpy(rng.normal(0, 1, (2, channels, 3, 4))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(x, mask), [logits])

    signs = torch.from_numpy(rng.choice([-100.0, 100.0], (2, channels, 3, 4))).float()
    for mask_ in (mask, torch.zeros_like(mask), torch.ones_like(mask)):
        extreme = signs.clone().requires_grad_()
        value = objective(extreme, mask_)
        value.backward()
        assert torch.isfinite(value)
        assert extreme.grad is not None
        assert torch.isfinite(extreme.grad).all()


def test_cross_entropy_does_not_saturate() -> None:
    # Computed from probabilities in float32 it would be infinite, or cut off near 16.
    assert balanced_bce(torch.full((1, 1, 2), -100.0), torch.ones(1, 2).long()).item() == pytest.approx(100)
    logits = torch.tensor([100.0, -100.0]).view(1, 2, 1)
    assert balanced_bce(logits, torch.ones(1, 1).long()).item() == pytest.approx(200)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_correct_mask_has_the_lowest_loss(name: str, channels: int) -> None:
    mask = torch.tensor([[0, 1, 1, 0]])
    if channels == 1:
        right = torch.where(mask == 1, 50.0, -50.0)[:, None]
    else:
        right = 50 * torch.nn.functional.one_hot(mask, channels).movedim(-1, 1).float()
    assert OBJECTIVES[name](right, mask).item() == pytest.approx(0, abs=1e-6)
    assert OBJECTIVES[name](-right, mask) > OBJECTIVES[name](right / 100, mask) > 0.05


def test_dice_of_inputs_without_foreground_falls_with_the_foreground_predicted() -> None:
    mask = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    values = []
    for bias in (4.0, 0.0, -4.0, -50.0):
        logits = torch.full((1, 1, 4, 4, 4), bias, requires_grad=True)
        loss = dice_loss(logits, mask)
        loss.backward()
        values.append(loss.item())
        assert logits.grad is not None
        assert bool((logits.grad > 0).all()) or bias == -50
    assert values == sorted(values, reverse=True)
    assert values[1] == pytest.approx(16 / 17)  # 64 voxels of ½
    assert values[-1] == pytest.approx(0, abs=1e-6)


def test_dice_is_computed_per_input() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 5, 5, generator=generator)
    mask = torch.stack([torch.ones(5, 5), torch.zeros(5, 5), torch.eye(5)]).long()
    each = [dice_loss(logits[n : n + 1], mask[n : n + 1]).item() for n in range(3)]
    assert dice_loss(logits, mask).item() == pytest.approx(sum(each) / 3, rel=1e-6)


def test_bool_and_small_integer_masks_equal_int64() -> None:
    for kind in (torch.bool, torch.uint8, torch.int16):
        for objective in OBJECTIVES.values():
            assert objective(BINARY, BINARY_MASK.to(kind)) == objective(BINARY, BINARY_MASK)
            two = torch.cat([-BINARY, BINARY], dim=1)
            assert objective(two, BINARY_MASK.to(kind)) == objective(two, BINARY_MASK)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    ("logits", "mask", "message"),
    [
        (
            torch.zeros(2, 1, 4, 4),
            torch.zeros(2, 1, 4, 4).long(),
            r"expected a mask of shape \(2, 4, 4\).*got \(2, 1, 4, 4\)",
        ),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 1).long(), r"mask of shape \(2, 4, 4\)"),
        (torch.zeros(2, 1, 4), torch.full((2, 4), 2), r"0 to 1 for logits of 1 channel.*from 2 to 2"),
        (torch.zeros(2, 1, 4), torch.full((2, 4), 255), "from 255 to 255"),
        (torch.zeros(2, 3, 4), torch.full((2, 4), 3), "3 channel"),
        (torch.zeros(2, 3, 4), torch.full((2, 4), -1), "from -1"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 4), "class labels.*got torch.float32"),
        (torch.zeros(2, 3), torch.zeros(2).long(), r"expected logits of shape.*got \(2, 3\)"),
        (torch.zeros(1, 1, 2, 2, 2, 2), torch.zeros(1, 2, 2, 2, 2).long(), "1 to 3 spatial axes"),
        (torch.zeros(0, 1, 4), torch.zeros(0, 4).long(), "none of them empty"),
    ],
)
def test_mismatched_arguments_are_refused(name: str, logits: Tensor, mask: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        OBJECTIVES[name](logits, mask)


def test_regression() -> None:
    output, target = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]]), torch.tensor([[[1.0, 0.0], [2.0, 2.0]]])
    assert regression_error(output, target).item() == pytest.approx((0 + 4 + 1 + 9) / 4)
    with pytest.raises(DataError, match="that of the network's output"):
        regression_error(output, target[:, :1])
    with pytest.raises(DataError, match=r"torch\.int64"):
        regression_error(output, target.long())
