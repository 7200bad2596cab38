"""Means over the layers of a model: weighted by Frobenius norm, of these weights, unweighted, of the last layers."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from genmeasures.aggregators.layers import has_layer, layer_index
from genmeasures.interfaces import Aggregator, is_count, one_of, require


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


def mean_product(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the means (1/L) Σ_ℓ w_ℓ m_ℓ of weights times values over layers, and the numbers of layers used.

    Args:
        values: float64 (models, layers). Layers with NaN are left out.
        weights: float64 (models, layers). Layers whose weight is not finite are left out.

    Returns:
        Means, float64 (models,), NaN where no layer is left, and numbers L of layers, int64 (models,).

    Example:
        >>> mean_product(np.array([[1.0, 4.0, np.nan]]), np.array([[2.0, 1.0, 1.0]]))
        (array([3.]), array([2]))
    """
    used = ~np.isnan(values) & np.isfinite(weights)
    number = used.sum(axis=1, dtype=np.int64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        mean = np.where(used, np.where(used, weights, 0.0) * values, 0.0).sum(axis=1) / number
    return np.where(number > 0, mean, np.nan), number


class Frobenius(Aggregator):
    """Mean over layers weighted by the Frobenius norms of their weights: Σ w_ℓ m_ℓ / Σ w_ℓ with w_ℓ = ‖W_ℓ‖_F.

    Layers without a value are left out of both sums, and so are layers without a finite weight.

    Source: Rajagopal et al. 2021, section 2.3, which does not say how the sum is normalized; Liao et al. 2018 divide by
    the norms.

    Args:
        normalize: ``"weights"``, or ``"layers"`` for (1/L) Σ w_ℓ m_ℓ over the L layers that are used.
        power: 1, or −1 for w_ℓ = 1/‖W_ℓ‖_F. A norm of 0 then is no weight.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> norms, names = np.array([[3.0, 1.0]]), np.array([["conv", "fc"]], dtype=object)
        >>> Frobenius().reduce(np.array([[1.0, 5.0]]), norms, names)
        (array([2.]), array([2]))
        >>> Frobenius(normalize="layers").reduce(np.array([[1.0, 5.0]]), norms, names)
        (array([4.]), array([2]))
    """

    name: ClassVar[str] = "frobenius"

    def __init__(self, normalize: str = "weights", power: int = 1) -> None:
        one_of(self, "normalize", normalize, ("weights", "layers"))
        one_of(self, "power", power, (1, -1))
        self.normalize = normalize
        self.power = power

    def reduce(
        self, values: NDArray[np.float64], weight_norms: NDArray[np.float64], layer_names: NDArray[np.object_]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See :meth:`Aggregator.reduce`. Layers without a value, or without a finite weight, are left out."""
        mean = weighted_mean if self.normalize == "weights" else mean_product
        return mean(values, _weights(weight_norms, layer_names, self.power))


class MeanWeight(Aggregator):
    """Mean of the weights w_ℓ = ‖W_ℓ‖_F of the layers that have a value, whatever that is: (1/L) Σ w_ℓ.

    It shows how much of what :class:`Frobenius` with ``normalize="layers"`` gives is due to the weights alone.

    Args:
        power: 1, or −1 for w_ℓ = 1/‖W_ℓ‖_F.

    Raises:
        OptionError: If the power is neither.

    Example:
        >>> norms, names = np.array([[3.0, 1.0]]), np.array([["conv", "fc"]], dtype=object)
        >>> MeanWeight().reduce(np.array([[7.0, 5.0]]), norms, names)
        (array([2.]), array([2]))
    """

    name: ClassVar[str] = "mean_weight"
    reads_values: ClassVar[bool] = False

    def __init__(self, power: int = 1) -> None:
        one_of(self, "power", power, (1, -1))
        self.power = power

    def reduce(
        self, values: NDArray[np.float64], weight_norms: NDArray[np.float64], layer_names: NDArray[np.object_]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See :meth:`Aggregator.reduce`. Of the values, only which are missing is read."""
        return mean_product(np.where(np.isnan(values), np.nan, 1.0), _weights(weight_norms, layer_names, self.power))


def _weights(weight_norms: NDArray[np.float64], layer_names: NDArray[np.object_], power: int) -> NDArray[np.float64]:
    """float64 (models, layers): norms to a power, NaN where the model has no such layer."""
    with np.errstate(divide="ignore", over="ignore"):
        weights = weight_norms if power == 1 else 1 / weight_norms
    return np.where(has_layer(layer_names), weights, np.nan)


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
