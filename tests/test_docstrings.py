"""Docstrings of public functions: each has an example, and names its arguments.

The examples themselves are run as doctests (``pytest --doctest-modules``).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from genmeasures.registry.known_plugins import PLUGINS

PACKAGES = (
    *("genmeasures.identity", "genmeasures.statistics", "genmeasures.tracing"),
    *(f"genmeasures_{plugin}" for plugin in PLUGINS),
)
MODULES = ("contexts", "errors", "failures", "kept", "progress")


def modules() -> Iterator[str]:
    yield from (f"genmeasures.{name}" for name in MODULES)
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield from (info.name for info in pkgutil.iter_modules(package.__path__, f"{name}."))


def functions(name: str) -> list[tuple[str, Callable[..., Any]]]:
    """The public functions that a module defines."""
    members = inspect.getmembers(importlib.import_module(name), inspect.isfunction)
    return [(f, function) for f, function in members if function.__module__ == name and not f.startswith("_")]


@pytest.mark.parametrize("name", [*modules()])
def test_public_functions_have_an_example(name: str) -> None:
    without = [f for f, function in functions(name) if ">>> " not in (inspect.getdoc(function) or "")]
    assert not without, f"{name}: add an Example: section to the docstrings of {', '.join(without)}"


@pytest.mark.parametrize("name", [*modules()])
def test_arguments_are_documented(name: str) -> None:
    """By a line in Args, where a function has more than one."""
    silent = [
        f"{f}({parameter})"
        for f, function in functions(name)
        if len(parameters := inspect.signature(function).parameters) > 1
        for parameter in parameters
        if f"\n    {parameter}: " not in (inspect.getdoc(function) or "")
    ]
    assert not silent, f"{name}: add to the Args: section: {', '.join(silent)}"


def test_functions_are_found() -> None:
    assert "kmeans" in dict(functions("genmeasures.statistics.kmeans"))
    assert "curvature" in dict(functions("genmeasures_transitions.counting"))
    assert len(list(modules())) > 50
