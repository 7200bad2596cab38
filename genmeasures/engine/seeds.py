"""Random numbers that depend on the run's seed and on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for one purpose: the same whatever else the run computes, and in what order."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
