"""The generators of random numbers that a forward pass may draw from."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class _Source:
    """A generator: its state, as an object that ``set`` takes back."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    seed: Callable[[int], Any]


class Generators:
    """torch's generators of the CPU and of the device, Python's and NumPy's global ones, and those that modules hold.

    Example:
        >>> model = nn.Dropout()
        >>> generators = Generators(model, torch.device("cpu"))
        >>> with generators.kept():
        ...     generators.seed(7)
        ...     one = model(torch.ones(100))
        ...     generators.seed(7)
        ...     other = model(torch.ones(100))
        >>> torch.equal(one, other)
        True
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._sources = [_of_torch(torch.default_generator), _Source(random.getstate, random.setstate, random.seed)]
        if device.type == "cuda":
            torch.cuda.init()
            index = torch.cuda.current_device() if device.index is None else device.index
            self._sources.append(_of_torch(torch.cuda.default_generators[index]))
        get, put, seed = np.random.get_state, np.random.set_state, np.random.seed
        self._sources.append(_Source(get, put, lambda value: seed(value % 2**32)))
        held = {id(value): value for module in model.modules() for value in vars(module).values()}
        self._sources += [source for value in held.values() if (source := _source_of(value)) is not None]

    def seed(self, seed: int) -> None:
        """Seed all of them with a number from 0 to 2⁶³ − 1."""
        for source in self._sources:
            source.seed(seed)

    def state(self) -> bytes:
        """What is equal before and after a forward pass if and only if this draws no random number."""
        return pickle.dumps([_plain(source.get()) for source in self._sources])

    @contextmanager
    def kept(self) -> Iterator[None]:
        """All of them are at the end as they were at the beginning."""
        states = [source.get() for source in self._sources]
        try:
            yield
        finally:
            for source, state in zip(self._sources, states, strict=True):
                source.set(state)


def _plain(state: Any) -> Any:
    return state.numpy().tobytes() if isinstance(state, torch.Tensor) else state


def _of_torch(generator: torch.Generator) -> _Source:
    return _Source(generator.get_state, generator.set_state, generator.manual_seed)


def _source_of(value: object) -> _Source | None:
    """A generator that a module holds as an attribute."""
    if isinstance(value, torch.Generator):
        return _of_torch(value)
    if isinstance(value, random.Random):
        return _Source(value.getstate, value.setstate, value.seed)
    if isinstance(value, np.random.RandomState):
        return _Source(value.get_state, value.set_state, lambda seed: value.seed(seed % 2**32))
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator

        def put(state: Any) -> None:
            bits.state = state

        return _Source(lambda: bits.state, put, lambda seed: put(type(bits)(seed).state))
    return None
