"""Sum over layers with explicit weights, as in MARS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from genmeasures.aggregators.layers import has_layer, layer_index
from genmeasures.errors import OptionError, nearest
from genmeasures.interfaces import Aggregator, require


class Explicit(Aggregator):
    """Weighted sum over layers, Σ_ℓ α_ℓ m_ℓ. It is a sum, not a mean.

    A partial sum is not comparable with a complete one: where a layer with a weight has no value, or the model does not
    have it, the sum is NaN.

    Args:
        weights: Weights in layer order, one per layer, or a mapping of layer names to weights. In a mapping, layers
            that are not named have the weight 0.

    Raises:
        OptionError: If the weights are not finite numbers, or all are 0.

    Example:
        >>> values, names = np.array([[1.0, 2.0]]), np.array([["conv1", "conv2"]], dtype=object)
        >>> Explicit({"conv1": 2, "conv2": 0.5}).reduce(values, np.ones((1, 2)), names)
        (array([3.]), array([2]))
    """

    name: ClassVar[str] = "explicit"

    def __init__(self, weights: Sequence[float] | Mapping[str, float]) -> None:
        numbers = weights.values() if isinstance(weights, Mapping) else weights
        try:
            alphas = np.array([float(a) for a in numbers])
        except (TypeError, ValueError):
            alphas = np.array([np.nan])
        sound = bool(np.isfinite(alphas).all() and alphas.any()) and not isinstance(weights, str)
        require(sound, self, f"weights must be finite numbers of which at least one is not 0, got {weights!r}")
        self.weights = weights

    def reduce(
        self, values: NDArray[np.float64], weight_norms: NDArray[np.float64], layer_names: NDArray[np.object_]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See :meth:`Aggregator.reduce`. The weight norms are not read.

        A model without layers, because it could not be loaded, has no value and does not raise.

        Raises:
            OptionError: If the weights do not fit the layers of the models.
        """
        if isinstance(self.weights, Mapping):
            alphas = self._by_name(self.weights, layer_names)
            wanted = sum(a != 0 for a in self.weights.values())
        else:
            alphas = self._in_order(self.weights, layer_names)
            wanted = sum(a != 0 for a in self.weights)
        used = (alphas != 0) & ~np.isnan(values)
        number = used.sum(axis=1, dtype=np.int64)
        with np.errstate(invalid="ignore", over="ignore"):
            total = np.where(used, alphas * values, 0.0).sum(axis=1)
        return np.where(number == wanted, total, np.nan), number

    def _in_order(self, weights: Sequence[float], layer_names: NDArray[np.object_]) -> NDArray[np.float64]:
        """float64 (models, layers): the weight of every layer, 0 where the model has none."""
        layers = has_layer(layer_names).sum(axis=1)
        wrong = (layers > 0) & (layers != len(weights))
        if wrong.any():
            counts = ", ".join(str(n) for n in np.unique(layers[wrong]))
            raise OptionError(
                f"Explicit: expected one weight per layer, got {len(weights)} weights, but {wrong.sum()} of "
                f"{len(layers)} models have another number of layers ({counts}): pass a mapping of names to weights"
            )
        where = layer_index(layer_names)
        return np.where(where >= 0, np.asarray(weights, dtype=np.float64)[where], 0.0)

    def _by_name(self, weights: Mapping[str, float], layer_names: NDArray[np.object_]) -> NDArray[np.float64]:
        """float64 (models, layers): the weight of every layer, 0 where its name is not among ``weights``."""
        all_names = {str(name) for name in layer_names.flat if name}
        for name in weights:
            if all_names and name not in all_names:
                raise OptionError(f"Explicit: no model has a layer {name!r}{nearest(str(name), all_names)}")
        alphas = np.zeros(layer_names.shape)
        for name, alpha in weights.items():
            alphas[layer_names == name] = alpha
        return alphas
