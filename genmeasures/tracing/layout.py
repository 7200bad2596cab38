"""Memory layout in which a model runs fastest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmeasures.errors import ModelError
from genmeasures.tracing.dtypes import plain, rounding
from genmeasures.tracing.trace import forward, tensors_in


def fastest_layout(model: nn.Module, example: Tensor) -> torch.memory_format:
    """Convert a model's weights to the layout in which it runs fastest, and return the layout for its inputs.

    On a CPU that is channels last for images and volumes, provided that the outputs equal those of the
    contiguous layout. The channels of a pixel are then adjacent in memory, as features and patches are read.
    The values of the weights do not change. The caller restores their layout
    (:func:`~genmeasures.tracing.guard.undisturbed`).

    Args:
        model: The model in evaluation mode, on the device of the example.
        example: Inputs (B, …), on which the outputs of both layouts are compared.

    Returns:
        Layout for inputs of the model.

    Example:
        >>> fastest_layout(nn.Conv2d(1, 2, 3), torch.ones(2, 1, 8, 8))
        torch.channels_last
        >>> fastest_layout(nn.Linear(4, 2), torch.ones(2, 4))
        torch.contiguous_format
    """
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = layouts.get(example.dim(), torch.contiguous_format)
    if example.device.type != "cpu" or layout == torch.contiguous_format or not example.is_floating_point():
        return torch.contiguous_format
    expected = _outputs(model, example)
    original = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in original:
            if data.dim() == example.dim():
                parameter.data = data.contiguous(memory_format=layout)
        if _same(expected, _outputs(model, example.contiguous(memory_format=layout))):
            return layout
    except ModelError:  # for example, a view of a tensor that has another layout
        pass
    for parameter, data in original:
        parameter.data = data
    return torch.contiguous_format


def _outputs(model: nn.Module, example: Tensor) -> list[Tensor]:
    # Not in inference mode, in which a model cannot compute gradients in its forward pass.
    with torch.no_grad():
        return [plain(tensor).detach() for tensor in tensors_in([forward(model, example)])]


def _same(expected: list[Tensor], actual: list[Tensor]) -> bool:
    """Whether the outputs differ by rounding only."""
    return [tensor.shape for tensor in expected] == [tensor.shape for tensor in actual] and all(
        torch.allclose(b, a, rtol=0, atol=rounding(a.dtype) * float(a.nan_to_num(0, 0, 0).abs().max()), equal_nan=True)
        for a, b in zip(expected, actual, strict=True)
        if a.numel()
    )
