"""Subsamples of vectors that depend on their ranks alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmeasures.data.keys import mix


class RankSample:
    """Up to ``size`` vectors of a sample, chosen by a hash of their ranks: the same ones in any order of batches.

    Args:
        size: Number of vectors.
        salt: Of the hash, below 2⁶³.

    Example:
        >>> sample = RankSample(2, salt=0)
        >>> for rank in torch.tensor([[0, 1], [2, 3]]):
        ...     chosen = sample.chosen(rank)
        ...     sample.add(rank[chosen], rank[chosen].float())
        >>> len(sample.result()[0])
        2
    """

    def __init__(self, size: int, salt: int) -> None:
        self._size = size
        self._salt = np.uint64(salt)
        self._keys: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._kept: tuple[Tensor, ...] = ()

    def _hashed(self, rank: Tensor) -> NDArray[np.uint64]:
        return mix(rank.cpu().numpy().astype(np.uint64) ^ self._salt)

    def chosen(self, rank: Tensor) -> Tensor:
        """int64 (m,), ascending: the rows of a batch that belong to the sample by what is known so far.

        Args:
            rank: int64 (n,), ranks of the batch.
        """
        keys = self._hashed(rank)
        if len(self._keys) >= self._size:
            rows = np.nonzero(keys < self._keys.max())[0]
        else:
            rows = np.sort(np.argsort(keys)[: self._size])
        return torch.from_numpy(rows).to(rank.device)

    def add(self, rank: Tensor, *tensors: Tensor) -> None:
        """Add chosen vectors of a batch.

        Args:
            rank: int64 (m,).
            tensors: (m, …) each, what is kept of these vectors.
        """
        keys = np.concatenate([self._keys, self._hashed(rank)])
        kept = self._kept or tuple(tensor[:0] for tensor in tensors)
        order = np.argsort(keys)[: self._size]
        rows = torch.from_numpy(order)
        self._keys = keys[order]
        self._kept = tuple(torch.cat(pair)[rows.to(pair[0].device)] for pair in zip(kept, tensors, strict=True))

    def result(self) -> tuple[Tensor, ...]:
        """What is kept of the chosen vectors, in an order that depends on their ranks alone."""
        return self._kept
