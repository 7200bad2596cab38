"""Moments of vectors up to the fourth, streamed without cancellation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from genmeasures.plugin import Undefined

_CONSTANT = 1e-12
"""Vectors whose spread is smaller, relative to their mean, are equal up to rounding in float64."""
_ROWS = 1 << 19
"""Elements that are converted to float64 at a time."""


def _nothing() -> Tensor:
    return torch.zeros(0, dtype=torch.float64, device="cpu")


@dataclass
class Moments:
    """Moments of a set of vectors about its own mean, in float64.

    Batches are centered by their own mean and merged pairwise (Chan, Golub & LeVeque 1979), so that a mean of 1e6 at a
    spread of 1 loses no digits of the covariance.

    Example:
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> moments.add(torch.tensor([[4.0, 1.0]]))
        >>> moments.count, moments.mean.tolist(), moments.covariance().tolist()
        (3, [2.0, 1.0], [[4.0, 0.0], [0.0, 0.0]])
    """

    count: int = 0
    """n, the number of vectors."""
    mean: Tensor = field(default_factory=_nothing)
    """float64 (k,)."""
    scatter: Tensor = field(default_factory=_nothing)
    """float64 (k, k): Σ y yᵀ over the centered vectors y."""
    cubes: Tensor = field(default_factory=_nothing)
    """float64 (k,): Σ ‖y‖² y."""
    quartic: Tensor = field(default_factory=_nothing)
    """float64 (): Σ ‖y‖⁴."""
    dimension: int = 0
    """Number of dimensions of the space that the vectors are from: more than k if the moments are those of coordinates
    in a subspace that contains the vectors."""
    _axes: tuple[Tensor, Tensor] | None = None
    """Principal axes, once they are computed."""

    @staticmethod
    def of(vectors: Tensor) -> Moments:
        """The moments of vectors.

        Args:
            vectors: (n, k).

        Example:
            >>> Moments.of(torch.tensor([[1.0], [3.0]])).mean
            tensor([2.], dtype=torch.float64)
        """
        moments = Moments()
        moments.add(vectors)
        return moments

    def add(self, vectors: Tensor) -> None:
        """Add vectors.

        Args:
            vectors: float32 or float64 (n, k).
        """
        for rows in vectors.split(max(1, _ROWS // max(1, vectors.shape[1]))):
            if len(rows):
                self.merge(_of_batch(rows.double()))

    def merge(self, other: Moments) -> None:
        """Add the vectors of other moments.

        Args:
            other: moments of vectors of the same length.
        """
        if not other.count:
            return
        self._axes = None
        if not self.count:
            vars(self).update(vars(other))
            return
        n = self.count + other.count
        mean = self.mean + (other.mean - self.mean) * (other.count / n)
        parts = (self._about(mean), other._about(mean))
        self.scatter, self.cubes, self.quartic = (a + b for a, b in zip(*parts, strict=True))
        self.count, self.mean = n, mean

    def _about(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scatter, cubes and quartic of the vectors about another point (k,) than their mean."""
        shift = point - self.mean
        square = shift @ shift
        along = self.scatter @ shift
        trace = self.scatter.trace()
        scatter = self.scatter + self.count * torch.outer(shift, shift)
        cubes = self.cubes - 2 * along - shift * (trace + self.count * square)
        quartic = (
            self.quartic
            + 4 * shift @ along
            + self.count * square.square()
            - 4 * shift @ self.cubes
            + 2 * square * trace
        )
        return scatter, cubes, quartic

    def covariance(self) -> Tensor:
        """float64 (k, k): the covariance, with divisor n − 1.

        Raises:
            Undefined: There are fewer than two vectors, or they are not finite.
        """
        self.check()
        return self.scatter / (self.count - 1)

    def check(self, least: int = 2) -> None:
        """Check that there are enough vectors, and that they are finite.

        Args:
            least: smallest number of vectors.

        Raises:
            Undefined: There are fewer, or they are not finite.
        """
        if self.count < least:
            raise Undefined(f"expected at least {least} vectors in the sample, got {self.count}")
        if not bool(self.mean.isfinite().all()) or not bool(self.scatter.isfinite().all()):
            raise Undefined("the features are not finite")

    def check_spread(self) -> None:
        """Check that there are two different vectors, all of them finite.

        Raises:
            Undefined: There are not.
        """
        self.check()
        if float(self.scatter.trace()) <= self.count * _CONSTANT**2 * float(self.mean @ self.mean):
            raise Undefined("constant features: all vectors of the sample are equal")

    def axes(self) -> tuple[Tensor, Tensor]:
        """Principal axes.

        Returns:
            The eigenvalues of the scatter, float64 (r,), descending, without those that are zero up to rounding, and
            the eigenvectors as columns, float64 (k, r).

        Raises:
            Undefined: The vectors are equal or not finite.
        """
        if self._axes is None:
            self._axes = self._decomposed()
        return self._axes

    def _decomposed(self) -> tuple[Tensor, Tensor]:
        self.check_spread()
        values, vectors = torch.linalg.eigh(self.scatter)
        values, vectors = values.flip(0), vectors.flip(1)
        rank = int((values > len(values) * torch.finfo(torch.float64).eps * values[0]).sum())
        rank = min(rank, self.count - 1)
        return values[:rank], vectors[:, :rank]

    def root(self) -> Tensor:
        """float64 (r, k): a matrix R with RᵀR the scatter, its rows orthogonal."""
        values, vectors = self.axes()
        return values.sqrt()[:, None] * vectors.T

    def raw_root(self) -> Tensor:
        """float64 (r + 1, k): a matrix R with RᵀR = Σ x xᵀ of the vectors as they are, not centered."""
        mean = (self.count**0.5 * self.mean)[None]
        return torch.cat([mean, self.root()])


def _of_batch(vectors: Tensor) -> Moments:
    """The moments of a few vectors float64 (n, k)."""
    mean = vectors.mean(0)
    centered = vectors - mean
    # A mean of n numbers is off by rounding; what is left of it is taken out.
    rest = centered.mean(0)
    mean, centered = mean + rest, centered - rest
    squares = centered.square().sum(1)
    return Moments(len(vectors), mean, gram(centered), squares @ centered, squares @ squares, vectors.shape[1])


def gram(matrix: Tensor) -> Tensor:
    """The products of the columns, matrixᵀ · matrix; on the CPU by NumPy, which uses the symmetry and half the time.

    Args:
        matrix: (n, k).

    Returns:
        (k, k).

    Example:
        >>> gram(torch.tensor([[1.0, 2.0]]))
        tensor([[1., 2.],
                [2., 4.]])
    """
    if matrix.device.type == "cpu":
        array = matrix.numpy()
        return torch.from_numpy(array.T @ array)
    return matrix.T @ matrix
