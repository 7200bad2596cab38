"""Random number generators that a forward pass may draw from."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from genmeasures.generators import generator_of, global_generators


class Generators:
    """The generators of torch on the CPU and the device, of Python and NumPy, and those in attributes of modules.

    Args:
        model: The model.
        device: Device that it runs on.

    Example:
        >>> model = nn.Dropout()
        >>> generators = Generators(model, torch.device("cpu"))
        >>> with generators.kept():
        ...     generators.seed(7)
        ...     first = model(torch.ones(100))
        ...     generators.seed(7)
        ...     second = model(torch.ones(100))
        >>> torch.equal(first, second)
        True
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        held = {id(value): value for module in model.modules() for value in vars(module).values()}
        if device.type == "cuda":
            torch.cuda.init()
            index = torch.cuda.current_device() if device.index is None else device.index
            held[-1] = torch.cuda.default_generators[index]
        generators = [generator for value in held.values() if (generator := generator_of(value)) is not None]
        self._generators = [*global_generators(), *generators]

    def seed(self, seed: int) -> None:
        """Seed all generators with a number from 0 to 2⁶³ − 1."""
        for generator in self._generators:
            generator.seed(seed)

    def state(self) -> bytes:
        """Return the states of all generators: equal before and after a pass if and only if it draws nothing."""
        return pickle.dumps([_plain(generator.get()) for generator in self._generators])

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restore the states of all generators at the end."""
        states = [generator.get() for generator in self._generators]
        try:
            yield
        finally:
            for generator, state in zip(self._generators, states, strict=True):
                generator.set(state)


def _plain(state: Any) -> Any:
    """A state that can be pickled deterministically."""
    return state.numpy().tobytes() if isinstance(state, torch.Tensor) else state
