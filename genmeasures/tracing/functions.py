"""Torch functions that an output passes on its way to where it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SUM = "sum"
CONCATENATION = "concatenation"

NORMALIZATIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm, F.local_response_norm, F.rms_norm,
        torch.batch_norm, torch.instance_norm, torch.group_norm, torch.layer_norm, torch.rms_norm,
    }
)  # fmt: skip
ACTIVATIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6,
        F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.selu, F.selu_, torch.selu, torch.selu_,
        F.celu, F.celu_, torch.celu, torch.celu_, F.prelu, torch.prelu, Tensor.prelu, F.rrelu, F.rrelu_,
        torch.rrelu, torch.rrelu_, F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.tanhshrink, F.softshrink,
        F.hardshrink, Tensor.hardshrink, F.threshold, torch.threshold, torch.threshold_, F.logsigmoid,
        F.hardtanh, F.hardtanh_, F.hardsigmoid, F.hardswish,
        F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_,
        F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_,
        torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_, Tensor.clamp_min, Tensor.clamp_min_,
        torch.clamp_min, torch.clamp_min_, torch.clip, torch.clip_, Tensor.clip, Tensor.clip_,
        F.softmax, F.softmin, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax, Tensor.log_softmax,
    }
)  # fmt: skip
DROPOUTS: frozenset[Callable[..., Any]] = frozenset(
    {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}
)
"""Functions that are the identity in evaluation mode."""
FOLLOWED = NORMALIZATIONS | ACTIVATIONS | DROPOUTS
"""Functions that the tap "activation" follows."""

_SUMS: frozenset[Callable[..., Any]] = frozenset({torch.add, Tensor.add, Tensor.add_})
"""Operators (``+``, ``+=``, ``sum``) call these."""
_CONCATENATIONS: frozenset[Callable[..., Any]] = frozenset({torch.cat, torch.concat, torch.concatenate})
JOINS = _SUMS | _CONCATENATIONS
"""Functions that join tensors, which the tap "block" follows too."""


def join_of(function: Callable[..., Any], operands: Sequence[tuple[int, ...]], result: tuple[int, ...]) -> str:
    """How a function joins its operands: as a sum, as a concatenation, or not at all ("").

    A sum is one of tensors of equal shape: a bias or a position embedding that is broadcast is no other branch.

    Args:
        function: one of :data:`JOINS`, or any other function.
        operands: shapes of the tensors that it takes.
        result: shape of the tensor that it returns.

    Example:
        >>> join_of(torch.add, [(2, 3), (2, 3)], (2, 3)), join_of(torch.cat, [(2, 3), (2, 1)], (2, 4))
        ('sum', 'concatenation')
        >>> join_of(torch.add, [(2, 3), (3,)], (2, 3)), join_of(torch.add, [(2, 3)], (2, 3))
        ('', '')
    """
    if len(operands) < 2:
        return ""
    if function in _SUMS:
        return SUM if all(shape == result for shape in operands) else ""
    return CONCATENATION if function in _CONCATENATIONS else ""
