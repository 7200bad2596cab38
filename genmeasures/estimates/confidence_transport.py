"""Confidence optimal transport (COT)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genmeasures.errors import Undefined
from genmeasures.estimates.outputs import Outputs
from genmeasures.estimates.resampling import Estimator, Floats
from genmeasures.statistics.transport import transport

CAP = 10_000
"""Default number of target inputs that are transported."""


def confidence_transport(validation: Outputs, target: Outputs, cap: int = CAP, seed: int = 0) -> Estimator:
    """Estimator COT: 1 − the cost of the optimal transport between the validation labels and the target outputs.

    The cost of an output p for the class y is ½‖e_y − p‖₁ = 1 − p_y. The transport of all inputs is exact. Resamples
    use the linear expansion of the optimal cost in the weights of the inputs, which its dual solution gives: the error
    is of second order in the change of weights, and the cost of a resample is never overestimated.

    Args:
        validation: labeled outputs, of which only the labels are read.
        target: outputs (N, K); labels are not read.
        cap: more target inputs than these are represented by that many, drawn at random without replacement.
        seed: of that draw.

    Returns:
        Percent, of weights (R, inputs) of both splits.

    Raises:
        Undefined: there is an output per pixel.

    Source: Lu et al., Characterizing Out-of-Distribution Error via Optimal Transport (2023).

    Example:
        >>> validation = Outputs.of([[0.0, 1.0], [0.0, 1.0]], [0, 1])
        >>> target = Outputs.of([[100.0, 0.0], [100.0, 0.0]])  # half of the labels are of the other class
        >>> confidence_transport(validation, target)(np.ones((1, 2)), np.ones((1, 2))).round(6)
        array([50.])
    """
    if target.is_dense:
        raise Undefined("the transport is defined for one output per input, not for pixels")
    labels = validation.labels
    labeled = validation.labeled
    assert labels is not None
    of_label = (labels[:, None] == np.arange(target.classes)) & labeled[:, None]
    rows = drawn(len(target), cap, seed)
    cost = 1 - target.probabilities[rows]
    solution = transport(cost, of_label.sum(axis=0))

    def estimate(of_validation: Floats, of_target: Floats) -> Floats:
        weights, masses = of_target[:, rows], of_validation @ of_label
        masses = masses / masses.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            error = weights @ solution.points / weights.sum(axis=1) + masses @ solution.bins
        return np.asarray(100 * (1 - error))

    return estimate


def drawn(inputs: int, cap: int, seed: int) -> NDArray[np.int64]:
    """Indices of at most ``cap`` inputs, ascending, drawn at random without replacement.

    Args:
        inputs: number of inputs.
        cap: largest number of indices.
        seed: of the draw.

    Example:
        >>> drawn(3, 5, 0), len(drawn(100, 5, 0))
        (array([0, 1, 2]), 5)
    """
    if inputs <= cap:
        return np.arange(inputs)
    return np.sort(np.random.default_rng([seed, inputs]).choice(inputs, cap, replace=False))


__all__ = ["CAP", "confidence_transport", "drawn"]
