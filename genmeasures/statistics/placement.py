"""Places of new numbers among a sorted sample: ranks that are uniform if both come from one distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmeasures.errors import Undefined
from genmeasures.statistics.input_mean import InputMean

_EQUAL = 1e-9
"""Numbers that differ by less, relative to 1 plus their magnitude, are equal: the same vector in another batch."""


class Placement:
    """Ranks of new numbers among n reference numbers, and the distance of the ranks from a uniform distribution.

    A number with L smaller and E equal reference numbers takes the places L … L + E of the n + 1, with equal shares.
    Its rank is the middle of them, (L + (E + 1)/2)/(n + 1). For exchangeable numbers the rank is ½ on average and the
    places are uniform, ties or not (smoothed p-values of Vovk, Gammerman & Shafer 2005, section 2.6).

    Args:
        reference: float64 (n,).
        inputs: int64 (n,), the input that each of them belongs to.

    Raises:
        Undefined: there are no reference numbers.

    Example:
        >>> placement = Placement(torch.tensor([1.0, 2.0, 3.0]).double(), torch.arange(3))
        >>> placement.add(torch.tensor([0.5, 2.0, 9.0]).double(), torch.arange(3))
        >>> placement.rank(), placement.distance()
        (0.5, 0.08333333333333337)
    """

    def __init__(self, reference: Tensor, inputs: Tensor) -> None:
        if not len(reference):
            raise Undefined("no vectors are held back to rank others among: too few training inputs")
        self._reference, order = reference.sort()
        self._inputs = inputs[order]
        self._ranks = InputMean()
        self._steps = self._reference.new_zeros(len(reference) + 2)
        """Differences of the shares from place to place."""
        self._count = 0

    def add(self, numbers: Tensor, inputs: Tensor) -> None:
        """Add new numbers.

        Args:
            numbers: float64 (m,).
            inputs: int64 (m,), the input that each of them belongs to.
        """
        below, end = self._between(numbers)
        equal = (end - below).double()
        share = 1 / (equal + 1)
        self._steps.index_add_(0, below, share)
        self._steps.index_add_(0, end + 1, -share)
        self._ranks.add(inputs, (below + (equal + 1) / 2) / (len(self._reference) + 1))
        self._count += len(numbers)

    def _between(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The slice of reference numbers that are equal to each number, int64 (m,) both."""
        margin = _EQUAL * (1 + numbers.abs())
        below = torch.searchsorted(self._reference, numbers - margin)
        # Few are equal to any: the others need no second search.
        most = numbers + margin
        equal = (self._reference[below.clamp(max=len(self._reference) - 1)] <= most) & (below < len(self._reference))
        rows = equal.nonzero()[:, 0]
        end = below.index_copy(0, rows, torch.searchsorted(self._reference, most[rows], right=True))
        return below, end

    def _shares(self) -> Tensor:
        """float64 (n + 1,): the fraction of new numbers in the first place, the first two, and so on."""
        return self._steps.cumsum(0)[:-1].cumsum(0) / max(1, self._count)

    def rank(self) -> float:
        """The mean rank; raises :class:`~genmeasures.errors.Undefined` without new numbers."""
        return self._ranks.mean()

    def rank_error(self) -> float:
        """The standard error of the mean rank over both the new and the reference inputs.

        The two parts are those of DeLong, DeLong & Clarke-Pearson 1988 with inputs as clusters; raises
        :class:`~genmeasures.errors.Undefined` with fewer than two inputs of either.
        """
        below, end = self._between(self._reference)
        sums = torch.nn.functional.pad(self._shares().cumsum(0), (1, 0))
        exceeding = InputMean()
        exceeding.add(self._inputs, 1 - (sums[end] - sums[below]) / (end - below))
        return math.hypot(self._ranks.error(), exceeding.error())

    def distance(self) -> float:
        """The Kolmogorov–Smirnov distance of the ranks from uniform; raises Undefined without new numbers."""
        self._ranks.mean()
        places = len(self._reference) + 1
        uniform = torch.arange(1, places + 1, dtype=torch.float64, device=self._reference.device) / places
        return float((self._shares() - uniform).abs().max())
