"""A small convolutional network for small square images."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Convolutional classifier of small square images.

    Blocks of a 3x3 convolution, optional batch normalization and ReLU, with a 2x2 max pool between the first and the
    second half of the blocks, are followed by a hidden linear layer, dropout and the classifier. The input is float32
    (B, ``channels``, ``size``, ``size``) and the output logits, float32 (B, ``classes``).

    Args:
        width: channels of each convolution.
        depth: number of convolutions.
        dropout: probability of dropout before the classifier.
        batch_norm: whether the convolutions have batch normalization.
        channels: number of input channels.
        size: height and width of the images in pixels.
        hidden: units of the hidden layer.
        classes: number of classes.

    Example:
        >>> import torch
        >>> SmallCNN(width=4, depth=2)(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])
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
            # Batch normalization has a bias, which makes one in the convolution redundant.
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
        """Logits, float32 (B, ``classes``), of images (B, ``channels``, ``size``, ``size``)."""
        x = self.flatten(self.features(x))
        x = self.relu(self.hidden(x))
        logits: Tensor = self.classifier(self.dropout(x))
        return logits
