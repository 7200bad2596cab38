"""Command ``genmeasures plugins``: installed plugins and their components, or one component in full."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from genmeasures.errors import shown
from genmeasures.interfaces import Component
from genmeasures.registry import KINDS, OptionInfo, PluginInfo, options_of, registry, target_of
from genmeasures.registry.configs import REQUIRED, without_args
from genmeasures.report import make_console, print_json, print_line


def plugins_command(json: bool = False, name: str | None = None) -> int:
    """Print all plugins, one component with its options, defaults and docstring, or one plugin.

    Args:
        json: Print JSON for machines.
        name: Component as NAME or KIND.NAME, plugin if no component has its name, or None for all plugins.

    Returns:
        The exit status, 0.

    Raises:
        OptionError: If there is no such component.

    Example:
        >>> plugins_command(name="meen")
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: there is no component 'meen' (did you mean 'mean'? ...
    """
    infos = registry().plugins
    if name is not None:
        named = [info for info in infos if name in (info.name, info.distribution)]
        if not named or any(name in registry().names(kind) for kind in KINDS):
            _print_component(name, json)
            return 0
        infos = named
    if json:
        print_json([_plugin(info) for info in infos])
    else:
        _print_plugins(make_console(), infos)
    return 0


def _plugin(info: PluginInfo) -> dict[str, Any]:
    """A plugin as JSON."""
    components = [{"kind": kind, "name": c.name, "options": _parameters(c)} for kind, c in info.components]
    return {
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "error": info.error or None,
        "components": components,
    }


def _print_plugins(console: Console, infos: Sequence[PluginInfo]) -> None:
    for info in infos:
        console.print(
            Text.assemble((shown(info.name), "bold"), shown(f"  {info.distribution} {info.version}")), soft_wrap=True
        )
        if info.error:
            print_line(console, f"  failed to load: {info.error}", "red")
        for kind in dict.fromkeys(kind for kind, _ in info.components):
            console.print(f"  {kind}", style="cyan")
            for component in (component for of, component in info.components if of == kind):
                print_line(console, f"    {component.name}({', '.join(_parameters(component))})")


def _print_component(name: str, json: bool) -> None:
    """One component in full."""
    kind, name = registry().find(name)
    component = registry().get(kind, name)
    (info,) = (info for info in registry().plugins if (kind, component) in info.components)
    options = options_of(component)
    description = without_args(inspect.getdoc(component))
    if json:
        print_json(
            {
                "kind": kind,
                "name": name,
                "class": target_of(component),
                "distribution": info.distribution,
                "version": info.version,
                "description": description,
                "options": [_option(option) for option in options],
            }
        )
        return
    console = make_console()
    origin = f"  {target_of(component)}  ({info.distribution} {info.version})"
    console.print(Text.assemble((f"{kind} {name}", "bold"), shown(origin)), soft_wrap=True)
    console.print(f"\n{description}\n", markup=False, highlight=False, soft_wrap=True)
    for option in options:
        default = "a value is needed" if option.default == REQUIRED else _written(option.default)
        console.print(Text.assemble("  ", (option.name, "cyan"), f": {default}"), soft_wrap=True)
        if option.text:
            console.print(f"      {option.text}", markup=False, highlight=False, soft_wrap=True)


def _option(option: OptionInfo) -> dict[str, Any]:
    """An option as JSON."""
    required = option.default == REQUIRED
    default = None if required else option.default
    return {"name": option.name, "required": required, "default": default, "description": option.text}


def _written(value: Any) -> str:
    """A default as in YAML, a component as in Python."""
    if isinstance(value, dict) and "_target_" in value:
        options = ", ".join(f"{key}={option!r}" for key, option in value.items() if key != "_target_")
        return f"{value['_target_'].rpartition('.')[2]}({options})"
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def _parameters(component: type[Component]) -> list[str]:
    """The arguments of the constructor with their defaults."""
    return [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in inspect.signature(component).parameters.values()
    ]
