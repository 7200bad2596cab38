"""The memory layout in which a model runs fastest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmeasures.errors import ModelError
from genmeasures.tracing.dtypes import plain, rounding
from genmeasures.tracing.trace import forward, tensors_in


def fastest_layout(model: nn.Module, example: Tensor) -> torch.memory_format:
    """Put the model's weights into the layout in which it runs fastest, and return that of its inputs.

    On a CPU that is channels last for images and volumes, where the model can run so: its outputs
    must be those of the plain layout. A pixel's channels then lie side by side too, as features and
    patches are read. The weights' values stay; the caller restores their layout
    (:func:`~genmeasures.tracing.guard.undisturbed`).
    """
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = layouts.get(example.dim(), torch.contiguous_format)
    if example.device.type != "cpu" or layout == torch.contiguous_format or not example.is_floating_point():
        return torch.contiguous_format
    as_given = _outputs(model, example)
    own = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in own:
            if data.dim() == example.dim():
                parameter.data = data.contiguous(memory_format=layout)
        if _same(as_given, _outputs(model, example.contiguous(memory_format=layout))):
            return layout
    except ModelError:  # a view of a tensor that is laid out otherwise, for one
        pass
    for parameter, data in own:
        parameter.data = data
    return torch.contiguous_format


def _outputs(model: nn.Module, example: Tensor) -> list[Tensor]:
    # Not in inference mode, where a model cannot take gradients within.
    with torch.no_grad():
        return [plain(tensor).detach() for tensor in tensors_in([forward(model, example)])]


def _same(first: list[Tensor], other: list[Tensor]) -> bool:
    """Whether the outputs differ by rounding alone."""
    return [one.shape for one in first] == [one.shape for one in other] and all(
        torch.allclose(b, a, rtol=0, atol=rounding(a.dtype) * float(a.nan_to_num(0, 0, 0).abs().max()), equal_nan=True)
        for a, b in zip(first, other, strict=True)
        if a.numel()
    )
