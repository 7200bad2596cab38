"""Checks of aggregators: models are independent, and layers without a value are left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genmeasures.interfaces import Aggregator

_NAMES = np.array([["conv1", "conv2", "conv3", "fc"]] * 3, dtype=object)


def _values() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 4)) + 3, rng.uniform(1, 2, (3, 4))


def check_reduce(component: Aggregator) -> None:
    """It returns one number and one count of layers per model, and does not write to its arguments."""
    values, norms = _values()
    before, names = (values.copy(), norms.copy()), _NAMES.copy()
    reduced = component.reduce(values, norms, names)
    assert isinstance(reduced, tuple), f"expected (values, numbers of layers used), got a {type(reduced).__name__}"
    assert len(reduced) == 2, f"expected (values, numbers of layers used), got {len(reduced)} arrays"
    numbers, used = map(np.asarray, reduced)
    assert numbers.shape == used.shape == (3,), (
        f"expected two arrays of shape (3,), got {numbers.shape} and {used.shape}"
    )
    assert np.issubdtype(used.dtype, np.integer), f"expected integer counts of layers, got {used.dtype}"
    assert (values == before[0]).all(), "the values have changed"
    assert (norms == before[1]).all(), "the weight norms have changed"
    assert (names == _NAMES).all(), "the names of the layers have changed"
    assert ((used >= 0) & (used <= 4)).all(), f"layers used: {used}"


def check_models_by_themselves(component: Aggregator) -> None:
    """The number of a model does not depend on the other models."""
    values, norms = _values()
    together = component.reduce(values, norms, _NAMES)[0]
    for m in range(3):
        alone = component.reduce(values[m : m + 1], norms[m : m + 1], _NAMES[m : m + 1])[0]
        assert np.allclose(alone, together[m], equal_nan=True), (
            f"model {m}: {together[m]} among others, {alone[0]} alone"
        )


def check_missing_layers(component: Aggregator) -> None:
    """Padding after the layers of a model changes nothing, and models without any value get NaN and 0 layers used."""
    values, norms = _values()
    plain = component.reduce(values, norms, _NAMES)
    padding = np.full((3, 2), np.nan)
    names = np.concatenate([_NAMES, np.full((3, 2), "", dtype=object)], 1)
    padded = component.reduce(np.concatenate([values, padding], 1), np.concatenate([norms, padding], 1), names)
    assert np.allclose(padded[0], plain[0], equal_nan=True), f"{plain[0]} becomes {padded[0]} with padding"
    numbers, used = component.reduce(np.full_like(values, np.nan), norms, _NAMES)
    assert np.isnan(numbers).all(), f"expected NaN for layers without a value, got {numbers}"
    assert (used == 0).all(), f"expected 0 layers used where none has a value, got {used}"


CHECKS = (check_reduce, check_models_by_themselves, check_missing_layers)
