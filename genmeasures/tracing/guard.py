"""Leaves a model as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from genmeasures.errors import ModelError


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model in evaluation mode on the device; modes, buffers and devices are restored at the end.

    Raises ModelError naming the first parameter or buffer that is NaN or infinite, or not initialised.
    """
    _check_finite(model)
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    homes = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    try:
        model.eval()
        if homes - {device}:
            model.to(device)
        yield
    finally:
        if homes - {device} and len(homes) == 1:
            model.to(homes.pop())
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), (before for _, before in buffers), strict=True):
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def _check_finite(model: nn.Module) -> None:
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in named:
        if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
            raise ModelError(f"{name} is not initialised: run the lazy model on one batch first")
        if tensor.is_floating_point():
            bad = int(tensor.numel() - torch.isfinite(tensor).sum())
            if bad:
                raise ModelError(f"{bad} of {tensor.numel()} values of {name} are NaN or infinite")
