"""Layers of a model that is not run."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from genmeasures.errors import ModelError
from genmeasures.interfaces import Layer
from genmeasures.tracing.dtypes import is_readable, plain
from genmeasures.tracing.geometry import MEASURED
from genmeasures.tracing.skipped import attribute_tensors, not_measured

REGISTERED = "without data, layers are in the order in which the model registers them"
"""Note on a model whose layers were listed without running it."""


def listed(model: nn.Module) -> tuple[tuple[Layer, ...], tuple[tuple[str, str], ...]]:
    """List the convolutions and linear layers of a model in the order of ``named_modules``.

    Without an input, the spatial size and the input length of a layer are unknown; they are set to () and 0.
    Whether and how often the model calls a layer is unknown too. A module that is registered twice is one layer.

    Args:
        model: The model, which is not run.

    Returns:
        The layers, and (name, reason) of each module with weights that is not measured.

    Raises:
        ModelError: The model has no such layer.

    Example:
        >>> layers, _ = listed(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(8, 4)))
        >>> [(layer.name, layer.kind, layer.channels, layer.patch_size) for layer in layers]
        [('0', 'Conv2d', 2, 9), ('2', 'Linear', 4, 8)]
    """
    layers: list[Layer] = []
    skipped: list[tuple[str, str]] = []
    measured = {id(module) for module in model.modules() if isinstance(module, MEASURED)}
    for name, module in model.named_modules():
        if not isinstance(module, MEASURED):
            continue
        layer: Any = module
        weight = layer.weight
        readable = isinstance(weight, Tensor) and is_readable(weight)
        if not readable or not plain(weight.detach()).is_floating_point():
            skipped.append((name or "(model)", "its weight holds no floating-point numbers"))
            continue
        linear = isinstance(module, nn.Linear)
        inputs = layer.in_features if linear else layer.in_channels
        kind = parametrize.type_before_parametrizations(module).__name__
        layers.append(
            Layer(
                index=len(layers),
                name=name or "(model)",
                kind=kind,
                channels=int(layer.out_features if linear else layer.out_channels),
                spatial=(),
                patch_size=int(inputs) * (1 if linear else math.prod(layer.kernel_size)),
                input_size=0,
                weight_norm=float(torch.linalg.vector_norm(plain(weight.detach()), dtype=torch.float64)),
                tap=kind,
            )
        )
    skipped += not_measured(model, measured, attribute_tensors(model))
    if not layers:
        raise ModelError("no layer can be measured: the model has no convolution and no linear layer with weights")
    return tuple(layers), tuple(skipped)


__all__ = ["REGISTERED", "listed"]
