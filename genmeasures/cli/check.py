"""``genmeasures check``: the conformance suite on an installed component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from genmeasures.errors import OptionError, nearest, one_line
from genmeasures.registry import registry
from genmeasures.report import make_console
from genmeasures.testing import run_checks

_MARKS = {"passed": ("✓", "green"), "failed": ("✗", "red"), "skipped": ("–", "yellow")}
_KINDS = ("extractor", "labeler", "measure", "aggregator")


def check_command(name: str, options: Sequence[str]) -> int:
    """Run all checks, print what each asks and found, and their counts; returns 1 if one failed."""
    kind, component_name = _find(name)
    component = registry().make(kind, component_name, options_of(options))
    console = make_console()
    console.print(f"[bold]{kind} {component_name}[/bold]  {component!r}", highlight=False)
    counts = dict.fromkeys(_MARKS, 0)
    for one in run_checks(component):
        counts[one.status] += 1
        mark, color = _MARKS[one.status]
        console.print(f"  [{color}]{mark}[/{color}] {one.name}: {one.asked}", highlight=False)
        if one.message:
            console.print(f"      {one.message}", style=color, markup=False, highlight=False)
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()), highlight=False)
    return 1 if counts["failed"] else 0


def options_of(texts: Sequence[str]) -> dict[str, Any]:
    """Options of a component that are given as OPTION=VALUE, the values in YAML. Raises OptionError."""
    given = {}
    for option in texts:
        key, equals, value = option.partition("=")
        if not equals:
            raise OptionError(f"{option!r}: options are given as OPTION=VALUE")
        try:
            given[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise OptionError(f"{option!r}: the value cannot be read: {one_line(str(error))}") from error
    return given


def _find(name: str) -> tuple[str, str]:
    """Kind and name of a component given as NAME or KIND.NAME."""
    kind, dot, rest = name.partition(".")
    if dot and kind in _KINDS:
        return kind, rest
    kinds = [kind for kind in _KINDS if name in registry().names(kind)]
    if not kinds:
        known = [known for kind in _KINDS for known in registry().names(kind)]
        raise OptionError(f"there is no component {name!r}{nearest(name, known)}")
    if len(kinds) > 1:
        raise OptionError(f"{name!r} is the name of several components: {', '.join(f'{k}.{name}' for k in kinds)}")
    return kinds[0], name
