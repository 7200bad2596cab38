"""k-means clustering: greedy k-means++ restarts on a subsample, improved by swaps and refined on all points.

``python -m benchmarks.optima`` measures on features of trained networks how often the result is more than 0.05 % worse
than the best known optimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SUBSAMPLE = 2000
"""Points that all restarts run on."""
_LARGER = 8000
"""Points that the best restarts are refined on: the ranking on fewer points can differ from that on all."""
_CONTENDERS = 3
"""Restarts that are refined on the larger sample."""
_SWAPS = 5
"""Rounds of swaps."""
_WEAKEST = 5
"""Centers tried per round, each moved while all others stay."""
_TRIAL = 7
"""Iterations before the swaps of a round are compared."""
_PROMISING = 2
"""Swaps per round that are continued to convergence."""
_LITTLE = 1e-3
"""Relative decrease of the inertia below which a batch of restarts has converged."""
_SAME = 0.1
"""Centers closer than this fraction of the root mean square distance to the nearest center count as equal."""
_FINALISTS = 3
"""Candidates that are refined on all points."""


@dataclass(frozen=True)
class Clusters:
    """Result of :func:`kmeans`."""

    centers: Tensor
    """float64 (k, d)."""
    labels: Tensor
    """int64 (n,), index of the center of each point."""
    inertia: float
    """Sum of the squared distances of points to their centers."""


def kmeans(points: Tensor, k: int, generator: torch.Generator, restarts: int = 10, iterations: int = 300) -> Clusters:
    """Cluster points into k clusters, or fewer if there are fewer distinct points.

    All restarts run in one batch on a subsample: greedy k-means++ (Arthur & Vassilvitskii 2007) followed
    by Lloyd's iterations. The best ones are refined on a larger sample, on which the least useful centers
    are moved to points drawn as in k-means++ (Lattanzi & Sohler 2019) and the most promising of these
    swaps are followed by Lloyd's iterations. The best candidates are refined on all points until no label
    changes. A single restart has no swaps.

    Args:
        points: float64 (n, d).
        k: Number of clusters.
        generator: Only source of random numbers, on the CPU.
        restarts: Number of starts by k-means++.
        iterations: Maximum number of Lloyd's iterations per refinement.

    Returns:
        Centers, labels and inertia of the best solution.

    Example:
        >>> points = torch.tensor([[0.0], [2.0], [10.0], [12.0]], dtype=torch.float64)
        >>> clusters = kmeans(points, 2, torch.Generator().manual_seed(0))
        >>> clusters.centers.sort(0).values.flatten().tolist(), clusters.inertia
        ([1.0, 11.0], 4.0)
    """
    n = len(points)
    origin = points.mean(0)
    points = points - origin
    subsample = larger = points
    if n > _SUBSAMPLE:
        order = torch.randperm(n, generator=generator, device=generator.device)
        subsample = points[order[:_SUBSAMPLE].sort().values.to(points.device)]
        larger = points if n <= _LARGER else points[order[:_LARGER].sort().values.to(points.device)]
    starts = _plus_plus(subsample, k, restarts, generator)
    starts, inertias = _lloyd_batch(subsample, starts, iterations)
    if restarts > 1 and k > 1:
        if larger is not subsample:
            contenders = torch.stack(_distinct_best(starts, inertias, len(subsample), _CONTENDERS))
            starts, inertias = _lloyd_batch(larger, contenders, iterations)
        starts, inertias = _swapped(larger, starts, inertias, iterations, generator)
    finalists = _distinct_best(starts, inertias, len(larger if restarts > 1 else subsample), _FINALISTS)
    best = min((_lloyd(points, centers, iterations) for centers in finalists), key=lambda c: c.inertia)
    return Clusters(best.centers + origin, best.labels, best.inertia)


def approximate_centers(points: Tensor, k: int, generator: torch.Generator, iterations: int = 20) -> Tensor:
    """Find centers near those of k-means in little time, to start another method.

    One start of greedy k-means++ is followed by Lloyd's iterations until the inertia decreases by less than 0.1 %.

    Args:
        points: float64 (n, d).
        k: Number of centers, some of which are equal if there are fewer distinct points.
        generator: Only source of random numbers, on the CPU.
        iterations: Maximum number of Lloyd's iterations.

    Returns:
        float64 (k, d).

    Example:
        >>> points = torch.tensor([[0.0], [2.0], [10.0], [12.0]], dtype=torch.float64)
        >>> approximate_centers(points, 2, torch.Generator().manual_seed(0)).sort(0).values.flatten().tolist()
        [1.0, 11.0]
    """
    origin = points.mean(0)
    points = points - origin
    centers, _ = _lloyd_batch(points, _plus_plus(points, k, 1, generator), iterations)
    return centers[0] + origin


def assign(points: Tensor, centers: Tensor) -> Tensor:
    """Find the nearest center of each point.

    Args:
        points: float64 (n, d).
        centers: float64 (k, d).

    Returns:
        int64 (n,), indices of centers.

    Example:
        >>> centers = torch.tensor([[0.0], [10.0]], dtype=torch.float64)
        >>> assign(torch.tensor([[1.0], [8.0]], dtype=torch.float64), centers)
        tensor([0, 1])
    """
    return _relative_distances(points.T, centers).argmin(0)


def _relative_distances(columns: Tensor, centers: Tensor) -> Tensor:
    """(…, k, n): ‖x − c‖² − ‖x‖² of points as columns (d, n); clusters come first so that reductions run along n."""
    return torch.matmul(-2 * centers, columns).add_(centers.square().sum(-1)[..., None])


def _plus_plus(points: Tensor, k: int, restarts: int, generator: torch.Generator) -> Tensor:
    """(restarts, k, d): initial centers by greedy k-means++ with 2 + ln k candidates per step."""
    n, d = points.shape
    trials = 2 + int(math.log(k))
    first = torch.randint(n, (restarts,), generator=generator, device=generator.device).to(points.device)
    centers = points.new_empty(restarts, k, d)
    centers[:, 0] = points[first]
    closest = _square_distances(points, centers[:, 0])
    for step in range(1, k):
        mass = closest.cumsum(1)
        draws = torch.rand(restarts, trials, generator=generator, device=generator.device, dtype=torch.float64)
        candidates = torch.searchsorted(mass, draws.to(points.device) * mass[:, -1:], right=True).clamp(max=n - 1)
        distance = _square_distances(points, points[candidates.flatten()]).view(restarts, trials, n)
        distance = torch.minimum(distance, closest[:, None])
        best = distance.sum(2).argmin(1)
        rows = torch.arange(restarts, device=points.device)
        closest = distance[rows, best]
        centers[:, step] = points[candidates[rows, best]]
    return centers


def _square_distances(points: Tensor, centers: Tensor) -> Tensor:
    """(k, n): ‖x − c‖² of points (n, d)."""
    return _relative_distances(points.T, centers).add_(points.square().sum(1)).clamp_(min=0)


def _lloyd_batch(points: Tensor, centers: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations for all restarts at once: (restarts, k, d) centers and (restarts,) inertias.

    They end when no restart improves much: the best ones are refined later on all points.
    """
    k = centers.shape[1]
    columns = points.T.contiguous()
    clusters = torch.arange(k, device=points.device)[:, None]
    total = points.square().sum()
    inertias = total.new_full((len(centers),), math.inf)
    for _ in range(iterations):
        least, labels = _relative_distances(columns, centers).min(1)
        before, inertias = inertias, least.sum(1) + total
        if bool((inertias >= (1 - _LITTLE) * before).all()):
            break
        member = (labels[:, None] == clusters).to(points.dtype)
        counts = member.sum(2, keepdim=True)
        centers = torch.where(counts > 0, (member @ points) / counts.clamp(min=1), centers)
    return centers, inertias


def _swapped(
    points: Tensor, centers: Tensor, inertias: Tensor, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The centers (r, k, d) and inertias (r,), followed by those that swaps in the best of them lead to."""
    squares = points.square().sum(1)
    for _ in range(_SWAPS):
        best = centers[inertias.argmin()]
        k = len(best)
        distance = _relative_distances(points.T, best).add_(squares).clamp_(min=0)
        first, labels = distance.min(0)
        second = distance.scatter_(0, labels[None], math.inf).amin(0)
        loss = first.new_zeros(k).index_add_(0, labels, second - first)  # increase of inertia without each center
        weakest = loss.argsort()[:_WEAKEST]
        mass = torch.where(labels == weakest[:, None], second, first).cumsum(1)
        draws = torch.rand(len(weakest), 1, generator=generator, device=generator.device, dtype=torch.float64)
        drawn = torch.searchsorted(mass, draws.to(points.device) * mass[:, -1:], right=True).clamp(max=len(points) - 1)
        moved = best.repeat(len(weakest), 1, 1)
        moved[torch.arange(len(weakest), device=points.device), weakest] = points[drawn[:, 0]]
        moved, tried = _lloyd_batch(points, moved, _TRIAL)
        moved, tried = _lloyd_batch(points, moved[tried.argsort()[:_PROMISING]], iterations)
        centers, inertias = torch.cat([centers, moved]), torch.cat([inertias, tried])
    return centers, inertias


def _distinct_best(centers: Tensor, inertias: Tensor, points: int, count: int) -> list[Tensor]:
    """The best of (r, k, d) without duplicates: solutions with equal inertia can still have different centers."""
    radius = _SAME * math.sqrt(max(0.0, float(inertias.min())) / points)
    best: list[Tensor] = []
    for index in inertias.argsort().tolist():
        candidate = centers[index]
        if len(best) < count and all(
            float(torch.cdist(candidate, previous).amin(1).max()) > radius for previous in best
        ):
            best.append(candidate)
    return best


def _lloyd(points: Tensor, centers: Tensor, iterations: int) -> Clusters:
    """Lloyd's iterations until no label changes, with the bounds of Hamerly (2010).

    A point keeps its label as long as the bounds guarantee that its center is the nearest. Only the other
    points are compared with all centers, and only points that change cluster update the sums.
    """
    columns = points.T.contiguous()
    squares = points.square().sum(1)
    same_point = 1e-20 * float(squares.mean())
    # How much closer a point was to its center than to the second nearest one. It is compared with the distance
    # that its center and the fastest moving center have moved since then.
    labels, slack = _nearest_two(columns, squares, centers)
    moved = slack.new_zeros(len(centers))
    sums, counts = _sums(points, labels, len(centers))
    for _ in range(iterations):
        if bool((counts == 0).any()):
            centers = _refill(points, labels, centers, sums, counts, same_point)
            labels, slack = _nearest_two(columns, squares, centers)
            moved = slack.new_zeros(len(centers))
            sums, counts = _sums(points, labels, len(centers))
            if bool((counts == 0).any()):
                continue
        means = sums / counts[:, None]
        shift = (means - centers).square().sum(1).sqrt()
        centers = means
        moved = moved + shift + shift.max()
        unsure = (slack <= moved.index_select(0, labels)).nonzero()[:, 0]
        if not len(unsure):
            break
        before = labels.index_select(0, unsure)
        some = points.index_select(0, unsure)
        nearest, now = _nearest_two(some.T, squares.index_select(0, unsure), centers)
        slack.index_copy_(0, unsure, now + moved.index_select(0, nearest))
        which = (nearest != before).nonzero()[:, 0]
        if not len(which):
            break
        movers, to = some.index_select(0, which), nearest.index_select(0, which)
        labels.index_copy_(0, unsure.index_select(0, which), to)
        gained, plus = _sums(movers, to, len(centers))
        lost, minus = _sums(movers, before.index_select(0, which), len(centers))
        sums, counts = sums + gained - lost, counts + plus - minus
    sums, counts = _sums(points, labels, len(centers))
    centers = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centers)
    centers, labels = _merged(centers, labels, same_point)
    return Clusters(centers, labels, float((points - centers[labels]).square().sum()))


def _merged(centers: Tensor, labels: Tensor, same_point: float) -> tuple[Tensor, Tensor]:
    """Centers (k, d) and labels (n,) with one center where several are the same point.

    Rounding may divide copies of a point among them.
    """
    same = (centers[:, None] - centers).square().sum(2) <= same_point
    kept, place = torch.unique(same.to(torch.uint8).argmax(1), return_inverse=True)
    return centers[kept], place[labels]


def _nearest_two(columns: Tensor, squares: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Label of the nearest center, and how much farther away the second nearest is (∞ with one center)."""
    distance = _relative_distances(columns, centers)
    least, labels = distance.min(0)
    distance.scatter_(0, labels[None], math.inf)
    second = distance.amin(0)
    own = (least + squares).clamp_(min=0).sqrt_()
    return labels, (second + squares).clamp_(min=0).sqrt_() - own


def _sums(points: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(k, d) sums of the points of each cluster, and (k,) their counts."""
    member = (labels == torch.arange(k, device=labels.device)[:, None]).to(points.dtype)
    return member @ points, member.sum(1)


def _refill(points: Tensor, labels: Tensor, centers: Tensor, sums: Tensor, counts: Tensor, same_point: float) -> Tensor:
    """Centers without those of empty clusters, one of which moves to the point farthest from its center."""
    full = counts > 0
    error = (points - centers[labels]).square().sum(1)
    farthest = int(error.argmax())
    kept = sums[full] / counts[full][:, None]
    if float(error[farthest]) <= same_point:
        return kept
    return torch.cat([kept, points[farthest : farthest + 1]])
