"""Means over vectors, with their standard errors over inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmeasures.errors import Undefined


class InputMean:
    """Weighted mean of a quantity of vectors, with its standard error over inputs.

    The vectors of one input depend on each other: only inputs are independent. The mean is m = Σ w·v / Σ w. Its error
    is that of a ratio of sums over n inputs, √(n/(n − 1) · Σ_i (S_i − m·W_i)²) / Σ_i W_i, with S_i the sum of w·v and
    W_i that of w over the vectors of input i. For equally many vectors an input and no weights this is the standard
    error of the means of the inputs.

    Source: Cochran 1977, Sampling Techniques, sections 6.3 and 9A.2.

    Example:
        Two inputs of two vectors each, whose means are 1 and 3:

        >>> mean = InputMean()
        >>> mean.add(torch.tensor([0, 0]), torch.tensor([0.0, 2.0]))
        >>> mean.add(torch.tensor([1, 1]), torch.tensor([3.0, 3.0]))
        >>> mean.mean(), round(mean.error(), 9)
        (2.0, 1.0)
        >>> mean.values("sparsity")["sparsity"]
        2.0
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(2, 0, dtype=torch.float64, device="cpu")
        """float64 (2, N): sums of w·v and of w over the vectors of each input."""
        self._seen = torch.zeros(0, dtype=torch.bool, device="cpu")

    def add(self, inputs: Tensor, values: Tensor, weights: Tensor | None = None) -> None:
        """Add vectors.

        Args:
            inputs: int64 (n,), the input of each vector: ``batch.inputs``.
            values: (n,), the quantity of each vector.
            weights: (n,), ≥ 0; None weighs all vectors alike.
        """
        values = values.double()
        weights = torch.ones_like(values) if weights is None else weights.double()
        more = (int(inputs.max()) + 1 if len(inputs) else 0) - self._sums.shape[1]
        if more > 0:
            # In powers of two, so that growing copies little.
            more = max(more, self._sums.shape[1])
            self._sums = torch.cat([self._sums.to(values.device), values.new_zeros(2, more)], 1)
            self._seen = torch.cat([self._seen.to(inputs.device), torch.zeros_like(self._sums[0, -more:]).bool()])
        self._sums[0].index_add_(0, inputs, values * weights)
        self._sums[1].index_add_(0, inputs, weights)
        self._seen.index_fill_(0, inputs, True)

    def rescale(self, factor: float) -> None:
        """Multiply all values so far by a factor."""
        self._sums[0] *= factor

    def mean(self) -> float:
        """The mean; raises :class:`~genmeasures.errors.Undefined` without vectors, or if all weights are 0."""
        if not bool(self._seen.any()):
            raise Undefined("no vectors in the sample")
        total = float(self._sums[1].sum())
        if not total > 0:
            raise Undefined("the weights of all vectors are zero")
        return float(self._sums[0].sum()) / total

    def error(self) -> float:
        """The standard error; raises :class:`~genmeasures.errors.Undefined` with fewer than two inputs."""
        mean, count = self.mean(), int(self._seen.sum())
        if count < 2:
            raise Undefined("a standard error over inputs needs at least two inputs, got 1")
        residuals = self._sums[0] - mean * self._sums[1]
        return math.sqrt(count / (count - 1) * float(residuals @ residuals)) / float(self._sums[1].sum())

    def values(self, name: str) -> dict[str, float | Undefined]:
        """The values of the variables ``name`` and ``<name>_error``, as ``compute`` of a measure returns them.

        Args:
            name: name of the first one.

        Returns:
            By name: the mean and its error, or why they are undefined.
        """
        values: dict[str, float | Undefined] = {}
        for key, compute in ((name, self.mean), (f"{name}_error", self.error)):
            try:
                values[key] = compute()
            except Undefined as reason:
                values[key] = reason
        return values
