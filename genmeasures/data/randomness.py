"""Users' samplers and data sets draw random numbers: always the same ones, and none of the caller's."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

_DEPTH = 4
"""How many samplers may lie within one another."""
_MOST_INDICES = 1_000_000
"""Indices that a sampler may give whatever the size of its data set."""


class PrivateRandomness:
    """The global generators of torch, NumPy and Python, seeded at the first entry; a later one goes on from there.

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
        self._state: tuple[Any, ...] | None = None

    def __enter__(self) -> None:
        self._outside = _states()
        if self._state is not None:
            _restore(self._state)
            return
        torch.default_generator.manual_seed(self._seed)
        np.random.seed(self._seed)  # noqa: NPY002 - the generator that users' code draws from
        random.seed(self._seed)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state = _states()
        _restore(self._outside)


def _states() -> tuple[Any, ...]:
    return torch.default_generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _restore(states: tuple[Any, ...]) -> None:
    torch.default_generator.set_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])


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
    before = [(generator, _state_of(generator)) for generator in _generators(sampler, _DEPTH)]
    try:
        for generator, _ in before:
            _begin(generator)
        yield
    finally:
        for generator, state in before:
            _set_state(generator, state)


def _generators(thing: object, depth: int) -> Iterator[Any]:
    for value in vars(thing).values() if depth and hasattr(thing, "__dict__") else ():
        if isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
            yield value
        elif hasattr(value, "__iter__") and not isinstance(value, Dataset | torch.Tensor | np.ndarray):
            yield from _generators(value, depth - 1)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _begin(generator: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(generator.initial_seed())
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(0).state
    else:
        generator.seed(0)
