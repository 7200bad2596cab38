"""Value of one layer, by index or by name."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from genmeasures.aggregators.layers import has_layer, layer_index
from genmeasures.errors import OptionError, nearest
from genmeasures.interfaces import Aggregator, require


class SingleLayer(Aggregator):
    """Value of one layer. A model that does not have the layer, while others have it, has no value.

    Args:
        layer: Name of the layer, or its index, where −1 is the last layer of each model.

    Raises:
        OptionError: If ``layer`` is neither a name nor an integer.

    Example:
        >>> names = np.array([["conv1", "conv2", "fc"]], dtype=object)
        >>> SingleLayer(-1).reduce(np.array([[1.0, 5.0, 7.0]]), np.ones((1, 3)), names)
        (array([7.]), array([1]))
    """

    name: ClassVar[str] = "single"

    def __init__(self, layer: int | str) -> None:
        sound = bool(layer) if isinstance(layer, str) else isinstance(layer, int) and not isinstance(layer, bool)
        require(sound, self, f"layer must be a name or an index, an integer, got {layer!r}")
        self.layer = layer

    def reduce(
        self, values: NDArray[np.float64], weight_norms: NDArray[np.float64], layer_names: NDArray[np.object_]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See :meth:`Aggregator.reduce`. The weight norms are not read.

        Raises:
            OptionError: If no model has the layer.
        """
        has = has_layer(layer_names)
        layers = has.sum(axis=1, keepdims=True)
        if isinstance(self.layer, str):
            chosen = layer_names == self.layer
        else:
            chosen = has & (layer_index(layer_names) == (self.layer if self.layer >= 0 else layers + self.layer))
        if has.any() and not chosen.any():
            all_names = {str(name) for name in layer_names.flat if name}
            hint = (
                nearest(self.layer, all_names) if isinstance(self.layer, str) else f" (they have up to {layers.max()})"
            )
            raise OptionError(f"SingleLayer: no model has a layer {self.layer!r}{hint}")
        used = chosen & ~np.isnan(values)
        number = used.sum(axis=1, dtype=np.int64)
        return np.where(number > 0, np.where(used, values, 0.0).sum(axis=1), np.nan), number
