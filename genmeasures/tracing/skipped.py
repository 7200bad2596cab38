"""Modules with weights that are not measured, and the reasons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import parametrize

from genmeasures.tracing.geometry import MEASURED

_NORMALIZATIONS = (
    nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU,
)  # fmt: skip
_RUNNING_STATISTICS = frozenset({"running_mean", "running_var"})
"""Buffers by which a module of any type is a normalization, such as a frozen batch norm."""

_TORCH_ATTRIBUTES = frozenset(vars(nn.Module()))
_DEPTH = 3
"""Depth to which nested lists and dicts are searched for tensors."""
_LONGEST = 10_000
"""Length up to which lists and dicts are searched for tensors."""

_PACKED_STORES = frozenset({"LinearPackedParams", "EmbeddingPackedParams", "PackedParameter"})
"""Modules of torch.ao that hold the packed weight of the quantized layer that they are part of."""
_PROGRAMS = frozenset({"ExportedProgram", "AOTICompiledModel", "ScriptFunction", "InferenceSession"})
"""Type names of objects with weights that are not modules; by name, because their packages may not be installed."""


def attribute_tensors(model: nn.Module) -> list[Tensor]:
    """Return all tensors in plain attributes of the model's modules, also in lists and dicts.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> net.scale = torch.tensor([1.0, 2.0])
        >>> attribute_tensors(net)
        [tensor([1., 2.])]
    """
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    return [value for module in modules for _, value in _attributes(module) if isinstance(value, Tensor)]


def not_measured(model: nn.Module, called: Set[int], before: Sequence[Tensor]) -> Iterator[tuple[str, str]]:
    """Find the modules that have weights but were not called as a layer that can be measured.

    Weights are parameters, buffers and tensors in plain attributes (also in lists and dicts), except for
    masks, indices and single numbers; and packed weights of quantized layers. Normalization layers are
    not reported.

    Args:
        model: The model, after a forward pass.
        called: Ids of the modules of a measurable type that the pass called.
        before: Tensors of :func:`attribute_tensors` before the pass. Others were set by the pass and are not weights.

    Yields:
        (name, reason) of each module.

    Example:
        >>> net = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
        >>> list(not_measured(net, {id(net[1])}, []))
        [('0', 'layers of type Embedding are not measured (parameters weight)')]
    """
    held = {id(tensor) for tensor in before}
    registered = {id(module) for module in model.modules()}
    inner = {
        id(part)
        for module in model.modules()
        if isinstance(module, parametrize.ParametrizationList)
        for part in module.modules()
    }
    packed = _owners_of_packed_weights(model)
    scripted: list[str] = []
    for name, module in model.named_modules():
        if id(module) in inner or _is_store(module):
            continue  # part of the layer whose weight it computes or holds
        shown = name or "(model)"
        if isinstance(module, torch.jit.ScriptModule):
            own = [parameter for parameter, _ in module.named_parameters(recurse=False)]
            if own or not any(name.startswith(f"{root}.") for root in scripted):
                yield shown, "it is a TorchScript module, whose layers cannot be read: pass the module it was made from"
            scripted.append(name)
            continue
        yield from _unregistered(shown, module, registered)
        if isinstance(module, MEASURED):
            if id(module) not in called:
                yield shown, "it was never called in the forward pass"
        elif name in packed:
            yield (
                shown,
                (
                    f"layers of type {type(module).__name__} ({type(module).__module__.partition('.modules')[0]}) hold "
                    "quantized weights, which are not measured: pass the model before quantization"
                ),
            )
        elif not isinstance(module, _NORMALIZATIONS):
            own_weights = _described(module, held)
            if own_weights:
                kind = parametrize.type_before_parametrizations(module).__name__
                yield shown, f"layers of type {kind} are not measured ({own_weights})"


def _is_store(module: nn.Module) -> bool:
    return type(module).__name__ in _PACKED_STORES and type(module).__module__.startswith("torch.ao.")


def _owners_of_packed_weights(model: nn.Module) -> frozenset[str]:
    """Names of the modules that hold packed weights, themselves or in a child module for that purpose."""
    named = dict(model.named_modules())
    owners = set()
    for name, module in named.items():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if not any(isinstance(value, torch.ScriptObject) for _, value in _attributes(module)):
            continue
        while _is_store(named[name]) or isinstance(named[name], nn.ModuleList):
            name = name.rpartition(".")[0]
        owners.add(name)
    return frozenset(owners)


def _described(module: nn.Module, held: Set[int]) -> str:
    """The weights of a module that is not a layer, as text: "parameters w, b; buffers scale", or ""."""
    parameters = [name for name, _ in module.named_parameters(recurse=False)]
    if isinstance(parametrized := getattr(module, "parametrizations", None), nn.ModuleDict):
        parameters = [*parametrized, *parameters]
    buffers = dict(module.named_buffers(recurse=False))
    if buffers.keys() >= _RUNNING_STATISTICS:
        buffers = {}
    if type(module).__module__.startswith("torch.ao.quantization."):
        buffers = {}  # statistics of observers
    attributes = dict(_attributes(module))
    weights = {
        "parameters": parameters,
        "buffers": [name for name, buffer in buffers.items() if _may_be_weight(buffer)],
        "attributes": [
            name
            for name, value in attributes.items()
            if (isinstance(value, Tensor) and id(value) in held and _may_be_weight(value))
            or type(value).__name__ in _PROGRAMS
        ],
    }
    return "; ".join(
        f"{kind} {', '.join(names[:3])}{', …' if len(names) > 3 else ''}" for kind, names in weights.items() if names
    )


def _may_be_weight(tensor: Tensor) -> bool:
    """Whether a tensor that is not registered as a parameter may be a weight, not a mask, index or single number."""
    if isinstance(tensor, nn.Parameter) or tensor.requires_grad or tensor.is_quantized:
        return True
    if tensor.numel() < 2 or isinstance(tensor, FakeTensor):  # a sketch shares the weights of its model
        return False
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_nested or tensor.is_complex():
        return True  # its values cannot be compared
    if tensor.element_size() == 1 and tensor.dtype != torch.bool:  # packed: int8, uint8, the kinds of float8, …
        return True
    if not tensor.is_floating_point():
        return False
    # A mask has two distinct values, such as 0 and -inf; a constant tensor has one.
    return not bool(((tensor == tensor.min()) | (tensor == tensor.max())).all())


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and values of a module's plain attributes, including elements of lists, tuples and dicts ("heads[0]")."""
    for name, value in vars(module).items():
        if name not in _TORCH_ATTRIBUTES:
            yield from _flat(name, value, _DEPTH)


def _flat(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """A value, or the elements of a nested container."""
    if not isinstance(value, list | tuple | dict):
        yield name, value
    elif depth and len(value) <= _LONGEST:
        for key, element in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(f"{name}[{key!r}]", element, depth - 1)


def _unregistered(name: str, module: nn.Module, registered: Set[int]) -> Iterator[tuple[str, str]]:
    """Modules in plain lists and dicts of a module, which torch does not register."""
    for attribute, value in _attributes(module):
        if not isinstance(value, nn.Module) or id(value) in registered:
            continue
        if next(value.parameters(), None) is not None or next(value.buffers(), None) is not None:
            path = attribute if name == "(model)" else f"{name}.{attribute}"
            yield (
                path,
                (
                    "it is in a plain list or dict, so that torch does not register it as a module of the model: "
                    "use an nn.ModuleList or nn.ModuleDict"
                ),
            )
