"""Generators of random numbers of torch, NumPy and Python, read and set in one way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Generator:
    """A generator of any library: ``set`` takes back the state that ``get`` gave."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    seed: Callable[[int], Any]
    """Takes a number from 0 to 2⁶³ − 1."""


def generator_of(value: object) -> Generator | None:
    """A generator object as a :class:`Generator`; None for anything else.

    Example:
        >>> drawn = np.random.default_rng(0)
        >>> generator = generator_of(drawn)
        >>> state = generator.get()
        >>> first = drawn.random()
        >>> generator.set(state)
        >>> bool(drawn.random() == first)
        True
    """
    if isinstance(value, torch.Generator):
        return Generator(value.get_state, value.set_state, value.manual_seed)
    if isinstance(value, random.Random):
        return Generator(value.getstate, value.setstate, value.seed)
    if isinstance(value, np.random.RandomState):
        return Generator(value.get_state, value.set_state, lambda seed: value.seed(seed % 2**32))
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator

        def put(state: Any) -> None:
            bits.state = state

        return Generator(lambda: bits.state, put, lambda seed: put(type(bits)(seed).state))
    return None


def global_generators() -> list[Generator]:
    """torch's generator of the CPU, and the global ones of Python and NumPy."""
    get, put, seed = np.random.get_state, np.random.set_state, np.random.seed
    numpys = Generator(get, put, lambda value: seed(value % 2**32))
    torchs = generator_of(torch.default_generator)
    assert torchs is not None
    return [torchs, Generator(random.getstate, random.setstate, random.seed), numpys]
