"""Random samplers are drawn once, always alike; no reading moves a generator of the caller's."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import genmeasures
from genmeasures.data import DataSource
from genmeasures.errors import DataError

N = 40
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 4
DATA = TensorDataset(X, Y)


class Drawn(Sampler[int]):
    """Draws as it is told to at every reading."""

    def __init__(self, draw: Callable[[], list[int]]) -> None:
        self.draw = draw

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw())


class Keeps(Sampler[int]):
    """Draws from a generator of its own."""

    def __init__(self, generator: Any, draw: Callable[[Any], list[int]]) -> None:
        self.generator = generator
        self.draw = draw

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw(self.generator))


class Batches:
    """Random batches of part of the data; not a torch sampler."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(self.inner)
        for start in range(0, 12, 5):
            yield indices[start : min(start + 5, 12)]


def moved() -> torch.Generator:
    """A generator with a seed, from which the caller has drawn for some epochs."""
    made = torch.Generator().manual_seed(7)
    torch.rand(random.randrange(50), generator=made)
    return made


SAMPLERS: dict[str, Callable[[], dict[str, Any]]] = {
    "weighted": lambda: {"sampler": WeightedRandomSampler(torch.arange(1.0, N + 1).tolist(), 25)},
    "with replacement": lambda: {"sampler": RandomSampler(DATA, replacement=True)},
    "some of them": lambda: {"sampler": RandomSampler(DATA, num_samples=9)},
    "subset": lambda: {"sampler": SubsetRandomSampler(range(3, 30))},
    "own generator": lambda: {"sampler": WeightedRandomSampler([1.0] * N, 20, generator=moved())},
    "global torch": lambda: {"sampler": Drawn(lambda: torch.randperm(N)[:15].tolist())},
    "global torch tensors": lambda: {"sampler": Drawn(lambda: list(torch.randperm(N)[:15]))},  # type: ignore[arg-type]
    "global numpy": lambda: {"sampler": Drawn(lambda: list(np.random.permutation(N)[:15]))},  # noqa: NPY002
    "global random": lambda: {"sampler": Drawn(lambda: random.sample(range(N), 15))},
    "numpy generator": lambda: {
        "sampler": Keeps(np.random.default_rng(random.randrange(99)), lambda g: g.permutation(N)[:15].tolist())
    },
    "numpy state": lambda: {
        "sampler": Keeps(np.random.RandomState(random.randrange(99)), lambda g: g.permutation(N)[:15].tolist())
    },
    "random.Random": lambda: {"sampler": Keeps(random.Random(random.random()), lambda g: g.sample(range(N), 15))},
    "distributed": lambda: {"sampler": DistributedSampler(DATA, num_replicas=3, rank=1, shuffle=True)},
    "batches": lambda: {"batch_sampler": BatchSampler(WeightedRandomSampler([1.0] * N, 18), 5, False)},
    "batches of its own kind": lambda: {"batch_sampler": Batches(RandomSampler(DATA))},
    "batches of the data set": lambda: {
        "sampler": BatchSampler(RandomSampler(DATA, num_samples=12), 5, False),
        "batch_size": None,
    },
}


def inputs_of(loader: DataLoader[Any]) -> Tensor:
    one = DataSource(loader, "train", 8)
    first, second = (torch.cat([inputs for inputs, _ in one]) for _ in range(2))
    assert torch.equal(first, second)
    assert len(one.scan()) == len(first)
    list(one.checked())
    return first


def states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_selection_is_the_same_whatever_was_drawn_before(kind: str) -> None:
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        loader = DataLoader(DATA, **SAMPLERS[kind]())
        before = states()
        found.append(inputs_of(loader))
        found.append(inputs_of(loader))
        assert states() == before
    assert len(found[0]) < N or kind == "with replacement"
    for other in found[1:]:
        assert torch.equal(found[0], other)


def test_a_generator_of_the_samplers_is_left_where_it_was() -> None:
    one = torch.Generator().manual_seed(3)
    torch.rand(5, generator=one)
    other, third = np.random.default_rng(3), random.Random(3)
    expected = [one.get_state().tolist(), other.bit_generator.state, third.getstate()]
    samplers = [
        RandomSampler(DATA, num_samples=9, generator=one),
        Keeps(other, lambda g: g.permutation(N)[:15].tolist()),
        Keeps(third, lambda g: g.sample(range(N), 15)),
    ]
    for sampler in samplers:
        inputs_of(DataLoader(DATA, sampler=sampler))
        inputs_of(DataLoader(DATA, batch_sampler=BatchSampler(sampler, 4, False)))
    assert [one.get_state().tolist(), other.bit_generator.state, third.getstate()] == expected


def test_the_seed_of_a_samplers_generator_counts() -> None:
    """It is the caller's choice which selection is taken."""
    made = [
        inputs_of(
            DataLoader(DATA, sampler=RandomSampler(DATA, num_samples=9, generator=torch.Generator().manual_seed(s)))
        )
        for s in (1, 1, 2)
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_whole_measurement_moves_no_generator_and_repeats_itself() -> None:
    net = nn.Linear(6, 4)
    values = []
    for seed in range(2):
        torch.manual_seed(seed)
        loader = DataLoader(DATA, 8, sampler=WeightedRandomSampler([1.0] * N, 30))
        before = states()
        ds = genmeasures.measure({"net": net}, loader, measures=["davies_bouldin"])
        assert states() == before
        values.append(float(ds.davies_bouldin[0, 0]))
    assert values[0] == values[1]


def test_a_sampler_that_does_not_end_is_refused() -> None:
    class Endless(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return itertools.cycle(range(N))

    for options in ({"sampler": Endless()}, {"batch_sampler": BatchSampler(Endless(), 8, False)}):
        with pytest.raises(DataError, match=r"train data: the sampler cannot be read: .* does not end"):
            DataSource(DataLoader(DATA, **options), "train", 8)  # type: ignore[arg-type]


def test_a_sampler_that_fails_is_named() -> None:
    def fail() -> list[int]:
        raise KeyError("no such epoch")

    with pytest.raises(DataError, match="train data: the sampler cannot be read: KeyError: 'no such epoch'"):
        DataSource(DataLoader(DATA, sampler=Drawn(fail)), "train", 8)


# Data sets and streams.


class Stream(IterableDataset[Any]):
    def __init__(self, shuffles: bool = False) -> None:
        self.shuffles = shuffles

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(N) if self.shuffles else torch.arange(N)
        return iter([(X[i], Y[i]) for i in order])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_reading_a_stream_moves_no_generator(workers: int, generator: torch.Generator | None) -> None:
    loader = DataLoader(Stream(), 8, num_workers=workers, generator=generator)
    own = None if generator is None else generator.get_state().tolist()
    before = states()
    assert torch.equal(inputs_of(loader), X)
    assert states() == before
    assert generator is None or generator.get_state().tolist() == own


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_shuffles_is_found_out(workers: int) -> None:
    one = DataSource(DataLoader(Stream(True), 8, num_workers=workers), "train", 8)
    before = states()
    with pytest.raises(DataError, match="differs from one reading to the next; switch off random augmentation"):
        list(one.checked())
    assert states() == before


class Noisy(Dataset[Any]):
    """Random augmentation from one of the global generators."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return X[index] + self.draw(), Y[index]


@pytest.mark.parametrize(
    "draw",
    [lambda: float(torch.rand(1)), lambda: float(np.random.rand()), random.random],  # noqa: NPY002
    ids=["torch", "numpy", "random"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_augmentation_is_found_out(draw: Callable[[], float], workers: int) -> None:
    one = DataSource(DataLoader(Noisy(draw), 8, num_workers=workers), "train", 8)
    before = states()
    with pytest.raises(DataError, match="differs from one reading to the next"):
        list(one.checked())
    assert states() == before
