"""What labelers, extractors and aggregators give back: of a wrong type or shape, it is said whose and what was due."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import genmeasures
from genmeasures.errors import ComponentError
from genmeasures.extractors import ReceptiveField
from genmeasures.measures import Confidence, DaviesBouldin
from genmeasures.plugin import Aggregator, Drawn, FeatureLabeler, Labeler, TargetLabeler, mix, places

X = torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 3


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


class ByTarget(TargetLabeler):
    name = "by_target"

    def __init__(self, give: Any) -> None:
        self.give = give

    def label(self, targets: Any, spatial: Any) -> Any:
        return self.give(targets)


class ByFeature(FeatureLabeler):
    name = "by_feature"

    def __init__(self, give: Any) -> None:
        self.give = give

    def fit(self, projected: Any, generator: Any) -> None:
        self.median = projected[:, 0].median()

    def label(self, projected: Any) -> Any:
        return self.give((projected[:, 0] > self.median).long())


GIVEN = [
    (lambda labels: labels.float(), "label returned float32 "),
    (lambda labels: labels.bool(), "label returned bool "),
    (lambda labels: labels[1:], "label returned int64 (29"),
    (lambda labels: labels[..., None], "label returned int64 ("),
    (lambda labels: labels.numpy(), "label returned an object of type ndarray, "),
    (lambda labels: labels.tolist(), "label returned an object of type list, "),
    (lambda labels: None, "label returned None, "),
    (lambda labels: labels.nothing, "AttributeError: 'Tensor' object has no attribute 'nothing'"),
]


@pytest.mark.parametrize("labeler", [ByTarget, ByFeature])
@pytest.mark.parametrize(("give", "message"), GIVEN, ids=[message for _, message in GIVEN])
def test_labels(net: nn.Module, labeler: Any, give: Any, message: str) -> None:
    """The measure that reads them has no value, and the others go on."""
    measures = [DaviesBouldin(labeler=labeler(give)), Confidence()]
    ds = genmeasures.measure([net], (X, Y), X, measures=measures, extractor="whole_tensor")
    own = "" if message.startswith("Attribute") else f"{labeler.name}: "
    for status in ds["davies_bouldin_status"].values.ravel():
        assert status.startswith(f"failed: {own}{message}")
        assert not own or status.endswith("(30, 1)" if labeler is ByTarget else "(30,)")
    assert np.isfinite(ds["confidence"].values).any()


def test_labels_as_they_should_be(net: nn.Module) -> None:
    for labeler in (ByTarget(lambda labels: labels), ByFeature(lambda labels: labels)):
        ds = genmeasures.measure([net], (X, Y), X, measures=[DaviesBouldin(labeler=labeler)])
        assert set(ds["davies_bouldin_status"].values.ravel()) == {"ok"}


def test_a_labeler_of_no_kind(net: nn.Module) -> None:
    class NoKind(Labeler):
        name = "no_kind"

    with pytest.raises(ComponentError, match="NoKind is neither a TargetLabeler nor a FeatureLabeler: subclass one"):
        genmeasures.measure([net], (X, Y), X, measures=[DaviesBouldin(labeler=NoKind())])


class Own(ReceptiveField):
    """One random pixel of each input, by the public helpers; gives back what it is told to."""

    name = "own"

    def __init__(self, method: str = "", give: Any = None) -> None:
        super().__init__()
        self.method = method
        self.give = give

    def _given(self, method: str, made: Any) -> Any:
        return self.give(made) if method == self.method else made

    def sample(self, positions: int, keys: Any, seed: int, fit: bool = False) -> Any:
        salt = mix(np.array([seed], dtype=np.uint64))
        chosen = (mix(keys ^ salt) % np.uint64(positions)).astype(np.int64)
        return self._given("sample", Drawn(np.arange(len(keys)), chosen, places(keys)))

    def vectors(self, *given: Any) -> Any:
        return self._given("vectors", super().vectors(*given))

    def patches(self, *given: Any) -> Any:
        return self._given("patches", super().patches(*given))

    def vector_size(self, layer: Any) -> Any:
        return self._given("vector_size", super().vector_size(layer))


def test_an_extractor_of_the_public_helpers(net: nn.Module) -> None:
    """One vector an input, and none depends on the order of the data."""
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    one, other = (
        genmeasures.measure([net], (X[rows], Y[rows]), X[rows], measures=["davies_bouldin"], extractor=Own())
        for rows in (slice(None), order)
    )
    assert set(one["vectors_train"].values.ravel()) == {30}
    # The same pixels in other batches: sums of float32 differ by rounding.
    np.testing.assert_allclose(one["davies_bouldin"].values, other["davies_bouldin"].values, rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "give", "message"),
    [
        (
            "sample",
            lambda made: (made.inputs, made.positions, made.rank),
            "own: sample returned an object of type tuple, expected a Sam",
        ),
        ("sample", lambda made: None, "own: sample returned None, expected a Sample such as genmeasures.plugin.Drawn"),
        (
            "sample",
            lambda made: Drawn(made.inputs, made.positions * 1.0, made.rank),
            "positions of float64, expected int64",
        ),
        ("patches", lambda made: None, "own: patches returned None, expected a PatchSet such as read.receptive_fields"),
        ("patches", lambda made: made.unfold(), "own: patches returned float32 ("),
        ("vectors", lambda made: made.T, "own: vectors returned float32 (4, 30), expected float32 (30, 4)"),
        ("vectors", lambda made: made.half(), "own: vectors returned float16 (30, 4), expected float32 (30, 4)"),
        ("vectors", lambda made: made[1:], "own: vectors returned float32 (29, 4), expected float32 (30, 4)"),
        (
            "vectors",
            lambda made: made.numpy(),
            "own: vectors returned an object of type ndarray, expected float32 (30, 4)",
        ),
        ("vector_size", lambda made: made + 1, "own: vectors returned float32 (30, 4), expected float32 (30, 5)"),
    ],
)
def test_what_an_extractor_gives(net: nn.Module, method: str, give: Any, message: str) -> None:
    with pytest.raises(ComponentError) as caught:
        genmeasures.measure(
            [net], (X, Y), X, measures=["davies_bouldin"], extractor=Own(method, give), layers=["0"], errors="raise"
        )
    assert message in str(caught.value)


class Reduces(Aggregator):
    name = "reduces"

    def __init__(self, give: Any) -> None:
        self.give = give

    def reduce(self, values: Any, weight_norms: Any, layer_names: Any) -> Any:
        return self.give(values)


def _counts(values: Any) -> Any:
    return (~np.isnan(values)).sum(1)


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (
            lambda values: values.mean(1),
            "reduce must return (values, numbers of layers used), got an object of type ndarray",
        ),
        (lambda values: None, "numbers of layers used), got an object of type NoneType"),
        (lambda values: (1, 2, 3), "numbers of layers used), got a tuple of 3"),
        (
            lambda values: (values, _counts(values)),
            "reduce must return two arrays of shape (2,), a value and a number of layers per model, got (2, 2)",
        ),
        (lambda values: (1.0, _counts(values)), "per model, got () and (2,)"),
        (lambda values: (values.mean(1), 2), "per model, got (2,) and ()"),
        (
            lambda values: (values.mean(1), _counts(values) / 1),
            "reduce must return the numbers of layers as integers, got float64",
        ),
        (lambda values: 1 / 0, "ZeroDivisionError: division by zero (test_returned.py, line "),
        (lambda values: values.mean("layer"), "(test_returned.py, line "),
        (lambda values: values.fill(0), "read-only (test_returned.py, line "),
    ],
)
def test_what_an_aggregator_gives(net: nn.Module, give: Any, message: str) -> None:
    ds = genmeasures.measure([net, net], (X, Y), X, measures=["roughness"])
    before = ds.copy(deep=True)
    with pytest.raises(ComponentError) as caught:
        genmeasures.aggregate(ds, Reduces(give))
    assert message in str(caught.value)
    assert ds.identical(before)
    assert genmeasures.aggregate(ds, Reduces(lambda values: (values.mean(1), _counts(values))))["roughness"].shape == (
        2,
    )
