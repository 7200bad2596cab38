"""Principal components, by whichever of the two covariance matrices is smaller."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import scipy.linalg
import torch
from torch import Tensor

from genmeasures.errors import Undefined

_ELEMENTS = 1 << 18
"""Elements converted to float64 at a time: they stay in cache, and a wide sample is never copied whole."""
_WIDE = 4096
"""Dimensions beyond which the rows of a block would be too few."""
_MORE = 6
"""Directions of the dual form beyond those asked for, refined with them."""
_EXACT = 4096
"""Size up to which a covariance matrix is formed and decomposed, which takes time with its cube."""
_STEPS = 60
_SETTLED = 1e-9
_CONSTANT = "constant features: every vector of the training sample is the same"


@dataclass(frozen=True)
class PCA:
    """Fitted components.

    mean: float64 (k,). components: float64 (d, k), orthonormal rows, each with its largest entry
    positive. variance: float64 (d,), along each component, descending, divisor n − 1.
    total_variance: sum of the variances of all k dimensions.
    """

    mean: Tensor
    components: Tensor
    variance: Tensor
    total_variance: float

    def project(self, vectors: Tensor) -> Tensor:
        """float64 (n, d) from float32 vectors (n, k)."""
        basis = self.components.T
        out = (-self.mean @ basis).repeat(len(vectors), 1)
        if vectors.shape[1] > _WIDE:
            for columns in _column_blocks(vectors):
                out.addmm_(vectors[:, columns].double(), basis[columns])
        else:
            for rows in _row_blocks(vectors):
                out[rows].addmm_(vectors[rows].double(), basis)
        return out


def fit_pca(vectors: Tensor, components: int) -> tuple[PCA, Tensor]:
    """Fit min(components, k, n − 1) = d principal components to vectors float32 (n, k), and project these: (n, d).

    The k × k covariance is formed when k ≤ n, else the n × n one (the dual form), so a sample of
    few long vectors never makes a k × k matrix. Where n and k are both above 4,096, neither is formed:
    block Lanczos iteration from fixed random directions goes on until the residuals of all components
    are below 1e-9 of the largest eigenvalue. Where it takes too many steps, the matrix is formed.

    Raises Undefined for fewer than two vectors or vectors without any variance.
    """
    n, k = vectors.shape
    if n < 2:
        raise Undefined(f"{n} vectors are too few for a PCA")
    mean = _mean(vectors)
    d = min(components, k, n - 1)
    found = _lanczos(vectors, mean, d) if min(n, k) > _EXACT else None
    values, basis, total, scores = found or (_primal if k <= n else _dual)(vectors, mean, d)
    signs = _signs(basis)
    pca = PCA(mean, (basis * signs).T.contiguous(), values / (n - 1), total / (n - 1))
    return pca, pca.project(vectors) if scores is None else scores * signs


_Fit: TypeAlias = tuple[Tensor, Tensor, float, Tensor | None]
"""Of the scatter matrix (k, k): the d largest eigenvalues (d,), their eigenvectors (k, d), and its trace; of the
vectors, their projections (n, d) if these came with it."""


def _primal(vectors: Tensor, mean: Tensor, d: int) -> _Fit:
    scatter = vectors.new_zeros((vectors.shape[1], vectors.shape[1]), dtype=torch.float64)
    for centered in _centered(vectors, mean, torch.float64, list(_row_blocks(vectors, 4 * _ELEMENTS)), None):
        scatter += _gram(centered.T)
    total = _positive(scatter)
    return *_leading(scatter, d), total, None


def _dual(vectors: Tensor, mean: Tensor, d: int) -> _Fit:
    """From the n × n products of the vectors, without the scatter matrix.

    The products come from float32 multiplications; a step of subspace iteration in float64, on
    more directions than are asked for, then leaves of their rounding what float64 would.
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
    # A direction without variance has no image under the dual map: QR completes the basis.
    basis, _ = torch.linalg.qr(image.T)
    scores = vectors.new_zeros((n, left.shape[1]), dtype=torch.float64)
    for columns, centered in zip(blocks, _centered(vectors, mean, torch.float64, None, blocks), strict=True):
        scores.addmm_(centered, basis[columns])
    values, turn = _leading(scores.T @ scores, d)
    return values, basis @ turn, total, scores @ turn


def _lanczos(vectors: Tensor, mean: Tensor, d: int) -> _Fit | None:
    """From products of the vectors with few directions at a time; None where the components do not settle.

    Block Lanczos with full reorthogonalization (Golub & Van Loan 2013, section 10.3), in float64.
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
        found = basis @ turn
        residuals = (image @ turn - found * values).norm(dim=0)
        if float(residuals.max()) <= _SETTLED * float(values[0]):
            return values, found, total, None
        for _ in range(2):  # once leaves what rounding makes of it
            new = new - basis @ (basis.T @ new)
            new, _ = torch.linalg.qr(new)
        directions = new
    return None


def _centered(
    vectors: Tensor, mean: Tensor, dtype: torch.dtype, rows: list[slice] | None, columns: list[slice] | None
) -> Iterator[Tensor]:
    """Blocks of rows or of columns minus the mean, one after another in the same memory.

    New memory for each would cost more than what is computed, above all in several threads.
    """
    parts = [(part, slice(None)) for part in rows or ()] + [(slice(None), part) for part in columns or ()]
    memory = vectors.new_empty(max(vectors[part].numel() for part in parts), dtype=dtype)
    mean = mean.to(dtype)
    for part in parts:
        block = vectors[part]
        yield memory[: block.numel()].view(block.shape).copy_(block).sub_(mean[part[1]])


def _gram(matrix: Tensor) -> Tensor:
    """matrix · matrixᵀ. NumPy's takes half the time: it knows that the product is symmetric."""
    if matrix.device.type == "cpu":
        array = matrix.numpy()
        return torch.from_numpy(array @ array.T)
    return matrix @ matrix.T


def _leading(symmetric: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """The d largest eigenvalues, descending and at least 0, and their eigenvectors as columns."""
    k = len(symmetric)
    if symmetric.device.type == "cpu":
        found = scipy.linalg.eigh(symmetric.numpy(), subset_by_index=[k - d, k - 1], check_finite=False)
        values, vectors = (torch.from_numpy(array) for array in found)
    else:
        values, vectors = (part[..., -d:] for part in torch.linalg.eigh(symmetric))
    return values.flip(0).clamp(min=0), vectors.flip(1)


def _positive(symmetric: Tensor) -> float:
    """The trace. Raises Undefined where there is no variance."""
    trace = float(symmetric.trace())
    if not trace > 0:
        raise Undefined(_CONSTANT)
    return trace


def _mean(vectors: Tensor) -> Tensor:
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
    """(d,): ±1 that make the largest entry of each column of (k, d) positive: eigenvectors come with either sign."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))[0]
    return torch.where(largest < 0, -1.0, 1.0).double()
