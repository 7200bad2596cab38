"""Random signs, and norms from the squares of random projections (Hutchinson 1990)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def signs(seeds: Sequence[int], projections: int, size: int) -> Tensor:
    """Draw random signs, which depend on the seed of an input alone and not on the other inputs of its batch.

    Args:
        seeds: Seeds of the B inputs.
        projections: Number of vectors per input.
        size: Number of elements of a vector.

    Returns:
        int8 (projections, B, size) of −1 and 1, on the CPU.

    Example:
        >>> vectors = signs([3, 4], projections=2, size=5)
        >>> vectors.shape, torch.equal(vectors[:, 1:], signs([4], projections=2, size=5))
        (torch.Size([2, 2, 5]), True)
    """
    generator = torch.Generator()
    shifts = torch.arange(8, dtype=torch.uint8, device="cpu")
    vectors = torch.empty(projections, len(seeds), size, dtype=torch.int8, device="cpu")
    for row, seed in enumerate(seeds):
        generator.manual_seed(seed)
        shape = (projections, -(-size // 8))
        drawn = torch.randint(256, shape, dtype=torch.uint8, generator=generator, device="cpu")
        bits = (drawn[:, :, None] >> shifts) & 1
        vectors[:, row] = bits.flatten(1)[:, :size].to(torch.int8) * 2 - 1
    return vectors


def norms(squares: Tensor) -> tuple[Tensor, Tensor]:
    """Estimate norms and their standard errors from squared projections.

    For independent random signs v, E‖vᵀJ‖² = ‖J‖_F². The root of the mean is too small by about
    s²/(8 m · mean^{3/2}), which is added; the remaining bias is of second order in 1/m.

    Args:
        squares: float64 (m, …), squared projections, m ≥ 2.

    Returns:
        Norms and their standard errors, float64 (…).

    Example:
        >>> norms(torch.tensor([[4.0], [4.0]], dtype=torch.float64))
        (tensor([2.], dtype=torch.float64), tensor([0.], dtype=torch.float64))
    """
    count = len(squares)
    mean = squares.mean(0)
    relative = torch.where(mean > 0, squares.var(0) / (count * mean.square()), 0.0)  # variance of the mean, relative
    root = mean.sqrt()
    return root * (1 + relative / 8), root * relative.sqrt() / 2
