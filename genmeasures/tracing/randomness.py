"""The generators of random numbers that a forward pass may draw from."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from genmeasures.generators import generator_of, global_generators


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
        held = {id(value): value for module in model.modules() for value in vars(module).values()}
        if device.type == "cuda":
            torch.cuda.init()
            index = torch.cuda.current_device() if device.index is None else device.index
            held[-1] = torch.cuda.default_generators[index]
        found = [one for value in held.values() if (one := generator_of(value)) is not None]
        self._generators = [*global_generators(), *found]

    def seed(self, seed: int) -> None:
        """Seed all of them with a number from 0 to 2⁶³ − 1."""
        for one in self._generators:
            one.seed(seed)

    def state(self) -> bytes:
        """What is equal before and after a forward pass if and only if this draws no random number."""
        return pickle.dumps([_plain(one.get()) for one in self._generators])

    @contextmanager
    def kept(self) -> Iterator[None]:
        """All of them are at the end as they were at the beginning."""
        states = [one.get() for one in self._generators]
        try:
            yield
        finally:
            for one, state in zip(self._generators, states, strict=True):
                one.set(state)


def _plain(state: Any) -> Any:
    return state.numpy().tobytes() if isinstance(state, torch.Tensor) else state
