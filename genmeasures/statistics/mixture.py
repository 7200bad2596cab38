"""Gaussian mixtures with full covariances, one for each cluster of a sample, by expectation-maximisation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.statistics.kmeans import kmeans

_SUBSAMPLE = 4000
_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Mixtures:
    """The components of all clusters' mixtures, side by side (g of them).

    cluster: int64 (g,), whose mixture a component belongs to. log_weights: float64 (g,), within
    its mixture. means: float64 (g, d). precisions: float64 (g, d, d), upper triangular U with
    U Uᵀ = Σ⁻¹. note: a remark on clusters that got fewer components than asked for, or "".
    """

    cluster: Tensor
    log_weights: Tensor
    means: Tensor
    precisions: Tensor
    note: str

    def component_log_densities(self, points: Tensor) -> Tensor:
        """float64 (n, g): log N(w; μ, Σ) of points float64 (n, d) under every component."""
        g, d = self.means.shape
        flat = self.precisions.permute(1, 0, 2).reshape(d, g * d)
        shift = torch.einsum("gd,gde->ge", self.means, self.precisions)
        constant = self.precisions.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * d * _LOG_2PI
        whitened = (points @ flat).view(-1, g, d) - shift
        return constant - 0.5 * whitened.square().sum(2)

    def mixture_log_densities(self, points: Tensor) -> Tensor:
        """float64 (n, clusters): log density of each cluster's mixture."""
        joint = self.component_log_densities(points) + self.log_weights
        return torch.stack([joint[:, self.cluster == i].logsumexp(1) for i in self.cluster.unique()], 1)


def components_for(size: int, dimensions: int, components: int) -> int:
    """How many full-covariance components a cluster of that size can carry: d + 1 points for each, at least one."""
    return max(1, min(components, size // (dimensions + 1)))


def fit_mixtures(
    points: Tensor,
    labels: Tensor,
    components: int,
    generator: torch.Generator,
    regularisation: float = 1e-6,
    tolerance: float = 1e-4,
    iterations: int = 200,
) -> Mixtures:
    """Fit a mixture of full-covariance Gaussians to each cluster of points float64 (n, d), labels int64 (n,).

    Every covariance gets ``regularisation`` times the mean variance of a dimension of *all* points
    on its diagonal, so dead dimensions and clusters of equal points stay defined whatever the
    scale of the features. A cluster too small for so many components gets fewer
    (:func:`components_for`). EM starts from k-means within the cluster, runs on a subsample first
    and ends on all points when the mean log-likelihood gains less than ``tolerance``.

    Raises Undefined if the points have no variance.
    """
    n, d = points.shape
    scale = float(points.var(0, correction=0).mean())
    if not scale > 0:
        raise Undefined("constant features: the training sample has no variance")
    ridge = regularisation * scale
    cluster, weights, means, precisions, reduced = [], [], [], [], []
    for label in labels.unique().tolist():
        members = points[labels == label]
        m = components_for(len(members), d, components)
        if m < components:
            reduced.append(f"cluster {label} of {len(members)} points")
        weight, mean, precision = _fit(members, m, ridge, generator, tolerance, iterations)
        cluster += [label] * len(weight)
        weights.append(weight)
        means.append(mean)
        precisions.append(precision)
    note = f"fewer than {components} mixture components for {', '.join(reduced)}" if reduced else ""
    return Mixtures(
        torch.tensor(cluster, device=points.device), torch.cat(weights).log(), torch.cat(means), torch.cat(precisions), note
    )


def _fit(
    points: Tensor, m: int, ridge: float, generator: torch.Generator, tolerance: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (m,), means (m, d) and precision factors (m, d, d) of one mixture."""
    n, d = points.shape
    eye = torch.eye(d, dtype=points.dtype, device=points.device)
    centre = points.mean(0)
    centred = points - centre
    # In the cluster's own standard coordinates the quadratic features below are well conditioned.
    root = torch.linalg.cholesky(centred.T @ centred / n + ridge * eye)
    inverse = torch.linalg.solve_triangular(root, eye, upper=False)
    white = centred @ inverse.T
    white_ridge = ridge * inverse @ inverse.T
    if m == 1:
        parameters = _maximise(torch.ones(n, 1, dtype=points.dtype, device=points.device), _quadratic(white), white_ridge)
    else:
        chosen = torch.randperm(n, generator=generator)[:_SUBSAMPLE].to(points.device)
        part = white[chosen]
        start = kmeans(part, m, generator, restarts=1).labels
        resp = torch.nn.functional.one_hot(start).to(points.dtype)
        quadratic = _quadratic(part)
        parameters = _climb(_maximise(resp, quadratic, white_ridge), quadratic, white_ridge, tolerance / 10, iterations)
        if n > _SUBSAMPLE:
            parameters = _climb(parameters, _quadratic(white), white_ridge, tolerance, iterations)
    weight, mean, covariance = parameters
    factor = torch.linalg.cholesky(root @ covariance @ root.T)
    return weight, mean @ root.T + centre, torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).mT


def _quadratic(x: Tensor) -> Tensor:
    """float64 (n, 1 + d + d(d+1)/2): 1, x and the upper triangle of x xᵀ, in which EM is two matrix products."""
    d = x.shape[1]
    row, column = torch.triu_indices(d, d, device=x.device)
    return torch.cat([x.new_ones(len(x), 1), x, x[:, row] * x[:, column]], 1)


_Parameters = tuple[Tensor, Tensor, Tensor]


def _maximise(resp: Tensor, quadratic: Tensor, ridge: Tensor) -> _Parameters:
    """M step: weights (m,), means (m, d), covariances (m, d, d); components without points are dropped."""
    sums = resp.T @ quadratic
    mass = sums[:, 0]
    alive = mass > 1e-10 * len(quadratic)
    sums, mass = sums[alive] / mass[alive, None], mass[alive]
    d = ridge.shape[0]
    mean = sums[:, 1 : d + 1]
    row, column = torch.triu_indices(d, d, device=resp.device)
    second = sums.new_empty(len(mass), d, d)
    second[:, row, column] = second[:, column, row] = sums[:, d + 1 :]
    covariance = second - mean[:, :, None] * mean[:, None, :] + ridge
    return mass / mass.sum(), mean, covariance


def _log_joint(parameters: _Parameters, quadratic: Tensor) -> Tensor:
    """(n, m): log of weight times density, linear in the quadratic features."""
    weight, mean, covariance = parameters
    d = mean.shape[1]
    factor = torch.linalg.cholesky(covariance)
    precision = torch.cholesky_inverse(factor)
    linear = torch.einsum("mde,me->md", precision, mean)
    constant = weight.log() - factor.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * d * _LOG_2PI
    constant = constant - 0.5 * (linear * mean).sum(1)
    row, column = torch.triu_indices(d, d, device=mean.device)
    square = torch.where(row == column, -0.5, -1.0) * precision[:, row, column]
    return quadratic @ torch.cat([constant[:, None], linear, square], 1).T


def _climb(parameters: _Parameters, quadratic: Tensor, ridge: Tensor, tolerance: float, iterations: int) -> _Parameters:
    """EM until the mean log-likelihood gains less than the tolerance."""
    last = -math.inf
    for _ in range(iterations):
        joint = _log_joint(parameters, quadratic)
        total = joint.logsumexp(1, keepdim=True)
        now = float(total.mean())
        parameters = _maximise((joint - total).exp_(), quadratic, ridge)
        if now - last < tolerance:
            break
        last = now
    return parameters
