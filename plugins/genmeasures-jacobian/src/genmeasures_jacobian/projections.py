"""Random signs, and what the squares of random projections tell of a norm (Hutchinson 1990)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def signs(seeds: Sequence[int], projections: int, size: int) -> Tensor:
    """int8 (projections, B, size) of −1 and 1, those of each of B inputs from a seed of its own.

    So an input's signs do not depend on what else is in its batch.
    """
    generator = torch.Generator()
    shifts = torch.arange(8, dtype=torch.uint8, device="cpu")
    made = torch.empty(projections, len(seeds), size, dtype=torch.int8, device="cpu")
    for row, seed in enumerate(seeds):
        generator.manual_seed(seed)
        shape = (projections, -(-size // 8))
        drawn = torch.randint(256, shape, dtype=torch.uint8, generator=generator, device="cpu")
        bits = (drawn[:, :, None] >> shifts) & 1
        made[:, row] = bits.flatten(1)[:, :size].to(torch.int8) * 2 - 1
    return made


def norms(squares: Tensor) -> tuple[Tensor, Tensor]:
    """Norms (…) and their standard errors (…) from squared projections (m, …) of m ≥ 2, all float64.

    For independent random signs v, E‖vᵀJ‖² = ‖J‖_F². The root of the mean is too small by about
    s²/(8 m · mean^{3/2}), which is added: what bias is left is of the second order in 1/m.
    """
    count = len(squares)
    mean = squares.mean(0)
    relative = torch.where(mean > 0, squares.var(0) / (count * mean.square()), 0.0)  # variance of the mean, relative
    root = mean.sqrt()
    return root * (1 + relative / 8), root * relative.sqrt() / 2
