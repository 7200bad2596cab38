"""Means over the layers of a model: weighted by Frobenius norm, unweighted, and over the last layers."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from genmeasures.aggregators.layers import has_layer, layer_index
from genmeasures.interfaces import Aggregator, is_count, require


def weighted_mean(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the weighted means Σ_ℓ w_ℓ m_ℓ / Σ_ℓ w_ℓ over layers, and the numbers of layers used.

    Args:
        values: float64 (models, layers). Layers with NaN are left out.
        weights: float64 (models, layers). Layers whose weight is not positive and finite are left out.

    Returns:
        Means, float64 (models,), NaN where no layer is left, and numbers of layers, int64 (models,).

    Example:
        >>> weighted_mean(np.array([[1.0, 4.0, np.nan]]), np.array([[2.0, 1.0, 1.0]]))
        (array([2.]), array([2]))
    """
    used = ~np.isnan(values) & np.isfinite(weights) & (weights > 0)
    kept = np.where(used, weights, 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # The largest weight becomes 1: the sums then overflow only where the values do.
        kept = kept / kept.max(axis=1, keepdims=True, initial=0.0)
        mean = np.where(used, kept * values, 0.0).sum(axis=1) / kept.sum(axis=1)
    number = used.sum(axis=1, dtype=np.int64)
    return np.where(number > 0, mean, np.nan), number


class Frobenius(Aggregator):
    """Mean over layers weighted by the Frobenius norms of their weights: Σ ‖W_ℓ‖_F m_ℓ / Σ ‖W_ℓ‖_F.

    Example:
        >>> norms, names = np.array([[3.0, 1.0]]), np.array([["conv", "fc"]], dtype=object)
        >>> Frobenius().reduce(np.array([[1.0, 5.0]]), norms, names)
        (array([2.]), array([2]))
    """

    name: ClassVar[str] = "frobenius"

    def reduce(
        self, values: NDArray[np.float64], weight_norms: NDArray[np.float64], layer_names: NDArray[np.object_]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See :meth:`Aggregator.reduce`. Layers without a value, or without a positive norm, are left out."""
        return weighted_mean(values, np.where(has_layer(layer_names), weight_norms, np.nan))


class Mean(Aggregator):
    """Unweighted mean over the layers that have a value.

    Example:
        >>> Mean().reduce(np.array([[1.0, 5.0]]), np.ones((1, 2)), np.array([["conv", "fc"]], dtype=object))
        (array([3.]), array([2]))
    """

    name: ClassVar[str] = "mean"

    def reduce(
        self, values: NDArray[np.float64], weight_norms: NDArray[np.float64], layer_names: NDArray[np.object_]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See :meth:`Aggregator.reduce`. The weight norms are not read."""
        return weighted_mean(values, has_layer(layer_names).astype(np.float64))


class LastK(Aggregator):
    """Mean over the last layers of each model. Layers without a value are left out.

    Args:
        k: Number of layers. A model with fewer layers is averaged over all of them.

    Raises:
        OptionError: If k is not an integer ≥ 1.

    Example:
        >>> names = np.array([["conv1", "conv2", "fc"]], dtype=object)
        >>> LastK(k=2).reduce(np.array([[1.0, 5.0, 7.0]]), np.ones((1, 3)), names)
        (array([6.]), array([2]))
    """

    name: ClassVar[str] = "last_k"

    def __init__(self, k: int = 3) -> None:
        require(is_count(k), self, f"k must be an integer ≥ 1, got {k!r}")
        self.k = k

    def reduce(
        self, values: NDArray[np.float64], weight_norms: NDArray[np.float64], layer_names: NDArray[np.object_]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See :meth:`Aggregator.reduce`. The weight norms are not read."""
        has = has_layer(layer_names)
        last = has & (layer_index(layer_names) >= has.sum(axis=1, keepdims=True) - self.k)
        return weighted_mean(values, last.astype(np.float64))
