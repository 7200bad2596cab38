"""Means of labeled vectors by class."""

from __future__ import annotations

import torch
from torch import Tensor

from genmeasures.plugin import Undefined

_BLOCK = 1 << 18
"""Elements that are converted to float64 at a time: they stay in cache."""


class ClassMeans:
    """Streamed means and numbers of the vectors of each class, in float64.

    Batches are merged by their means, not by sums, so that a large offset costs no digits.

    Example:
        >>> means = ClassMeans()
        >>> means.add(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([7, 7, 3]))
        >>> means.add(torch.tensor([[4.0]]), torch.tensor([7]))
        >>> means.labels().tolist(), means.counts().tolist(), means.means().tolist()
        ([3, 7], [1.0, 3.0], [[5.0], [2.0]])
    """

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        """Row of each class in the means and numbers."""
        self._means: Tensor | None = None
        self._counts = torch.zeros(0, dtype=torch.float64, device="cpu")

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors.

        Args:
            vectors: float32 or float64 (n, k).
            labels: int64 (n,), any integers.
        """
        if not len(labels):
            return
        distinct, index, numbers = labels.unique(return_inverse=True, return_counts=True)
        origin = vectors.mean(0, dtype=torch.float64)
        counts = numbers.double()
        sums = origin.new_zeros(len(distinct), len(origin))
        rows = max(1, _BLOCK // max(1, len(origin)))
        for some, own in zip(vectors.split(rows), index.split(rows), strict=True):
            sums.index_add_(0, own, some.double().sub(origin))
        means = origin + sums / counts[:, None]
        places = [self._rows.setdefault(label, len(self._rows)) for label in distinct.tolist()]
        if self._means is None:
            self._means, self._counts = means.new_zeros(0, means.shape[1]), means.new_zeros(0)
        new = len(self._rows) - len(self._means)
        if new:
            self._means = torch.cat([self._means, self._means.new_zeros(new, means.shape[1])])
            self._counts = torch.cat([self._counts, self._counts.new_zeros(new)])
        position = torch.tensor(places, device=means.device)
        total = self._counts[position] + counts
        before = self._means[position]
        self._means[position] = before + (means - before) * (counts / total)[:, None]
        self._counts[position] = total

    def _order(self) -> Tensor:
        return torch.tensor([self._rows[label] for label in sorted(self._rows)], device=self._counts.device)

    def labels(self) -> Tensor:
        """int64 (K,): the classes that occur, ascending."""
        return torch.tensor(sorted(self._rows), dtype=torch.int64, device=self._counts.device)

    def counts(self) -> Tensor:
        """float64 (K,): number of vectors of each class."""
        return self._counts[self._order()]

    def means(self) -> Tensor:
        """float64 (K, k): mean of each class.

        Raises:
            Undefined: There are no vectors.
        """
        if self._means is None:
            raise Undefined("no vectors in the sample")
        return self._means[self._order()]

    def check(self) -> None:
        """Check that there are at least two classes.

        Raises:
            Undefined: There are fewer.
        """
        if len(self._rows) < 2:
            raise Undefined(f"expected at least 2 classes in the sample, got {len(self._rows)}")
