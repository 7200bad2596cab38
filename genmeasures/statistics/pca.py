"""Principal component analysis, from the smaller of the covariance and the Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import scipy.linalg
import torch
from torch import Tensor

from genmeasures.errors import Undefined

_ELEMENTS = 1 << 18
"""Elements per block that is converted to float64: a block stays in cache, and a wide sample is never copied whole."""
_WIDE = 4096
"""Dimensions above which blocks are columns instead of rows."""
_MORE = 6
"""Extra directions that the dual form and Lanczos iteration compute beyond those requested."""
_EXACT = 4096
"""Largest covariance or Gram matrix that is formed and decomposed, in time cubic in its size."""
_STEPS = 60
"""Maximum number of steps of Lanczos iteration."""
_SETTLED = 1e-9
"""Relative residual at which Lanczos iteration ends."""
_CONSTANT = "constant features: all vectors of the training sample are equal"


@dataclass(frozen=True)
class PCA:
    """Principal components fitted by :func:`fit_pca`."""

    mean: Tensor
    """float64 (k,)."""
    components: Tensor
    """float64 (d, k), orthonormal rows, in each of which the entry of largest magnitude is positive."""
    variance: Tensor
    """float64 (d,), variance along each component with divisor n − 1, in descending order."""
    total_variance: float
    """Sum of the variances of all k dimensions."""

    def project(self, vectors: Tensor) -> Tensor:
        """Project vectors onto the components.

        Args:
            vectors: float32 (n, k).

        Returns:
            float64 (n, d).

        Example:
            >>> pca, _ = fit_pca(torch.tensor([[0.0, 0.0], [2.0, 2.0]]), components=1)
            >>> pca.project(torch.tensor([[3.0, 1.0]])).square().round(decimals=6)
            tensor([[2.]], dtype=torch.float64)
        """
        basis = self.components.T
        out = (-self.mean @ basis).repeat(len(vectors), 1)
        if vectors.shape[1] > _WIDE:
            for columns in _column_blocks(vectors):
                out.addmm_(vectors[:, columns].double(), basis[columns])
        else:
            for rows in _row_blocks(vectors):
                out[rows].addmm_(vectors[rows].double(), basis)
        return out


class Identity:
    """Leaves vectors as they are, not even centered: what takes the place of a PCA where none is wanted."""

    def project(self, vectors: Tensor) -> Tensor:
        """Convert vectors.

        Args:
            vectors: float32 (n, k).

        Returns:
            float64 (n, k).

        Example:
            >>> Identity().project(torch.tensor([[3.0, 1.0]]))
            tensor([[3., 1.]], dtype=torch.float64)
        """
        return vectors.double()


def fit_pca(vectors: Tensor, components: int) -> tuple[PCA, Tensor]:
    """Fit d = min(components, k, n − 1) principal components.

    The k × k covariance matrix is formed if k ≤ n, else the n × n Gram matrix (the dual form), so that a
    sample of few long vectors never needs a k × k matrix. If n and k both exceed 4,096, neither is formed:
    block Lanczos iteration starts from fixed random directions and ends when the residuals of all
    components are below 1e-9 of the largest eigenvalue. If it does not converge, the matrix is formed.

    Args:
        vectors: float32 (n, k).
        components: Number of components requested.

    Returns:
        The components, and the projections of the vectors, float64 (n, d).

    Raises:
        Undefined: There are fewer than two vectors, or they have no variance.

    Example:
        >>> pca, projected = fit_pca(torch.tensor([[0.0, 1.0], [4.0, 1.0], [8.0, 1.0]]), components=1)
        >>> pca.mean.tolist(), pca.components.abs().tolist(), pca.variance.tolist()
        ([4.0, 1.0], [[1.0, 0.0]], [16.0])
        >>> projected.flatten().tolist()
        [-4.0, 0.0, 4.0]
    """
    n, k = vectors.shape
    if n < 2:
        raise Undefined(f"expected at least 2 vectors for a PCA, got {n}")
    mean = _mean(vectors)
    d = min(components, k, n - 1)
    fit = _lanczos(vectors, mean, d) if min(n, k) > _EXACT else None
    values, basis, total, scores = fit or (_primal if k <= n else _dual)(vectors, mean, d)
    signs = _signs(basis)
    pca = PCA(mean, (basis * signs).T.contiguous(), values / (n - 1), total / (n - 1))
    return pca, pca.project(vectors) if scores is None else scores * signs


_Fit: TypeAlias = tuple[Tensor, Tensor, float, Tensor | None]
"""The d largest eigenvalues (d,) of the scatter matrix (k, k), their eigenvectors (k, d), its trace, and the projected
vectors (n, d) where they are a by-product."""


def _primal(vectors: Tensor, mean: Tensor, d: int) -> _Fit:
    """Eigendecomposition of the k × k scatter matrix."""
    scatter = vectors.new_zeros((vectors.shape[1], vectors.shape[1]), dtype=torch.float64)
    for centered in _centered(vectors, mean, torch.float64, list(_row_blocks(vectors, 4 * _ELEMENTS)), None):
        scatter += _gram(centered.T)
    total = _positive(scatter)
    return *_leading(scatter, d), total, None


def _dual(vectors: Tensor, mean: Tensor, d: int) -> _Fit:
    """Eigendecomposition of the n × n Gram matrix.

    The Gram matrix comes from float32 products. A step of subspace iteration in float64, on some extra
    directions, then reduces the rounding error to that of float64.
    """
    n, k = vectors.shape
    products = vectors.new_zeros((n, n), dtype=torch.float64)
    for centered in _centered(vectors, mean, vectors.dtype, None, list(_column_blocks(vectors, 4 * _ELEMENTS))):
        products += _gram(centered)
    _positive(products)
    _, left = _leading(products, min(n - 1, d + _MORE))
    del products
    blocks = list(_column_blocks(vectors))
    total = 0.0
    image = vectors.new_empty((left.shape[1], k), dtype=torch.float64)
    for columns, centered in zip(blocks, _centered(vectors, mean, torch.float64, None, blocks), strict=True):
        image[:, columns] = left.T @ centered
        total += float(torch.linalg.vector_norm(centered)) ** 2
    # The image of a direction without variance is zero: QR completes the basis.
    basis, _ = torch.linalg.qr(image.T)
    scores = vectors.new_zeros((n, left.shape[1]), dtype=torch.float64)
    for columns, centered in zip(blocks, _centered(vectors, mean, torch.float64, None, blocks), strict=True):
        scores.addmm_(centered, basis[columns])
    values, turn = _leading(scores.T @ scores, d)
    return values, basis @ turn, total, scores @ turn


def _lanczos(vectors: Tensor, mean: Tensor, d: int) -> _Fit | None:
    """Block Lanczos iteration with full reorthogonalization in float64; None if it does not converge.

    Golub & Van Loan 2013, section 10.3.
    """
    k, size = vectors.shape[1], d + _MORE
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(k, size, generator=generator, dtype=torch.float64).to(vectors.device)
    directions, _ = torch.linalg.qr(start)
    basis, image = directions.new_empty(k, 0), directions.new_empty(k, 0)
    rows = list(_row_blocks(vectors, 4 * _ELEMENTS))
    total = 0.0
    for step in range(_STEPS):
        new = torch.zeros_like(directions)
        for centered in _centered(vectors, mean, torch.float64, rows, None):
            new.addmm_(centered.T, centered @ directions)
            total += float(torch.linalg.vector_norm(centered)) ** 2 if step == 0 else 0.0
        if not total > 0:
            raise Undefined(_CONSTANT)
        basis, image = torch.cat([basis, directions], 1), torch.cat([image, new], 1)
        product = basis.T @ image
        values, turn = _leading((product + product.T) / 2, d)
        ritz = basis @ turn
        residuals = (image @ turn - ritz * values).norm(dim=0)
        if float(residuals.max()) <= _SETTLED * float(values[0]):
            return values, ritz, total, None
        for _ in range(2):  # a single reorthogonalization leaves rounding errors
            new = new - basis @ (basis.T @ new)
            new, _ = torch.linalg.qr(new)
        directions = new
    return None


def _centered(
    vectors: Tensor, mean: Tensor, dtype: torch.dtype, rows: list[slice] | None, columns: list[slice] | None
) -> Iterator[Tensor]:
    """Blocks of rows or of columns minus the mean, all in the same memory.

    Allocating memory per block would cost more than the computation, especially with several threads.
    """
    parts = [(part, slice(None)) for part in rows or ()] + [(slice(None), part) for part in columns or ()]
    memory = vectors.new_empty(max(vectors[part].numel() for part in parts), dtype=dtype)
    mean = mean.to(dtype)
    for part in parts:
        block = vectors[part]
        yield memory[: block.numel()].view(block.shape).copy_(block).sub_(mean[part[1]])


def _gram(matrix: Tensor) -> Tensor:
    """matrix · matrixᵀ. NumPy takes half the time because it uses the symmetry of the product."""
    if matrix.device.type == "cpu":
        array = matrix.numpy()
        return torch.from_numpy(array @ array.T)
    return matrix @ matrix.T


def _leading(symmetric: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """The d largest eigenvalues, descending and at least 0, and their eigenvectors as columns."""
    k = len(symmetric)
    if symmetric.device.type == "cpu":
        decomposition = scipy.linalg.eigh(symmetric.numpy(), subset_by_index=[k - d, k - 1], check_finite=False)
        values, vectors = (torch.from_numpy(array) for array in decomposition)
    else:
        values, vectors = (part[..., -d:] for part in torch.linalg.eigh(symmetric))
    return values.flip(0).clamp(min=0), vectors.flip(1)


def _positive(symmetric: Tensor) -> float:
    """The trace; raises Undefined if there is no variance."""
    trace = float(symmetric.trace())
    if not trace > 0:
        raise Undefined(_CONSTANT)
    return trace


def _mean(vectors: Tensor) -> Tensor:
    """float64 (k,)."""
    total = vectors.new_zeros(vectors.shape[1], dtype=torch.float64)
    for rows in _row_blocks(vectors):
        total += vectors[rows].sum(0, dtype=torch.float64)
    return total / len(vectors)


def _row_blocks(vectors: Tensor, elements: int = _ELEMENTS) -> Iterator[slice]:
    return _slices(len(vectors), max(1, elements // vectors.shape[1]))


def _column_blocks(vectors: Tensor, elements: int = _ELEMENTS) -> Iterator[slice]:
    return _slices(vectors.shape[1], max(1, elements // len(vectors)))


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _signs(basis: Tensor) -> Tensor:
    """(d,): signs ±1 that make the entry of largest magnitude in each column of (k, d) positive."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))[0]
    return torch.where(largest < 0, -1.0, 1.0).double()
