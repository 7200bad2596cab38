"""Representational substitution, activated response, and the two in one number: pure functions.

Source: "Exploring the generalizability of CNNs via activated representational substitution", 2.2 and 2.3.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def rs(means: Tensor, kernels: Tensor) -> NDArray[np.float64]:
    """RS, float64 (n,): share of a layer's I kernels whose mean activation exceeds that of the kernel (eq. 3).

    means (n, I): mean activation of every kernel of the layer for n inputs; kernels int64 (n,): the
    kernel for which each input was made. Only strictly larger means count, so kernels that are all
    silent do not exceed each other. The divisor is I, the kernel itself included, as printed; so
    RS < 1. NaN where a mean in the row is.
    """
    count = (means > means.gather(1, kernels[:, None])).sum(1).double() / means.shape[1]
    return _array(count.masked_fill(~torch.isfinite(means).all(1), torch.nan))


def ar(maps: Tensor) -> NDArray[np.float64]:
    """AR, float64 (n,): share of entries > 0 in each of n activation maps (n, *spatial) (eq. 4)."""
    return _array((maps.flatten(1) > 0).double().mean(1))


def ars(rs: ArrayLike, ar: ArrayLike) -> NDArray[np.float64]:
    """ARS = (2/π)·atan(RS/AR), float64 in the shape of both (eq. 5).

    Where AR = 0 and RS > 0 it is 1, the limit. Where both are 0 it is NaN: no kernel responds to the
    input, so that it tells neither of a feature that none replaces (0) nor of one that was not
    learned (1).
    """
    substitution, response = np.asarray(rs, dtype=np.float64), np.asarray(ar, dtype=np.float64)
    # atan2 gives the limit at AR = 0, and 0 where both are 0.
    angle: NDArray[np.float64] = np.arctan2(substitution, response) * (2 / np.pi)
    return np.where((substitution == 0) & (response == 0), np.nan, angle)


def _array(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.detach().cpu().numpy()
    return array
