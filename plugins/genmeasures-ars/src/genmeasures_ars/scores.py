"""Representational substitution (RS), activated response (AR) and their combination (ARS), as pure functions.

Source: "Exploring the generalizability of CNNs via activated representational substitution", 2.2 and 2.3.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def rs(means: Tensor, kernels: Tensor) -> NDArray[np.float64]:
    """Return RS, the fraction of the I kernels of a layer whose mean activation exceeds that of the kernel (eq. 3).

    Only strictly larger means count, so that silent kernels do not exceed each other. The divisor is I, including the
    kernel itself, as in the paper; thus RS < 1.

    Args:
        means: Mean activations (n, I) of every kernel of the layer for n inputs.
        kernels: int64 (n,): the kernel of each input.

    Returns:
        float64 (n,), NaN for a row with a mean that is not finite.

    Example:
        >>> rs(torch.tensor([[1.0, 2.0, 3.0, 0.5]]), torch.tensor([0]))
        array([0.5])
    """
    count = (means > means.gather(1, kernels[:, None])).sum(1).double() / means.shape[1]
    return _array(count.masked_fill(~torch.isfinite(means).all(1), torch.nan))


def ar(maps: Tensor) -> NDArray[np.float64]:
    """Return AR, float64 (n,): the fraction of entries > 0 in each of n activation maps (n, *spatial) (eq. 4).

    Example:
        >>> ar(torch.tensor([[[1.0, 0.0], [2.0, -1.0]]]))
        array([0.5])
    """
    return _array((maps.flatten(1) > 0).double().mean(1))


def ars(rs: ArrayLike, ar: ArrayLike) -> NDArray[np.float64]:
    """Return ARS = (2/π)·atan(RS/AR) (eq. 5).

    It is 1 if AR = 0, whatever RS is: the limit if RS > 0, and if both are 0 because "the ARS of the convolution kernel
    without learned features is large" (section 2.3).

    Args:
        rs: Representational substitution RS, see :func:`rs`.
        ar: Activated response AR, see :func:`ar`.

    Returns:
        float64, in the common shape of both, NaN where RS or AR is.

    Example:
        >>> ars([0.5, 0.3, 0.0], [0.5, 0.0, 0.0])
        array([0.5, 1. , 1. ])
    """
    substitution, response = np.asarray(rs, dtype=np.float64), np.asarray(ar, dtype=np.float64)
    angle: NDArray[np.float64] = np.arctan2(substitution, response) * (2 / np.pi)
    return np.where((response == 0) & ~np.isnan(substitution), 1.0, angle)


def standard_error(values: ArrayLike) -> NDArray[np.float64]:
    """Return the standard error of means over S starts, s/√S with the standard deviation s of S − 1 degrees of freedom.

    Args:
        values: Values (S, …), one per start.

    Returns:
        float64 (…), NaN for a single start.

    Example:
        >>> standard_error([[0.1, 0.5], [0.3, 0.5]])
        array([0.1, 0. ])
    """
    by_start = np.asarray(values, dtype=np.float64)
    if len(by_start) < 2:
        return np.full(by_start.shape[1:], np.nan)
    error: NDArray[np.float64] = by_start.std(axis=0, ddof=1) / len(by_start) ** 0.5
    return error


def _array(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.detach().cpu().numpy()
    return array
