"""Memory layout of a model, and layers that read the outputs of others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genmeasures.errors import ModelError
from genmeasures.tracing import fastest_layout, trace
from genmeasures.tracing.guard import undisturbed


class Views(nn.Module):
    """Reads the output of a convolution through a view that needs the contiguous layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(len(x), -1))


class Strides(nn.Module):
    """Returns a result that depends on the layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * float(x.stride(1))


@pytest.mark.parametrize("net", [Views(), Strides()], ids=["views", "strides"])
def test_models_that_cannot_run_channels_last_keep_their_layout(net: nn.Module) -> None:
    x = torch.randn(3, 3, 8, 8)
    before = net.conv.weight
    strides, expected = before.stride(), net(x)
    assert fastest_layout(net, x) == torch.contiguous_format
    assert net.conv.weight is before
    assert before.stride() == strides
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize(
    ("net", "shape", "layout"),
    [
        (nn.Conv2d(3, 4, 3), (3, 3, 8, 8), torch.channels_last),
        (nn.Conv3d(3, 4, 3), (3, 3, 8, 8, 8), torch.channels_last_3d),
        (nn.Conv1d(3, 4, 3), (3, 3, 8), torch.contiguous_format),
        (nn.Linear(3, 4), (3, 3), torch.contiguous_format),
    ],
)
def test_images_and_volumes_run_channels_last_and_weights_are_restored(
    net: nn.Module, shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    x, weight = torch.randn(shape), net.weight
    address, strides = weight.data_ptr(), weight.stride()
    with undisturbed(net, torch.device("cpu")):
        assert fastest_layout(net, x) == layout
        if layout != torch.contiguous_format:
            assert net.weight.is_contiguous(memory_format=layout)
    assert net.weight is weight
    assert (weight.data_ptr(), weight.stride()) == (address, strides)


def test_the_error_describes_an_input_that_the_model_rejects() -> None:
    with pytest.raises(ModelError, match=r"batch of shape \(3, 5, 8, 8\)"):
        fastest_layout(nn.Conv2d(3, 4, 3), torch.randn(3, 5, 8, 8))


class Adds(nn.Module):
    """Adds in place between its convolutions, so that the second reads other values than the first computed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x))
        y += x
        return self.two(y)


def reads(net: nn.Module, tap: str = "activation") -> list[int | None]:
    return [layer.reads for layer in trace(net.eval(), torch.randn(3, 3, 8, 8), tap).layers]


@pytest.mark.parametrize("inplace", [True, False])
def test_a_layer_reads_the_output_of_the_previous_one(inplace: bool) -> None:
    relu = nn.ReLU(inplace)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), relu, nn.MaxPool2d(2), nn.Conv2d(4, 4, 1),
        relu, nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    assert reads(net) == [None, 0, None, 2]
    # Before the activation it is another tensor, or the same one with other values by the time it is read.
    assert reads(net, "linear") == [None, None, None, None]
    assert reads(Adds()) == [None, None]
