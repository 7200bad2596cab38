"""Random generators derived from the seed of the run and their purpose alone."""

from __future__ import annotations

import hashlib

import torch

from genmeasures.tracing.randomness import Generators


def generator_for(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for one purpose: the same whatever else the run computes, and in whatever order.

    Args:
        seed: seed of the run.
        purpose: what the generator is for; its parts are distinguished by their strings.

    Example:
        >>> generator_for(0, "sample", "train").initial_seed() == generator_for(0, "sample", "test").initial_seed()
        False
    """
    text = "\x1f".join([str(seed), *map(str, purpose)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class ModelSeeds:
    """Seeds the generators that a random model draws from, so that each pass over a batch draws the same numbers.

    Args:
        generators: generators that the model may draw from.
        seed: seed of the run.
        needed: whether the model is random; if not, the generators are left alone.
    """

    def __init__(self, generators: Generators, seed: int, needed: bool) -> None:
        self._generators = generators
        self._seed = seed
        self._needed = needed

    def set(self, *purpose: object) -> None:
        """Seed them for one purpose, such as a batch of a split."""
        if self._needed:
            self._generators.seed(generator_for(self._seed, "model", *purpose).initial_seed())
