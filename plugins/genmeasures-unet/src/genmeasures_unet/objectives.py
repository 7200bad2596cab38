"""Training objectives of UNets (Rajagopal et al. 2021, appendix A.2.3).

The objectives for segmentation take logits, float32 or float64 (B, C, ``*S``) with one to three spatial axes, and a
mask of class labels, integer or bool (B, ``*S``), and return a scalar tensor with the dtype of the logits. One channel
is the logit of the foreground, for a mask of 0 and 1. C ≥ 2 channels are the logits of the classes 0 to C − 1, with
background as class 0; their probabilities are the softmax. DataError is raised if the mask does not fit the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from genmeasures.plugin import DataError
from genmeasures_unet.assembly import probabilities

Objective: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_SMOOTHING = 1.0


def mean_square_error(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean square error of the probabilities (objective 1).

    The target is the mask, one-hot encoded if there are several classes. The paper calls this objective mean square
    error but prints an L1 norm; this function follows the name.

    Args:
        logits: float32 or float64 (B, C, ``*S``).
        mask: class labels, integer or bool (B, ``*S``).

    Returns:
        The mean over inputs, channels and voxels.

    Example:
        >>> float(mean_square_error(torch.zeros(1, 1, 4), torch.tensor([[0, 0, 1, 1]])))
        0.25
    """
    return (probabilities(logits) - _targets(logits, mask)).square().mean()


def balanced_bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Class-balanced cross-entropy in nats (objective 2): ``(1/z) Σ_z (1/n_z) Σ_{x of class z} CE(x)``.

    The cross-entropy is averaged over the ``n_z`` voxels of each class, pooled over the batch, and then over the
    classes that occur in the batch. A batch without foreground has one class, the background.

    Args:
        logits: float32 or float64 (B, C, ``*S``).
        mask: class labels, integer or bool (B, ``*S``).

    Returns:
        The mean over classes.

    Example:
        >>> round(float(balanced_bce(torch.zeros(1, 1, 4), torch.tensor([[0, 0, 0, 1]]))), 4)
        0.6931
    """
    targets = _targets(logits, mask)
    if logits.shape[1] == 1:
        error = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        members = torch.cat([1 - targets, targets], dim=1)
    else:
        # By the one-hot encoding, because gradients of indexing are not reproducible on GPUs.
        error = -(torch.log_softmax(logits, dim=1) * targets).sum(dim=1, keepdim=True)
        members = targets
    voxels = [0, *range(2, logits.dim())]
    number = members.sum(dim=voxels)
    means = (error * members).sum(dim=voxels) / number.clamp(min=1)
    return means.sum() / (number > 0).sum()


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Dice loss (objective 3; Milletari et al. 2016): ``1 − (1/n) Σ_n (2 Σ f f* + 1) / (Σ f² + Σ f*² + 1)``.

    The inner sums run over the voxels of one input; f is the mask and f* the probability of the foreground. With
    several classes, the mean also runs over the foreground classes 1 to C − 1.

    The constant 1, which is one voxel, is not in the paper. Without it, an input without foreground (a third of the
    sampled patches) has a loss of 1 for every prediction, and no gradient. With it, the loss is 0 for a prediction
    without foreground, and increases with the predicted foreground.

    Args:
        logits: float32 or float64 (B, C, ``*S``).
        mask: class labels, integer or bool (B, ``*S``).

    Returns:
        The mean over inputs and foreground classes.

    Example:
        >>> round(float(dice_loss(torch.full((1, 1, 4), 50.0), torch.ones(1, 4, dtype=torch.int64))), 4)
        0.0
    """
    foreground = slice(0, 1) if logits.shape[1] == 1 else slice(1, None)
    targets = _targets(logits, mask)[:, foreground]
    predicted = probabilities(logits)[:, foreground]
    voxels = list(range(2, logits.dim()))
    overlap = 2 * (predicted * targets).sum(dim=voxels)
    total = predicted.square().sum(dim=voxels) + targets.square().sum(dim=voxels)
    return 1 - ((overlap + _SMOOTHING) / (total + _SMOOTHING)).mean()


def dice_and_bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Sum of :func:`dice_loss` and :func:`balanced_bce` (objective 4).

    The paper prints Dice loss − log(BCE), which decreases with the cross-entropy, so that minimizing it would reward
    wrong predictions. This function is the plain sum.

    Args:
        logits: float32 or float64 (B, C, ``*S``).
        mask: class labels, integer or bool (B, ``*S``).

    Returns:
        The sum of both losses.

    Example:
        >>> logits, mask = torch.zeros(1, 1, 4), torch.tensor([[0, 0, 0, 1]])
        >>> bool(dice_and_bce(logits, mask) == dice_loss(logits, mask) + balanced_bce(logits, mask))
        True
    """
    return dice_loss(logits, mask) + balanced_bce(logits, mask)


def regression_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean square error of a regression from image to image.

    Args:
        output: floating point (B, C, ``*S``).
        target: floating point, of the same shape.

    Returns:
        The mean over inputs, channels and voxels.

    Raises:
        DataError: the shapes differ, or the target is not floating point.

    Example:
        >>> float(regression_error(torch.zeros(1, 1, 4), torch.full((1, 1, 4), 2.0)))
        4.0
    """
    if output.shape != target.shape or not target.is_floating_point():
        raise DataError(
            f"expected a floating-point target of shape {tuple(output.shape)}, that of the network's output, got "
            f"{target.dtype} {tuple(target.shape)}"
        )
    return (output - target).square().mean()


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {"mse": mean_square_error, "bce": balanced_bce, "dice": dice_loss, "dice_bce": dice_and_bce}
)
"""Objectives for segmentation, by their names in configurations."""


def _targets(logits: Tensor, mask: Tensor) -> Tensor:
    """(B, C, ``*S``) in the dtype of the logits: the mask itself for one channel, else its one-hot encoding."""
    if not 3 <= logits.dim() <= 5 or logits.numel() == 0:
        raise DataError(
            f"expected logits of shape (inputs, classes, *space) with 1 to 3 spatial axes, none of them empty, got "
            f"{tuple(logits.shape)}"
        )
    if mask.is_floating_point() or mask.is_complex():
        raise DataError(f"expected a mask of class labels, such as int64, got {mask.dtype}")
    if mask.shape != (len(logits), *logits.shape[2:]):
        raise DataError(
            f"expected a mask of shape {(len(logits), *logits.shape[2:])} for logits of shape {tuple(logits.shape)}, "
            f"got {tuple(mask.shape)}"
        )
    channels = logits.shape[1]
    lowest, highest = (int(value) for value in mask.aminmax())
    most = max(channels - 1, 1)
    if lowest < 0 or highest > most:
        raise DataError(
            f"expected class labels from 0 to {most} for logits of {channels} channel(s), got a mask with labels from "
            f"{lowest} to {highest}"
        )
    if channels == 1:
        return mask[:, None].to(logits.dtype)
    numbers = torch.arange(channels, device=mask.device).view(-1, *[1] * (mask.dim() - 1))
    return (mask[:, None] == numbers).to(logits.dtype)
