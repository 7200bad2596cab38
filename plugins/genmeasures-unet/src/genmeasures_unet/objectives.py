"""What UNets are trained to minimize (Rajagopal et al. 2021, appendix A.2.3).

The objectives for segmentation take logits, float32 or float64 (B, C, *S) with one to three spatial axes, and a
mask of class numbers, integer or bool (B, *S), and return a scalar of the type of the logits. One channel is the
logit of the foreground, of a mask of 0 and 1; C ≥ 2 channels are the logits of the classes 0 to C − 1, background 0
included, whose probabilities are their softmax. They raise DataError where the mask does not fit the logits.
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
    """Mean of the squares of probability − target, over inputs, channels and voxels (objective 1).

    The target is the mask, with several classes its one-hot code. The paper's formula prints an L1 norm; its name
    is followed here.
    """
    return (probabilities(logits) - _targets(logits, mask)).square().mean()


def balanced_bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Class-balanced cross-entropy in nats (objective 2): ``(1/z) Σ_z (1/n_z) Σ_{x of class z} CE(x)``.

    The mean over the classes that occur in the batch of the mean cross-entropy over their ``n_z`` voxels, which
    are pooled over the inputs. A batch without foreground has one class, background.
    """
    targets = _targets(logits, mask)
    if logits.shape[1] == 1:
        error = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        members = torch.cat([1 - targets, targets], dim=1)
    else:
        # By the one-hot code, as gradients of indexing are not reproducible on GPUs.
        error = -(torch.log_softmax(logits, dim=1) * targets).sum(dim=1, keepdim=True)
        members = targets
    voxels = [0, *range(2, logits.dim())]
    number = members.sum(dim=voxels)
    means = (error * members).sum(dim=voxels) / number.clamp(min=1)
    return means.sum() / (number > 0).sum()


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Dice loss (objective 3; Milletari et al. 2016): ``1 − (1/n) Σ_n (2 Σ f f* + 1) / (Σ f² + Σ f*² + 1)``.

    The inner sums go over the voxels of one input; f is the mask and f* the probability of the foreground. With
    several classes, the mean is taken over the foreground classes 1 to C − 1 too.

    The constant 1, one voxel, is not in the paper. Without it, an input that has no foreground (a third of the
    sampled patches) costs 1 whatever the prediction, with no gradient; with it, the cost is 0 for a prediction
    without foreground and grows with the foreground predicted.
    """
    foreground = slice(0, 1) if logits.shape[1] == 1 else slice(1, None)
    targets = _targets(logits, mask)[:, foreground]
    predicted = probabilities(logits)[:, foreground]
    voxels = list(range(2, logits.dim()))
    overlap = 2 * (predicted * targets).sum(dim=voxels)
    total = predicted.square().sum(dim=voxels) + targets.square().sum(dim=voxels)
    return 1 - ((overlap + _SMOOTHING) / (total + _SMOOTHING)).mean()


def dice_and_bce(logits: Tensor, mask: Tensor) -> Tensor:
    """The sum of :func:`dice_loss` and :func:`balanced_bce` (objective 4).

    The paper prints Dice loss − log(BCE), which falls as the cross-entropy grows: minimized, it would reward wrong
    predictions. The plain sum is taken instead.
    """
    return dice_loss(logits, mask) + balanced_bce(logits, mask)


def regression_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean of the squares of output − target, both floating point (B, C, *S), for networks from image to image.

    Raises DataError where the shapes differ, which would otherwise be broadcast.
    """
    if output.shape != target.shape or not target.is_floating_point():
        raise DataError(
            f"a target of shape {tuple(target.shape)} and type {target.dtype} does not fit the network's output, "
            f"{tuple(output.shape)}: a continuous target of the same shape is needed"
        )
    return (output - target).square().mean()


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {"mse": mean_square_error, "bce": balanced_bce, "dice": dice_loss, "dice_bce": dice_and_bce}
)
"""The objectives for segmentation by the names that configurations use."""


def _targets(logits: Tensor, mask: Tensor) -> Tensor:
    """(B, C, *S), in the type of the logits: the mask itself for one channel, else its one-hot code."""
    if not 3 <= logits.dim() <= 5 or logits.numel() == 0:
        raise DataError(
            f"logits have shape {tuple(logits.shape)}: expected is (inputs, classes, *space), with 1 to 3 axes of "
            "space and none empty"
        )
    if mask.is_floating_point() or mask.is_complex():
        raise DataError(f"a mask has type {mask.dtype}: class numbers, as int64, are needed")
    if mask.shape != (len(logits), *logits.shape[2:]):
        raise DataError(
            f"a mask of shape {tuple(mask.shape)} does not fit logits of shape {tuple(logits.shape)}: "
            f"{(len(logits), *logits.shape[2:])} is needed"
        )
    channels = logits.shape[1]
    lowest, highest = (int(value) for value in mask.aminmax())
    most = max(channels - 1, 1)
    if lowest < 0 or highest > most:
        raise DataError(
            f"a mask has class numbers from {lowest} to {highest}, but logits of {channels} channel(s) are for 0 to "
            f"{most}"
        )
    if channels == 1:
        return mask[:, None].to(logits.dtype)
    numbers = torch.arange(channels, device=mask.device).view(-1, *[1] * (mask.dim() - 1))
    return (mask[:, None] == numbers).to(logits.dtype)
