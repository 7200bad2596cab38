"""What the cross-entropy of an input says of its Jacobian norm.

Source: Novak et al. 2018, "Sensitivity and Generalization in Neural Networks", appendix on bounding
the Jacobian norm. The true class y with probability σ_y = e^{−ℓ} has the row

    J_y = σ_y (g_y − Σ_j σ_j g_j),

g_j = ∂f_j/∂x being the gradient of logit j. If all g_j are orthogonal and have the same square norm M,

    ‖J_y‖² = M σ_y² ((1 − σ_y)² + Σ_{j≠y} σ_j²),

where the last sum is (1 − σ_y)²/(n − 1) for equal other probabilities, and (1 − σ_y)² for a single
other one. So M belongs to one logit, E‖∂f/∂x‖_F²/n: with that of all logits, the lower bound of
orthogonal gradients would exceed the norm itself √n-fold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def lower_bound(loss: ArrayLike, square: float, classes: int) -> NDArray[np.float64]:
    """√(nM/(n − 1)) · e^{−ℓ}(1 − e^{−ℓ}), of ‖J_y‖₂ and so of ‖J‖_F too.

    loss: cross-entropies ℓ ≥ 0, of any shape. square: M, the mean square norm of a logit's gradient.
    classes: n ≥ 2.
    """
    loss = np.asarray(loss, dtype=np.float64)
    bound: NDArray[np.float64] = np.sqrt(classes * square / (classes - 1)) * np.exp(-loss) * -np.expm1(-loss)
    return bound


def upper_bound(loss: ArrayLike, square: float) -> NDArray[np.float64]:
    """√(2M) · e^{−ℓ}(1 − e^{−ℓ}), of ‖J_y‖₂ alone: ‖J‖_F may exceed it. Arguments as of :func:`lower_bound`."""
    loss = np.asarray(loss, dtype=np.float64)
    bound: NDArray[np.float64] = np.sqrt(2 * square) * np.exp(-loss) * -np.expm1(-loss)
    return bound


def approximation(loss: ArrayLike, square: float, classes: int) -> NDArray[np.float64]:
    """√M/(n − 1) · (1 − e^{−ℓ}) · √(n² e^{−2ℓ} + n − 2): ‖J‖_F where all other classes are equally probable.

    Arguments as of :func:`lower_bound`, which it never falls below.
    """
    loss = np.asarray(loss, dtype=np.float64)
    root = np.sqrt(classes**2 * np.exp(-2 * loss) + (classes - 2))
    made: NDArray[np.float64] = np.sqrt(square) / (classes - 1) * -np.expm1(-loss) * root
    return made
