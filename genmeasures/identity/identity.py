"""Identities of models, data, components and versions as short hashes."""

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
"""Files and folders of the core that values depend on."""


@dataclass(frozen=True)
class ModelIdentity:
    """Identity of a model, made by :func:`model_identity`."""

    weights: str
    """Hash of the names, dtypes, shapes and values of parameters and buffers, including non-persistent ones."""
    code: str
    """Hash of everything else: the code of its modules' classes, their attributes, hooks and order."""
    distributions: frozenset[str]
    """Installed distributions that its code belongs to."""


def model_identity(model: nn.Module) -> ModelIdentity:
    """Hash a model by what it computes.

    The hashes are equal in every process and differ if the outputs of the model may differ. They do not depend on
    its mode, gradients and devices, nor on the names of files, functions and modules.

    Args:
        model: Any module; it is not run.

    Raises:
        Unidentified: An attribute or global of its code cannot be hashed. The message names it.

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
    references: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is None:
                    continue
                path = f"{prefix}.{name}" if prefix else name
                weights.update(f"\0{path}\0".encode("utf-8", "surrogatepass"))
                if id(tensor) in references:  # tied weights
                    weights.update(references[id(tensor)].encode())
                    continue
                references[id(tensor)] = f"tensor {len(references)}"
                if type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer):
                    for part in tensor_contents(tensor):
                        weights.update(part)
                else:
                    special = Walk(set())
                    special.feed(tensor, path)
                    weights.update(special.digest().encode())
    distributions = {"torch"}
    walk = Walk(distributions, references)
    walk.feed(model, "")
    hooks = nn.modules.module
    for name in ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_hooks"):
        walk.feed(list(getattr(hooks, name).values()), "hooks of all modules")
    return ModelIdentity(weights.hexdigest(), walk.digest(), frozenset(distributions))


def component_identity(components: Iterable[Component]) -> tuple[str, frozenset[str]]:
    """Hash components by their classes and options.

    Args:
        components: The components.

    Returns:
        The hash, and the distributions that their code belongs to.

    Raises:
        Unidentified: An option cannot be hashed, or its ``repr`` contains its address in memory.

    Example:
        >>> from genmeasures.measures import Confidence
        >>> component_identity([Confidence()]) == component_identity([Confidence()])
        True
    """
    distributions: set[str] = set()
    walk = Walk(distributions)
    for component in components:
        walk.feed(component, type(component).__name__)
    return walk.digest(), frozenset(distributions)


def data_identity(sources: Mapping[Split, DataSource]) -> str:
    """Hash the inputs and targets of all splits.

    Args:
        sources: Data by split.

    Returns:
        The hash, which depends on the contents and their order only.

    Example:
        >>> inputs = torch.zeros(3, 2)
        >>> first, second = (data_identity({"test": DataSource((inputs + x,), "test", 2)}) for x in (0, 1))
        >>> first == second
        False
    """
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for split in sorted(sources):
        scan = sources[split].scan()
        digest.update(f"{split} {len(scan)} {scan.input_shape} {scan.targets}\0".encode())
        digest.update(scan.contents.tobytes())
    return digest.hexdigest()


def versions_identity(distributions: Iterable[str]) -> str:
    """Hash the versions of distributions, and the code of the core that values depend on.

    Args:
        distributions: names of installed distributions.

    Returns:
        The hash, in hexadecimal.

    Example:
        >>> versions_identity(["numpy", "torch"]) == versions_identity(["torch", "numpy"])
        True
    """
    digest = hashlib.blake2b(f"{__version__} {_core()}".encode(), digest_size=DIGEST_SIZE)
    for name in sorted({*distributions} - {CORE}):
        digest.update(f"\0{name} {version(name)}".encode())
    return digest.hexdigest()


@functools.cache
def _core() -> str:
    """Hash of the core's code: a working copy changes without a new version."""
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
