"""Docstrings of public functions and components: each has an example, and functions name their arguments.

The examples themselves are run as doctests (``pytest --doctest-modules``).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import genmeasures
from genmeasures.interfaces import Component, Labeler, Measure
from genmeasures.registry.known_plugins import PLUGINS

WITHOUT_EXAMPLE = {
    "genmeasures.cli.interrupts.left_to_parent": "it changes how the whole process handles Ctrl-C",
    "genmeasures.cli.interrupts.shield_workers": "as above",
}


def modules() -> Iterator[str]:
    for info in pkgutil.walk_packages(genmeasures.__path__, "genmeasures."):
        if info.name != "genmeasures.__main__" and not info.name.startswith("genmeasures.conf"):
            yield info.name
    for plugin in PLUGINS:
        package = importlib.import_module(f"genmeasures_{plugin}")
        yield from (info.name for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."))


def functions(name: str) -> list[tuple[str, Callable[..., Any]]]:
    """The public functions that a module defines, except for the checks of the conformance suite.

    The first line of a check is what it asks of a component, and the suite is its example.
    """
    hidden = ("_", "check_") if name.startswith("genmeasures.testing.") else ("_",)
    members = inspect.getmembers(importlib.import_module(name), inspect.isfunction)
    return [(f, function) for f, function in members if function.__module__ == name and not f.startswith(hidden)]


def components(name: str) -> list[type[Component]]:
    """The components that a module defines, except for abstract ones and for bases of bases."""
    members = inspect.getmembers(importlib.import_module(name), inspect.isclass)
    return [
        cls
        for f, cls in members
        if cls not in (Labeler, Measure)
        and cls.__module__ == name
        and issubclass(cls, Component)
        and not f.startswith("_")
        and not inspect.isabstract(cls)
    ]


@pytest.mark.parametrize("name", [*modules()])
def test_public_functions_have_an_example(name: str) -> None:
    without = [
        f
        for f, function in functions(name)
        if ">>> " not in (inspect.getdoc(function) or "") and f"{name}.{f}" not in WITHOUT_EXAMPLE
    ]
    assert not without, f"{name}: add an Example: section to the docstrings of {', '.join(without)}"


@pytest.mark.parametrize("name", [*modules()])
def test_components_have_an_example(name: str) -> None:
    without = [cls.__name__ for cls in components(name) if ">>> " not in (cls.__doc__ or "")]
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
    assert "KMeans" in [cls.__name__ for cls in components("genmeasures.labelers.kmeans")]
    assert "path_turning" in dict(functions("genmeasures_transitions.counting"))
    assert len(list(modules())) > 150
