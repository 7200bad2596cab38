"""Leaves a model as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from genmeasures.errors import ModelError


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model in evaluation mode on the device; at the end everything but the values of parameters is restored.

    Modes, devices, memory layouts, buffers, ``requires_grad`` and gradients are as before, also after an exception.
    Raises ModelError naming the first parameter or buffer that is NaN or infinite, or not initialised.
    """
    _check_finite(model)
    modules = [(module, module.training, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    # The tensors themselves are kept, so that nothing needs to come back from the device.
    parameters = [
        (parameter, parameter.data, parameter.requires_grad, parameter.grad) for parameter in model.parameters()
    ]
    contents = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        for parameter, _, _, _ in parameters:
            parameter.grad = None
        model.eval()
        if any(tensor.device != device for tensor in (*model.parameters(), *model.buffers())):
            model.to(device)
        yield
    finally:
        for module, training, its_parameters, its_buffers in modules:
            module.training = training
            module._parameters.clear()
            module._parameters.update(its_parameters)
            module._buffers.clear()
            module._buffers.update(its_buffers)
        for parameter, data, requires_grad, grad in parameters:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        with torch.no_grad():
            for buffer, content in contents:
                if not torch.equal(buffer, content):
                    buffer.copy_(content)


def _check_finite(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise ModelError(f"{name} is not initialised: load its values, or run a lazy model on one batch first")
        if tensor.is_floating_point():
            bad = int(tensor.numel() - torch.isfinite(tensor).sum())
            if bad:
                raise ModelError(f"{bad} of {tensor.numel()} values of {name} are NaN or infinite")
