"""Norms of the input-output Jacobian of a network and of its layers, and the accuracy with a layer re-initialized."""

from __future__ import annotations

from genmeasures.plugin import Register, hookimpl
from genmeasures_jacobian.bounds import approximation, lower_bound, upper_bound
from genmeasures_jacobian.jacobian import Squares, exact_backward, exact_forward, hutchinson
from genmeasures_jacobian.layers import LayerJacobian
from genmeasures_jacobian.measure import JacobianNorm
from genmeasures_jacobian.projections import norms
from genmeasures_jacobian.reinitialization import Reinitialization, reinitialized
from genmeasures_jacobian.softmax import Softmax

__all__ = [
    "JacobianNorm",
    "LayerJacobian",
    "Reinitialization",
    "Softmax",
    "Squares",
    "approximation",
    "exact_backward",
    "exact_forward",
    "hutchinson",
    "lower_bound",
    "norms",
    "reinitialized",
    "upper_bound",
]


@hookimpl
def genmeasures_register(register: Register) -> None:
    """Register the measures."""
    register(JacobianNorm)
    register(LayerJacobian)
    register(Reinitialization)
