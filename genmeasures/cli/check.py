"""Command ``genmeasures check``: the conformance suite on a component, installed or in a file."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from genmeasures.errors import OptionError, nearest, one_line
from genmeasures.failures import debugging, origin
from genmeasures.interfaces import Aggregator, Component, Extractor, Labeler, Measure
from genmeasures.registry import make, registry
from genmeasures.report import make_console
from genmeasures.testing import run_checks

_MARKS = {"passed": ("✓", "green"), "failed": ("✗", "red"), "skipped": ("–", "yellow")}
_KINDS: dict[str, type[Component]] = {
    "extractor": Extractor,
    "labeler": Labeler,
    "measure": Measure,
    "aggregator": Aggregator,
}
_FILE = re.compile(r"(?P<path>.*\.py)(:(?P<name>[^:]*))?")


def check_command(name: str, options: Sequence[str]) -> int:
    """Run all checks of a component, and print each with its result, and the counts.

    Args:
        name: NAME or KIND.NAME of an installed component, or FILE.py:CLASS, where :CLASS may be left out for a file
            with one component.
        options: Options of the component as OPTION=VALUE.

    Returns:
        The exit status, 1 if a check failed.

    Raises:
        OptionError: If there is no such component, or an option is wrong.

    Example:
        >>> check_command("meen", [])
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: there is no component 'meen' (did you mean 'mean'? ...
    """
    values = options_of(options)
    file = _FILE.fullmatch(name)
    if file is not None:
        cls = _class_in(Path(file["path"]), file["name"])
        component = make(cls, values, cls.__name__)
        kind = next(kind for kind, base in _KINDS.items() if isinstance(component, base))
    else:
        kind, component_name = registry().find(name)
        if kind not in _KINDS:
            raise OptionError(f"{name!r} is a {kind}: the conformance suite has checks for {', '.join(_KINDS)} alone")
        component = registry().make(kind, component_name, values)
    console = make_console()
    called = getattr(component, "name", type(component).__name__)
    console.print(f"{kind} {called}  {component!r}", style="bold", markup=False, highlight=False)
    counts = dict.fromkeys(_MARKS, 0)
    for check in run_checks(component):
        counts[check.status] += 1
        mark, color = _MARKS[check.status]
        console.print(f"  [{color}]{mark}[/{color}] {check.name}: {check.asked}", highlight=False)
        if check.message:
            console.print(f"      {check.message}", style=color, markup=False, highlight=False)
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()), highlight=False)
    return 1 if counts["failed"] else 0


def options_of(texts: Sequence[str]) -> dict[str, Any]:
    """Return options from texts OPTION=VALUE, with the values in YAML.

    Raises:
        OptionError: If a text is not of this form.

    Example:
        >>> options_of(["k=8", "edges=quantile"])
        {'k': 8, 'edges': 'quantile'}
    """
    values = {}
    for option in texts:
        key, equals, value = option.partition("=")
        if not equals:
            raise OptionError(f"{option!r}: an option must be of the form OPTION=VALUE")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise OptionError(f"{option!r}: the value cannot be read: {one_line(str(error))}") from error
    return values


def _class_in(path: Path, name: str | None) -> type[Component]:
    """The class of a component in a file, which need not be installed; OptionError if there is none."""
    module = _imported(path)
    kinds = tuple(_KINDS.values())
    classes = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, kinds)
        and not inspect.isabstract(value)
        and value.__module__ == module.__name__
    }
    if name is None or name == "":
        if len(classes) != 1:
            raise OptionError(f"{path.name} has {len(classes)} components ({', '.join(classes)}): write FILE.py:CLASS")
        return next(iter(classes.values()))
    candidate = getattr(module, name, None)
    if isinstance(candidate, type) and issubclass(candidate, kinds) and inspect.isabstract(candidate):
        lacks = ", ".join(sorted(getattr(candidate, "__abstractmethods__", ())))
        raise OptionError(f"{name} in {path.name} is not complete: it has no {lacks}")
    if not (isinstance(candidate, type) and issubclass(candidate, kinds)):
        bases = "an Extractor, TargetLabeler, FeatureLabeler, FeatureMeasure, OutputMeasure, ModelMeasure or Aggregator"
        what = f"has no {name!r}" if candidate is None else f"has {name!r}, which is not the class of {bases}"
        raise OptionError(f"{path.name} {what}{nearest(name, classes)}")
    return candidate


def _imported(path: Path) -> ModuleType:
    """The module of a file, as part of its package if it is in one, so that relative imports work."""
    if not path.is_file():
        raise OptionError(f"there is no file {path}")
    path = path.resolve()
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    module_name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        if debugging():
            raise
        location = origin(error)
        raise OptionError(
            f"{path.name} cannot be imported: {type(error).__name__}: {error}{f' ({location})' if location else ''}"
        ) from error
    if Path(str(getattr(module, "__file__", ""))).resolve() != path:
        raise OptionError(f"the module {module_name!r} in {path} is hidden by {module.__file__}: rename the file")
    return module
