"""Sums of the vectors of each cluster, and distances of vectors to centroids, without the loss of cancellation."""

from __future__ import annotations

import torch
from torch import Tensor

_ELEMENTS = 1 << 20
"""Elements of one block: a block stays in cache between its few operations."""
_CONVERTED = 1 << 18
"""Elements of one block that is converted to float64."""
_NEAR = 1e-2
"""A squared distance below this share of the squared norms is taken from differences: expanded, it loses digits."""
_FAR = 10.0
"""How many times their spread vectors may lie from the origin before they are centered."""
_PROBE = 64
MANY = 1024
"""Of more clusters than this each vector is compared with its own alone: products with all take n × k numbers, more
than the vectors themselves."""


def cluster_sums(vectors: Tensor, labels: Tensor, k: int, out: Tensor | None = None) -> Tensor:
    """float64 (k, D): sums of vectors (n, D), float32 or float64, by label int64 (n,) in 0 … k − 1.

    Every addition is in float64: a centroid that float32 shifts by a fraction of what the vectors
    resolve changes the spread of a tight cluster by much more. They are added to ``out`` where it is given.
    """
    out = vectors.new_zeros((k, vectors.shape[1]), dtype=torch.float64) if out is None else out
    rows = max(1, _CONVERTED // max(1, vectors.shape[1]))
    for block, label in zip(vectors.split(rows), labels.split(rows), strict=True):
        out.index_add_(0, label, block.double())
    return out


def square_distances(vectors: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """float64 (n,): squared distance of vectors (n, D) to their own of the centroids float64 (k, D)."""
    out = vectors.new_empty(len(vectors), dtype=torch.float64)
    if len(centroids) > MANY:
        for block, label, made in zip(*_blocks_of(vectors, labels, out), strict=True):
            own = centroids[label].to(vectors.dtype)
            made.copy_(own.sub_(block).square_().sum(1, dtype=torch.float64))
        return out
    # Rounding a centroid to the vectors' type shifts it by a fraction of what the vectors resolve, and a shift
    # about the mean moves mean distances in second order only: not so where vectors lie nearly as close to it.
    rounded = centroids.to(vectors.dtype)
    for block, label, made in zip(*_blocks_of(vectors, labels, out), strict=True):
        if vectors.dtype == torch.float64:
            made.copy_((block - rounded[label]).square_().sum(1))
            continue
        origin = _origin(block)
        centered, about = block, rounded
        if origin is not None:
            centered, about = block - origin, (centroids - origin).to(block.dtype)
        norms = torch.linalg.vector_norm(centered, dim=1).double().square_()
        own = (centered @ about.T).gather(1, label[:, None])[:, 0]
        made.copy_(expanded(norms, own, about, label))
        near = nearly_zero(made, norms).nonzero()[:, 0]
        if len(near):
            made[near] = block[near].double().sub_(centroids[label[near]]).square_().sum(1)
    return out


def row_norms(vectors: Tensor) -> Tensor:
    """float64 (n,): Euclidean norms of vectors (n, D)."""
    out = vectors.new_empty(len(vectors), dtype=torch.float64)
    rows = max(1, _CONVERTED // max(1, vectors.shape[1]))
    for block, made in zip(vectors.split(rows), out.split(rows), strict=True):
        torch.linalg.vector_norm(block, dim=1, dtype=torch.float64, out=made)
    return out


def expanded(square_norms: Tensor, products: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """float64 (n,): ‖p‖² − 2 p·c + ‖c‖² from square norms (n,) and products (n,) with the own of the centroids."""
    squares = centroids.double().square().sum(1)
    return square_norms.double() + squares[labels] - 2 * products.double()


def nearly_zero(square_distances: Tensor, square_norms: Tensor) -> Tensor:
    """bool (n,): which of the expanded squared distances are differences of much larger numbers."""
    return square_distances < _NEAR * square_norms


def is_far(mean_square: float, square_of_mean: float) -> bool:
    """Whether vectors lie so far from the origin, for their spread, that products of them cancel."""
    return _FAR**2 * max(0.0, mean_square - square_of_mean) < square_of_mean


def _origin(block: Tensor) -> Tensor | None:
    """A point amid the vectors if they lie far from the origin, else None."""
    probe = block[:: max(1, len(block) // _PROBE)]
    mean = probe.mean(0, dtype=torch.float64)
    spread, square = float((probe - mean).square().sum(1).mean()), float(mean.square().sum())
    return mean.to(block.dtype) if is_far(spread + square, square) else None


def _blocks_of(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    rows = max(1, _ELEMENTS // max(1, tensors[0][:1].numel()))
    return [tensor.split(rows) for tensor in tensors]
