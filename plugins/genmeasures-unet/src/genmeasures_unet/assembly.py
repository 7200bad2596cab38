"""Predictions for whole volumes, assembled from patches (Rajagopal et al. 2021, appendix A.2.4)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from genmeasures.plugin import DataError, ModelError, OptionError


def predict_volume(
    model: nn.Module,
    volume: Tensor,
    patch: tuple[int, ...],
    *,
    overlap: float = 0.5,
    batch_size: int = 16,
    output: Callable[[Tensor], Tensor],
) -> Tensor:
    """Predict a volume that is larger than the patches of the network.

    Patches lie on a regular grid; the last patch along an axis ends with the volume. An axis shorter than the patch
    is padded with zeros on both sides, and the prediction is cropped. The prediction of a voxel is the mean over the
    patches that cover it, weighted by a product of triangular windows, because a network sees less context near the
    border of a patch.

    Args:
        model: maps float32 (B, C, ``*patch``) to (B, C', ``*patch``). It is run in evaluation mode; the mode of each
            of its modules is restored.
        volume: float32 (C, ``*S``) with two or three spatial axes, on the device of the model.
        patch: spatial size of the patches in voxels.
        overlap: fraction of a patch's side that neighbors share, from 0 to below 1.
        batch_size: number of patches per forward pass.
        output: maps the raw outputs (B, C', ``*patch``) to the values that are blended (B, C_out, ``*patch``), for
            example :func:`probabilities`.

    Returns:
        float32 (C_out, ``*S``), on the device of the volume.

    Raises:
        DataError: the volume has the wrong number of axes, or is empty.
        OptionError: ``patch``, ``overlap`` or ``batch_size`` is out of range.
        ModelError: the output has another spatial size than the patch.

    Example:
        >>> predict_volume(nn.Identity(), torch.ones(1, 5, 6), (4, 4), output=probabilities).shape
        torch.Size([1, 5, 6])
    """
    _check(volume, patch, overlap, batch_size)
    padded, inside = _pad(volume, patch)
    size = padded.shape[1:]
    axes = [_starts(length, width, overlap) for length, width in zip(size, patch, strict=True)]
    positions = [
        (slice(None), *(slice(start, start + width) for start, width in zip(corner, patch, strict=True)))
        for corner in itertools.product(*axes)
    ]
    window = _window(patch).to(volume.device)
    weights = torch.zeros(1, *size, device=volume.device)
    blended = None
    with _evaluating(model), torch.inference_mode():
        for first in range(0, len(positions), batch_size):
            batch = positions[first : first + batch_size]
            predicted = output(model(torch.stack([padded[position] for position in batch])))
            if predicted.dim() != padded.dim() + 1 or predicted.shape[2:] != patch or len(predicted) != len(batch):
                raise ModelError(
                    f"the output of the model for {len(batch)} patches of {patch} has shape {tuple(predicted.shape)}: "
                    f"expected ({len(batch)}, channels, {', '.join(map(str, patch))})"
                )
            if blended is None:
                blended = torch.zeros(predicted.shape[1], *size, device=volume.device)
            for position, values in zip(batch, predicted, strict=True):
                blended[position] += window * values
                weights[position] += window
    assert blended is not None  # every volume has at least one patch
    # Outside of inference mode, so that the result is an ordinary tensor.
    return (blended / weights)[(slice(None), *inside)]


def probabilities(logits: Tensor) -> Tensor:
    """Probabilities of logits: the sigmoid if there is one channel, else the softmax over channels.

    Args:
        logits: floating point (B, C, ``*S``).

    Returns:
        Probabilities, of the same shape and dtype.

    Example:
        >>> probabilities(torch.zeros(1, 1, 2))
        tensor([[[0.5000, 0.5000]]])
    """
    return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)


def classes(probabilities: Tensor) -> Tensor:
    """Class labels of the probabilities of one volume.

    Args:
        probabilities: floating point (C, ``*S``).

    Returns:
        int64 (``*S``): with one channel, 1 where the probability is above 0.5; else the most probable class, the
        lowest in a tie.

    Example:
        >>> classes(torch.tensor([[0.2, 0.5, 0.9]]))
        tensor([0, 0, 1])
    """
    if len(probabilities) == 1:
        return (probabilities[0] > 0.5).long()
    return probabilities.argmax(dim=0)


def _check(volume: Tensor, patch: Sequence[int], overlap: float, batch_size: int) -> None:
    if volume.dim() not in (3, 4) or volume.numel() == 0:
        raise DataError(
            f"cannot predict a volume of shape {tuple(volume.shape)}: expected (channels, *space) with 2 or 3 spatial "
            "axes, none of them empty"
        )
    if len(patch) != volume.dim() - 1 or min(patch) < 1:
        raise OptionError(
            f"patch {tuple(patch)} does not fit a volume of shape {tuple(volume.shape)}: "
            f"expected {volume.dim() - 1} sizes of at least 1"
        )
    if not 0 <= overlap < 1:
        raise OptionError(f"overlap must be at least 0 and less than 1, got {overlap}")
    if batch_size < 1:
        raise OptionError(f"batch_size must be at least 1, got {batch_size}")


def _pad(volume: Tensor, patch: Sequence[int]) -> tuple[Tensor, list[slice]]:
    """The volume, padded with zeros to at least the size of the patch, and the slices of the volume in it."""
    missing = [max(0, width - length) for width, length in zip(patch, volume.shape[1:], strict=True)]
    inside = [slice(more // 2, more // 2 + length) for more, length in zip(missing, volume.shape[1:], strict=True)]
    padding = [part for more in reversed(missing) for part in (more // 2, more - more // 2)]
    return nn.functional.pad(volume, padding), inside


def _starts(length: int, width: int, overlap: float) -> list[int]:
    """First voxels of the patches along one axis."""
    step = max(1, round(width * (1 - overlap)))
    starts = list(range(0, length - width, step))
    return [*starts, length - width]


def _window(patch: Sequence[int]) -> Tensor:
    """float32 (``*patch``): a product of triangles, 1 at the center and positive at the border."""
    triangles = []
    for width in patch:
        position = torch.arange(width)
        triangles.append(torch.minimum(position + 1, width - position) / math.ceil(width / 2))
    window = triangles[0]
    for triangle in triangles[1:]:
        window = window[..., None] * triangle
    return window


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which the model is in evaluation mode."""
    # The mode is restored per module, because parts of a model can be frozen in evaluation mode.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
