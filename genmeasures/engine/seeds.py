"""Random numbers that depend on the run's seed and on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib

import torch

from genmeasures.tracing.randomness import Generators


def generator_for(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for one purpose: the same whatever else the run computes, and in what order."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class ModelSeeds:
    """Seeds all that a random model draws from, so that each pass over a batch and each run draw the same.

    needed: False leaves all generators alone, for a model that is not random.
    """

    def __init__(self, generators: Generators, seed: int, needed: bool) -> None:
        self._generators = generators
        self._seed = seed
        self._needed = needed

    def set(self, *purpose: object) -> None:
        """Seed them for one purpose: a batch of a split, for example."""
        if self._needed:
            self._generators.seed(generator_for(self._seed, "model", *purpose).initial_seed())
