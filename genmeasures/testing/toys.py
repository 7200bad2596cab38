"""Small networks and data for the checks of components."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Arrays = tuple[Tensor, Tensor]


def network(seed: int = 0, scale: float = 1.0) -> nn.Module:
    """A convolutional ReLU network for :func:`images`, in training mode, as users may pass theirs.

    ``scale`` multiplies all features, because no layer has a bias.

    Args:
        seed: seed of the weights.
        scale: factor of the output of the first layer.

    Example:
        >>> network()(images(6, seed=0)[0]).shape
        torch.Size([6, 3])
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global state
        net = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3, bias=False),
        )
    with torch.no_grad():
        for parameter in net.parameters():
            fan = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan) ** 0.5)
        next(net.parameters()).mul_(scale)
    return net


def dense_network(seed: int = 0) -> nn.Module:
    """A network for :func:`images` with three outputs per pixel.

    Args:
        seed: seed of the weights.

    Example:
        >>> dense_network()(images(6, seed=0)[0]).shape
        torch.Size([6, 3, 8, 8])
    """
    net = network(seed)
    assert isinstance(net, nn.Sequential)
    last = nn.Conv2d(6, 3, 1, bias=False)
    with torch.no_grad():
        last.weight.copy_(net[-1].weight[:, :6, None, None])  # type: ignore[index]
    return nn.Sequential(net[0], nn.ReLU(), last)


def masks(inputs: Tensor) -> Tensor:
    """int64 (count, 8, 8): the class of each pixel of :func:`images`, by its brightness.

    Args:
        inputs: the images.

    Example:
        >>> masks(images(6, seed=0)[0]).unique().tolist()
        [0, 1, 2]
    """
    brightness = inputs.sum(1)
    return (brightness > -1).long() + (brightness > 1).long()


def normalized_network() -> nn.Module:
    """A network with buffers: running statistics that evaluation mode leaves as they are.

    Example:
        >>> [name for name, _ in normalized_network().named_buffers()][:2]
        ['1.running_mean', '1.running_var']
    """
    net = network()
    assert isinstance(net, nn.Sequential)
    net.insert(1, nn.BatchNorm2d(6))
    return net


def dead_network() -> nn.Module:
    """The same with every weight zero: constant features.

    Example:
        >>> any(bool(parameter.any()) for parameter in dead_network().parameters())
        False
    """
    net = network()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    return net


def constant_network(value: float = 0.37) -> nn.Module:
    """A network whose features are constant, with a mean that floating-point numbers do not represent exactly.

    Args:
        value: the value of all features, positive.

    Returns:
        The network, for the inputs of :func:`images`.

    Example:
        >>> constant_network(0.37)(images(2, seed=0)[0]).unique().tolist() == [torch.tensor(0.37).item()]
        True
    """
    net = dead_network()
    for layer in net.children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.bias = nn.Parameter(torch.full((len(layer.weight),), value))
    return net


class Overflow(nn.Module):
    """Multiplies by so much that activations overflow."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1e38 * 1e38


def overflowing_network() -> nn.Module:
    """The same network, behind a layer that makes its activations infinite or NaN.

    Example:
        >>> bool(overflowing_network()(images(6, seed=0)[0]).isfinite().all())
        False
    """
    return nn.Sequential(Overflow(), network())


def images(count: int, seed: int) -> Arrays:
    """Inputs float32 (count, 2, 8, 8) of three classes that differ in their mean, and the classes int64 (count,).

    Args:
        count: number of images.
        seed: seed of the noise.

    Example:
        >>> inputs, classes = images(6, seed=0)
        >>> inputs.shape, classes.tolist()
        (torch.Size([6, 2, 8, 8]), [0, 1, 2, 0, 1, 2])
    """
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 3
    noise = torch.randn(count, 2, 8, 8, generator=generator)
    return noise + 0.7 * (classes - 1).view(-1, 1, 1, 1), classes
