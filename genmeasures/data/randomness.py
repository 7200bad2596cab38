"""Users' samplers and data sets draw random numbers: always the same ones, and none of the caller's."""

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
"""How many samplers may lie within one another."""
_MOST_INDICES = 1_000_000
"""Indices that a sampler may give whatever the size of its data set."""


class PrivateRandomness:
    """The global generators of torch, NumPy and Python, seeded at the first entry; a later one continues from there.

    Outside they are as if nothing had been drawn.

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
    """Everything that a sampler of a data set of ``size`` gives: the same at every call, in whatever state it is.

    It finds the global generators seeded, and generators of its own at their beginning: a torch
    generator at its own seed, others at a fixed one. All are left as they were.

    Raises:
        ValueError: for a sampler that does not end.
    """
    limit = 10 * size + _MOST_INDICES
    with PrivateRandomness(0), _at_their_beginning(sampler):
        made = list(itertools.islice(iter(sampler), limit + 1))
    if len(made) > limit:
        raise ValueError(f"the sampler does not end: it gave more than {limit} indices of {size} samples")
    # Numbers alike, so that they can be put in order and named.
    return [int(index) if isinstance(index, np.integer | torch.Tensor) and index.ndim == 0 else index for index in made]


@contextmanager
def _at_their_beginning(sampler: object) -> Iterator[None]:
    """The generators that a sampler keeps, set back to where they began, and at the end to where they were."""
    found = list(_generators(sampler, _DEPTH))
    before = [generator.get() for _, generator in found]
    try:
        for value, generator in found:
            generator.seed(value.initial_seed() if isinstance(value, torch.Generator) else 0)
        yield
    finally:
        for (_, generator), state in zip(found, before, strict=True):
            generator.set(state)


def _generators(thing: object, depth: int) -> Iterator[tuple[object, Generator]]:
    for value in vars(thing).values() if depth and hasattr(thing, "__dict__") else ():
        generator = generator_of(value)
        if generator is not None:
            yield value, generator
        elif hasattr(value, "__iter__") and not isinstance(value, Dataset | torch.Tensor | np.ndarray):
            yield from _generators(value, depth - 1)
