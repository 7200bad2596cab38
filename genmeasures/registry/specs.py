"""Hooks that a plugin may implement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pluggy

PROJECT = "genmeasures"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[[type[Any]], None]


@hookspec
def genmeasures_register(register: Register) -> None:
    """Register the component classes of the plugin.

    Args:
        register: takes one class, an extractor, labeler, measure, aggregator or task. Its base class tells the kind,
            its ``name`` is the name that users type.

    Example:
        >>> @hookimpl
        ... def genmeasures_register(register):
        ...     register(MyMeasure)
    """


@hookspec
def genmeasures_config_packages() -> Sequence[str]:  # type: ignore[empty-body]
    """Name the packages with Hydra config groups of the plugin, such as ``my_plugin.conf``.

    Optional: without a YAML file, the config of a component is derived from its constructor.

    Example:
        >>> @hookimpl
        ... def genmeasures_config_packages():
        ...     return ["my_plugin.conf"]
    """
