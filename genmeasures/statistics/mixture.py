"""Gaussian mixtures with full covariance matrices, one per cluster, fitted by expectation-maximization."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.statistics.kmeans import approximate_centers, assign

_SUBSAMPLE = 2000
"""Points per cluster that EM starts on."""
_FIRST = 500
"""Of these, points that k-means finds the first components in."""
_PER_PARAMETER = 10
"""A component needs so many points for each of the d + 1 points that determine an ellipsoid."""
_NO_WEIGHT = 1e-10
"""Components with a smaller weight are dropped."""
_BLOCK = 512
"""Points per block of densities: intermediate results stay in cache."""
_KEPT = 1 << 24
"""Quadratic features, in all, that are kept from one step of EM to the next."""
_AT_A_TIME = 1 << 21
"""Quadratic features that are computed at a time if there are more."""
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
    """int64 (g,), label of the cluster that each component belongs to, ascending."""
    log_weights: Tensor
    """float64 (g,), log of the weight of each component within its mixture."""
    means: Tensor
    """float64 (g, d)."""
    precisions: Tensor
    """float64 (g, d, d), upper triangular U with U Uᵀ = Σ⁻¹."""
    note: str
    """Which clusters have fewer components than requested, or a shrunk covariance; "" if none."""

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
        return self.mix(self.component_log_densities(points))

    def mix(self, densities: Tensor) -> Tensor:
        """Mix the log densities of the components to those of the clusters.

        Args:
            densities: float64 (n, g), as of :meth:`component_log_densities`.

        Returns:
            float64 (n, clusters), in the order of the labels.
        """
        # Along the short dimension of components, written out so that each step is one long loop.
        parts = self._by_cluster(densities.T + self.log_weights[:, None])
        peaks = [part.amax(0) for part in parts]
        return torch.stack(
            [part.sub_(peak).exp_().sum(0).log_().add_(peak) for part, peak in zip(parts, peaks, strict=True)], 1
        )

    def largest_posterior(self, densities: Tensor) -> Tensor:
        """Compute the largest posterior probability of a cluster, if all clusters are equally probable.

        Args:
            densities: float64 (n, g), as of :meth:`component_log_densities`.

        Returns:
            float64 (n,), in [1/clusters, 1].
        """
        joint = densities.T + self.log_weights[:, None]
        joint.sub_(joint.amax(0)).exp_()
        sums = torch.stack([part.sum(0) for part in self._by_cluster(joint)])
        return sums.amax(0) / sums.sum(0)

    def _by_cluster(self, values: Tensor) -> tuple[Tensor, ...]:
        """Split (g, n) into the components (m, n) of each cluster, which are side by side."""
        sizes: list[int] = self.cluster.unique_consecutive(return_counts=True)[1].tolist()
        return torch.split(values, sizes)


def components_for(size: int, dimensions: int, components: int) -> int:
    """Return the number of full-covariance components for a cluster.

    A component needs 10 · (d + 1) points; a cluster has at least one component.

    Args:
        size: Number of points in the cluster.
        dimensions: Dimensions d of the points.
        components: Number of components requested, which is the maximum.

    Example:
        >>> components_for(200, dimensions=2, components=4), components_for(70, dimensions=2, components=4)
        (4, 2)
    """
    return max(1, min(components, size // (_PER_PARAMETER * (dimensions + 1))))


def shrunk_covariance(covariance: Tensor, size: int, pooled: Tensor) -> Tensor:
    """Shrink the covariance of few points toward the shape of a pooled one, by oracle approximating shrinkage.

    In coordinates in which the pooled covariance is the identity I, the estimate is (1 − ρ) S + ρ tr(S)/d I, with
    ρ = min(1, ((1 − 2/d) tr S² + tr² S) / ((n + 1 − 2/d) (tr S² − tr² S / d))). A single point has the pooled
    covariance.

    Source: Chen, Wiesel, Eldar & Hero 2010, Shrinkage algorithms for MMSE covariance estimation, equation 23.

    Args:
        covariance: float64 (d, d), covariance S of the points with divisor n.
        size: Number n of points.
        pooled: float64 (d, d), positive definite.

    Returns:
        float64 (d, d).

    Example:
        Four points on a line have a full covariance afterwards:

        >>> line = torch.tensor([[4.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
        >>> shrunk_covariance(line, 4, torch.eye(2, dtype=torch.float64)).tolist()
        [[3.0, 0.0], [0.0, 1.0]]
    """
    if size == 1:
        return pooled
    d = len(covariance)
    root = torch.linalg.cholesky(pooled)
    half = torch.linalg.solve_triangular(root, covariance, upper=False)
    white = torch.linalg.solve_triangular(root, half.mT, upper=False)
    trace, square = float(white.trace()), float(white.square().sum())
    spread = (size + 1 - 2 / d) * (square - trace**2 / d)
    rho = min(1.0, ((1 - 2 / d) * square + trace**2) / spread) if spread > 0 else 1.0
    return (1 - rho) * covariance + rho * trace / d * pooled


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
    that are too small for the requested number of components get fewer (:func:`components_for`). A cluster that
    is too small for one component gets a covariance shrunk toward the pooled covariance within clusters
    (:func:`shrunk_covariance`), which is itself shrunk toward a multiple of the identity where all clusters together
    are that small.

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
        >>> points = torch.arange(40, dtype=torch.float64).view(-1, 1) % 20
        >>> labels = torch.arange(40) // 20
        >>> mixtures = fit_mixtures(points + 100 * labels[:, None], labels, 1, torch.Generator().manual_seed(0))
        >>> mixtures.means.flatten().tolist()
        [9.5, 109.5]
        >>> (1 / mixtures.precisions.flatten() ** 2).round(decimals=2).tolist()  # variances
        [33.25, 33.25]
    """
    fit = _Fit(points, labels, components, regularization)
    fit.start(generator, tolerance, iterations)
    return fit.finish(tolerance, iterations)


def fit_mixtures_apart(
    points: Tensor,
    labels: Tensor,
    apart: Tensor,
    held_back: Tensor,
    components: int,
    generator: torch.Generator,
    regularization: float = 1e-6,
    tolerance: float = 1e-3,
    iterations: int = 200,
) -> tuple[Mixtures, Mixtures]:
    """Fit mixtures to all points, as :func:`fit_mixtures` does, and others without the points held back.

    Both together cost about as much as the first alone. The others are fitted in coordinates of their own, on at
    most 2,000 points a cluster; EM on all points starts from them.

    Args:
        points: float64 (n, d).
        labels: int64 (n,), the cluster of each point.
        apart: float64 (n, e), the same points in coordinates that do not depend on those held back.
        held_back: bool (n,).
        components: Number of components per cluster.
        generator: Source of random numbers, on the CPU.
        regularization: See :func:`fit_mixtures`.
        tolerance: See :func:`fit_mixtures`.
        iterations: See :func:`fit_mixtures`.

    Returns:
        The mixtures of all points, and those of ``apart`` without the points held back.

    Raises:
        Undefined: The points that are not held back have no variance.

    Example:
        >>> points = torch.arange(40, dtype=torch.float64).view(-1, 1)
        >>> held_back = torch.arange(40) >= 30
        >>> both = fit_mixtures_apart(points, torch.zeros(40).long(), points, held_back, 1, torch.Generator())
        >>> [mixtures.means.item() for mixtures in both]
        [19.5, 14.5]
    """
    rest = (~held_back).nonzero()[:, 0]
    other = _Fit(apart[rest], labels[rest], components, regularization)
    other.start(generator, 10 * tolerance, iterations)  # EM on all points starts there
    fit = _Fit(points, labels, components, regularization)
    fit.start(generator, tolerance, iterations, other.memberships(rest))
    return fit.finish(tolerance, iterations), other.result()


_Memberships = dict[int, tuple[Tensor, Tensor]]
"""By label: indices of points int64 (s,), and the weights of the components of the cluster at them, (m, s)."""


class _Fit:
    """Mixtures of all clusters of some points, while they are fitted."""

    def __init__(self, points: Tensor, labels: Tensor, components: int, regularization: float) -> None:
        d = points.shape[1]
        scale = float(points.var(0, correction=0).mean()) if len(points) else 0.0
        if not scale > 0:
            raise Undefined("constant features: the training sample has no variance")
        self._points = points
        self._ridge = regularization * scale
        self._frames: list[_Frame] = []
        small, reduced = [], []
        for label in labels.unique().tolist():
            rows = (labels == label).nonzero()[:, 0]
            m = components_for(len(rows), d, components)
            self._frames.append(_Frame(label, m, rows, points[rows], self._ridge))
            if m < components:
                reduced.append(f"cluster {label} of {len(rows)} points")
            if len(rows) < _PER_PARAMETER * (d + 1):
                small.append(str(label))
        self._note = f"fewer than {components} mixture components for {', '.join(reduced)}" if reduced else ""
        if small:
            self._shrink()
            shrunk = f"covariance shrunk toward the pooled one for cluster {', '.join(small)}"
            self._note = f"{self._note}; {shrunk}" if self._note else shrunk

    def _shrink(self) -> None:
        """Shrink the covariances of clusters with too few points for one component."""
        n, d = self._points.shape
        within = torch.stack([frame.size * frame.covariance for frame in self._frames]).sum(0)
        if n > len(self._frames):
            pooled = within / (n - len(self._frames))
        else:  # every point is a cluster
            pooled = self._points.T.cov(correction=0).view(d, d)
        identity = torch.eye(d, dtype=within.dtype, device=within.device)
        pooled = pooled + self._ridge * identity
        freedom = max(1, n - len(self._frames))
        if freedom < _PER_PARAMETER * (d + 1):  # the pooled covariance may be singular itself
            pooled = shrunk_covariance(pooled, freedom, float(pooled.trace()) / d * identity)
        for frame in self._frames:
            if frame.size < _PER_PARAMETER * (d + 1):
                frame.covariance = shrunk_covariance(frame.covariance, frame.size, pooled)

    def start(
        self, generator: torch.Generator, tolerance: float, iterations: int, given: _Memberships | None = None
    ) -> None:
        """EM on a subsample of each cluster, from given memberships or else from k-means."""
        given = given or {}
        several = [frame for frame in self._frames if frame.m > 1]
        fresh = []
        for frame in several:
            rows, members = given.get(frame.label, (None, None))
            if rows is not None and members is not None and len(members) == frame.m:
                frame.take(torch.searchsorted(frame.rows, rows), members)
            else:
                frame.draw(generator)
                fresh.append(frame)
        large = [frame for frame in several if frame not in fresh and frame.size > _SUBSAMPLE]
        for m in {frame.m for frame in large}:
            together = [frame for frame in large if frame.m == m]
            _continue(together, [frame.part for frame in together], tolerance / 10, iterations)
        for m in {frame.m for frame in fresh}:
            together = [frame for frame in fresh if frame.m == m]
            for frame, parameters in zip(together, _start(together, tolerance / 10, iterations), strict=True):
                frame.parameters = parameters
                frame.settled = len(frame.chosen) == frame.size

    def memberships(self, rows: Tensor) -> _Memberships:
        """Of each cluster with several components; ``rows`` int64 (n,) are indices of the points elsewhere."""
        return {
            frame.label: (rows[frame.rows[frame.chosen]], frame.memberships()) for frame in self._frames if frame.m > 1
        }

    def finish(self, tolerance: float, iterations: int) -> Mixtures:
        """EM on all points, and the result."""
        running = [frame for frame in self._frames if frame.m > 1 and not frame.settled]
        small = [frame for frame in running if frame.size <= _SUBSAMPLE]
        for m in {frame.m for frame in small}:
            together = [frame for frame in small if frame.m == m]
            _continue(together, [frame.white for frame in together], tolerance, iterations)
        for frame in running:
            if frame.size > _SUBSAMPLE:
                _continue([frame], [frame.white], tolerance, iterations)
        return self.result()

    def result(self) -> Mixtures:
        """The mixtures as they are fitted so far."""
        weights, means, precisions = zip(*(frame.result() for frame in self._frames), strict=True)
        labels = [frame.label for frame, own in zip(self._frames, weights, strict=True) for _ in own]
        return Mixtures(
            torch.tensor(labels, device=self._points.device),
            torch.cat(weights).log(),
            torch.cat(means),
            torch.cat(precisions),
            self._note,
        )


class _Frame:
    """EM of one cluster in whitened coordinates, in which the quadratic features are well conditioned."""

    def __init__(self, label: int, m: int, rows: Tensor, points: Tensor, ridge: float) -> None:
        self.label = label
        self.m = m
        self.rows = rows
        """int64 (n,): indices of the points, ascending."""
        self.size = n = len(points)
        self._points = points
        self._eye = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
        self._center = points.mean(0)
        centered = points - self._center
        self.covariance = centered.T @ centered / n
        self._root = torch.linalg.cholesky(self.covariance + ridge * self._eye)
        self._ridge = ridge
        self.settled = False
        """Whether EM has ended on all points."""
        if m > 1:
            self._inverse = torch.linalg.solve_triangular(self._root, self._eye, upper=False)
            self.ridge = ridge * self._inverse @ self._inverse.T
        self.chosen = rows[:0]
        """int64 (s,): indices of the subsample among the points of the cluster."""
        self.members = rows[:0]
        """int64 (s,): the component of k-means of each of them."""
        self.parameters: _Parameters = (points, points, points)
        """Those of one mixture, without the dimension of mixtures."""

    @property
    def part(self) -> Tensor:
        """(s, d): the subsample in whitened coordinates."""
        return self._white(self._points[self.chosen])

    def _white(self, points: Tensor) -> Tensor:
        centered: Tensor = points - self._center
        white: Tensor = centered @ self._inverse.T
        return white

    def draw(self, generator: torch.Generator) -> None:
        """Draw the subsample, and find components in it by k-means."""
        chosen = torch.randperm(self.size, generator=generator, device=generator.device)[:_SUBSAMPLE]
        self.chosen = chosen.to(self._points.device)
        # In the original coordinates, in which directions with a large variance matter most.
        points = self._points[self.chosen]
        self.members = assign(points, approximate_centers(points[:_FIRST], self.m, generator))

    def take(self, chosen: Tensor, memberships: Tensor) -> None:
        """Start from the memberships (m, s) of some points, which are the subsample."""
        self.chosen = chosen
        features = _Features([self.part])
        self.parameters = _one(_maximize(features.sums(memberships[None]), self.ridge[None]))

    def memberships(self) -> Tensor:
        """(m, s): the memberships of the subsample in the components."""
        features = _Features([self.part])
        return _joint(_batch(self.parameters), features).softmax(1)[0]

    @property
    def white(self) -> Tensor:
        """(n, d): all points in whitened coordinates."""
        return self._white(self._points)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (m,), means (m, d) and precisions (m, d, d) in the original coordinates."""
        if self.m == 1:
            weights, means = self._center.new_ones(1), self._center[None]
            factor = torch.linalg.cholesky(self.covariance + self._ridge * self._eye)[None]
        else:
            weights, means, covariances = self.parameters
            alive = weights > _NO_WEIGHT
            factor = torch.linalg.cholesky(self._root @ covariances[alive] @ self._root.T)
            weights = weights[alive] / weights[alive].sum()
            means = means[alive] @ self._root.T + self._center
        return weights, means, torch.linalg.solve_triangular(factor, self._eye.expand_as(factor), upper=False).mT


def _continue(frames: list[_Frame], samples: list[Tensor], tolerance: float, iterations: int) -> None:
    """EM on whitened points (n_i, d) of clusters with the same number of components, all in one batch."""
    weights, means, covariances = zip(*(frame.parameters for frame in frames), strict=True)
    given = torch.stack(weights), torch.stack(means), torch.stack(covariances)
    ridge = torch.stack([frame.ridge for frame in frames])
    ended = _climb(given, _Features(samples), ridge, tolerance, iterations)
    for i, frame in enumerate(frames):
        frame.parameters = ended[0][i], ended[1][i], ended[2][i]


def _start(frames: list[_Frame], tolerance: float, iterations: int) -> list[_Parameters]:
    """EM from k-means on the subsamples of clusters with the same number of components, all in one batch."""
    m = frames[0].m
    features = _Features([frame.part for frame in frames])
    components = torch.arange(m, device=features.device)[:, None]
    resp = torch.stack(
        [
            torch.nn.functional.pad((frame.members == components).double(), (0, features.longest - len(frame.members)))
            for frame in frames
        ]
    )
    ridge = torch.stack([frame.ridge for frame in frames])
    parameters = _climb(_maximize(features.sums(resp), ridge), features, ridge, tolerance, iterations)
    return [(parameters[0][i], parameters[1][i], parameters[2][i]) for i in range(len(frames))]


class _Features:
    """Quadratic features of c samples: 1, x and the upper triangle of x xᵀ, so that EM is two products.

    There are F = 1 + d + d(d+1)/2 of them. They are kept if they fit into memory, or else computed again for every
    product, some points at a time.
    """

    def __init__(self, samples: list[Tensor]) -> None:
        """Take samples (n_i, d)."""
        self.longest = max(map(len, samples))
        # Shorter samples are padded with columns of zeros, which add nothing to any sum. Points are columns, so that
        # each step runs over contiguous memory.
        pad = torch.nn.functional.pad
        self._columns = torch.stack([pad(x.T.contiguous(), (0, self.longest - len(x))) for x in samples])
        self.present = torch.stack([pad(x.new_ones(len(x)), (0, self.longest - len(x))) for x in samples])
        """(c, n): 1 for a point, 0 for padding."""
        self.counts = self.present.sum(1)
        """(c,): points of each sample."""
        d = self._columns.shape[1]
        self.row, self.column = torch.triu_indices(d, d, device=self._columns.device)
        """int64 (d(d+1)/2,): the indices of the upper triangle."""
        self._whole: Tensor | None = None
        self._settle()

    def _settle(self) -> None:
        c, d, n = self._columns.shape
        size = 1 + d + d * (d + 1) // 2
        self._block = n if c * size * n <= _KEPT else max(16, _AT_A_TIME // (c * size))
        if self._block == n and self._whole is None:
            self._whole = self._quadratic(slice(0, n))

    @property
    def device(self) -> torch.device:
        return self._columns.device

    def _quadratic(self, points: slice) -> Tensor:
        """(c, F, n) of some points."""
        if self._whole is not None:
            return self._whole
        columns = self._columns[:, :, points]
        squares = columns[:, self.row] * columns[:, self.column]
        return torch.cat([self.present[:, None, points], columns, squares], 1)

    def _blocks(self) -> list[slice]:
        return [slice(start, start + self._block) for start in range(0, self.longest, self._block)]

    def times(self, coefficients: Tensor) -> Tensor:
        """(c, m, n): coefficients (c, m, F) times the features."""
        blocks = [coefficients @ self._quadratic(points) for points in self._blocks()]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)

    def sums(self, weights: Tensor) -> Tensor:
        """(c, m, F): the features summed with weights (c, m, n)."""
        total: Tensor | None = None
        for points in self._blocks():
            part = weights[:, :, points] @ self._quadratic(points).mT
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def only(self, samples: Tensor) -> _Features:
        """The features of the samples for which ``samples``, bool (c,), is true."""
        chosen = copy.copy(self)
        chosen.counts = self.counts[samples]
        chosen.longest = longest = int(chosen.counts.max())
        chosen._columns, chosen.present = self._columns[samples, :, :longest], self.present[samples, :longest]
        chosen._whole = None if self._whole is None else self._whole[samples, :, :longest]
        chosen._settle()
        return chosen


_Parameters = tuple[Tensor, Tensor, Tensor]
"""Weights (c, m), means (c, m, d) and covariances (c, m, d, d) of c mixtures."""


def _batch(parameters: _Parameters) -> _Parameters:
    """The parameters of one mixture as those of a batch of one."""
    return parameters[0][None], parameters[1][None], parameters[2][None]


def _one(parameters: _Parameters) -> _Parameters:
    """The parameters of the only mixture of a batch."""
    return parameters[0][0], parameters[1][0], parameters[2][0]


def _maximize(sums: Tensor, ridge: Tensor) -> _Parameters:
    """M step from sums (c, m, F) of the features by component; a component without points gets weight 0."""
    mass = sums[..., 0]
    weights = mass / mass.sum(1, keepdim=True)
    dead = weights <= _NO_WEIGHT
    any_dead = bool(dead.any())
    sums = sums / (mass.masked_fill(dead, 1.0) if any_dead else mass)[..., None]
    d = ridge.shape[1]
    mean = sums[..., 1 : d + 1]
    covariance = sums[..., d + 1 :][..., _places(d, sums.device)]
    covariance = covariance - mean[..., :, None] * mean[..., None, :] + ridge[:, None]
    if any_dead:
        mean = mean.masked_fill(dead[..., None], 0.0)
        covariance = torch.where(dead[..., None, None], torch.eye(d, dtype=mean.dtype, device=mean.device), covariance)
        weights = weights.masked_fill(dead, 0.0)
    return weights, mean, covariance


@functools.cache
def _places(d: int, device: torch.device) -> Tensor:
    """int64 (d, d): where each entry of a symmetric matrix is in its upper triangle."""
    row, column = torch.triu_indices(d, d, device=device)
    places = torch.empty(d, d, dtype=torch.int64, device=device)
    places[row, column] = places[column, row] = torch.arange(len(row), device=device)
    return places


def _joint(parameters: _Parameters, features: _Features) -> Tensor:
    """(c, m, n): log of weight times density, linear in the quadratic features."""
    weight, mean, covariance = parameters
    d = mean.shape[-1]
    factor = torch.linalg.cholesky(covariance)
    precision = torch.cholesky_inverse(factor)
    linear = (precision @ mean[..., None])[..., 0]
    constant = weight.log() - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * d * _LOG_2PI
    constant = constant - 0.5 * (linear * mean).sum(-1)
    # Off the diagonal, each product stands for two.
    square = (precision.diagonal(dim1=-2, dim2=-1).diag_embed() * 0.5 - precision)[..., features.row, features.column]
    # log 0 of a component without weight would give 0 · −∞ = NaN in the padding.
    coefficients = torch.cat([constant.clamp(min=-1e30)[..., None], linear, square], -1)
    return features.times(coefficients)


def _climb(
    parameters: _Parameters, features: _Features, ridge: Tensor, tolerance: float, iterations: int
) -> _Parameters:
    """EM on each mixture until its mean log-likelihood increases by less than the tolerance."""
    ended = [part.clone() for part in parameters]
    running = torch.arange(len(ridge), device=ridge.device)
    last = ridge.new_full((len(ridge),), -math.inf)
    for step in range(iterations):
        joint = _joint(parameters, features)
        # logsumexp along the short dimension of components, written out so that each step is one long loop.
        peak = joint.amax(1, keepdim=True)
        joint.sub_(peak).exp_()
        total = joint.sum(1, keepdim=True)
        now = ((total.log() + peak)[:, 0] * features.present).sum(1) / features.counts
        parameters = _maximize(features.sums(joint.div_(total)), ridge)
        rising = now - last >= tolerance
        last = now
        if step == iterations - 1 or not bool(rising.all()):
            for kept, part in zip(ended, parameters, strict=True):
                kept[running] = part
            if not bool(rising.any()):
                break
            running, ridge, last, features = running[rising], ridge[rising], now[rising], features.only(rising)
            parameters = (parameters[0][rising], parameters[1][rising], parameters[2][rising])
    return ended[0], ended[1], ended[2]
