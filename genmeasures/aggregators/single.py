"""The value of one layer, by place or by name."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from genmeasures.aggregators.layers import has_layer, place
from genmeasures.errors import OptionError, nearest
from genmeasures.interfaces import Aggregator, require


class SingleLayer(Aggregator):
    """The value of one layer: ``layer`` is its name, or its place, where −1 is a model's last layer.

    A model that lacks the layer, while others have it, has no value.
    """

    name: ClassVar[str] = "single"

    def __init__(self, layer: int | str) -> None:
        sound = bool(layer) if isinstance(layer, str) else isinstance(layer, int) and not isinstance(layer, bool)
        require(sound, self, f"layer={layer!r} must be a layer's name or its place, an integer")
        self.layer = layer

    def reduce(
        self, values: NDArray[np.float64], weight_norms: NDArray[np.float64], layer_names: NDArray[np.object_]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See :meth:`Aggregator.reduce`. The weight norms are not read.

        Raises :class:`OptionError` where no model has the layer.
        """
        has = has_layer(layer_names)
        layers = has.sum(axis=1, keepdims=True)
        if isinstance(self.layer, str):
            chosen = layer_names == self.layer
        else:
            chosen = has & (place(layer_names) == (self.layer if self.layer >= 0 else layers + self.layer))
        if has.any() and not chosen.any():
            known = {str(name) for name in layer_names.flat if name}
            hint = nearest(self.layer, known) if isinstance(self.layer, str) else f" (they have up to {layers.max()})"
            raise OptionError(f"SingleLayer: no model has a layer {self.layer!r}{hint}")
        used = chosen & ~np.isnan(values)
        number = used.sum(axis=1, dtype=np.int64)
        return np.where(number > 0, np.where(used, values, 0.0).sum(axis=1), np.nan), number
