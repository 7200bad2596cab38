"""A small convolutional network for small square images."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Blocks of 3x3 convolution, batch normalization if wanted, and ReLU; then a hidden and a linear layer.

    A 2x2 max pool stands between the first half of the blocks and the second; dropout stands before
    the classifier. Takes float32 (B, channels, size, size), gives logits float32 (B, classes).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        *,
        dropout: float = 0.0,
        batch_norm: bool = False,
        channels: int = 1,
        size: int = 8,
        hidden: int = 128,
        classes: int = 10,
    ) -> None:
        super().__init__()
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(1, depth + 1):
            # The normalization has a bias of its own, so one in the convolution would be idle.
            blocks[f"conv{i}"] = nn.Conv2d(channels if i == 1 else width, width, 3, padding=1, bias=not batch_norm)
            if batch_norm:
                blocks[f"norm{i}"] = nn.BatchNorm2d(width)
            blocks[f"relu{i}"] = nn.ReLU()
            if i == (depth + 1) // 2:
                blocks["pool"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(blocks)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(width * (size // 2) ** 2, hidden)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flatten(self.features(x))
        x = self.relu(self.hidden(x))
        logits: Tensor = self.classifier(self.dropout(x))
        return logits
