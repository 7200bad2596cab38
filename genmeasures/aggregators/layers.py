"""Which layers a model has, from the (models, layers) array of layer names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def has_layer(layer_names: NDArray[np.object_]) -> NDArray[np.bool_]:
    """bool (models, layers): False where the name is ``""``, so where the model has no such layer."""
    return np.asarray(layer_names != "", dtype=np.bool_)


def place(layer_names: NDArray[np.object_]) -> NDArray[np.int64]:
    """int64 (models, layers): place of a layer among its model's layers, from 0; −1 where there is none."""
    has = has_layer(layer_names)
    return np.where(has, has.cumsum(axis=1, dtype=np.int64) - 1, -1)
