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
    """(μ_max − μ_−max)/(μ_max + μ_−max) of I kernels, float64 (I,), from class-conditional means (C, I).

    μ_max is the largest mean of a class, μ_−max the mean over the other classes. 0 is a kernel to
    which all classes are alike, 1 one that responds to a single class. NaN for a kernel that responds
    to no class, and for one with a negative mean, for which the ratio has no bounds. Raises Undefined
    for fewer than two classes.
    """
    means = np.asarray(class_means, dtype=np.float64)
    if len(means) < 2:
        raise Undefined(f"class selectivity compares classes, and there is {len(means)}")
    largest = means.max(axis=0)
    others = (means.sum(axis=0) - largest) / (len(means) - 1)
    defined = (means >= 0).all(axis=0) & (largest > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        selectivity: NDArray[np.float64] = np.where(defined, (largest - others) / (largest + others), np.nan)
    return selectivity


class ClassMeans:
    """Mean activation of each kernel for each class, batch by batch."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}

    def add(self, maps: Tensor, classes: Tensor) -> None:
        """See activation maps (B, I, *spatial) of inputs of the given classes int64 (B,); −1 is no class."""
        means = maps.double().flatten(2).mean(2)
        for label in classes[classes >= 0].unique().tolist():
            chosen = classes == label
            self._sums[label] = self._sums.get(label, 0) + means[chosen].sum(0)
            self._counts[label] = self._counts.get(label, 0) + int(chosen.sum())

    def result(self) -> NDArray[np.float64]:
        """float64 (C, I): the means, in the order of the classes. Raises Undefined where nothing was seen."""
        if not self._sums:
            raise Undefined("there are no inputs with a label")
        rows = [self._sums[label] / self._counts[label] for label in sorted(self._sums)]
        means: NDArray[np.float64] = torch.stack(rows).cpu().numpy()
        return means


def classes_of(targets: Tensor | None, what: str) -> Tensor:
    """int64 (B,) from the targets of a batch, −1 for an input without a label.

    Raises DataError naming ``what`` unless they are one class an input.
    """
    problem = class_problem(targets)
    if targets is None or problem:
        raise DataError(f"{what} needs {problem}")
    return targets[:, 0]
