"""Settings of runs under dotted names, and the settings in which the runs of a sweep differ."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from genmeasures.results.schema import measure_variables, settings_of

SEED = "seed"
"""The setting over which runs are averaged."""


def run_settings(ds: xr.Dataset) -> dict[str, str]:
    """Settings of the run behind a result, as texts under dotted names.

    ``extractor`` is the class of the extractor and ``extractor.cap`` an option of it. A measure is named after its
    variable, as in ``roughness.labeler.k``. A component that cannot be parsed is a single text.

    Args:
        ds: A result.

    Returns:
        Each setting as a text.

    Raises:
        ResultError: The attribute ``settings`` is not a YAML mapping.

    Example:
        >>> run_settings(xr.Dataset(attrs={"settings": "extractor: ReceptiveField(cap=400)\\nseed: 0"}))
        {'extractor': 'ReceptiveField', 'extractor.cap': '400', 'seed': '0'}
    """
    settings = settings_of(ds)
    measures = settings.pop("measures", None) or []
    extractor = settings.pop("extractor", None)
    texts = {} if extractor is None else _component("extractor", str(extractor))
    names = {str(ds[name].attrs.get("measure")): name for name in reversed(measure_variables(ds))}
    for measure in map(str, measures):
        before, equals, _ = measure.partition("=")
        alias = before if equals and before.isidentifier() else ""
        name = alias or names.get(measure, measure.partition("(")[0])
        texts |= _component(name, measure[len(alias) + 1 :] if alias else measure)
    return texts | {str(name): _text(value) for name, value in settings.items() if value is not None}


def differing(runs: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the settings in which runs differ, the seed last.

    The options of a measure are compared among the runs that have the measure.

    Args:
        runs: Settings of each run, from :func:`run_settings`.

    Returns:
        The names.

    Example:
        >>> differing([{"extractor": "A", "m": "M", "m.k": "5", "seed": "0"}, {"extractor": "A", "seed": "1"}])
        ['seed']
        >>> differing([{"m": "M", "m.k": "5"}, {"m": "M", "m.k": "8"}, {"n": "N"}])
        ['m.k']
    """
    names = dict.fromkeys(name for run in runs for name in run)
    different = []
    for name in names:
        owner = name.partition(".")[0]
        compared = [run for run in runs if owner in run] if name not in _ALWAYS else list(runs)
        if len({run.get(name) for run in compared}) > 1:
            different.append(name)
    return sorted(different, key=lambda name: name == SEED)


_ALWAYS = ("extractor", "layers", SEED, "ignore_index")


def _component(name: str, text: str) -> dict[str, str]:
    """``{"extractor": "ReceptiveField", "extractor.cap": "400"}`` from the repr of a component."""
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {name: text}
    return _parsed(name, node)


def _parsed(name: str, node: ast.expr) -> dict[str, str]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        return {name: _text(ast.literal_eval(node)) if isinstance(node, ast.Constant) else ast.unparse(node)}
    settings = {name: node.func.id}
    for keyword in node.keywords:
        settings |= _parsed(f"{name}.{keyword.arg}", keyword.value)
    return settings


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


__all__ = ["SEED", "differing", "run_settings"]
