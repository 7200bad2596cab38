"""Objects that cannot be measured as a model, and error messages that say what to pass instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from genmeasures.errors import ModelError

_ORIGINAL = "pass the torch.nn.Module that it was made from"


def check_model(model: nn.Module) -> None:
    """Check that the layers of a module can be observed.

    TorchScript modules, modules made from exported programs (also as part of a model), and modules without a
    forward method are rejected. Any other module passes, even without a layer that can be measured.

    Args:
        model: The module.

    Raises:
        ModelError: The layers cannot be observed. The message says what to pass instead.

    Example:
        >>> check_model(nn.Linear(2, 2))
        >>> check_model(nn.ModuleList([nn.Linear(2, 2)]))
        Traceback (most recent call last):
        genmeasures.errors.ModelError: it is a ModuleList, which has no forward method: pass the module ...
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(f"it is a TorchScript module (torch.jit), whose layers cannot be read: {_ORIGINAL}")
    for name, module in model.named_modules():
        if _is_exported(module):
            which = f"its part {name!r}" if name else "it"
            raise ModelError(f"{which} is made from a torch.export program, which has no layers: {_ORIGINAL}")
    unimplemented = nn.modules.module._forward_unimplemented
    forward = getattr(model.forward, "__func__", model.forward)
    if forward is unimplemented and type(model).__call__ is nn.Module.__call__:
        raise ModelError(
            f"it is a {type(model).__name__}, which has no forward method: pass the module that is called with the "
            "inputs"
        )


def not_a_module(model: object) -> str:
    """Return the end of an error message that says what to pass instead of an object that is not a module.

    Args:
        model: The object.

    Returns:
        Text that starts with a colon, or "" for an unknown kind of object.

    Example:
        >>> not_a_module(nn.Linear)
        ': Linear is a class, pass an instance of it with its weights loaded'
    """
    kind = type(model)
    if isinstance(model, type):
        return f": {model.__name__} is a class, pass an instance of it with its weights loaded"
    if kind.__module__.startswith("torch.export"):
        return f": a torch.export program has no layers, {_ORIGINAL}"
    if isinstance(model, torch.jit.ScriptFunction):
        return f": the layers of TorchScript (torch.jit) cannot be read, {_ORIGINAL}"
    if isinstance(model, Mapping) and any(isinstance(value, Tensor) for value in model.values()):
        return ": these are weights without a model, build the model and load them into it"
    if inspect.isroutine(model):
        return ": a function has no layers, pass the module that it calls"
    if callable(model) or hasattr(model, "run"):  # compiled ahead of time, a session of ONNX Runtime, …
        return f": its layers cannot be observed, {_ORIGINAL}"
    return ""


def _is_exported(module: nn.Module) -> bool:
    """Whether a module comes from ``ExportedProgram.module()`` or ``torch.export.unflatten``."""
    return any(
        kind.__module__ in ("torch.export._unlift", "torch.export.unflatten")
        and kind.__name__ in ("_StatefulGraphModule", "UnflattenedModule")
        for kind in type(module).__mro__
    )
