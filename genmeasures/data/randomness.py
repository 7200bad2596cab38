"""Reproducible randomness of users' samplers and data sets, apart from that of the caller."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from genmeasures.generators import Generator, generator_of, global_generators

_DEPTH = 4
"""Nesting of samplers that is searched for generators."""
_MOST_INDICES = 1_000_000
"""Indices that a sampler may draw, however small its data set."""


class PrivateRandomness:
    """A context with the global generators of torch, NumPy and Python in a private state.

    They are seeded at the first entry, and a later entry resumes their private state. Outside of the context, their
    state does not change.

    Args:
        seed: of the first entry.

    Example:
        >>> import torch
        >>> with PrivateRandomness(0):
        ...     first = torch.rand(1)
        >>> with PrivateRandomness(0):
        ...     bool(torch.rand(1) == first)
        True
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._state: list[Any] | None = None

    def __enter__(self) -> None:
        self._outside = _states()
        if self._state is not None:
            _restore(self._state)
            return
        for generator in global_generators():
            generator.seed(self._seed)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state = _states()
        _restore(self._outside)


def _states() -> list[Any]:
    return [generator.get() for generator in global_generators()]


def _restore(states: list[Any]) -> None:
    for generator, state in zip(global_generators(), states, strict=True):
        generator.set(state)


def drawn(sampler: Iterable[Any], size: int) -> list[Any]:
    """All indices of a sampler, the same at every call.

    The global generators are seeded, and those of the sampler are reset: a torch generator to its own seed, others to a
    fixed one. All are restored afterwards.

    Args:
        sampler: yields indices.
        size: of its data set.

    Raises:
        ValueError: the sampler does not end.

    Example:
        >>> from torch.utils.data import RandomSampler
        >>> sampler = RandomSampler(range(10))
        >>> drawn(sampler, 10) == drawn(sampler, 10)
        True
    """
    limit = 10 * size + _MOST_INDICES
    with PrivateRandomness(0), _at_their_beginning(sampler):
        indices = list(itertools.islice(iter(sampler), limit + 1))
    if len(indices) > limit:
        raise ValueError(f"the sampler does not end: more than {limit} indices of {size} samples")
    # Integers of one type can be sorted and shown.
    return [
        int(index) if isinstance(index, np.integer | torch.Tensor) and index.ndim == 0 else index for index in indices
    ]


@contextmanager
def _at_their_beginning(sampler: object) -> Iterator[None]:
    """The generators of a sampler, reset and afterwards restored."""
    generators = list(_generators(sampler, _DEPTH))
    before = [generator.get() for _, generator in generators]
    try:
        for value, generator in generators:
            generator.seed(value.initial_seed() if isinstance(value, torch.Generator) else 0)
        yield
    finally:
        for (_, generator), state in zip(generators, before, strict=True):
            generator.set(state)


def _generators(thing: object, depth: int) -> Iterator[tuple[object, Generator]]:
    for value in vars(thing).values() if depth and hasattr(thing, "__dict__") else ():
        generator = generator_of(value)
        if generator is not None:
            yield value, generator
        elif hasattr(value, "__iter__") and not isinstance(value, Dataset | torch.Tensor | np.ndarray):
            yield from _generators(value, depth - 1)
