"""Maximum over the layers of a model."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from genmeasures.aggregators.layers import has_layer
from genmeasures.interfaces import Aggregator


class Max(Aggregator):
    """Largest value among the layers that have a value.

    Example:
        >>> Max().reduce(np.array([[1.0, np.nan, 3.0]]), np.ones((1, 3)), np.array([["a", "b", "c"]], dtype=object))
        (array([3.]), array([2]))
    """

    name: ClassVar[str] = "max"

    def reduce(
        self, values: NDArray[np.float64], weight_norms: NDArray[np.float64], layer_names: NDArray[np.object_]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See :meth:`Aggregator.reduce`. The weight norms are not read."""
        used = has_layer(layer_names) & ~np.isnan(values)
        number = used.sum(axis=1, dtype=np.int64)
        largest = np.where(used, values, -np.inf).max(axis=1, initial=-np.inf)
        return np.where(number > 0, largest, np.nan), number
