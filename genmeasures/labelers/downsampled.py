"""Segmentation masks at the spatial size of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genmeasures.errors import DataError
from genmeasures.interfaces import TargetLabeler, one_of

_MOST_CLASSES = 256


class Downsampled(TargetLabeler):
    """A segmentation mask, averaged over the area of each output position and quantized.

    The area has all voxels that the output position overlaps, even in part, as in adaptive average pooling; under the
    whole-tensor extractor it is the whole image. From the coverage of each class, its fraction of the area,
    ``rounding`` takes

    - "ceil" (Rajagopal et al. 2021, section 2.1): the highest-numbered class with coverage > 0;
      for a binary mask this is the ceiling of the average, and any voxel that touches foreground
      is foreground. With more classes the ceiling of the average would mix class ids.
    - "nearest": the highest-numbered class with coverage ≥ ½, background 0 where none has it; for
      a binary mask the average rounded half up.
    - "majority": the class with the largest coverage, the lowest-numbered of equals.
    - "max": the highest-numbered class in the area, by max pooling; the same as "ceil".

    Voxels without a label (−1) are not part of the area; an area of such voxels alone gets −1.

    Args:
        rounding: "ceil", "nearest", "majority" or "max".

    Raises:
        OptionError: the rounding is unknown.

    Example:
        >>> mask = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]])
        >>> Downsampled("ceil").label(mask[None, None], (1, 2)).tolist()
        [[0, 1]]
    """

    name = "downsampled"

    def __init__(self, rounding: str = "ceil") -> None:
        one_of(self, "rounding", rounding, ("ceil", "nearest", "majority", "max"))
        self.rounding = rounding

    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        if targets.is_floating_point():
            raise DataError("downsampled labels need integer masks; for continuous targets use the labeler 'histogram'")
        if targets.dim() == 2:
            raise DataError(
                "downsampled labels need dense targets; for one class per input use the labeler 'class_label'"
            )
        if targets.shape[1] != 1:
            raise DataError(
                f"downsampled labels need masks of class numbers (N, *spatial), got {targets.shape[1]} channels"
            )
        size = resized(targets.dim() - 2, spatial)
        if self.rounding in ("max", "ceil"):
            # The highest class with any coverage is the maximum over the area. No label is the lowest of all.
            return pool(targets.float(), size, "max").long().flatten(1)
        classes = int(targets.max()) + 1
        if classes > _MOST_CLASSES:
            raise DataError(f"class numbers of masks must be at most {_MOST_CLASSES - 1}, got {classes - 1}")
        # One class after the other: the coverage of all at once takes as many times the memory of the mask.
        best = torch.zeros(len(targets), *size, dtype=torch.float32, device=targets.device)
        label = torch.zeros_like(best, dtype=torch.int64)
        half: Tensor | float = 0.5
        unlabeled = targets < 0
        if bool(unlabeled.any()):
            labeled = pool((~unlabeled).float(), size, "avg")[:, 0]
            label.masked_fill_(labeled == 0, -1)
            # Without any label no class has coverage.
            half = torch.where(labeled > 0, 0.5 * labeled, math.inf)
        for number in range(classes):
            coverage = pool((targets == number).float(), size, "avg")[:, 0]
            taken = coverage > best if self.rounding == "majority" else coverage >= half
            best = torch.where(taken, coverage, best)
            label = torch.where(taken, number, label)
        return label.flatten(1)


def resized(dimensions: int, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """The size to pool dense targets to: that of the layer, or one cell if the layer has no spatial axes.

    Args:
        dimensions: number of spatial axes of the targets.
        spatial: spatial size of the layer.

    Raises:
        DataError: the numbers of spatial axes differ.

    Example:
        >>> resized(2, (4, 4)), resized(2, ())
        ((4, 4), (1, 1))
    """
    if len(spatial) == dimensions:
        return spatial
    if not spatial:
        return (1,) * dimensions
    raise DataError(
        f"dense targets with {dimensions} spatial dimensions cannot label a layer with {len(spatial)} ({spatial})"
    )


def pool(dense: Tensor, size: tuple[int, ...], how: str) -> Tensor:
    """Average or maximum of dense targets over the area of each cell.

    Args:
        dense: (B, C, *S).
        size: spatial size of the result.
        how: "avg" or "max".

    Returns:
        (B, C, *size).

    Raises:
        DataError: there are more than three spatial axes.

    Example:
        >>> pool(torch.arange(4.0).reshape(1, 1, 4), (2,), "avg").tolist()
        [[[0.5, 2.5]]]
    """
    pools: dict[tuple[str, int], Callable[..., Tensor]] = {
        ("avg", 1): torch.nn.functional.adaptive_avg_pool1d,
        ("avg", 2): torch.nn.functional.adaptive_avg_pool2d,
        ("avg", 3): torch.nn.functional.adaptive_avg_pool3d,
        ("max", 1): torch.nn.functional.adaptive_max_pool1d,
        ("max", 2): torch.nn.functional.adaptive_max_pool2d,
        ("max", 3): torch.nn.functional.adaptive_max_pool3d,
    }
    if (how, len(size)) not in pools:
        raise DataError(f"dense targets must have at most 3 spatial dimensions, got {len(size)}")
    return pools[how, len(size)](dense, size)
