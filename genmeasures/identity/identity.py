"""What a model is, what its data are, and what its values depend on besides: each as a short text."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from genmeasures.data import DataSource
from genmeasures.identity.origins import CORE, version
from genmeasures.identity.walk import DIGEST_SIZE, Unidentified, Walk, has_address, tensor_contents
from genmeasures.interfaces import Component, Split
from genmeasures.version import __version__

_VALUES = (
    *("contexts.py", "data", "engine", "extractors", "generators.py", "interfaces.py", "labelers", "measures"),
    *("statistics", "tracing"),
)
"""The parts of the core that values depend on."""


@dataclass(frozen=True)
class ModelIdentity:
    """What tells one model from another."""

    weights: str
    """Hash of the names, types, shapes and values of parameters and buffers, those outside the state dict too."""
    code: str
    """Hash of everything else: the code of its modules' classes, their attributes, hooks and order."""
    distributions: frozenset[str]
    """The installed distributions that its code belongs to."""


def model_identity(model: nn.Module) -> ModelIdentity:
    """Hash a model by what it computes: equal in every process, other where its outputs can be other.

    The mode it is in, gradients, devices, and names of files, functions and modules do not count.

    Args:
        model: any module; it is not run.

    Raises:
        Unidentified: an attribute or global of its code has no sound hash; the message says which.

    Example:
        >>> torch.manual_seed(0) and None
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> before = model_identity(net)
        >>> net[1] = nn.GELU()
        >>> after = model_identity(net)
        >>> before.weights == after.weights, before.code == after.code
        (True, False)
    """
    weights = hashlib.blake2b(digest_size=DIGEST_SIZE)
    known: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is None:
                    continue
                place = f"{prefix}.{name}" if prefix else name
                weights.update(f"\0{place}\0".encode("utf-8", "surrogatepass"))
                if id(tensor) in known:  # tied weights
                    weights.update(known[id(tensor)].encode())
                    continue
                known[id(tensor)] = f"tensor {len(known)}"
                if type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer):
                    for part in tensor_contents(tensor):
                        weights.update(part)
                else:
                    special = Walk(set())
                    special.feed(tensor, place)
                    weights.update(special.digest().encode())
    distributions = {"torch"}
    walk = Walk(distributions, known)
    walk.feed(model, "")
    hooks = nn.modules.module
    for name in ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_hooks"):
        walk.feed(list(getattr(hooks, name).values()), "hooks of all modules")
    return ModelIdentity(weights.hexdigest(), walk.digest(), frozenset(distributions))


def component_identity(components: Iterable[Component]) -> tuple[str, frozenset[str]]:
    """Hash components by their classes and options; also the distributions that their code belongs to.

    Raises Unidentified where an option has no sound hash, or is shown with its address in memory.
    """
    distributions: set[str] = set()
    walk = Walk(distributions)
    for component in components:
        walk.feed(component, type(component).__name__)
    return walk.digest(), frozenset(distributions)


def data_identity(sources: Mapping[Split, DataSource]) -> str:
    """Hash the inputs and targets of all splits, as they are read."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for split in sorted(sources):
        scan = sources[split].scan()
        digest.update(f"{split} {len(scan)} {scan.input_shape} {scan.targets}\0".encode())
        digest.update(scan.contents.tobytes())
    return digest.hexdigest()


def versions_identity(distributions: Iterable[str]) -> str:
    """Hash the versions of distributions, and the code of the core that values depend on."""
    digest = hashlib.blake2b(f"{__version__} {_core()}".encode(), digest_size=DIGEST_SIZE)
    for name in sorted({*distributions} - {CORE}):
        digest.update(f"\0{name} {version(name)}".encode())
    return digest.hexdigest()


@functools.cache
def _core() -> str:
    """A working copy of the core changes without its version."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    root = Path(__file__).parents[1]
    for part in _VALUES:
        for file in [root / part] if part.endswith(".py") else sorted((root / part).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


__all__ = [
    "ModelIdentity",
    "Unidentified",
    "component_identity",
    "data_identity",
    "has_address",
    "model_identity",
    "versions_identity",
]
