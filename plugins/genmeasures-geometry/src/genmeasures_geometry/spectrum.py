"""Effective dimensions of a spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from genmeasures.plugin import Undefined


def participation_ratio(variances: Tensor) -> float:
    """Participation ratio (Σλ)²/Σλ².

    Args:
        variances: (k,), eigenvalues λ of the covariance.

    Returns:
        From 1, for a line, to k, if all are equal.

    Raises:
        Undefined: All are zero.

    Example:
        >>> participation_ratio(torch.tensor([2.0, 2.0, 0.0]))
        2.0
    """
    values = _positive(variances)
    return float(values.sum().square() / values.square().sum())


def stable_rank(variances: Tensor) -> float:
    """Stable rank Σλ/max λ: ‖X‖_F²/‖X‖₂² of the centered vectors.

    Args:
        variances: (k,), eigenvalues λ of the covariance.

    Returns:
        From 1 to k.

    Raises:
        Undefined: All are zero.

    Example:
        >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
        2.0
    """
    values = _positive(variances)
    return float(values.sum() / values.max())


def rank_me(singular_values: Tensor) -> float:
    """RankMe exp(−Σ p log p), p = σ/Σσ of *singular values*, not of their squares.

    Source: Garrido et al. 2023, of the vectors as they are, not centered.

    Args:
        singular_values: (k,), singular values σ of the matrix of vectors.

    Returns:
        From 1 to k.

    Raises:
        Undefined: All are zero.

    Example:
        >>> round(rank_me(torch.tensor([3.0, 3.0, 0.0])), 6)
        2.0
    """
    values = _positive(singular_values)
    p = values / values.sum()
    return float(torch.special.entr(p).sum().exp())


def alpha_req(variances: Tensor) -> float:
    """Exponent α of the decay λ_i ∝ i^(−α) of the spectrum (α-ReQ).

    A line is fitted to log λ_i against log i, with the weights 1/i, so that each decade counts alike.

    Source: Agrawal et al. 2022; the weights are those of Stringer et al. 2019.

    Args:
        variances: (k,), eigenvalues λ of the covariance, in any order; those that are 0 are left out.

    Raises:
        Undefined: Fewer than two are positive.

    Example:
        >>> round(alpha_req(torch.tensor([1.0, 1 / 4, 1 / 9])), 5)
        2.0
    """
    values = _positive(variances).sort(descending=True).values
    if len(values) < 2:
        raise Undefined("a single direction with variance has no decay")
    ranks = torch.arange(1, len(values) + 1, dtype=torch.float64, device=values.device)
    weights = 1 / ranks / (1 / ranks).sum()
    x, y = ranks.log(), values.log()
    x = x - weights @ x
    return -float((weights * x) @ y / ((weights * x) @ x))


def _positive(values: Tensor) -> Tensor:
    """The positive ones, float64."""
    values = values.double()
    if not bool(values.isfinite().all()):
        raise Undefined("the features are not finite")
    values = values[values > 0]
    if not len(values):
        raise Undefined("constant features: no direction has variance")
    return values
