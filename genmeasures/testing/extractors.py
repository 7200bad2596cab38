"""Checks of extractors: samples without duplicates, which do not depend on the order of the data."""

from __future__ import annotations

from unittest import SkipTest

import numpy as np
import torch
from numpy.typing import NDArray

from genmeasures.api import measure
from genmeasures.data import mix
from genmeasures.interfaces import Extractor, Measure, Sample
from genmeasures.registry import registry
from genmeasures.testing import toys
from genmeasures.testing.statuses import assert_sound
from genmeasures.tracing import LayerReader, trace

_POSITIONS = 16
_MOST_INPUTS = 200_000


def _keys(count: int) -> NDArray[np.uint64]:
    return mix(np.arange(count, dtype=np.uint64))


def _vectors(sample: Sample, stop: int, start: int = 0) -> list[tuple[int, int, int]]:
    return [(int(i), int(p), int(r)) for i, p, r in zip(*sample.part(start, stop), strict=True)]


def check_sample(component: Extractor) -> None:
    """A sample lists each vector once, sorted by input, at positions of the layer, with ranks 0 … n − 1."""
    sample = component.sample(_POSITIONS, _keys(20), 3)
    vectors = _vectors(sample, 20)
    assert len(vectors) == len(sample), f"{len(vectors)} vectors in a sample of length {len(sample)}"
    inputs, positions, ranks = (list(column) for column in zip(*vectors, strict=True))
    assert inputs == sorted(inputs), "the vectors are not sorted by input"
    assert len(set(zip(inputs, positions, strict=True))) == len(vectors), "a vector is listed twice"
    assert 0 <= min(positions) <= max(positions) < _POSITIONS, "a position lies outside the layer's output"
    assert sorted(ranks) == list(range(len(vectors))), "the ranks are not 0 … n − 1"
    halves = _vectors(sample, 9) + _vectors(sample, 20, 9)
    assert halves == vectors, "the parts of a sample do not add up to the whole"


def check_sample_order(component: Extractor) -> None:
    """Another order of the data gives the same vectors at the same ranks."""
    keys = _keys(20)
    order = np.random.default_rng(0).permutation(20)
    ranks = {(int(keys[i]), p): r for i, p, r in _vectors(component.sample(_POSITIONS, keys, 3), 20)}
    other = {(int(keys[order][i]), p): r for i, p, r in _vectors(component.sample(_POSITIONS, keys[order], 3), 20)}
    assert ranks == other, "the sample depends on the order of the data"


def check_fit_sample(component: Extractor) -> None:
    """A sample to fit on is no larger than fit_cap."""
    cap = component.fit_cap
    if cap >= _MOST_INPUTS:
        raise SkipTest(f"fit_cap is {cap}, more than the {_MOST_INPUTS} inputs that are tried")
    drawn = len(component.sample(_POSITIONS, _keys(cap + 1), 3, True))  # a vector of each input would be too many
    assert drawn <= cap, f"fit_cap is {cap}, and {drawn} vectors are drawn to fit on"


def check_vectors(component: Extractor) -> None:
    """Vectors and patches are float32, of the declared sizes, and the layer's tensors are not written to."""
    net = toys.network().eval()
    inputs, _ = toys.images(4, 0)
    traced = trace(net, inputs, component.tap).layers[1]
    tensors: list[torch.Tensor] = []
    handle = traced.module.register_forward_hook(lambda module, args, output: tensors.extend([args[0], output]))
    with torch.no_grad():
        net(inputs)
    handle.remove()
    rows, positions = torch.tensor([0, 2, 3]), torch.tensor([0, 5, 3])
    before = [tensor.clone() for tensor in tensors]
    vectors = component.vectors(tensors[1].flatten(2), rows, positions)
    patches = component.patches(LayerReader(traced.geometry, tensors[0], False), rows, positions).unfold()
    for what, returned, size in (
        ("vectors", vectors, component.vector_size(traced.layer)),
        ("patches", patches, component.patch_size(traced.layer)),
    ):
        assert returned.dtype == torch.float32, f"expected {what} of type float32, got {returned.dtype}"
        assert tuple(returned.shape) == (3, size), f"expected {what} of shape (3, {size}), got {tuple(returned.shape)}"
    for what, tensor, kept in zip(("input", "output"), tensors, before, strict=True):
        assert torch.equal(tensor, kept), f"it writes into the layer's {what}: copy it first"


def check_measures(component: Extractor) -> None:
    """Every built-in measure has a value with it, the same in batches of another size."""
    data = toys.images(60, 1), toys.images(45, 2)
    for name in [entry.name for kind, entry in registry().plugins[0].components if kind == "measure"]:
        tried = registry().make("measure", name, {})
        assert isinstance(tried, Measure)
        sizes = [
            measure({"net": toys.network()}, *data, measures=[tried], extractor=component.clone(), batch_size=size)
            for size in (16, 7)
        ]
        for variable in tried.variables:
            assert_sound(sizes[0], variable, f"the measure {name}: ")
            values, other = (ds[variable.name].values.ravel() for ds in sizes)
            assert np.isfinite(values).any(), (
                f"the measure {name}: {variable.name} has no value: {sizes[0][f'{variable.name}_status'].values[0, 0]}"
            )
            same = np.isclose(values, other, rtol=1e-4, atol=1e-7, equal_nan=True)
            assert same.all(), (
                f"the measure {name}: {variable.name} is {values[~same][0]}, in batches of 7 {other[~same][0]}"
            )


CHECKS = (check_sample, check_sample_order, check_fit_sample, check_vectors, check_measures)
