"""Singular values of a matrix whose rows are streamed."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 4096
"""Rows that are collected before they are decomposed, at least."""


class StackedRows:
    """Rows of a matrix (N, K), of which a triangular matrix (K, K) with the same singular values is kept.

    It is R of the decomposition QR of the rows so far with those that come. Their products, a matrix (K, K) too, would
    lose the singular values below 1e-8 of the largest one.

    Example:
        >>> rows = StackedRows()
        >>> for part in torch.eye(4, dtype=torch.float64)[:, :2].split(3):
        ...     rows.add(part)
        >>> len(rows), rows.singular_values().round(decimals=6).tolist()
        (4, [1.0, 1.0])
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._waiting = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: Tensor) -> None:
        """Add rows.

        Args:
            rows: float64 (n, K).
        """
        self._parts.append(rows)
        self._waiting += len(rows)
        self._count += len(rows)
        if self._waiting >= max(_ROWS, rows.shape[1]):
            self._parts = [torch.linalg.qr(torch.cat(self._parts), mode="r").R]
            self._waiting = 0

    def singular_values(self) -> Tensor:
        """The singular values, float64 (min(N, K),), the largest one first."""
        values: Tensor = torch.linalg.svdvals(torch.cat(self._parts))
        return values


__all__ = ["StackedRows"]
