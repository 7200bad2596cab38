"""Generalization measures: numbers, computed layer by layer from a trained network, for unseen data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from genmeasures.version import __version__ as __version__

if TYPE_CHECKING:
    from genmeasures.api import aggregate, estimate, judge, load_task, measure, rank

__all__ = ["aggregate", "estimate", "judge", "load_task", "measure", "rank"]
_PACKAGES = (
    "aggregators",
    "estimates",
    "extractors",
    "judging",
    "labelers",
    "measures",
    "plot",
    "plugin",
    "report",
    "results",
    "testing",
)
"""What the documentation names after ``import genmeasures``."""


def __getattr__(name: str) -> Any:
    # torch is imported when something is used, not before: the command line must answer at once.
    if name in __all__:
        return getattr(importlib.import_module("genmeasures.api"), name)
    if name in _PACKAGES:
        return importlib.import_module(f"genmeasures.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
