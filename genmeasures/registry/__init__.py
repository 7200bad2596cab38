"""Registry of components, found by pluggy through the same hooks for the core and for plugins."""

from genmeasures.registry.configs import OptionInfo, derived_config, has_yaml, options_of, target_of
from genmeasures.registry.kinds import KINDS, kind_of
from genmeasures.registry.manager import PluginInfo, Registry, make, registry
from genmeasures.registry.specs import hookimpl, hookspec

__all__ = [
    "KINDS",
    "OptionInfo",
    "PluginInfo",
    "Registry",
    "derived_config",
    "has_yaml",
    "hookimpl",
    "hookspec",
    "kind_of",
    "make",
    "options_of",
    "registry",
    "target_of",
]
