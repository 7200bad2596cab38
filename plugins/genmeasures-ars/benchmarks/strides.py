"""ARS from one start, in strides and in 1500 single steps: ``python benchmarks/strides.py`` (ten minutes)."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from genmeasures_ars import ARS
from genmeasures_unet import ResidualUNet
from study import SIZE, data, digits
from torch import Tensor, nn

from genmeasures.plugin import SmallCNN, Undefined, trace


class _Block(nn.Module):
    """Two convolutions with batch normalization and a shortcut."""

    def __init__(self, channels: int, kernels: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, kernels, 3, stride, 1), nn.Conv2d(kernels, kernels, 3, 1, 1)
        self.norm, self.norm2 = nn.BatchNorm2d(kernels), nn.BatchNorm2d(kernels)
        self.shortcut = nn.Identity() if channels == kernels else nn.Conv2d(channels, kernels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.second(torch.relu(self.norm(self.first(x)))))
        return torch.relu(residual + self.shortcut(x))


def _resnet() -> nn.Module:
    blocks = [nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), _Block(16, 16, 1), _Block(16, 32, 2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def _vgg() -> nn.Module:
    parts: list[nn.Module] = []
    for inside, outside, pool in ((1, 16, 0), (16, 16, 1), (16, 32, 0), (32, 32, 1), (32, 64, 0)):
        parts += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU(), *[nn.MaxPool2d(2)] * pool]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(64 * 16, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cnn 0": lambda: SmallCNN(16, 4, size=SIZE),
    "cnn 1": lambda: SmallCNN(16, 4, size=SIZE),
    "cnn with norm 0": lambda: SmallCNN(16, 4, batch_norm=True, size=SIZE),
    "cnn with norm 1": lambda: SmallCNN(16, 4, batch_norm=True, size=SIZE),
    "wide cnn": lambda: SmallCNN(32, 3, size=SIZE),
    "deep cnn": lambda: SmallCNN(8, 6, size=SIZE),
    "vgg": _vgg,
    "resnet 0": _resnet,
    "resnet 1": _resnet,
    "unet": lambda: ResidualUNet(2, depth=2),
}


def trained(name: str, seed: int, x: Tensor, y: Tensor) -> nn.Module:
    """A network after 300 steps. The UNet segments noisy digits, the others classify."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(300):
        chosen = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        if name == "unet":
            logits, mask = model(x[chosen] + 0.2 * torch.randn_like(x[chosen])), (x[chosen] > 0.3).float()
            nn.functional.binary_cross_entropy_with_logits(logits, mask).backward()
        else:
            nn.functional.cross_entropy(model(x[chosen]), y[chosen, 0]).backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    (x, y), (x_test, y_test) = digits()
    for seed, name in enumerate(NETWORKS):
        model = trained(name, seed, x, y)
        traced = trace(model, x[:3], "activation").layers
        layers = [layer.layer for layer in traced if layer.layer.kind != "Linear"]
        values, seconds = [], []
        for growth in (0.04, 0.0):
            begin = time.process_time()
            scores = ARS(growth=growth, starts=1).measure(model, layers, data(x_test, y_test, 0))["ars_kernel"]
            seconds.append(time.process_time() - begin)
            values.append([score for score in scores if not isinstance(score, Undefined)])
        changes = np.abs(np.concatenate(values[0]) - np.concatenate(values[1]))
        means = [np.nanmean(strided) - np.nanmean(stepped) for strided, stepped in zip(*values, strict=True)]
        print(
            f"{name}: {seconds[0]:.0f} s instead of {seconds[1]:.0f}; ARS of kernels changes by "
            f"{np.nanmean(changes):.4f} on average, by {np.nanmax(changes):.3f} at most, and by more than 0.05 for "
            f"{np.mean(changes > 0.05):.1%}; that of layers by {min(means):+.4f} to {max(means):+.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
