"""Class of the input."""

from __future__ import annotations

from torch import Tensor

from genmeasures.errors import DataError
from genmeasures.interfaces import TargetLabeler


class ClassLabel(TargetLabeler):
    """The class of the input, for each of its vectors; −1 without a label.

    Example:
        >>> import torch
        >>> ClassLabel().label(torch.tensor([[3], [-1]]), ()).tolist()
        [[3], [-1]]
    """

    name = "class_label"

    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        if targets.is_floating_point():
            raise DataError("class labels need integer targets; for continuous ones use the labeler 'histogram'")
        if targets.shape[1:] != (1,):
            raise DataError(
                f"class labels need one class per input, got targets of shape {tuple(targets.shape[1:])}; "
                "for masks use the labeler 'downsampled'"
            )
        return targets
