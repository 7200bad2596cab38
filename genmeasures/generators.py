"""One interface to the random generators of torch, NumPy and Python."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Generator:
    """A generator of any library: ``get`` returns its state, and ``set`` restores it.

    Example:
        >>> generator = generator_of(random.Random(0))
        >>> generator.seed(1)
    """

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    seed: Callable[[int], Any]
    """Seeds it with an integer from 0 to 2⁶³ − 1."""


def generator_of(value: object) -> Generator | None:
    """A generator object as a :class:`Generator`; None for anything else.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> generator = generator_of(rng)
        >>> state = generator.get()
        >>> first = rng.random()
        >>> generator.set(state)
        >>> bool(rng.random() == first)
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
    """The global generators: that of torch on the CPU, that of Python and that of NumPy.

    Example:
        >>> len(global_generators())
        3
    """
    get, put, seed = np.random.get_state, np.random.set_state, np.random.seed
    numpys = Generator(get, put, lambda value: seed(value % 2**32))
    torchs = generator_of(torch.default_generator)
    assert torchs is not None
    return [torchs, Generator(random.getstate, random.setstate, random.seed), numpys]
