"""k-means: greedy k-means++ restarts on a subsample, the best of them carried through on all points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SUBSAMPLE = 3000
_FINALISTS = 2
"""Restarts continued on all points: the order on the subsample can differ from that on the whole."""


@dataclass(frozen=True)
class Clusters:
    """centres float64 (k, d); labels int64 (n,); inertia: sum of squared distances to the own centre."""

    centres: Tensor
    labels: Tensor
    inertia: float


def kmeans(points: Tensor, k: int, generator: torch.Generator, restarts: int = 10, iterations: int = 300) -> Clusters:
    """Cluster points float64 (n, d) into k (fewer where there are fewer distinct points).

    Restarts: greedy k-means++ (Arthur & Vassilvitskii 2007) and Lloyd's iterations on a subsample,
    all restarts in one batch; the best go on with all points until no label changes. The random
    numbers come from the generator (on the CPU) alone.
    """
    n = len(points)
    origin = points.mean(0)
    points = points - origin
    chosen = torch.randperm(n, generator=generator)[:_SUBSAMPLE].sort().values if n > _SUBSAMPLE else None
    subsample = points if chosen is None else points[chosen.to(points.device)]
    starts = _plus_plus(subsample, k, restarts, generator)
    starts, inertias = _lloyd_batch(subsample, starts, iterations)
    finalists = _distinct_best(starts, inertias)
    best = min((_lloyd(points, centres, iterations) for centres in finalists), key=lambda c: c.inertia)
    return Clusters(best.centres + origin, best.labels, best.inertia)


def assign(points: Tensor, centres: Tensor) -> Tensor:
    """int64 (n,): index of the nearest of centres (k, d) for points (n, d), both float64."""
    return (_augment(points) @ _distance_weights(centres)).argmin(1)


def _augment(points: Tensor) -> Tensor:
    return torch.cat([points, points.new_ones(len(points), 1)], 1)


def _distance_weights(centres: Tensor) -> Tensor:
    """(d + 1, k): [x, 1] times this is ‖x − c‖² − ‖x‖²."""
    return torch.cat([-2 * centres, centres.square().sum(-1, keepdim=True)], -1).reshape(-1, centres.shape[-1] + 1).T


def _plus_plus(points: Tensor, k: int, restarts: int, generator: torch.Generator) -> Tensor:
    """(restarts, k, d) starting centres by greedy k-means++ with 2 + ln k candidates a step."""
    n, d = points.shape
    trials = 2 + int(math.log(k))
    first = torch.randint(n, (restarts,), generator=generator).to(points.device)
    centres = points.new_empty(restarts, k, d)
    centres[:, 0] = points[first]
    closest = torch.cdist(centres[:, 0], points).square()
    for step in range(1, k):
        mass = closest.cumsum(1)
        draws = torch.rand(restarts, trials, generator=generator, dtype=torch.float64).to(points.device)
        candidates = torch.searchsorted(mass, draws * mass[:, -1:], right=True).clamp(max=n - 1)
        distance = torch.cdist(points[candidates.flatten()], points).square().view(restarts, trials, n)
        distance = torch.minimum(distance, closest[:, None])
        best = distance.sum(2).argmin(1)
        rows = torch.arange(restarts, device=points.device)
        closest = distance[rows, best]
        centres[:, step] = points[candidates[rows, best]]
    return centres


def _lloyd_batch(points: Tensor, centres: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations for all restarts at once: (restarts, k, d) centres and (restarts,) inertias."""
    restarts, k, d = centres.shape
    augmented = _augment(points)
    norms = points.square().sum()
    previous = None
    for _ in range(iterations):
        distance = (augmented @ _distance_weights(centres)).view(-1, restarts, k)
        least, labels = distance.min(2)
        if previous is not None and torch.equal(labels, previous):
            break
        previous = labels
        member = torch.zeros_like(distance).scatter_(2, labels[:, :, None], 1.0).view(-1, restarts * k)
        sums = (member.T @ augmented).view(restarts, k, d + 1)
        counts = sums[..., d:]
        centres = torch.where(counts > 0, sums[..., :d] / counts.clamp(min=1), centres)
    return centres, least.sum(0) + norms


def _distinct_best(centres: Tensor, inertias: Tensor) -> list[Tensor]:
    best: list[Tensor] = []
    seen: list[float] = []
    for inertia, index in sorted(zip(inertias.tolist(), range(len(inertias)), strict=True)):
        if len(best) < _FINALISTS and all(abs(inertia - s) > 1e-3 * abs(s) for s in seen):
            best.append(centres[index])
            seen.append(inertia)
    return best


def _lloyd(points: Tensor, centres: Tensor, iterations: int) -> Clusters:
    augmented = _augment(points)
    k, d = centres.shape
    same_point = 1e-20 * float(points.square().sum(1).mean())
    labels = previous = None
    for _ in range(iterations):
        labels = (augmented @ _distance_weights(centres)).argmin(1)
        if previous is not None and torch.equal(labels, previous):
            break
        previous = labels
        member = augmented.new_zeros(len(points), k).scatter_(1, labels[:, None], 1.0)
        sums = member.T @ augmented
        counts = sums[:, d:]
        if bool((counts == 0).any()):
            # An empty cluster takes the point that its own centre serves worst, or goes when there is none.
            error = (points - centres[labels]).square().sum(1)
            farthest = int(error.argmax())
            keep = counts[:, 0] > 0
            centres = sums[keep, :d] / counts[keep]
            if float(error[farthest]) > same_point:
                centres = torch.cat([centres, points[farthest : farthest + 1]])
            k, previous = len(centres), None
        else:
            centres = sums[:, :d] / counts
    assert labels is not None
    inertia = float((points - centres[labels]).square().sum())
    return Clusters(centres, labels, inertia)
