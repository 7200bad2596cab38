"""Leaves a model as it was found."""

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
"""Buffers that are learned from data, as the parameters are. Others may be infinite on purpose, as masks are."""


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model in evaluation mode on the device; at the end it is exactly as it was before.

    It goes into evaluation mode and back by its own ``eval()`` and ``train()``, so that adapters merge
    and part again. Then everything that it keeps is put back (:func:`~genmeasures.tracing.snapshot.keep`
    says what can be seen): values of parameters, buffers and plain attributes, what was added or taken
    away, hooks, modes, devices, memory layouts, ``requires_grad`` and gradients, also after an
    exception. On the device the model runs on copies of its parameters.

    Raises ModelError naming the first parameter or running statistic that is NaN or infinite, or the
    first parameter or buffer that is not initialized.
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
    """Lend a model that is undisturbed already to one of its measures: at the end it is as before, again exactly.

    So no measure sees what another has left. Parameters are copied once more, and nothing is compared unless the
    function that it yields is called.

    Args:
        model: the model, on the device.
        device: where it runs.
        own: what the model changes by itself when it runs, as :meth:`State.changes` said.

    Yields:
        A function that says what has been changed since, of parameters, buffers, ``requires_grad``, modes, hooks and
        modules, but not of what is the model's own.
    """
    before = State(model)
    with ExitStack() as undo:
        keep(model, device, undo)
        yield lambda: [change for change in before.changes(model) if change not in own]


class State:
    """What a measure must leave as it is, to be compared with what it is later.

    Of parameters the memory is noted down, not the contents: where they have other memory by then, as in
    :func:`lent`, contents are compared; where they have the same, their count of writes tells.

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
        """What is not as it was, a sentence each."""
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        now, known = {*parameters, *buffers}, {*self._parameters, *self._buffers}
        said = [f"{name} is gone" for name in known - now] + [f"{name} is new" for name in now - known]
        changed = [
            name for name, one in buffers.items() if name in self._buffers and not _same(one, self._buffers[name])
        ]
        for name, (before, version) in self._parameters.items():
            if name in parameters:
                one = parameters[name]
                written = one._version != version if _place(one) == _place(before) else not _same(one, before)
                changed += [name] if written else []
        marks = _marks(model)
        said = sorted(said) + [f"{name} has changed" for name in changed]
        return said + [mark for mark in self._marks if mark in marks and marks[mark] != self._marks[mark]]


def _marks(model: nn.Module) -> dict[str, object]:
    """What can be compared by ``==``, by what is said where it differs."""
    made: dict[str, object] = {}
    for name, parameter in model.named_parameters():
        made[f"requires_grad of {name} has changed"] = parameter.requires_grad
    for name, module in model.named_modules():
        called = f"{type(module).__name__} {name}".strip()
        made[f"the mode of {called} has changed"] = module.training
        made[f"the modules of {called} have changed"] = [(key, id(one)) for key, one in module._modules.items()]
        hooks = (list(held) for key, held in vars(module).items() if key.endswith("_hooks") and isinstance(held, dict))
        made[f"a hook is left on {called}, or taken from it"] = list(hooks)
    return made


def _place(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse ones and wrappers have no memory of their own
        return 0


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, on whatever device; what cannot be compared counts as the same."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    try:
        return same_values(one, other.to(one.device))
    except (RuntimeError, NotImplementedError):  # packed, sparse or nested ones
        return True


def _train_again(modules: Sequence[nn.Module]) -> None:
    """Go back to training mode as the modules themselves do; what that leaves another is put back after it."""
    for module in modules:
        if not module.training:
            try:
                module.train()
            except Exception:  # whatever a user's model raises
                log.debug("train() failed", exc_info=True)


@torch.no_grad()
def _check_values(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise ModelError(f"{name} is not initialized: load its values, or run a lazy model on one batch first")
        learned = isinstance(tensor, nn.Parameter) or _STATISTICS.search(name.rpartition(".")[2])
        if learned and tensor.is_floating_point():
            bad = int(tensor.numel() - torch.isfinite(tensor).sum())
            if bad:
                raise ModelError(f"{bad} of {tensor.numel()} values of {name} are NaN or infinite")
