"""Hydra configs derived from the constructors of components, and the options that a component documents."""

from __future__ import annotations

import importlib.resources
import inspect
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from genmeasures.errors import OptionError
from genmeasures.interfaces import Component
from genmeasures.registry.kinds import kind_of

REQUIRED = "???"
"""Value of an option without a default, which the user has to set: Hydra's mark for a missing value."""

_ENTRY = re.compile(r"(\w+)(?: \([^)]*\))?: *(.*)")


@dataclass(frozen=True)
class OptionInfo:
    """One option of a component: an argument of its constructor."""

    name: str
    default: Any
    """Plain value as in YAML; :data:`REQUIRED` where there is none."""
    text: str
    """Description in the ``Args`` section of the docstring; empty where it is missing."""


def options_of(component: type[Component]) -> list[OptionInfo]:
    """Return the options of a component with their defaults and descriptions.

    Args:
        component: class whose constructor is read. The descriptions come from the ``Args`` section of its docstring
            or of that of its constructor.

    Raises:
        OptionError: If a default cannot be written in YAML.

    Example:
        >>> from genmeasures.labelers import Histogram
        >>> [(option.name, option.default) for option in options_of(Histogram)]
        [('bins', 10), ('edges', 'auto')]
    """
    texts = {**descriptions(component.__init__.__doc__), **descriptions(component.__doc__)}
    parameters = inspect.signature(component).parameters
    names = component.option_names()
    stored: dict[str, Any] = {}
    if all(parameters[name].default is not inspect.Parameter.empty for name in names):
        # A default of None may stand for a component, which only the object shows.
        stored = {name: value for name, value in component().options().items() if isinstance(value, Component)}
    options = []
    for name in names:
        default = parameters[name].default
        value = REQUIRED if default is inspect.Parameter.empty else _plain(stored.get(name, default), component, name)
        options.append(OptionInfo(name, value, texts.get(name, "")))
    return options


def derived_config(component: type[Component]) -> dict[str, Any]:
    """Return the Hydra config of a component that has no YAML file.

    Options keep the defaults of the constructor, and those without a default are ``???``. The option ``labeler`` is a
    choice of the config group ``labeler``: ``labeler@measure.NAME.labeler=kmeans`` selects another one.

    Raises:
        OptionError: If a default cannot be written in YAML.

    Example:
        >>> from genmeasures.aggregators import LastK
        >>> derived_config(LastK)
        {'_target_': 'genmeasures.aggregators.LastK', 'k': 3}
    """
    config: dict[str, Any] = {"_target_": target_of(component)}
    for option in options_of(component):
        config[option.name] = option.default
        if option.name != "labeler" or kind_of(component) != "measure":
            continue
        if isinstance(option.default, dict):
            labeler = component().options()["labeler"]
            config["defaults"] = [{"/labeler@labeler": labeler.name}, "_self_"]
            config["labeler"] = {key: value for key, value in option.default.items() if key != "_target_"}
        elif option.default is None:
            # After the null of this config, which would replace the labeler that is chosen.
            config["defaults"] = ["_self_", {"/labeler@labeler": None}]
    return config


def has_yaml(component: type[Component], packages: Iterable[str]) -> bool:
    """Return whether one of the config packages has a YAML file for the component.

    Args:
        component: class of the component.
        packages: names of config packages.

    Example:
        >>> from genmeasures.labelers import KMeans
        >>> has_yaml(KMeans, ["genmeasures.conf"])
        True
    """
    path = f"{component.name}.yaml"
    return any((importlib.resources.files(package) / kind_of(component) / path).is_file() for package in packages)


def target_of(component: type[Component]) -> str:
    """Return the shortest dotted path that the class can be imported from.

    Raises:
        OptionError: If the class is defined within a function.

    Example:
        >>> from genmeasures.labelers.kmeans import KMeans
        >>> target_of(KMeans)
        'genmeasures.labelers.KMeans'
    """
    if "<locals>" in component.__qualname__:
        raise OptionError(
            f"{component.__name__} is defined within a function, so that a config cannot name it: define it at the top "
            "level of a module"
        )
    parts = component.__module__.split(".")
    for count in range(1, len(parts)):
        module = ".".join(parts[:count])
        if getattr(sys.modules.get(module), component.__qualname__, None) is component:
            return f"{module}.{component.__qualname__}"
    return f"{component.__module__}.{component.__qualname__}"


def descriptions(docstring: str | None) -> dict[str, str]:
    """Return the descriptions in the ``Args`` section of a Google-style docstring, each on one line.

    Example:
        >>> descriptions('''Mean of the last layers.
        ...
        ...     Args:
        ...         k: Number of layers. Models with
        ...             fewer layers use all.
        ... ''')
        {'k': 'Number of layers. Models with fewer layers use all.'}
    """
    lines = inspect.cleandoc(docstring or "").splitlines()
    texts: dict[str, str] = {}
    name, indent = "", 0
    for line in lines[lines.index("Args:") + 1 :] if "Args:" in lines else ():
        if line and not line.startswith(" "):
            break
        depth = len(line) - len(line.lstrip())
        entry = _ENTRY.fullmatch(line.strip())
        if entry is not None and (not indent or depth == indent):
            indent = depth
            name, texts[entry[1]] = entry[1], entry[2]
        elif name and line.strip():
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts


def without_args(docstring: str | None) -> str:
    """Return a Google-style docstring without its ``Args`` section.

    Example:
        >>> without_args("Mean.\\n\\nArgs:\\n    k: Number of layers.\\n\\nRaises:\\n    OptionError: Never.")
        'Mean.\\n\\nRaises:\\n    OptionError: Never.'
    """
    kept: list[str] = []
    within = False
    for line in inspect.cleandoc(docstring or "").splitlines():
        if line == "Args:":
            within = True
        elif within and line and not line.startswith(" "):
            within = False
        if not within:
            kept.append(line)
    return "\n".join(kept).strip()


def _plain(value: Any, component: type[Component], name: str) -> Any:
    """The value as YAML has it, a component as the config of the options that differ from its defaults."""
    if isinstance(value, Component):
        defaults = {option.name: option.default for option in options_of(type(value))}
        options = {key: _plain(own, type(value), key) for key, own in value.options().items()}
        changed = {key: own for key, own in options.items() if own != defaults[key]}
        return {"_target_": target_of(type(value)), **changed}
    if isinstance(value, list | tuple):
        return [_plain(item, component, name) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, component, name) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise OptionError(
        f"{component.__name__}: the default of {name!r} is {value!r}, which YAML cannot express: write a YAML file for "
        "the component, or give the option a default of None, bool, int, float, str, list or dict"
    )
