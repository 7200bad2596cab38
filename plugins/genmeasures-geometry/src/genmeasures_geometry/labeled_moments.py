"""Moments of labeled vectors."""

from __future__ import annotations

from torch import Tensor

from genmeasures_geometry.class_means import ClassMeans
from genmeasures_geometry.moments import Moments


class LabeledMoments:
    """Moments of all vectors, and the means of their classes.

    Example:
        >>> import torch
        >>> moments = LabeledMoments.of(torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([0, 0, 1]))
        >>> moments.total.mean.tolist(), moments.classes.means().tolist()
        ([2.0], [[1.0], [4.0]])
    """

    def __init__(self) -> None:
        self.total = Moments()
        self.classes = ClassMeans()

    @staticmethod
    def of(vectors: Tensor, labels: Tensor) -> LabeledMoments:
        """The moments of vectors.

        Args:
            vectors: (n, k).
            labels: int64 (n,).

        Example:
            >>> import torch
            >>> LabeledMoments.of(torch.zeros(2, 3), torch.tensor([0, 1])).total.count
            2
        """
        moments = LabeledMoments()
        moments.add(vectors, labels)
        return moments

    def add(self, vectors: Tensor, labels: Tensor, moments: Moments | None = None) -> None:
        """Add vectors.

        Args:
            vectors: float32 or float64 (n, k).
            labels: int64 (n,).
            moments: moments of these vectors, if they are known.
        """
        self.total.merge(Moments.of(vectors) if moments is None else moments)
        self.classes.add(vectors, labels)

    def check(self) -> None:
        """Check that there are at least two classes, and two different vectors, all of them finite.

        Raises:
            Undefined: There are not.
        """
        self.total.check_spread()
        self.classes.check()

    def between_root(self) -> Tensor:
        """float64 (K, k): a matrix R with RᵀR the scatter of the class means, Σ_c n_c (μ_c − μ)(μ_c − μ)ᵀ."""
        counts = self.classes.counts()
        return counts.sqrt()[:, None] * (self.classes.means() - self.total.mean)


class ClassMoments:
    """Moments of the vectors of each class: a covariance per class.

    Example:
        >>> import torch
        >>> moments = ClassMoments.of(torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([0, 0, 1]))
        >>> [part.count for part in moments.parts()], moments.total().mean.tolist()
        ([2, 1], [2.0])
    """

    def __init__(self) -> None:
        self._parts: dict[int, Moments] = {}

    @staticmethod
    def of(vectors: Tensor, labels: Tensor) -> ClassMoments:
        """The moments of vectors.

        Args:
            vectors: (n, k).
            labels: int64 (n,).

        Example:
            >>> import torch
            >>> len(ClassMoments.of(torch.zeros(2, 3), torch.tensor([0, 1])))
            2
        """
        moments = ClassMoments()
        moments.add(vectors, labels)
        return moments

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors.

        Args:
            vectors: float32 or float64 (n, k).
            labels: int64 (n,).
        """
        for label in labels.unique().tolist():
            self._parts.setdefault(label, Moments()).add(vectors[labels == label])

    def labels(self) -> set[int]:
        """The classes that occur."""
        return set(self._parts)

    def parts(self) -> list[Moments]:
        """The moments of each class, in ascending order of the labels."""
        return [self._parts[label] for label in sorted(self._parts)]

    def total(self) -> Moments:
        """The moments of all vectors."""
        total = Moments()
        for part in self.parts():
            total.merge(part)
        return total
