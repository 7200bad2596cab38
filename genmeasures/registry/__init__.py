"""Which components there are: found by pluggy, ours and everyone else's through the same hooks."""

from genmeasures.registry.manager import PluginInfo, Registry, make, registry
from genmeasures.registry.specs import hookimpl, hookspec

__all__ = ["PluginInfo", "Registry", "hookimpl", "hookspec", "make", "registry"]
