"""Linear CKA: how similar two representations of the same inputs are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmeasures.plugin import Undefined

_CONSTANT = 1e-12
"""Vectors whose spread is smaller, relative to their mean, are equal up to rounding in float64."""
_LEAST = 4
"""Inputs that the unbiased estimate needs."""


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centered kernel alignment ‖YᵀX‖_F²/(‖XᵀX‖_F ‖YᵀY‖_F), X and Y centered.

    It is invariant to rotation, scale and shift of either. With few inputs it is biased upward; :class:`MinibatchCKA`
    is not.

    Source: Kornblith et al. 2019.

    Args:
        first: (n, k), a vector for each input.
        second: (n, k′), other vectors for the same inputs.

    Returns:
        From 0, uncorrelated, to 1, equal up to rotation and scale.

    Raises:
        Undefined: The vectors of one are equal or not finite, or their numbers differ.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [5.0, 3.0]])
        >>> round(linear_cka(x, 7 * x.flip(1) + 1), 6)
        1.0
    """
    x, y = _centered(first), _centered(second)
    if len(x) != len(y):
        raise Undefined(f"expected as many vectors of each, got {len(x)} and {len(y)}")
    if max(x.shape[1], y.shape[1]) <= len(x):
        products = (x.T @ x).norm() * (y.T @ y).norm()
        return min(1.0, float((y.T @ x).square().sum() / products))
    left, right = x @ x.T, y @ y.T
    return min(1.0, float((left * right).sum() / (left.norm() * right.norm())))


class MinibatchCKA:
    """Linear CKA streamed over minibatches, from the unbiased estimate of HSIC in each of them.

    HSIC is averaged over minibatches before the quotient. Its expectation does not depend on the size of the
    minibatches; the value does, to the extent of its noise.

    Source: Nguyen, Raghu & Kornblith 2021; HSIC of Song et al. 2012.

    Example:
        >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> cka = MinibatchCKA()
        >>> for batch in x.split(20):
        ...     cka.add(batch, 2 * batch)
        >>> round(cka.value(), 6)
        1.0
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device="cpu")
        """Sums over minibatches of HSIC of both, of the first with itself, and of the second with itself."""
        self._batches = 0

    def add(self, first: Tensor, second: Tensor) -> None:
        """Add a minibatch.

        Args:
            first: (n, k), n ≥ 4.
            second: (n, k′), other vectors for the same inputs.

        Raises:
            Undefined: There are fewer than four inputs, or vectors are not finite.
        """
        if len(first) < _LEAST or len(first) != len(second):
            raise Undefined(
                f"expected a minibatch of at least {_LEAST} inputs, and as many vectors of each, got {len(first)} and "
                f"{len(second)}"
            )
        left, right = _kernel(first), _kernel(second)
        values = [hsic(left, right), hsic(left, left), hsic(right, right)]
        self._sums += torch.tensor(values, dtype=torch.float64, device="cpu")
        self._batches += 1

    def value(self) -> float:
        """The quotient; it can be slightly below 0 or above 1.

        Raises:
            Undefined: There are no minibatches, or the vectors of one representation are equal in all of them.
        """
        both, first, second = (float(total) for total in self._sums)
        if not self._batches:
            raise Undefined("no inputs in the sample")
        if not (first > 0 and second > 0):
            raise Undefined("constant features: the vectors of one representation are equal")
        return both / math.sqrt(first * second)


def hsic(left: Tensor, right: Tensor) -> float:
    """Unbiased estimate of the Hilbert–Schmidt independence criterion.

    Source: Song et al. 2012.

    Args:
        left: float64 (n, n), kernel matrix, n ≥ 4; the diagonal is not read.
        right: float64 (n, n), another one of the same inputs.

    Example:
        >>> hsic(torch.ones(4, 4).double(), torch.ones(4, 4).double())
        0.0
    """
    n = len(left)
    k, q = left.clone().fill_diagonal_(0.0), right.clone().fill_diagonal_(0.0)
    rows, columns = k.sum(1), q.sum(0)
    trace = (k * q.T).sum()
    means = rows.sum() * columns.sum() / ((n - 1) * (n - 2))
    return float((trace + means - 2 * rows @ columns / (n - 2)) / (n * (n - 3)))


def _kernel(vectors: Tensor) -> Tensor:
    """Products of centered vectors, float64 (n, n): HSIC does not depend on the center, but rounding does."""
    points = vectors.double()
    if not bool(points.isfinite().all()):
        raise Undefined("the features are not finite")
    points = points - points.mean(0)
    return points @ points.T


def _centered(vectors: Tensor) -> Tensor:
    points = vectors.double()
    if not bool(points.isfinite().all()):
        raise Undefined("the features are not finite")
    mean = points.mean(0)
    centered = points - mean
    if len(points) < 2 or float(centered.norm()) <= _CONSTANT * len(points) ** 0.5 * float(mean.norm()):
        raise Undefined("constant features: the vectors of one representation are equal")
    return centered
