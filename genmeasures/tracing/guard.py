"""Protection of models: a model is the same before and after it is measured."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from genmeasures.errors import ModelError
from genmeasures.tracing.snapshot import keep, same_values

log = logging.getLogger(__name__)

_STATISTICS = re.compile(r"(^|_)(running|moving)_")
"""Buffers that are estimated from data. Other buffers may be infinite on purpose, as masks are."""


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a model into evaluation mode on a device, and restore it exactly at the end, also after an exception.

    Modes are switched with the model's own ``eval()`` and ``train()``, so that adapters are merged and unmerged.
    The whole state of the model is then restored: values of parameters, buffers and plain attributes, added
    and removed attributes, hooks, modes, devices, memory layouts, ``requires_grad`` and gradients.
    :func:`~genmeasures.tracing.snapshot.keep` describes what is covered. Inside the context the model runs on
    copies of its parameters.

    Args:
        model: The model.
        device: Device that it runs on.

    Raises:
        ModelError: A parameter or running statistic is NaN or infinite, or a parameter or buffer is not
            initialized. The message names the first one.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> weight = net.weight.detach().clone()
        >>> with undisturbed(net, torch.device("cpu")), torch.no_grad():
        ...     _ = net.weight.zero_()
        >>> torch.equal(net.weight, weight), net.training
        (True, True)
    """
    _check_values(model)
    with ExitStack() as undo:
        keep(model, device, undo)
        if any(tensor.device != device for tensor in (*model.parameters(), *model.buffers())):
            model.to(device)
        trained = [module for module in model.modules() if module.training]
        if trained:
            undo.callback(_train_again, trained)
            model.eval()
        yield


@contextmanager
def lent(model: nn.Module, device: torch.device, own: Collection[str] = ()) -> Iterator[Callable[[], list[str]]]:
    """Lend a model to one measure inside :func:`undisturbed`, and restore it exactly at the end.

    No measure sees changes by another one. Parameters are copied again, and nothing is compared unless the
    yielded function is called.

    Args:
        model: The model, on the device.
        device: Device that it runs on.
        own: Changes that the model makes by itself whenever it runs, as returned by :meth:`State.changes`.

    Yields:
        A function that returns the changes so far to parameters, buffers, ``requires_grad``, modes, hooks and
        modules, except those in ``own``.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> with lent(net, torch.device("cpu")) as changes, torch.no_grad():
        ...     _ = net.bias.add_(1)
        ...     changes()
        ['bias has changed']
    """
    before = State(model)
    with ExitStack() as undo:
        keep(model, device, undo)
        yield lambda: [change for change in before.changes(model) if change not in own]


class State:
    """State of a model that a measure must not change, for comparison with its later state.

    For parameters the memory is recorded instead of a copy of the contents. If a parameter still has the same memory
    later, its version counter tells whether it was written to; else, as in :func:`lent`, contents are compared.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> state = State(net)
        >>> with torch.no_grad():
        ...     _ = net[0].weight.mul_(1)
        >>> _ = net[1].eval()
        >>> state.changes(net)
        ['0.weight has changed', 'the mode of ReLU 1 has changed']
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {name: (tensor.data, tensor._version) for name, tensor in model.named_parameters()}
        self._buffers = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
        self._marks = _marks(model)

    @torch.no_grad()
    def changes(self, model: nn.Module) -> list[str]:
        """Return the differences between the model and this state, one sentence per difference."""
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        after, before = {*parameters, *buffers}, {*self._parameters, *self._buffers}
        messages = [f"{name} is gone" for name in before - after] + [f"{name} is new" for name in after - before]
        changed = [
            name for name, buffer in buffers.items() if name in self._buffers and not _same(buffer, self._buffers[name])
        ]
        for name, (data, version) in self._parameters.items():
            if name in parameters:
                tensor = parameters[name]
                same_memory = _address(tensor) == _address(data)
                written = tensor._version != version if same_memory else not _same(tensor, data)
                changed += [name] if written else []
        marks = _marks(model)
        messages = sorted(messages) + [f"{name} has changed" for name in changed]
        return messages + [mark for mark in self._marks if mark in marks and marks[mark] != self._marks[mark]]


def _marks(model: nn.Module) -> dict[str, object]:
    """State that is compared by ``==``, by the message for a difference."""
    marks: dict[str, object] = {}
    for name, parameter in model.named_parameters():
        marks[f"requires_grad of {name} has changed"] = parameter.requires_grad
    for name, module in model.named_modules():
        label = f"{type(module).__name__} {name}".strip()
        marks[f"the mode of {label} has changed"] = module.training
        marks[f"the modules of {label} have changed"] = [(key, id(child)) for key, child in module._modules.items()]
        hooks = (list(held) for key, held in vars(module).items() if key.endswith("_hooks") and isinstance(held, dict))
        marks[f"a hook was added to {label} or removed from it"] = list(hooks)
    return marks


def _address(tensor: Tensor) -> int:
    """Address of the memory of a tensor; 0 if it has no memory of its own."""
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError):  # a sparse tensor or a wrapper
        return 0


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors, on any devices, are equal; tensors that cannot be compared count as equal."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    try:
        return same_values(first, second.to(first.device))
    except (RuntimeError, NotImplementedError):  # packed, sparse or nested tensors
        return True


def _train_again(modules: Sequence[nn.Module]) -> None:
    """Call the modules' own ``train()``; any differences that remain are restored afterwards."""
    for module in modules:
        if not module.training:
            try:
                module.train()
            except Exception:  # a user's model may raise anything
                log.debug("train() failed", exc_info=True)


@torch.no_grad()
def _check_values(model: nn.Module) -> None:
    """Raise ModelError for uninitialized, NaN or infinite parameters and running statistics."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise ModelError(f"{name} is not initialized: load its values, or run a lazy model on one batch first")
        learned = isinstance(tensor, nn.Parameter) or _STATISTICS.search(name.rpartition(".")[2])
        if learned and tensor.is_floating_point():
            bad = int(tensor.numel() - torch.isfinite(tensor).sum())
            if bad:
                raise ModelError(f"{bad} of {tensor.numel()} values of {name} are NaN or infinite")
