"""The residual UNet: its layers, its sizes, its shortcuts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from genmeasures_unet.network import ResidualUNet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import genmeasures
from genmeasures.plugin import DataError, OptionError, tapped, trace


def net(*args: int, **kwargs: int) -> ResidualUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResidualUNet(*args, **kwargs).eval()


@pytest.mark.parametrize(("dimensions", "depth"), [(2, 5), (3, 5), (3, 2), (2, 1)])
def test_one_layer_per_stage_and_the_head(dimensions: int, depth: int) -> None:
    """The paper's depth 5 gives its 11 layers, all of them measured."""
    x = np.random.default_rng(0).normal(size=(8, 1, *[9] * dimensions)).astype(np.float32)
    made = genmeasures.measure({"net": net(dimensions, depth=depth)}, x, x, measures=["roughness"])
    expected = [f"encoder.{i}.conv" for i in range(depth)] + [f"decoder.{i}.conv" for i in range(depth)] + ["head"]
    assert made.layer_name.values[0].tolist() == expected
    assert made.skipped_layers.values[0] == "{}"
    assert all("> group_norm > relu" in tap for tap in made.layer_tap.values[0][:-1])
    assert len(expected) == 2 * depth + 1


@pytest.mark.parametrize("dimensions", [2, 3])
def test_outputs_of_blocks_are_what_the_next_stages_receive(dimensions: int) -> None:
    """By hooks: the output of a stage after its shortcut, and after the concatenation with that of the encoder."""
    unet = net(dimensions, depth=3)
    x = torch.randn((3, 1, *[9] * dimensions), generator=torch.Generator().manual_seed(0))
    received: dict[str, Tensor] = {}
    following = [*(f"encoder.{i}" for i in range(3)), *(f"decoder.{i}" for i in range(3)), "head"]
    handles = [
        unet.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: received.update({name: args[0].clone()})
        )
        for name in following
    ]
    with torch.no_grad():
        unet(x)
    for handle in handles:
        handle.remove()
    found: dict[str, Tensor] = {}
    layers = trace(unet, x, "block").layers
    with tapped(unet, layers, lambda layer, given, output: found.update({layer.layer.name: output.clone()})) as tap:
        tap.run(x)
    for before, after in pairwise(following):
        torch.testing.assert_close(found[f"{before}.conv"], received[after], rtol=0, atol=0)
    stage = "group_norm > relu > sum"
    assert [layer.layer.tap.partition(" > ")[2] for layer in layers] == [
        *[stage] * 3, f"{stage} > concatenation", f"{stage} > concatenation", stage, "",
    ]  # fmt: skip
    assert [layer.layer.joins for layer in layers] == ["sum"] * 6 + [""]
    assert [layer.layer.channels for layer in layers] == [8, 16, 32, 32, 16, 8, 1]


def test_statuses_say_where_stages_are_read() -> None:
    x = np.random.default_rng(0).normal(size=(8, 1, 9, 9)).astype(np.float32)
    made = {
        tap: genmeasures.measure(
            {"net": net(2, depth=2)},
            x,
            x,
            measures=["roughness"],
            extractor=genmeasures.extractors.ReceptiveField(tap=tap),
        ).isel(model=0)
        for tap in ("activation", "block")
    }
    assert set(made["block"].roughness_status.values) == {"ok"}
    note = "note: the output is read before its sum with others (tap: block reads it after that)"
    assert made["activation"].roughness_status.values.tolist() == [note] * 4 + ["ok"]


def test_kernels_strides_and_widths_are_the_papers() -> None:
    made = net(3, width=8, depth=5)
    down = [stage.conv for stage in made.encoder]
    up = [stage.conv for stage in made.decoder]
    assert all(conv.kernel_size == (3, 3, 3) and conv.stride == (2, 2, 2) for conv in (*down, *up))
    assert all(isinstance(conv, nn.ConvTranspose3d) for conv in up)
    assert [conv.out_channels for conv in down] == [8, 16, 32, 64, 128]
    assert [conv.in_channels for conv in up] == [128, 128, 64, 32, 16]
    assert [conv.out_channels for conv in up] == [64, 32, 16, 8, 8]
    assert all(stage.norm.num_groups == 4 for stage in (*made.encoder, *made.decoder))


@settings(deadline=None, max_examples=25)
@given(
    sides=st.lists(st.integers(1, 40), min_size=2, max_size=2),
    depth=st.integers(1, 6),
    channels=st.integers(1, 3),
    out_channels=st.integers(1, 4),
)
def test_images_of_any_size(sides: list[int], depth: int, channels: int, out_channels: int) -> None:
    made = net(2, channels, out_channels, depth=depth)
    with torch.inference_mode():
        assert made(torch.zeros(2, channels, *sides)).shape == (2, out_channels, *sides)


@pytest.mark.parametrize("sides", [(1, 1, 1), (5, 2, 7), (24, 32, 16), (33, 17, 1)])
def test_volumes_of_any_size(sides: tuple[int, ...]) -> None:
    with torch.inference_mode():
        assert net(3)(torch.zeros(1, 1, *sides)).shape == (1, 1, *sides)


def silenced(stage: nn.Module) -> nn.Module:
    """The stage with a convolution that makes nothing, so that its shortcut is all that is left."""
    stage.norm.weight.data.zero_()
    stage.norm.bias.data.zero_()
    return stage


def test_shortcut_of_the_encoder_takes_every_other_position() -> None:
    stage = silenced(net(2, 2, depth=1).encoder[0])
    x = torch.randn(3, 2, 7, 4, generator=torch.Generator().manual_seed(0))
    made: Tensor = stage(x)
    assert made.shape == (3, 8, 4, 2)
    for i in range(4):
        for j in range(2):
            assert torch.equal(made[:, :2, i, j], x[:, :, 2 * i, 2 * j])
    assert not made[:, 2:].any()


def test_shortcut_of_the_decoder_repeats_positions_and_averages_channels() -> None:
    stage = silenced(net(2, width=8, depth=2).decoder[1])
    x = torch.randn(2, 16, 3, 2, generator=torch.Generator().manual_seed(0))
    made: Tensor = stage(x, [5, 4])
    assert made.shape == (2, 8, 5, 4)
    for channel in range(8):
        for i in range(5):
            for j in range(4):
                mean = (x[:, 2 * channel, i // 2, j // 2] + x[:, 2 * channel + 1, i // 2, j // 2]) / 2
                torch.testing.assert_close(made[:, channel, i, j], mean)


def test_stages_are_joined_by_skip_connections() -> None:
    made = net(2, depth=3)
    x = torch.randn(2, 1, 13, 10, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first = made.encoder[0](x)
        second = made.encoder[1](first)
        third = made.encoder[2](second)
        up = torch.cat([made.decoder[0](third, [4, 3]), second], 1)
        up = torch.cat([made.decoder[1](up, [7, 5]), first], 1)
        up = made.decoder[2](up, [13, 10])
        by_hand = nn.functional.conv2d(up, made.head.weight, made.head.bias, padding=1)
        torch.testing.assert_close(made(x), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 1}, "dimensions must be 2 or 3, got 1"),
        ({"width": 0}, "width must be a positive integer, got 0"),
        ({"depth": 0}, "depth must be a positive integer, got 0"),
        ({"depth": 30}, "depth must be at most 12.*got 30"),
        ({"width": 6}, "width must be a multiple of groups=4 and larger, got 6"),
        ({"width": 4}, "width must be a multiple of groups=4 and larger, got 4"),
        ({"channels": 9}, "width must be at least channels=9, got 8"),
    ],
)
def test_options_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ResidualUNet(**options)


def test_input_of_another_shape() -> None:
    with pytest.raises(DataError, match=r"shape \(batch, 1, 3 spatial sides\), got \(1, 2, 8, 8, 8\)"):
        net(3)(torch.zeros(1, 2, 8, 8, 8))
