"""Bounds on the Jacobian norm from the cross-entropy.

Source: Novak et al. 2018, "Sensitivity and Generalization in Neural Networks", appendix on bounding the Jacobian norm.
The row of the Jacobian of the true class y, with probability σ_y = e^{−ℓ} and cross-entropy ℓ, is

    J_y = σ_y (g_y − Σ_j σ_j g_j) = σ_y Σ_j (e_y − σ)_j g_j,

where g_j = ∂f_j/∂x is the gradient of logit j. The entries of e_y − σ sum to 0, so that only the centered gradients
g_j − ḡ with ḡ = Σ_j g_j/n count. If these have the shape of a regular simplex with Σ_j ‖g_j − ḡ‖² = (n − 1) M, then

    ‖J_y‖² = M σ_y² ((1 − σ_y)² + Σ_{j≠y} σ_j²),

as for gradients that are orthogonal and of the square norm M. The last sum is (1 − σ_y)²/(n − 1) if the other classes
are equally probable, and (1 − σ_y)² if all the rest belongs to one of them; two classes are always a simplex. The paper
prints M = E‖∂f/∂x‖_F², with which the lower bound exceeds the norm itself by a factor of up to √n.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def lower_bound(loss: ArrayLike, square: float, classes: int) -> NDArray[np.float64]:
    """Return √(nM/(n − 1)) · e^{−ℓ}(1 − e^{−ℓ}), a lower bound on ‖J_y‖₂ and therefore on ‖J‖_F.

    Args:
        loss: Cross-entropies ℓ ≥ 0, of any shape.
        square: M, the mean over inputs of Σ_j ‖g_j − ḡ‖²/(n − 1).
        classes: Number of classes n ≥ 2.

    Returns:
        float64 of the shape of ``loss``.

    Example:
        >>> lower_bound([0.0, np.log(2)], square=2.0, classes=2)
        array([0. , 0.5])
    """
    loss = np.asarray(loss, dtype=np.float64)
    bound: NDArray[np.float64] = np.sqrt(classes * square / (classes - 1)) * np.exp(-loss) * -np.expm1(-loss)
    return bound


def upper_bound(loss: ArrayLike, square: float) -> NDArray[np.float64]:
    """Return √(2M) · e^{−ℓ}(1 − e^{−ℓ}), an upper bound on ‖J_y‖₂. It does not bound ‖J‖_F.

    Args:
        loss: Cross-entropies ℓ ≥ 0, of any shape.
        square: M, the mean over inputs of Σ_j ‖g_j − ḡ‖²/(n − 1).

    Returns:
        float64 of the shape of ``loss``.

    Example:
        >>> upper_bound([0.0, np.log(2)], square=2.0)
        array([0. , 0.5])
    """
    loss = np.asarray(loss, dtype=np.float64)
    bound: NDArray[np.float64] = np.sqrt(2 * square) * np.exp(-loss) * -np.expm1(-loss)
    return bound


def approximation(loss: ArrayLike, square: float, classes: int) -> NDArray[np.float64]:
    """Return √M/(n − 1) · (1 − e^{−ℓ}) · √(n² e^{−2ℓ} + n − 2), ‖J‖_F if all other classes are equally probable.

    It is at least :func:`lower_bound`.

    Args:
        loss: Cross-entropies ℓ ≥ 0, of any shape.
        square: M, the mean over inputs of Σ_j ‖g_j − ḡ‖²/(n − 1).
        classes: Number of classes n ≥ 2.

    Returns:
        float64 of the shape of ``loss``.

    Example:
        >>> approximation([0.0, np.log(2)], square=4.0, classes=2)
        array([0., 1.])
    """
    loss = np.asarray(loss, dtype=np.float64)
    root = np.sqrt(classes**2 * np.exp(-2 * loss) + (classes - 2))
    norm: NDArray[np.float64] = np.sqrt(square) / (classes - 1) * -np.expm1(-loss) * root
    return norm
