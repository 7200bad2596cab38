"""The softmax of logits and its Jacobian, exact also where a network is sure of its class."""

from __future__ import annotations

import torch
from torch import Tensor


class Softmax:
    """σ = softmax over the channels of logits (B, C, P), in float64.

    Networks trained to the end are so sure of some inputs that 1 − σ is 0 in float32, and with it
    their Jacobian. Differences are taken from the most probable channel, so that none cancels.
    """

    def __init__(self, logits: Tensor) -> None:
        logits = logits.detach().double()
        self.first = logits.argmax(1, keepdim=True)
        """int64 (B, 1, P): the most probable channel."""
        self.values = torch.softmax(logits, 1)
        """float64 (B, C, P): σ."""

    def product(self, vectors: Tensor) -> Tensor:
        """(diag(σ) − σσᵀ) v at every position: float64 (B, C, P) for v (B, C, P). The matrix is symmetric."""
        differences = vectors.double()
        differences = differences - differences.gather(1, self.first)
        return self.values * (differences - (self.values * differences).sum(1, keepdim=True))

    def cross_entropy(self, classes: Tensor) -> Tensor:
        """float64 (B,): −log σ_y of the true classes int64 (B,), for logits of one position."""
        values = self.values[:, :, 0]
        own = values.gather(1, classes[:, None])[:, 0]
        others = values.scatter(1, classes[:, None], 0.0).sum(1)
        # Near σ_y = 1 its logarithm is known from the others alone.
        return torch.where(others < 0.5, -torch.log1p(-others.clamp(max=0.5)), -torch.log(own))
