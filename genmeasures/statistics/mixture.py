"""Gaussian mixtures with full covariance matrices, one per cluster, fitted by expectation-maximization."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.statistics.kmeans import kmeans

_SUBSAMPLE = 2000
"""Points per cluster that EM starts on."""
_NO_WEIGHT = 1e-10
"""Components with a smaller weight are dropped."""
_BLOCK = 2048
"""Points per block of densities: intermediate results stay in cache."""
_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Mixtures:
    """The g components of the mixtures of all clusters.

    Example:
        >>> standard = Mixtures(
        ...     cluster=torch.tensor([0]),
        ...     log_weights=torch.zeros(1, dtype=torch.float64),
        ...     means=torch.zeros(1, 2, dtype=torch.float64),
        ...     precisions=torch.eye(2, dtype=torch.float64)[None],
        ...     note="",
        ... )
        >>> density = standard.mixture_log_densities(torch.zeros(1, 2, dtype=torch.float64)).exp()
        >>> round(1 / float(density), 12) == round(2 * math.pi, 12)
        True
    """

    cluster: Tensor
    """int64 (g,), label of the cluster that each component belongs to."""
    log_weights: Tensor
    """float64 (g,), log of the weight of each component within its mixture."""
    means: Tensor
    """float64 (g, d)."""
    precisions: Tensor
    """float64 (g, d, d), upper triangular U with U Uᵀ = Σ⁻¹."""
    note: str
    """Which clusters have fewer components than requested, "" if none."""

    def component_log_densities(self, points: Tensor) -> Tensor:
        """Compute log N(x; μ, Σ) of each point x under each component.

        Args:
            points: float64 (n, d).

        Returns:
            float64 (n, g).
        """
        g, d = self.means.shape
        constant = self.precisions.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * d * _LOG_2PI
        shift = -torch.einsum("gd,gde->ge", self.means, self.precisions).reshape(g * d, 1)
        whitening = self.precisions.mT.reshape(g * d, d)
        densities = points.new_empty(g, len(points))
        for part, out in zip(points.split(_BLOCK), densities.split(_BLOCK, 1), strict=True):
            # Points come last, so that each step of the sum over d runs over contiguous memory.
            square = torch.addmm(shift, whitening, part.T).view(g, d, -1).square_().sum(1)
            torch.add(constant[:, None], square, alpha=-0.5, out=out)
        return densities.T

    def mixture_log_densities(self, points: Tensor) -> Tensor:
        """Compute the log density of each point under the mixture of each cluster.

        Args:
            points: float64 (n, d).

        Returns:
            float64 (n, clusters), in the order of the labels.
        """
        joint = self.component_log_densities(points) + self.log_weights
        return torch.stack([joint[:, self.cluster == i].logsumexp(1) for i in self.cluster.unique()], 1)


def components_for(size: int, dimensions: int, components: int) -> int:
    """Return the number of full-covariance components for a cluster.

    A component needs d + 1 points; a cluster has at least one component.

    Args:
        size: Number of points in the cluster.
        dimensions: Dimensions d of the points.
        components: Number of components requested, which is the maximum.

    Example:
        >>> components_for(100, dimensions=2, components=4), components_for(7, dimensions=2, components=4)
        (4, 2)
    """
    return max(1, min(components, size // (dimensions + 1)))


def fit_mixtures(
    points: Tensor,
    labels: Tensor,
    components: int,
    generator: torch.Generator,
    regularization: float = 1e-6,
    tolerance: float = 1e-3,
    iterations: int = 200,
) -> Mixtures:
    """Fit a mixture of Gaussians with full covariance matrices to each cluster.

    EM starts from k-means within the cluster, runs on a subsample first and then on all points. Clusters
    that are too small for the requested number of components get fewer (:func:`components_for`).

    Args:
        points: float64 (n, d).
        labels: int64 (n,), the cluster of each point.
        components: Number of components per cluster.
        generator: Source of random numbers, on the CPU.
        regularization: Added to the diagonal of each covariance matrix, as a multiple of the mean variance per
            dimension of *all* points. It keeps the fit defined for constant dimensions and for clusters of
            equal points, at any scale of the features.
        tolerance: EM ends when the mean log-likelihood increases by less than this.
        iterations: Maximum number of EM iterations.

    Returns:
        The mixtures of all clusters.

    Raises:
        Undefined: The points have no variance.

    Example:
        >>> points = torch.tensor([[0.0], [2.0], [10.0], [14.0]], dtype=torch.float64)
        >>> mixtures = fit_mixtures(points, torch.tensor([0, 0, 1, 1]), 1, torch.Generator().manual_seed(0))
        >>> mixtures.means.flatten().tolist()
        [1.0, 12.0]
        >>> (1 / mixtures.precisions.flatten() ** 2).round(decimals=2).tolist()  # variances
        [1.0, 4.0]
    """
    d = points.shape[1]
    scale = float(points.var(0, correction=0).mean())
    if not scale > 0:
        raise Undefined("constant features: the training sample has no variance")
    ridge = regularization * scale
    frames, reduced = [], []
    for label in labels.unique().tolist():
        members = points[labels == label]
        m = components_for(len(members), d, components)
        if m < components:
            reduced.append(f"cluster {label} of {len(members)} points")
        frames.append(_Frame(label, m, members, ridge, generator))
    for m in {frame.m for frame in frames}:
        together = [frame for frame in frames if frame.m == m]
        for frame, start in zip(together, _start(together, tolerance / 10, iterations), strict=True):
            frame.finish(start, tolerance, iterations)
    note = f"fewer than {components} mixture components for {', '.join(reduced)}" if reduced else ""
    return Mixtures(
        torch.tensor([frame.label for frame in frames for _ in frame.weights], device=points.device),
        torch.cat([frame.weights for frame in frames]).log(),
        torch.cat([frame.means for frame in frames]),
        torch.cat([frame.precisions for frame in frames]),
        note,
    )


class _Frame:
    """EM of one cluster in whitened coordinates, in which the quadratic features are well conditioned."""

    def __init__(self, label: int, m: int, points: Tensor, ridge: float, generator: torch.Generator) -> None:
        self.label = label
        self.m = m
        n, d = points.shape
        eye = torch.eye(d, dtype=points.dtype, device=points.device)
        self._center = points.mean(0)
        centered = points - self._center
        self._root = torch.linalg.cholesky(centered.T @ centered / n + ridge * eye)
        inverse = torch.linalg.solve_triangular(self._root, eye, upper=False)
        self._white = centered @ inverse.T
        self.ridge = ridge * inverse @ inverse.T
        chosen = torch.randperm(n, generator=generator, device=generator.device)[:_SUBSAMPLE].to(points.device)
        self.part = self._white[chosen]
        # In the original coordinates, in which directions with a large variance matter most.
        self.members = kmeans(points[chosen], m, generator, restarts=1).labels
        self.weights = self.means = self.precisions = points

    def finish(self, parameters: _Parameters, tolerance: float, iterations: int) -> None:
        """Run EM on all points and transform the result back to the original coordinates."""
        if len(self._white) > len(self.part):
            batch = (part[None] for part in parameters)
            parameters = _climb(tuple(batch), _quadratic(self._white)[None], self.ridge[None], tolerance, iterations)  # type: ignore[arg-type]
            parameters = tuple(part[0] for part in parameters)  # type: ignore[assignment]
        weights, means, covariances = parameters
        alive = weights > _NO_WEIGHT
        factor = torch.linalg.cholesky(self._root @ covariances[alive] @ self._root.T)
        eye = torch.eye(len(self._root), dtype=factor.dtype, device=factor.device)
        self.weights = weights[alive] / weights[alive].sum()
        self.means = means[alive] @ self._root.T + self._center
        self.precisions = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).mT
        self._white = self.part = self.means  # releases the points


def _start(frames: list[_Frame], tolerance: float, iterations: int) -> list[_Parameters]:
    """EM from k-means on the subsamples of clusters with the same number of components, all in one batch."""
    m = frames[0].m
    longest = max(len(frame.part) for frame in frames)
    # Shorter subsamples are padded with columns of zeros, which add nothing to any sum.
    quadratic = torch.stack(
        [torch.nn.functional.pad(_quadratic(frame.part), (0, longest - len(frame.part))) for frame in frames]
    )
    components = torch.arange(m, device=quadratic.device)[:, None]
    resp = torch.stack(
        [
            torch.nn.functional.pad(
                (frame.members == components).to(quadratic.dtype), (0, longest - len(frame.members))
            )
            for frame in frames
        ]
    )
    ridge = torch.stack([frame.ridge for frame in frames])
    parameters = _maximize(resp, quadratic, ridge)
    if m > 1:
        parameters = _climb(parameters, quadratic, ridge, tolerance, iterations)
    return [(parameters[0][i], parameters[1][i], parameters[2][i]) for i in range(len(frames))]


def _quadratic(x: Tensor) -> Tensor:
    """float64 (F, n), F = 1 + d + d(d+1)/2: rows 1, x and the upper triangle of x xᵀ, so that EM is two products.

    Points are columns, so that each step runs over contiguous memory.
    """
    columns = x.T.contiguous()
    row, column = torch.triu_indices(len(columns), len(columns), device=x.device)
    return torch.cat([columns.new_ones(1, len(x)), columns, columns[row] * columns[column]])


_Parameters = tuple[Tensor, Tensor, Tensor]
"""Weights (c, m), means (c, m, d) and covariances (c, m, d, d) of c mixtures."""


def _maximize(resp: Tensor, quadratic: Tensor, ridge: Tensor) -> _Parameters:
    """M step from responsibilities (c, m, n) and features (c, F, n); a component without points gets weight 0."""
    sums = resp @ quadratic.mT
    mass = sums[..., 0]
    weights = mass / mass.sum(1, keepdim=True)
    dead = weights <= _NO_WEIGHT
    sums = sums / mass.masked_fill(dead, 1.0)[..., None]
    d = ridge.shape[1]
    mean = sums[..., 1 : d + 1].masked_fill(dead[..., None], 0.0)
    row, column = torch.triu_indices(d, d, device=resp.device)
    second = sums.new_empty(*mass.shape, d, d)
    second[..., row, column] = second[..., column, row] = sums[..., d + 1 :]
    covariance = second - mean[..., :, None] * mean[..., None, :] + ridge[:, None]
    if bool(dead.any()):
        covariance = torch.where(dead[..., None, None], torch.eye(d, dtype=mean.dtype, device=mean.device), covariance)
    return weights.masked_fill(dead, 0.0), mean, covariance


def _log_joint(parameters: _Parameters, quadratic: Tensor) -> Tensor:
    """(c, m, n): log of weight times density, linear in the quadratic features."""
    weight, mean, covariance = parameters
    d = mean.shape[-1]
    factor = torch.linalg.cholesky(covariance)
    precision = torch.cholesky_inverse(factor)
    linear = (precision @ mean[..., None])[..., 0]
    constant = weight.log() - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * d * _LOG_2PI
    constant = constant - 0.5 * (linear * mean).sum(-1)
    row, column = torch.triu_indices(d, d, device=mean.device)
    square = torch.where(row == column, -0.5, -1.0) * precision[..., row, column]
    # log 0 of a component without weight would give 0 · −∞ = NaN in the padding.
    coefficients = torch.cat([constant.clamp(min=-1e30)[..., None], linear, square], -1)
    return coefficients @ quadratic


def _climb(parameters: _Parameters, quadratic: Tensor, ridge: Tensor, tolerance: float, iterations: int) -> _Parameters:
    """EM on each mixture until its mean log-likelihood increases by less than the tolerance."""
    ended = [part.clone() for part in parameters]
    running = torch.arange(len(quadratic), device=quadratic.device)
    present = quadratic[:, 0]
    last = quadratic.new_full((len(quadratic),), -math.inf)
    for _ in range(iterations):
        joint = _log_joint(parameters, quadratic)
        # logsumexp along the short dimension of components, written out so that each step is one long loop.
        peak = joint.amax(1, keepdim=True)
        joint.sub_(peak).exp_()
        total = joint.sum(1, keepdim=True)
        now = ((total.log() + peak)[:, 0] * present).sum(1) / present.sum(1)
        parameters = _maximize(joint.div_(total), quadratic, ridge)
        for kept, part in zip(ended, parameters, strict=True):
            kept[running] = part
        rising = now - last >= tolerance
        if not bool(rising.all()):
            if not bool(rising.any()):
                break
            running, quadratic, ridge, present = running[rising], quadratic[rising], ridge[rising], present[rising]
            parameters = (parameters[0][rising], parameters[1][rising], parameters[2][rising])
            now = now[rising]
        last = now
    return ended[0], ended[1], ended[2]
