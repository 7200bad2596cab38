"""Exact optimal transport between many points and a few bins."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genmeasures.errors import Undefined

_ROUNDING = 1e-12
_FEWER = 4


class Transport(NamedTuple):
    """A solution of the transport problem with its dual."""

    cost: float
    """Smallest mean cost."""
    points: NDArray[np.float64]
    """(N,): dual potentials v of the points."""
    bins: NDArray[np.float64]
    """(K,): dual potentials u of the bins; v_i + u_k ≤ c_ik, with mean(v) + Σ b_k u_k = cost."""


def transport(cost: ArrayLike, capacity: ArrayLike) -> Transport:
    """Transport N points of equal mass to K bins at the smallest cost.

    Every point begins in the bin that is cheapest, by the potentials of the solution for every fourth point. Then bins
    with too much mass pass it on to bins with too little, along the path that costs least (successive shortest paths):
    the cost of an edge is the smallest increase for a point of that bin, so that a path is found on the K bins alone.
    The result is exact up to rounding, whatever the potentials at the beginning.

    Args:
        cost: float (N, K), cost of a point in a bin.
        capacity: float (K,), mass of each bin, ≥ 0 with a positive sum; normalized to a sum of 1.

    Returns:
        The cost, and the dual potentials.

    Raises:
        Undefined: a cost is NaN or infinite.

    Source: Ahuja, Magnanti & Orlin, Network Flows (1993), section 9.7.

    Example:
        >>> transport([[0.0, 1.0], [0.2, 0.8]], [0.5, 0.5]).cost  # the second point moves
        0.4
    """
    costs = np.asarray(cost, dtype=np.float64)
    if not np.isfinite(costs).all():
        raise Undefined("costs of the transport are NaN or infinite")
    share = np.asarray(capacity, dtype=np.float64)
    return _solve(costs, share / share.sum())


def _solve(costs: NDArray[np.float64], share: NDArray[np.float64]) -> Transport:
    n, k = costs.shape
    wanted = share * n
    potential = _solve(costs[::_FEWER], share).bins if n > _FEWER * k else np.zeros(k)
    flow = np.zeros((n, k))
    flow[np.arange(n), (costs - potential).argmin(axis=1)] = 1.0
    excess = flow.sum(axis=0) - wanted
    # edge[a, b]: the smallest increase of cost of a point with mass in a that goes to b; mover[a, b]: that point.
    edge, mover = np.full((k, k), np.inf), np.zeros((k, k), dtype=np.int64)
    for a in range(k):
        _refresh(a, costs, flow, edge, mover)
    tolerance = _ROUNDING * n
    while (sources := excess > tolerance).any() and (excess < -tolerance).any():
        distance, before = _shortest(edge, potential, sources)
        potential += distance
        # All edges of the tree of shortest paths now have the reduced cost 0: mass can go to each sink in turn, unless
        # another sink has used up the point of an edge.
        used: set[tuple[int, int]] = set()
        touched: set[int] = set()
        sinks = np.flatnonzero(excess < -tolerance)
        for sink in sinks[distance[sinks].argsort(kind="stable")].tolist():
            path = [sink]
            while before[path[-1]] >= 0:
                path.append(int(before[path[-1]]))
            steps = list(zip(path[1:], path[:-1], strict=True))
            if excess[path[-1]] <= tolerance or not used.isdisjoint(steps):
                continue
            moved = min(excess[path[-1]], -excess[sink], *(flow[mover[a, b], a] for a, b in steps))
            for a, b in steps:
                i = mover[a, b]
                left = flow[i, a] - moved
                if left <= _ROUNDING:
                    # A point can leave a bin by several edges of the tree.
                    used |= {(a, int(other)) for other in np.flatnonzero(mover[a] == i)}
                    left = 0.0
                flow[i, a] = left
                flow[i, b] += moved
            excess[path[-1]] -= moved
            excess[sink] += moved
            touched.update(path)
        for a in touched:
            _refresh(a, costs, flow, edge, mover)
    bins = potential - potential.max()
    points = (costs - bins).min(axis=1)
    return Transport(float((flow * costs).sum() / n), points, bins)


def _refresh(
    a: int,
    costs: NDArray[np.float64],
    flow: NDArray[np.float64],
    edge: NDArray[np.float64],
    mover: NDArray[np.int64],
) -> None:
    """Update the edges that leave a bin."""
    held = np.flatnonzero(flow[:, a] > 0)
    edge[a] = np.inf
    if len(held):
        increase = costs[held] - costs[held, a][:, None]
        best = increase.argmin(axis=0)
        edge[a] = increase[best, np.arange(len(edge))]
        mover[a] = held[best]
    edge[a, a] = np.inf


def _shortest(
    edge: NDArray[np.float64], potential: NDArray[np.float64], sources: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Dijkstra's algorithm on reduced costs: distance of each bin from the nearest source, and the bin before it."""
    reduced = np.maximum(edge + potential[:, None] - potential, 0.0)  # below 0 by rounding alone
    distance = np.where(sources, 0.0, np.inf)
    before = np.full(len(edge), -1, dtype=np.int64)
    done = np.zeros(len(edge), dtype=bool)
    for _ in range(len(edge)):
        a = int(np.where(done, np.inf, distance).argmin())
        if done[a] or not np.isfinite(distance[a]):
            break
        done[a] = True
        through = distance[a] + reduced[a]
        closer = (through < distance) & ~done
        distance[closer] = through[closer]
        before[closer] = a
    return distance, before


__all__ = ["Transport", "transport"]
