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
    """The network's prediction for a volume larger than the patches it works on: float32 (C_out, *S).

    ``volume`` is float32 (C, *S) with two or three spatial axes, on the device of the model. Patches of size
    ``patch`` lie on a regular grid, neighbors sharing about ``overlap`` of their length; the last patch along
    an axis ends with the volume. An axis shorter than the patch is padded with zeros on both sides, and the
    prediction cropped. The patches go through the model in batches of ``batch_size`` (the last one smaller),
    in evaluation mode; the modes of its modules are as before afterwards.

    ``output`` turns the raw outputs (B, C', *patch) into what is blended, (B, C_out, *patch), such as
    :func:`probabilities`. A voxel's prediction is the mean over the patches that cover it, weighted by a
    product of triangular windows, as a network knows less of the surroundings near the border of a patch.

    Raises DataError for a volume that does not fit the patch, OptionError for an option out of range, and
    ModelError where the output has another spatial size than the patch.
    """
    _check(volume, patch, overlap, batch_size)
    padded, inside = _pad(volume, patch)
    size = padded.shape[1:]
    axes = [_starts(length, width, overlap) for length, width in zip(size, patch, strict=True)]
    places = [
        (slice(None), *(slice(start, start + width) for start, width in zip(corner, patch, strict=True)))
        for corner in itertools.product(*axes)
    ]
    window = _window(patch).to(volume.device)
    weights = torch.zeros(1, *size, device=volume.device)
    blended = None
    with _evaluating(model), torch.inference_mode():
        for first in range(0, len(places), batch_size):
            batch = places[first : first + batch_size]
            predicted = output(model(torch.stack([padded[place] for place in batch])))
            if predicted.dim() != padded.dim() + 1 or predicted.shape[2:] != patch or len(predicted) != len(batch):
                raise ModelError(
                    f"the model's output has shape {tuple(predicted.shape)}, but {len(batch)} patches of {patch} "
                    f"need ({len(batch)}, channels, {', '.join(map(str, patch))})"
                )
            if blended is None:
                blended = torch.zeros(predicted.shape[1], *size, device=volume.device)
            for place, values in zip(batch, predicted, strict=True):
                blended[place] += window * values
                weights[place] += window
    assert blended is not None  # there is a patch in every volume
    # Out of inference mode, so that the result is an ordinary tensor.
    return (blended / weights)[(slice(None), *inside)]


def probabilities(logits: Tensor) -> Tensor:
    """Probabilities (B, C, *S) of logits (B, C, *S): the sigmoid of one channel, else the softmax over channels."""
    return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)


def classes(probabilities: Tensor) -> Tensor:
    """Class numbers, int64 (*S), of the probabilities (C, *S) of one volume.

    With one channel, 1 where the probability is over ½; else the most probable class, the lowest of equals.
    """
    if len(probabilities) == 1:
        return (probabilities[0] > 0.5).long()
    return probabilities.argmax(dim=0)


def _check(volume: Tensor, patch: Sequence[int], overlap: float, batch_size: int) -> None:
    if volume.dim() not in (3, 4) or volume.numel() == 0:
        raise DataError(
            f"a volume of shape {tuple(volume.shape)} cannot be predicted: expected is (channels, *space), "
            "with 2 or 3 axes of space and none empty"
        )
    if len(patch) != volume.dim() - 1 or min(patch) < 1:
        raise OptionError(
            f"patch {tuple(patch)} does not fit a volume of shape {tuple(volume.shape)}: "
            f"{volume.dim() - 1} sizes of at least 1 are needed"
        )
    if not 0 <= overlap < 1:
        raise OptionError(f"overlap is {overlap}: it must be at least 0 and less than 1")
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}: it must be at least 1")


def _pad(volume: Tensor, patch: Sequence[int]) -> tuple[Tensor, list[slice]]:
    """The volume with zeros around it, at least as large as the patch, and where the volume lies in it."""
    missing = [max(0, width - length) for width, length in zip(patch, volume.shape[1:], strict=True)]
    inside = [slice(more // 2, more // 2 + length) for more, length in zip(missing, volume.shape[1:], strict=True)]
    padding = [part for more in reversed(missing) for part in (more // 2, more - more // 2)]
    return nn.functional.pad(volume, padding), inside


def _starts(length: int, width: int, overlap: float) -> list[int]:
    step = max(1, round(width * (1 - overlap)))
    starts = list(range(0, length - width, step))
    return [*starts, length - width]


def _window(patch: Sequence[int]) -> Tensor:
    """float32 (*patch): a product of triangles, 1 at the center and positive up to the border."""
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
    # Each module's own mode is kept, as parts of a model can be frozen in evaluation mode.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
