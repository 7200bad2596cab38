"""Kinds of components, and the kind of a class."""

from __future__ import annotations

from genmeasures.errors import GenmeasuresError
from genmeasures.interfaces import Aggregator, Component, Extractor, Labeler, Measure, Task

KINDS: dict[str, type[Component]] = {
    "extractor": Extractor,
    "labeler": Labeler,
    "measure": Measure,
    "aggregator": Aggregator,
    "task": Task,
}
"""Base class of each kind. The kinds are also the names of the Hydra config groups."""


def kind_of(component: object) -> str:
    """Return the kind of a component class.

    Raises:
        GenmeasuresError: If ``component`` is not a class, or its bases include none of the kinds or several of them.

    Example:
        >>> from genmeasures.labelers import KMeans
        >>> kind_of(KMeans)
        'labeler'
    """
    if not isinstance(component, type):
        raise GenmeasuresError(f"{component!r} cannot be registered: register(…) takes a class, got an object")
    kinds = [kind for kind, base in KINDS.items() if issubclass(component, base)]
    if not kinds:
        bases = ", ".join(base.__name__ for base in KINDS.values())
        raise GenmeasuresError(f"{component.__name__} cannot be registered: it must be a subclass of one of {bases}")
    if len(kinds) > 1:
        raise GenmeasuresError(f"{component.__name__} cannot be registered: it must be of one kind, got {kinds}")
    return kinds[0]
