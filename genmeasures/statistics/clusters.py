"""Cluster sums and distances to centroids, computed without cancellation."""

from __future__ import annotations

import torch
from torch import Tensor

_ELEMENTS = 1 << 20
"""Elements per block: a block stays in cache for the few operations applied to it."""
_CONVERTED = 1 << 18
"""Elements per block that is converted to float64."""
_NEAR = 1e-2
"""A squared distance below this fraction of the squared norms is computed from differences: the expansion into products
would lose digits."""
_FAR = 10.0
"""Vectors are centered if they lie farther from the origin than this multiple of their spread."""
_PROBE = 64
"""Vectors from which the mean and the spread of a block are estimated."""
MANY = 1024
"""With more clusters than this, each vector is compared with its own centroid only: products with all centroids need
n × k elements, more than the vectors themselves."""


def cluster_sums(vectors: Tensor, labels: Tensor, k: int, out: Tensor | None = None) -> Tensor:
    """Sum the vectors of each cluster.

    All additions are in float64. In float32 a centroid would be off by a fraction of the resolution of
    the vectors, which changes the spread of a tight cluster by much more.

    Args:
        vectors: float32 or float64 (n, D).
        labels: int64 (n,), from 0 to k − 1.
        k: Number of clusters.
        out: float64 (k, D), to which the sums are added. A new tensor of zeros if None.

    Returns:
        float64 (k, D), ``out`` itself if it is given.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
        >>> cluster_sums(vectors, torch.tensor([0, 0, 1]), k=2)
        tensor([[4., 0.],
                [0., 5.]], dtype=torch.float64)
    """
    out = vectors.new_zeros((k, vectors.shape[1]), dtype=torch.float64) if out is None else out
    rows = max(1, _CONVERTED // max(1, vectors.shape[1]))
    for block, label in zip(vectors.split(rows), labels.split(rows), strict=True):
        out.index_add_(0, label, block.double())
    return out


def square_distances(vectors: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """Compute the squared distance of each vector to the centroid of its cluster.

    Args:
        vectors: float32 or float64 (n, D).
        centroids: float64 (k, D).
        labels: int64 (n,), from 0 to k − 1.

    Returns:
        float64 (n,).

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
        >>> centroids = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
        >>> square_distances(vectors, centroids, torch.tensor([0, 0, 1]))
        tensor([1., 1., 4.], dtype=torch.float64)
    """
    return distances_and_projections(vectors, centroids, labels, *_nothing(vectors))[0]


def distances_and_projections(
    vectors: Tensor, centroids: Tensor, labels: Tensor, mean: Tensor, components: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute squared distances to centroids as :func:`square_distances`, and projections, from the same products.

    Args:
        vectors: float32 or float64 (n, D).
        centroids: float64 (k, D).
        labels: int64 (n,), from 0 to k − 1.
        mean: float64 (D,).
        components: float64 (d, D).

    Returns:
        float64 (n,), the squared distances, and float64 (n, d), the vectors minus the mean, projected on components.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        >>> mean = torch.tensor([2.0, 0.0], dtype=torch.float64)
        >>> distances_and_projections(vectors, mean[None], torch.tensor([0, 0]), mean, components=mean[None] / 2)
        (tensor([1., 1.], dtype=torch.float64), tensor([[-1.],
                [ 1.]], dtype=torch.float64))
    """
    out = vectors.new_empty(len(vectors), dtype=torch.float64)
    projected = vectors.new_empty((len(vectors), len(components)), dtype=torch.float64)
    blocks = list(zip(*_blocks_of(vectors, labels, out, projected), strict=True))
    if len(centroids) > MANY or vectors.dtype == torch.float64:
        for block, label, distance, projection in blocks:
            own = centroids.index_select(0, label).to(vectors.dtype)
            distance.copy_(own.sub_(block).square_().sum(1, dtype=torch.float64))
            if len(components):
                projection.copy_((block.double() - mean) @ components.T)
        return out, projected
    k = len(centroids)
    # Rounding a centroid to the dtype of the vectors shifts it by a fraction of their resolution. A shift from the
    # mean changes mean distances to second order only, except where vectors are almost as close to the centroid.
    directions = torch.cat([centroids, components]).to(vectors.dtype)
    offset = components @ mean
    for block, label, distance, projection in blocks:
        origin = _origin(block)
        centered = block if origin is None else block - origin
        if origin is not None:
            directions[:k] = centroids - origin
        norms = torch.linalg.vector_norm(centered, dim=1).double().square_()
        products = centered @ directions.T
        own = products.gather(1, label[:, None])[:, 0]
        distance.copy_(expanded(norms, own, directions[:k], label))
        if len(components):
            projection.copy_(products[:, k:]).sub_(offset if origin is None else offset - components @ origin.double())
        if origin is not None:
            directions[:k] = centroids
        near = nearly_zero(distance, norms).nonzero()[:, 0]
        if len(near):
            distance[near] = block[near].double().sub_(centroids[label[near]]).square_().sum(1)
    return out, projected


def row_norms(vectors: Tensor) -> Tensor:
    """Compute the Euclidean norm of each vector.

    Args:
        vectors: float32 or float64 (n, D).

    Returns:
        float64 (n,).

    Example:
        >>> row_norms(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        tensor([5., 2.], dtype=torch.float64)
    """
    out = vectors.new_empty(len(vectors), dtype=torch.float64)
    rows = max(1, _CONVERTED // max(1, vectors.shape[1]))
    for block, norms in zip(vectors.split(rows), out.split(rows), strict=True):
        torch.linalg.vector_norm(block, dim=1, dtype=torch.float64, out=norms)
    return out


def expanded(square_norms: Tensor, products: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """Compute squared distances ‖p‖² − 2 p·c + ‖c‖² of vectors p to the centroids c of their clusters.

    Args:
        square_norms: (n,), ‖p‖² of each vector.
        products: (n,), p·c of each vector with the centroid of its cluster.
        centroids: (k, D).
        labels: int64 (n,), from 0 to k − 1.

    Returns:
        float64 (n,). Digits are lost where the distance is small compared with the norms (:func:`nearly_zero`).

    Example:
        >>> centroids = torch.tensor([[1.0, 1.0]])
        >>> expanded(torch.tensor([4.0]), torch.tensor([2.0]), centroids, torch.tensor([0]))
        tensor([2.], dtype=torch.float64)
    """
    squares = centroids.double().square().sum(1)
    return square_norms.double() + squares[labels] - 2 * products.double()


def nearly_zero(square_distances: Tensor, square_norms: Tensor) -> Tensor:
    """Find the squared distances that :func:`expanded` computes as differences of much larger numbers.

    Args:
        square_distances: (n,).
        square_norms: (n,), of the vectors.

    Returns:
        bool (n,).

    Example:
        >>> nearly_zero(torch.tensor([1e-4, 1.0]), torch.tensor([1.0, 1.0]))
        tensor([ True, False])
    """
    return square_distances < _NEAR * square_norms


def is_far(mean_square: float, square_of_mean: float) -> bool:
    """Whether vectors are far from the origin relative to their spread, so that their products cancel.

    Args:
        mean_square: Mean of the squared norms of the vectors.
        square_of_mean: Squared norm of their mean.

    Example:
        >>> is_far(mean_square=101.0, square_of_mean=100.5), is_far(mean_square=2.0, square_of_mean=1.0)
        (True, False)
    """
    return _FAR**2 * max(0.0, mean_square - square_of_mean) < square_of_mean


def _nothing(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """A mean and no components."""
    return vectors.new_zeros(vectors.shape[1], dtype=torch.float64), vectors.new_zeros(
        (0, vectors.shape[1]), dtype=torch.float64
    )


def _origin(block: Tensor) -> Tensor | None:
    """Mean of some of the vectors if they are far from the origin, else None."""
    probe = block[:: max(1, len(block) // _PROBE)]
    mean = probe.mean(0, dtype=torch.float64)
    spread, square = float((probe - mean).square().sum(1).mean()), float(mean.square().sum())
    return mean.to(block.dtype) if is_far(spread + square, square) else None


def _blocks_of(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Each tensor split into the same blocks of rows."""
    rows = max(1, _ELEMENTS // max(1, tensors[0][:1].numel()))
    return [tensor.split(rows) for tensor in tensors]
