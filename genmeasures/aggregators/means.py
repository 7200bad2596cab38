"""Weighted means over the layers of a model: by Frobenius norm, plain, and over the last layers."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from genmeasures.aggregators.layers import has_layer, place
from genmeasures.interfaces import Aggregator, is_count, require


def weighted_mean(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Σ_ℓ w_ℓ m_ℓ / Σ_ℓ w_ℓ along the layers, from float64 (models, layers) arrays.

    A layer whose value or weight is NaN, or whose weight is not positive, is left out of both
    sums. Returns (models,) means, NaN where no layer is left, and the numbers of layers used.
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
    """Mean over layers weighted by the Frobenius norm of each layer's weight: Σ ‖W_ℓ‖_F m_ℓ / Σ ‖W_ℓ‖_F."""

    name: ClassVar[str] = "frobenius"

    def reduce(
        self, values: NDArray[np.float64], weight_norms: NDArray[np.float64], layer_names: NDArray[np.object_]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See :meth:`Aggregator.reduce`. Layers without a value, or with no positive norm, are left out."""
        return weighted_mean(values, np.where(has_layer(layer_names), weight_norms, np.nan))


class Mean(Aggregator):
    """Plain mean over the layers that have a value."""

    name: ClassVar[str] = "mean"

    def reduce(
        self, values: NDArray[np.float64], weight_norms: NDArray[np.float64], layer_names: NDArray[np.object_]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See :meth:`Aggregator.reduce`. The weight norms are not read."""
        return weighted_mean(values, has_layer(layer_names).astype(np.float64))


class LastK(Aggregator):
    """Mean over the last ``k`` layers that a model has; those among them without a value are left out.

    A model with fewer than ``k`` layers is averaged over all that it has.
    """

    name: ClassVar[str] = "last_k"

    def __init__(self, k: int = 3) -> None:
        require(is_count(k), self, f"k={k!r} must be an integer of at least 1")
        self.k = k

    def reduce(
        self, values: NDArray[np.float64], weight_norms: NDArray[np.float64], layer_names: NDArray[np.object_]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See :meth:`Aggregator.reduce`. The weight norms are not read."""
        has = has_layer(layer_names)
        last = has & (place(layer_names) >= has.sum(axis=1, keepdims=True) - self.k)
        return weighted_mean(values, last.astype(np.float64))
