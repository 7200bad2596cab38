"""A run over several models: which data each is measured with, and what its seed reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import davies_bouldin_score
from torch import Tensor, nn

import genmeasures
from genmeasures.extractors import ReceptiveField
from genmeasures.interfaces import (
    FeatureBatch,
    FeatureLabeler,
    FeatureMeasure,
    Layer,
    Pass,
    Split,
    TargetLabeler,
    Task,
    TaskModel,
    Variable,
)
from genmeasures.measures import DaviesBouldin, Roughness

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
ALL = ReceptiveField(cap=None)


def data(seed: int, count: int = 60) -> Arrays:
    """Inputs float32 (count, 1, 5, 5) and classes of 3."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % 3
    noise = rng.normal(size=(count, 1, 5, 5)).astype(np.float32)
    return noise + rng.normal(size=3).astype(np.float32)[classes, None, None, None], classes


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 6))


class Trained(Task):
    """Models of which some were trained on data of their own."""

    name = "trained"

    def __init__(self, own: Sequence[Arrays | None]) -> None:
        self.own = own

    def models(self) -> Sequence[TaskModel]:
        nets = [network(place) for place in range(len(self.own))]
        return [
            TaskModel(f"net_{place}", lambda net=net: net, train=own)
            for place, (net, own) in enumerate(zip(nets, self.own, strict=True))
        ]

    def data(self, split: Split) -> Any:
        return data(100 if split == "train" else 101)


def test_each_model_is_measured_with_the_data_it_was_trained_on() -> None:
    shared, one, two = data(100), data(1), data(2)
    own = [one, None, two, one]
    ds = genmeasures.measure(Trained(own), measures=[DaviesBouldin(space="pixel")])
    for place, given in enumerate(own):
        x, classes = shared if given is None else given
        with torch.no_grad():
            features = network(place)(torch.from_numpy(x)).double().numpy()
        expected = davies_bouldin_score(features, classes)
        np.testing.assert_allclose(ds["davies_bouldin"].values[place, 0], expected, rtol=1e-5)


def test_labelers_of_targets_are_fitted_on_the_data_of_each_model() -> None:
    """Equal labelers, one for each model: what the first saw must not serve the second."""

    class Seen(TargetLabeler):
        name = "seen"
        needs_fit = True

        def observe(self, targets: Tensor) -> None:
            self.largest = max(getattr(self, "largest", 0), int(targets.max()))

        def fit(self, generator: torch.Generator) -> None:
            pass

        def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
            return (targets == self.largest).long()

    x, classes = data(0)
    own = [(x, classes), (x, np.where(classes == 2, 1, classes))]
    ds = genmeasures.measure(Trained(own), measures=[DaviesBouldin(Seen(), space="pixel")])
    for place, (_, given) in enumerate(own):
        with torch.no_grad():
            features = network(place)(torch.from_numpy(x)).double().numpy()
        expected = davies_bouldin_score(features, given == given.max())
        np.testing.assert_allclose(ds["davies_bouldin"].values[place, 0], expected, rtol=1e-5)


# Seeds ------------------------------------------------------------------------------------------------------


class Seeds(FeatureLabeler):
    """Keeps the seeds that it is fitted with."""

    name = "seeds"
    given: list[int]

    def __init__(self, k: int = 2) -> None:
        self.k = k

    def fit(self, projected: Tensor, generator: torch.Generator) -> None:
        Seeds.given.append(generator.initial_seed())

    def label(self, projected: Tensor) -> Tensor:
        return torch.arange(len(projected)) % self.k


class TargetSeeds(TargetLabeler):
    name = "target_seeds"
    needs_fit = True
    given: list[int]

    def fit(self, generator: torch.Generator) -> None:
        TargetSeeds.given.append(generator.initial_seed())

    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        return targets[:, :1]


def seeds_of(labeler: Any, seed: int) -> list[int]:
    type(labeler).given = []
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    genmeasures.measure({"net": net}, data(0), measures=[DaviesBouldin(labeler)], extractor=ALL, seed=seed)
    return sorted(type(labeler).given)


@pytest.mark.parametrize(("labeler", "fits"), [(Seeds(), 2), (TargetSeeds(), 1)], ids=["features", "targets"])
def test_labelers_are_fitted_with_random_numbers_of_the_run(labeler: Any, fits: int) -> None:
    zero, again, one = (seeds_of(labeler, seed) for seed in (0, 0, 1))
    assert zero == again
    assert len(zero) == len(set(zero)) == fits  # another for each layer
    assert not set(zero) & set(one)
    if isinstance(labeler, Seeds):
        assert not set(zero) & set(seeds_of(Seeds(3), 0))  # and for each labeler


def test_the_seed_reaches_the_clusters() -> None:
    """All vectors are in the sample, in an order that no seed changes: the clusters are all that is left."""
    x, classes = data(3, 80)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3))

    def roughness(seed: int) -> float:
        measure = Roughness(genmeasures.labelers.KMeans(k=7, restarts=1))
        ds = genmeasures.measure({"net": net}, (x, classes), (x, classes), measures=[measure], extractor=ALL, seed=seed)
        return float(ds["roughness"].values[0, 0])

    found = [roughness(seed) for seed in (0, 0, 1, 2)]
    assert found[0] == found[1]
    assert len({round(value, 9) for value in found}) == 3


class Drawn(FeatureMeasure):
    """A random number of the generator that it is given."""

    name = "drawn"
    variables = (Variable("drawn", "a random number", 0),)
    passes = (Pass("test", "vectors"),)

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._number = float(torch.rand((), generator=generator))

    def update(self, batch: FeatureBatch) -> None:
        pass

    def compute(self) -> float:
        return self._number


def test_measures_are_given_random_numbers_of_the_run_and_the_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 6), nn.ReLU(), nn.Linear(6, 6))
    found = [
        genmeasures.measure({"net": net}, test=data(0), measures=[Drawn()], seed=seed)["drawn"].values[0].tolist()
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1]
    assert len({*found[0], *found[2]}) == 4
