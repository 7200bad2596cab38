"""Layers of each model, from the (models, layers) array of layer names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def has_layer(layer_names: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Return bool (models, layers): False where the name is ``""``, that is, where the model has no such layer.

    Example:
        >>> has_layer(np.array([["conv", "fc"], ["conv", ""]], dtype=object))
        array([[ True,  True],
               [ True, False]])
    """
    return np.asarray(layer_names != "", dtype=np.bool_)


def layer_index(layer_names: NDArray[np.object_]) -> NDArray[np.int64]:
    """Return int64 (models, layers): index of a layer among the layers of its model; −1 where there is no layer.

    Example:
        >>> layer_index(np.array([["", "conv", "fc"]], dtype=object))
        array([[-1,  0,  1]])
    """
    has = has_layer(layer_names)
    return np.where(has, has.cumsum(axis=1, dtype=np.int64) - 1, -1)
