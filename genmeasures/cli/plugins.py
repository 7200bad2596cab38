"""``genmeasures plugins``: what is installed, what it provides, and what failed to load."""

from __future__ import annotations

import inspect

from rich.text import Text

from genmeasures.errors import shown
from genmeasures.registry import registry
from genmeasures.report import make_console, print_json, print_line


def plugins_command(json: bool = False) -> int:
    """Print the plugins, or one JSON list of them; returns the exit status."""
    if json:
        print_json(
            [
                {
                    "name": info.name,
                    "distribution": info.distribution,
                    "version": info.version,
                    "error": info.error or None,
                    "components": [
                        {"kind": kind, "name": component.name, "options": _parameters(component)}
                        for kind, component in info.components
                    ],
                }
                for info in registry().plugins
            ]
        )
        return 0
    console = make_console()
    for info in registry().plugins:
        console.print(
            Text.assemble((shown(info.name), "bold"), shown(f"  {info.distribution} {info.version}")), soft_wrap=True
        )
        if info.error:
            print_line(console, f"  failed to load: {info.error}", "red")
        for kind in dict.fromkeys(kind for kind, _ in info.components):
            console.print(f"  {kind}", style="cyan")
            for component in (component for of, component in info.components if of == kind):
                options = ", ".join(str(p) for p in _parameters(component))
                print_line(console, f"    {component.name}({options})")
    return 0


def _parameters(component: type) -> list[str]:
    made = []
    for parameter in inspect.signature(component).parameters.values():
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        made.append(f"{parameter.name}{default}")
    return made
