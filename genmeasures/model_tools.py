"""Helpers for measures of the model: layers of a forward pass, memory of a graph, and class labels."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from genmeasures.errors import ModelError
from genmeasures.interfaces import TAPS, Layer
from genmeasures.tracing import TracedLayer, trace

log = logging.getLogger(__name__)


def eager() -> AbstractContextManager[Any]:
    """Return a context in which compiled models run eagerly, so that hooks and function modes see their calls.

    Example:
        >>> with eager():
        ...     torch.nn.Linear(3, 2)(torch.zeros(4, 3)).shape
        torch.Size([4, 2])
    """
    # The compiler is slow to import, and a compiled model cannot exist where it was never imported.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def traced_layers(
    model: torch.nn.Module, layers: Sequence[Layer], example: Tensor, tap: str | None = None
) -> list[TracedLayer]:
    """Return how to find the layers in a forward pass, for :func:`~genmeasures.plugin.tapped`.

    Args:
        model: Model in evaluation mode.
        layers: Layers as the engine passes them to :meth:`~genmeasures.plugin.ModelMeasure.measure`.
        example: A few inputs (B, …). More than one shows which dimension is the batch.
        tap: Where outputs are read, ``"activation"``, ``"linear"`` or ``"block"``. None reads each where ``Layer.tap``
            says.

    Raises:
        ModelError: If the model does not run one of the layers.

    Example:
        >>> from genmeasures.plugin import tapped, trace
        >>> net, inputs = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), torch.ones(4, 3)
        >>> layers = [traced.layer for traced in trace(net, inputs, "activation").layers]
        >>> [traced.layer.name for traced in traced_layers(net, layers, inputs)]
        ['0']
    """
    for where in TAPS if tap is None else (tap,):
        with torch.no_grad():
            by_name = {traced.layer.name: traced for traced in trace(model, example, where).layers}
        missing = [layer.name for layer in layers if layer.name not in by_name]
        if missing:
            raise ModelError(f"the model has no layer {missing[0]!r}")
        selected = [by_name[layer.name] for layer in layers]
        if tap is not None or [traced.layer.tap for traced in selected] == [layer.tap for layer in layers]:
            return selected
    raise ModelError("other operations follow the layers of the model than followed them before")


def graph_memory(run: Callable[[Tensor], Any], example: Tensor, without: Iterable[Tensor]) -> tuple[int, Any] | None:
    """Return the bytes that the graph of a forward pass keeps for its gradient, and the output of the pass.

    Args:
        run: Takes a batch of inputs to an output.
        example: Inputs (B, …) to run.
        without: Tensors whose memory does not count, such as the parameters, which exist once for all batches.

    Returns:
        None where the memory is unknown: ``torch.func`` within a model does not take the hooks that count it.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh())
        >>> graph_memory(net, torch.zeros(4, 3), net.parameters())[0]  # the input (4, 3) and the output (4, 5), float32
        128
    """
    apart = {tensor.untyped_storage().data_ptr() for tensor in without}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    try:
        with torch.inference_mode(False), torch.enable_grad(), hooks:
            output = run(example.detach().clone().requires_grad_())
    except RuntimeError as error:  # whatever else is wrong fails again in the pass that follows
        log.debug("the memory of the graph is unknown", exc_info=error)
        return None
    return sum(kept.values()), output


def class_problem(targets: Tensor | None) -> str:
    """Return why targets are not one class per input, or an empty string if they are.

    The text completes a sentence: ``raise DataError(f"my_measure needs {problem}")``.

    Example:
        >>> class_problem(torch.zeros(8, 1, dtype=torch.int64))
        ''
        >>> class_problem(torch.zeros(8, 3))
        'one class per input, got float32 targets of shape (3,)'
    """
    if targets is None:
        return "targets, and the data have none"
    if targets.is_floating_point() or targets.shape[1:] != (1,):
        dtype = str(targets.dtype).removeprefix("torch.")
        return f"one class per input, got {dtype} targets of shape {tuple(targets.shape[1:])}"
    return ""
