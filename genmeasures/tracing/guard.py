"""Leaves a model as it was found."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from genmeasures.errors import ModelError
from genmeasures.tracing.snapshot import keep

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
    first parameter or buffer that is not initialised.
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
            raise ModelError(f"{name} is not initialised: load its values, or run a lazy model on one batch first")
        learned = isinstance(tensor, nn.Parameter) or _STATISTICS.search(name.rpartition(".")[2])
        if learned and tensor.is_floating_point():
            bad = int(tensor.numel() - torch.isfinite(tensor).sum())
            if bad:
                raise ModelError(f"{bad} of {tensor.numel()} values of {name} are NaN or infinite")
