"""Predictions of whole volumes, compared with direct passes and with a loop over voxels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from genmeasures_unet.assembly import classes, predict_volume, probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genmeasures.plugin import DataError, ModelError, OptionError


class Recording(nn.Module):
    """Returns its input, and keeps every batch it has seen and its mode then."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Tensor] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(x.clone())
        self.modes.append(self.training)
        return x


class Position(nn.Module):
    """The index of the voxel within its patch, counted in order."""

    def forward(self, x: Tensor) -> Tensor:
        return (
            torch.arange(x[0, 0].numel(), dtype=torch.float32).view(1, 1, *x.shape[2:]).expand(len(x), -1, *x.shape[2:])
        )


def same(x: Tensor) -> Tensor:
    return x


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def seeded(kind: type[nn.Module], *sizes: int, padding: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(*sizes, padding=padding)


sizes = st.integers(2, 3).flatmap(
    lambda axes: st.tuples(*[st.lists(st.integers(1, 9), min_size=axes, max_size=axes).map(tuple)] * 2)
)
overlaps = st.floats(0, 0.99)


@settings(max_examples=60, deadline=None)
@given(sizes, overlaps, st.integers(1, 20))
def test_a_model_of_single_voxels_gives_the_same_everywhere(
    sizes: tuple[tuple[int, ...], tuple[int, ...]], overlap: float, batch_size: int
) -> None:
    # Any voxel left out, put elsewhere or with weights that do not add up to 1 would differ.
    size, patch = sizes
    volume = random(2, *size)
    got = predict_volume(
        nn.Identity(), volume, patch, overlap=overlap, batch_size=batch_size, output=lambda x: torch.sigmoid(3 * x) + 1
    )
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.sigmoid(3 * volume) + 1, rtol=1e-5, atol=1e-6)
    constant = predict_volume(nn.Identity(), volume, patch, overlap=overlap, output=lambda x: torch.full_like(x, 0.7))
    torch.testing.assert_close(constant, torch.full_like(volume, 0.7), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("size", "patch", "overlap", "starts"),
    [
        ((8, 5), (4, 5), 0.5, ([0, 2, 4], [0])),
        ((9, 5), (4, 2), 0.5, ([0, 2, 4, 5], [0, 1, 2, 3])),
        ((9, 6), (4, 3), 0.0, ([0, 4, 5], [0, 3])),
        ((7, 4), (4, 4), 0.9, ([0, 1, 2, 3], [0])),
        ((7, 4, 3), (4, 4, 2), 0.25, ([0, 3], [0], [0, 1])),
    ],
)
def test_patches_lie_where_they_should(
    size: tuple[int, ...], patch: tuple[int, ...], overlap: float, starts: tuple[list[int], ...]
) -> None:
    model = Recording()
    # Each voxel holds its own number, so that a patch tells where it is from.
    volume = torch.arange(float(np.prod(size))).view(1, *size)
    predict_volume(model, volume, patch, overlap=overlap, batch_size=4, output=same)
    corners = list(itertools.product(*starts))
    assert [len(batch) for batch in model.batches[:-1]] == [4] * ((len(corners) - 1) // 4)
    seen = torch.cat(model.batches)
    assert seen.shape == (len(corners), 1, *patch)
    for corner, got in zip(corners, seen, strict=True):
        place = tuple(slice(start, start + width) for start, width in zip(corner, patch, strict=True))
        assert torch.equal(got[0], volume[0][place])


@pytest.mark.parametrize(("size", "patch"), [((9, 7), (4, 5)), ((5, 6, 4), (4, 3, 2)), ((7, 7, 7), (1, 3, 6))])
def test_blending_is_as_by_a_loop_over_voxels(size: tuple[int, ...], patch: tuple[int, ...]) -> None:
    # The output depends on the place in the patch alone, so what is compared is the weights.
    axes = []
    for length, width in zip(size, patch, strict=True):
        step = max(1, round(width / 2))
        axes.append(sorted({*range(0, length - width + 1, step), length - width}))
    expected = np.zeros(size)
    for voxel in np.ndindex(*size):
        total = weights = 0.0
        for corner in itertools.product(*axes):
            inner = [v - c for v, c in zip(voxel, corner, strict=True)]
            if all(0 <= i < width for i, width in zip(inner, patch, strict=True)):
                # Distance from the center in half widths: a triangle that reaches 0 just outside of the patch.
                weight = float(np.prod([1 - abs(2 * i + 1 - w) / (w + 1) for i, w in zip(inner, patch, strict=True)]))
                total += weight * int(np.ravel_multi_index(inner, patch))
                weights += weight
        expected[voxel] = total / weights
    got = predict_volume(Position(), torch.zeros(1, *size), patch, output=same)
    np.testing.assert_allclose(got[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_convolution_is_exact_where_the_patches_see_enough() -> None:
    conv = seeded(nn.Conv3d, 2, 3, 3, padding=1)
    volume = random(2, 9, 8, 7)
    with torch.no_grad():
        direct = probabilities(conv(volume[None]))[0]
    whole = predict_volume(conv, volume, (9, 8, 7), output=probabilities)
    torch.testing.assert_close(whole, direct, rtol=1e-5, atol=1e-6)
    # One patch in the middle of padding, which is what the convolution pads with itself.
    padded = predict_volume(conv, volume, (12, 9, 7), output=probabilities)
    torch.testing.assert_close(padded, direct, rtol=1e-5, atol=1e-6)

    # Without overlap, only voxels at the seams between two patches, after 3 of the 9 planes, miss neighbors.
    seams = predict_volume(conv, volume[:, :6], (3, 8, 7), overlap=0.0, output=probabilities)
    with torch.no_grad():
        direct = probabilities(conv(volume[None, :, :6]))[0]
    wrong = (seams - direct).abs().amax(dim=(0, 2, 3)) > 1e-4
    assert wrong.tolist() == [False, False, True, True, False, False]


def test_overlap_reduces_the_error_at_the_borders_of_patches() -> None:
    conv = seeded(nn.Conv2d, 1, 1, 3, padding=1)
    volume = random(1, 32, 32)
    with torch.no_grad():
        direct = torch.sigmoid(conv(volume[None]))[0]
    apart = (predict_volume(conv, volume, (8, 8), overlap=0.0, output=probabilities) - direct).abs()
    half = (predict_volume(conv, volume, (8, 8), overlap=0.5, output=probabilities) - direct).abs()
    # Patches begin at multiples of 4, so their borders are at 0 and 3 modulo 4.
    inner = torch.arange(32) % 4 % 3 > 0
    assert half[0][inner][:, inner].max() < 1e-5
    # A border weighs 1/4, the patch in whose middle it lies 1: one fifth of the error is left.
    row = 8, inner
    assert apart[0][row].max() > 0.01
    torch.testing.assert_close(half[0][row], apart[0][row] / 5, rtol=1e-3, atol=1e-5)


def test_small_volumes_are_padded_in_the_middle() -> None:
    model = Recording()
    volume = random(2, 3, 6, 2) + 5
    got = predict_volume(model, volume, (6, 4, 4), output=same)
    torch.testing.assert_close(got, volume)
    first = model.batches[0][0]
    expected = torch.zeros(2, 6, 4, 4)
    expected[:, 1:4, :, 1:3] = volume[:, :, :4]
    assert torch.equal(first, expected)


def test_modes_are_restored_even_after_an_error() -> None:
    model = nn.Sequential(Recording(), nn.Dropout(0.9), nn.BatchNorm2d(1))
    model.train()
    model[2].eval()
    volume = random(1, 6, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    got = predict_volume(model, volume, (4, 4), output=same)
    torch.testing.assert_close(got, volume, rtol=1e-4, atol=1e-5)
    assert set(model[0].modes) == {False}
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def fail(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        predict_volume(model, volume, (4, 4), output=fail)
    assert [module.training for module in model.modules()] == [True, True, True, False]
    # The result is an ordinary tensor without gradients.
    assert not got.requires_grad
    assert not got.is_inference()


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    conv = seeded(nn.Conv3d, 1, 2, 3, padding=1)
    volume = random(1, 7, 9, 5)
    one = predict_volume(conv, volume, (4, 4, 4), batch_size=1, output=probabilities)
    many = predict_volume(conv, volume, (4, 4, 4), batch_size=1000, output=probabilities)
    torch.testing.assert_close(one, many)
    torch.testing.assert_close(one.sum(dim=0), torch.ones(7, 9, 5))


def test_probabilities_and_classes() -> None:
    logits = torch.tensor([[[0.0, 2.0, -2.0]]])
    torch.testing.assert_close(probabilities(logits), 1 / (1 + torch.exp(-logits)))
    assert classes(probabilities(logits)[0]).tolist() == [0, 1, 0]
    several = torch.tensor([[1.0, 0.0], [1.0, 3.0], [0.0, 1.0]])[None]
    powers = torch.exp(several)
    torch.testing.assert_close(probabilities(several), powers / powers.sum(dim=1, keepdim=True))
    got = classes(probabilities(several)[0])
    assert got.tolist() == [0, 1]
    assert got.dtype == classes(torch.rand(1, 2, 2, 2)).dtype == torch.int64
    assert classes(random(4, 2, 3, 5)).shape == (2, 3, 5)


def test_mismatched_arguments_are_refused() -> None:
    model, volume = nn.Identity(), torch.zeros(1, 6, 6)
    for bad in (torch.zeros(1, 6), torch.zeros(1, 1, 6, 6, 6), torch.zeros(1, 0, 6)):
        with pytest.raises(DataError, match="cannot predict a volume of shape"):
            predict_volume(model, bad, (4, 4), output=same)
    for patch in ((4,), (4, 4, 4), (4, 0), ()):
        with pytest.raises(OptionError, match="2 sizes of at least 1"):
            predict_volume(model, volume, patch, output=same)
    for overlap in (-0.1, 1.0, float("nan")):
        with pytest.raises(OptionError, match="overlap"):
            predict_volume(model, volume, (4, 4), overlap=overlap, output=same)
    with pytest.raises(OptionError, match="batch_size"):
        predict_volume(model, volume, (4, 4), batch_size=0, output=same)
    for output in (lambda x: x[..., ::2], lambda x: x[:, 0], lambda x: x[:1]):
        with pytest.raises(ModelError, match=r"patches of \(4, 4\)"):
            predict_volume(model, volume, (4, 4), output=output)
