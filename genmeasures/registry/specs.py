"""The hooks that a plugin may implement.

``register`` is a function of one argument, a component class, whose ``name`` it is found by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pluggy

PROJECT = "genmeasures"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[[type[Any]], None]


@hookspec
def genmeasures_register_extractors(register: Register) -> None:
    """Register Extractor classes."""


@hookspec
def genmeasures_register_labelers(register: Register) -> None:
    """Register Labeler classes."""


@hookspec
def genmeasures_register_measures(register: Register) -> None:
    """Register Measure classes."""


@hookspec
def genmeasures_register_aggregators(register: Register) -> None:
    """Register Aggregator classes."""


@hookspec
def genmeasures_register_tasks(register: Register) -> None:
    """Register Task classes."""


@hookspec
def genmeasures_config_packages() -> Sequence[str]:  # type: ignore[empty-body]
    """Name the packages that hold the plugin's Hydra config groups, ``my_plugin.conf`` for one."""
