"""Principal components of a sample, by whichever of the two covariance matrices is smaller."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasures.errors import Undefined

_ROWS = 4096
"""Rows converted to float64 at a time, so that a wide sample is never copied whole."""
_COLUMNS = 8192


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
        out = vectors.new_empty((len(vectors), len(self.components)), dtype=torch.float64)
        basis = self.components.T
        for start in range(0, len(vectors), _ROWS):
            torch.mm(vectors[start : start + _ROWS].double() - self.mean, basis, out=out[start : start + _ROWS])
        return out


def fit_pca(vectors: Tensor, components: int) -> PCA:
    """Fit min(components, k, n − 1) principal components to vectors float32 (n, k).

    The k × k covariance is formed when k ≤ n, else the n × n one (the dual form), so a sample of
    few long vectors never makes a k × k matrix.

    Raises Undefined for fewer than two vectors or vectors without any variance.
    """
    n, k = vectors.shape
    if n < 2:
        raise Undefined(f"{n} vectors are too few for a PCA")
    mean = _mean(vectors)
    d = min(components, k, n - 1)
    if k <= n:
        matrix = vectors.new_zeros((k, k), dtype=torch.float64)
        for rows in vectors.split(_ROWS):
            centred = rows.double() - mean
            matrix.addmm_(centred.T, centred)
    else:
        matrix = vectors.new_zeros((n, n), dtype=torch.float64)
        for columns, centre in zip(vectors.split(_COLUMNS, 1), mean.split(_COLUMNS), strict=True):
            centred = columns.double() - centre
            matrix.addmm_(centred, centred.T)
    matrix /= n - 1
    total = float(matrix.trace())
    if not total > 0:
        raise Undefined("constant features: every vector of the training sample is the same")
    values, basis = torch.linalg.eigh(matrix)
    values, basis = values.flip(0)[:d].clamp(min=0), basis.flip(1)[:, :d]
    if k > n:
        columns = [
            (block.double() - centre).T @ basis
            for block, centre in zip(vectors.split(_COLUMNS, 1), mean.split(_COLUMNS), strict=True)
        ]
        basis = torch.cat(columns)
        # A direction without variance has no image under the dual map: QR completes the basis.
        basis, _ = torch.linalg.qr(basis / (values * (n - 1)).clamp(min=1e-300).sqrt())
    return PCA(mean, _fix_signs(basis.T), values, total)


def _mean(vectors: Tensor) -> Tensor:
    total = vectors.new_zeros(vectors.shape[1], dtype=torch.float64)
    for rows in vectors.split(_ROWS):
        total += rows.sum(0, dtype=torch.float64)
    return total / len(vectors)


def _fix_signs(components: Tensor) -> Tensor:
    """Make the largest entry of each row positive: eigenvectors come with either sign."""
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return (components * torch.where(largest < 0, -1.0, 1.0)).contiguous()
