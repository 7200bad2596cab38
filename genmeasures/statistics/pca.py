"""Principal component analysis, from the smaller of the covariance and the Gram matrix, or randomized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
_LEADING = 256
"""Largest covariance or Gram matrix that :func:`fit_leading` always decomposes exactly."""
_PER_COMPONENT = 8
"""The same, per component: the directions of that many steps are more than the matrix has."""
_SMALL = 1e-15
"""Smallest magnitude, and the inverse of the largest, whose squares are summed in float32."""
_LEADING_SETTLED = 1e-5
"""Relative residual at which :func:`fit_leading` ends, above the rounding error of float32 products."""
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
        return project(vectors, self.mean, self.components)


def project(vectors: Tensor, mean: Tensor, components: Tensor) -> Tensor:
    """Project vectors minus their mean onto components.

    Args:
        vectors: float32 (n, k).
        mean: float64 (k,).
        components: float64 (d, k).

    Returns:
        float64 (n, d).

    Example:
        >>> one = torch.ones(1, 2, dtype=torch.float64)
        >>> project(torch.tensor([[3.0, 1.0]]), mean=one[0], components=one)
        tensor([[2.]], dtype=torch.float64)
    """
    basis = components.T
    out = (-mean @ basis).repeat(len(vectors), 1)
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
    pca = _signed(mean, basis * signs, values, total, n)
    return pca, pca.project(vectors) if scores is None else scores * signs


def fit_leading(vectors: Tensor, components: int) -> PCA:
    """Fit d = min(components, k, n − 1) principal components of many long vectors in little time.

    Block Lanczos iteration starts from fixed random directions (a randomized method: Musco & Musco 2015). Its products
    are in float32, orthogonalization and eigenvalues in float64. It ends when the residuals of all components are below
    1e-5 of the largest eigenvalue. The variance lost to the exact components is of the order of the square, 1e-10 of
    the largest.
    If one side of the matrix is no larger than 256 or 8 times the components, :func:`fit_pca` is as fast, and is used.

    Args:
        vectors: float32 (n, k).
        components: Number of components requested.

    Raises:
        Undefined: There are fewer than two vectors, or they have no variance.

    Example:
        >>> vectors = torch.randn(1000, 300, generator=torch.Generator().manual_seed(0))
        >>> vectors[:, :2] *= torch.tensor([20.0, 10.0])
        >>> fit_leading(vectors, 2).components[:, :2].abs().round(decimals=1)
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    n, k = vectors.shape
    d = min(components, k, n - 1)
    if min(n, k) > max(_LEADING, _PER_COMPONENT * d) and _SMALL < float(vectors.abs().max()) < 1 / _SMALL:
        mean = _mean(vectors)
        fit = _leading_of_sample(vectors, mean, d)
        if fit is not None:
            values, basis, total, _ = fit
            return _signed(mean, basis * _signs(basis), values, total, n)
    return fit_pca(vectors, components)[0]


def _signed(mean: Tensor, basis: Tensor, values: Tensor, total: float, n: int) -> PCA:
    """The result of a fit on n vectors with the eigenvectors ``basis`` (k, d) of the scatter matrix."""
    return PCA(mean, basis.T.contiguous(), values / (n - 1), total / (n - 1))


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
    """Block Lanczos iteration in float64; None if it does not converge."""
    rows = list(_row_blocks(vectors, 4 * _ELEMENTS))
    blocks = _centered(vectors, mean, torch.float64, rows, None)
    total = sum(float(torch.linalg.vector_norm(centered)) ** 2 for centered in blocks)
    if not total > 0:
        raise Undefined(_CONSTANT)

    def scatter(directions: Tensor) -> Tensor:
        product = torch.zeros_like(directions)
        for centered in _centered(vectors, mean, torch.float64, rows, None):
            product.addmm_(centered.T, centered @ directions)
        return product

    found = _iterated(scatter, vectors.shape[1], d, _SETTLED, vectors.device)
    return None if found is None else (*found, total, None)


def _leading_of_sample(vectors: Tensor, mean: Tensor, d: int) -> _Fit | None:
    """The same with float32 products, and on the smaller side of the matrix."""
    centered = vectors - mean.to(vectors.dtype)
    total = float(torch.linalg.vector_norm(centered, dtype=torch.float64)) ** 2
    if not total > 0:
        raise Undefined(_CONSTANT)
    dual = centered.shape[1] > centered.shape[0]
    matrix = centered.T if dual else centered

    def scatter(directions: Tensor) -> Tensor:
        return (matrix.T @ (matrix @ directions.to(matrix.dtype))).double()

    found = _iterated(scatter, matrix.shape[1], d, _LEADING_SETTLED, vectors.device)
    if found is None:
        return None
    values, basis = found
    if dual:
        basis, _ = torch.linalg.qr((centered.T @ basis.to(centered.dtype)).double())
    return values, basis, total, None


def _iterated(
    scatter: Callable[[Tensor], Tensor], k: int, d: int, settled: float, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """The d largest eigenvalues and their eigenvectors (k, d) of a matrix (k, k) that is known by its products.

    Block Lanczos iteration with full reorthogonalization in float64, from fixed random directions, until the residuals
    are below ``settled`` of the largest eigenvalue; None if they never are. Golub & Van Loan 2013, section 10.3.
    """
    size = d + _MORE
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(k, size, generator=generator, dtype=torch.float64, device="cpu").to(device)
    directions, _ = torch.linalg.qr(start)
    basis, image = directions.new_empty(k, 0), directions.new_empty(k, 0)
    for _ in range(_STEPS):
        if basis.shape[1] + size > k:
            return None
        new = scatter(directions)
        basis, image = torch.cat([basis, directions], 1), torch.cat([image, new], 1)
        product = basis.T @ image
        values, turn = _leading((product + product.T) / 2, d)
        ritz = basis @ turn
        residuals = (image @ turn - ritz * values).norm(dim=0)
        if float(residuals.max()) <= settled * float(values[0]):
            return values, ritz
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
