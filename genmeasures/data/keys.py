"""Hashes of the contents of inputs, so that samples do not depend on the order of the data."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash integers by the finalizer of splitmix64 (Steele, Lea & Flood 2014).

    ``mix(keys ^ salt)`` are random numbers for an extractor that depend on the contents of inputs, not on their order.

    Args:
        keys: uint64 of any shape.

    Returns:
        uint64 of the same shape, uniform over all 64 bits and different for different keys.

    Example:
        >>> mix(np.array([0, 1], dtype=np.uint64)).tolist()
        [16294208416658607535, 10451216379200822465]
    """
    z = keys + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@lru_cache(maxsize=8)
def _multipliers(count: int) -> Tensor:
    return torch.from_numpy(mix(np.arange(count, dtype=np.uint64)).view(np.int64) | 1)


def content_keys(inputs: Tensor) -> NDArray[np.uint64]:
    """Hash inputs: the same numbers have the same key in any batch.

    Args:
        inputs: (B, …).

    Returns:
        uint64 (B,).

    Example:
        >>> keys = content_keys(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
        >>> keys[0] == keys[2] != keys[1]
        np.True_
    """
    flat = inputs.detach().reshape(len(inputs), -1)
    words = flat.contiguous().view(torch.int32) if flat.dtype == torch.float32 else flat
    words = words.to(torch.int64)
    # Floats of few digits differ in their high bits only. Without the sign, x and −1 − x would be equal.
    words = (words >> 15).bitwise_and_((1 << 49) - 1).bitwise_xor_(words)
    # Integer products wrap: the sum is the same in any order and on any device.
    sums = words.mul_(_multipliers(words.shape[1]).to(words.device)).sum(1)
    return mix(sums.cpu().numpy().view(np.uint64))


def distinct(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Make duplicate keys different; the set of keys does not depend on the order.

    Args:
        keys: uint64 (N,).

    Returns:
        uint64 (N,).

    Example:
        >>> keys = np.array([5, 7, 5], dtype=np.uint64)
        >>> distinct(keys)[:2].tolist(), len(set(distinct(keys).tolist()))
        ([5, 7], 3)
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    start = np.r_[True, ordered[1:] != ordered[:-1]]
    first = np.maximum.accumulate(np.where(start, np.arange(len(keys)), 0))
    repeat = np.empty(len(keys), dtype=np.uint64)
    repeat[order] = (np.arange(len(keys)) - first).astype(np.uint64)
    return np.where(repeat == 0, keys, mix(mix(keys) + repeat))
