"""Transport and COT against POT, a linear program and a sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from genmeasures.errors import Undefined
from genmeasures.estimates.confidence_transport import confidence_transport
from genmeasures.estimates.outputs import Outputs
from genmeasures.estimates.resampling import Floats
from genmeasures.statistics.transport import transport


def smooth_logits(n: int, k: int) -> Floats:
    i, j = np.mgrid[:n, :k]
    return np.asarray(2 * np.sin(1.7 * i + 2.3 * j + 0.3) + np.cos(0.9 * i * (j + 1)))


def by_program(cost: Floats, capacity: Floats) -> float:
    n, k = cost.shape
    rows = np.kron(np.eye(n), np.ones(k))
    columns = np.kron(np.ones(n), np.eye(k))
    b = np.concatenate([np.full(n, 1 / n), capacity / capacity.sum()])
    return float(linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=b).fun)


# pip install POT==0.9.7.post1, then for each (n, k, m) with p the softmax of smooth_logits(n, k):
# 1 - ot.emd2(np.full(n, 1/n), np.bincount(np.arange(m)**2 % k, minlength=k) / m, 1 - p)
POT = {(40, 3, 25): 0.5981037808943247, (60, 5, 47): 0.3851580594449432, (30, 2, 30): 0.8752000075009245}


@pytest.mark.parametrize("sizes", POT)
def test_cot_is_that_of_pot(sizes: tuple[int, int, int]) -> None:
    n, k, m = sizes
    validation = Outputs.of(np.zeros((m, k)), np.arange(m) ** 2 % k)
    estimate = confidence_transport(validation, Outputs.of(smooth_logits(n, k)))(np.ones((1, m)), np.ones((1, n)))
    assert float(estimate[0]) == pytest.approx(100 * POT[sizes], abs=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 6), st.booleans())
def test_transport_is_optimal(seed: int, n: int, k: int, tied: bool) -> None:
    """Its cost is that of a linear program, and the dual potentials are feasible and reach it."""
    rng = np.random.default_rng(seed)
    cost = rng.uniform(size=(n, k))
    capacity = rng.uniform(size=k) * (rng.uniform(size=k) < 0.8)
    if tied:
        cost, capacity = cost.round(1), np.ceil(3 * capacity)
    if not capacity.any():
        capacity[0] = 1
    solution = transport(cost, capacity)
    assert solution.cost == pytest.approx(by_program(cost, capacity), abs=1e-8)  # HiGHS is exact up to 1e-7
    assert (solution.points[:, None] + solution.bins <= cost + 1e-9).all()
    dual = solution.points.mean() + capacity @ solution.bins / capacity.sum()
    assert dual == pytest.approx(solution.cost, abs=1e-9)


def test_two_classes_are_a_sort() -> None:
    """The outputs with the largest probabilities of a class take its labels."""
    rng = np.random.default_rng(0)
    p = rng.uniform(size=400)
    positive = 150
    ordered = np.sort(p)
    expected = (ordered[:-positive].sum() + (1 - ordered[-positive:]).sum()) / 400
    cost = np.stack([p, 1 - p], axis=1)
    assert transport(cost, [250, positive]).cost == pytest.approx(expected, abs=1e-12)


def test_certain_outputs_with_the_labels_of_validation_have_no_error() -> None:
    logits = 1000 * np.eye(3)[[0, 1, 2, 2]]
    validation = Outputs.of(np.zeros((8, 3)), [0, 0, 1, 1, 2, 2, 2, 2])
    estimate = confidence_transport(validation, Outputs.of(logits))
    assert float(estimate(np.ones((1, 8)), np.ones((1, 4)))[0]) == pytest.approx(100)
    # A quarter of the mass must change its class: |½ − ¼| of class 2 is missing.
    skewed = Outputs.of(np.zeros((4, 3)), [0, 0, 1, 2])
    assert float(confidence_transport(skewed, Outputs.of(logits))(np.ones((1, 4)), np.ones((1, 4)))[0]) == 75


def test_batches_drawn_with_replacement_have_another_error() -> None:
    """The transport of batches is dearer on average, since each batch must match the labels by itself."""
    rng = np.random.default_rng(1)
    p = np.exp(smooth_logits(200, 4))
    p /= p.sum(1, keepdims=True)
    labels = rng.integers(4, size=200)
    whole = transport(1 - p, np.bincount(labels, minlength=4)).cost
    batches = [
        transport(1 - p[rng.integers(200, size=10)], np.bincount(labels[rng.integers(200, size=10)], minlength=4)).cost
        for _ in range(300)
    ]
    assert np.mean(batches) > whole + 5 * np.std(batches) / np.sqrt(300)


@pytest.mark.parametrize(("n", "k", "part"), [(150, 4, 0.5), (600, 10, 0.25)])
def test_resamples_are_close_to_the_transport_of_their_inputs(n: int, k: int, part: float) -> None:
    """Never below it, and above it on average by a part of the spread of the resamples that vanishes with n."""
    rng = np.random.default_rng(2)
    labels = rng.integers(k, size=n)
    validation, target = Outputs.of(np.zeros((n, k)), labels), Outputs.of(smooth_logits(n, k))
    estimator = confidence_transport(validation, target)
    bounds, exact = [], []
    for _ in range(40):
        rows, new = rng.integers(n, size=n), rng.integers(n, size=n)
        weights = [np.bincount(of, minlength=n)[None].astype(float) for of in (rows, new)]
        bounds.append(float(estimator(*weights)[0]))
        cost = 1 - target.probabilities[new]
        exact.append(100 * (1 - transport(cost, np.bincount(labels[rows], minlength=k)).cost))
    difference = np.array(bounds) - exact
    assert (difference >= -1e-9).all()
    assert difference.mean() < part * np.std(exact)


def test_many_inputs_are_drawn_with_the_seed() -> None:
    validation, target = Outputs.of(np.zeros((20, 3)), np.arange(20) % 3), Outputs.of(smooth_logits(300, 3))
    ones = np.ones((1, 20)), np.ones((1, 300))
    first, again, other = (
        float(confidence_transport(validation, target, cap=100, seed=seed)(*ones)[0]) for seed in (0, 0, 1)
    )
    whole = float(confidence_transport(validation, target)(*ones)[0])
    assert first == again != other
    assert abs(first - whole) < 5


def test_degenerate_input_is_undefined() -> None:
    with pytest.raises(Undefined, match="costs of the transport are NaN or infinite"):
        transport([[np.nan, 0.0]], [1, 1])
    dense = Outputs.of(np.zeros((2, 2, 3)), np.zeros((2, 3), dtype=int))
    with pytest.raises(Undefined, match="not for pixels"):
        confidence_transport(dense, dense)
