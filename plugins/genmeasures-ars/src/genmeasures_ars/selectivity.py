"""Class selectivity of kernels.

Source: Morcos, Barrett, Rabinowitz & Botvinick 2018, "On the importance of single directions for generalization".
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from genmeasures.plugin import DataError, Undefined, class_problem


def class_selectivity(class_means: ArrayLike) -> NDArray[np.float64]:
    """Return the class selectivity (μ_max − μ_−max)/(μ_max + μ_−max) of I kernels.

    μ_max is the largest mean of a class, μ_−max the mean over the other classes. The selectivity is 0 for a kernel with
    equal means, and 1 for a kernel that responds to a single class.

    Args:
        class_means: Class-conditional means (C, I).

    Returns:
        float64 (I,), NaN for a kernel that does not respond to any class, or has a negative mean, for which the ratio
        is not bounded.

    Raises:
        Undefined: If there are fewer than two classes.

    Example:
        >>> class_selectivity([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
        array([0.5, 0. , nan])
    """
    means = np.asarray(class_means, dtype=np.float64)
    if len(means) < 2:
        raise Undefined(f"class selectivity needs at least two classes, got {len(means)}")
    largest = means.max(axis=0)
    others = (means.sum(axis=0) - largest) / (len(means) - 1)
    defined = (means >= 0).all(axis=0) & (largest > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        selectivity: NDArray[np.float64] = np.where(defined, (largest - others) / (largest + others), np.nan)
    return selectivity


class ClassMeans:
    """Mean activation of each kernel for each class, accumulated batch by batch.

    Example:
        >>> means = ClassMeans()
        >>> means.add(torch.tensor([[[3.0, 1.0]], [[5.0, 5.0]]]), torch.tensor([0, 1]))
        >>> means.result()
        array([[2.],
               [5.]])
    """

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}

    def add(self, maps: Tensor, classes: Tensor) -> None:
        """Add activation maps (B, I, *spatial) of inputs of the classes int64 (B,); −1 means no label."""
        means = maps.double().flatten(2).mean(2)
        for label in classes[classes >= 0].unique().tolist():
            chosen = classes == label
            self._sums[label] = self._sums.get(label, 0) + means[chosen].sum(0)
            self._counts[label] = self._counts.get(label, 0) + int(chosen.sum())

    def result(self) -> NDArray[np.float64]:
        """Return the means, float64 (C, I), in the order of the classes.

        Raises:
            Undefined: If no input has a label.
        """
        if not self._sums:
            raise Undefined("there are no inputs with a label")
        rows = [self._sums[label] / self._counts[label] for label in sorted(self._sums)]
        means: NDArray[np.float64] = torch.stack(rows).cpu().numpy()
        return means


def classes_of(targets: Tensor | None, what: str) -> Tensor:
    """Return the classes of the targets of a batch.

    Args:
        targets: Targets (B, …) of the data, or None.
        what: What the error message says needs classes.

    Returns:
        int64 (B,), −1 for an input without a label.

    Raises:
        DataError: If the targets are not one class per input.

    Example:
        >>> classes_of(torch.tensor([[2], [0]]), "my_measure")
        tensor([2, 0])
    """
    problem = class_problem(targets)
    if targets is None or problem:
        raise DataError(f"{what} needs {problem}")
    return targets[:, 0]
