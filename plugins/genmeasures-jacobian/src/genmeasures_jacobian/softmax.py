"""Softmax of logits and its Jacobian, exact also for confident networks."""

from __future__ import annotations

import torch
from torch import Tensor


class Softmax:
    """σ, the softmax over the channels of logits, in float64.

    Networks trained to the end are so confident on some inputs that 1 − σ is 0 in float32, and with it their Jacobian.
    Differences are taken from the most probable channel, which avoids cancellation.

    Args:
        logits: Floating point (B, C, P).

    Attributes:
        first: int64 (B, 1, P), the most probable channel.
        values: float64 (B, C, P), σ.

    Example:
        >>> softmax = Softmax(torch.zeros(1, 2, 1))
        >>> softmax.values.flatten().tolist()
        [0.5, 0.5]
        >>> softmax.product(torch.tensor([[[1.0], [0.0]]])).flatten().tolist()
        [0.25, -0.25]
        >>> softmax.cross_entropy(torch.tensor([0])).exp().tolist()
        [2.0]
    """

    def __init__(self, logits: Tensor) -> None:
        logits = logits.detach().double()
        self.first = logits.argmax(1, keepdim=True)
        self.values = torch.softmax(logits, 1)

    def product(self, vectors: Tensor) -> Tensor:
        """Multiply vectors by the Jacobian of the softmax, diag(σ) − σσᵀ, at every position.

        Args:
            vectors: (B, C, P).

        Returns:
            float64 (B, C, P). The matrix is symmetric, so that this is the product from either side.
        """
        differences = vectors.double()
        differences = differences - differences.gather(1, self.first)
        return self.values * (differences - (self.values * differences).sum(1, keepdim=True))

    def cross_entropy(self, classes: Tensor) -> Tensor:
        """Return −log σ_y of the true classes, for logits of one position.

        Args:
            classes: int64 (B,).

        Returns:
            float64 (B,).
        """
        values = self.values[:, :, 0]
        own = values.gather(1, classes[:, None])[:, 0]
        others = values.scatter(1, classes[:, None], 0.0).sum(1)
        # Near σ_y = 1, the logarithm is more precise from the probabilities of the other classes.
        return torch.where(others < 0.5, -torch.log1p(-others.clamp(max=0.5)), -torch.log(own))
