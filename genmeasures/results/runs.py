"""What tells the runs of a sweep apart: their settings under dotted names, and those in which they differ."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from genmeasures.results.schema import measure_variables, settings_of

SEED = "seed"
"""The setting over which runs are averaged."""


def run_settings(ds: xr.Dataset) -> dict[str, str]:
    """How a result was measured: every setting as a text under a dotted name.

    ``extractor`` is the class of the extractor and ``extractor.cap`` an option of it; a measure goes by the name
    of its variable, ``roughness.labeler.k``. What cannot be taken apart stands as one text.

    Raises:
        ResultError: the attribute ``settings`` is no YAML mapping.
    """
    settings = settings_of(ds)
    measures = settings.pop("measures", None) or []
    extractor = settings.pop("extractor", None)
    made = {} if extractor is None else _component("extractor", str(extractor))
    names = {str(ds[name].attrs.get("measure")): name for name in reversed(measure_variables(ds))}
    for one in map(str, measures):
        given, equals, _ = one.partition("=")
        alias = given if equals and given.isidentifier() else ""
        made |= _component(alias or names.get(one, one.partition("(")[0]), one[len(alias) + 1 :] if alias else one)
    return made | {str(name): _text(value) for name, value in settings.items() if value is not None}


def differing(runs: Sequence[Mapping[str, str]]) -> list[str]:
    """The settings in which runs differ, the seed last. An option of a measure counts among runs that have it.

    Example:
        >>> differing([{"extractor": "A", "m": "M", "m.k": "5", "seed": "0"}, {"extractor": "A", "seed": "1"}])
        ['seed']
        >>> differing([{"m": "M", "m.k": "5"}, {"m": "M", "m.k": "8"}, {"n": "N"}])
        ['m.k']
    """
    names = dict.fromkeys(name for run in runs for name in run)
    found = []
    for name in names:
        owner = name.partition(".")[0]
        having = [run for run in runs if owner in run] if name not in _ALWAYS else list(runs)
        if len({run.get(name) for run in having}) > 1:
            found.append(name)
    return sorted(found, key=lambda name: name == SEED)


_ALWAYS = ("extractor", "layers", SEED, "ignore_index")


def _component(name: str, text: str) -> dict[str, str]:
    """``{"extractor": "ReceptiveField", "extractor.cap": "400"}`` of what a component shows itself as."""
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {name: text}
    return _taken_apart(name, node)


def _taken_apart(name: str, node: ast.expr) -> dict[str, str]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        return {name: _text(ast.literal_eval(node)) if isinstance(node, ast.Constant) else ast.unparse(node)}
    made = {name: node.func.id}
    for keyword in node.keywords:
        made |= _taken_apart(f"{name}.{keyword.arg}", keyword.value)
    return made


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


__all__ = ["SEED", "differing", "run_settings"]
