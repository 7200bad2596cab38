"""Group and instance normalization of a part of an input with the statistics of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of the elements of each group, float64 (B, G).

    Example:
        >>> values = torch.arange(12.0).reshape(1, 2, 6)
        >>> parts = [moments(values[:, :, :4], 1), moments(values[:, :, 4:], 1)]
        >>> bool(torch.allclose(parts[0].merged(parts[1]).squares, moments(values, 1).squares))
        True
    """

    count: int
    mean: Tensor
    squares: Tensor

    def merged(self, other: Moments) -> Moments:
        """The moments of the union (Chan, Golub and LeVeque 1983, equation 2.1)."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        squares = self.squares + other.squares + apart.square() * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), squares)


def moments(values: Tensor, groups: int) -> Moments:
    """The moments of values (B, C, *S), with the channels in ``groups`` groups.

    Args:
        values: (B, C, *S), of any floating-point type.
        groups: number of groups, a divisor of C.

    Example:
        >>> moments(torch.tensor([[[1.0, 3.0]]]), groups=1)
        Moments(count=2, mean=tensor([[2.]], dtype=torch.float64), squares=tensor([[2.]], dtype=torch.float64))
    """
    rows = values.flatten(2).unflatten(1, (groups, -1)).flatten(2).double()
    if not rows.shape[2]:
        nothing = rows.new_zeros(rows.shape[:2])
        return Moments(0, nothing, nothing)
    variance, mean = torch.var_mean(rows, 2, correction=0)
    return Moments(rows.shape[2], mean, variance * rows.shape[2])


@dataclass(frozen=True)
class NormCall:
    """One call of a normalization with statistics over the input."""

    input: Tensor
    """(B, C, *S)."""
    groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def normalized(self, statistics: Moments) -> Tensor:
        """The input normalized with these statistics, which is an affine map of every channel."""
        channels = self.input.shape[1]
        each = channels // self.groups
        scale = (statistics.squares / statistics.count + self.eps).rsqrt().repeat_interleave(each, 1)
        shift = -statistics.mean.repeat_interleave(each, 1) * scale
        if self.weight is not None:
            scale, shift = scale * self.weight, shift * self.weight
        if self.bias is not None:
            shift = shift + self.bias
        shape = (-1, channels, *(1,) * (self.input.dim() - 2))
        values = self.input if self.input.dtype == torch.float64 else self.input.float()  # in 16 bits the sum cancels
        mapped = torch.addcmul(shift.to(values.dtype).view(shape), values, scale.to(values.dtype).view(shape))
        return mapped.to(self.input.dtype)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> NormCall:
    return NormCall(input, num_groups, weight, bias, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> NormCall | None:
    # With running statistics, each element is normalized independently of the others.
    return NormCall(input, input.shape[1], weight, bias, eps) if use_input_stats else None


_CALLS: dict[Callable[..., Any], Callable[..., NormCall | None]] = {
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
}


class Norms(TorchFunctionMode):
    """Supplies the normalizations of one forward pass, in order, with precomputed statistics.

    Args:
        known: the statistics of the first calls.
        seen: called with the index of each call and the call.
        unknown: returns the statistics of the first call without any, which then are known; it may raise to end the
            pass. By default they are those of the call's input.
    """

    def __init__(
        self,
        known: Sequence[Moments],
        seen: Callable[[int, NormCall], None] | None = None,
        unknown: Callable[[NormCall], Moments] | None = None,
    ) -> None:
        super().__init__()
        self.known = list(known)
        self.count = 0
        """Calls so far."""
        self._seen = seen
        self._unknown = unknown

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = _CALLS[func](*args, **(kwargs or {})) if func in _CALLS else None
        if call is None:
            return func(*args, **(kwargs or {}))
        number, self.count = self.count, self.count + 1
        if self._seen is not None:
            self._seen(number, call)
        if number == len(self.known):
            self.known.append(moments(call.input, call.groups) if self._unknown is None else self._unknown(call))
        return call.normalized(self.known[number])
