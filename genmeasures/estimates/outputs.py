"""Stored outputs of a model on one split."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genmeasures.errors import DataError, Undefined
from genmeasures.estimates.resampling import Floats
from genmeasures.statistics.outputs import checked_logits, confidence_score, log_probabilities


@dataclass(frozen=True, eq=False)
class Outputs:
    """Logits of a model on all inputs of a split, with labels or without.

    Example:
        >>> outputs = Outputs.of([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]], [0, 1, 1])
        >>> outputs.accuracy
        66.66...
    """

    logits: Floats
    """float64 (N, K) or (N, K, *S)."""
    labels: NDArray[np.int64] | None = None
    """(N,) or (N, *S), −1 for none; None if nothing is labeled."""
    temperature: float = 1.0
    """What logits are divided by."""
    name: str = field(default="outputs", compare=False)

    @staticmethod
    def of(logits: ArrayLike, labels: ArrayLike | None = None, name: str = "outputs") -> Outputs:
        """Check logits and labels.

        Args:
            logits: (N, K) or (N, K, *S), K ≥ 2.
            labels: integers (N,) or (N, *S); negative ones mean "no label". None for none.
            name: of the split, for errors.

        Raises:
            DataError: a shape or a label is wrong.
            Undefined: logits are NaN or infinite.
        """
        checked = checked_logits(logits, f"{name} logits")
        if labels is None:
            return Outputs(checked, None, name=name)
        array = np.asarray(labels)
        shape = (len(checked), *checked.shape[2:])
        if array.shape != shape:
            raise DataError(f"{name} labels must be of shape {shape} for logits {checked.shape}, got {array.shape}")
        if array.dtype.kind not in "iu" and not (array.dtype.kind == "f" and (array == array.round()).all()):
            raise DataError(f"{name} labels must be class numbers, got an array of {array.dtype}")
        numbers = np.maximum(array.astype(np.int64), -1)
        if numbers.max() >= checked.shape[1]:
            raise DataError(
                f"{name} labels go up to {numbers.max()}, but there are {checked.shape[1]} outputs: classes are "
                "numbered from 0, and a negative label means none"
            )
        return Outputs(checked, numbers, name=name)

    def at(self, temperature: float) -> Outputs:
        """The same outputs with another temperature."""
        return Outputs(self.logits, self.labels, temperature, self.name)

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def classes(self) -> int:
        """Number K of classes."""
        return int(self.logits.shape[1])

    @property
    def is_dense(self) -> bool:
        """Whether there is an output per pixel."""
        return self.logits.ndim > 2

    @cached_property
    def predictions(self) -> NDArray[np.int64]:
        """(N, *S): the class of the largest logit; the first of several."""
        return np.asarray(self.logits.argmax(axis=1))

    @cached_property
    def probabilities(self) -> Floats:
        """(N, K, *S): softmax of the logits."""
        return np.exp(log_probabilities(self.logits, self.temperature))

    def score(self, kind: str) -> Floats:
        """(N, *S): see :func:`~genmeasures.statistics.outputs.confidence_score`."""
        return confidence_score(self.logits, kind, self.temperature)

    @cached_property
    def confidence(self) -> Floats:
        """(N, *S): the largest probability."""
        return np.exp(self.score("confidence"))

    @cached_property
    def labeled(self) -> NDArray[np.bool_]:
        """(N, *S): where there is a label."""
        if self.labels is None or not (self.labels >= 0).any():
            raise Undefined(f"{self.name} has no labels")
        return self.labels >= 0

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(N, *S): where the prediction is the label; False without a label."""
        return np.asarray(self.labeled & (self.predictions == self.labels))

    @property
    def accuracy(self) -> float:
        """Percent of the labels that are predicted."""
        return 100.0 * float(self.correct.sum() / self.labeled.sum())


def per_input(values: NDArray[np.bool_] | Floats, where: NDArray[np.bool_] | None = None) -> Floats:
    """float64 (N,): sums over the pixels of each input.

    Args:
        values: (N, *S).
        where: bool (N, *S), the pixels that count; None for all.

    Example:
        >>> per_input(np.ones((2, 3)))
        array([3., 3.])
    """
    chosen = values if where is None else np.where(where, values, 0)
    return np.asarray(chosen.reshape(len(chosen), -1).sum(axis=1), dtype=np.float64)


__all__ = ["Outputs", "per_input"]
