"""``genmeasures plugins``: what is installed, what it provides, and what failed to load."""

from __future__ import annotations

import inspect

from rich.console import Console

from genmeasures.registry import registry


def plugins_command() -> int:
    """Print the plugins; returns the exit status."""
    console = Console()
    for info in registry().plugins:
        console.print(f"[bold]{info.name}[/bold]  {info.distribution} {info.version}")
        if info.error:
            console.print(f"  failed to load: {info.error}", style="red", markup=False)
        for kind in dict.fromkeys(kind for kind, _ in info.components):
            console.print(f"  {kind}", style="cyan")
            for component in (component for of, component in info.components if of == kind):
                options = ", ".join(str(p) for p in _parameters(component))
                console.print(f"    {component.name}({options})", markup=False, highlight=False, soft_wrap=True)
    return 0


def _parameters(component: type) -> list[str]:
    made = []
    for parameter in inspect.signature(component).parameters.values():
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        made.append(f"{parameter.name}{default}")
    return made
