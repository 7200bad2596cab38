"""What aggregators must do: each model by itself, layers without a value or that a model lacks left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genmeasures.interfaces import Aggregator

_NAMES = np.array([["conv1", "conv2", "conv3", "fc"]] * 3, dtype=object)


def _values() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 4)) + 3, rng.uniform(1, 2, (3, 4))


def check_reduce(component: Aggregator) -> None:
    """It gives one number and one count of layers a model, and does not write to its arguments."""
    values, norms = _values()
    before, names = (values.copy(), norms.copy()), _NAMES.copy()
    made = component.reduce(values, norms, names)
    assert isinstance(made, tuple), f"it gives a {type(made).__name__}, (values, numbers of layers used) is expected"
    assert len(made) == 2, f"it gives {len(made)} arrays, (values, numbers of layers used) are expected"
    numbers, used = map(np.asarray, made)
    assert numbers.shape == used.shape == (3,), (
        f"expected two arrays of shape (3,), got {numbers.shape} and {used.shape}"
    )
    assert np.issubdtype(used.dtype, np.integer), f"counts of layers are {used.dtype}"
    assert (values == before[0]).all(), "the values have changed"
    assert (norms == before[1]).all(), "the weight norms have changed"
    assert (names == _NAMES).all(), "the names of the layers have changed"
    assert ((used >= 0) & (used <= 4)).all(), f"layers used: {used}"


def check_models_by_themselves(component: Aggregator) -> None:
    """A model's number does not depend on the other models."""
    values, norms = _values()
    together = component.reduce(values, norms, _NAMES)[0]
    for m in range(3):
        alone = component.reduce(values[m : m + 1], norms[m : m + 1], _NAMES[m : m + 1])[0]
        assert np.allclose(alone, together[m], equal_nan=True), (
            f"model {m}: {together[m]} among others, {alone[0]} alone"
        )


def check_missing_layers(component: Aggregator) -> None:
    """Padding behind a model's layers changes nothing, and nothing measured gives NaN with no layer used."""
    values, norms = _values()
    plain = component.reduce(values, norms, _NAMES)
    padding = np.full((3, 2), np.nan)
    names = np.concatenate([_NAMES, np.full((3, 2), "", dtype=object)], 1)
    padded = component.reduce(np.concatenate([values, padding], 1), np.concatenate([norms, padding], 1), names)
    assert np.allclose(padded[0], plain[0], equal_nan=True), f"{plain[0]} becomes {padded[0]} with layers it lacks"
    numbers, used = component.reduce(np.full_like(values, np.nan), norms, _NAMES)
    assert np.isnan(numbers).all(), f"of layers without a value it makes {numbers}"
    assert (used == 0).all(), f"of layers without a value it uses {used}"


CHECKS = (check_reduce, check_models_by_themselves, check_missing_layers)
