"""Discovery of plugins: what they register, and what failed to load."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import pluggy
import yaml

from genmeasures.errors import GenmeasuresError, OptionError, nearest, one_line
from genmeasures.failures import origin
from genmeasures.interfaces import Component
from genmeasures.registry import specs
from genmeasures.registry.kinds import KINDS, kind_of
from genmeasures.registry.known_plugins import plugin_of

log = logging.getLogger(__name__)

STRICT = "GENMEASURES_STRICT_PLUGINS"
"""Environment variable: if set, and not to 0, a plugin that fails to load is an error."""

ALLOWED = "GENMEASURES_PLUGINS"
"""Environment variable: if set, only the plugins that it names, separated by commas, are loaded."""


@dataclass
class PluginInfo:
    """A plugin: its distribution, its components, and the error with which it failed to load, if it did."""

    name: str
    distribution: str
    version: str
    components: list[tuple[str, type[Component]]] = field(default_factory=list)
    config_packages: list[str] = field(default_factory=list)
    error: str = ""


class Registry:
    """All components by kind ("extractor", "labeler", "measure", "aggregator", "task") and name.

    Example:
        >>> registry().names("aggregator")
        ['explicit', 'frobenius', 'last_k', 'max', 'mean', 'mean_weight', 'single']
    """

    def __init__(self) -> None:
        self.plugins: list[PluginInfo] = []
        self._classes: dict[str, dict[str, type[Component]]] = {kind: {} for kind in KINDS}

    def add(self, name: str, load: Callable[[], object], distribution: str, version: str) -> None:
        """Load a plugin. An error is recorded in its info and does not affect other plugins.

        Args:
            name: Name of its entry point.
            load: Imports the module with its hooks.
            distribution: Name of the distribution.
            version: Version of the distribution.

        Raises:
            GenmeasuresError: If the plugin fails to load and GENMEASURES_STRICT_PLUGINS is set.
        """
        info = PluginInfo(name, distribution, version)
        self.plugins.append(info)
        classes: dict[str, dict[str, type[Component]]] = {kind: {} for kind in KINDS}
        try:
            manager = pluggy.PluginManager(specs.PROJECT)
            manager.add_hookspecs(specs)
            manager.register(load(), name)
            _check_hooks(manager)
            manager.hook.genmeasures_register(register=self._registrar(classes, info))
            for packages in manager.hook.genmeasures_config_packages():
                info.config_packages += [packages] if isinstance(packages, str) else list(packages)
            for package in info.config_packages:
                _check_configs(package)
        except (Exception, SystemExit) as error:
            info.components, info.config_packages = [], []
            location = origin(error)
            info.error = (
                f"{type(error).__name__}: {error}{f' ({location})' if location and location not in str(error) else ''}"
            )
            log.debug("plugin %s failed to load", name, exc_info=error)
            if os.environ.get(STRICT, "0") not in ("", "0"):
                raise GenmeasuresError(
                    f"plugin {name} ({distribution} {version}) failed to load: {info.error}"
                ) from error
            return
        for kind, components in classes.items():
            self._classes[kind].update(components)

    def _registrar(self, classes: dict[str, dict[str, type[Component]]], info: PluginInfo) -> specs.Register:
        def register(component: type[Any]) -> None:
            kind = kind_of(component)
            name = getattr(component, "name", "")
            if not isinstance(name, str) or not name:
                raise GenmeasuresError(f'{component.__name__} has no name: write name = "my_{kind}" in the class')
            if name in classes[kind] or name in self._classes[kind]:
                raise GenmeasuresError(f"the {kind} name {name!r} is already taken")
            classes[kind][name] = component
            info.components.append((kind, component))

        return register

    def names(self, kind: str) -> list[str]:
        """Return the names of all components of a kind, sorted."""
        return sorted(self._classes[kind])

    def get(self, kind: str, name: str) -> type[Component]:
        """Return the class of a component.

        Raises:
            OptionError: If the name is unknown, with the nearest name.
        """
        if name not in self._classes[kind]:
            raise OptionError(self.missing(kind, name, self._classes[kind]))
        return self._classes[kind][name]

    def find(self, name: str) -> tuple[str, str]:
        """Return the kind and the name of a component that is given as NAME or KIND.NAME.

        Raises:
            OptionError: If there is no such component, or NAME is the name of several.

        Example:
            >>> registry().find("kmeans")
            ('labeler', 'kmeans')
            >>> registry().find("aggregator.mean")
            ('aggregator', 'mean')
        """
        kind, dot, rest = name.partition(".")
        if dot and kind in KINDS:
            self.get(kind, rest)
            return kind, rest
        kinds = [kind for kind in KINDS if name in self._classes[kind]]
        if not kinds:
            candidates = [candidate for kind in KINDS for candidate in self.names(kind)]
            raise OptionError(self.missing("component", name, candidates))
        if len(kinds) > 1:
            names = ", ".join(f"{kind}.{name}" for kind in kinds)
            raise OptionError(f"{name!r} is the name of several components: write one of {names}")
        return kinds[0], name

    def missing(self, kind: str, name: str, candidates: Iterable[str]) -> str:
        """Return the message for an unknown component.

        It names the package to install if that is known, or else the nearest known name; and plugins that failed to
        load.
        """
        plugin = plugin_of(kind, name)
        if plugin is None or plugin in [info.name for info in self.plugins]:
            message = f"there is no {kind} {name!r}{nearest(name, candidates)}"
        else:
            message = f"there is no {kind} {name!r}: it comes with a plugin, pip install genmeasures[{plugin}]"
            if ALLOWED in os.environ:
                message += f", and {ALLOWED} must name {plugin!r}"
        for info in self.plugins:
            if info.error:
                message += (
                    f"; the plugin {info.name} ({info.distribution} {info.version}), which may have it, failed to "
                    f"load: {one_line(info.error)}"
                )
        return message

    def make(self, kind: str, name: str, options: dict[str, Any]) -> Component:
        """Return a component with options.

        Raises:
            OptionError: If an option is unknown, missing or out of range.

        Example:
            >>> registry().make("labeler", "kmeans", {"k": 8})
            KMeans(k=8, restarts=10, repeats=1)
        """
        return make(self.get(kind, name), options, f"the {kind} {name!r}")

    def config_packages(self) -> Sequence[str]:
        """Return the config packages of all plugins that loaded."""
        return [package for info in self.plugins for package in info.config_packages]


def make(component: type[Component], options: dict[str, Any], called: str) -> Component:
    """Return a component with options.

    Args:
        component: Class of the component.
        options: Options by name.
        called: What an error calls the component.

    Raises:
        OptionError: If an option is unknown, missing or out of range.

    Example:
        >>> from genmeasures.labelers import KMeans
        >>> make(KMeans, {"k": 8}, "the labeler 'kmeans'")
        KMeans(k=8, restarts=10, repeats=1)
    """
    names = component.option_names()
    for option in options:
        if option not in names:
            raise OptionError(f"{called} has no option {option!r}{nearest(option, names)}")
    parameters = inspect.signature(component).parameters
    for option in names:
        if option not in options and parameters[option].default is inspect.Parameter.empty:
            raise OptionError(f"{called} needs the option {option!r}")
    return component(**options)


def _check_hooks(manager: pluggy.PluginManager) -> None:
    """Raise GenmeasuresError for an implementation of a hook that does not exist."""
    hooks = [name for name in vars(specs) if name.startswith(f"{specs.PROJECT}_")]
    for caller in vars(manager.hook).values():
        name = getattr(caller, "name", "")
        if name.startswith(f"{specs.PROJECT}_register") and name not in hooks:
            raise GenmeasuresError(
                f"unknown hook {name!r}: the hook is genmeasures_register(register), for components of every kind"
            )
    manager.check_pending()


def _check_configs(package: str) -> None:
    """Raise GenmeasuresError unless the package exists and all its YAML files can be read."""
    try:
        folders = [importlib.resources.files(package)]
    except (ModuleNotFoundError, TypeError) as error:
        raise GenmeasuresError(f"its config package {package!r} cannot be found: {error}") from error
    while folders:
        for entry in folders.pop().iterdir():
            if entry.is_dir():
                folders.append(entry)
            elif entry.name.endswith(".yaml"):
                try:
                    yaml.safe_load(entry.read_text(encoding="utf-8"))
                except (yaml.YAMLError, UnicodeDecodeError) as error:
                    where = str(error).replace("\n", " ")
                    raise GenmeasuresError(f"its config {entry.name} cannot be read: {where}") from error


def _builtin() -> ModuleType:
    from genmeasures.registry import builtin

    return builtin


@cache
def registry() -> Registry:
    """Return the components of the core and of all installed plugins (entry-point group ``genmeasures``)."""
    components = Registry()
    components.add("genmeasures", _builtin, "genmeasures", importlib.metadata.version("genmeasures"))
    if components.plugins[0].error:
        raise GenmeasuresError(f"the core of genmeasures does not load: {components.plugins[0].error}")
    points = sorted(importlib.metadata.entry_points(group=specs.PROJECT), key=lambda point: point.name)
    allowed = os.environ.get(ALLOWED)
    names = None if allowed is None else [name.strip() for name in allowed.split(",") if name.strip()]
    for name in names or ():
        if name not in [point.name for point in points]:
            installed = [point.name for point in points]
            raise OptionError(f"{ALLOWED} names the plugin {name!r}, which is not installed{nearest(name, installed)}")
    for point in points:
        if names is None or point.name in names:
            dist = point.dist
            components.add(point.name, point.load, dist.name if dist else "?", dist.version if dist else "?")
    return components
